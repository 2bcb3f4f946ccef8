"""The scale mixture behind the saddle point, integrated exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inference import Conditioned, Problem, SpectralConditioned, StreamedProblem
from ..mixing import posterior_of_scale
from ..mixing.law_of_widths import law_of_widths
from ..mixing.scale_integral import REACH, ScalePosterior
from ..spectra import LanczosRun, gauss_quadrature
from .base import FittedTheory, Theory

FEW = 3
"""Nodes of a streamed problem, of which each costs as much as a saddle point."""


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
    ``stats`` has the estimated ``error`` of ``log_evidence``, the ``posterior`` of r, the number of ``nodes`` by which
    the process predicts, and the ``predictive_error`` that their being few makes in the log of densities.

    Densities, with noise or without, are right to 1e-6 up to 30 standard deviations from the mean (in the log, for
    widths from 2 up).

    :class:`FiniteWidthProcess` is the same process as a GPyTorch model, with quantiles and joint predictives. Cost: one
    ``eigh``, then P for each of the nodes, 60 to 120 of them in most cases, some hundreds for narrow networks, and each
    test point. Of a :class:`StreamedProblem` the posterior of r is that of the Lanczos quadrature, whose statistical
    errors it has, and predictions are averages over the three-point Gauss rule of p(log r | y), which is exact for
    polynomials of degree five in log r (not far in the tails); all its nodes are columns of the same products. At 240
    points and 8 units this left 2e-8 of the variances and 2e-5 in the log density of a point left out.

    Raises:
        ValueError: A composition that is not one-dimensional.
        ConvergenceError: The integral did not reach 1e-11.

    Reference: Pacelli et al. (2023), arXiv:2209.04882, result (iii); THEORY.md, eqs. (1), (7), section 1.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.activations import Identity
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> model = NetworkGP(torch.eye(2), 5 * torch.ones(2), gpytorch.likelihoods.GaussianLikelihood(), kernel)
        >>> bool(Mixture().fit(model).readout_norm > 1.5)   # large targets ask for a larger readout
        True
    """

    name = "mixture"
    has_streaming = True

    def _check(self, problem: Problem) -> None:
        problem.check_scalar()

    def _fit(self, problem: Problem) -> FittedTheory:
        streamed, temperature = isinstance(problem, StreamedProblem), problem.scale_temperature()
        spectrum, width = problem.spectrum(eigenvectors=not streamed), problem.layers.width
        law, reach = law_of_widths(width), 0.0 if streamed else REACH
        posterior = posterior_of_scale(spectrum, law, temperature, reach=reach)
        nodes = posterior.for_predictions(reach)
        q = _mean_order_parameters(width, posterior)
        conditioned: Conditioned
        if streamed:
            conditioned = problem.conditioned_at_scales(*_few_nodes(nodes))
        else:
            conditioned = SpectralConditioned(problem, nodes.scale, nodes.log_weights)
        stats = {
            "error": posterior.error,
            "nodes": nodes.log_scale.shape[-1],
            "predictive_error": None if streamed else nodes.predictive_error,
            "posterior": posterior,
        }
        return FittedTheory(
            self,
            problem,
            conditioned,
            {"r": posterior.mean, "q": q},
            q[..., -1],
            "The scale was integrated over its posterior.",
            stats,
            posterior.log_evidence,
        )


def _few_nodes(posterior: ScalePosterior) -> tuple[Tensor, Tensor]:
    """Return the scales and log weights of the Gauss rule of p(log r | y), of one problem."""
    run = LanczosRun(posterior.weights.sqrt().unsqueeze(-1))
    run.extend(lambda v: posterior.log_scale.unsqueeze(-1) * v, min(FEW, posterior.log_scale.shape[-1]))
    (nodes,), (weights,) = gauss_quadrature(run.alphas, run.betas)
    return nodes.exp(), weights.log()


def _mean_order_parameters(width: Tensor, posterior: ScalePosterior) -> Tensor:
    """E[q_l | y], ``*b x L``: tilting a Gamma density by its variable raises the shape by one."""
    law, columns = law_of_widths(width), []
    for index in range(width.shape[-1]):
        if bool(torch.isinf(width[..., index]).all()):
            columns.append(torch.ones_like(posterior.mean))
            continue
        raised = width.clone()
        raised[..., index] += 2.0
        shifted = posterior.log_scale - torch.log1p(2.0 / width[..., index, None])
        ratio = (
            law_of_widths(raised).log_density_at_nodes(shifted) - law.log_density_at_nodes(posterior.log_scale)
        ).exp()
        columns.append((posterior.weights * ratio.nan_to_num(0.0)).sum(-1))  # nodes of weight zero may overflow
    return torch.stack(columns, -1)
