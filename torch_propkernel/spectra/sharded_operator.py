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
    and each entry of the symmetric matrix is evaluated once on one machine. Points and vectors are replicated: every
    process holds X and V whole, adds up what its tiles contribute, and gets the sum of all processes. What is built on
    products alone (:class:`LanczosRun`, :func:`conjugate_gradients`) runs on every process alike, with the same random
    numbers and the same decisions. Columns and the diagonal, of which few are asked for, every process computes by
    itself: sending an entry takes longer than evaluating it.

    Every process must make the same calls in the same order, with the same data. Before each product the processes
    compare the number of columns and the sum of their sizes, so that another model, seed or checkpoint on one of them
    is an error and no wrong number. Sums over processes are rounded in another order than those of one process, which
    is the only difference in the results; all processes get the same bits.

    Memory of a process: ``8 d P`` bytes of points beside what :class:`KernelOperator` takes. Cost of a product with c
    columns: P^2 / (2 N) entries of the kernel and 2 c P^2 / N flops, and an all-reduce of ``8 c P`` bytes, for which
    each process sends and receives ``16 c P (N - 1) / N`` bytes.

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

    def _total(self, part: Tensor) -> Tensor:
        self._together(dist.all_reduce, part)
        return part

    def check_alike(self, vectors: Tensor) -> None:
        """Raise unless every process is about to multiply the same vectors.

        Raises:
            ValueError: Another number of columns, or other numbers, on another process.
        """
        own = torch.stack([vectors.new_tensor(vectors.shape[1]), vectors.abs().sum()]).double()
        everyone = [torch.empty_like(own) for _ in range(self.num_processes)]
        self._together(dist.all_gather, everyone, own)
        for rank, other in enumerate(everyone):
            if not torch.allclose(own, other, rtol=_ALIKE, atol=0.0, equal_nan=True):
                mine, theirs = (f"{int(pair[0])} columns of size {float(pair[1]):.9g}" for pair in (own, other))
                raise ValueError(
                    f"vectors: expected the same on all processes, got {mine} on process {self.rank} and {theirs} on "
                    f"process {rank}; give all of them the same data, options and checkpoint"
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
