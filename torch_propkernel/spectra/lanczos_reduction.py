"""A kernel matrix and targets reduced without the matrix: nodes of Lanczos quadratures in place of eigenvalues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._validation import check_finite, whole_number
from ..exceptions import NotPositiveDefiniteError
from .kernel_operator import alone
from .lanczos import LanczosRun, gauss_quadrature, radau_quadrature, tridiagonal
from .low_rank import LowRank
from .spectrum import Spectrum

_ROUNDING = 1e-4
"""Largest negative node beside the largest one, that of a matrix with entries in single precision."""


@dataclass(frozen=True)
class LanczosReduction:
    r"""One Lanczos run from the targets y and from n random probes g of signs +-1, for all widths and temperatures.

    .. math:: y^T f(K) y \approx \sum_j z_j^2 f(k_j), \qquad
              \mathrm{tr} f(K) = E\, g^T f(K) g \approx \frac1n \sum_p \sum_j P\, w_{pj} f(k_{pj})

    with nodes and weights of Gauss rules: those of y carry the projections z, those of the probes the counts
    :math:`P w / n` of one :class:`Spectrum`. The sum over y has no statistical error. That of the trace has the
    variance :math:`\frac2n \sum_{i \ne j} f(K)_{ij}^2`, of the size of the off-diagonal entries: it is read off from
    the scatter of the probes (:meth:`probe_sums`). A part of low rank takes most of it away where the trace is one of
    large directions, as that of the logarithm is: with :math:`\hat K + \delta (1 - U U^T)`, of which :math:`\delta` is
    the mean of the eigenvalues that the part leaves out, as a control variate only the difference of both is estimated,
    and the trace for the part is added; counts of its nodes may be negative. The rules' own errors are between zero and
    the difference to the Gauss-Radau rules (``spectrum(radau=True)``).

    Shapes: y is ``P``. Cost and memory: :class:`LanczosRun` with n + 1 columns.

    Attributes:
        run: From y, its first column, and the probes.
        num_data: P.
        part_eigenvalues: Those k of the part of low rank, ``R``, and delta, which stands for all others.
        part_counts: What each of them adds to the counts of a probe, ``n x (R + 1)``.

    Raises:
        ValueError: Targets of the wrong shape or not finite, fewer than two probes.
        NotPositiveDefiniteError: K has a negative eigenvalue.

    Reference: Ubaru, Chen & Saad (2017), SIAM J. Matrix Anal. Appl. 38, 1075; Golub & Meurant (2010); THEORY.md,
    section 1.

    Example:
        >>> k = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
        >>> reduction = LanczosReduction.start(torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64), num_probes=2)
        >>> reduction.run.extend(torch.diag(k).matmul, 3)   # as many steps as eigenvalues: nothing is left out
        >>> spectrum = reduction.spectrum()
        >>> round((spectrum.squares * spectrum.eigenvalues).sum().item(), 10)   # y^T K y = 1 + 9 * 4
        37.0
        >>> round((spectrum.counts * spectrum.eigenvalues).sum().item(), 10), spectrum.num_data   # tr K, P
        (7.0, 3)
    """

    run: LanczosRun
    num_data: int
    part_eigenvalues: Tensor
    part_counts: Tensor

    @classmethod
    def start(
        cls,
        targets: Tensor,
        num_probes: int,
        seed: int = 0,
        part: LowRank | None = None,
        rows: slice = slice(None),
        total: Callable[[Tensor], Tensor] = alone,
    ) -> LanczosReduction:
        """Return the reduction before its first step.

        Args:
            targets: y with the mean subtracted, ``P``.
            num_probes: n, at least 2.
            seed: Of the probes.
            part: Of K, of low rank; nothing is subtracted if None.
            rows: Those of this process among several, which the part and the run have alone.
            total: Sums over processes.
        """
        if targets.dim() != 1:
            raise ValueError(f"targets: expected shape (P,) without batch dimensions, got {tuple(targets.shape)}")
        check_finite("targets", targets)
        number = whole_number("num_probes", num_probes, least=2)
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (len(targets), number), generator=generator).double() * 2.0 - 1.0
        signs = signs.to(targets.device)
        values, counts = signs.new_zeros(1), signs.new_zeros(number, 1)
        if part is not None:
            others = part.remainder / max(len(targets) - len(part.eigenvalues), 1)
            values = torch.cat([part.eigenvalues, values.new_tensor([others])])
            counts = 1.0 - total(part.vectors.T @ signs[rows]).T.square()
            counts = torch.cat([counts, -counts.sum(-1, keepdim=True)], -1)
        run = LanczosRun(torch.cat([targets.double().unsqueeze(-1), signs], -1)[rows], total)
        return cls(run, len(targets), values, counts)

    @property
    def num_probes(self) -> int:
        """Number n of probes."""
        return len(self.run.norms) - 1

    def _rules(self, radau: bool) -> tuple[Tensor, Tensor]:
        """Return nodes and weights of all columns; the weights of a column sum to its squared norm.

        Raises:
            NotPositiveDefiniteError: A node is negative beyond rounding.
        """
        rule = radau_quadrature if radau else gauss_quadrature
        nodes, weights = rule(self.run.alphas, self.run.betas)
        lowest, highest = float(nodes.min()), float(nodes.max())
        if lowest < -_ROUNDING * highest or highest < 0:
            raise NotPositiveDefiniteError(
                f"kernel matrix: expected positive semi-definite, got a Lanczos node {lowest:.3g} beside a largest one "
                f"of {highest:.3g}"
            )
        return nodes.clamp_min(0.0), weights * self.run.norms.square().unsqueeze(-1)

    def spectrum(self, radau: bool = False) -> Spectrum:
        """Return nodes, projections and counts, by the Gauss rules or by those with a node at zero."""
        nodes, weights = self._rules(radau)
        counts = weights / self.num_probes
        counts[0] = 0.0
        projections = torch.zeros_like(weights)
        projections[0] = weights[0].sqrt()
        part = self.part_counts.mean(0)
        nodes, order = torch.cat([nodes.flatten(), self.part_eigenvalues]).sort()
        projections = torch.cat([projections.flatten(), torch.zeros_like(part)])[order]
        counts = torch.cat([counts.flatten(), part])[order]
        return Spectrum(nodes, projections.unsqueeze(-1), None, nodes.new_zeros(()), counts)

    def probe_sums(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the estimate of tr f(K) from each probe, ``*p x n``.

        Args:
            function: f, from nodes of any shape ``...`` to ``*p x ...``.
        """
        nodes, weights = self._rules(radau=False)
        own = (function(nodes[1:]) * weights[1:]).sum(-1)
        return own + (function(self.part_eigenvalues.unsqueeze(0)) * self.part_counts).sum(-1)

    def without_basis(self) -> LanczosReduction:
        """Return what answers all but :meth:`solve_targets`."""
        return replace(self, run=LanczosRun.from_state({**self.run.state(), "basis": []}))

    def solve_targets(self, scale: float, temperature: float) -> tuple[Tensor, float]:
        """Return the approximation of (T + r K)^{-1} y in the Krylov space, ``P``, and its residual over ``|y|``.

        It is what as many steps of conjugate gradients give, for every scale and temperature from the one run. On one
        of several processes it is the own rows.
        """
        run = self.run
        matrix = scale * tridiagonal(run.alphas[0], run.betas[0])
        matrix.diagonal().add_(temperature)
        start = torch.zeros_like(run.alphas[0])
        start[0] = run.norms[0]
        coefficients = torch.linalg.solve(matrix, start)
        steps = coefficients.split([block.shape[1] for block in run.basis])
        solution = torch.stack([part @ block[0] for part, block in zip(steps, run.basis, strict=True)]).sum(0)
        residual = abs(scale * float(run.betas[0, -1] * coefficients[-1]))
        return solution, residual / max(float(run.norms[0]), 1e-300)
