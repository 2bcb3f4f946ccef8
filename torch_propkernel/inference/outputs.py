"""The problem of several outputs that share a kernel, taken from a model."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.likelihoods import GaussianLikelihood, MultitaskGaussianLikelihood
from gpytorch.models import ExactGP
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from .._validation import check_inputs, check_targets
from .._views import evaluation_view
from ..actions.observed_entries import ObservedEntries
from ..kernels import MultitaskRenormalizedKernel
from ..order_parameters import ScalarChain
from ..spectra import Spectrum
from .conditioned import Conditioned
from .model_checks import check_kind_of_model
from .observed_outputs_conditioned import ObservedOutputsConditioned
from .outputs_conditioned import OutputsConditioned
from .problem import Problem
from .units import Units


def has_outputs(model: Any) -> bool:
    """Whether a model's covariance has a :class:`MultitaskRenormalizedKernel`."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    return any(isinstance(module, MultitaskRenormalizedKernel) for module in modules)


class OutputsProblem(Problem):
    r"""A model with D outputs, A = 1 (x) T R + K (x) Q, taken apart: D problems in a batch that share the matrix K.

    As a :class:`Problem` it is that of the infinitely wide network, Q = 1, whose outputs are independent: targets are
    ``D x P``, and what is predicted is ``D x m``. :meth:`rotated` gives the outputs at a matrix Q. The noise of a point
    may differ and be correlated between outputs, and a target that is NaN is a missing one: A is then that of the
    observed targets (:class:`ObservedOutputsConditioned`).

    Attributes:
        outputs: The multitask kernel.
        output_chain: The chain of each eigenvalue of Q.
        temperature: T of each output, ``D``, or of all, a number.
        noise_scale: T, the mean over outputs where they differ.
        output_noise: R, the noise covariance of a point in units of T, ``D x D``; None for the identity.
        observed: Which targets are not missing.
        is_complete: Whether none is.

    Raises:
        TypeError, ValueError: No :class:`MultitaskRenormalizedKernel` as the whole covariance, a likelihood other than
            a :class:`gpytorch.likelihoods.MultitaskGaussianLikelihood`, infinite targets, an output without an
            observed one, a batch of models.
        NotEnoughMemoryError: Targets are missing, and the matrices of the observed ones do not fit.

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
    noise_scale: Tensor
    output_noise: Tensor | None
    is_complete: bool

    @classmethod
    @torch.no_grad()
    def of_outputs(cls, model: Any) -> OutputsProblem:
        """Take a deep copy of a model apart."""
        return cls.live(copy.deepcopy(model))

    @classmethod
    def live(cls, model: Any) -> OutputsProblem:
        """Take a model apart as it is, differentiable in its parameters."""
        training = model.training
        model = evaluation_view(model)
        kernel = getattr(model, "covar_module", None)
        if not isinstance(kernel, MultitaskRenormalizedKernel):
            got = type(kernel).__name__
            raise ValueError(f"covar_module: expected the MultitaskRenormalizedKernel itself, got {got}")
        x, y = check_inputs(model.train_inputs[0], "train_inputs"), model.train_targets
        transform = getattr(model, "input_transform", None)
        if training and transform is not None:
            x = transform.preprocess_transform(x)  # what eval() does to a BoTorch model
        if x.dim() != 2 or y.dim() != 2 or y.shape[-1] != kernel.num_tasks:
            got = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"model: expected inputs P x d and targets P x {kernel.num_tasks}, got {got}")
        check_kind_of_model(kernel, None, train_inputs=x, train_targets=y)
        residuals = (y - model.mean_module(x)).mT
        missing = residuals.isnan()
        check_targets(torch.where(missing, 0.0, residuals), len(x), "train_targets")
        noise = _noise_of_a_point(model, x)
        temperature, alike = noise.diagonal(), torch.equal(noise, noise[0, 0] * torch.eye(len(noise)).to(noise))
        scale = temperature[0] if alike else temperature.mean()
        outputs = _OneOutput(x, kernel, transform)
        problem = cls(outputs, None, x, y.mT, scale if alike else temperature, None, Units.of(model), None)
        problem._residuals, problem.is_complete = residuals, not bool(missing.any())
        if not problem.is_complete:
            problem.observed.check_memory()
        problem.noise_scale, problem.output_noise = scale.double(), None if alike else (noise / scale).double()
        problem.mean_module, problem.outputs, problem.output_chain = model.mean_module, kernel, kernel.chain
        return problem

    @property
    def solved_kernel(self) -> MultitaskRenormalizedKernel:
        """The multitask kernel."""
        return self.outputs

    @property
    def whole_model(self) -> Any:
        """The multitask kernel, which is the whole covariance."""
        return self.outputs

    def set_order_parameter(self, value: Tensor) -> None:
        """Write E_1, ..., E_L, ``L x D x D``, into the kernel."""
        self.outputs.initialize(order_parameter=value)

    @property
    def num_outputs(self) -> int:
        """Number D of outputs."""
        return self.outputs.num_tasks

    def mean(self, x: Tensor) -> Tensor:
        """Return the means of the outputs at ``x``, ``D x m``."""
        mean: Tensor = self.mean_module(x).mT
        return mean

    @property
    def noise_covariance_of_a_point(self) -> Tensor:
        """T R, ``D x D``, in float64."""
        unit = torch.eye(self.num_outputs, dtype=torch.float64, device=self.targets.device)
        return self.noise_scale * (unit if self.output_noise is None else self.output_noise)

    @cached_property
    def observed(self) -> ObservedEntries:
        """Which targets are not missing."""
        return ObservedEntries(self.residuals().mT)

    @cached_property
    def joint_spectrum(self) -> Spectrum:
        """The reduction of K and all targets, tridiagonal on the CPU and with eigenvectors elsewhere.

        Raises:
            ValueError: Targets are missing.
        """
        if not self.is_complete:
            raise ValueError(f"train_targets: expected none missing, got {int(self.targets.isnan().sum())} NaN")
        columns, eigenvectors = self.residuals().mT, self.targets.device.type != "cpu"
        return Spectrum.from_kernel(
            self.unit_covariance, columns, eigenvectors=eigenvectors, num_outputs=self.num_outputs
        )

    def spectrum_of(self, output: int) -> Spectrum:
        """Return the reduction of K and one output's targets at its observed points, without eigenvectors."""
        if self.is_complete:
            joint = self.joint_spectrum
            return Spectrum(joint.eigenvalues, joint.projections[:, [output]], None, joint.log_det_base)
        residuals = self.residuals()[output]
        rows = self.observed.points_of(output)
        return Spectrum.from_kernel(self.unit_covariance[rows][:, rows], residuals[rows])

    @cached_property
    def infinite_width(self) -> Conditioned:
        """The posterior at Q = 1."""
        return self.rotated(torch.eye(self.num_outputs, dtype=torch.float64, device=self.targets.device))

    def rotated(self, output_covariance: Tensor) -> OutputsConditioned | ObservedOutputsConditioned:
        """Return the posterior at Q, ``D x D``."""
        kind = OutputsConditioned if self.is_complete else ObservedOutputsConditioned
        return kind(self, output_covariance)


class _OneOutput(ExactGP):
    """The prior of each output at infinite width, without its mean."""

    def __init__(self, x: Tensor, kernel: MultitaskRenormalizedKernel, input_transform: Any) -> None:
        super().__init__(x, x[:, 0], GaussianLikelihood().to(x))
        self.covar_module, self.active_dims = kernel.data_covar_module, kernel.active_dims
        self.input_transform = input_transform

    def transform_inputs(self, x: Tensor) -> Tensor:
        """Return the inputs as the kernel takes them: BoTorch's transform."""
        return x if self.input_transform is None else self.input_transform(x)

    def forward(self, x: Tensor) -> MultivariateNormal:
        seen = x if self.active_dims is None else x.index_select(-1, self.active_dims)
        return MultivariateNormal(torch.zeros_like(x[..., 0]), self.covar_module(seen))


def _noise_of_a_point(model: Any, x: Tensor) -> Tensor:
    """Return the noise covariance of the outputs at one point, ``D x D``."""
    likelihood = model.likelihood
    if not isinstance(likelihood, MultitaskGaussianLikelihood):
        got = type(likelihood).__name__
        raise ValueError(f"likelihood: expected a MultitaskGaussianLikelihood, got {got}")
    mean = model.mean_module(x[:1])
    without = MultitaskMultivariateNormal(mean, DiagLinearOperator(torch.zeros_like(mean[0])))
    return likelihood(without).covariance_matrix
