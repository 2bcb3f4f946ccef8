"""Sampled posteriors against importance sampling, the prior, the Gaussian process and sampled reference networks."""

import math

import pytest
import torch
from sampling_truth import all_estimates, importance_sampling, problem, rejected

from torch_propkernel import Erf, NNGPKernel, ReLU
from torch_propkernel.activations import get_activation
from torch_propkernel.exceptions import ConvergenceError, SamplingWarning
from torch_propkernel.networks import (
    ConvolutionalNetwork,
    FiniteNetwork,
    HamiltonianMonteCarlo,
    MonteCarloEstimate,
    sample_posterior,
)

DATA = problem(5, 2, 3, seed=1)
T = 0.5


def make(name, batch=()):
    kind = {"dtype": torch.float64, "batch_shape": batch, "generator": torch.Generator().manual_seed(0)}
    if name == "three units":
        return FiniteNetwork(Erf(), 2, 3, weight_variance=[1.0, 2.0], bias_variance=0.5, **kind)
    if name == "a readout bias":
        return FiniteNetwork(Erf(), 2, 3, weight_variance=[1.0, 2.0], readout_bias_variance=1.5, **kind)
    if name == "two layers":
        return FiniteNetwork(ReLU(), 2, [3, 2], weight_variance=[1.0, 1.5, 2.0], **kind)
    if name == "two outputs":
        return FiniteNetwork(Erf(), 2, 3, num_outputs=2, weight_variance=[2.0, 1.0], **kind)
    return ConvolutionalNetwork(ReLU(), (1, 2), 2, 1, weight_variance=[1.0, 2.0], **kind)


def data(name):
    x, y, test_x, test_y = DATA
    if name != "two outputs":
        return DATA
    return x, torch.stack([y, x[:, 0]], dim=-1), test_x, torch.stack([test_y, test_x[:, 0]], dim=-1)


def sample(name, temperature=T, **settings):
    x, y, test_x, test_y = data(name)
    settings = {"num_chains": 32, "num_samples": 300, "warmup": 150} | settings
    return sample_posterior(make(name), x, y, temperature, test_x=test_x, test_y=test_y, **settings)


@pytest.mark.parametrize("name", ["three units", "a readout bias", "two layers", "two outputs", "convolution"])
def test_brute_force(name):
    truth = importance_sampling(make(name, (400_000,)), data(name), T)
    result = sample(name).raise_if_failed()
    assert rejected(all_estimates(result), truth) == {}
    if name == "three units":
        assert rejected(all_estimates(sample(name, 1.1 * T)), truth) != {}


def test_without_information_the_posterior_is_the_prior():
    # T = 1e8; the kernel of one hidden layer is the covariance of the network at any width.
    x, y, test_x, test_y = DATA
    network = FiniteNetwork(ReLU(), 2, 3, weight_variance=[1.0, 2.0], bias_variance=0.5, dtype=torch.float64)
    kernel = NNGPKernel(ReLU(), weight_variance=[1.0, 2.0], bias_variance=0.5).double()
    variance = kernel(test_x).to_dense().diagonal().detach()
    result = sample_posterior(
        network, x, y, 1e8, test_x=test_x, test_y=test_y, num_chains=32, num_samples=300, warmup=100
    )
    # Given the hidden weights some values are known but for terms of the order 1 / T.
    small = 1e-6
    truth = {
        "posterior_mean": (torch.zeros(3, dtype=torch.float64), small),
        "posterior_variance": (variance, small),
        "order_parameter": (torch.ones(()), small),
        "test_error": ((test_y.square() + variance).mean(), small),
        "bias": (test_y.square().mean(), small),
    }
    assert result.variance.standard_error < 0.02 * result.variance.mean
    assert rejected(all_estimates(result), truth) == {}


def test_wide_network_is_the_gaussian_process():
    x, y, test_x, test_y = DATA
    network = FiniteNetwork(Erf(), 2, 400, weight_variance=[1.0, 2.0], dtype=torch.float64)
    kernel = NNGPKernel(Erf(), weight_variance=[1.0, 2.0]).double()
    with torch.no_grad():
        dense = kernel(torch.cat([x, test_x])).to_dense()
    gain = torch.linalg.solve(dense[:5, :5] + T * torch.eye(5, dtype=torch.float64), dense[:5, 5:]).mT
    mean, variance = gain @ y, (dense[5:, 5:] - gain @ dense[:5, 5:]).diagonal()
    result = sample_posterior(network, x, y, T, test_x=test_x, test_y=test_y, num_chains=4, num_samples=400, warmup=80)
    # Corrections are of order 1 / N; the Monte Carlo error is smaller.
    torch.testing.assert_close(result.posterior_mean.mean, mean, rtol=0, atol=5e-3)
    torch.testing.assert_close(result.posterior_variance.mean, variance, rtol=0, atol=5e-3)
    assert result.order_parameter.mean.item() == pytest.approx(1.0, abs=5e-3)


def test_shipped_networks(shipped_cases):
    names = {
        "mse": "test_error",
        "bias2": "bias",
        "variance": "variance",
        "qv": "order_parameter",
        "train": "training_error",
    }
    case = shipped_cases[1]
    x, y, test_x, test_y = (torch.as_tensor(case[name]) for name in ("X", "y", "Xt", "yt"))
    network = FiniteNetwork(
        get_activation(case["activation"]),
        x.shape[1],
        case["widths"],
        weight_variance=[1 / precision for precision in case["precisions"]],
        dtype=torch.float64,
    )
    result = sample_posterior(
        network, x, y, case["temperature"], test_x=test_x, test_y=test_y, num_samples=200, warmup=120, seed=1
    )
    truth = {
        own: tuple(torch.tensor(case["measured"][name][key]) for key in ("mean", "se")) for name, own in names.items()
    }
    # The file's nll is minus the log likelihood without its constant.
    nll = case["measured"]["nll"]
    truth["log_likelihood"] = (torch.tensor(-nll["mean"] - 0.5 * len(y) * math.log(2 * math.pi)), nll["se"])
    assert rejected(result.estimates, truth, limit=4.0) == {}


class TestResult:
    @staticmethod
    @pytest.fixture(scope="class")
    def result():
        return sample("two outputs", keep_weights=True)

    def test_parts_of_the_error(self, result):
        total = result.bias.mean + result.variance.mean
        torch.testing.assert_close(result.test_error.mean, total)
        torch.testing.assert_close(result.variance.mean, result.posterior_variance.mean.sum(-1).mean())

    def test_shapes(self, result):
        assert result.posterior_mean.mean.shape == result.posterior_variance.r_hat.shape == (3, 2)
        assert result.draws.shape == (32, 300, 3, 2)
        assert result.order_parameter_matrix.mean.shape == (2, 2)
        trace = result.order_parameter_matrix.mean.diagonal().mean()
        torch.testing.assert_close(result.order_parameter.mean, trace)

    def test_weights_belong_to_the_draws(self, result):
        features = make("two outputs").features(DATA[2], result.hidden)
        torch.testing.assert_close(features @ result.readout, result.draws)

    def test_draws_have_the_posterior_moments(self, result):
        draws = result.draws.flatten(0, 1)
        error = (result.posterior_variance.mean / 3000).sqrt()  # at least 3000 of 9600 are effective
        assert ((draws.mean(0) - result.posterior_mean.mean).abs() < 5 * error).all()
        torch.testing.assert_close(draws.var(0), result.posterior_variance.mean, rtol=0.15, atol=0)

    def test_seed(self, result):
        settings = {"num_chains": 4, "num_samples": 120, "warmup": 20}
        with pytest.warns(SamplingWarning):
            first, again, other = (sample("two outputs", seed=seed, **settings) for seed in (3, 3, 4))
        assert torch.equal(first.draws, again.draws)
        assert not torch.equal(first.draws, other.draws)

    def test_present_weights_do_not_matter(self):
        x, y, _, _ = DATA
        with pytest.warns(SamplingWarning):
            first, second = (
                sample_posterior(make("three units", batch), x, y, T, num_samples=20, warmup=5)
                for batch in ((), (2, 3))
            )
        assert torch.equal(first.log_likelihood.mean, second.log_likelihood.mean)

    def test_without_test_points(self):
        x, y, _, _ = DATA
        with pytest.warns(SamplingWarning):
            result = sample_posterior(make("three units"), x, y, T, num_samples=20, warmup=5)
        assert result.test_error is result.posterior_mean is result.draws is result.hidden is None
        assert set(result.estimates) == {"training_error", "order_parameter", "log_likelihood"}

    def test_progress(self):
        seen = []
        with pytest.warns(SamplingWarning):
            sample("three units", num_samples=10, warmup=5, progress=lambda *at: seen.append(at))
        assert seen == [(k, 15) for k in range(1, 16)]


def test_error_of_the_mean_is_taken_out_of_the_bias():
    # What is moved from the bias to the variance is the squared error of the posterior mean, on average over runs.
    exact = sample("three units")
    with pytest.warns(SamplingWarning):
        runs = [sample("three units", num_chains=8, num_samples=12, warmup=40, seed=seed) for seed in range(1, 31)]
    plug_in = torch.stack([(DATA[3] - run.posterior_mean.mean).square().mean() for run in runs])
    bias = torch.stack([run.bias.mean for run in runs])
    actual = torch.stack([(run.posterior_mean.mean - exact.posterior_mean.mean).square().mean() for run in runs])
    assert 0.6 < ((plug_in - bias).mean() / actual.mean()).item() < 1.7  # 30 runs of 3 points: about 20 %
    errors = torch.stack([run.bias.standard_error for run in runs])
    assert 0.7 < (errors.square().mean().sqrt() / bias.std()).item() < 1.5


class TestConvergence:
    def test_a_short_run_says_so(self):
        x, y, _, _ = DATA
        with pytest.warns(SamplingWarning, match="not converged: .*effective sample size of .* is .* .limit 400."):
            result = sample_posterior(make("three units"), x, y, T, num_samples=10, warmup=10)
        assert not result.converged
        with pytest.raises(ConvergenceError, match="Use more num_samples, warmup or num_chains"):
            result.raise_if_failed()

    def test_chains_that_do_not_mix_say_so(self):
        # Steps so short that the chains stay where they started.
        sampler = HamiltonianMonteCarlo(step_size=1e-4, trajectory_length=1e-4)
        with pytest.warns(SamplingWarning, match="R-hat of training_error is"):
            result = sample("three units", sampler=sampler, num_chains=4, num_samples=100, warmup=0)
        assert result.training_error.r_hat > 1.5

    def test_a_long_run_says_so_too(self):
        result = sample("three units")
        assert result.raise_if_failed() is result
        assert result.message.startswith("converged: largest R-hat 1.0")


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"num_chains": 1}, ValueError, "num_chains: expected a whole number >= 2, got 1"),
            ({"num_samples": 3}, ValueError, "num_samples: expected a whole number >= 4, got 3"),
            ({"warmup": -1}, ValueError, "warmup"),
            ({"warmup": 2.5}, ValueError, "warmup: expected a whole number >= 0, got 2.5"),
            ({"sampler": "hmc"}, TypeError, "sampler: expected HamiltonianMonteCarlo"),
            ({"test_x": None}, ValueError, "test_x: expected inputs beside test_y, got None"),
            (
                {"test_y": torch.ones(4, dtype=torch.float64)},
                ValueError,
                r"test_y: expected shape \(..., 3\), got \(4,\)",
            ),
            ({"test_y": torch.full((3,), math.nan).double()}, ValueError, "test_y: expected finite values, got 3 NaN"),
            ({"temperature": 0.0}, ValueError, "temperature: expected a finite number > 0"),
        ],
    )
    def test_message(self, change, error, message):
        x, y, test_x, test_y = DATA
        arguments = {"temperature": T, "test_x": test_x, "test_y": test_y} | change
        with pytest.raises(error, match=message):
            sample_posterior(make("three units"), x, y, **arguments)

    def test_infinite_width(self):
        with pytest.raises(ValueError, match="width.*NNGPKernel"):
            FiniteNetwork(Erf(), 2, math.inf)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda():
    x, y, test_x, test_y = (v.cuda() for v in DATA)
    network = make("three units").cuda()
    result = sample_posterior(network, x, y, T, test_x=test_x, test_y=test_y, num_chains=32, num_samples=300)
    assert result.draws.is_cuda
    host = sample("three units")
    for name, value in result.estimates.items():
        moved = MonteCarloEstimate(*(v.cpu() for v in vars(value).values()))
        assert abs(moved.distance(host.estimates[name])) < 5


def test_single_precision():
    x, y, test_x, test_y = (v.float() for v in DATA)
    network = FiniteNetwork(Erf(), 2, 3, weight_variance=[1.0, 2.0], bias_variance=0.5)
    result = sample_posterior(network, x, y, T, test_x=test_x, test_y=test_y, num_chains=32, num_samples=300)
    exact = sample("three units")
    assert result.draws.dtype == torch.float32
    assert abs(exact.test_error.distance(result.test_error)) < 5
