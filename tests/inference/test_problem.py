"""A problem taken from a model: nothing of the model changes, one evaluation and one reduction serve everything."""

from __future__ import annotations

import copy
import math
import pickle
import threading
import warnings

import gpytorch
import pytest
import torch

from conftest import double_precision
from torch_propkernel import (
    Erf,
    NetworkGP,
    ReLU,
    RenormalizedNNGPKernel,
    Spectrum,
    fit_order_parameters,
    generalization_error,
    leave_one_out_error,
    solve_order_parameters,
    training_error,
    width_sweep,
)
from torch_propkernel.exceptions import PrecisionWarning
from torch_propkernel.inference import Problem
from torch_propkernel.theories import THEORIES, FreeScale, InfiniteWidth, Mixture, SaddlePoint, get_theory


def data(n=24, d=5, seed=0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, 2.0 * torch.sin(x[:, 0]) + x[:, 1]


def network(x, y, kernel=None, noise=0.1):
    with double_precision():
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        likelihood.noise = noise
        return NetworkGP(x, y, likelihood, kernel or RenormalizedNNGPKernel(Erf(), 20, bias_variance=0.3))


class Counted(RenormalizedNNGPKernel):
    """Counts evaluations of matrices."""

    calls = 0

    def forward(self, x1, x2, diag=False, **params):
        if not diag:
            type(self).calls += 1
        return super().forward(x1, x2, diag, **params)


class TestNothingChanges:
    def test_threads_share_a_model(self):
        x, y = data()
        test_x, test_y = data(7, seed=1)
        model = network(x, y)
        fit_order_parameters(model, warn=False)
        q = model.covar_module.order_parameter.item()
        expected = generalization_error(model, test_x, test_y)
        wrong = []

        def ask():
            for _ in range(30):
                error = generalization_error(model, test_x, test_y)
                left_out = leave_one_out_error(model).infinite_width.total
                same = torch.equal(error.total, expected.total) and torch.equal(
                    error.infinite_width.total, expected.infinite_width.total
                )
                if not (same and torch.isfinite(left_out).all() and model.training):
                    wrong.append(1)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert gpytorch.settings.lazily_evaluate_kernels.on()  # a global setting of the host, which it switches
        assert model.covar_module.order_parameter.item() == q

    @pytest.mark.parametrize("name", ["infinite_width", "saddle", "mixture", "free_scale"])
    def test_other_targets_share_the_matrices(self, name):
        x, y = data()
        test_x, _ = data(7, seed=1)
        other, theory = y.square(), get_theory(name)
        problem = Problem.frozen(network(x, y))
        first = theory.fit(problem)
        first.predict(test_x)
        second = theory.fit(problem.with_targets(other))
        alone = theory.fit(network(x, other))
        for found, expected in zip(second.predict(test_x), alone.predict(test_x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(second.log_evidence, alone.log_evidence, rtol=1e-12, atol=0)
        torch.testing.assert_close(second.leave_one_out().total, alone.leave_one_out().total, rtol=1e-9, atol=0)
        assert second.problem.unit_covariance is first.problem.unit_covariance
        torch.testing.assert_close(first.problem.targets, y)
        with pytest.raises(ValueError, match="targets: expected shape"):
            problem.with_targets(y[:3])

    @pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.ReliabilityWarning")  # five inputs
    def test_modes_of_every_module(self):
        x, y = data()
        model = network(x, y)
        model.likelihood.eval()  # a mode of its own
        before = [module.training for module in model.modules()]
        fit_order_parameters(model, warn=False)
        for ask in (lambda: training_error(model), lambda: leave_one_out_error(model, fit=True)):
            ask()
        with pytest.raises(ValueError, match="y: expected shape"):
            generalization_error(model, x, y[:3])
        assert [module.training for module in model.modules()] == before

    def test_predictions_follow_what_is_set_in_evaluation_mode(self):
        x, y = data()
        model = network(x, y).eval()
        model(x[:3])
        for change in (
            lambda m: setattr(m.likelihood, "noise", 0.7),
            lambda m: setattr(m.covar_module, "order_parameter", 2.5),
            lambda m: m.train_targets.mul_(2.0),
        ):
            change(model)
            fresh = network(x, model.train_targets, copy.deepcopy(model.covar_module)).eval()
            fresh.likelihood.noise = model.likelihood.noise.detach()
            torch.testing.assert_close(model(x[:3]).mean, fresh(x[:3]).mean, rtol=1e-12, atol=1e-14)


class TestOneOfEach:
    def test_all_theories_from_one_kernel_matrix_and_one_reduction(self, monkeypatch):
        x, y = data(40)
        test_x, test_y = data(9, seed=1)
        with double_precision():
            model = network(x, y, Counted(ReLU(), 30, bias_variance=1.0))
        reductions = []
        original = Spectrum.from_kernel.__func__
        monkeypatch.setattr(
            Spectrum, "from_kernel", classmethod(lambda cls, *a, **k: reductions.append(1) or original(cls, *a, **k))
        )
        Counted.calls = 0
        problem = Problem.frozen(model)
        problem.spectrum(eigenvectors=True)
        fits = [theory().fit(problem) for theory in (InfiniteWidth, FreeScale, SaddlePoint, Mixture)]
        for fitted in fits:
            fitted.leave_one_out(), fitted.error(test_x, test_y), fitted.training_error()
        width_sweep(problem, [10.0, 30.0, 90.0], test_x, test_y)
        assert len(reductions) == 1
        assert Counted.calls == 2  # the training points, and their block with the test points

    def test_dense_and_spectral_conditioning_agree(self):
        x, y = data(30)
        test_x, test_y = data(8, seed=1)
        for kernel in (
            RenormalizedNNGPKernel(Erf(), [20, 30], bias_variance=0.3),
            RenormalizedNNGPKernel(Erf(), 20) + gpytorch.kernels.ConstantKernel(),
        ):
            model = network(x, y, kernel.double())
            dense, spectral = Problem.frozen(model), Problem.frozen(model)
            spectral.spectrum(eigenvectors=True)
            q = dense.at_scale(1.7)
            with torch.no_grad():
                one, two = dense.conditioned(q), spectral.conditioned(q)
                assert type(one) is not type(two)
                for a, b in zip(one.predict(test_x, True), two.predict(test_x, True), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)  # condition numbers of about 1e3
                torch.testing.assert_close(one.log_likelihoods(), two.log_likelihoods(), rtol=1e-11, atol=0)
                torch.testing.assert_close(one.training_error(), two.training_error(), rtol=1e-10, atol=0)
                for first, second in (
                    (one.leave_one_out(), two.leave_one_out()),
                    (one.error(test_x, test_y), two.error(test_x, test_y, chunk_size=3)),
                ):
                    for name in ("mean", "bias", "variance", "log_density"):
                        a, b = getattr(first, name), getattr(second, name)
                        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)

    def test_leave_one_out_is_fitting_without_the_point(self):
        """A mixture over two scales, by conditioning on the other points and weighting with their likelihoods."""
        from torch_propkernel.inference import SpectralConditioned

        x, y = data(9)
        problem = Problem.frozen(network(x, y))
        scale, log_prior = torch.tensor([0.5, 3.0], dtype=torch.float64), torch.tensor([0.3, 0.7]).double().log()

        def log_likelihood(rows):
            A = scale[:, None, None] * problem.unit_covariance[rows][:, rows] + 0.1 * torch.eye(len(rows)).double()
            law = torch.distributions.MultivariateNormal(torch.zeros(2, len(rows)).double(), A)
            return law.log_prob(y[rows]), A

        everything = torch.arange(9)
        weights = torch.log_softmax(log_prior + log_likelihood(everything)[0], 0)
        found = SpectralConditioned(problem, scale, weights).leave_one_out()
        for i in range(9):
            rest = torch.cat([everything[:i], everything[i + 1 :]])
            value, A = log_likelihood(rest)
            share = torch.softmax(log_prior + value, 0)
            cross = scale[:, None] * problem.unit_covariance[i, rest]
            solved = torch.linalg.solve(A, cross.unsqueeze(-1)).squeeze(-1)
            mean, variance = solved @ y[rest], scale * problem.unit_covariance[i, i] - (solved * cross).sum(-1)
            center = (share * mean).sum()
            spread = (share * (variance + (mean - center).square())).sum()
            density = torch.logsumexp(
                share.log() + torch.distributions.Normal(mean, (variance + 0.1).sqrt()).log_prob(y[i]), 0
            )
            assert found.mean[i].item() == pytest.approx(center.item(), rel=1e-9)
            assert found.variance[i].item() == pytest.approx(spread.item(), rel=1e-8)
            assert found.log_density[i].item() == pytest.approx(density.item(), rel=1e-9)


class TestRefusals:
    def test_a_kernel_that_forward_does_not_find(self):
        x, y = data(8)

        class Closure(gpytorch.models.ExactGP):
            def __init__(self):
                super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood().double())
                self.kernel = RenormalizedNNGPKernel(Erf(), 5).double()
                kernel = self.kernel
                self.covariance = lambda points: kernel(points) + 0.0  # holds the kernel itself

            def forward(self, x):
                return gpytorch.distributions.MultivariateNormal(x.new_zeros(x.shape[:-1]), self.covariance(x))

        with pytest.raises(ValueError, match="covariance does not change with the order parameters"):
            fit_order_parameters(Closure())

    def test_second_derivatives(self):
        x, y = data(6)
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        solution = solve_order_parameters(scale * x @ x.T, y, width=10, temperature=0.1)
        for value, name in ((solution.order_parameter, "order_parameter"), (solution.action, "action")):
            torch.autograd.grad(value.sum(), scale, retain_graph=True)
            with pytest.raises(RuntimeError, match=f"{name}: expected first derivatives only"):
                torch.autograd.grad(value.sum(), scale, create_graph=True)
        for composition in ("outer", "nested"):
            model = network(x, y, RenormalizedNNGPKernel(Erf(), [6, 8], composition).double())
            q = fit_order_parameters(model, differentiable=True, warn=False).order_parameter
            with pytest.raises(RuntimeError, match="expected first derivatives only"):
                torch.autograd.grad(q.sum(), model.likelihood.raw_noise, create_graph=True, allow_unused=True)

    def test_an_asymmetric_matrix_and_targets_of_two_readings(self):
        x, y = data(6)
        matrix = x @ x.T
        matrix[1, 0] += 0.1
        with pytest.raises(ValueError, match="expected a symmetric one, got entries K_ij and K_ji that differ by 0.1"):
            solve_order_parameters(matrix, y, width=10, temperature=0.1)
        with pytest.raises(ValueError, match=r"targets: expected shape"):
            solve_order_parameters(x @ x.T, torch.eye(6, dtype=torch.float64), width=10, temperature=0.1)

    def test_single_precision_at_a_low_temperature_is_said(self):
        x = torch.linspace(-3, 3, 41).unsqueeze(-1)
        for dtype, expected in ((torch.float32, [PrecisionWarning]), (torch.float64, [])):
            with double_precision():
                kernel = RenormalizedNNGPKernel(ReLU(), 50, bias_variance=1.0).to(dtype)
                likelihood = gpytorch.likelihoods.GaussianLikelihood().to(dtype)
            likelihood.noise = 0.0012
            model = NetworkGP(x.to(dtype), torch.sin(3 * x[:, 0]).to(dtype), likelihood, kernel)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                fit_order_parameters(model)
            assert [w.category for w in caught if w.category is PrecisionWarning] == expected

    def test_theories_and_options_that_exclude_each_other(self):
        x, y = data(12)
        model = network(x, y)
        with pytest.raises(ValueError, match="fit: expected none beside theory='saddle'"):
            generalization_error(model, x, y, theory="saddle", fit=True)
        with pytest.raises(ValueError, match="theory: expected a Theory or one of the names"):
            leave_one_out_error(model, theory="sadle")
        with pytest.raises(ValueError, match="chunk_size: expected a whole number >= 1, got 0"):
            generalization_error(model, x, y, chunk_size=0)


class TestTheories:
    @pytest.mark.parametrize("name", THEORIES)
    def test_fitted_theories_pickle(self, name):
        x, y = data(14)
        depth = [12, 9] if name == "gated" else 12
        kernel = RenormalizedNNGPKernel(ReLU(), depth).double()
        fitted = get_theory(name).fit(network(x, 0.3 * y, kernel))
        loaded = pickle.loads(pickle.dumps(fitted))
        for a, b in zip(fitted.predict(x[:4]), loaded.predict(x[:4]), strict=True):
            assert torch.equal(a, b)
        assert loaded.theory == fitted.theory

    def test_a_gp_without_order_parameters(self):
        """Any GP has an infinite width and a free scale: the numbers are GPyTorch's."""
        x, y = data(20)
        model = network(x, y, gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double())
        fitted = InfiniteWidth().fit(model)
        with torch.no_grad():
            exact = model.eval()(x[:5] + 0.1)
            prior = model.likelihood(model.forward(x)).log_prob(y)
        mean, variance = fitted.predict(x[:5] + 0.1)
        torch.testing.assert_close(mean, exact.mean, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(variance, exact.variance, rtol=1e-7, atol=1e-9)
        assert fitted.log_evidence.item() == pytest.approx(prior.item(), rel=1e-10)
        assert FreeScale().fit(model).log_evidence > fitted.log_evidence
        with pytest.raises(ValueError, match="expected exactly one RenormalizedNNGPKernel"):
            SaddlePoint().fit(model)

    def test_learning_curve_chunks_and_sweeps_of_any_theory(self):
        x, y = data(20)
        model = network(x, y)
        whole, parts = (
            width_sweep(model, [5.0, math.inf], x[:7], y[:7], theory="mixture", chunk_size=size) for size in (100, 2)
        )
        torch.testing.assert_close(whole.test.total, parts.test.total, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(whole.leave_one_out.total[1], whole.leave_one_out.infinite_width.total)
