"""The effective action of the outer composition: a function of one variable, the log of r = prod_l q_l."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 2**16

_INFINITE = 1e300
"""Stands for the narrowest width where all are infinite: the slope 1e300 u then pins u at zero to rounding."""


class OuterAction:
    r"""Many one-dimensional saddle-point problems at once, in u = log r with r = prod_l q_l.

    At fixed r the layers' parts are stationary where N_l (q_l - 1) = mu for all layers l, so that

    .. math:: N_L S(u) = \sum_l N_l (q_l - \log q_l) + \sum_i \Big[\log(T + r k_i) + \frac{z_i^2}{T + r k_i}\Big],
    \qquad
              N_L \frac{dS}{du} = \mu(u) + g(u), \quad g = \sum_i \frac{x_i}{1 + x_i} -
              \frac{z_i^2}{T}\frac{x_i}{(1+x_i)^2},

    with :math:`x_i = r k_i / T`. At T = 0, :math:`g = P - b/r` with :math:`b = \sum_i z_i^2/k_i`.
    (THEORY.md, section 1 for one layer, section 4, eq. (7), for several.)

    Args:
        eigenvalues: k, ``n x P`` or ``1 x P`` (one spectrum shared by all problems), non-negative.
        squared_projections: z^2 of the same shape.
        width: ``n x L``, may hold infinities.
        temperature: ``n``; all positive or all zero.
    """

    def __init__(self, eigenvalues: Tensor, squared_projections: Tensor, width: Tensor, temperature: Tensor) -> None:
        """Store the problems."""
        self.eigenvalues = eigenvalues
        self.squared_projections = squared_projections
        self.width = width
        self.temperature = temperature
        self.zero_temperature = bool((temperature == 0).any())

    @property
    def num_problems(self) -> int:
        """Number n of problems."""
        return self.width.shape[0]

    @property
    def num_data(self) -> int:
        """Number P of eigenvalues."""
        return self.eigenvalues.shape[-1]

    def select(self, index: Tensor) -> OuterAction:
        """Return the problems at ``index`` (with repetitions), sharing a common spectrum."""
        shared = self.eigenvalues.shape[0] == 1
        return OuterAction(
            self.eigenvalues if shared else self.eigenvalues[index],
            self.squared_projections if shared else self.squared_projections[index],
            self.width[index],
            self.temperature[index],
        )

    # The layers' part -------------------------------------------------------------------------------------------------

    def log_order_parameters(self, u: Tensor) -> Tensor:
        """Return t_l = log q_l, ``... x L``, that solve N_l (q_l - 1) = mu and sum_l t_l = u."""
        return self._layers(u)[0]

    def _layers(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log q_l, mu and dmu/du at u of shape ``n`` or ``n x G``."""
        width = self.width if u.dim() == 1 else self.width.unsqueeze(-2)
        narrowest = width.amin(dim=-1)
        # N_min / N_l; zero for an infinite layer beside finite ones, one where all are equal (also all infinite).
        ratio = torch.where(width == narrowest.unsqueeze(-1), torch.ones_like(width), narrowest.unsqueeze(-1) / width)
        narrowest = narrowest.clamp_max(_INFINITE)
        num_layers = width.shape[-1]
        equal = bool((ratio == 1.0).all())
        # Newton for t = log q of the narrowest layer on a convex increasing function, from the right: monotone.
        t = u / num_layers if equal else torch.where(u > 0, u, u / num_layers)
        for _ in range(0 if equal else 60):
            grown = ratio * torch.expm1(t).unsqueeze(-1)
            slope = (ratio * torch.exp(t).unsqueeze(-1) / (1.0 + grown)).sum(-1)
            logs = torch.where(ratio == 1.0, t.unsqueeze(-1), torch.log1p(grown))
            step = (logs.sum(-1) - u) / slope
            t = t - step
            if bool((step.abs() <= 4e-16 * (1.0 + t.abs())).all()):
                break
        grown = ratio * torch.expm1(t).unsqueeze(-1)
        slope = (ratio * torch.exp(t).unsqueeze(-1) / (1.0 + grown)).sum(-1)
        # The narrowest layers' log is t itself: log1p(expm1(t)) loses it for t far below zero.
        logs = torch.where(ratio == 1.0, t.unsqueeze(-1), torch.log1p(grown))
        return logs, narrowest * torch.expm1(t), narrowest * torch.exp(t) / slope

    # The data's part --------------------------------------------------------------------------------------------------

    def data_terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return g and dg/du at u of shape ``n``."""
        if self.zero_temperature:
            label = (self.squared_projections / self.eigenvalues).sum(-1) * torch.exp(-u)
            return self.num_data - label, label
        h1, h2, d1, d2 = self._sums(torch.exp(u - self.temperature.log()))
        cold = 1.0 / self.temperature
        return h1 - h2 * cold, d1 - d2 * cold

    def tabulated_data_terms(self, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Return g and dg/du on a grid of log(r / T) common to all problems, ``n x G`` each.

        g depends on r and T only through r / T, up to the factor 1 / T of the label sum.
        """
        ratio = torch.exp(log_ratio)
        tables = [
            OuterAction(k, z2, self.width, self.temperature)._sums(ratio)
            for k, z2 in zip(self.eigenvalues.split(1), self.squared_projections.split(1), strict=True)
        ]
        h1, h2, d1, d2 = (torch.stack(columns) for columns in zip(*tables, strict=True))
        cold = 1.0 / self.temperature.unsqueeze(-1)
        return h1 - h2 * cold, d1 - d2 * cold

    def _sums(self, ratio: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums over the spectrum at r / T of shape ``n``, in blocks that stay in a core's cache.

        With x = k r / T: sum of x/(1+x), z^2 x/(1+x)^2, and their derivatives with respect to log r.
        """
        shared = self.eigenvalues.shape[0] == 1
        block = max(1, _BLOCK // self.num_data)
        sums: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for start in range(0, len(ratio), block):
            rows = slice(None) if shared else slice(start, start + block)
            x = ratio[start : start + block, None] * self.eigenvalues[rows]
            inverse = (1.0 + x).reciprocal_()
            filled = x.mul_(inverse)  # x / (1 + x)
            occupied = inverse.mul_(filled)  # x / (1 + x)^2
            h1, d1 = filled.sum(-1), occupied.sum(-1)
            bent = filled.mul_(occupied)
            if shared:
                weights = self.squared_projections[0]
                h2, curved = occupied @ weights, bent @ weights
            else:
                weights = self.squared_projections[rows]
                h2, curved = (occupied * weights).sum(-1), (bent * weights).sum(-1)
            sums.append((h1, h2, d1, h2 - 2.0 * curved))
        h1, h2, d1, d2 = (torch.cat(columns) for columns in zip(*sums, strict=True))
        return h1, h2, d1, d2

    def slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return N_L dS/du and its derivative at u of shape ``n``."""
        _, mu, d_mu = self._layers(u)
        g, d_g = self.data_terms(u)
        return mu + g, d_mu + d_g

    def slope_scale(self, u: Tensor) -> Tensor:
        """Return the size of the terms of N_L dS/du at u of shape ``n``, against which a residual is judged."""
        narrowest = self.width.amin(dim=-1).clamp_max(_INFINITE)
        return self.num_data + narrowest * (1.0 + torch.exp(self.log_order_parameters(u)).amax(-1))

    def data_action(self, u: Tensor) -> Tensor:
        """Return sum_i log(T + r k_i) + z_i^2 / (T + r k_i) at u of shape ``n``."""
        shared = self.eigenvalues.shape[0] == 1
        block = max(1, _BLOCK // self.num_data)
        sums = []
        for start in range(0, len(u), block):
            part = slice(start, start + block)
            rows = slice(None) if shared else part
            spread = self.temperature[part, None] + torch.exp(u[part, None]) * self.eigenvalues[rows]
            sums.append((self.squared_projections[rows] / spread).add_(spread.log()).sum(-1))
        return torch.cat(sums)

    def layer_action(self, u: Tensor) -> Tensor:
        """Return sum_l N_l (q_l - log q_l - 1) at u of shape ``n``; infinite layers give zero."""
        logs = self.log_order_parameters(u)
        finite = torch.isfinite(self.width)
        excess = torch.where(logs.abs() < 1e-3, _expm1_minus(logs), torch.expm1(logs) - logs)
        return torch.where(finite, torch.where(finite, self.width, 0.0) * excess, 0.0).sum(-1)

    def bracket(self) -> tuple[Tensor, Tensor]:
        """Return bounds of u that hold every stationary point (THEORY.md, section 1, "where the root is")."""
        if self.zero_temperature:
            label = (self.squared_projections / self.eigenvalues).sum(-1).expand(self.num_problems)
            balance = (label / self.num_data).clamp_min(1e-300).log()
            return balance.clamp_max(0.0) - 1e-9, balance.clamp_min(0.0) + 1e-9
        log_temperature = self.temperature.log()
        squares = self.squared_projections.sum(-1).expand(self.num_problems)
        mu_max = (squares.clamp_min(1e-300).log() - log_temperature).exp() / 4.0
        high = torch.log1p(mu_max.unsqueeze(-1) / self.width).sum(-1)
        trace = self.eigenvalues.sum(-1).expand(self.num_problems)
        per_width = trace.clamp_min(1e-300).log().sub(log_temperature).unsqueeze(-1) - self.width.log()
        low = -torch.nn.functional.softplus(per_width)
        room = 1.0 - self.num_data / self.width
        low = torch.maximum(low, torch.where(room > 0, room.clamp_min(1e-300).log(), low)).sum(-1)
        return low - 1e-9, high + 1e-9


def _expm1_minus(t: Tensor) -> Tensor:
    """e^t - 1 - t for small t, without cancellation."""
    return t * t * (0.5 + t * (1.0 / 6.0 + t * (1.0 / 24.0 + t * (1.0 / 120.0))))
