"""Executors take independent work, and the numbers are those of one thread."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

import executor_tasks as tasks
import gpytorch
import pytest
import torch

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel, learning_curve, width_sweep
from torch_propkernel._tasks import map_tasks
from torch_propkernel.practice import compare_with_network
from torch_propkernel.theories import Sampled
from torch_propkernel.tuning import auto as auto_module
from torch_propkernel.tuning import choose_network, fit_hyperparameters, fit_network, fit_predictor
from torch_propkernel.tuning import predictor as predictor_module


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool


@pytest.fixture(scope="module")
def threads():
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.fixture(params=["threads", "processes"])
def executor(request):
    return request.getfixturevalue(request.param)


def make_model(rows=40, **options):
    x = torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = RenormalizedNNGPKernel("relu", width=[20.0, 30.0], bias_variance=0.3, **options).double()
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = 0.1
    return NetworkGP(x, torch.sin(2 * x[:, 0]) + 0.5 * x[:, 1], likelihood, kernel)


def points():
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, torch.sin(2 * x[:, 0]) + 0.5 * x[:, 1]


class TestMap:
    def test_order_and_progress(self, executor):
        seen = []
        found = map_tasks(tasks.square_later, [3, 2, 1, 0], executor, lambda *at: seen.append(at))
        assert found == [9, 4, 1, 0]
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def test_work_is_done_elsewhere(self, threads, processes):
        own = tasks.where(0)
        assert own == (os.getpid(), threading.get_ident())
        assert all(thread != own[1] for _, thread in map_tasks(tasks.where, range(4), threads))
        assert all(process != own[0] for process, _ in map_tasks(tasks.where, range(4), processes))

    def test_the_first_failure_comes_through(self, executor):
        with pytest.raises(ValueError, match="task 2: expected an even number"):
            map_tasks(tasks.only_even, [0, 2, 1, 3], executor)

    def test_what_has_not_begun_is_cancelled(self):
        class Executor:
            made: list[Future] = []

            def submit(self, function, task):
                future = Future()
                if task == 0:
                    future.set_exception(RuntimeError("lost"))
                self.made.append(future)
                return future

        with pytest.raises(RuntimeError, match="lost"):
            map_tasks(abs, [0, 1, 2], Executor())
        assert [future.cancelled() for future in Executor.made] == [False, True, True]

    def test_bad_input(self):
        with pytest.raises(TypeError, match="executor: expected a concurrent.futures.Executor or None, got int"):
            map_tasks(abs, [1], 4)


def same(found, truth):
    # Threads of BLAS may sum in another order; here everything has one thread, and the bits are alike.
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-13)


class TestSameNumbers:
    @pytest.mark.parametrize("composition", ["outer", "nested"])
    def test_width_sweep(self, executor, composition):
        model, (x, y) = make_model(composition=composition), points()
        here, there = (width_sweep(model, [5.0, 50.0], x, y, executor=each) for each in (None, executor))
        for name in ("order_parameter", "log_evidence", "scale"):
            same(getattr(there, name), getattr(here, name))
        same(there.test.total, here.test.total)
        same(there.leave_one_out.log_density, here.leave_one_out.log_density)

    def test_learning_curve(self, executor):
        here, there = (
            learning_curve(make_model(), [10, 30], *points(), num_repeats=2, executor=each) for each in (None, executor)
        )
        same(there.bias, here.bias)
        same(there.order_parameter, here.order_parameter)
        assert there.bias.shape == (2, 2)
        assert len(set(there.bias.flatten().tolist())) == 4  # subsets differ

    @pytest.mark.parametrize(
        "rows, options",
        [
            (30, {"starts": 2}),  # the mixture, whose law of the scale is shared
            (40, {"theory": "infinite_width", "train": ("temperature", "bias_ratio", "scale"), "starts": 4}),
            (320, {"theory": "infinite_width"}),  # screened on a part of the rows
            (
                40,
                {"theory": "infinite_width", "train": ("temperature", "bias_ratio", "weight_variance", "scale", "ard")},
            ),
        ],
    )
    def test_hyperparameters(self, executor, rows, options):
        before = gpytorch.settings.cholesky_max_tries.value()
        here, there = (
            fit_hyperparameters(
                make_model(rows, composition="outer", ard_num_dims=3), **options, warn=False, executor=each
            )
            for each in (None, executor)
        )
        assert there.starts == here.starts
        assert (there.evaluations, there.iterations, there.message) == (here.evaluations, here.iterations, here.message)
        assert there.values == here.values
        assert gpytorch.settings.cholesky_max_tries.value() == before  # threads have restored it in some order

    def test_descents_that_meet(self, executor):
        """Two of these starts end where the first did: one after the other they stop there, and so the results."""
        here, there = (
            fit_hyperparameters(make_model(60), theory="infinite_width", starts=3, warn=False, executor=each)
            for each in (None, executor)
        )
        assert len(set(here.starts)) < 3
        assert there.starts == here.starts and there.evaluations == here.evaluations

    def test_a_fit_that_fails(self, executor):
        with pytest.raises(ValueError, match="expected parameters that the model's forward and likelihood use"):
            model = make_model()
            model.register_module("spare", gpytorch.means.ConstantMean().double())
            fit_hyperparameters(model, train=("temperature", "mean"), executor=executor)

    def test_grid_of_networks(self, executor):
        model, seen = make_model(), []
        data = model.train_inputs[0], model.train_targets
        options = {"activations": ("relu", "erf"), "widths": (20.0, float("inf")), "bias_ratios": (0.1, 1.0)}
        here = choose_network(*data, **options, depths=(1,))
        there = choose_network(*data, **options, depths=(1,), executor=executor, progress=lambda *at: seen.append(at))
        for name in ("log_evidence", "pointwise_log_density", "leave_one_out_error"):
            assert torch.equal(getattr(there, name), getattr(here, name))
        assert [each.name for each in there.baselines] == [each.name for each in here.baselines]
        for found, truth in zip(there.baselines, here.baselines, strict=True):
            assert found.fit.starts == truth.fit.starts
            assert torch.equal(found.pointwise_log_density, truth.pointwise_log_density)
        assert seen == [(done, 4) for done in range(1, 5)]

    def test_hyperparameters_of_many_rows(self, executor, monkeypatch):
        monkeypatch.setattr(auto_module, "_COARSE_ROWS", 20)
        model = make_model()
        data = model.train_inputs[0], model.train_targets
        here, there = (fit_network(*data, "erf", executor=each) for each in (None, executor))
        assert there.weight_variance == pytest.approx(here.weight_variance, rel=1e-10)
        assert there.ard_weights == pytest.approx(here.ard_weights, rel=1e-10)

    def test_folds_of_a_predictor(self, executor, monkeypatch):
        monkeypatch.setattr(predictor_module, "_RUNGS", (0.3, 0.1))
        model, seen = make_model(24), []
        data = model.train_inputs[0], model.train_targets
        theory = Sampled(num_chains=4, num_draws=8)
        options = {"ard_weights": 1.0, "bias_variance": 0.0, "width": 6, "theory": theory}
        here = fit_predictor(*data, "erf", **options)
        there = fit_predictor(*data, "erf", **options, executor=executor, progress=lambda *at: seen.append(at))
        found, expected = ([c.fold_log_density for c in fit.candidates] for fit in (there, here))
        for one, other in zip(found, expected, strict=True):  # 1e-11 apart in some runs: rounding
            assert one == (other if other is None else pytest.approx(other, rel=1e-9))
        assert any(c.fold_log_density is not None for c in here.candidates[1:])
        assert seen == [(done, 7) for done in range(1, 8)]

    def test_theories_beside_a_network(self, executor):
        model, (x, y) = make_model(12, composition="outer"), points()
        options = {"num_samples": 4, "warmup": 0, "num_chains": 2}
        with pytest.warns(match="effective|R-hat"):
            here, there = (compare_with_network(model, x, y, **options, executor=each) for each in (None, executor))
        assert there.skipped == here.skipped != {}
        assert list(there.predicted) == list(here.predicted)
        for theory, values in here.predicted.items():
            # Threads decide which reduction serves the others; a scale found by search keeps half of the digits.
            assert there.predicted[theory] == pytest.approx(values, rel=1e-6)
