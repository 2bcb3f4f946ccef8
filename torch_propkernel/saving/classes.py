"""The classes that can be saved, one line each."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from gpytorch import constraints, kernels, likelihoods, means, priors
from gpytorch.likelihoods.noise_models import HomoskedasticNoise

from .. import activations, mixing, models
from .. import kernels as own_kernels
from ..inference import Normalization
from ..kernels.block_renormalized_kernel import _Factor
from ..kernels.compositions import COMPOSITIONS
from ..kernels.convolutional_nngp_kernel import _Blocks, _ChainBlocks
from ..kernels.multitask_renormalized_kernel import _DataKernel
from ..kernels.patches import sizes_of
from ..likelihoods import FiniteWidthLikelihood, StudentTProcessLikelihood
from ..order_parameters import LinearChain, OrderParameterPrior, WishartOrderParameterPrior
from ..theories import THEORIES
from .registry import Entry, register

register(Entry(Normalization, ("input_mean", "input_scale", "target_mean", "target_scale")))

# Activations. Quadrature holds a callable of the user's: it is left out.
register(
    Entry(activations.LeakyReLU, ("negative_slope",)),
    *(
        Entry(getattr(activations, name))
        for name in "Cos Erf Exp GELU Identity ReLU RectifiedQuadratic SiLU Sign Sin Square Step Tanh".split()
    ),
)
register(*(Entry(cls) for cls in COMPOSITIONS.values()))

register(
    Entry(mixing.GammaMixing, ("width",)),
    Entry(mixing.InverseGammaMixing, ("df",)),
    Entry(mixing.LogNormalMixing, ("c",)),
    Entry(mixing.PointMass, ("value",)),
    Entry(mixing.ProductGammaMixing, ("widths",)),
)


def _transforms(constraint: Any) -> dict[str, Any]:
    return {"transform": constraint._transform, "inv_transform": constraint._inv_transform}


# The bounds are cast to the default dtype by the constructors: they are buffers, put back as they were.
_BOUNDS = ("lower_bound", "upper_bound")
register(
    Entry(constraints.Interval, _BOUNDS, computed=_transforms, values=("_initial_value",)),
    Entry(constraints.GreaterThan, _BOUNDS[:1], computed=_transforms, values=("_initial_value",)),
    Entry(constraints.LessThan, _BOUNDS[1:], computed=_transforms, values=("_initial_value",)),
    Entry(constraints.Positive, computed=_transforms, values=("_initial_value",)),
)


def _transform(prior: Any) -> dict[str, Any]:
    return {"transform": prior._transform}


register(
    Entry(OrderParameterPrior, computed=lambda prior: {"width": prior.width.squeeze(-2)}),
    Entry(WishartOrderParameterPrior, ("num_blocks",), computed=lambda prior: {"width": prior.width.squeeze(-2)}),
    Entry(priors.NormalPrior, ("loc", "scale"), computed=_transform),
    Entry(priors.LogNormalPrior, ("loc", "scale")),
    Entry(priors.GammaPrior, ("concentration", "rate"), computed=_transform),
    Entry(priors.HalfNormalPrior, ("scale",), computed=_transform),
    Entry(priors.HalfCauchyPrior, ("scale",), computed=_transform),
    Entry(priors.UniformPrior, computed=lambda prior: {"a": prior.low, "b": prior.high, **_transform(prior)}),
    Entry(priors.SmoothedBoxPrior, ("a", "b", "sigma"), computed=_transform, children=("tails",)),
)


def _kernel(kernel: Any) -> dict[str, Any]:
    return {"batch_shape": kernel._batch_shape, "active_dims": kernel.active_dims}


def _ard_kernel(kernel: Any) -> dict[str, Any]:
    return {"ard_num_dims": kernel.ard_num_dims, **_kernel(kernel)}


def _periodic(kernel: Any) -> dict[str, Any]:
    return _kernel(kernel) if kernel.ard_num_dims is None else _ard_kernel(kernel)  # its constructor counts the None


def _same(*names: str) -> dict[str, str]:
    """Priors that are registered under the name of their argument."""
    return {name: name for name in names}


_LENGTHSCALE = _same("lengthscale_prior")
register(
    Entry(kernels.RBFKernel, computed=_ard_kernel, priors=_LENGTHSCALE),
    Entry(kernels.MaternKernel, ("nu",), computed=_ard_kernel, priors=_LENGTHSCALE),
    Entry(kernels.RQKernel, computed=_ard_kernel, priors=_LENGTHSCALE),
    Entry(
        kernels.PeriodicKernel,
        computed=_periodic,
        priors={**_LENGTHSCALE, "period_length_prior": "period_length_prior"},
    ),
    Entry(kernels.LinearKernel, computed=_ard_kernel, priors=_same("variance_prior")),
    Entry(kernels.PolynomialKernel, ("power",), computed=_kernel, priors=_same("offset_prior")),
    Entry(kernels.ConstantKernel, computed=_kernel, priors=_same("constant_prior")),
    Entry(kernels.ScaleKernel, ("base_kernel",), computed=_kernel, priors=_same("outputscale_prior")),
    Entry(kernels.AdditiveKernel, positional="kernels"),
    Entry(kernels.ProductKernel, positional="kernels"),
)


def _network(kernel: Any) -> dict[str, Any]:
    # Which layers have a bias; the values are parameters.
    return {"bias_variance": [float(has) for has in kernel._has_bias], **_ard_kernel(kernel)}


def _nngp(kernel: Any) -> dict[str, Any]:
    return {"depth": kernel.depth, **_network(kernel)}


def _arc_cosine(kernel: Any) -> dict[str, Any]:
    orders = {activations.Step: 0, activations.ReLU: 1, activations.RectifiedQuadratic: 2}
    return {"order": orders[type(kernel.activation)], **_nngp(kernel)}


def _renormalized(kernel: Any) -> dict[str, Any]:
    return {"width": kernel.width.squeeze(-2), **_network(kernel)}


def _multitask(kernel: Any) -> dict[str, Any]:
    data = kernel.data_covar_module
    return {"activation": data.activation, "width": kernel.width.squeeze(-2), **_kernel(kernel)}


def _convolutional(kernel: Any) -> dict[str, Any]:
    return {**sizes_of(kernel.stack), "readout": kernel.readout, **_network(kernel)}


def _convolutional_renormalized(kernel: Any) -> dict[str, Any]:
    blocks, width = kernel.blocks, kernel.width.squeeze(-2)
    if any(math.isfinite(number) for number in kernel.lower_width):
        width = torch.cat([width.new_tensor(kernel.lower_width), width])
    own = {"activation": blocks.activation, "width": width, **_kernel(kernel)}
    return {**sizes_of(blocks.stack), "readout": blocks.readout, **own}


def _of_blocks(kernel: Any) -> dict[str, Any]:
    given, factor = kernel._prior_mean is not None, kernel.factor
    mean = torch.eye(kernel.blocks.num_blocks) if factor is None else factor @ factor.mT
    own = {"prior_mean": mean if given else None, "chain": kernel.chain if kernel.chain.maps else None}
    return {"width": kernel.width.squeeze(-2), **own, **_kernel(kernel)}


def _table(kernel: Any) -> dict[str, Any]:
    size = kernel.num_blocks
    rows = [[kernel._modules[f"kernel_{a}_{b}"] if a <= b else None for b in range(size)] for a in range(size)]
    return {"kernels": rows, "active_dims": kernel.active_dims}


_NETWORK = {name: name for name in ("weight_variance_prior", "readout_variance_prior", "bias_ratio_prior", "ard_prior")}
register(
    Entry(own_kernels.NNGPKernel, ("activation",), computed=_nngp, priors=_NETWORK),
    Entry(own_kernels.ArcSineKernel, computed=_nngp, priors=_NETWORK),
    Entry(own_kernels.ArcCosineKernel, computed=_arc_cosine, priors=_NETWORK),
    Entry(
        own_kernels.RenormalizedNNGPKernel,
        ("activation", "composition"),
        computed=_renormalized,
        priors={**_NETWORK, "order_parameter_prior": None},
    ),
    Entry(_DataKernel, ("activation",), computed=_nngp, priors=_NETWORK),
    Entry(
        own_kernels.MultitaskRenormalizedKernel,
        ("num_tasks",),
        computed=_multitask,
        priors={"order_parameter_prior": None},
        children=("data_covar_module",),
    ),
    Entry(own_kernels.ConvolutionalNNGPKernel, ("activation",), computed=_convolutional, priors=_NETWORK),
    Entry(_Blocks, ("activation",), computed=_convolutional, priors=_NETWORK),
    Entry(_ChainBlocks, ("activation",), computed=_convolutional, priors=_NETWORK),
    Entry(
        own_kernels.ConvolutionalRenormalizedKernel,
        computed=_convolutional_renormalized,
        priors={"order_parameter_prior": None},
        children=("blocks",),
    ),
    Entry(_Factor, ("value",)),
    Entry(LinearChain, ("maps",), computed=lambda chain: {"size": chain.sizes[-1]}),
    Entry(
        own_kernels.BlockRenormalizedKernel,
        ("blocks",),
        computed=_of_blocks,
        priors={"order_parameter_prior": None},
        children=("_prior_mean",),
    ),
    Entry(own_kernels.KernelBlocks, computed=_table, held=lambda kernel: kernel._modules),
)


def _batch_shape(parameter: str) -> Any:
    return lambda module: {"batch_shape": getattr(module, parameter).shape[:-1]}


def _multitask_batch(likelihood: Any) -> dict[str, Any]:
    return {"batch_shape": next(likelihood.parameters()).shape[: -2 if likelihood.rank else -1]}


register(
    Entry(means.MultitaskMean, ("base_means", "num_tasks")),
    Entry(
        likelihoods.MultitaskGaussianLikelihood,
        ("num_tasks", "rank", "has_global_noise", "has_task_noise"),
        computed=_multitask_batch,
        priors={"raw_noise_prior": "noise_prior", "raw_task_noises_prior": "noise_prior"},
    ),
    Entry(means.ZeroMean, ("batch_shape",)),
    Entry(means.ConstantMean, ("batch_shape",), priors={"mean_prior": "constant_prior"}),
    Entry(HomoskedasticNoise, computed=_batch_shape("raw_noise"), priors=_same("noise_prior")),
    Entry(likelihoods.GaussianLikelihood, children=("noise_covar",)),
    Entry(FiniteWidthLikelihood, children=("noise_covar",)),
    Entry(
        StudentTProcessLikelihood,
        computed=_batch_shape("raw_deg_free"),
        priors=_same("deg_free_prior"),
        children=("noise_covar",),
    ),
)


def _options(theory: type) -> tuple[str, ...]:
    """Options of a theory but for who watches its progress, who is no part of a file."""
    return tuple(name for name in inspect.signature(theory).parameters if name != "progress")


register(*(Entry(theory, _options(theory)) for theory in THEORIES.values()))

_PARTS = ("likelihood", "covar_module", "mean_module")
register(
    Entry(models.NetworkGP, _PARTS, has_data=True),
    Entry(models.MultitaskNetworkGP, _PARTS, has_data=True),
    Entry(models.FiniteNetworkProcess, (*_PARTS, "theory"), values=("kept_fit",), has_data=True),
    Entry(models.NetworkStudentTProcess, _PARTS, has_data=True),
    Entry(
        models.NetworkFiniteWidthProcess,
        (*_PARTS, "theory"),
        computed=lambda model: {"mixing": model._own_mixing},
        has_data=True,
        renamed={"predictive": "theory"},
    ),
)
