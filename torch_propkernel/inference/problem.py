"""The problem that a model poses: A(q) = noise + fixed + K(q), targets and inputs, taken from it once."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gpytorch
import torch
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import _GaussianLikelihoodBase
from torch import Tensor

from .._memory import available_memory, check_memory
from .._validation import check_inputs, check_targets
from .._views import evaluation_view, replaced
from ..exceptions import NotPositiveDefiniteError
from ..kernels import RenormalizedNNGPKernel
from ..kernels.renormalized_nngp_kernel import find_renormalized_kernel
from ..likelihoods import StudentTProcessLikelihood
from ..order_parameters import ScalarChain
from ..spectra import Spectrum, TridiagonalSpectrum
from .conditioned import Blocks, Conditioned, DenseConditioned, SpectralConditioned
from .host_evaluation import diagonal_of, one_at_a_time, to_dense
from .model_checks import check_affine, check_kind_of_model, is_multiplicative, noise_of
from .tridiagonal_conditioned import TridiagonalConditioned
from .units import Units

_LARGE = 4000  # training targets from which the memory is looked at
_MATRICES = 5


@dataclass(frozen=True)
class ScalarProblem:
    """A(r) = T B + r K of a problem whose order parameters enter through their product r alone.

    Attributes:
        kernel_matrix: K, the part proportional to r, ``*b x P x P``.
        base: B, a matrix or a diagonal, or None for the identity.
        temperature: T, ``*b``; one where B holds the noise.
        residuals: Targets minus mean, ``*b x P``.
    """

    kernel_matrix: Tensor
    base: Tensor | None
    temperature: Tensor
    residuals: Tensor


class Problem:
    r"""An ExactGP-like model and its training data, taken apart once for all that is asked of them.

    .. math:: y \sim N(m, A(q)), \qquad A(q) = \text{noise} + \text{fixed terms} + K_R(q)

    The kernel matrix, its reduction, and the kernel's blocks at test points are computed when they are first needed and
    kept: several theories, widths and predictions of one problem cost one kernel evaluation and one reduction. The
    model is looked at in evaluation mode through a view that shares its parameters; it is never changed, so that
    threads may share it. A problem is made for one call, or :meth:`frozen` on a copy of the model: it does not follow
    later changes of hyperparameters.

    Build it with :meth:`of` (live, differentiable in the model's parameters) or :meth:`frozen` (a deep copy).

    Attributes:
        model: View of the model in evaluation mode.
        kernel: Its one renormalized kernel; None for a GP without one, which has no order parameters.
        inputs: Training inputs as the view's ``forward`` takes them, ``*b x P x d``.
        targets: Training targets in the model's units, flattened to ``*b x P`` (``P D`` for a multitask model).
        temperature: T as ``*b`` where the noise is T times the identity, else None.
        noise: Noise covariance ``*b x P x P`` or its diagonal ``*b x P``, where it is not; else None.
        units: From the model's targets to the user's.
        chain: The order parameters; None without a renormalized kernel.

    Raises:
        TypeError, ValueError: Not an ExactGP-like model with a Gaussian likelihood, several renormalized kernels,
            mixed dtypes or devices, NaN in the data.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.activations import Identity
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> problem = Problem.of(NetworkGP(torch.ones(1, 1), 3 * torch.ones(1), likelihood, kernel))
        >>> mean, variance = problem.conditioned().predict(torch.ones(1, 1))   # q = 1, k = T = 1
        >>> round(mean.item(), 5), round(variance.item(), 5)
        (1.5, 0.5)
    """

    def __init__(
        self,
        model: Any,
        kernel: RenormalizedNNGPKernel | None,
        inputs: Tensor,
        targets: Tensor,
        temperature: Tensor | None,
        noise: Tensor | None,
        units: Units,
        chain: ScalarChain | None,
    ) -> None:
        """Store the pieces."""
        self.model, self.kernel, self.inputs, self.targets = model, kernel, inputs, targets
        self.temperature, self.noise, self.units, self.chain = temperature, noise, units, chain
        self._spectra: dict[bool, Spectrum] = {}
        self._kept: dict[bool, tuple[Tensor, Blocks | None, Blocks]] = {}  # by joint, of the last test points
        self._turned: dict[bool, tuple[Spectrum, Blocks, Blocks | None, Blocks]] = {}  # the same, rotated

    @classmethod
    @one_at_a_time
    def of(cls, model: Any, *, needs_order_parameters: bool = True) -> Problem:
        """Take a model apart as it is; nothing is computed on P x P matrices.

        Args:
            model: An ExactGP-like module, or a problem, which is returned.
            needs_order_parameters: Refuse a model without a renormalized kernel.
        """
        if isinstance(model, Problem):
            return model
        kernel = find_renormalized_kernel(model, optional=not needs_order_parameters)
        for attribute in ("train_inputs", "train_targets", "likelihood"):
            if getattr(model, attribute, None) is None:
                got = type(model).__name__
                raise TypeError(f"model: expected an ExactGP-like model with {attribute}, got {got} without")
        gaussian = isinstance(model.likelihood, _GaussianLikelihoodBase)
        if not gaussian or isinstance(model.likelihood, StudentTProcessLikelihood):
            got = type(model.likelihood).__name__
            raise TypeError(f"likelihood: expected a Gaussian one, whose noise is the temperature, got {got}")
        if len(model.train_inputs) != 1:
            raise ValueError(f"model: expected one tensor of training inputs, got {len(model.train_inputs)}")
        inputs = check_inputs(model.train_inputs[0], "train_inputs")
        targets = model.train_targets
        check_kind_of_model(model, kernel, train_inputs=inputs, train_targets=targets)
        view = evaluation_view(model)
        if kernel is not None:
            kernel = find_renormalized_kernel(view)
        if model.training and getattr(view, "input_transform", None) is not None:
            inputs = view.input_transform.preprocess_transform(inputs)  # what eval() does to a BoTorch model
        with torch.no_grad():  # (D,) for a multitask model, whose covariance has the row index slow
            outputs = view.forward(inputs[..., :1, :]).event_shape[1:]
        if len(outputs):
            targets = targets.reshape(*targets.shape[:-2], -1)
        check_targets(targets, math.prod(outputs) * inputs.shape[-2], "train_targets")
        temperature, noise = noise_of(view, inputs)
        chain = None if kernel is None else kernel.chain
        return cls(view, kernel, inputs, targets, temperature, noise, Units.of(view), chain)

    @classmethod
    def frozen(cls, model: Any, *, needs_order_parameters: bool = True) -> Problem:
        """Take a deep copy of a model apart, without gradients; a problem is returned as it is."""
        if isinstance(model, Problem):
            return model
        with torch.no_grad():
            return cls.of(copy.deepcopy(model), needs_order_parameters=needs_order_parameters)

    def with_width(self, width: Tensor) -> Problem:
        """Return the problem of other widths, ``L`` numbers each for a layer; kernel matrix and reduction are shared.

        Raises:
            ValueError: Another number of layers.
        """
        kernel, chain = self._network()
        width = width.to(chain.width).expand_as(chain.width)
        made = self._with_kernel(kernel.with_width(width))
        made.chain = ScalarChain(width)
        return made

    def remembering(self) -> Problem:
        """Return this problem with a kernel that keeps what order parameters do not change (its ``remembering``).

        For many covariances of the training points; differentiable in the order parameters alone.
        """
        return self._with_kernel(self.network.remembering())

    def _with_kernel(self, kernel: RenormalizedNNGPKernel) -> Problem:
        """Return this problem with another view of its kernel; all that was computed is shared."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.kernel = kernel
        made.model = replaced(self.model, self.network, kernel)
        return made

    def with_rows(self, rows: Tensor) -> Problem:
        """Return the problem of some training rows, without batch dimensions; a kernel matrix that fits is shared."""
        made = self._of_rows(rows)
        if not self.is_past_memory():
            made._unit_covariance = self.unit_covariance[rows][:, rows]
        return made

    def thinned(self, num_data: int) -> Problem:
        """Return the problem of some of the training rows, and of widths that are smaller by as much.

        So alpha = P/N, the temperature and the law of the inputs stay, and the order parameters about: for placing
        them. The rows are drawn at random, the same in every call. Without batch dimensions, one output.
        """
        order = torch.randperm(self.num_data, generator=torch.Generator().manual_seed(0))
        rows = order[:num_data].sort().values.to(self.targets.device)
        return self._of_rows(rows).with_width(self.layers.width * (num_data / self.num_data))

    def _of_rows(self, rows: Tensor) -> Problem:
        made = Problem(
            self.model,
            self.kernel,
            self.inputs[rows],
            self.targets[rows],
            self.temperature,
            None if self.noise is None else (self.noise[rows][:, rows] if self.has_dense_noise() else self.noise[rows]),
            self.units,
            self.chain,
        )
        made._residuals = self.residuals()[rows]
        return made

    def is_past_memory(self) -> bool:
        """Whether a fit with dense matrices needs more memory than there is; False where the matrix is held."""
        if self.num_data < _LARGE or "_unit_covariance" in self.__dict__:
            return False
        free = available_memory(self.targets.device)
        return free is not None and dense_bytes(self) > free

    def with_targets(self, targets: Tensor) -> Problem:
        """Return the problem of other targets, ``*b x P``; kernel matrix and blocks at test points are shared."""
        check_targets(targets, self.num_data, "targets")
        made = Problem.__new__(Problem)
        made.__dict__.update(self.__dict__, _unit_covariance=self.unit_covariance, targets=targets, _spectra={})
        for name in ("_residuals", "_scalar", "infinite_width"):
            made.__dict__.pop(name, None)
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was kept for test points."""
        return {**self.__dict__, "_kept": {}, "_turned": {}}

    def _network(self) -> tuple[RenormalizedNNGPKernel, ScalarChain]:
        if self.kernel is None or self.chain is None:
            raise ValueError("model: expected a RenormalizedNNGPKernel in its covariance, got a GP without one")
        return self.kernel, self.chain

    # Prior --------------------------------------------------------------------------------------------------------

    @property
    def network(self) -> RenormalizedNNGPKernel:
        """The renormalized kernel.

        Raises:
            ValueError: There is none.
        """
        return self._network()[0]

    @property
    def solved_kernel(self) -> Kernel:
        """The kernel whose order parameters are solved for, where it stands in :attr:`whole_model`."""
        return self.network

    @property
    def whole_model(self) -> Any:
        """The view of the model with that kernel in its place."""
        return self.model

    @property
    def layers(self) -> ScalarChain:
        """The order parameters as one object.

        Raises:
            ValueError: There is no renormalized kernel.
        """
        return self._network()[1]

    def set_order_parameter(self, value: Tensor) -> None:
        """Write order parameters ``*b x L`` into the kernel: the model's own, of which a live problem is a view."""
        self.network.initialize(order_parameter=value.unsqueeze(-2))

    @property
    def num_data(self) -> int:
        """Number of targets."""
        return self.targets.shape[-1]

    @one_at_a_time
    def prior(self, x: Tensor, order_parameter: Tensor | None = None) -> gpytorch.distributions.MultivariateNormal:
        """Return the model's prior at ``x`` with given order parameters ``*b x L``, or those that the kernel has."""
        if order_parameter is None:
            return self.model.forward(x)
        kernel = self.network
        return replaced(self.model, kernel, kernel.at(order_parameter)).forward(x)

    def mean(self, x: Tensor) -> Tensor:
        """Return the model's mean at ``x``, ``*b x m``."""
        mean: Tensor = self.prior(x).loc
        return mean

    def at_scale(self, scale: float | Tensor) -> Tensor:
        """Return order parameters ``*b x L`` whose product is ``scale``: one but for the last layer's."""
        return self.layers.at_scale(scale, like=self.network.raw_order_parameter)

    @cached_property
    @one_at_a_time
    def _residuals(self) -> Tensor:
        return self.targets - self.model.forward(self.inputs).loc

    def residuals(self) -> Tensor:
        """Return y minus the model's mean, ``*b x P``."""
        return self._residuals

    @cached_property
    @one_at_a_time
    def _unit_covariance(self) -> Tensor:
        self._check_memory()
        if self.kernel is None:
            return to_dense(self.model.forward(self.inputs).lazy_covariance_matrix)
        return to_dense(self.prior(self.inputs, self.at_scale(1.0)).lazy_covariance_matrix)

    def _check_memory(self) -> None:
        """Refuse what does not fit before it is allocated: about five matrices of P x P for a fit."""
        if self.num_data >= _LARGE:
            remedy = (
                "take fewer training points. Theories with has_streaming (InfiniteWidth, SaddlePoint, Mixture, "
                "FreeScale), fit_order_parameters, width_sweep, and errors without differentiable=True do without the "
                "matrix, for one output, one noise above zero, and order parameters of which only the product enters"
            )
            check_memory(f"{self.num_data} training targets", dense_bytes(self), remedy, self.targets.device)

    @one_at_a_time
    def covariance(self, order_parameter: Tensor | None = None, rows: int | None = None) -> Tensor:
        """Return the prior covariance of the training points (of the first ``rows`` ones), dense and without noise.

        At q = 1, and wherever it is proportional to prod_l q_l, it comes from one evaluation, which is kept.
        """
        if rows is not None:
            return to_dense(self.prior(self.inputs[..., :rows, :], order_parameter).lazy_covariance_matrix)
        if self.kernel is None or self.chain is None:
            return self._unit_covariance
        if order_parameter is None:
            order_parameter = self.kernel.order_parameter.squeeze(-2)
        if self.kernel.is_scalar and self.is_multiplicative():
            scale = self.chain.scale(order_parameter.to(self._unit_covariance.dtype))
            return scale[..., None, None] * self._unit_covariance
        self._check_memory()
        return to_dense(self.prior(self.inputs, order_parameter).lazy_covariance_matrix)

    @property
    def unit_covariance(self) -> Tensor:
        """The covariance at q = 1, dense; kept, so not to be overwritten."""
        return self._unit_covariance

    @one_at_a_time
    def blocks(self, x: Tensor, order_parameter: Tensor | None = None, joint: bool = False) -> Blocks:
        """Return the prior at prepared test points ``*b x m x d``."""
        inputs, size = self.inputs, self.num_data
        batch = torch.broadcast_shapes(inputs.shape[:-2], x.shape[:-2])
        together = torch.cat([part.expand(*batch, *part.shape[-2:]) for part in (inputs, x)], dim=-2)
        prior = self.prior(together, order_parameter)
        covariance = prior.lazy_covariance_matrix
        own = covariance[..., size:, size:]
        return Blocks(
            prior.loc[..., size:],
            to_dense(covariance[..., :size, size:]),
            to_dense(own) if joint else diagonal_of(own),
        )

    def affine_blocks(self, x: Tensor, joint: bool = False) -> tuple[Blocks | None, Blocks]:
        """Return what of the prior at test points is fixed (None if nothing) and what is proportional to r."""
        known = self._kept.get(joint)
        if known is not None and known[0] is x:
            return known[1:]
        moved, fixed = self.blocks(x, None if self.kernel is None else self.at_scale(1.0), joint), None
        if not self.is_multiplicative():
            fixed = self.blocks(x, self.at_scale(0.0), joint)
            moved = Blocks(moved.mean, moved.cross - fixed.cross, moved.prior - fixed.prior)
        if not (torch.is_grad_enabled() and moved.cross.requires_grad):
            self._kept[joint] = (x, fixed, moved)
        return fixed, moved

    def rotated_blocks(self, spectrum: TridiagonalSpectrum, x: Tensor, joint: bool) -> tuple[Blocks | None, Blocks]:
        """Return :meth:`affine_blocks` in float64, covariances with the training points rotated by a reduction."""
        fixed, moved = self.affine_blocks(x, joint)
        known = self._turned.get(joint)
        if known is not None and known[0] is spectrum and known[1] is moved:
            return known[2:]

        def turned(blocks: Blocks) -> Blocks:
            return Blocks(blocks.mean.double(), spectrum.rotate(blocks.cross.double()), blocks.prior.double())

        rotated = None if fixed is None else turned(fixed), turned(moved)
        if joint in self._kept and self._kept[joint][2] is moved:
            self._turned[joint] = (spectrum, moved, *rotated)
        return rotated

    # Noise --------------------------------------------------------------------------------------------------------

    def noise_covariance(self, like: Tensor) -> Tensor:
        """Return the noise as a dense matrix ``*b x P x P``."""
        if self.temperature is not None:
            return self.temperature[..., None, None] * torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
        noise = self._other_noise()
        return noise if self.has_dense_noise() else torch.diag_embed(noise)

    def noise_diagonal(self) -> Tensor:
        """Return the noise variances of the training points, broadcastable to ``*b x P``."""
        if self.temperature is not None:
            return self.temperature.unsqueeze(-1)
        noise = self._other_noise()
        return noise.diagonal(dim1=-2, dim2=-1) if self.has_dense_noise() else noise

    def has_dense_noise(self) -> bool:
        """Whether the noise is correlated between points."""
        size = self.num_data
        return self.noise is not None and self.noise.dim() >= 2 and self.noise.shape[-2:] == (size, size)

    def add_noise(self, covariance: Tensor) -> Tensor:
        """Return covariance plus noise, in the memory of ``covariance`` where no graph needs it."""
        if self.has_dense_noise():
            return covariance + self.noise_covariance(covariance)
        noise = self.noise_diagonal()
        if torch.is_grad_enabled() and (covariance.requires_grad or noise.requires_grad):
            return covariance + torch.diag_embed(noise.expand(covariance.shape[:-1]))
        batch = torch.broadcast_shapes(covariance.shape[:-1], noise.shape)
        own = covariance is not self.__dict__.get("_unit_covariance")
        covariance = covariance.expand(batch + covariance.shape[-1:])
        covariance = covariance.contiguous() if own and batch == covariance.shape[:-1] else covariance.clone()
        covariance.diagonal(dim1=-2, dim2=-1).add_(noise)
        return covariance

    def _other_noise(self) -> Tensor:
        if self.noise is None:
            raise ValueError("likelihood: expected a noise covariance, got none")
        return self.noise

    # One dimension ------------------------------------------------------------------------------------------------

    def check_scalar(self) -> None:
        """Raise ``ValueError`` if the order parameters enter other than through their product."""
        if self.kernel is not None and not self.kernel.is_scalar:
            raise ValueError(
                "composition: expected one in which only the product of the order parameters enters ('outer', or one "
                f"hidden layer), got {self.kernel.composition!r}; use fit_order_parameters for each width instead"
            )

    @cached_property
    def _scalar(self) -> ScalarProblem:
        self.check_scalar()
        covariance, residuals = self.unit_covariance, self.residuals()
        one = covariance.new_ones(())
        if not self.is_multiplicative():
            check_affine(self)
            fixed = self.covariance(self.at_scale(0.0))
            if bool((fixed != 0).any()):
                return ScalarProblem(covariance - fixed, fixed + self.noise_covariance(fixed), one, residuals)
        if self.temperature is not None:
            return ScalarProblem(covariance, None, self.temperature, residuals)
        return ScalarProblem(covariance, self.noise, one, residuals)

    def scalar(self) -> ScalarProblem:
        """Return the problem in one dimension, with one or two evaluations of the kernel.

        Raises:
            ValueError: The order parameters enter other than through their product.
        """
        return self._scalar

    def scale_temperature(self) -> Tensor:
        """Return T of A(r) = T B + r K, ``*b``: one where B holds the noise."""
        return self.scalar().temperature

    def single(self) -> ScalarProblem:
        """Return the problem in one dimension of a model without batch dimensions.

        Raises:
            ValueError: A batch of models.
        """
        problem = self.scalar()
        if problem.residuals.dim() != 1 or problem.kernel_matrix.dim() != 2:
            raise ValueError(f"model: expected no batch dimensions, got targets of shape {tuple(self.targets.shape)}")
        return problem

    def spectrum(self, eigenvectors: bool = False) -> Spectrum:
        """Return the reduction of K and y; one with eigenvectors answers for one without."""
        if not eigenvectors and True in self._spectra:
            return self._spectra[True]
        if eigenvectors not in self._spectra:
            problem = self.scalar()
            self._spectra[eigenvectors] = Spectrum.from_kernel(
                problem.kernel_matrix, problem.residuals, base=problem.base, eigenvectors=eigenvectors
            )
        return self._spectra[eigenvectors]

    def reduction(self) -> Spectrum:
        """Return a reduction of K and y that predicts at every scale.

        That with eigenvectors if there is one; else a tridiagonal one for a single problem on the CPU.
        """
        problem = self.scalar()
        single = True not in self._spectra and problem.kernel_matrix.dim() == 2 and problem.residuals.dim() == 1
        return self.spectrum(eigenvectors=not (single and problem.kernel_matrix.device.type == "cpu"))

    def is_multiplicative(self) -> bool:
        """Whether the whole covariance is known to be proportional to the renormalized kernel."""
        return self.kernel is None or is_multiplicative(getattr(self.model, "covar_module", None), self.kernel)

    # Conditioning -------------------------------------------------------------------------------------------------

    def check_points(self, x: Tensor) -> Tensor:
        """Check test inputs as the kernel takes them: shape, dtype, device, finite, as many columns as in training."""
        check_inputs(x, "x")
        check_kind_of_model(self.model, self.kernel, x=x)
        if x.shape[-1] != self.inputs.shape[-1]:
            raise ValueError(f"x: expected {self.inputs.shape[-1]} columns as in training, got {x.shape[-1]}")
        return x

    def points(self, x: Tensor) -> Tensor:
        """Check test inputs as a user has them, and apply BoTorch's input transform."""
        transform = getattr(self.model, "transform_inputs", None)
        if transform is not None:
            x = transform(check_inputs(x, "x"))
        return self.check_points(x)

    def conditioned(self, order_parameter: Tensor | None = None) -> Conditioned:
        """Condition on the training data at order parameters ``*b x L``, or those that the kernel has.

        From the reduction if the problem has one that predicts, else by a Cholesky factorization.
        """
        known = self._spectra.get(True, self._spectra.get(False))
        predicts = known is not None and (known.eigenvectors is not None or isinstance(known, TridiagonalSpectrum))
        if not predicts or torch.is_grad_enabled():
            return DenseConditioned(self, [KernelNode(self, order_parameter)])
        if order_parameter is None:
            order_parameter = self.network.order_parameter.squeeze(-2)
        try:
            return self.conditioned_at_scales(self.layers.scale(order_parameter.double()).unsqueeze(-1))
        except NotPositiveDefiniteError:  # a temperature below the rounding of the kernel: jitter, with a warning
            return DenseConditioned(self, [KernelNode(self, order_parameter)])

    def conditioned_at_scales(self, scale: Tensor, log_weights: Tensor | None = None) -> Conditioned:
        """Condition on the training data at nodes r, ``*b x n``, by the problem's reduction."""
        spectrum = self.reduction()
        if isinstance(spectrum, TridiagonalSpectrum):
            return TridiagonalConditioned(self, spectrum, scale, log_weights)
        return SpectralConditioned(self, scale, log_weights, spectrum)

    @cached_property
    def infinite_width(self) -> Conditioned:
        """The problem conditioned at q = 1; a GP without order parameters as it is."""
        if self.kernel is None:
            return DenseConditioned(self, [KernelNode(self, None)])
        return self.conditioned(self.at_scale(1.0))


@dataclass(frozen=True)
class KernelNode:
    """The model's own process at given order parameters, ``*b x L``; the kernel's present ones if None."""

    problem: Problem
    order_parameter: Tensor | None

    def residuals(self) -> Tensor:
        """Return targets minus mean."""
        return self.problem.residuals()

    def covariance(self) -> Tensor:
        """Return the covariance of the training points."""
        return self.problem.covariance(self.order_parameter)

    def blocks(self, x: Tensor, joint: bool) -> Blocks:
        """Return the prior at test points, from the kept blocks at q = 1 where only a factor is between them."""
        problem, kernel = self.problem, self.problem.kernel
        if kernel is not None and problem.chain is not None and kernel.is_scalar and problem.is_multiplicative():
            _, unit = problem.affine_blocks(x, joint)
            q = kernel.order_parameter.squeeze(-2) if self.order_parameter is None else self.order_parameter
            scale = problem.chain.scale(q.to(unit.cross.dtype)).unsqueeze(-1)
            wide = scale.unsqueeze(-1)
            return Blocks(unit.mean, wide * unit.cross, (wide if joint else scale) * unit.prior)
        return problem.blocks(x, self.order_parameter, joint)


def dense_bytes(problem: Problem) -> float:
    """Return the memory that a fit with matrices of P x P needs."""
    return 8.0 * _MATRICES * problem.num_data * problem.targets.numel()
