"""The scale mixture behind the saddle point, integrated exactly."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..inference.model_parts import ModelParts
from ..mixing import ProductGammaMixing, posterior_of_scale
from ..mixing.scale_integral import ScalePosterior
from ..spectra.spectrum import Spectrum
from .base import FittedTheory, Theory


class Blocks(NamedTuple):
    """Prior at test points: mean, and what of covariance and variance is fixed or proportional to the scale r.

    ``mean``, ``fixed_prior`` and ``prior`` are ``*b x m``; ``fixed`` and ``cross``, in the basis of the spectrum,
    ``*b x P x m``.
    """

    mean: Tensor
    fixed: Tensor
    cross: Tensor
    fixed_prior: Tensor
    prior: Tensor


class FittedScaleMixture(FittedTheory):
    """A theory whose posterior is a mixture of Gaussian processes with A(r) = T B + r K over nodes of the scale r.

    Args:
        spectrum: Of K, y and B, with eigenvectors.
        temperature: T, ``*b``.
        posterior: Nodes and weights of p(r | y).
        args: As :class:`FittedTheory`.
        kwargs: As :class:`FittedTheory`.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Identity, NetworkGP, RenormalizedNNGPKernel
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=float("inf"))
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> model = NetworkGP(torch.ones(1, 1), torch.ones(1), likelihood, kernel)
        >>> round(Mixture().fit(model).training_error().item(), 5)   # r = 1: the GP's own 1/4 + 1 - 1/2
        0.75
    """

    def __init__(
        self, spectrum: Spectrum, temperature: Tensor, posterior: ScalePosterior, *args: Any, **kwargs: Any
    ) -> None:
        """Store the nodes."""
        super().__init__(*args, **kwargs)
        self.posterior = posterior
        self.spectrum = spectrum
        assert spectrum.eigenvectors is not None
        self._vectors = spectrum.eigenvectors
        # 1 / (T + r k), *b x n x P, for n nodes.
        self._spread = 1.0 / (
            temperature.double()[..., None, None] + posterior.scale.unsqueeze(-1) * spectrum.eigenvalues.unsqueeze(-2)
        )

    def _blocks(self, x: Tensor) -> Blocks:
        mean, cross, prior = (v.double() for v in self.parts.blocks(x, 1.0))
        fixed, fixed_prior = torch.zeros_like(cross), torch.zeros_like(prior)
        if not self.parts.is_multiplicative():
            _, fixed, fixed_prior = (v.double() for v in self.parts.blocks(x, 0.0))
        rotate = self._vectors.transpose(-1, -2)
        return Blocks(mean, rotate @ fixed, rotate @ (cross - fixed), fixed_prior, prior - fixed_prior)

    def _components(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance at x for each node, ``*b x n x m``."""
        return self._condition(self._blocks(x))

    def _condition(self, blocks: Blocks) -> tuple[Tensor, Tensor]:
        r, spread = self.posterior.scale.unsqueeze(-1), self._spread
        solved = spread * self.spectrum.single.unsqueeze(-2)
        mean = blocks.mean.unsqueeze(-2) + solved @ blocks.fixed + r * (solved @ blocks.cross)
        taken = (
            spread @ blocks.fixed.square()
            + 2.0 * r * (spread @ (blocks.fixed * blocks.cross))
            + r.square() * (spread @ blocks.cross.square())
        )
        prior = blocks.fixed_prior.unsqueeze(-2) + r * blocks.prior.unsqueeze(-2)
        return mean, (prior - taken).clamp_min(0.0)

    def _predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.posterior.weights.unsqueeze(-1)
        means, variances = self._components(x)
        mean = (weights * means).sum(-2)
        variance = (weights * (variances + (means - mean.unsqueeze(-2)).square())).sum(-2)
        return mean.to(x.dtype), variance.to(x.dtype)

    def _squared_weights(self) -> Tensor:
        """Return E[(A^{-1} y)_i^2] for each node, ``*b x n x P``."""
        return ((self._spread * self.spectrum.single.unsqueeze(-2)) @ self._vectors.transpose(-1, -2)).square()

    def _training_error(self) -> Tensor:
        if self.parts.has_dense_noise():
            raise ValueError("likelihood: expected noise that is independent between points, got a full covariance")
        noise = self.parts.noise_diagonal().double().unsqueeze(-2)
        precision = self._spread @ self._vectors.transpose(-1, -2).square()
        per_node = (noise.square() * (self._squared_weights() - precision) + noise).mean(-1)
        return (self.posterior.weights * per_node).sum(-1).to(self.parts.targets.dtype)


class Mixture(Theory):
    r"""The scale r = prod_l q_l integrated over its posterior instead of fixed at the saddle point.

    .. math:: p(f_* | y) = \int p(r | y)\, N(f_*; \Gamma(r), \sigma^2(r))\, dr, \quad
              p(r | y) \propto p(r)\, N(y; 0, T 1 + r K)

    p(r) is the law of the product of independent Gamma(N_l/2, rate N_l/2) variables. Exact for linear networks of any
    width; for other activations exact under the Gaussian equivalence of the paper. For one hidden layer and for several
    with the outer composition (or one equal to it). ``order_parameters`` has the posterior means ``"r"``, ``*b``, and
    ``"q"``, ``*b x L``, with

    .. math:: E[q_l | r] = \frac{\tilde p_l(r)}{p(r)}

    where in the law of p~_l the l-th factor has shape N_l/2 + 1 and the same rate. ``readout_norm`` is E[q_L | y];
    ``stats`` has ``log_evidence``, its estimated error and the number of nodes.

    :class:`FiniteWidthProcess` is the same process as a GPyTorch model, with quantiles and joint predictives. Cost: one
    ``eigh``, then P for each of some dozens of nodes and each test point.

    Raises:
        ValueError: A composition that is not one-dimensional.
        ConvergenceError: The integral did not reach 1e-11.

    Reference: Pacelli et al. (2023), arXiv:2209.04882, result (iii); THEORY.md, eqs. (1), (7), section 1.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Identity, NetworkGP, RenormalizedNNGPKernel
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> model = NetworkGP(torch.eye(2), 5 * torch.ones(2), gpytorch.likelihoods.GaussianLikelihood(), kernel)
        >>> bool(Mixture().fit(model).readout_norm > 1.5)   # large targets ask for a larger readout
        True
    """

    name = "mixture"

    def _fit(self, parts: ModelParts) -> FittedTheory:
        problem = parts.scalar_problem()
        spectrum = Spectrum.from_kernel(problem.kernel_matrix, problem.residuals, base=problem.base, eigenvectors=True)
        width = parts.kernel.width.squeeze(-2).double()
        law = ProductGammaMixing(width)
        posterior = posterior_of_scale(spectrum, law, problem.temperature).without_empty_nodes()
        q = _mean_order_parameters(width, posterior)
        stats = {
            "log_evidence": posterior.log_evidence,
            "error": posterior.error,
            "nodes": posterior.log_scale.shape[-1],
        }
        message = "The scale was integrated over its posterior."
        values = {"r": posterior.mean, "q": q}
        return FittedScaleMixture(
            spectrum, problem.temperature, posterior, self, parts, values, q[..., -1], message, stats
        )


def _mean_order_parameters(width: Tensor, posterior: ScalePosterior) -> Tensor:
    """E[q_l | y], ``*b x L``: tilting a Gamma density by its variable raises the shape by one."""
    law, nodes = ProductGammaMixing(width), posterior.log_scale.movedim(-1, 0)
    columns = []
    for index in range(width.shape[-1]):
        if bool(torch.isinf(width[..., index]).all()):
            columns.append(torch.ones_like(posterior.mean))
            continue
        raised = width.clone()
        raised[..., index] += 2.0
        shift = torch.log1p(2.0 / width[..., index])
        ratio = (ProductGammaMixing(raised).log_density(nodes - shift) - law.log_density(nodes)).exp().movedim(0, -1)
        columns.append((posterior.weights * ratio.nan_to_num(0.0)).sum(-1))  # nodes of weight zero may overflow
    return torch.stack(columns, -1)
