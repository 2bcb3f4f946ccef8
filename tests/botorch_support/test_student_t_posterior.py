"""The posterior's moments, quantiles and samples, and the samplers that BoTorch picks for it."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from botorch.acquisition.objective import ExpectationPosteriorTransform, ScalarizedPosteriorTransform
from botorch.posteriors import Posterior, PosteriorList
from botorch.sampling import IIDNormalSampler, SobolQMCNormalSampler
from botorch.sampling.get_sampler import get_sampler
from botorch.sampling.list_sampler import ListSampler
from scipy.stats import invgamma, kstest, norm, t
from torch.quasirandom import SobolEngine

from torch_propkernel.botorch_support import StudentTPosterior
from torch_propkernel.distributions import MultivariateStudentT

F = torch.float64
LOC = torch.tensor([1.0, -2.0], dtype=F)
SCALE = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=F)


def posterior(df=5.0, loc=LOC, scale=SCALE):
    return StudentTPosterior(MultivariateStudentT(loc, scale, torch.tensor(df, dtype=F)))


def test_moments_and_shapes():
    found = posterior()
    assert isinstance(found, Posterior)
    assert torch.equal(found.mean, LOC.unsqueeze(-1))
    assert torch.allclose(found.variance.squeeze(-1), SCALE.diagonal() * 5 / 3, rtol=1e-14)
    assert found.base_sample_shape == (3,) and found.batch_range == (0, -1)
    assert found._extended_shape(torch.Size([7])) == (7, 2, 1)
    assert found.dtype == F and found.device == LOC.device
    assert found.rsample(torch.Size([7])).shape == (7, 2, 1) and found.rsample().shape == (1, 2, 1)


def test_quantiles_and_densities():
    found, levels = posterior(), torch.tensor([0.1, 0.5, 0.99], dtype=F)
    for i in range(2):
        law = t(5, LOC[i].item(), SCALE[i, i].sqrt().item())
        assert np.allclose(found.quantile(levels)[:, i, 0], law.ppf(levels), rtol=0, atol=1e-10)
        assert np.allclose(found.density(levels)[:, i, 0], law.pdf(levels), rtol=0, atol=1e-10)
    assert found.quantile(levels[:1]).shape == found.density(levels[:1]).shape == (2, 1)


def test_samples_are_linear_in_the_root_and_the_scale_has_its_quantiles():
    """Base samples (z_0, z): loc + sqrt(s) L z, with P(s <= quantile) = Phi(z_0)."""
    base = torch.tensor([[0.0, 1.0, -1.0], [1.3, 0.5, 2.0], [-2.0, 0.1, 0.2]], dtype=F)
    found = posterior().rsample_from_base_samples(torch.Size([3]), base).squeeze(-1)
    root = np.linalg.cholesky(SCALE.numpy())
    width = np.sqrt(invgamma(2.5, scale=2.5).ppf(norm.cdf(base[:, 0])))
    expected = LOC.numpy() + width[:, None] * (base[:, 1:].numpy() @ root.T)
    assert np.allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampler", [IIDNormalSampler, SobolQMCNormalSampler])
def test_samplers(sampler):
    found = posterior(df=6.0)
    samples = sampler(torch.Size([8192]), seed=1)(found)
    assert samples.shape == (8192, 2, 1)
    # 4 deviations of 8192 independent samples; variances have a heavy tail
    assert torch.allclose(samples.mean(0), found.mean, atol=4 * (3 / 8192) ** 0.5)
    assert torch.allclose(samples.var(0), found.variance, rtol=0.1)
    for i in range(2):
        law = t(6, LOC[i].item(), SCALE[i, i].sqrt().item())
        assert kstest(samples[:, i, 0].numpy(), law.cdf).pvalue > 1e-3
    # The scale is shared: squares are correlated beyond what the covariance explains.
    standardized = torch.linalg.solve(torch.linalg.cholesky(SCALE), (samples - found.mean).squeeze(-1).T)
    assert np.corrcoef(standardized.square().clamp(max=20).numpy())[0, 1] > 0.05


class Wide(MultivariateStudentT):
    """Shapes only: nobody factors so many points in a test."""

    event_shape = torch.Size([SobolEngine.MAXDIM])  # one more base sample, for the scale, is too many


def test_dispatch():
    found = posterior()
    assert isinstance(get_sampler(found, torch.Size([4])), SobolQMCNormalSampler)
    big = StudentTPosterior(Wide(torch.zeros(1), torch.eye(1), 5.0))
    assert isinstance(get_sampler(big, torch.Size([4])), IIDNormalSampler)
    several = get_sampler(PosteriorList(found, posterior(3.0)), torch.Size([4]))
    assert isinstance(several, ListSampler)
    assert several(PosteriorList(found, posterior(3.0))).shape == (4, 2, 2)


def test_common_random_numbers():
    """One sampler: the same values for a candidate wherever it is in the batch, and for the first points if q grows."""
    sampler = get_sampler(posterior(), torch.Size([16]), seed=3)
    one = sampler(posterior())
    batched = posterior(loc=LOC.expand(4, 2), scale=SCALE.expand(4, 2, 2))
    assert torch.allclose(sampler(batched)[:, 3], one, rtol=0, atol=1e-12)
    wider_loc, wider = torch.cat([LOC, LOC[:1]]), torch.eye(3, dtype=F)
    wider[:2, :2] = SCALE
    grown = SobolQMCNormalSampler(torch.Size([16]), seed=5)
    first = get_sampler(posterior(), torch.Size([16]), seed=3)
    first(posterior())
    grown._update_base_samples(posterior(loc=wider_loc, scale=wider), first)
    assert torch.allclose(grown(posterior(loc=wider_loc, scale=wider))[:, :2], one, rtol=0, atol=1e-12)


def test_gradients_of_samples():
    base = torch.randn(5, 3, dtype=F, generator=torch.Generator().manual_seed(0))
    root = torch.linalg.cholesky(SCALE).requires_grad_()

    def samples(loc, root):
        return posterior(loc=loc, scale=root @ root.T).rsample_from_base_samples(torch.Size([5]), base)

    assert torch.autograd.gradcheck(samples, (LOC.clone().requires_grad_(), root.detach().requires_grad_()))


@pytest.mark.filterwarnings("ignore:A not p.d.:linear_operator.utils.warnings.NumericalWarning")
def test_singular_covariances_are_sampled():
    """A point twice, at a scale where an absolute jitter would be far too large."""
    singular = posterior(scale=1e-12 * torch.ones(2, 2, dtype=F))
    samples = singular.rsample(torch.Size([100])).squeeze(-1) - LOC
    assert torch.allclose(samples[:, 0], samples[:, 1], atol=1e-9)  # jitter of 1e-8 of the variance: 1e-10


def test_affine():
    moved = posterior().affine(torch.tensor(3.0, dtype=F), torch.tensor([-2.0], dtype=F))
    assert moved.df.item() == 5.0
    assert torch.allclose(moved.mean.squeeze(-1), 3 - 2 * LOC, rtol=1e-14)
    assert torch.allclose(moved.student_t.covariance_matrix, 4 * posterior().student_t.covariance_matrix, rtol=1e-14)


def test_copies():
    for clone in (copy.deepcopy(posterior()), pickle.loads(pickle.dumps(posterior()))):
        assert torch.equal(clone.variance, posterior().variance)


REFUSED = {
    "distribution": (
        lambda: posterior().distribution,
        AttributeError,
        "expected a normal posterior, got a StudentTPosterior",
    ),
    "mvn": (lambda: posterior().mvn, AttributeError, "expected a normal posterior"),
    "scalarized as if normal": (
        lambda: ScalarizedPosteriorTransform(torch.ones(1, dtype=F))(posterior()),
        NotImplementedError,
        "only works with a posterior that has an attribute",
    ),
    "averaged as if normal": (
        lambda: ExpectationPosteriorTransform(2)(posterior()),
        AttributeError,
        "expected a normal posterior",
    ),
    "base samples": (
        lambda: posterior().rsample_from_base_samples(torch.Size([4]), torch.zeros(4, 2, dtype=F)),
        ValueError,
        r"base_samples: expected shape \(4, 3\), got \(4, 2\)",
    ),
    "a normal": (
        lambda: StudentTPosterior(torch.distributions.Normal(0.0, 1.0)),
        TypeError,
        "student_t: expected a MultivariateStudentT, got Normal",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()
