"""Noise inside the scale, degrees of freedom, priors and what is refused."""

from __future__ import annotations

import copy
import pickle

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from scipy.stats import t

from torch_propkernel.distributions import MultivariateStudentT
from torch_propkernel.likelihoods import LatentStudentT, StudentTProcessLikelihood

F = torch.float64
COVARIANCE = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F)
MEAN = torch.tensor([1.0, -1.0], dtype=F)


def likelihood(noise=0.3, deg_free=5.0, **kwargs):
    found = StudentTProcessLikelihood(**kwargs).double()
    found.noise, found.deg_free = torch.as_tensor(noise, dtype=F), deg_free
    return found


def test_prior_becomes_a_student_t_of_the_same_covariance():
    observed = likelihood()(MultivariateNormal(MEAN, COVARIANCE))
    assert isinstance(observed, MultivariateStudentT) and not isinstance(observed, MultivariateNormal)
    assert observed.df.item() == pytest.approx(5.0, rel=1e-14)
    assert torch.allclose(observed.covariance_matrix, COVARIANCE + 0.3 * torch.eye(2, dtype=F), rtol=0, atol=1e-10)


def test_noise_is_multiplied_by_the_scale():
    latent = LatentStudentT(MEAN, COVARIANCE, torch.tensor(9.0, dtype=F), torch.tensor(2.0, dtype=F))
    observed = likelihood()(latent)
    assert torch.allclose(observed.covariance_matrix, COVARIANCE + 0.6 * torch.eye(2, dtype=F), rtol=0, atol=1e-10)
    assert observed.df.item() == 9.0  # of the posterior, not of the likelihood
    replaced = likelihood()(latent, noise=torch.tensor([0.1, 0.2], dtype=F)).variance
    assert torch.allclose(replaced, torch.tensor([2.2, 1.4], dtype=F), rtol=0, atol=1e-10)


def test_batches():
    found = likelihood(
        noise=torch.tensor([[0.1], [0.2]]), deg_free=torch.tensor([[3.0], [4.0]]), batch_shape=torch.Size([2])
    )
    observed = found(MultivariateNormal(MEAN, COVARIANCE))
    assert observed.df.shape == (2,) and observed.covariance_matrix.shape == (2, 2, 2)
    assert torch.allclose(observed.variance[1], torch.tensor([2.2, 1.2], dtype=F))


def test_log_marginal_is_that_of_each_observation():
    y = torch.tensor([0.0, 2.0], dtype=F)
    found = likelihood().log_marginal(y, MultivariateNormal(MEAN, COVARIANCE))
    scale = ((COVARIANCE.diagonal() + 0.3) * 3 / 5).sqrt()
    assert torch.allclose(found, torch.as_tensor(t.logpdf(y, 5, MEAN, scale)), rtol=0, atol=1e-10)


def test_defaults():
    found = StudentTProcessLikelihood()
    assert 5 <= found.deg_free.item() <= 30
    (prior,) = [p for name, _, p, _, _ in found.named_priors() if name == "deg_free_prior"]
    assert prior.log_prob(torch.tensor(1e9)) < prior.log_prob(found.deg_free).item() - 100  # it keeps nu finite


@pytest.mark.parametrize("value", [2.001, 12.0, 1e9])
def test_round_trip(value):
    found = StudentTProcessLikelihood().double()
    found.deg_free = value
    assert found.deg_free.item() == pytest.approx(value, rel=1e-13)
    assert found.initialize(deg_free=value).deg_free.item() == pytest.approx(value, rel=1e-13)


def test_constraints_and_priors():
    bounded = StudentTProcessLikelihood(deg_free_constraint=gpytorch.constraints.Interval(3.0, 6.0))
    assert 3 < bounded.deg_free.item() < 6
    started = StudentTProcessLikelihood(deg_free_constraint=gpytorch.constraints.GreaterThan(2.5, initial_value=7.0))
    assert started.deg_free.item() == pytest.approx(7.0, rel=1e-6)  # float32
    prior = gpytorch.priors.NormalPrior(8.0, 0.5)
    found = StudentTProcessLikelihood(deg_free_prior=prior, noise_prior=gpytorch.priors.GammaPrior(2.0, 1.0))
    assert {name.split(".")[-1] for name, *_ in found.named_priors()} == {"deg_free_prior", "noise_prior"}
    found.sample_from_prior("deg_free_prior")
    assert 4 < found.deg_free.item() < 12


def test_copies():
    found = likelihood(deg_free=3.25)
    for clone in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert clone.deg_free.item() == found.deg_free.item()
        clone.deg_free = 8.0
        (closure,) = [c for name, _, _, c, _ in clone.named_priors() if name == "deg_free_prior"]
        assert closure(clone).item() == pytest.approx(8.0) and found.deg_free.item() != clone.deg_free.item()
    other = StudentTProcessLikelihood().double()
    other.load_state_dict(found.state_dict())
    assert other.deg_free.item() == found.deg_free.item()


NORMAL = MultivariateNormal(MEAN, COVARIANCE)
REFUSED = {
    "too few": (
        lambda: setattr(likelihood(), "deg_free", 2.0),
        ValueError,
        r"deg_free: expected finite numbers > 2, got",
    ),
    "infinite": (lambda: setattr(likelihood(), "deg_free", float("inf")), ValueError, "expected finite numbers > 2"),
    "constraint": (
        lambda: StudentTProcessLikelihood(deg_free_constraint=gpytorch.constraints.GreaterThan(1.0)),
        ValueError,
        "deg_free_constraint: expected a lower bound >= 2",
    ),
    "samples": (lambda: likelihood()(torch.zeros(3)), NotImplementedError, "given samples of f"),
    "variational": (lambda: likelihood().expected_log_prob(MEAN, NORMAL), NotImplementedError, "variational"),
    "no factor": (
        lambda: likelihood()(MultivariateStudentT(MEAN, COVARIANCE, torch.tensor(5.0, dtype=F))),
        TypeError,
        "expected a MultivariateNormal .* or the output of a StudentTProcess .* got MultivariateStudentT",
    ),
    "tasks": (
        lambda: likelihood()(MultitaskMultivariateNormal(torch.zeros(1, 2, dtype=F), COVARIANCE)),
        TypeError,
        "got MultitaskMultivariateNormal",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


def test_deg_free_beyond_its_bounds_is_refused_and_a_draw_is_moved_inside():
    bounded = gpytorch.constraints.Interval(2.0, 30.0)
    likelihood = StudentTProcessLikelihood(deg_free_constraint=bounded).double()
    with pytest.raises(ValueError, match=r"deg_free: expected numbers within Interval\(2.000E\+00, 3.000E\+01\), got"):
        likelihood.deg_free = 40.0
    for draw, end in ((40.0, 30.0), (0.5, 2.0)):
        likelihood._set_deg_free(likelihood, torch.tensor(draw, dtype=torch.float64))
        assert torch.isfinite(likelihood.raw_deg_free).all() and abs(likelihood.deg_free.item() - end) < 1e-12
