"""No loop waits for an accelerator more often than it must: what would wait is counted on the CPU.

An accelerator computes what Python has asked for while Python goes on, until a number is read. So the products of a
data set past memory read nothing, iterations read once whether they are done, and neither the number of problems in a
batch nor that of points changes how often.
"""

from __future__ import annotations

import gpytorch
import pytest
import torch
from host_syncs import HostSyncs

from torch_propkernel import (
    NetworkGP,
    NNGPKernel,
    RenormalizedNNGPKernel,
    Spectrum,
    solve_order_parameters,
)
from torch_propkernel.actions.local_minimum import minimize
from torch_propkernel.activations.names import ACTIVATIONS
from torch_propkernel.kernels import COMPOSITIONS
from torch_propkernel.mixing import GammaMixing
from torch_propkernel.networks import (
    FiniteNetwork,
    HamiltonianMonteCarlo,
    JointTarget,
    LangevinDynamics,
    MarginalTarget,
    SamplerStatistics,
)
from torch_propkernel.numerics.gaussian_terms import log_det_and_square
from torch_propkernel.spectra import (
    KernelOperator,
    LanczosRun,
    conjugate_gradients,
    gauss_quadrature,
    radau_quadrature,
)
from torch_propkernel.theories import Mixture, SaddlePoint


def points(size, dimension=4):
    return torch.randn(size, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(size))


def counted(function):
    """Return what a function returns, and how often it would have waited."""
    with HostSyncs() as syncs:
        value = function()
    return value, syncs


def make_model(size):
    x = points(size)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    return NetworkGP(x, x[:, 0].sin(), likelihood, RenormalizedNNGPKernel("relu", width=20.0)).double()


class TestTheCounter:
    def test_it_counts_what_waits(self):
        x = torch.ones(3)
        for waits in (
            lambda: float(x[0]),
            lambda: bool((x > 0).all()),
            lambda: x[x > 0],
            lambda: x.nonzero(),
            lambda: x.tolist(),
        ):
            assert counted(waits)[1].total == 1
        x_of_mask = torch.zeros(3)

        def assign():
            x_of_mask[x > 0] = 1.0

        assert counted(assign)[1].total == 1
        assert counted(lambda: torch.where(x > 0, x, 0.0).sum() + x[torch.tensor([0])])[1].total == 0

    def test_it_says_where(self):
        syncs = counted(
            lambda: solve_order_parameters(Spectrum.from_eigenvalues(*points(2, 5).abs()), width=3.0, temperature=0.1)
        )[1]
        assert "numerics/root_finder.py" in {place.partition(":")[0] for place in syncs.places}


class TestWithoutValues:
    """Tensors of the device "meta" have no values: reading one is an error."""

    @pytest.mark.parametrize("depth", [1, 2])
    @pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - {"tanh", "silu"}))
    def test_kernels(self, activation, depth):
        """All activations but those by quadrature, which read once for each matrix which rows are new."""
        kernel = NNGPKernel(activation, depth, bias_variance=0.1).double().eval().to("meta")
        x, z = points(700).to("meta").requires_grad_(), points(30).to("meta")
        matrix = kernel.forward(x, x)  # of several tiles
        matrix.sum().backward()
        assert x.grad.shape == x.shape and matrix.shape == (700, 700)
        assert kernel.forward(x, z).device.type == kernel.forward(x, x, diag=True).device.type == "meta"

    @pytest.mark.parametrize("composition", COMPOSITIONS)
    def test_renormalized_kernels(self, composition):
        made = RenormalizedNNGPKernel("erf", [3, 4], composition, bias_variance=0.1, ard_num_dims=4)
        kernel = made.double().eval().to("meta")
        kernel.forward(points(30).to("meta"), points(20).to("meta")).sum().backward()
        assert all(p.grad is not None for p in kernel.parameters() if p.requires_grad)

    def test_lanczos_and_its_quadratures(self):
        run = LanczosRun(points(40, 3).to("meta"))
        run.extend(torch.ones(40, 40, dtype=torch.float64, device="meta").matmul, 5)
        for rule in (gauss_quadrature, radau_quadrature):
            assert rule(run.alphas, run.betas)[0].device.type == "meta"

    def test_it_can_fail(self):
        with pytest.raises((RuntimeError, NotImplementedError)):
            float(points(3).to("meta").sum())


class TestPastMemory:
    @pytest.fixture
    def operator(self):
        kernel = NNGPKernel("erf", 2).double().eval()
        return KernelOperator(lambda a, b: kernel(a, b).to_dense(), points(60), tile_size=7)

    def test_products_read_nothing(self, operator):
        vectors = points(60, 2)
        for product in (operator.matmul, lambda v: operator.cross_matmul(points(20), v)):
            assert counted(lambda of=product: of(vectors))[1].total == 0

    def test_lanczos_steps_read_nothing(self, operator):
        run = LanczosRun(points(60, 3))
        assert counted(lambda: run.extend(operator.matmul, 15))[1].total == 0

    def test_conjugate_gradients_read_once_a_step_whether_they_are_done(self, operator):
        b = points(60, 8)
        solution, syncs = counted(
            lambda: conjugate_gradients(
                lambda v, _: 0.1 * v + operator.matmul(v),
                b,
                precondition=lambda v, _: v,
                is_accurate=lambda state, _: state.residual < 1e-6,
                max_steps=200,
            )
        )
        assert solution.converged.all() and solution.num_steps > 10
        # And once more where a column is done and leaves, of which there are eight.
        assert solution.num_steps < syncs.total <= solution.num_steps + 1 + 8


class TestDense:
    @staticmethod
    def solve(spectrum, number):
        return solve_order_parameters(spectrum, width=torch.linspace(5, 90, number)[:, None], temperature=0.1)

    def test_a_batch_of_problems_waits_as_often_as_one(self):
        x = points(30)
        spectrum = Spectrum.from_kernel(x @ x.T + torch.eye(30, dtype=torch.float64), x[:, 0])
        few, many = (counted(lambda n=n: self.solve(spectrum, n))[1].total for n in (1, 200))
        assert many <= few + 10  # some more iterations for the slowest of 200
        assert few < 40

    @pytest.mark.parametrize("theory", [SaddlePoint(), Mixture()], ids=["saddle", "mixture"])
    def test_fits_and_predictions_do_not_wait_for_points(self, theory):
        counts = []
        for size in (20, 100):
            model = make_model(size)
            fitted, fit = counted(lambda of=model: theory.fit(of))
            assert fit.total < 60, fit.places
            few, many = (counted(lambda x=x, of=fitted: of.predict(x))[1].total for x in (points(3), points(300)))
            assert few == many
            counts.append(few)
        assert counts[0] == counts[1] < 60  # a mixture solves once for each of its nodes

    def test_a_descent_reads_once_a_step(self):
        """However many problems, each with steps of its own; and once at its start."""
        for number in (1, 30):
            start = torch.linspace(-1.0, 1.0, number, dtype=torch.float64)[:, None].expand(-1, 2)
            ones = torch.ones(number, dtype=torch.float64)
            free = torch.ones(1, 2, dtype=torch.bool)
            found, syncs = counted(lambda s=start, o=ones, f=free: minimize(lambda x: x.cosh().sum(-1), s, f, o))
            assert found.converged.all() and found.iterations >= 4
            assert syncs.total == found.iterations + 1, syncs.places

    def test_a_density_is_looked_at_once(self):
        law = GammaMixing(torch.tensor([3.0, 9.0]))
        law.log_interval()
        assert counted(lambda: [law.log_prob(torch.ones(2)) for _ in range(5)])[1].total == 0

    def test_a_failed_factorization_reads_nothing(self):
        covariance = torch.stack([torch.eye(3), -torch.eye(3)]).double()
        value, syncs = counted(lambda: log_det_and_square(covariance, torch.ones(2, 3, dtype=torch.float64)))
        assert value.tolist() == [3.0, float("inf")] and syncs.total == 0


class TestSamplers:
    @pytest.mark.parametrize("marginal", [True, False])
    def test_steps_read_nothing(self, marginal):
        """A transition reads a few numbers, however many steps and chains it has."""
        network = FiniteNetwork("erf", 4, [6, 5], dtype=torch.float64)
        target = (MarginalTarget if marginal else JointTarget)(network, points(9), points(9)[:, 0], 0.5)
        for make, most in (
            (lambda n: HamiltonianMonteCarlo(step_size=0.02, trajectory_length=0.02 * n), 5),
            (lambda n: LangevinDynamics(1e-3, steps_per_draw=n), 2),
        ):
            seen = set()
            for steps, chains in ((2, 1), (40, 3)):
                generator = torch.Generator().manual_seed(0)
                state = target.draw_prior(chains, generator)
                states = make(steps).iterate(target, state, 0, generator, SamplerStatistics())
                next(states)
                seen.add(counted(lambda of=states: next(of))[1].total)
            assert len(seen) == 1 and seen.pop() <= most
