"""The saddle point of the effective action, with the kernel's own composition."""

from __future__ import annotations

from functools import cached_property, partial

from torch import Tensor

from ..actions.evidence import laplace_evidence
from ..inference import BlocksProblem, OutputsProblem, Problem
from ..reliability import Reliability
from ..reliability.score import assess
from .base import FittedTheory, Theory
from .outputs import FittedOutputs, fit_at
from .solve import solve_problem
from .solve_matrices import evidence_of_blocks, solve_blocks, solve_outputs


class SaddlePoint(Theory):
    r"""One order parameter for each hidden layer at the minimum of the effective action: the paper's theory.

    .. math:: S(q) = \sum_l \frac{N_l}{N_L} (q_l - \log q_l) + \frac1{N_L} [\log\det A + y^T A^{-1} y], \quad
              A = T 1 + K_R(q)

    K_R is the one of the kernel's ``composition``. ``order_parameters["q"]`` has q_1, ..., q_L, ``*b x L``;
    ``readout_norm`` is q_L. What :func:`fit_order_parameters` does, behind the interface of all theories; ``stats``
    and ``message`` are its solution's, ``stats["solution"]`` is the whole of it. ``log_evidence`` is Laplace's where
    the problem has one dimension, else None. It does not warn: look at ``reliability``, which is computed when it is
    read.

    A kernel with matrices (:class:`MultitaskRenormalizedKernel`, :class:`BlockRenormalizedKernel`) has them in
    ``order_parameters["E"]``, their product or the covariance of the blocks in ``["Q"]``. Of blocks, ``readout_norm``
    is tr E / r, the posterior mean of the mean squared readout weight. ``log_evidence`` is Laplace's in the matrices;
    None where a layer has fewer units than outputs or blocks, where the minimum is degenerate, and of blocks that do
    not fit into memory, since it takes a pass over them for each entry of the matrices; of blocks it is computed when
    it is first read. The score of the reliability
    is that of one output's units: of matrices ``reliability`` has only what is known of data and widths.

    Raises:
        ConvergenceError: The solve did not converge.

    Reference: Pacelli et al. (2023), arXiv:2209.04882, results (i) and (ii); THEORY.md, eqs. (2), (6), (7), (8b),
    (20), (23).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Erf, NetworkGP, RenormalizedNNGPKernel, fit_order_parameters
        >>> kernel = RenormalizedNNGPKernel(Erf(), width=10)
        >>> model = NetworkGP(torch.eye(3), torch.ones(3), gpytorch.likelihoods.GaussianLikelihood(), kernel)
        >>> fitted = SaddlePoint().fit(model)
        >>> kernel.order_parameter.item()   # the model is not changed
        1.0
        >>> torch.equal(fitted.order_parameters["q"], fit_order_parameters(model, warn=False).order_parameter)
        True
    """

    name = "saddle"
    has_outputs = True
    has_blocks = True
    has_streaming = True

    def _fit(self, problem: Problem) -> FittedTheory:
        if isinstance(problem, OutputsProblem):
            return self._fit_outputs(problem)
        if isinstance(problem, BlocksProblem):
            return self._fit_blocks(problem)
        solution = solve_problem(problem).raise_if_failed()
        q = solution.order_parameter
        evidence = None
        if problem.network.is_scalar:
            evidence = laplace_evidence(problem.spectrum(), problem.layers.width, problem.scale_temperature())
        return FittedSaddlePoint(
            self,
            problem,
            problem.conditioned(q),
            {"q": q},
            q[..., -1],
            solution.message,
            solution.stats | {"solution": solution},
            evidence,
        )

    def _fit_outputs(self, problem: OutputsProblem) -> FittedTheory:
        found = solve_outputs(problem, evidence=True).raise_if_failed()
        stats, order_parameter = found.stats | {"solution": found}, found.order_parameter.to(problem.targets)
        evidence = _if_it_exists(found.log_evidence)
        return fit_at(self, problem, order_parameter, found.message, stats, evidence, FittedSaddleOutputs)

    def _fit_blocks(self, problem: BlocksProblem) -> FittedTheory:
        found, noisy = solve_blocks(problem)
        found.raise_if_failed()
        order_parameter = found.order_parameter.to(problem.targets)
        chain, values = problem.block_kernel.chain, problem.values(order_parameter)
        norm = chain.matrices(order_parameter)[-1].diagonal().mean()
        conditioned = problem.conditioned(order_parameter, noisy().to(problem.targets))
        stats = found.stats | {"solution": found}
        evidence = partial(_block_evidence, problem, found.order_parameter)
        return FittedSaddlePoint(self, problem, conditioned, values, norm, found.message, stats, evidence)


def _block_evidence(problem: BlocksProblem, order_parameter: Tensor) -> Tensor | None:
    return _if_it_exists(evidence_of_blocks(problem, order_parameter))


def _if_it_exists(evidence: Tensor | None) -> Tensor | None:
    """Return log p(y) of one problem; None where it is NaN, since it does not exist."""
    return None if evidence is None or bool(evidence.isnan().any()) else evidence


class FittedSaddlePoint(FittedTheory):
    """The saddle point at a model's training data; it also has a reliability."""

    @cached_property
    def reliability(self) -> Reliability | None:
        """How far the prediction may be off, from the training data alone; of matrices only what is known of them."""
        return assess(self.problem, self.stats["solution"])


class FittedSaddleOutputs(FittedSaddlePoint, FittedOutputs):
    """The saddle point of several outputs."""
