"""Products with a kernel matrix whose tiles are shared among processes, on one machine or many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..exceptions import LostProcessError
from .kernel_operator import KernelOperator

_ALIKE = 1e-6  # relative difference of a sum that rounding on other hardware may make


class ShardedKernelOperator(KernelOperator):
    r"""A :class:`KernelOperator` of which each process of a group evaluates a share of the tiles.

    .. math:: K V = \sum_{n=1}^N \sum_{(I, J) \in S_n} \big( e_I K_{IJ} V_J + [I \ne J]\, e_J K_{IJ}^T V_I \big)

    The tiles on and above the diagonal are dealt to the N processes in turn, so that all have the same work to one tile
    and each entry of the symmetric matrix is evaluated once on one machine. Points are replicated: every process holds
    X whole. For a product it holds V whole, adds up what its tiles contribute, and gets the sum of all processes. What
    is kept of vectors between products are the process's own rows (:attr:`own_rows`, :meth:`own_matmul`): of the
    Lanczos basis, the part of low rank and the iterates of conjugate gradients, which are what takes memory. A sum over
    rows is a :meth:`total` of a few numbers for each column, so that all processes make the same decisions.

    Every process must make the same calls in the same order, with the same data. Before each product the processes
    compare the number of columns, and of vectors and points that all of them have the sum of their sizes, so that
    another model, seed or checkpoint on one of them is an error and no wrong number. Sums over processes are rounded in
    another order than those of one process, which is the only difference in the results; all processes get the same
    bits.

    Memory of a process: ``8 d P`` bytes of points beside what :class:`KernelOperator` takes. Cost of a product with c
    columns: P^2 / (2 N) entries of the kernel and 2 c P^2 / N flops, an all-reduce of ``8 c P`` bytes, for which
    each process sends and receives ``16 c P (N - 1) / N`` bytes, and half of that to gather own rows before it.

    Args:
        block: As for :class:`KernelOperator`.
        inputs: Likewise; the same on every process.
        process_group: From ``torch.distributed.init_process_group`` or ``new_group``; the default group
            if None. Its backend must serve the device of the points: gloo on the CPU, NCCL on CUDA. Its timeout is how
            long a process waits for the slowest of the others.
        tile_size: As for :class:`KernelOperator`. At least some tiles for each process should come out.
        dtype: As for :class:`KernelOperator`.

    Raises:
        ValueError: No process group, one without this process, other vectors on another process; and as
            :class:`KernelOperator`.
        LostProcessError: In a product, if another process has ended, or does not answer within the group's timeout.
            With NCCL it needs ``TORCH_NCCL_BLOCKING_WAIT=1`` in the environment: NCCL ends the process otherwise.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)   # torchrun: "gloo" alone
        >>> x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
        >>> operator = ShardedKernelOperator(lambda a, b: a @ b.T, x, tile_size=2)
        >>> operator.matmul(torch.eye(3, dtype=torch.float64)[:, :2]).tolist()
        [[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]
        >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        block: Callable[[Tensor, Tensor], Tensor],
        inputs: Tensor,
        process_group: torch.distributed.ProcessGroup | None = None,
        *,
        tile_size: int = 1024,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Find this process in the group."""
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "process_group: expected one, got none that is initialized; call torch.distributed.init_process_group"
            )
        rank = dist.get_rank(process_group)
        if rank < 0:
            raise ValueError("process_group: expected one to which this process belongs, got another")
        super().__init__(block, inputs, tile_size=tile_size, dtype=dtype)
        self.process_group = process_group
        self.rank, self.num_processes = rank, dist.get_world_size(process_group)

    def _rows_of(self, rank: int) -> slice:
        return slice(self.num_data * rank // self.num_processes, self.num_data * (rank + 1) // self.num_processes)

    @property
    def own_rows(self) -> slice:
        """The rows of vectors that this process has, as many consecutive ones as the others have, to one."""
        return self._rows_of(self.rank)

    def total(self, part: Tensor) -> Tensor:
        """Return the sum of all processes' parts, the same on all of them."""
        part = part.contiguous()
        self._together(dist.all_reduce, part)
        return part

    def gathered(self, own: Tensor) -> Tensor:
        """Return all rows of vectors ``P_own x c`` of which each process has its own, ``P x c``."""
        rows = [self._rows_of(rank) for rank in range(self.num_processes)]
        sizes = [each.stop - each.start for each in rows]
        self._compare(own.new_tensor([own.shape[1]]).double(), "vectors", lambda found: f"{int(found[0])} columns")
        padded = own.new_zeros(max(sizes), own.shape[1])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        self._together(dist.all_gather, parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def rows_at(self, own: Tensor, indices: Tensor) -> Tensor:
        """Return rows of vectors ``P_own x c`` of which each process has its own, by their indices among all."""
        rows = self.own_rows
        inside = ((indices >= rows.start) & (indices < rows.stop)).unsqueeze(-1)
        return self.total(torch.where(inside, own[(indices - rows.start).clamp(0, len(own) - 1)], 0.0))

    def of_first_process(self, value: Tensor) -> Tensor:
        """Return what the first process has."""
        return self.total(value if self.rank == 0 else torch.zeros_like(value))

    def own_matmul(self, own: Tensor, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Return own rows of K V, ``P_own x c``, from own rows of V."""
        return super().own_matmul(own, progress).clone()  # the other rows' memory is given back

    def check_alike(self, vectors: Tensor) -> None:
        """Raise unless every process is about to multiply the same vectors.

        Raises:
            ValueError: Another number of columns, or other numbers, on another process.
        """
        own = torch.stack([vectors.new_tensor(vectors.shape[1]), vectors.abs().sum()]).double()
        self._compare(own, "vectors", lambda found: f"{int(found[0])} columns of size {float(found[1]):.9g}")

    def _compare(self, own: Tensor, name: str, said: Callable[[Tensor], str]) -> None:
        """Raise unless some numbers are the same on every process."""
        everyone = [torch.empty_like(own) for _ in range(self.num_processes)]
        self._together(dist.all_gather, everyone, own)
        for rank, other in enumerate(everyone):
            if not torch.allclose(own, other, rtol=_ALIKE, atol=0.0, equal_nan=True):
                raise ValueError(
                    f"{name}: expected the same on all processes, got {said(own)} on process {self.rank} and "
                    f"{said(other)} on process {rank}; give all of them the same data, options and checkpoint"
                )

    def synchronize(self) -> None:
        """Wait until every process has come here."""
        self._together(dist.all_reduce, torch.zeros(1, device=self.inputs.device))

    def _together(self, collective: Callable[..., Any], *tensors: Any) -> None:
        try:
            collective(*tensors, group=self.process_group)
        except RuntimeError as error:
            raise LostProcessError(
                f"processes: expected an answer of all {self.num_processes}, process {self.rank} got "
                f"'{str(error).splitlines()[0]}'; another one has ended or is late. Start all of them again: a "
                "checkpoint is continued"
            ) from error
