"""The problem of several outputs that share a kernel, and its posterior: rotated, the outputs are independent."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import GaussianLikelihood, MultitaskGaussianLikelihood
from gpytorch.models import ExactGP
from torch import Tensor

from .._validation import check_inputs, check_targets
from .._views import evaluation_view
from ..kernels import MultitaskRenormalizedKernel
from ..order_parameters import ScalarChain
from ..spectra import Spectrum
from .conditioned import Conditioned, SpectralConditioned
from .error_estimate import ErrorEstimate
from .problem import Problem
from .units import Units


def has_outputs(model: Any) -> bool:
    """Whether a model's covariance has a :class:`MultitaskRenormalizedKernel`."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    return any(isinstance(module, MultitaskRenormalizedKernel) for module in modules)


class OutputsProblem(Problem):
    r"""A model with D outputs, A = T 1 + K (x) Q, taken apart: D problems in a batch that share the kernel matrix K.

    As a :class:`Problem` it is that of the infinitely wide network, Q = 1, whose outputs are independent: targets are
    ``D x P``, and what is predicted is ``D x m``. :meth:`rotated` gives the outputs at a matrix Q.

    Attributes:
        outputs: The multitask kernel.
        output_chain: The chain of each eigenvalue of Q.

    Raises:
        TypeError, ValueError: No :class:`MultitaskRenormalizedKernel` as the whole covariance, a likelihood other than
            a :class:`gpytorch.likelihoods.MultitaskGaussianLikelihood` with one noise for all outputs, a batch of
            models.

    Example:
        >>> import torch
        >>> from torch_propkernel.inference import OutputsProblem
        >>> from torch_propkernel.kernels import MultitaskRenormalizedKernel
        >>> from torch_propkernel.models import MultitaskNetworkGP
        >>> kernel = MultitaskRenormalizedKernel("identity", width=4, num_tasks=2)
        >>> model = MultitaskNetworkGP.with_temperature(torch.eye(3), torch.ones(3, 2), kernel, temperature=0.5)
        >>> problem = OutputsProblem.of_outputs(model)
        >>> problem.targets.shape, problem.rotated(torch.eye(2)).predict(torch.eye(3))[0].shape
        (torch.Size([2, 3]), torch.Size([2, 3]))
    """

    mean_module: Any
    outputs: MultitaskRenormalizedKernel
    output_chain: ScalarChain

    @classmethod
    @torch.no_grad()
    def of_outputs(cls, model: Any) -> OutputsProblem:
        """Take a deep copy of a model apart."""
        model = evaluation_view(copy.deepcopy(model))
        kernel = getattr(model, "covar_module", None)
        if not isinstance(kernel, MultitaskRenormalizedKernel):
            got = type(kernel).__name__
            raise ValueError(f"covar_module: expected the MultitaskRenormalizedKernel itself, got {got}")
        temperature = _temperature(model.likelihood)
        x, y = check_inputs(model.train_inputs[0], "train_inputs"), model.train_targets
        if x.dim() != 2 or y.dim() != 2 or y.shape[-1] != kernel.num_tasks:
            got = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"model: expected inputs P x d and targets P x {kernel.num_tasks}, got {got}")
        residuals = (y - model.mean_module(x)).mT
        check_targets(residuals, len(x), "train_targets")
        problem = cls(_OneOutput(x, kernel), None, x, y.mT, temperature, None, Units(), None)
        problem._residuals = residuals
        problem.mean_module, problem.outputs, problem.output_chain = model.mean_module, kernel, kernel.chain
        return problem

    @property
    def num_outputs(self) -> int:
        """Number D of outputs."""
        return self.outputs.num_tasks

    @cached_property
    def joint_spectrum(self) -> Spectrum:
        """The reduction of K and all targets, with eigenvectors; one ``eigh``."""
        columns = self.residuals().mT
        return Spectrum.from_kernel(self.unit_covariance, columns, eigenvectors=True, num_outputs=self.num_outputs)

    @cached_property
    def infinite_width(self) -> Conditioned:
        """The posterior at Q = 1."""
        return self.rotated(torch.eye(self.num_outputs, dtype=torch.float64, device=self.targets.device))

    def rotated(self, output_covariance: Tensor) -> OutputsConditioned:
        """Return the posterior at Q, ``D x D``."""
        return OutputsConditioned(self, output_covariance)


class _OneOutput(ExactGP):
    """The prior of each output at infinite width, without its mean."""

    def __init__(self, x: Tensor, kernel: MultitaskRenormalizedKernel) -> None:
        super().__init__(x, x[:, 0], GaussianLikelihood())
        self.covar_module, self.active_dims = kernel.data_covar_module, kernel.active_dims

    def forward(self, x: Tensor) -> MultivariateNormal:
        seen = x if self.active_dims is None else x.index_select(-1, self.active_dims)
        return MultivariateNormal(torch.zeros_like(x[..., 0]), self.covar_module(seen))


def _temperature(likelihood: Any) -> Tensor:
    plain = isinstance(likelihood, MultitaskGaussianLikelihood)
    if not plain or likelihood.has_task_noise or not likelihood.has_global_noise:
        raise ValueError(
            "likelihood: expected a MultitaskGaussianLikelihood with has_task_noise=False, whose global noise is the "
            f"temperature of all outputs, got {type(likelihood).__name__}"
            + (" with noise of its own for each output" if plain else "")
        )
    return likelihood.noise.reshape(())


class OutputsConditioned(Conditioned):
    r"""D outputs conditioned on the data at a matrix Q, from one eigendecomposition of K and one of Q.

    .. math:: Q = V\, \mathrm{diag}(\rho)\, V^T: \qquad \text{the rotated outputs } (f V)_d \sim GP(0, \rho_d K)
              \text{ with targets } (Y V)_d \text{ are independent}

    No matrix of D P rows is formed. Shapes: outputs stand in the batch, ``D x m``.

    Args:
        problem: The problem.
        output_covariance: Q, ``D x D``, symmetric positive definite.

    Reference: THEORY.md, section 11.

    Example:
        >>> import torch
        >>> from torch_propkernel.inference import OutputsProblem
        >>> from torch_propkernel.kernels import MultitaskRenormalizedKernel
        >>> from torch_propkernel.models import MultitaskNetworkGP
        >>> kernel = MultitaskRenormalizedKernel("identity", width=4, num_tasks=2)
        >>> model = MultitaskNetworkGP.with_temperature(torch.eye(3), torch.ones(3, 2), kernel, temperature=0.5)
        >>> Q = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> OutputsProblem.of_outputs(model).rotated(Q).covariances(torch.eye(3)).shape   # of outputs, for each point
        torch.Size([3, 2, 2])
    """

    problem: OutputsProblem

    def __init__(self, problem: OutputsProblem, output_covariance: Tensor) -> None:
        """Rotate the targets."""
        super().__init__(problem)
        scale, self.vectors = torch.linalg.eigh(output_covariance.double())
        spectrum = problem.joint_spectrum
        turned = Spectrum(
            spectrum.eigenvalues.expand(len(scale), -1),
            (spectrum.projections @ self.vectors).mT.unsqueeze(-1),
            spectrum.eigenvectors,
            spectrum.log_det_base.expand(len(scale)),
        )
        self.inner = SpectralConditioned(problem, scale.unsqueeze(-1), spectrum=turned)

    def _back(self, values: Tensor, spreads: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and variances of the outputs from those of the rotated ones, ``D x ...`` each."""
        vectors = self.vectors.to(values.dtype)
        return torch.tensordot(vectors, values, dims=1), torch.tensordot(vectors.square(), spreads, dims=1)

    def _rotated_moments(self, x: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
        """Return means ``D x m`` and (co)variances of the rotated outputs, without the prior's mean."""
        if x.dim() != 2:
            raise ValueError(f"x: expected shape (m, d) for several outputs, got {tuple(x.shape)}")
        means, spreads = self.inner.moments(x, joint)
        return means.squeeze(-2), spreads.squeeze(-3 if joint else -2)

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return means ``D x 1 x m`` and variances ``D x 1 x m`` (joint: covariances ``D x 1 x m x m``)."""
        values, variances = self._back(*self._rotated_moments(x, joint))
        return (self.problem.mean_module(x).mT + values).unsqueeze(1), variances.unsqueeze(1)

    def covariances(self, x: Tensor) -> Tensor:
        """Return the posterior covariance of the outputs at each point, ``m x D x D``."""
        spreads = self._rotated_moments(x, joint=False)[1]
        vectors = self.vectors.to(spreads.dtype)
        return (vectors * spreads.mT.unsqueeze(-2)) @ vectors.mT

    def joint_covariance(self, x: Tensor) -> Tensor:
        """Return the posterior covariance of all outputs at all points, interleaved, ``m D x m D``."""
        spreads = self._rotated_moments(x, joint=True)[1]
        vectors = self.vectors.to(spreads.dtype)
        size = x.shape[-2] * len(vectors)
        return torch.einsum("ad,dij,bd->iajb", vectors, spreads, vectors).reshape(size, size)

    def log_likelihoods(self) -> Tensor:
        """Return log N(Y; m, A) of all outputs together, ``1``."""
        return self.inner.log_likelihoods().sum(0)

    def left_out_terms(self) -> tuple[Tensor, Tensor]:
        """Refuse: the terms of single outputs are those of the rotated ones, ``inner``."""
        raise ValueError("left_out_terms: expected one output; use leave_one_out, which rotates back")

    def leave_one_out(self) -> ErrorEstimate:
        """Return errors at each training point given the others, all its outputs left out, ``D x P``."""
        weights, precision = (v.squeeze(-2) for v in self.inner.left_out_terms())
        noise = self.problem.noise_diagonal().to(precision.dtype)
        away, variance = self._back(weights / precision, (1.0 / precision - noise).clamp_min(0.0))
        noisy = variance + noise
        log_density = -0.5 * (away.square() / noisy + (2.0 * torch.pi * noisy).log())
        targets = self.problem.targets.to(away.dtype)
        return ErrorEstimate(targets - away, away.square(), variance, log_density=log_density)

    def training_error(self) -> Tensor:
        """Return E (1/P) sum (y - f)^2 over the posterior, ``D``."""
        weights, precision = (v.squeeze(-2) for v in self.inner.left_out_terms())
        noise = self.problem.noise_diagonal().to(precision.dtype)
        away, variance = self._back(noise * weights, noise - noise.square() * precision)
        return (away.square() + variance).mean(-1).to(self.problem.targets.dtype)
