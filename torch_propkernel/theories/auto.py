"""The cheapest description of a network that can be trusted: saddle point, adaptive theory, or the sampled network."""

from __future__ import annotations

import math
from collections.abc import Callable

from .._validation import positive_number
from ..activations import ReLU
from ..exceptions import ConvergenceError
from ..inference import Problem
from .adaptive import Adaptive
from .base import FittedTheory, Theory
from .gated import Gated
from .infinite_width import InfiniteWidth
from .saddle_point import SaddlePoint
from .sampled import Sampled

AGREE = 0.05
"""Relative difference of the errors of saddle and adaptive theory up to which the saddle is trusted."""


class Auto(Theory):
    r"""The cheapest trustworthy description of a network of given width: what would this network predict?

    - infinite width: :class:`InfiniteWidth`;
    - one hidden layer: :class:`SaddlePoint` where its leave-one-out error and its training error are within 5 % of
      those of :class:`Adaptive`, which learns features; else :class:`Adaptive` where it converged, reached its
      tolerance and its variance is to be trusted; else :class:`Sampled`;
    - two relu layers without biases: :class:`Gated`;
    - other networks: :class:`Sampled`; :class:`Adaptive` describes them too, but nothing in the training data tells
      where the features of lower layers are missed.

    The result is that theory's own :class:`FittedTheory`; ``fitted.theory`` and ``fitted.message`` say which it is and
    why, ``stats["considered"]`` has the leave-one-out and training errors that were compared. On 27 sampled networks
    this caught 10 of 11 saddles that were off by more than 5 %, with 4 alarms at the 16 others. For the best predictor
    of a data set, where width and temperature are to be found, see :func:`~torch_propkernel.tuning.fit_predictor`.

    Args:
        seed: Of all random numbers.
        time_limit: Seconds for the adaptive theory's refinement; None for none.
        progress: Called with (done, total) by the adaptive theory and the chains.

    Raises:
        TypeError, ValueError: A model that none of them describes.

    Reference: THEORY.md, sections 7 to 10.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> x = torch.randn(20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> kernel, likelihood = RenormalizedNNGPKernel("erf", width=1000), gpytorch.likelihoods.GaussianLikelihood()
        >>> Auto().fit(NetworkGP(x, x[:, 0], likelihood, kernel).double()).theory   # wide: the saddle is safe
        SaddlePoint()
    """

    name = "auto"

    def __init__(
        self,
        seed: int = 0,
        time_limit: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Store the options."""
        self.seed = seed
        self.time_limit = None if time_limit is None else positive_number("time_limit", time_limit)
        self.progress = progress

    def _fit(self, problem: Problem) -> FittedTheory:
        kernel = problem.network
        if bool((kernel.width == math.inf).all()):
            return _explained(InfiniteWidth().fit(problem), "the width is infinite")
        if kernel.depth == 1:
            return self._one_layer(problem)
        if kernel.depth == 2 and isinstance(kernel.activation, ReLU) and not bool((kernel.bias_variance != 0).any()):
            try:
                return _explained(Gated().fit(problem), "for two relu layers without biases it describes networks best")
            except (ConvergenceError, ValueError) as error:
                return _explained(self._sampled().fit(problem), f"the gated theory does not apply ({error})")
        return _explained(self._sampled().fit(problem), "for this depth no theory can be trusted unseen")

    def _sampled(self) -> Sampled:
        return Sampled(seed=self.seed, progress=self.progress)

    def _one_layer(self, problem: Problem) -> FittedTheory:
        theory = Adaptive(seed=self.seed, time_limit=self.time_limit, progress=self.progress)
        theory._check(problem)
        saddle = SaddlePoint().fit(problem)
        considered = {"saddle": _errors(saddle)}
        try:
            adaptive = theory.fit(problem)
        except ConvergenceError as error:
            return _explained(self._sampled().fit(problem), f"the adaptive theory failed ({error})", considered)
        considered["adaptive"] = _errors(adaptive)
        pairs = zip(considered["adaptive"], considered["saddle"], strict=True)
        gap = max((learned / rescaled - 1.0 for learned, rescaled in pairs), key=abs)
        if not adaptive.stats["converged"]:
            return _explained(self._sampled().fit(problem), "the adaptive theory did not converge", considered)
        if abs(gap) <= AGREE:
            return _explained(saddle, f"its errors are within {abs(gap):.1%} of the adaptive ones", considered)
        if not adaptive.stats["tolerance_reached"]:
            noise = adaptive.stats["monte_carlo_error"]
            why = f"the adaptive theory's units are too few for its tolerance (Monte Carlo error {noise:.1%})"
            return _explained(self._sampled().fit(problem), why, considered)
        if adaptive.stats["variance_trusted"]:
            return _explained(adaptive, f"the network learns features: errors change by {gap:+.1%}", considered)
        why = "units specialize, and the variance of the adaptive theory is not to be trusted"
        return _explained(self._sampled().fit(problem), why, considered)


def _errors(fitted: FittedTheory) -> tuple[float, float]:
    """Leave-one-out and training error."""
    return float(fitted.leave_one_out().mean_total), float(fitted.training_error())


def _explained(
    fitted: FittedTheory, why: str, considered: dict[str, tuple[float, float]] | None = None
) -> FittedTheory:
    fitted.message = f"{fitted.theory.name}, since {why}. {fitted.message}"
    if considered is not None:
        fitted.stats["considered"] = considered
    return fitted
