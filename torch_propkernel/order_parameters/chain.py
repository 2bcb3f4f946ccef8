"""The order parameters of a network's hidden layers as one object: shape, prior, parametrization, width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.constraints import Positive
from torch import Tensor

from .._validation import as_width
from ..numerics.special import exponential_excess
from .prior import OrderParameterPrior

_INFINITE = 1e300
"""Stands for the narrowest width where all are infinite: the slope 1e300 u then pins u at zero to rounding."""
_NEWTON = 60


@dataclass(frozen=True)
class ScalarChain:
    r"""Order parameters q_1, ..., q_L, one number for each hidden layer.

    The prior is a chain of laws, one a layer, of which only the product enters the data in one dimension:

    .. math:: r = \prod_l q_l, \qquad q_l \sim \mathrm{Gamma}(N_l/2,\ \text{rate } N_l/2), \qquad
              \text{action } \sum_l N_l (q_l - \log q_l - 1)

    With blocks (outputs, patches) every q_l becomes a positive matrix and the laws become Wishart's; this is the 1 x 1
    case. Everything that depends on how the layers combine is asked of this object: the product, the prior, the
    constraint, the stationary layers at a given product.

    Shapes: ``*b x L`` for widths and order parameters; r and its logarithm u are ``*b``. A layer of infinite width has
    q_l = 1 and no action. Cost: O(L) for each problem, a few Newton steps where widths differ.

    Attributes:
        width: N_l, ``*b x L``, in float64 from :meth:`of`.

    Reference: THEORY.md, eqs. (2) and (7).

    Example:
        >>> import torch
        >>> chain = ScalarChain.of([20.0, 30.0])
        >>> q = chain.at_log_scale(torch.tensor(1.0, dtype=torch.float64)).order_parameter
        >>> bool(abs(chain.scale(q).log() - 1) < 1e-12), bool(abs(20 * (q[0] - 1) - 30 * (q[1] - 1)) < 1e-12)
        (True, True)
    """

    width: Tensor

    @classmethod
    def of(cls, width: float | Sequence[float] | Tensor, device: torch.device | None = None) -> ScalarChain:
        """Return the chain of checked widths, in float64.

        Raises:
            ValueError: A width that is NaN or not positive.
        """
        return cls(as_width(width, torch.float64).to(device))

    # Shape, parametrization, prior --------------------------------------------------------------------------------

    @property
    def num_layers(self) -> int:
        """Number L of hidden layers."""
        return self.width.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape ``*b``."""
        return self.width.shape[:-1]

    @property
    def finite(self) -> Tensor:
        """Which layers have finite width, ``*b x L``."""
        return torch.isfinite(self.width)

    def initial_raw(self) -> Tensor:
        """Return the raw parameter at q = 1 in torch's default dtype, ``*b x 1 x L``."""
        return torch.zeros(*self.batch_shape, 1, self.num_layers)

    def constraint(self) -> Any:
        """Return the constraint of the parameter: positive, on a log scale."""
        return Positive(transform=torch.exp, inv_transform=torch.log)

    def prior(self) -> OrderParameterPrior:
        """Return the prior that makes maximum a posteriori the saddle point; it keeps the widths as its buffer."""
        return OrderParameterPrior(self.width)

    @staticmethod
    def pinned(order_parameter: Tensor, width: Tensor) -> Tensor:
        """Return the order parameters with one in place of those of infinite layers."""
        return torch.where(torch.isinf(width), torch.ones_like(order_parameter), order_parameter)

    def at_scale(self, value: float | Tensor, like: Tensor) -> Tensor:
        """Return order parameters ``*b x L`` that are one but for the last, which every kernel is proportional to."""
        order_parameter = torch.ones_like(self.width, dtype=like.dtype, device=like.device)
        value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        batch = torch.broadcast_shapes(order_parameter.shape[:-1], value.shape)
        order_parameter = order_parameter.expand(*batch, -1).clone()
        order_parameter[..., -1] = value
        return order_parameter

    # How layers combine -------------------------------------------------------------------------------------------

    @staticmethod
    def scale(order_parameter: Tensor) -> Tensor:
        """Return r = prod_l q_l, ``*b``."""
        return order_parameter.prod(-1)

    def action(self, log_order_parameter: Tensor) -> Tensor:
        """Return sum_l N_l (q_l - log q_l - 1) at t_l = log q_l, ``*b``; infinite layers give zero."""
        finite = self.finite
        excess = exponential_excess(log_order_parameter)
        return torch.where(finite, torch.where(finite, self.width, 0.0) * excess, 0.0).sum(-1)

    def at_log_scale(self, u: Tensor) -> StationaryLayers:
        """Return the stationary layers at u = log r: N_l (q_l - 1) = mu for all l, and sum_l log q_l = u.

        Args:
            u: ``*b``, or ``*b x G`` for G values in each problem.
        """
        width = self.width if u.dim() == self.width.dim() - 1 else self.width.unsqueeze(-2)
        narrowest = width.amin(dim=-1)
        same = width == narrowest.unsqueeze(-1)
        narrowest = narrowest.clamp_max(_INFINITE)
        if self.num_layers == 1 or bool(same.all()):
            t = u / self.num_layers
            logs = t.unsqueeze(-1).expand(*t.shape, self.num_layers)
            return StationaryLayers(logs, narrowest * torch.expm1(t), narrowest * torch.exp(t) / self.num_layers)
        # N_min / N_l; zero for an infinite layer beside finite ones, one for those that are equal.
        ratio = torch.where(same, torch.ones_like(width), narrowest.unsqueeze(-1) / width)
        # Newton for t = log q of the narrowest layer on a convex increasing function, from the right: monotone.
        t = torch.where(u > 0, u, u / self.num_layers)
        for _ in range(_NEWTON):
            logs, slope = _layers(t, ratio)
            step = (logs.sum(-1) - u) / slope
            t = t - step
            if bool((step.square() <= 4e-16 * (1.0 + t.abs())).all()):  # half of it is left: f'' <= f'
                break
        logs, slope = _layers(t, ratio)
        return StationaryLayers(logs, narrowest * torch.expm1(t), narrowest * torch.exp(t) / slope)

    def moved(self, u: Tensor, shift: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu, ``*b``, and q_l, ``*b x L``, at u + shift and at other widths, right to first order in both.

        For derivatives: at a shift of zero and at this chain's widths the values are those of :meth:`at_log_scale`.

        Args:
            u: ``*b``.
            shift: Small, ``*b``.
            width: Near this chain's, ``*b x L``.
        """
        layers, finite = self.at_log_scale(u), self.finite
        number = torch.where(finite, self.width, 1.0)
        wider = torch.where(finite, (width - self.width) / number.square(), 0.0)
        opened = (wider / layers.order_parameter).sum(-1)
        pull = layers.pull + layers.stiffness * (shift + layers.pull * opened)
        change = torch.where(finite, (pull - layers.pull).unsqueeze(-1) / number, 0.0)
        return pull, layers.order_parameter + change - layers.pull.unsqueeze(-1) * wider


@dataclass(frozen=True)
class StationaryLayers:
    """The layers of a chain at a given u = log r.

    Attributes:
        log_order_parameter: log q_l, ``... x L``.
        pull: mu, the common value of N_l (q_l - 1): half of the chain's action has this slope in u.
        stiffness: d mu / du.

    Example:
        >>> import torch
        >>> layers = ScalarChain.of(50.0).at_log_scale(torch.zeros((), dtype=torch.float64))
        >>> layers.pull.item(), layers.stiffness.item()
        (0.0, 50.0)
    """

    log_order_parameter: Tensor
    pull: Tensor
    stiffness: Tensor

    @property
    def order_parameter(self) -> Tensor:
        """q_l, ``... x L``."""
        return torch.exp(self.log_order_parameter)


def _layers(t: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Return log q_l and d(sum_l log q_l)/dt where t = log q of the narrowest layer."""
    t, narrowest = t.unsqueeze(-1), ratio == 1.0
    raised = ratio * torch.exp(t)
    value = (1.0 - ratio) + raised
    # Close to one the excess is exact, far below zero what is left of one; the narrowest layers' log is t itself.
    logs = torch.where(t < -1.0, value.log(), torch.log1p(ratio * torch.expm1(t)))
    return torch.where(narrowest, t, logs), torch.where(narrowest, 1.0, raised / value).sum(-1)
