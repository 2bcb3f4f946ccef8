"""From training practice (weight decay, loss, Langevin noise) to the precisions and temperature of the theory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .._validation import as_values, positive_number, whole_number

_PARAMETRIZATIONS = ("standard", "scaled")


@dataclass(frozen=True)
class GibbsParameters:
    """Prior variances and temperature of the posterior that a training run samples.

    Attributes:
        weight_variance: w_0, ..., w_L = 1 / lambda_l, for kernels and :class:`FiniteNetwork`.
        bias_variance: b_0, ..., b_{L-1} likewise; zeros without biases.
        readout_bias_variance: Prior variance of the readout's bias, for :class:`FiniteNetwork` and for a
            ConstantKernel that is added to a kernel; 0 without biases.
        temperature: T, the variance of the noise.
        notes: What holds only approximately.

    Example:
        >>> from torch_propkernel.practice import gibbs_parameters
        >>> print(gibbs_parameters(weight_decay=1e-3, num_samples=50, fan_in=[10, 20], dynamics_temperature=1e-3))
        weight_variance (10, 20), bias_variance (0), readout_bias_variance 0, temperature 0.025
    """

    weight_variance: tuple[float, ...]
    bias_variance: tuple[float, ...]
    readout_bias_variance: float
    temperature: float
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        """One line of numbers and one for each note."""
        numbers = (
            f"weight_variance ({_list(self.weight_variance)}), bias_variance ({_list(self.bias_variance)}), "
            f"readout_bias_variance {self.readout_bias_variance:.6g}, temperature {self.temperature:.6g}"
        )
        return "\n".join([numbers, *self.notes])


def gibbs_parameters(
    *,
    weight_decay: float | Sequence[float],
    num_samples: int,
    fan_in: Sequence[int],
    dynamics_temperature: float | None = None,
    learning_rate: float | None = None,
    noise_std: float | None = None,
    noise_on: str = "parameters",
    momentum: float = 0.0,
    num_outputs: int = 1,
    reduction: str = "mean",
    half: bool = False,
    parametrization: str = "standard",
    bias: bool = False,
    decoupled_weight_decay: bool = False,
) -> GibbsParameters:
    r"""Translate a Langevin training run with weight decay into the prior variances and temperature that it samples.

    .. math::
        E(\theta) = \frac{\kappa}{2} \sum_{\mu d} (y_{\mu d} - f_d(x_\mu))^2 + \frac{\omega}{2} |\theta|^2, \quad
        \theta \leftarrow \theta - \eta \nabla E + \sqrt{2 \eta \tau}\, \xi

        \Rightarrow\quad p(\theta) \sim e^{-E(\theta)/\tau}, \qquad
        T = \frac{\tau}{\kappa}, \qquad \mathrm{var}_{\text{prior}}(\theta_i) = \frac{\tau}{\omega}

    omega is the ``weight_decay`` of :mod:`torch.optim` (SGD and others that add omega theta to the gradient), eta the
    learning rate, xi standard normal, tau the temperature of the dynamics, kappa the factor of the loss.

    ========================================================  ====================================================
    in your training                                          in the theory
    ========================================================  ====================================================
    sum of squared errors, with the factor 1/2                kappa = 1
    sum of squared errors                                     kappa = 2
    mean over P samples and D outputs (``MSELoss``)           kappa = 2 / (P D)
    mean, with the factor 1/2                                 kappa = 1 / (P D)
    noise of deviation s added to theta after every step      tau = s^2 (1 - mu) / (2 eta), mu the ``momentum``
    noise of deviation s added to every gradient              tau = s^2 eta / (2 (1 - mu))
    SGLD: theta -= (eps/2) grad E, then + N(0, eps)           eta = eps / 2, s = sqrt(eps), mu = 0: tau = 1
    temperature of the Gibbs measure                          T = tau / kappa
    weights with the factor 1/sqrt(N) outside ("scaled")      lambda_l = omega / tau, w_l = tau / omega
    ``torch.nn.Linear``, no such factor ("standard")          w_l = N_l tau / omega (N_l the fan-in)
    biases, in both                                           b_l = tau / omega
    FiniteNetwork, 1/2 sum - T ``log_prior()``                its own variances; omega = 0, kappa = 1, tau = T
    default initialization of ``torch.nn.Linear``             w_l = 1/3, b_l = 1 / (3 N_l): `linear_default_variances`
    ========================================================  ====================================================

    The products lambda_l T = omega / kappa (over N_l in the standard parametrization) do not depend on tau.

    What is *not* a Gibbs measure, and has no (lambda, T): AdamW and other decoupled weight decay (its fixed points are
    those of no loss), Adam and other preconditioned steps with plain noise, dropout, early stopping. SGD without added
    noise ends at a minimum of E: the limit tau -> 0 with lambda T fixed, where T alone is undefined. The noise of
    minibatches is neither isotropic nor Gaussian; moving theta by a variance of order eta^2 in a step, it is small
    beside the noise 2 eta tau only for small eta. A uniform initialization has the variances above, not the Gaussian
    shape.

    Accuracy: exact for eta -> 0. Where E has curvature h, the stationary variance tau / h is too large by a factor,
    with c = eta h / (2 (1 + mu)): 1 / (1 - c) with noise on the gradients (or without momentum), and
    (1 + 4 mu c / (1 - mu)^2) / (1 - c) with noise on theta. With momentum, add the noise to the gradients.

    Args:
        weight_decay: omega > 0, one number or one for each layer of weights.
        num_samples: P, the number of training samples (of the whole set, also with minibatches).
        fan_in: N_0, ..., N_L: the inputs of each layer of weights, the readout's last. Of a convolutional layer they
            are the entries of a patch, input channels included.
        dynamics_temperature: tau; or give ``learning_rate`` and ``noise_std``.
        learning_rate: eta.
        noise_std: s, standard deviation of the noise in every step.
        noise_on: What the noise is added to: "parameters" (after the step) or "gradients" (before it).
        momentum: mu of :class:`torch.optim.SGD` (dampening 0, no Nesterov).
        num_outputs: D.
        reduction: "mean" (over samples and outputs) or "sum".
        half: Whether the loss has the factor 1/2.
        parametrization: "standard" (:class:`torch.nn.Linear`) or "scaled" (:class:`FiniteNetwork`, physical weights).
        bias: Whether there are biases, with weight decay like their layer's weights.
        decoupled_weight_decay: Refused if True; AdamW is no Gibbs measure.

    Returns:
        The variances, T and notes.

    Raises:
        ValueError: Numbers that are not positive or of the wrong number, neither tau nor (eta, s) or both, unknown
            names, decoupled weight decay.

    Reference: Welling & Teh (2011), "Bayesian learning via stochastic gradient Langevin dynamics"; Chen, Fox &
    Guestrin (2014), arXiv:1402.4102; THEORY.md, section 0.

    Example:
        >>> from torch_propkernel.practice import gibbs_parameters
        >>> found = gibbs_parameters(
        ...     weight_decay=0.01, num_samples=200, fan_in=[8, 50], learning_rate=1e-3, noise_std=1e-3
        ... )
        >>> found.temperature, found.weight_variance   # tau = 5e-4, kappa = 2 / 200
        (0.05, (0.4, 2.5))
    """
    if decoupled_weight_decay:
        raise ValueError(
            "decoupled_weight_decay: expected False, got True: AdamW's decay is not the gradient of a loss, so the run "
            "samples no Gibbs measure and has no temperature; use the weight_decay of torch.optim.SGD"
        )
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
    if parametrization not in _PARAMETRIZATIONS:
        raise ValueError(f"parametrization: expected one of {_PARAMETRIZATIONS}, got {parametrization!r}")
    sizes = [whole_number("fan_in", size) for size in fan_in]
    count = whole_number("num_samples", num_samples) * whole_number("num_outputs", num_outputs)
    if not sizes:
        raise ValueError("fan_in: expected one number for each layer of weights, got none")
    decay = as_values("weight_decay", torch.as_tensor(weight_decay, dtype=torch.float64), len(sizes)).tolist()
    tau, notes = _dynamics_temperature(dynamics_temperature, learning_rate, noise_std, noise_on, momentum)
    kappa = (1.0 if half else 2.0) / (count if reduction == "mean" else 1)
    physical = [tau / omega for omega in decay]
    factors = sizes if parametrization == "standard" else [1] * len(sizes)
    return GibbsParameters(
        weight_variance=tuple(variance * factor for variance, factor in zip(physical, factors, strict=True)),
        bias_variance=tuple(variance if bias else 0.0 for variance in physical[:-1]),
        readout_bias_variance=physical[-1] if bias else 0.0,
        temperature=tau / kappa,
        notes=notes,
    )


def linear_default_variances(fan_in: Sequence[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    r"""Return the variances of torch's default initialization of a chain of :class:`torch.nn.Linear` layers.

    .. math:: w_l = \tfrac13, \qquad b_l = \frac{1}{3 N_l}

    Weights and biases are drawn uniformly between +-1/sqrt(N_l), N_l the fan-in: a variance 1/(3 N_l), and the weights'
    times N_l in the parametrization of the kernels. Not included: the uniform shape; kernels and
    :class:`FiniteNetwork` have Gaussian weights with these variances.

    Args:
        fan_in: N_0, ..., N_L, the inputs of each layer of weights.

    Returns:
        w_0, ..., w_L and b_0, ..., b_L. The last is the readout's bias, the ``readout_bias_variance`` of a
        :class:`FiniteNetwork` and the constant of a ConstantKernel beside a kernel.

    Raises:
        ValueError: A fan-in that is not a whole number >= 1.

    Reference: THEORY.md, section 0.

    Example:
        >>> import torch
        >>> from torch_propkernel.practice import linear_default_variances
        >>> weight, bias = linear_default_variances([400])
        >>> drawn = torch.nn.Linear(400, 500).weight.var() * 400
        >>> bool((drawn / weight[0] - 1).abs() < 0.02)
        True
    """
    sizes = [whole_number("fan_in", size) for size in fan_in]
    return (1 / 3,) * len(sizes), tuple(1 / (3 * size) for size in sizes)


def _dynamics_temperature(
    tau: float | None, learning_rate: float | None, noise_std: float | None, noise_on: str, momentum: float
) -> tuple[float, tuple[str, ...]]:
    """Return tau and notes on the step."""
    if noise_on not in ("parameters", "gradients"):
        raise ValueError(f"noise_on: expected 'parameters' or 'gradients', got {noise_on!r}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: expected 0 <= momentum < 1, got {momentum!r}")
    if tau is not None:
        if learning_rate is not None or noise_std is not None:
            raise ValueError("dynamics_temperature: expected either it or learning_rate and noise_std, got both")
        return positive_number("dynamics_temperature", tau), ()
    if learning_rate is None or noise_std is None:
        raise ValueError(
            "dynamics_temperature: expected it, or learning_rate and noise_std, got neither; without noise the run "
            "ends at a minimum and only lambda T = weight_decay / kappa is defined"
        )
    eta, s = positive_number("learning_rate", learning_rate), positive_number("noise_std", noise_std)
    excess = eta / (2 * (1 + momentum))
    if noise_on == "gradients":
        tau = s**2 * eta / (2 * (1 - momentum))
    else:
        tau = s**2 * (1 - momentum) / (2 * eta)
        excess *= 1 + 4 * momentum / (1 - momentum) ** 2
    return tau, (f"Exact for learning rate -> 0; curvature h of the loss adds a fraction {excess:.3g} h to variances.",)


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
