"""The problem of a network over blocks, such as the patches of images, whose order parameter is a matrix."""

from __future__ import annotations

import copy
from typing import Any

import gpytorch
import torch
from torch import Tensor

from .._memory import available_memory
from .._views import replaced
from ..actions.block_matrices import BlockMatrices, DenseBlocks
from ..kernels import BlockRenormalizedKernel
from ..numerics.symmetric import num_coordinates, symmetric_basis
from .conditioned import Conditioned, DenseConditioned
from .host_evaluation import one_at_a_time, to_dense
from .model_checks import check_affine, is_multiplicative
from .problem import KernelNode, Problem

_DENSE = 2**31
"""Bytes of the blocks of the training points up to which they are held; beyond, and where less memory is free, they are
computed again at each step."""


def find_block_kernel(model: Any) -> BlockRenormalizedKernel | None:
    """Return the model's one :class:`BlockRenormalizedKernel`, None if it has none.

    Raises:
        ValueError: More than one.
    """
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    kernels = [module for module in modules if isinstance(module, BlockRenormalizedKernel)]
    if len(kernels) > 1:
        raise ValueError(f"model: expected one BlockRenormalizedKernel in its covariance, got {len(kernels)}")
    return kernels[0] if kernels else None


class BlocksProblem(Problem):
    r"""A model whose covariance has a :class:`BlockRenormalizedKernel`, taken apart.

    .. math:: A(E) = \text{noise} + \text{fixed terms} + K_R(E), \qquad K_R \text{ linear in } E

    As a :class:`Problem` it is that of the infinitely wide network, E = 1. Order parameters are E, ``1 x r x r``. The
    kernel may stand inside a ScaleKernel, a product, or a sum with other kernels, whose covariance stays fixed.

    Attributes:
        block_kernel: The block kernel.

    Raises:
        TypeError, ValueError: No such kernel, or several, also a :class:`RenormalizedNNGPKernel`; a batch of models;
            and as :class:`Problem`.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, NNGPKernel
        >>> from torch_propkernel.inference import BlocksProblem
        >>> from torch_propkernel.kernels import BlockRenormalizedKernel
        >>> kernel = BlockRenormalizedKernel([[NNGPKernel("identity")]], width=4)
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> problem = BlocksProblem.of_blocks(NetworkGP(torch.ones(1, 1), 3 * torch.ones(1), likelihood, kernel))
        >>> round(problem.conditioned(torch.full((1, 1, 1), 2.0)).predict(torch.ones(1, 1))[0].item(), 5)   # 3 * 2 / 3
        2.0
    """

    block_kernel: BlockRenormalizedKernel
    _own_model: Any

    @classmethod
    @torch.no_grad()
    def of_blocks(cls, model: Any) -> BlocksProblem:
        """Take a deep copy of a model apart."""
        problem = cls._of_problem(cls.frozen(model, needs_order_parameters=False))
        problem._own_model.requires_grad_(False)
        return problem

    @classmethod
    def live(cls, model: Any) -> BlocksProblem:
        """Take a model apart as it is, differentiable in its parameters."""
        return cls._of_problem(cls.of(model, needs_order_parameters=False))

    @classmethod
    def _of_problem(cls, problem: Problem) -> BlocksProblem:
        if not isinstance(problem, BlocksProblem):
            raise TypeError(f"model: expected an ExactGP-like model or a BlocksProblem, got {type(problem).__name__}")
        kernel = find_block_kernel(problem.model)
        if kernel is None or problem.kernel is not None:
            got = "none" if kernel is None else "a RenormalizedNNGPKernel beside it"
            raise ValueError(f"model: expected one BlockRenormalizedKernel in its covariance, got {got}")
        if problem.targets.dim() != 1 or problem.inputs.dim() != 2 or kernel.raw_order_parameter.dim() != 3:
            raise ValueError(
                f"model: expected no batch dimensions for several blocks, got targets {tuple(problem.targets.shape)} "
                f"and order parameters {tuple(kernel.raw_order_parameter.shape)}"
            )
        problem.block_kernel = kernel
        problem._own_model = problem.model
        problem.model = problem._at(problem.at_scale(1.0))
        return problem

    def at_scale(self, scale: float | Tensor) -> Tensor:
        """Return the identity for each layer, ``L x r x r``, the first times ``scale``, in which K_R is linear."""
        raw = self.block_kernel.raw_order_parameter
        unit = torch.diag_embed(torch.ones_like(raw[..., 0]))
        return torch.cat([unit[:1] * scale, unit[1:]])

    @property
    def solved_kernel(self) -> BlockRenormalizedKernel:
        """The block kernel."""
        return self.block_kernel

    @property
    def whole_model(self) -> Any:
        """The view of the model with the block kernel in its place."""
        return self._own_model

    def set_order_parameter(self, value: Tensor) -> None:
        """Write E, ``1 x r x r``, into the kernel."""
        self.block_kernel.initialize(order_parameter=value)

    def _in_double(self) -> BlocksProblem:
        """Return a copy whose covariances are in double precision."""
        made = copy.deepcopy(self)
        made._own_model.double()
        made.inputs = made.inputs.double()
        made.model = made._at(made.at_scale(1.0))
        made.__dict__.pop("_unit_covariance", None)
        return made

    def _at(self, order_parameter: Tensor) -> Any:
        """Return the model with another order parameter."""
        kernel = self.block_kernel
        return replaced(self._own_model, kernel, kernel.at(order_parameter))

    @one_at_a_time
    def prior(self, x: Tensor, order_parameter: Tensor | None = None) -> gpytorch.distributions.MultivariateNormal:
        """Return the model's prior at ``x`` with given order parameters, or those of infinite width."""
        return (self.model if order_parameter is None else self._at(order_parameter)).forward(x)

    @one_at_a_time
    def covariance(self, order_parameter: Tensor | None = None, rows: int | None = None) -> Tensor:
        """Return the prior covariance of the training points (of the first ``rows`` ones), dense and without noise."""
        if order_parameter is None and rows is None:
            return self._unit_covariance
        return to_dense(self.prior(self.inputs[:rows], order_parameter).lazy_covariance_matrix)

    @one_at_a_time
    def covariance_at(self, matrix: Tensor) -> Tensor:
        """Return the training points' covariance with any symmetric matrix in the place of E, or of a chain's G_1."""
        kernel = self.block_kernel
        model = replaced(self._own_model, kernel, kernel.at_matrix(matrix))
        return to_dense(model.forward(self.inputs).lazy_covariance_matrix)

    def is_multiplicative(self) -> bool:
        """Whether the whole covariance is known to be proportional to the block kernel."""
        return is_multiplicative(getattr(self._own_model, "covar_module", None), self.block_kernel)

    def conditioned(self, order_parameter: Tensor | None = None, noisy: Tensor | None = None) -> Conditioned:
        """Condition on the training data at E, ``1 x r x r``, or at the identity; their covariance A may be known."""
        return DenseConditioned(self, [KernelNode(self, order_parameter)], noisy=None if noisy is None else [noisy])

    def values(self, order_parameter: Tensor) -> dict[str, Tensor]:
        """Return E, ``L x r x r``, and Q = R E R^T, ``B x B``, by name; of a chain Q is that of its lowest layer."""
        return {"E": order_parameter, "Q": self.block_kernel.covariance_of_blocks(order_parameter)}

    def training_blocks(self) -> tuple[BlockMatrices, Tensor]:
        """Return the map from E to the moving part of the training points' covariance, and noise plus fixed terms.

        In double precision, whatever the model's; with a graph they are the model's own, converted.

        Raises:
            ValueError: The covariance is not affine in the block kernel.
        """
        if self.inputs.dtype != torch.float64 and not torch.is_grad_enabled():
            return self._in_double().training_blocks()
        self._check_memory()
        like = self.inputs.new_empty(1, 1).expand(self.num_data, self.num_data)
        noise, fixed = self.noise_covariance(like).double(), None
        if not self.is_multiplicative():
            check_affine(self)
            fixed = self.covariance(self.at_scale(0.0))
            noise = noise + fixed
        size = self.block_kernel.chain.sizes[0]
        copies = 2.0 if torch.is_grad_enabled() else 1.0  # with a graph they are stacked
        needed = copies * num_coordinates(size) * like.numel() * like.element_size()
        free = available_memory(like.device)
        blocks: BlockMatrices = _Streamed(self, fixed)
        if needed <= _DENSE and (free is None or needed <= 0.5 * free):
            blocks = DenseBlocks(_held(blocks, symmetric_basis(size, like)).double())
        return blocks, noise


def _held(blocks: BlockMatrices, basis: Tensor) -> Tensor:
    """Return the matrices of a basis of E, one after the other, ``C x P x P``."""
    if torch.is_grad_enabled():
        return torch.stack([blocks(matrix) for matrix in basis])
    first = blocks(basis[0])
    matrices = first.new_empty(len(basis), *first.shape)
    matrices[0] = first
    for index in range(1, len(basis)):
        matrices[index] = blocks(basis[index])
    return matrices


class _Streamed:
    """The blocks of the training points, computed again at each call."""

    def __init__(self, problem: BlocksProblem, fixed: Tensor | None) -> None:
        self.problem, self.fixed = problem, fixed
        self.num_blocks = problem.block_kernel.chain.sizes[0]

    def __call__(self, order_parameter: Tensor) -> Tensor:
        covariance = self.problem.covariance_at(order_parameter.to(self.problem.inputs))
        return covariance if self.fixed is None else covariance - self.fixed
