"""The posterior of a network's weights as a density over flat vectors, with the readout integrated out or sampled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from .._validation import check_inputs, check_same_kind, check_targets, positive_number
from .conditional import ReadoutLaw
from .feature_network import FeatureNetwork


class Observables(NamedTuple):
    """What is recorded of each state of C chains; averages over v | w where the readout is integrated out.

    Example:
        >>> import torch
        >>> from torch_propkernel.activations import Identity
        >>> from torch_propkernel.networks import FiniteNetwork, MarginalTarget
        >>> target = MarginalTarget(FiniteNetwork(Identity(), 1, 1), torch.ones(1, 1), torch.ones(1), 1.0)
        >>> target.observables(torch.ones(3, 1)).training_error   # f ~ N(1/2, 1/2) given w = 1: 1/4 + 1/2
        tensor([0.7500, 0.7500, 0.7500])
    """

    log_likelihood: Tensor  # C, log p(Y | w), the readout integrated out
    training_error: Tensor  # C
    order_parameter: Tensor  # C x D x D
    mean: Tensor  # C x m x D, E[f(x_*) | state]
    variance: Tensor  # C x m, Var[f(x_*) | state], the same for each output
    output: Tensor  # C x m x D, f(x_*) of one network
    hidden: Tensor  # C x num_hidden, its hidden weights
    readout: Tensor  # C x F x D, its readout; one more row for a bias


class Target(ABC):
    r"""Gibbs posterior of the weights of a network, exp(-U), over flat *whitened* vectors.

    .. math:: U = -\log p(Y, \text{state}), \qquad \text{prior of the state } N(0, 1)

    This is exp(-loss / T) of THEORY.md, section 0: Bayesian regression with noise variance T. Samplers know a target by
    the methods and attributes below only; C chains are one batch.

    Args:
        network: Its architecture and prior count, its present weights and batch shape do not.
        x: Training inputs ``P x d``.
        y: Targets ``P``, or ``P x D`` for a network with ``num_outputs = D``.
        temperature: T > 0.
        test_x: Inputs ``m x d`` at which :meth:`observables` evaluates the network.

    Attributes:
        dim: Length of the state.
        temperature: T.
        precisions: lambda of the weight behind each entry of the state, ``dim`` numbers: the physical weight is the
            entry over sqrt(lambda).

    Raises:
        TypeError, ValueError: No :class:`FeatureNetwork`; NaN, wrong shapes, mixed dtypes or devices; T <= 0.

    Reference: THEORY.md, section 0.

    Example:
        >>> import torch
        >>> from torch_propkernel import Erf
        >>> from torch_propkernel.networks import FiniteNetwork, JointTarget, MarginalTarget
        >>> network, x = FiniteNetwork(Erf(), input_dim=2, width=3), torch.ones(4, 2)
        >>> MarginalTarget(network, x, x[:, 0], 0.1).dim, JointTarget(network, x, x[:, 0], 0.1).dim
        (6, 9)
    """

    dim: int
    precisions: Tensor

    def __init__(
        self, network: FeatureNetwork, x: Tensor, y: Tensor, temperature: float, test_x: Tensor | None = None
    ) -> None:
        """Check the data."""
        if not isinstance(network, FeatureNetwork):
            raise TypeError(f"network: expected a FiniteNetwork or ConvolutionalNetwork, got {type(network).__name__}")
        self.network = network
        self.temperature = positive_number("temperature", temperature)
        self.x = self._check(x, "x")
        self.test_x = x[:0] if test_x is None else self._check(test_x, "test_x")
        self.y = as_columns(network, y, x, "y")
        self._readout_prior = network.readout_prior  # which a sampler's steps need not read from the device

    def _check(self, x: Tensor, name: str) -> Tensor:
        check_same_kind(**{name: check_inputs(x, name), "network": self.network.hidden})
        if x.dim() != 2:
            raise ValueError(f"{name}: expected shape (P, N_0), got {tuple(x.shape)}")
        return x

    @property
    def likelihood(self) -> tuple[float, float, float]:
        """T, and the prior variances of the readout and of its bias."""
        return self.temperature, *self._readout_prior

    def draw_prior(self, num_chains: int, generator: torch.Generator | None = None) -> Tensor:
        """Return states ``C x dim`` drawn from the prior."""
        return torch.randn(num_chains, self.dim, generator=generator, dtype=self.x.dtype, device=self.x.device)

    @abstractmethod
    def potential(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return U ``C`` (infinite where it cannot be computed) and its gradient ``C x dim`` at states ``C x dim``."""

    def complete(self, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return states with everything that the data do not see drawn from the prior: here nothing is missing."""
        return state

    @abstractmethod
    def observables(self, state: Tensor, generator: torch.Generator | None = None) -> Observables:
        """Return what is recorded at states ``C x dim``."""

    def _features(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden weights as a leaf and the features that depend on them."""
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            return leaf, self.network.features(self.x, leaf)

    def _test_features(self, hidden: Tensor) -> Tensor:
        """Return the features of the test inputs, which may be none."""
        if not len(self.test_x):
            return hidden.new_zeros(len(hidden), 0, self.network.num_features)
        return self.network.features(self.test_x, hidden)

    def _hidden_precisions(self) -> Tensor:
        """Physical over whitened weights, from the derivative of the network's own map, to the power -2."""
        with torch.enable_grad():
            leaf = self.x.new_zeros(1, self.network.num_hidden).requires_grad_()
            pieces = [piece for layer in self.network.layers(leaf) for piece in layer if piece is not None]
            (scale,) = torch.autograd.grad(torch.stack([piece.sum() for piece in pieces]).sum(), leaf)
        return scale[0].pow(-2)


class MarginalTarget(Target):
    r"""Posterior of the hidden weights with the readout integrated out exactly.

    .. math:: U(w) = \tfrac12 |w|^2 + \tfrac{D}{2} \log\det A + \tfrac12 \mathrm{tr}\, Y^T A^{-1} Y + \text{const},
              \qquad A = T 1 + w_L \Phi_w \Phi_w^T

    Observables are averages over the readout given w, so they fluctuate less than those of single networks.
    Arguments, attributes and errors are those of :class:`Target`. Cost of a gradient: one forward and one backward pass
    of the network on P inputs and min(P, F) P F, for each chain.

    Reference: THEORY.md, section 0; :class:`ReadoutLaw`.

    Example:
        >>> import torch
        >>> from torch_propkernel.activations import Identity
        >>> from torch_propkernel.networks import FiniteNetwork, MarginalTarget
        >>> target = MarginalTarget(FiniteNetwork(Identity(), 1, 1), torch.ones(1, 1), torch.zeros(1), 1.0)
        >>> value, gradient = target.potential(torch.ones(1, 1))   # A = 1 + w^2, U' = w + w / (1 + w^2)
        >>> round(gradient.item(), 6)
        1.5
    """

    def __init__(
        self, network: FeatureNetwork, x: Tensor, y: Tensor, temperature: float, test_x: Tensor | None = None
    ) -> None:
        """Check the data."""
        super().__init__(network, x, y, temperature, test_x)
        self.dim = network.num_hidden
        self.precisions = self._hidden_precisions()

    @torch.no_grad()
    def potential(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return U ``C`` and its gradient ``C x dim``."""
        leaf, features = self._features(state)
        law = ReadoutLaw(features.detach(), self.y, *self.likelihood)
        (gradient,) = torch.autograd.grad(features, leaf, law.feature_gradient())
        return (0.5 * state.square().sum(-1) - law.log_likelihood).to(state.dtype), gradient.add_(state)

    @torch.no_grad()
    def observables(self, state: Tensor, generator: torch.Generator | None = None) -> Observables:
        """Return averages over v | w, and outputs of one network each."""
        law = ReadoutLaw(self.network.features(self.x, state), self.y, *self.likelihood)
        readout, features = law.sample(generator), self._test_features(state)
        mean, variance = law.predict(features)
        scalars = law.log_likelihood, law.training_error(), law.order_parameter()
        return Observables(*scalars, mean, variance, features @ readout, state, readout)


class JointTarget(Target):
    r"""Posterior of all weights, the readout included, as training dynamics see it.

    .. math:: U(w, u) = \tfrac12 |w|^2 + \tfrac12 |u|^2 + \tfrac{1}{2T} |Y - \Phi_w v|^2 + \text{const},
              \qquad v = \sqrt{w_L}\, u

    The state is (w, u), u the whitened readout, flattened from ``F x D``; a bias is whitened by its own variance.
    Observables are those of single networks, but for the log likelihood, which is log p(Y | w) as in
    :class:`MarginalTarget`. Arguments, attributes and errors are those of :class:`Target`.

    Reference: THEORY.md, section 0.

    Example:
        >>> import torch
        >>> from torch_propkernel.activations import Identity
        >>> from torch_propkernel.networks import FiniteNetwork, JointTarget
        >>> target = JointTarget(FiniteNetwork(Identity(), 1, 1), torch.ones(1, 1), torch.zeros(1), 1.0)
        >>> target.potential(torch.tensor([[1.0, 2.0]]))[1]   # U' = (w + w u^2, u + w^2 u)
        tensor([[5., 4.]])
    """

    def __init__(
        self, network: FeatureNetwork, x: Tensor, y: Tensor, temperature: float, test_x: Tensor | None = None
    ) -> None:
        """Check the data."""
        super().__init__(network, x, y, temperature, test_x)
        size = network.num_features * self.y.shape[-1]
        self.dim = network.num_hidden + size
        variance = network.readout_variance.repeat_interleave(self.y.shape[-1]).to(self.x)
        self.precisions = torch.cat([self._hidden_precisions(), 1.0 / variance])
        self._deviation = network.readout_variance.sqrt().unsqueeze(-1).to(self.x)

    @torch.no_grad()
    def potential(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return U ``C`` and its gradient ``C x dim``."""
        hidden, readout = self._split(state)
        leaf, features = self._features(hidden)
        misfit = (features.detach() @ readout - self.y) / self.temperature
        (gradient,) = torch.autograd.grad(features, leaf, misfit @ readout.mT)
        inner = self._deviation * (features.detach().mT @ misfit)
        value = 0.5 * (state.square().sum(-1) + self.temperature * misfit.square().sum((-2, -1)))
        return value, torch.cat([gradient, inner.flatten(1)], dim=-1).add_(state)

    @torch.no_grad()
    def observables(self, state: Tensor, generator: torch.Generator | None = None) -> Observables:
        """Return the values for one network each."""
        hidden, readout = self._split(state)
        features = self.network.features(self.x, hidden)
        law = ReadoutLaw(features, self.y, *self.likelihood)
        error = (self.y - features @ readout).square().sum((-2, -1)) / len(self.y)
        weights = readout[..., : self.network.num_units, :] / self._deviation[0]  # whitened, without a bias
        order = weights.mT @ weights / weights.shape[-2]
        output = self._test_features(hidden) @ readout
        variance = torch.zeros_like(output[..., 0])
        return Observables(law.log_likelihood, error, order, output, variance, output, hidden, readout)

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden weights and the physical readout."""
        hidden, readout = state.split([self.network.num_hidden, self.dim - self.network.num_hidden], dim=-1)
        readout = readout.unflatten(-1, (self.network.num_features, self.y.shape[-1]))
        return hidden, self._deviation * readout


def as_columns(network: FeatureNetwork, y: Tensor, x: Tensor, name: str) -> Tensor:
    """Return targets ``P`` or ``P x D`` of a network as checked columns ``P x D``."""
    if network.num_outputs is None:
        check_targets(y, len(x), name)
        columns = y.unsqueeze(-1)
    else:
        check_targets(y.mT if y.dim() == 2 else y, len(x), name)
        columns = y
    expected = (len(x), network.num_outputs or 1)
    if tuple(columns.shape) != expected:
        want = expected if network.num_outputs else expected[:1]
        raise ValueError(f"{name}: expected shape {want}, got {tuple(y.shape)}")
    check_same_kind(**{name: y, "network": network.hidden})
    return columns
