"""Nodes of the scale conditioned on the data, all from one tridiagonal reduction."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..spectra import TridiagonalSpectrum
from .conditioned import Conditioned, without_negative_variances

if TYPE_CHECKING:
    from .problem import Problem

_COLUMNS = 256  # of the basis at a time


class TridiagonalConditioned(Conditioned):
    r"""Nodes of the scale r of A(r) = T B + r K, all from one reduction to tridiagonal form.

    .. math:: A(r)^{-1} = W\, (T + r M)^{-1} W^T, \qquad W = L^{-T} Q, \quad B = L L^T, \quad
              L^{-1} K L^{-T} = Q M Q^T

    Arithmetic in float64 on the CPU, results in the dtype of x. Gradients with respect to x are formed, others are not.
    Cost: for m test points 2 m P^2 once, then m P for each node. The diagonal of A^{-1}, which leave-one-out errors and
    training errors need, takes W, about as long as three Cholesky factorizations, once for all nodes, and P^2 for each.
    Memory: m P numbers; W has P^2.

    Args:
        problem: A problem whose order parameters enter through their product, without batch dimensions.
        spectrum: Its reduction.
        scale: Nodes r, ``n``.
        log_weights: Normalized log weights; None for one node, or for nodes that are looked at one by one.
        temperature: T; the problem's own if None.
        rotated: The rotated targets of each node, ``P x n``; the spectrum's one output if None.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.inference import Problem
        >>> x, y = torch.eye(3), torch.ones(3)
        >>> kernel = RenormalizedNNGPKernel("identity", width=4)
        >>> problem = Problem.frozen(NetworkGP(x, y, gpytorch.likelihoods.GaussianLikelihood(), kernel))
        >>> r, weights = torch.tensor([0.5, 2.0]), torch.tensor([0.5, 0.5])
        >>> two = TridiagonalConditioned(problem, problem.reduction(), r, weights.log())
        >>> two.moments(x)[0].shape, two.distribution(x).mean.shape   # two nodes, three points
        (torch.Size([2, 3]), torch.Size([3]))
    """

    def __init__(
        self,
        problem: Problem,
        spectrum: TridiagonalSpectrum,
        scale: Tensor,
        log_weights: Tensor | None = None,
        temperature: Tensor | None = None,
        rotated: Tensor | None = None,
    ) -> None:
        """Solve for the targets of every node."""
        super().__init__(problem, log_weights)
        self.spectrum = spectrum
        self.scale = scale.detach().double()
        self.temperature = float(problem.scalar().temperature if temperature is None else temperature)
        rotated = spectrum.rotated.expand(-1, len(scale)) if rotated is None else rotated
        self.rotated = rotated
        self.solved = torch.cat([self._solve(n, rotated[:, [n]]) for n in range(len(scale))], -1)  # P x n

    def _solve(self, node: int, columns: Tensor) -> Tensor:
        return self.spectrum.reduction.solve(self.temperature, float(self.scale[node]), columns)

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return means and (co)variances of the nodes."""
        fixed, moved = self.problem.rotated_blocks(self.spectrum, x, joint)
        means, spreads = [], []
        for node, r in enumerate(self.scale):
            cross, prior = r * moved.cross, r * moved.prior
            if fixed is not None:
                cross, prior = cross + fixed.cross, prior + fixed.prior
            means.append(moved.mean + self.solved[:, node] @ cross)
            solved = self._solve(node, cross)
            if joint:
                taken = cross.mT @ solved
                spreads.append(without_negative_variances(prior - 0.5 * (taken + taken.mT)))
            else:
                spreads.append((prior - (cross * solved).sum(-2)).clamp_min(0.0))
        return torch.stack(means, -2).to(x.dtype), torch.stack(spreads, -3 if joint else -2).to(x.dtype)

    def log_likelihoods(self) -> Tensor:
        """Return log N(y; m, A) of each node."""
        spectrum = self.spectrum
        logs = (self.temperature + self.scale.unsqueeze(-1) * spectrum.eigenvalues).log().sum(-1)
        twice = logs + (self.rotated * self.solved).sum(-2) + spectrum.log_det_base
        return -0.5 * (twice + spectrum.num_data * math.log(2.0 * math.pi))

    @cached_property
    def _left_out_terms(self) -> tuple[Tensor, Tensor]:
        basis, diagonals = self.spectrum.basis, []
        for node in range(len(self.scale)):
            rows = [part.mT for part in basis.split(_COLUMNS)]
            diagonals.append(torch.cat([(part * self._solve(node, part)).sum(0) for part in rows]))
        return (basis @ self.solved).mT, torch.stack(diagonals)

    def left_out_terms(self) -> tuple[Tensor, Tensor]:
        """Return A^{-1} (y - m) and the diagonal of A^{-1}."""
        return self._left_out_terms
