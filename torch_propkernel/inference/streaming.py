"""How a problem past memory is computed: options, the memory that they need, and the file of an unfinished run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from .._validation import positive_number, whole_number

VECTORS = 16.0  # of a column, in conjugate gradients and around them: 14 to 16 were measured
_FEWEST, _MOST = 256, 1024
"""Columns of a block by default: more cost memory, and the tiles are less than a tenth of the time with a thousand."""


@dataclass(frozen=True)
class Streaming:
    """Options of a :class:`StreamedProblem`.

    Memory in bytes is about 8 P times the larger of rank + (num_probes + 1) (max_steps + 6) and max_steps + 2 rank +
    16 num_columns, plus a few tiles; each of N processes has an Nth of it, and two vectors for each column of a product
    beside it (:meth:`num_bytes`). A checkpoint has 8 P (num_probes + 1) bytes for each step.

    Args:
        num_probes: Random probes of the trace; the statistical error falls with their square root.
        max_steps: Limit of the Lanczos steps.
        block_steps: Steps between two looks at the accuracy, and between two checkpoints.
        tolerance: Relative error of q, and error of the log likelihood per point, at which the steps end.
        rank: Of the preconditioner, which also takes the largest directions out of the statistical error.
        residual: Of A^{-1} y over ``|y|``: the error of the mean, roughly, in units of the targets' root mean square.
        variance_tolerance: Relative error of latent variances, and of the diagonal of A^{-1}.
        max_solver_steps: Limit of the steps of conjugate gradients.
        columns: Columns that are solved for at a time: a test point, or a point left out, at one scale each. If None,
            as many as the memory of the Lanczos run has room for, from 256 to 1024.
        num_left_out: Training points, drawn at random, that are left out one by one.
        tile_size: Points along a side of a tile of the kernel matrix.
        tile_dtype: Of the tiles; the data's own if None.
        product: How products with the kernel matrix are computed: "tiles", by torch; "fused", by a Triton kernel with
            float32 entries (:class:`torch_propkernel.kernels.FusedProduct`); "auto", fused for tiles of float32 on CUDA
            where the kernel allows it, and by tiles otherwise.
        seed: Of the probes, the preconditioner and the points that are left out.
        checkpoint: File of the Lanczos run, written after every block of steps; a run that was killed goes on from it,
            and a finished one is read. A file that is there must be of the same problem. Each of several processes
            writes its own rows, to ``checkpoint.0of2`` and ``checkpoint.1of2``; any number of processes goes on from
            them, one too. On several machines they lie in a folder that all share.
        progress: Called with (done, limit) in tiles of the kernel matrix, of several processes those of its own.
        process_group: Of ``torch.distributed``, whose processes share the products
            (:class:`torch_propkernel.spectra.ShardedKernelOperator`); "world" for the default group, which are all
            processes that ``torchrun`` has started, None for this process alone. Prefer "world" to the object: gloo
            aborts a process at whose end something still holds a group.

    Raises:
        ValueError: A number out of its range.

    Example:
        >>> Streaming(num_probes=8).max_steps
        400
        >>> [Streaming(num_probes=number).num_columns(36_000) for number in (4, 16, 32)]
        [256, 343, 749]
        >>> Streaming(num_probes=1)
        Traceback (most recent call last):
            ...
        ValueError: num_probes: expected a whole number >= 2, got 1
    """

    num_probes: int = 32
    max_steps: int = 400
    block_steps: int = 10
    tolerance: float = 1e-4
    rank: int = 1000
    residual: float = 1e-4
    variance_tolerance: float = 1e-3
    max_solver_steps: int = 400
    columns: int | None = None
    num_left_out: int = 256
    tile_size: int = 1024
    tile_dtype: torch.dtype | None = None
    product: str = "auto"
    seed: int = 0
    checkpoint: str | os.PathLike[str] | None = None
    progress: Callable[[int, int], None] | None = None
    process_group: torch.distributed.ProcessGroup | Literal["world"] | None = None

    def __post_init__(self) -> None:
        """Check the numbers, and hold no default group."""
        group = self.process_group
        if isinstance(group, str):
            if group != "world":
                raise ValueError(f"process_group: expected a ProcessGroup, 'world' or None, got {group!r}")
        elif group is not None and group is torch.distributed.group.WORLD:
            object.__setattr__(self, "process_group", "world")
        whole_number("num_probes", self.num_probes, least=2)
        for name in ("max_steps", "block_steps", "rank", "max_solver_steps", "num_left_out", "tile_size"):
            whole_number(name, getattr(self, name))
        if self.columns is not None:
            whole_number("columns", self.columns)
        for name in ("tolerance", "residual", "variance_tolerance"):
            positive_number(name, getattr(self, name))
        if self.product not in ("auto", "tiles", "fused"):
            raise ValueError(f"product: expected 'auto', 'tiles' or 'fused', got {self.product!r}")

    @property
    def num_processes(self) -> int:
        """How many processes share the products; one without a group."""
        if self.process_group is None or not torch.distributed.is_initialized():
            return 1
        return torch.distributed.get_world_size(None if isinstance(self.process_group, str) else self.process_group)

    def num_columns(self, num_data: int, num_processes: int | None = None) -> int:
        """Return the columns that are solved for at a time with P = ``num_data`` points."""
        if self.columns is not None:
            return self.columns
        reduction, (fixed, per_column) = self._rows(num_data, num_processes or self.num_processes)
        return min(max(int((reduction - fixed) / per_column), _FEWEST), _MOST)

    def num_bytes(self, num_data: int, num_processes: int | None = None) -> float:
        """Return the memory of a process at the peak.

        Args:
            num_data: P.
            num_processes: N; those of the group if None.
        """
        number = num_processes or self.num_processes
        reduction, (fixed, per_column) = self._rows(num_data, number)
        solves = fixed + per_column * self.num_columns(num_data, number)
        return 8.0 * (num_data * max(reduction, solves) + 6 * min(self.tile_size, num_data) ** 2)

    def _rows(self, num_data: int, number: int) -> tuple[float, tuple[float, float]]:
        """Return the numbers for each point in the Lanczos run, and in solves: fixed ones, and for each column."""
        steps, rank, vectors = min(self.max_steps, num_data), min(self.rank, num_data), self.num_probes + 1
        whole = 2.0 if number > 1 else 0.0  # a product's own two, which are not shared
        return (rank + vectors * (steps + 6)) / number + whole * vectors, (
            (steps + 2 * rank) / number,
            VECTORS / number + whole,
        )
