"""The 1/N expansion of the posterior: around infinite width, or what the saddle point leaves out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..actions.first_order import FirstOrderTerms, Terms, draw_pre_activations, first_order_terms
from ..activations import Identity
from ..inference import Conditioned, DenseConditioned, KernelNode, Problem
from ..inference.last_layer import last_layer
from .base import FittedTheory, Theory
from .solve import solve_problem


class FirstOrder(Theory):
    r"""The posterior to first order in 1/N: a Gaussian process and the fourth cumulant of the last layer's units.

    .. math:: \log Z(j) = \log Z_{GP}(j) + \frac{1}{8N} \big\{E_w[B^4 - 6 g B^2 + 3 g^2] - \Pi(j)\big\} + O(N^{-2})

    The expansion around q = 1, exact to this order for one hidden layer, any activation (also with a nonzero mean) and
    any data; for identity activations in closed form, for any depth. It is good where P/N and the correction are small:
    alpha below about 0.1, or the wider the colder. Beyond it fails: where ``stats["relative_correction"]`` is above
    one, ``stats["converged"]`` is False and ``message`` says so. :class:`CorrectedSaddle` expands around the
    saddle point.

    With several layers the last layer's units are exact; of the lower ones only the fluctuation of their scale is kept
    (that of the outer composition), so the order 1/N is incomplete there but for linear networks. Corrected variances
    are cut at zero. ``order_parameters["q"]`` is 1 + (a^T K a - tr A^{-1} K)/N, ``*b x L``; ``readout_norm`` is q_L.
    ``log_evidence`` is that of the GP plus the correction; ``stats`` has ``log_evidence_correction`` with its Monte
    Carlo ``standard_error``, and ``relative_correction``, the root mean square change of the fit at the training points
    over the GP's standard deviation there. ``conditioned.correction(x)`` gives corrections with their errors.
    There is no leave-one-out.

    Units are drawn with a generator of their own. Cost: ``eigh`` of (P + m) points for each call with m points, and
    M P (P + m) for M units.

    Args:
        num_units: M. Monte Carlo errors of the corrections fall as 1/sqrt(M) and grow with q and P/N.
        seed: Seed of the units.

    Raises:
        TypeError: The model's covariance is not one network's.
        ValueError: A readout bias (a ConstantKernel that is added), batches of models.

    Reference: Baglioni et al. (2024), arXiv:2401.11004, have such corrections for linear networks; derived here for any
    activation; THEORY.md, eq. (2b).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.activations import Identity
        >>> from torch_propkernel.theories import FirstOrder, Mixture
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=1000)
        >>> x = torch.tensor([[1.0, 0.2], [0.3, -1.0], [0.5, 0.5]])
        >>> model = NetworkGP(x, 3 * x[:, 0], gpytorch.likelihoods.GaussianLikelihood(), kernel).double()
        >>> first, exact = FirstOrder().fit(model).predict(x.double()), Mixture().fit(model).predict(x.double())
        >>> bool((first[1] - exact[1]).abs().max() < 3e-5)   # corrections are about 1e-3, the next order 1e-5
        True
    """

    name = "first_order"
    has_leave_one_out = False
    _counts_pairing = True
    """Whether the Gaussian pairing Pi/8 of the layers is part of the correction: the saddle point has it already."""

    def __init__(self, num_units: int = 16384, seed: int = 0) -> None:
        """Store the options."""
        if num_units < 2:
            raise ValueError(f"num_units: expected at least 2, got {num_units}")
        self.num_units = num_units
        self.seed = seed

    def _expansion_point(self, problem: Problem) -> tuple[Tensor, str]:
        message = "The expansion in 1/N around infinite width; nothing was solved."
        return torch.ones_like(problem.network.width.squeeze(-2)), message

    def _check(self, problem: Problem) -> None:
        kernel = problem.network
        if problem.targets.dim() > 1 or kernel.width.numel() != kernel.width.shape[-1]:
            raise ValueError(f"model: expected one problem, got a batch of shape {tuple(problem.targets.shape[:-1])}")
        bias = last_layer(problem, problem.inputs[..., :1, :]).bias_variance  # refuses models of unknown units
        if bool((bias != 0).any()):
            raise ValueError(
                f"covar_module: {self!r} expected no ConstantKernel, got a readout bias of variance {bias.tolist()}; "
                "subtract a mean from the targets, or use theory='adaptive' or 'sampled'"
            )

    def _fit(self, problem: Problem) -> FittedTheory:
        kernel = problem.network
        q, message = self._expansion_point(problem)
        conditioned = FirstOrderCorrected(self, problem, q)
        terms, error = conditioned.correction(problem.inputs)
        values, evidence = q, None
        if self._counts_pairing:
            (weights,), (precision,) = (v.unbind(-2) for v in conditioned.process.left_out_terms())
            noise = problem.noise_diagonal()
            trace = (1.0 - noise * precision).sum(-1)
            fit = problem.residuals() - noise * weights
            values = 1.0 + ((weights * fit).sum(-1) - trace) / kernel.width.squeeze(-2)
            evidence = conditioned.process.log_likelihoods().squeeze(-1) + terms.log_evidence
        spread = conditioned.process.predict(problem.inputs)[1]
        change = (terms.mean.square() + terms.variance.abs()).mean(-1) / spread.mean(-1)
        stats = {
            "log_evidence_correction": terms.log_evidence,
            "standard_error": error.log_evidence,
            "relative_correction": change.sqrt(),
            "converged": not bool((change > 1.0).any()),
        }
        if not stats["converged"]:
            message = (
                f"Not an expansion: the correction is {float(change.sqrt().max()):.3g} times the spread of the fit "
                "that it corrects, expected well below one. Use theory='adaptive' or 'sampled', or a larger width. "
                + message
            )
        return FittedTheory(self, problem, conditioned, {"q": values}, values[..., -1], message, stats, evidence)


class CorrectedSaddle(FirstOrder):
    """The saddle point's prediction plus what its Gaussian unit leaves out, 3 Pi in place of Pi, at A(q*).

    An estimate of the saddle point's error that lives at P/N of order one, where the expansion around infinite width
    (:class:`FirstOrder`, which documents the arguments) is of no use. It leaves out the shift of q that the same term
    causes, and the fluctuation of q (:class:`Mixture` has that). It has no evidence.

    Args:
        num_units: As for :class:`FirstOrder`.
        seed: As for :class:`FirstOrder`.

    Reference: THEORY.md, eq. (2b).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.activations import Identity
        >>> from torch_propkernel.theories import CorrectedSaddle, SaddlePoint
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> model = NetworkGP(torch.eye(3), torch.ones(3), likelihood, RenormalizedNNGPKernel(Identity(), width=9))
        >>> one, two = (theory.fit(model).order_parameters["q"] for theory in (CorrectedSaddle(), SaddlePoint()))
        >>> torch.allclose(one, two.to(one))   # q is the saddle point's
        True
    """

    name = "corrected_saddle"
    _counts_pairing = False

    def _expansion_point(self, problem: Problem) -> tuple[Tensor, str]:
        solution = solve_problem(problem).raise_if_failed()
        return solution.order_parameter.to(problem.network.width), solution.message


class FirstOrderCorrected(Conditioned):
    """A conditioned process with the corrections of order 1/N.

    Args:
        theory: Its options.
        problem: The problem.
        expansion_point: q of the process that is corrected, ``*b x L``.
    """

    def __init__(self, theory: FirstOrder, problem: Problem, expansion_point: Tensor) -> None:
        """Condition the Gaussian process that is corrected."""
        super().__init__(problem)
        self.theory = theory
        self.expansion_point = expansion_point
        self.process = DenseConditioned(problem, [KernelNode(problem, expansion_point)])

    @torch.no_grad()
    def correction(self, x: Tensor) -> tuple[Terms, Terms]:
        """Return the corrections of means, variances ``m`` and of log p(y) at ``x``, and their Monte Carlo errors.

        Args:
            x: Points as the model's kernel takes them, ``m x d``; in the model's units.
        """
        terms, width = self._terms(x), self.problem.layers.width
        inverse, all_layers = 1.0 / width[..., -1], (1.0 / width).sum(-1)
        total = terms.non_gaussian.map(lambda value: value * inverse)
        if self.theory._counts_pairing:
            total = Terms(*(a + all_layers * b for a, b in zip(total, terms.gaussian, strict=True)))
        return total, terms.standard_error.map(lambda value: value * inverse)

    def _terms(self, x: Tensor) -> FirstOrderTerms:
        problem, theory, q = self.problem, self.theory, self.expansion_point
        joint = torch.cat([problem.inputs, x], dim=-2)
        size = problem.num_data
        covariance = problem.prior(joint, q).covariance_matrix.double()
        units = None
        if not isinstance(problem.network.activation, Identity):
            layer = last_layer(problem, joint)
            h, _ = draw_pre_activations(layer.covariance.double(), theory.num_units, theory.seed)
            units = (layer.scale.double() * problem.layers.scale(q).double()).sqrt() * layer.activation(h)
        return first_order_terms(
            covariance[:size, :size],
            covariance[:size, size:],
            covariance.diagonal()[size:],
            self.process.factors[0].double(),
            problem.residuals().double(),
            units,
        )

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return the corrected mean and variance."""
        if joint:
            raise ValueError("joint: expected False, got True; the expansion gives marginals only")
        means, variances = self.process.moments(x)
        terms, _ = self.correction(x)
        mean, variance = (v.to(means.dtype).unsqueeze(-2) for v in (terms.mean, terms.variance))
        return means + mean, (variances + variance).clamp_min(0.0)

    def left_out_terms(self) -> tuple[Tensor, Tensor]:
        """Refuse: the corrected process has no closed leave-one-out."""
        raise ValueError(f"theory: expected one with leave-one-out errors (saddle, mixture), got {self.theory.name!r}")

    def training_error(self) -> Tensor:
        """Return E (1/P) sum (y - f)^2 of the corrected posterior, in the user's units."""
        mean, variance = self.predict(self.problem.inputs)
        return self.problem.units.mean_variance(((self.problem.targets - mean).square() + variance).mean(-1))
