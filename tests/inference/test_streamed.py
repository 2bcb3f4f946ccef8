"""A problem whose kernel matrix is never held, beside the same problem with dense matrices."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import gpytorch
import numpy as np
import pytest
import torch

import torch_propkernel._memory as memory_module
import torch_propkernel.inference.problem as problem_module
import torch_propkernel.inference.streamed as streamed_module
import torch_propkernel.models.network_gp as network_gp_module
from torch_propkernel import (
    NetworkGP,
    NNGPKernel,
    RenormalizedNNGPKernel,
    expected_accuracy,
    fit_order_parameters,
    generalization_error,
    leave_one_out_error,
    training_error,
)
from torch_propkernel.exceptions import ConvergenceError, NotEnoughMemoryError
from torch_propkernel.inference import Problem, StreamedProblem, Streaming
from torch_propkernel.inference.conditioned import expected_errors, left_out_errors
from torch_propkernel.spectra import FusedKernelOperator, KernelOperator
from torch_propkernel.theories import (
    FreeScale,
    InfiniteWidth,
    Mixture,
    SaddlePoint,
    get_theory,
    learning_curve,
    width_sweep,
)

P = 240
EXACT = Streaming(
    num_probes=12, max_steps=P, tolerance=1e-9, rank=60, residual=1e-10, variance_tolerance=1e-9, tile_size=100
)


def make_model(covariance=None, noise=0.05, **options):
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.normal(size=(P, 5)))
    y = torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * torch.as_tensor(rng.normal(size=P))
    kernel = RenormalizedNNGPKernel("relu", width=[30.0, 50.0], **options) if covariance is None else covariance
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    model = NetworkGP(x, y, likelihood, kernel).double()
    model.likelihood.noise = noise
    return model


def test_points(number=30):
    rng = np.random.default_rng(1)
    x = torch.as_tensor(rng.normal(size=(number, 5)))
    return x, torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2]


test_points.__test__ = False


@pytest.fixture(scope="module")
def both():
    model = make_model()
    return SaddlePoint().fit(StreamedProblem.of_streamed(model, EXACT)), SaddlePoint().fit(model)


def close(value, truth, rtol):
    torch.testing.assert_close(value, truth, rtol=rtol, atol=0)


class TestAgainstDense:
    def test_order_parameters_within_the_stated_error(self, both):
        streamed, dense = both
        error = streamed.stats["quadrature_error"]
        away = (streamed.order_parameters["q"] - dense.order_parameters["q"]).abs()
        assert (away < 4 * error.order_parameter).all()  # four standard errors
        assert (error.order_parameter < 0.05).all()
        assert (error.order_parameter_truncation < 1e-8).all()
        # The evidence has the error of -N S / 2.
        assert abs(streamed.log_evidence - dense.log_evidence) < 4 * 25 * error.action
        assert "Streamed" in streamed.message
        assert "Streamed" not in dense.message

    def test_infinite_width_has_no_statistical_error(self, both):
        """At q = 1 nothing is estimated by probes but logdet A and the trace of A^{-1}: the rest is a solve."""
        streamed, dense = (fitted.problem.infinite_width for fitted in both)
        x, y = test_points()
        # Tolerances: residual 1e-10 and variances to 1e-9 of their own, asked for in EXACT; conditioning of A is 1e4.
        for ours, truth in zip(streamed.predict(x), dense.predict(x), strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(streamed.mean(x), dense.predict(x)[0], rtol=1e-6, atol=1e-8)
        ours, truth = (each.predict(x, joint=True)[1] for each in (streamed, dense))
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-6)
        ours, truth = (each.error(x, y) for each in (streamed, dense))
        close(ours.total, truth.total, 1e-5)
        close(ours.log_density, truth.log_density, 1e-5)
        labels = torch.sign(y)
        close(streamed.accuracy(x, labels), dense.accuracy(x, labels), 1e-6)

    def test_leave_one_out_is_that_of_a_sample(self, both):
        streamed, dense = (fitted.problem.infinite_width for fitted in both)
        rows = streamed.left_out_points
        assert len(rows.unique()) == len(rows) == P  # num_left_out is larger: all of them
        few = StreamedProblem.of_streamed(make_model(), Streaming(num_left_out=20, variance_tolerance=1e-9)).at(1.0)
        for posterior in (streamed, few):
            rows, found, truth = posterior.left_out_points, posterior.leave_one_out(), dense.leave_one_out()
            for name in ("bias", "variance", "log_density", "mean"):
                ours = getattr(found, name)
                # 1/d - T and (y - y') are differences: digits are lost where they are small.
                torch.testing.assert_close(ours, getattr(truth, name)[rows], rtol=1e-3, atol=1e-5)
        assert len(rows) == 20

    def test_traces_are_within_the_scatter_of_the_probes(self, both):
        streamed, dense = (fitted.problem.infinite_width for fitted in both)
        noise = 0.05
        samples = streamed.problem.lanczos.probe_sums(lambda k: 1 / (noise + k))
        bar = samples.std() / len(samples) ** 0.5
        assert abs(streamed.training_error() - dense.training_error()) < 4 * noise**2 * bar / P
        samples = streamed.problem.lanczos.probe_sums(lambda k: (noise + k).log())
        bar = samples.std() / len(samples) ** 0.5
        assert abs(streamed.log_likelihoods() - dense.log_likelihoods()) < 4 * 0.5 * bar

    def test_one_reduction_answers_every_width(self):
        calls = []
        problem = StreamedProblem.of_streamed(make_model(), Streaming(progress=lambda *a: calls.append(a), rank=60))
        problem.spectrum()
        seen = len(calls)
        sweep = [SaddlePoint().fit(problem.with_width(torch.tensor([n, n]))) for n in (10.0, 1000.0)]
        assert len(calls) == seen > 0
        for n, fitted in zip((10.0, 1000.0), sweep, strict=True):
            kernel = RenormalizedNNGPKernel("relu", width=[n, n])
            truth = SaddlePoint().fit(make_model(kernel)).order_parameters["q"]
            error = fitted.stats["quadrature_error"]
            bar = 4 * error.order_parameter + 2 * error.order_parameter_truncation
            assert ((fitted.order_parameters["q"] - truth).abs() < bar).all()

    def test_a_sweep_over_widths(self):
        x, y = test_points(10)
        widths = torch.tensor([10.0, 1000.0, math.inf])
        ours, truth = (
            width_sweep(each, widths, x, y) for each in (StreamedProblem.of_streamed(make_model(), EXACT), make_model())
        )
        # q has a standard error of 2 % with 12 probes, errors of networks follow it.
        torch.testing.assert_close(ours.order_parameter, truth.order_parameter, rtol=0.08, atol=0)
        torch.testing.assert_close(ours.test.total, truth.test.total, rtol=0.08, atol=0)
        torch.testing.assert_close(
            ours.leave_one_out.mean_total[-1], truth.leave_one_out.mean_total[-1], rtol=1e-5, atol=0
        )

    def test_the_baselines(self, both):
        model = make_model()
        problem = StreamedProblem.of_streamed(model, EXACT)
        ours, truth = (FreeScale().fit(each) for each in (problem, model))
        away = float((ours.order_parameters["r"] - truth.order_parameters["r"]).abs())
        assert 0 < away < 4 * ours.stats["scale_error"] < 0.3 * truth.order_parameters["r"]  # four standard errors
        assert "scale_error" not in truth.stats
        fitted = InfiniteWidth().fit(problem)
        close(fitted.log_evidence, InfiniteWidth().fit(model).log_evidence, 0.05)
        x, y = test_points()
        close(fitted.error(x, y).mean_total, InfiniteWidth().fit(model).error(x, y).mean_total, 1e-6)

    def test_other_covariances(self):
        for kernel in (
            gpytorch.kernels.ScaleKernel(RenormalizedNNGPKernel("erf", width=20.0)),
            NNGPKernel("erf", depth=2),
            RenormalizedNNGPKernel("erf", width=20.0, active_dims=(0, 1, 2), bias_variance=0.3),
        ):
            model = make_model(kernel)
            x, _ = test_points()
            ours, dense = (InfiniteWidth().fit(each) for each in (StreamedProblem.of_streamed(model, EXACT), model))
            for value, truth in zip(ours.predict(x), dense.predict(x), strict=True):
                torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-7)

    def test_variances_hold_their_tolerance_at_low_temperature(self):
        """Rounding spoils the steps of conjugate gradients here; variances err by the square of their error."""
        model, scale = make_model(), 100.0
        x, _ = test_points(5)
        options = Streaming(num_probes=4, rank=30, variance_tolerance=1e-6, max_solver_steps=1000)
        ours, problem = StreamedProblem.of_streamed(model, options).at(scale), Problem.frozen(model)
        truth = problem.conditioned(problem.at_scale(scale))
        close(ours.predict(x)[1], truth.predict(x)[1], 1e-6)
        (_, joint), (_, exact) = ours.moments(x, joint=True), truth.moments(x, joint=True)
        torch.testing.assert_close(joint, exact, rtol=0, atol=1e-6 * float(exact.max()))

    def test_single_precision_tiles(self):
        model = make_model()
        options = Streaming(num_probes=4, tile_dtype=torch.float32, rank=60)
        x, _ = test_points()
        ours, truth = InfiniteWidth().fit(StreamedProblem.of_streamed(model, options)), InfiniteWidth().fit(model)
        # Entries are off by 6e-8 of about 1, T is 0.05 and residuals are 1e-4.
        torch.testing.assert_close(ours.predict(x)[0], truth.predict(x)[0], rtol=1e-3, atol=1e-3)
        assert ours.problem.operator.inputs.dtype == torch.float32


class TestCheckpoint:
    OPTIONS = {"num_probes": 4, "block_steps": 5, "rank": 40, "tolerance": 1e-6}

    def killed_after(self, products, path, monkeypatch):
        """Run until so many products are done, then stop as Ctrl-C does."""
        own, done = KernelOperator.matmul, []

        def matmul(self, vectors, progress=None):
            if len(done) == products:
                raise KeyboardInterrupt
            done.append(1)
            return own(self, vectors, progress)

        with monkeypatch.context() as patched:
            patched.setattr(KernelOperator, "matmul", matmul)
            problem = StreamedProblem.of_streamed(make_model(), Streaming(checkpoint=path, **self.OPTIONS))
            try:
                problem.spectrum()
            except KeyboardInterrupt:
                pass
        return len(done)

    def test_a_killed_run_goes_on(self, tmp_path, monkeypatch):
        path = tmp_path / "run.pt"
        whole = StreamedProblem.of_streamed(make_model(), Streaming(**self.OPTIONS))
        steps = whole.lanczos.run.num_steps
        assert self.killed_after(13, path, monkeypatch) == 13
        assert len(list(tmp_path.iterdir())) == 1  # nothing unfinished lies beside it
        content = torch.load(path, weights_only=True)
        assert content["state"]["alphas"].shape == (5, 10)  # 13 products: two blocks of 5, and three that are lost
        assert self.killed_after(10**6, path, monkeypatch) == steps - 10
        assert self.killed_after(0, path, monkeypatch) == 0  # a finished run is read
        again = StreamedProblem.of_streamed(make_model(), Streaming(checkpoint=path, **self.OPTIONS))
        torch.testing.assert_close(again.spectrum().eigenvalues, whole.spectrum().eigenvalues, rtol=1e-12, atol=1e-14)
        x, _ = test_points(3)
        torch.testing.assert_close(again.at(0.8).predict(x), whole.at(0.8).predict(x), rtol=1e-9, atol=1e-12)

    def test_a_tighter_run_goes_on_from_a_finished_one(self, tmp_path, monkeypatch):
        path = tmp_path / "run.pt"
        self.killed_after(10**6, path, monkeypatch)
        before = torch.load(path, weights_only=True)["state"]["alphas"].shape[1]
        options = Streaming(checkpoint=path, **{**self.OPTIONS, "tolerance": 1e-11})
        run = StreamedProblem.of_streamed(make_model(), options).lanczos.run
        assert run.num_steps > before

    def test_a_file_of_another_problem_is_left_alone(self, tmp_path, monkeypatch):
        path = tmp_path / "run.pt"
        self.killed_after(7, path, monkeypatch)
        before = path.read_bytes()
        other = make_model()
        other.set_train_data(targets=other.train_targets + 1.0, strict=False)
        kernel = make_model(RenormalizedNNGPKernel("erf", width=20.0))
        for model, options, name in (
            (other, self.OPTIONS, "targets"),
            (kernel, self.OPTIONS, "kernel"),
            (make_model(), {**self.OPTIONS, "seed": 3}, "probes"),
        ):
            with pytest.raises(ValueError, match=f"checkpoint: expected that of the same problem .* other {name}"):
                StreamedProblem.of_streamed(model, Streaming(checkpoint=path, **options)).spectrum()
        assert path.read_bytes() == before
        path.write_text("no checkpoint")
        with pytest.raises(ValueError, match="checkpoint: expected a file of an earlier run"):
            StreamedProblem.of_streamed(make_model(), Streaming(checkpoint=path, **self.OPTIONS)).spectrum()
        assert path.read_text() == "no checkpoint"

    def test_temperature_and_width_are_no_part_of_it(self, tmp_path, monkeypatch):
        path = tmp_path / "run.pt"
        self.killed_after(10**6, path, monkeypatch)
        model = make_model(RenormalizedNNGPKernel("relu", width=[7.0, 9.0]), noise=0.3)
        options = Streaming(checkpoint=path, **self.OPTIONS)
        with monkeypatch.context() as patched:
            patched.setattr(KernelOperator, "matmul", None)  # no product is needed
            assert StreamedProblem.of_streamed(model, options).spectrum().num_data == P


@pytest.fixture
def memory(monkeypatch):
    """Return available(number of bytes): five matrices of the model need 2.3 MB, so small a model streams in 8 MB.

    What decides sees that number, what refuses only where it is ``enforced``.
    """

    def available(num_bytes, enforced=False):
        for module in (problem_module, streamed_module, *((memory_module,) if enforced else ())):
            monkeypatch.setattr(module, "available_memory", lambda device="cpu": num_bytes)

    for module in (problem_module, network_gp_module):
        monkeypatch.setattr(module, "_LARGE", 100)
    return available


class TestChoice:
    def test_past_memory_a_theory_streams_by_itself(self, memory):
        memory(1e6)
        model = make_model()
        for theory in (SaddlePoint(), InfiniteWidth(), FreeScale(), Mixture()):
            fitted = theory.fit(model)
            assert isinstance(fitted.problem, StreamedProblem) and "Streamed" in fitted.message
        memory(1e7)
        assert not isinstance(SaddlePoint().fit(model).problem, StreamedProblem)

    @pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.ReliabilityWarning")  # narrow layers
    def test_order_parameters_and_errors_stream_too(self, memory):
        model, dense = make_model(), make_model()
        x, y = test_points()
        truth = generalization_error(dense, x, y, fit=True)
        left_out = leave_one_out_error(dense)
        memory(1e6)
        solution = fit_order_parameters(model)
        q = model.covar_module.order_parameter.squeeze(-2)
        assert torch.equal(q, solution.order_parameter)
        assert "Streamed: the kernel matrix was not held" in solution.message
        error = solution.stats["quadrature_error"]  # the part of low rank is the whole matrix: nothing scatters
        bar = 4 * error.order_parameter + 2 * error.order_parameter_truncation
        assert ((q - truth.solution.order_parameter).abs() < bar).all()
        assert solution.reliability.score == pytest.approx(float(truth.solution.reliability.score), rel=0.2)
        for found in (generalization_error(model, x, y), generalization_error(model, x, y, fit=True)):
            assert found.message.startswith("Streamed") and truth.message is None
            # Variances are solved to 1e-3, means to 1e-4 of the targets' size; q has its statistical error.
            torch.testing.assert_close(found.infinite_width.total, truth.infinite_width.total, rtol=1e-2, atol=1e-3)
            torch.testing.assert_close(found.mean_total, truth.mean_total, rtol=0.05, atol=0)
        assert "Streamed" in found.solution.message
        sample = leave_one_out_error(model)
        assert "240 of 240 training points were left out" in sample.message
        close(sample.infinite_width.mean_total, left_out.infinite_width.mean_total, 1e-2)
        assert training_error(model, order_parameter=torch.ones(2)) > 0
        assert 0 < expected_accuracy(model, x, torch.sign(y)) < 1

    def test_a_mean_alone_takes_no_lanczos_run(self, memory, monkeypatch):
        monkeypatch.setattr(StreamedProblem, "lanczos", None)
        model = make_model()
        x, y = test_points()
        truth = generalization_error(model, x, y)
        memory(1e6)
        torch.testing.assert_close(generalization_error(model, x, y).total, truth.total, rtol=1e-2, atol=1e-3)

    def test_subsets_of_a_learning_curve(self, memory):
        model = make_model()
        x, y = test_points()
        truth = learning_curve(model, [60, 200], x, y)
        memory(1.5e6)  # 200 rows need 1.6 MB, 60 fit
        found = learning_curve(model, [60, 200], x, y)
        close(found.bias[0], truth.bias[0], 1e-12)
        for name in ("bias", "variance", "infinite_width_bias", "infinite_width_variance"):
            torch.testing.assert_close(getattr(found, name), getattr(truth, name), rtol=0.05, atol=0)  # error of q
        assert (found.bias[1] != truth.bias[1]).all()

    def test_what_needs_the_matrix_says_what_does_not(self, memory):
        model = make_model()
        x, y = test_points()
        memory(1e5, enforced=True)
        words = "240 training targets: expected at most 0.1 MB.*fit_order_parameters, width_sweep, and errors without"
        for ask in (
            lambda: fit_order_parameters(model, differentiable=True, warn=False),
            lambda: generalization_error(model, x, y, differentiable=True),
            lambda: get_theory("first_order").fit(model),
        ):
            with pytest.raises(NotEnoughMemoryError, match=words):
                ask()
        words = "GPyTorch's prediction from 240 training targets: .* predict by a theory that does without: SaddlePoint"
        with pytest.raises(NotEnoughMemoryError, match=words):
            model.eval()(x)
        with gpytorch.settings.prior_mode():
            model(x)
        memory(1e6, enforced=True)
        assert model(x).mean.shape == (30,)  # one matrix fits

    def test_many_points_jointly_are_refused(self, memory):
        posterior = StreamedProblem.of_streamed(make_model(), replace(EXACT, columns=8)).at(1.0)
        memory(1e6, enforced=True)
        assert posterior.predict(test_points(8)[0], joint=True)[1].shape == (8, 8)
        with pytest.raises(NotEnoughMemoryError, match="a covariance of 70 points, streamed"):
            posterior.predict(test_points(70)[0], joint=True)

    def test_as_many_probes_as_fit(self, memory, monkeypatch):
        monkeypatch.setattr(problem_module, "dense_bytes", lambda problem: math.inf)
        chosen = []
        for probes in (4, 8, 20, 32):
            free = Streaming(num_probes=probes).num_bytes(P)
            memory(free)
            chosen.append(streamed_module.streamed_past_memory(Problem.frozen(make_model())).streaming.num_probes)
        assert chosen == [16, 16, 16, 32]  # below sixteen the solves need more than the reduction

    def test_what_cannot_be_streamed_stays_dense(self, memory):
        memory(1e6)
        model = make_model(RenormalizedNNGPKernel("relu", width=20.0) + gpytorch.kernels.ConstantKernel())
        assert not isinstance(SaddlePoint().fit(model).problem, StreamedProblem)

    def test_refusals_say_what_is_missing(self):
        sum_kernel = RenormalizedNNGPKernel("relu", width=20.0) + gpytorch.kernels.ConstantKernel()
        nested = RenormalizedNNGPKernel("erf", width=[20.0, 30.0], composition="nested")
        for kernel in (sum_kernel, nested):
            with pytest.raises(ValueError, match="streamed problem expected a covariance proportional"):
                StreamedProblem.of_streamed(make_model(kernel))
        batch = make_model(RenormalizedNNGPKernel("relu", width=20.0, batch_shape=torch.Size([2])))
        batch.set_train_data(batch.train_inputs[0].expand(2, P, 5), batch.train_targets.expand(2, P), strict=False)
        with pytest.raises(ValueError, match=r"without batch dimensions, got targets of shape \(2, 240\)"):
            StreamedProblem.of_streamed(batch)
        problem = StreamedProblem.of_streamed(make_model(), EXACT)
        with pytest.raises(ValueError, match="FirstOrder.* expected a problem whose kernel matrix is held"):
            get_theory("first_order").fit(problem)
        for ask in (problem.scalar, lambda: problem.unit_covariance, lambda: problem.spectrum(eigenvectors=True)):
            with pytest.raises(ValueError, match="streamed"):
                ask()

    def test_memory_is_looked_at_before_anything_is_allocated(self, monkeypatch):
        with pytest.raises(NotEnoughMemoryError, match="240 training targets, streamed.*fewer num_probes"):
            StreamedProblem.of_streamed(make_model(), Streaming(num_probes=10**9))
        cost = StreamedProblem.of_streamed(make_model(), EXACT).cost()
        num_bytes, seconds = cost
        assert num_bytes == EXACT.num_bytes(P)
        assert 0 < seconds < 10_000
        assert " MB of memory and " in str(cost)

    def test_too_few_steps_are_an_error(self):
        with pytest.raises(ConvergenceError, match="after 8 steps; use a larger max_steps"):
            SaddlePoint().fit(StreamedProblem.of_streamed(make_model(), Streaming(num_probes=4, max_steps=8)))
        options = Streaming(num_probes=4, rank=1, max_solver_steps=2)
        fitted = SaddlePoint().fit(StreamedProblem.of_streamed(make_model(), options))
        # 30 points and the targets.
        with pytest.raises(ConvergenceError, match="conjugate gradients: expected 31 columns to converge in 2 steps"):
            fitted.predict(test_points()[0])

    def test_progress_counts_tiles(self):
        seen = []
        options = Streaming(num_probes=4, tile_size=100, max_steps=60, progress=lambda *pair: seen.append(pair))
        problem = StreamedProblem.of_streamed(make_model(), options)
        steps = problem.lanczos.run.num_steps
        assert seen == [(done, 60 * 6) for done in range(1, 6 * steps + 1)]

    def test_pickles(self, both):
        fitted = pickle.loads(pickle.dumps(both[0]))
        x, _ = test_points(3)
        torch.testing.assert_close(fitted.predict(x), both[0].predict(x))
        watched = StreamedProblem.of_streamed(make_model(), Streaming(progress=lambda *_: None))
        assert pickle.loads(pickle.dumps(watched)).streaming.progress is None

    def test_options_are_checked(self):
        for options in ({"rank": 0}, {"tolerance": 0.0}, {"columns": 1.5}, {"residual": math.nan}):
            with pytest.raises(ValueError, match=next(iter(options))):
                Streaming(**options)

    def test_columns_fill_the_memory_of_the_reduction(self):
        for options in (Streaming(), Streaming(num_probes=8), Streaming(num_probes=4, rank=300)):
            number = options.num_columns(10**5)
            assert 256 <= number <= 1024
            if number > 256:  # not one byte more than with fewer
                assert options.num_bytes(10**5) == replace(options, columns=256).num_bytes(10**5)
        assert Streaming(columns=7).num_columns(10**5) == 7


class TestFusedProducts:
    @pytest.fixture
    def fused(self, triton_interpreter):
        options = {"tile_dtype": torch.float32, "product": "fused"}
        return Streaming(num_probes=2, rank=60, tolerance=0.1, residual=1e-2, **options)  # few products

    def test_one_switch_gives_the_same_problem(self, fused):
        x, _ = test_points(70)
        model = make_model(gpytorch.kernels.ScaleKernel(RenormalizedNNGPKernel("relu", width=[30.0, 50.0])))
        size = 80  # the interpreter needs a tenth of a second for each product
        model.set_train_data(model.train_inputs[0][:size], model.train_targets[:size], strict=False)
        ours, truth = (
            StreamedProblem.of_streamed(model, options) for options in (fused, replace(fused, product="tiles"))
        )
        assert type(ours.operator) is FusedKernelOperator and type(truth.operator) is KernelOperator
        vectors = torch.ones(size, 2, dtype=torch.float64)
        away = ours.operator.matmul(vectors) - truth.operator.matmul(vectors)
        assert away.abs().max() < 1e-6 * size * truth.operator.diagonal().max()  # float32 entries
        away = ours.operator.cross_matmul(x, vectors) - truth.operator.cross_matmul(x, vectors)
        assert 0 < away.abs().max() < 1e-6 * size * truth.operator.diagonal().max()
        # The same probes and steps: what is left is rounding of the entries, 1e-6 beside T = 0.05.
        close(*(SaddlePoint().fit(each).order_parameters["q"] for each in (ours, truth)), 1e-4)
        assert ours.cost()[1] > 0

    def test_what_cannot_be_fused_is_refused(self, fused):
        class Transformed(NetworkGP):
            def forward(self, x):
                return super().forward(x.tanh())

        plain = make_model()
        made = Transformed(plain.train_inputs[0], plain.train_targets, plain.likelihood, plain.covar_module).double()
        for model, options, words in (
            (plain, replace(fused, tile_dtype=None), "tiles of float32"),
            (make_model(RenormalizedNNGPKernel("sin", width=9.0)), fused, "erf, relu or leaky relu, got Sin"),
            (made, fused, "the covariance of covar_module"),
        ):
            with pytest.raises(ValueError, match=words):
                _ = StreamedProblem.of_streamed(model, options).operator
        with pytest.raises(ValueError, match="'auto', 'tiles' or 'fused', got 'gpu'"):
            Streaming(product="gpu")

    def test_processors_have_tiles(self):
        """On "auto" a processor keeps tiles, whose symmetry halves the work."""
        problem = StreamedProblem.of_streamed(make_model(), Streaming(tile_dtype=torch.float32))
        assert type(problem.operator) is KernelOperator


class TestSharedProducts:
    """Columns of several scales go through the same products; each is solved at its own scale."""

    def test_several_posteriors_share_the_products(self, monkeypatch):
        own, columns = KernelOperator.matmul, []

        def matmul(self, vectors, progress=None):
            columns.append(vectors.shape[1])
            return own(self, vectors, progress)

        monkeypatch.setattr(KernelOperator, "matmul", matmul)
        x, y = test_points()

        def products(ask):
            """Return products, columns, and what a fresh problem with its reduction done answers."""
            problem = StreamedProblem.of_streamed(make_model(), replace(EXACT, rank=30, num_left_out=40))
            _ = problem.lanczos, problem.preconditioner
            columns.clear()
            found = ask(problem)
            return len(columns), sum(columns), found

        scales = (0.4, 1.0, 3.0)
        for together, one in (
            (lambda p: expected_errors([p.at(r) for r in scales], x, y, 1000), lambda p, r: p.at(r).error(x, y)),
            (lambda p: left_out_errors([p.at(r) for r in scales]), lambda p, r: p.at(r).leave_one_out()),
        ):
            number, work, found = products(together)
            alone = [products(lambda p, r=r, ask=one: ask(p, r)) for r in scales]
            assert number == max(each[0] for each in alone)  # as many as the slowest scale takes by itself
            assert abs(work - sum(each[1] for each in alone)) < 0.02 * work  # columns that are done have left
            for ours, (_, _, truth) in zip(found, alone, strict=True):
                for name in ("mean", "bias", "variance", "log_density"):
                    # variances were asked for to 1e-9, and left out ones are differences
                    torch.testing.assert_close(getattr(ours, name), getattr(truth, name), rtol=1e-5, atol=1e-7)

    def test_a_mixture_of_scales_is_the_dense_one(self):
        model = make_model()
        scales, log_weights = torch.tensor([0.3, 1.0, 4.0]), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
        options = replace(EXACT, rank=P, num_probes=2)  # the part of low rank is the whole matrix: nothing scatters
        ours = StreamedProblem.of_streamed(model, options).conditioned_at_scales(scales, log_weights)
        problem = Problem.frozen(model)
        problem.spectrum(eigenvectors=True)
        truth = problem.conditioned_at_scales(scales, log_weights)
        x, y = test_points()
        # As at infinite width: residuals of 1e-10 at a condition of 1e4, variances to 1e-9.
        for value, exact in zip(ours.predict(x), truth.predict(x), strict=True):
            torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(ours.mean(x), truth.predict(x)[0], rtol=1e-6, atol=1e-8)
        close(ours.predict(x, joint=True)[1].diagonal(), truth.predict(x)[1], 1e-5)
        close(ours.error(x, y).log_density, truth.error(x, y).log_density, 1e-5)
        close(ours.leave_one_out().total, truth.leave_one_out().total, 1e-3)  # differences lose digits
        close(ours.training_error(), truth.training_error(), 1e-5)

    @pytest.mark.parametrize("width", [8.0, 1000.0, math.inf])
    def test_the_mixture_theory(self, width):
        """Three nodes in place of dozens, at a part of low rank that is the whole matrix: nothing scatters."""
        model = make_model(RenormalizedNNGPKernel("relu", width=[width, width]))
        options = replace(EXACT, rank=P, num_probes=2, variance_tolerance=1e-8, num_left_out=60)
        ours, truth = Mixture().fit(StreamedProblem.of_streamed(model, options)), Mixture().fit(model)
        for name in ("r", "q"):
            close(ours.order_parameters[name], truth.order_parameters[name], 1e-5)
        assert abs(ours.log_evidence - truth.log_evidence) < 1e-4
        assert ours.conditioned.log_weights.exp().sum() == pytest.approx(1.0, abs=1e-12)
        x, y = test_points()
        ours_error, error = ours.error(x, y), truth.error(x, y)
        for name in ("mean", "variance", "log_density"):  # of the rule 6e-7 is left, at a posterior as wide as 0.12
            away = (getattr(ours_error, name) - getattr(error, name)).abs().max()
            assert away < 2e-6 * getattr(error, name).abs().max()
        rows = ours.conditioned.left_out_points
        away = ours.leave_one_out().log_density - truth.leave_one_out().log_density[rows]
        assert away.abs().max() < 1e-4  # weights follow the point that is left out

    def test_the_targets_are_solved_once_for_each_scale(self, monkeypatch):
        problem = StreamedProblem.of_streamed(make_model(), replace(EXACT, tolerance=1e-3))
        x, _ = test_points()
        first = problem.at(0.7).mean(x)
        monkeypatch.setattr(KernelOperator, "matmul", None)
        assert torch.equal(problem.at(0.7).mean(x), first)
