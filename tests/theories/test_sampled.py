"""The sampled network against exact linear networks and independently sampled ones."""

import math
import pickle

import gpytorch
import pytest
import torch

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.activations import get_activation
from torch_propkernel.inference import Problem
from torch_propkernel.theories import Mixture, Sampled, get_theory

torch_double = torch.float64
X = torch.linspace(-1, 1, 12, dtype=torch_double).unsqueeze(-1)
Y = 2.0 * X[:, 0] + 0.3 * torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch_double)


def model(activation="identity", width=4.0, x=X, y=Y, temperature=0.2, mean=None, wrap=None, **kwargs):
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive()).double()
    likelihood.noise = temperature
    kernel = RenormalizedNNGPKernel(activation, width, **kwargs).double()
    return NetworkGP(x, y, likelihood, kernel if wrap is None else wrap(kernel), mean).double()


@pytest.fixture(scope="module")
def pair():
    return Sampled(num_chains=50, seed=1).fit(model()), Mixture().fit(model())


def test_it_stands_in_the_table():
    assert get_theory("sampled") == Sampled()
    watched = Sampled(progress=lambda done, total: None)  # who watches is no part of it, and of no pickle
    assert watched == Sampled() and hash(watched) == hash(Sampled()) and watched != Sampled(seed=1)
    assert pickle.loads(pickle.dumps(watched)).progress is None


class TestALinearNetwork:
    # The mixture is exact there. Errors of 2,000 draws of 50 chains: some hundreds are independent.
    def test_predictions(self, pair):
        x = torch.linspace(-2, 2, 7, dtype=torch_double).unsqueeze(-1)
        (mean, variance), (exact_mean, exact_variance) = (fitted.predict(x) for fitted in pair)
        torch.testing.assert_close(mean, exact_mean, atol=0.02, rtol=0)
        torch.testing.assert_close(variance, exact_variance, rtol=0.1, atol=0)

    def test_joint_distribution_and_quantiles(self, pair):
        x = torch.tensor([[-1.5], [0.5], [2.0]], dtype=torch_double)
        sampled, exact = (fitted.distribution(x, joint=True) for fitted in pair)
        scale = exact.covariance_matrix.diagonal().max()
        torch.testing.assert_close(sampled.covariance_matrix, exact.covariance_matrix, atol=0.1 * float(scale), rtol=0)
        low, high = (fitted.distribution(x).icdf(torch.full((3,), 0.9, dtype=torch_double)) for fitted in pair)
        torch.testing.assert_close(low, high, rtol=0.03, atol=0.03)

    def test_a_readout_bias(self):
        def with_bias(kernel):
            bias = gpytorch.kernels.ConstantKernel().double()
            bias.constant = torch.tensor([3.0], dtype=torch_double)
            return kernel + bias

        biased = model(y=Y + 2.0, wrap=with_bias)
        sampled, exact = Sampled(num_chains=50, seed=1).fit(biased), Mixture().fit(biased)
        x = torch.linspace(-2, 2, 7, dtype=torch_double).unsqueeze(-1)
        (mean, variance), (exact_mean, exact_variance) = (fitted.predict(x) for fitted in (sampled, exact))
        torch.testing.assert_close(mean, exact_mean, atol=0.02, rtol=0)
        torch.testing.assert_close(variance, exact_variance, rtol=0.1, atol=0)
        assert abs(sampled.log_evidence - exact.log_evidence) < 4 * sampled.stats["log_evidence_error"] < 0.4
        left, other = (fitted.leave_one_out() for fitted in (sampled, exact))
        torch.testing.assert_close(left.mean, other.mean, atol=0.02, rtol=0)
        torch.testing.assert_close(left.log_density, other.log_density, atol=0.05, rtol=0)
        torch.testing.assert_close(sampled.training_error(), exact.training_error(), rtol=0.05, atol=0)
        torch.testing.assert_close(sampled.readout_norm, exact.readout_norm, rtol=0.05, atol=0)
        again = sampled.theory.restored(Problem.frozen(biased), sampled.record())
        torch.testing.assert_close(again.predict(x), (mean, variance))

    def test_leave_one_out_and_training_error(self, pair):
        sampled, exact = (fitted.leave_one_out() for fitted in pair)
        torch.testing.assert_close(sampled.mean, exact.mean, atol=0.02, rtol=0)
        torch.testing.assert_close(sampled.log_density, exact.log_density, atol=0.05, rtol=0)
        assert pair[0].left_out_is_trusted and pair[0].left_out_shape.shape == (12,)
        torch.testing.assert_close(pair[0].training_error(), pair[1].training_error(), rtol=0.05, atol=0)

    def test_order_parameter_and_evidence(self, pair):
        sampled, exact = pair
        torch.testing.assert_close(sampled.readout_norm, exact.readout_norm, rtol=0.05, atol=0)
        assert abs(sampled.log_evidence - exact.log_evidence) < 4 * sampled.stats["log_evidence_error"]

    def test_says_how_good_it_is(self, pair):
        stats = pair[0].stats
        assert stats["converged"] and stats["r_hat"] < 1.05 and stats["monte_carlo_error"] < 0.05
        assert stats["draws"] == 1500 and "largest R-hat" in pair[0].message


def test_chains_that_disagree_are_reported():
    # Two separate modes of a one-unit network of even targets at low temperature: no chain passes from one to another.
    y = (2.0 * X[:, 0]).abs()
    fitted = Sampled(num_chains=4, num_draws=4, every=1, seed=0).fit(model("erf", 2.0, y=y, temperature=1e-3))
    assert not fitted.stats["converged"] and "The chains disagree" in fitted.message


@pytest.mark.parametrize("index", [0, 1, 2], ids=["erf", "relu", "two layers"])
def test_shipped_networks(shipped_cases, index):
    case = shipped_cases[index]
    x, y, test_x, test_y = (torch.as_tensor(case[name]) for name in ("X", "y", "Xt", "yt"))
    fitted = Sampled(num_draws=60).fit(
        model(
            get_activation(case["activation"]),
            [float(width) for width in case["widths"]],
            x,
            y,
            case["temperature"],
            weight_variance=[1 / precision for precision in case["precisions"]],
        )
    )
    error, measured = fitted.error(test_x, test_y), case["measured"]
    # The Monte Carlo error of the means, as a share of the spread, is that of the bias too; the other numbers are
    # averages over draws. All are small against three percent.
    for found, name in ((error.mean_total, "mse"), (fitted.readout_norm, "qv"), (fitted.training_error(), "train")):
        assert abs(float(found) / measured[name]["mean"] - 1) < 0.03 + 4 * measured[name]["se"] / measured[name]["mean"]
    assert fitted.stats["monte_carlo_error"] < 0.1


class TestAsATheory:
    def test_one_seed_gives_one_result(self):
        first, second, other = (Sampled(num_chains=4, num_draws=4, seed=s).fit(model("erf")) for s in (3, 3, 4))
        assert torch.equal(first.predict(X)[0], second.predict(X)[0])
        assert not torch.equal(first.predict(X)[0], other.predict(X)[0])

    def test_pickle_and_gradients_in_x(self):
        fitted = pickle.loads(pickle.dumps(Sampled(num_chains=4, num_draws=4).fit(model("erf"))))
        x = X[:3].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda v: fitted.distribution(v).mean, x)

    def test_a_mean_and_a_scale_outside(self):
        mean = gpytorch.means.ConstantMean()
        mean.initialize(constant=5.0)

        def scaled(kernel):
            return gpytorch.kernels.ScaleKernel(kernel.double()).double()

        outside = model("erf", y=Y + 5.0, mean=mean, wrap=scaled)
        outside.covar_module.outputscale = 3.0
        inside = model("erf", weight_variance=[1.0, 3.0])
        options = {"num_chains": 4, "num_draws": 4}
        found, plain = (Sampled(**options).fit(m).predict(X) for m in (outside, inside))
        torch.testing.assert_close(found[0] - 5.0, plain[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[1], plain[1], rtol=1e-6, atol=1e-8)

    def test_single_precision(self):
        found = Sampled(num_chains=4, num_draws=4).fit(model("erf").float())
        mean, variance = found.predict(X.float())
        assert mean.dtype == variance.dtype == torch.float32

    def test_refusals(self):
        for broken, message in (
            (model(width=math.inf), "width: expected whole numbers|infinite"),
            (model(wrap=lambda k: k + k), "expected an NNGPKernel or RenormalizedNNGPKernel"),
        ):
            with pytest.raises((TypeError, ValueError), match=message):
                Sampled().fit(broken)
        with pytest.raises(ValueError, match="num_draws: expected a whole number >= 4"):
            Sampled(num_draws=1)
