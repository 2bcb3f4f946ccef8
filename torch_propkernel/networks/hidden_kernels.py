"""The kernels of the hidden layers of sampled networks."""

from __future__ import annotations

import torch
from torch import Tensor

from .diagnostics import MonteCarloEstimate, estimate
from .finite_network import FiniteNetwork

_LARGEST = 2**24
"""Numbers of the draws of some rows of one kernel, at most."""


@torch.no_grad()
def measure_hidden_kernels(network: FiniteNetwork, hidden: Tensor, x: Tensor) -> list[MonteCarloEstimate]:
    r"""Return the posterior mean of the kernel of each hidden layer, from draws of the weights.

    .. math:: \hat K_l(x, x') = \frac{1}{N_l} \sum_i \sigma(h^l_i(x))\, \sigma(h^l_i(x'))

    What a network has learned shows here; at infinite width these are the kernels of the prior. No weight variance is
    multiplied in. Memory: the draws of some rows of one kernel (128 MiB) and the activations of all draws.

    Args:
        network: Its architecture and prior.
        hidden: Whitened hidden weights ``chains x draws x num_hidden``: ``SampledPosterior.hidden``, kept by
            ``sample_posterior(..., keep_weights=True)``.
        x: Inputs, ``n x d``.

    Returns:
        For each layer the estimate of an ``n x n`` matrix, with its Monte Carlo error.

    Raises:
        TypeError: No :class:`FiniteNetwork`.
        ValueError: ``hidden`` or ``x`` of the wrong shape, fewer than four draws.

    Reference: THEORY.md, section 13.

    Example:
        >>> import torch
        >>> from torch_propkernel.networks import FiniteNetwork, measure_hidden_kernels
        >>> network = FiniteNetwork("identity", input_dim=1, width=1)
        >>> hidden = torch.tensor([1.0, -1.0, 2.0, -2.0]).reshape(1, 4, 1)   # four draws of one weight
        >>> measure_hidden_kernels(network, hidden, torch.ones(1, 1))[0].mean.item()
        2.5
    """
    if not isinstance(network, FiniteNetwork):
        raise TypeError(f"network: expected a FiniteNetwork, got {type(network).__name__}")
    if hidden.dim() != 3 or hidden.shape[-1] != network.num_hidden:
        raise ValueError(f"hidden: expected shape (chains, draws, {network.num_hidden}), got {tuple(hidden.shape)}")
    if x.dim() != 2:
        raise ValueError(f"x: expected shape (n, {network.input_dim}), got {tuple(x.shape)}")
    rows = max(1, _LARGEST // (hidden.shape[:2].numel() * len(x)))
    return [
        _joined([estimate(part @ units.mT / units.shape[-1]) for part in units.split(rows, dim=-2)])
        for units in network.activations(x, hidden)
    ]


def _joined(parts: list[MonteCarloEstimate]) -> MonteCarloEstimate:
    """Put estimates of rows below each other."""
    names = "mean", "standard_error", "effective_sample_size", "r_hat"
    return MonteCarloEstimate(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
