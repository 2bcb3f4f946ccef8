"""The No-U-Turn sampler of Pyro on the posterior of a finite network; needs pyro-ppl (``pip install pyro-ppl``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.infer.mcmc import NUTS
from torch import Tensor

from .networks.sampler import Sampler, SamplerStatistics
from .networks.targets import Target

__all__ = ["NoUTurnSampler"]


class NoUTurnSampler(Sampler):
    r"""Pyro's No-U-Turn sampler over the same energy U as :class:`HamiltonianMonteCarlo`.

    An independent implementation to check against: it adapts step size, diagonal mass matrix and the length of every
    trajectory. Chains are moved one after the other, so it is slower by about the number of chains; it does not report
    divergences or acceptance. Pyro draws from torch's global generator, which is seeded from the run's ``seed`` and
    restored afterwards.

    Args:
        integrate_readout: Whether the readout is integrated out (:class:`MarginalTarget`) or sampled
            (:class:`JointTarget`).
        kwargs: For ``pyro.infer.mcmc.NUTS``: ``target_accept_prob``, ``max_tree_depth``, ...

    Reference: Hoffman and Gelman, JMLR 15, 1593 (2014); Bingham et al., JMLR 20, 28 (2019).

    Example:
        >>> import torch
        >>> from torch_propkernel import Identity
        >>> from torch_propkernel.networks import FiniteNetwork, sample_posterior
        >>> from torch_propkernel.pyro_support import NoUTurnSampler
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> network = FiniteNetwork(Identity(), 1, 1, dtype=torch.float64)
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")   # far too few draws
        ...     result = sample_posterior(network, x, x[:, 0], 1.0, sampler=NoUTurnSampler(), num_chains=2,
        ...                               num_samples=10, warmup=10)
        >>> result.converged, result.training_error.mean.shape
        (False, torch.Size([]))
    """

    def __init__(self, *, integrate_readout: bool = True, **kwargs: Any) -> None:
        """Store the settings."""
        self.integrate_readout = integrate_readout
        self._settings = kwargs

    def iterate(
        self,
        target: Target,
        state: Tensor,
        warmup: int,
        generator: torch.Generator | None,
        statistics: SamplerStatistics,
    ) -> Iterator[Tensor]:
        """Yield one state after another."""

        def energy(values: dict[str, Tensor]) -> Tensor:
            return _Energy.apply(values["state"], target)

        seed = int(torch.randint(2**31, (), generator=generator, device=state.device))
        devices = [state.device] if state.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            kernels = [self._start(energy, row, warmup) for row in state]
            rng = torch.get_rng_state()
        while True:
            with torch.random.fork_rng(devices):
                torch.set_rng_state(rng)
                moved = [kernel.sample(kernel.initial_params) for kernel in kernels]
                rng = torch.get_rng_state()
            for kernel, values in zip(kernels, moved, strict=True):
                kernel.initial_params = values
            statistics.step_size = float(kernels[0].step_size)
            statistics.num_transitions += len(kernels)
            yield torch.stack([values["state"].detach() for values in moved])

    def _start(self, energy: Any, row: Tensor, warmup: int) -> NUTS:
        """Return a kernel for one chain."""
        kernel = NUTS(potential_fn=energy, **self._settings)
        kernel.initial_params = {"state": row}
        kernel.setup(warmup)
        return kernel


class _Energy(torch.autograd.Function):
    """U of one state with its own gradient."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, target: Target) -> Tensor:
        """Return U and keep its gradient."""
        value, gradient = target.potential(state.unsqueeze(0))
        ctx.save_for_backward(gradient.squeeze(0))
        return value.squeeze(0)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        """Return the gradient."""
        return outer[0] * ctx.saved_tensors[0], None
