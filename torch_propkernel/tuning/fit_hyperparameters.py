"""Temperature and prior variances of a network by evidence, at a fixed overall scale."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import torch
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import Mean
from torch import Tensor

from .._validation import check_floating, check_targets
from ..exceptions import BoundaryWarning, IdentifiabilityWarning
from ..inference import Problem
from ..theories.solve import drop_cached_predictions, fit_problem
from .evidence import THEORIES, finite_kernel, log_prior
from .evidence_descent import assign
from .hyperparameter_fit import HyperparameterFit
from .several_starts import MAX_STARTS, descend_from_all, starting_points
from .trained_parameters import TrainedParameter, find_trained_parameters

_COLDEST, _HOTTEST = 1e-6, 1e2


def fit_hyperparameters(
    model: Any,
    *,
    train: Sequence[str] = ("temperature", "bias_ratio"),
    theory: str = "mixture",
    throw: bool = True,
    warn: bool = True,
    max_iterations: int = 200,
    starts: int = 3,
    temperature_bounds: tuple[float, float] | None = None,
    executor: Executor | None = None,
) -> HyperparameterFit:
    r"""Train the temperature and the ratios of bias to weight variances by evidence, at a fixed overall scale.

    .. math:: \max_\theta\ \log p(y | \theta) + \log p(\theta), \qquad
              p(y | \theta) = \int p(r)\, N(y; m, T + B + r K_\theta)\, dr

    for ``theory="mixture"``, with p(r) the law of the widths (the exact evidence of the outer composition). For
    ``"saddle"`` the integral is replaced by the action, :math:`-\tfrac{N_L}{2} S(q^*)`, q* solved anew at every step
    (any composition), for ``"infinite_width"`` by the likelihood at q = 1. A model without a finite width, such as an
    ``ExactGP`` with :class:`NNGPKernel` or with any other kernel, or a :class:`StudentTProcess`, is fitted by its own
    likelihood whatever ``theory`` says. A Gaussian process may have targets of shape ``D x P``: D independent problems
    of one kernel, whose log evidences are added up.
    :math:`p(\theta)` are the priors that the model has registered, those of the order parameters excepted: the kernels
    bring one for :math:`b_l / w_l`, :class:`gpytorch.likelihoods.GaussianLikelihood` none for T.

    Names in ``train``: ``"temperature"`` (the likelihood's noise), ``"bias_ratio"`` (b_l / w_l through b_l; a network
    without biases has none, and the name is passed over), ``"weight_variance"`` (of the hidden layers: only an overall
    scale for homogeneous activations such as relu), ``"ard"``, ``"scale"`` (a ``ScaleKernel``'s outputscale, else the
    readout variance), ``"lengthscale"``, ``"mean"`` (a constant mean), ``"deg_free"``. The readout variance is fixed
    unless "scale" is named: with it free, infinite width always reaches the higher evidence, and q says nothing about
    the width.

    L-BFGS-B on the raw parameters in float64, from the model's own values and from up to three fixed points. Where at
    most six numbers train and there are 300 rows or more, several starts descend on a quarter of the rows first (at
    least 150, drawn with a fixed seed), and each place where they end starts one descent on all rows. With more
    numbers (ARD) a part of the rows cannot tell which inputs matter: all starts take eight iterations on all rows,
    and those go on that are less than ten nats behind the best and not close to a better one. In 78 fits of 150 to
    1,000 rows of UCI sets, on 62 of which the ten nats were chosen, full descents of all three starts found more
    once, by 1.3 nats (300 rows, 26 inputs). With "lengthscale" among more than six numbers all starts go to their
    ends. No global random numbers.

    T stays between 1e-6 and 100 times the mean square of the residuals, other parameters in wide boxes; one that ends
    at an end of its box is reported (T at its lower end: the model interpolates, the evidence has no maximum inside).
    The evidence can have several maxima, so the best start is not proven to be the global one.

    The values are written into the model, and with a finite width its order parameters are solved for them. Units of T
    are those of the model's targets squared; standardize them for the default priors.

    Cost: for each evaluation one ``eigh`` and three GEMMs (mixture), the solution and about three Cholesky
    factorizations (saddle) or about three (infinite width), and the kernel's forward and backward pass. Evaluations:
    40 to 60 for three starts on all rows; 6 to 22 after a screening, whose own take a third of the time; 45 to 90
    with ARD. One CPU thread, relu, three starts: mixture 1 s with 278 rows and 3 s with 927; infinite width with ARD
    of 8 inputs 3 s with 927.

    Args:
        model: An ExactGP-like module without batch dimensions; changed only by the fitted values.
        train: What trains.
        theory: Whose evidence: "mixture", "saddle" or "infinite_width".
        throw: Raise if the best start did not converge; the model is then unchanged. Without it the best values found
            are written.
        warn: Warn of parameters at a bound, of a free scale beside a finite width, and as
            :func:`fit_order_parameters`.
        max_iterations: Of L-BFGS-B, for each start.
        starts: 1 (the model's own values only) to 4.
        temperature_bounds: Smallest and largest T, in place of those above.
        executor: A ``concurrent.futures.Executor`` that takes the descents: those on a part of the rows and then
            those on all, or the first iterations of all starts and then the starts that go on. None to do them one
            after the other. The numbers are the same. One after the other a descent ends where it meets the end of an
            earlier one, which parallel ones cannot know: they need more evaluations altogether (not counted in
            ``evaluations``) and the time of the longest.

    Returns:
        Values, log evidence, convergence and bounds.

    Raises:
        TypeError, ValueError: Not a suitable model, a batch of models, NaN, unknown names, no parameter of a name.
        ConvergenceError: Not converged, with ``throw=True``.

    Reference: THEORY.md, section 1 ("Evidence", "Derivatives", "Beyond the saddle point").

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.activations import Identity
        >>> from torch_propkernel.tuning import fit_hyperparameters
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(30, 2, generator=generator, dtype=torch.float64)
        >>> y = x[:, 0] + 0.1 * torch.randn(30, generator=generator, dtype=torch.float64)
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=1000, bias_variance=1.0)
        >>> model = NetworkGP(x, y, gpytorch.likelihoods.GaussianLikelihood(), kernel).double()
        >>> fit = fit_hyperparameters(model, starts=1)
        >>> fit.converged, 0.001 < fit.temperature < 0.1, model.likelihood.noise.item() == fit.temperature
        (True, True, True)
    """
    _check(model, theory, max_iterations, starts)
    drop_cached_predictions(model)  # they do not copy
    work = copy.deepcopy(model).double()
    bounds, size = _temperature_bounds(work, temperature_bounds)
    parameters = find_trained_parameters(work, train, bounds)
    finite = finite_kernel(work)
    if warn and finite is not None and "scale" in train:
        warnings.warn(
            "train: 'scale' trains beside a finite width, but only the product of scale and order parameters enters "
            "the data: infinite width always reaches the higher evidence then, and q says nothing about the width",
            IdentifiabilityWarning,
            stacklevel=2,
        )
    points = starting_points(parameters, size, starts)
    runs = descend_from_all(work, parameters, theory, points, max_iterations, executor)
    best = min(runs, key=lambda run: run.fun)
    assign(parameters, best.x)
    fit = _report(work, parameters, best, runs)
    if throw:
        fit.raise_if_failed()
    with torch.no_grad():
        for parameter in parameters:
            model.get_parameter(parameter.path).copy_(parameter.raw)
    drop_cached_predictions(model)
    if warn and fit.at_bound:
        warnings.warn(f"{', '.join(fit.at_bound)}: {fit.message}", BoundaryWarning, stacklevel=2)
    if finite is not None:
        fit_problem(Problem.of(model), throw=throw, warn=warn and "scale" not in train, stacklevel=4)
    values: dict[str, tuple[float, ...]] = {}
    for parameter in find_trained_parameters(model, train, bounds):
        values[parameter.name] = values.get(parameter.name, ()) + tuple(parameter.values.tolist())
    return dataclasses.replace(fit, model=model, values=values, temperature=_temperature(model))


def _check(model: Any, theory: str, max_iterations: int, starts: int) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected an ExactGP-like module, got {type(model).__name__}")
    for attribute in ("train_inputs", "train_targets", "likelihood"):
        if getattr(model, attribute, None) is None:
            got = type(model).__name__
            raise TypeError(f"model: expected an ExactGP-like model with {attribute}, got {got} without")
    targets = check_floating("train_targets", model.train_targets)
    if targets.dim() not in ((1, 2) if _takes_several_targets(model) else (1,)) or not targets.numel():
        raise ValueError(
            "model: expected targets of shape (P,), or (D, P) for a Gaussian process without a finite width, no batch "
            f"and one output, got {tuple(targets.shape)}"
        )
    check_targets(targets, targets.shape[-1], "train_targets")
    if theory not in THEORIES:
        raise ValueError(f"theory: expected one of {THEORIES}, got {theory!r}")
    if not isinstance(starts, int) or not 1 <= starts <= MAX_STARTS:
        raise ValueError(f"starts: expected 1 to {MAX_STARTS}, got {starts!r}")
    if max_iterations < 1:
        raise ValueError(f"max_iterations: expected at least 1, got {max_iterations!r}")
    if finite_kernel(model) is not None:
        kernel = Problem.of(model).network
        if theory == "mixture" and not kernel.is_scalar:
            raise ValueError(
                f"theory: expected 'saddle' for the composition {kernel.composition!r}, in which not only the "
                "product of the order parameters enters, got 'mixture'"
            )


def _takes_several_targets(model: Any) -> bool:
    """Whether the log evidence is a Gaussian's with one covariance for all targets."""
    if not isinstance(model.likelihood, GaussianLikelihood) or finite_kernel(model) is not None:
        return False
    parts = [m for m in model.modules() if isinstance(m, (Kernel, Mean))]
    one = model.likelihood.noise.numel() == 1 and not any(part.batch_shape for part in parts)
    return one and all(x.dim() == 2 for x in model.train_inputs)


@torch.no_grad()
def _temperature_bounds(model: Any, given: tuple[float, float] | None) -> tuple[tuple[float, float], float]:
    """Bounds of T and the mean square of the residuals (of the kernel's diagonal where all targets are zero)."""
    prior = model.forward(*model.train_inputs)
    size = float((model.train_targets - prior.mean).square().mean())
    size = size if size > 0.0 else float(prior.variance.mean()) or 1.0
    if given is None:
        return (_COLDEST * size, _HOTTEST * size), size
    low, high = (float(end) for end in given)
    if not 0.0 < low < high < math.inf:
        raise ValueError(f"temperature_bounds: expected 0 < low < high, got {given}")
    return (low, high), size


@torch.no_grad()
def _report(model: Any, parameters: list[TrainedParameter], best: Any, runs: list[Any]) -> HyperparameterFit:
    model.train()
    prior = float(log_prior(model))
    met = [f"{p.name} at its {end} bound" for p in parameters for end in p.bounds_met()]
    agreeing = sum(run.fun <= best.fun + 0.01 for run in runs)
    if best.converged:
        message = f"converged after {best.nit} iterations"
    else:
        message = f"not converged after {best.nit} iterations ({best.message}; slope {best.slope:.2g} nats)"
    if len(runs) > 1:
        message += f", {agreeing} of {len(runs)} starts agree"
        if left := sum(run.left for run in runs):
            message += f" ({left} left behind on the way)"
    if met:
        message += f"; {', '.join(met)}"
        if any(text.startswith("temperature at its lower") for text in met):
            message += " (the model interpolates: these data do not determine the noise)"
    return HyperparameterFit(
        model,
        _temperature(model),
        {},
        -float(best.fun) - prior,
        -float(best.fun),
        bool(best.converged),
        message,
        tuple(dict.fromkeys(text.split(" at ")[0] for text in met)),
        int(best.nit),
        sum(int(run.nfev) for run in {id(run): run for run in runs}.values()),
        tuple(-float(run.fun) for run in runs),
    )


def _temperature(model: Any) -> float:
    noise = getattr(model.likelihood, "noise", None)
    return float(noise.detach().mean()) if isinstance(noise, Tensor) else math.nan
