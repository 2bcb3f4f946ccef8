"""A kernel matrix as its products with vectors, computed tile by tile and never held."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from .._validation import check_inputs, whole_number


def alone(part: Tensor) -> Tensor:
    """Return the sum over all processes of what each has, where there is one."""
    return part


class KernelOperator:
    r"""The matrix :math:`K_{ij} = k(x_i, x_j)` of P points, of which no more than a few tiles are in memory.

    All products with K happen here, so that whatever needs nothing else (:class:`LanczosRun`,
    :func:`conjugate_gradients`, :class:`LowRank`) works where K does not fit. A tile above the diagonal is evaluated
    once and used twice, as K_IJ and as its transpose. Tiles have the dtype of the points; sums over tiles are float64.

    A product is the sum over all tiles of what each contributes, so that processes can share them
    (:class:`ShardedKernelOperator`), and vectors can be shared too: a process has :attr:`own_rows` of each, all of them
    here, and whatever sums over rows asks for the :meth:`total`.

    Shapes: vectors are columns, ``P x c``. Cost of a product: P^2 / 2 entries of the kernel and 2 c P^2 flops, in
    ``8 * (2 c P + few * tile_size^2)`` bytes. With c = 32 columns the kernel's entries take most of the time.

    Args:
        block: Returns ``n x m`` for points ``n x d`` and ``m x d``; it is called with one tensor twice for a tile on
            the diagonal. What it returns is the operator's own.
        inputs: The points X, ``P x d``.
        tile_size: Points along each side of a tile.
        dtype: Of the tiles; the points' own if None. Tiles of float32 cost half the time and are right to 1e-6 of the
            kernel's largest entry: rounding then acts as noise of that size beside the temperature.

    Attributes:
        rank: Number of this process among those that share the tiles; zero.
        num_processes: How many they are; one.

    Raises:
        ValueError: Points of the wrong shape or not finite, a tile size below one, vectors that do not match.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
        >>> operator = KernelOperator(lambda a, b: a @ b.T, x, tile_size=2)
        >>> operator.matmul(torch.eye(3, dtype=torch.float64)[:, :2]).tolist()
        [[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]
    """

    rank = 0
    num_processes = 1

    def __init__(
        self,
        block: Callable[[Tensor, Tensor], Tensor],
        inputs: Tensor,
        *,
        tile_size: int = 1024,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Cut the points into parts."""
        check_inputs(inputs, "inputs")
        if inputs.dim() != 2:
            raise ValueError(f"inputs: expected shape (P, d) without batch dimensions, got {tuple(inputs.shape)}")
        self.block = block
        self.inputs = inputs.detach().to(inputs.dtype if dtype is None else dtype)
        self.tile_size = whole_number("tile_size", tile_size)
        starts = range(0, self.num_data, self.tile_size)
        self._slices = [slice(start, min(start + self.tile_size, self.num_data)) for start in starts]
        self._parts = [self.inputs[rows] for rows in self._slices]

    @property
    def num_data(self) -> int:
        """Number P of points."""
        return self.inputs.shape[0]

    def of_first(self, number: int) -> KernelOperator:
        """Return the matrix of the first points."""
        return KernelOperator(self.block, self.inputs[:number], tile_size=self.tile_size)

    @property
    def num_tiles(self) -> int:
        """Number of tiles that a product evaluates, over all processes."""
        return len(self._slices) * (len(self._slices) + 1) // 2

    def own_tiles(self) -> list[tuple[int, int]]:
        """Return which tiles (I, J) with I <= J this process evaluates; they are dealt to the processes in turn."""
        size = len(self._slices)
        tiles = ((row, column) for row in range(size) for column in range(row, size))
        return list(itertools.islice(tiles, self.rank, None, self.num_processes))

    @property
    def own_rows(self) -> slice:
        """The rows of vectors that this process has, which are all."""
        return slice(0, self.num_data)

    def total(self, part: Tensor) -> Tensor:
        """Return the sum of all processes' parts, the same on all of them: there is one."""
        return part

    def gathered(self, own: Tensor) -> Tensor:
        """Return all rows of vectors ``P_own x c`` of which each process has its own, ``P x c``."""
        return own

    def rows_at(self, own: Tensor, indices: Tensor) -> Tensor:
        """Return rows of vectors ``P_own x c`` of which each process has its own, by their indices among all."""
        return own[indices]

    def of_first_process(self, value: Tensor) -> Tensor:
        """Return what the first process has."""
        return value

    def check_alike(self, vectors: Tensor) -> None:
        """Raise unless every process is about to multiply the same vectors: there is one process."""

    def synchronize(self) -> None:
        """Wait until every process has come here: there is one."""

    @torch.no_grad()
    def matmul(self, vectors: Tensor, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Return K V in float64, ``P x c``.

        Args:
            vectors: V, ``P x c``.
            progress: Called with (tiles done, tiles of this process) after each tile.
        """
        self._check(vectors)
        self.check_alike(vectors)
        out = torch.zeros(vectors.shape, dtype=torch.float64, device=self.inputs.device)
        vectors = vectors.to(self.inputs)
        tiles = self.own_tiles()
        for done, (i, j) in enumerate(tiles, 1):
            rows, columns = self._slices[i], self._slices[j]
            tile = self.block(self._parts[i], self._parts[j])
            out[rows] += tile @ vectors[columns]
            if i != j:
                out[columns] += (vectors[rows].T @ tile).T  # half the time of the product from the left
            if progress is not None:
                progress(done, len(tiles))
        return self.total(out)

    def own_matmul(self, own: Tensor, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Return own rows of K V, ``P_own x c``, from own rows of V."""
        return self.matmul(self.gathered(own), progress)[self.own_rows]

    def _check(self, vectors: Tensor) -> None:
        if vectors.dim() != 2 or vectors.shape[0] != self.num_data:
            raise ValueError(f"vectors: expected shape ({self.num_data}, c), got {tuple(vectors.shape)}")

    @torch.no_grad()
    def columns(self, x: Tensor) -> Tensor:
        """Return k(X, x) in float64, ``P x m``, for points x of shape ``m x d``."""
        x = x.detach().to(self.inputs)
        return torch.cat([self.block(part, x).double() for part in self._parts])

    @torch.no_grad()
    def own_columns(self, x: Tensor) -> Tensor:
        """Return the own rows of :meth:`columns`, ``P_own x m``, for points x that all processes have."""
        self.check_alike(x)
        x = x.detach().to(self.inputs)
        return torch.cat([self.block(part, x).double() for part in self.inputs[self.own_rows].split(self.tile_size)])

    @torch.no_grad()
    def cross_matmul(self, x: Tensor, vectors: Tensor) -> Tensor:
        """Return k(x, X) V in float64, ``m x c``, for points x of shape ``m x d``, of which a tile is held."""
        self.check_alike(vectors)
        vectors = vectors.to(self.inputs)
        own = range(self.rank, len(self._parts), self.num_processes)
        out = torch.zeros(len(x), vectors.shape[1], dtype=torch.float64, device=self.inputs.device)
        points = x.detach().to(self.inputs).split(self.tile_size)
        for rows, own_points in zip(out.split(self.tile_size), points, strict=True):
            for part in own:
                rows += self.block(own_points, self._parts[part]) @ vectors[self._slices[part]]
        return self.total(out)

    @torch.no_grad()
    def diagonal(self) -> Tensor:
        """Return k(x_i, x_i) in float64, ``P``."""
        parts = (part.split(64) for part in self._parts)  # 64 rows at a time: few entries beside the diagonal
        return torch.cat([self.block(rows, rows).diagonal().double() for split in parts for rows in split])
