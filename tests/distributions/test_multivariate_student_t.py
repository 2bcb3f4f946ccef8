"""MultivariateStudentT against scipy, brute-force integration over the scale, and its own algebra."""

import copy
import math
import pickle

import gpytorch
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_operator import to_linear_operator
from linear_operator.operators import DiagLinearOperator
from scipy import integrate, stats

from torch_propkernel.distributions import MultivariateStudentT
from torch_propkernel.exceptions import NotPositiveDefiniteError


def spd(*shape, seed=0, dtype=torch.float64):
    root = torch.randn(*shape, shape[-1], generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return root @ root.transpose(-1, -2) / shape[-1] + 0.3 * torch.eye(shape[-1], dtype=dtype)


@pytest.fixture(params=["dense", "lazy"])
def case(request):
    loc, scale = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), spd(3)
    return MultivariateStudentT(loc, scale if request.param == "dense" else to_linear_operator(scale), 4.5)


def reference(t):
    return stats.multivariate_t(t.loc.numpy(), t.scale.numpy(), df=float(t.df))


@pytest.mark.parametrize("df", [0.1, 1.0, 2.5, 30.0, 1e4])
def test_log_prob_and_entropy_are_those_of_scipy(df):
    t = MultivariateStudentT(torch.randn(4).double(), spd(4), df)
    x = 3 * torch.randn(6, 4, dtype=torch.float64)
    assert np.allclose(t.log_prob(x), reference(t).logpdf(x.numpy()), rtol=1e-11, atol=1e-11)
    # scipy's entropy subtracts digammas: rounding is amplified by df
    assert abs(float(t.entropy()) - reference(t).entropy()) < 1e-11 * max(1.0, df)


@pytest.mark.parametrize("df", [3.0, 40.0])
def test_density_is_the_integral_over_the_scale(df):
    """Brute force: r ~ InverseGamma(df/2, scale df/2) with covariance r times the scale matrix."""
    scale, x = spd(2), np.array([1.0, -2.5])
    law = stats.invgamma(df / 2, scale=df / 2)
    normal = lambda r: stats.multivariate_normal(np.zeros(2), r * scale.numpy()).pdf(x)  # noqa: E731
    exact, _ = integrate.quad(
        lambda u: normal(np.exp(u)) * law.pdf(np.exp(u)) * np.exp(u), -12, 25, epsabs=0, limit=500
    )
    t = MultivariateStudentT(torch.zeros(2).double(), scale, df)
    assert abs(float(t.log_prob(torch.from_numpy(x))) - math.log(exact)) < 1e-10


def test_moments(case):
    factor = 4.5 / 2.5
    assert torch.equal(case.mean, case.loc)
    assert torch.allclose(case.covariance_matrix, factor * case.scale, rtol=1e-14)
    assert torch.allclose(case.lazy_covariance_matrix.to_dense(), case.covariance_matrix, rtol=1e-14)
    assert torch.allclose(case.variance, factor * case.scale.diagonal(), rtol=1e-14)
    assert torch.allclose(case.stddev, case.variance.sqrt())
    again = MultivariateStudentT(case.loc, df=4.5, covariance=case.lazy_covariance_matrix)
    assert torch.allclose(again.scale, case.scale, rtol=1e-14)
    assert torch.isnan(MultivariateStudentT(torch.zeros(2), torch.eye(2), 1.0).mean).all()


def test_samples(case):
    torch.manual_seed(0)
    x = MultivariateStudentT(case.loc, case.scale, 9.0).rsample((100_000,))
    # The distance b/m follows an F distribution, and each marginal a Student's t.
    white = torch.linalg.solve(torch.linalg.cholesky(case.scale), (x - case.loc).T)
    assert stats.kstest(white.square().sum(0).numpy() / 3, stats.f(3, 9.0).cdf).pvalue > 1e-3
    marginal = (x[:, 1] - case.loc[1]) / case.scale[1, 1].sqrt()
    assert stats.kstest(marginal.numpy(), stats.t(9.0).cdf).pvalue > 1e-3
    # 100,000 draws with kurtosis 4.2 per entry: standard error 0.005 relative
    assert torch.allclose(torch.cov(x.T), case.scale * 9 / 7, atol=0.04)
    assert case.sample((2, 5)).shape == (2, 5, 3) and case.rsample().shape == (3,)


def test_base_samples_are_transformed(case):
    base = torch.randn(7, 4, dtype=torch.float64)
    x = case.rsample(base_samples=base)
    scale = 4.5 / stats.chi2(4.5).isf(stats.norm.cdf(base[:, 0].numpy()))
    root = torch.linalg.cholesky(case.scale)
    expected = case.loc + (base[:, 1:] @ root.T) * torch.from_numpy(scale).sqrt().unsqueeze(-1)
    assert torch.allclose(x, expected, rtol=1e-12) and case.base_sample_shape == (4,)


@pytest.mark.parametrize("df", [0.5, 2.1, 7.0, 300.0, 1e6])
def test_marginal_cdf_and_quantiles(df):
    t = MultivariateStudentT(torch.tensor([1.0, -2.0]).double(), spd(2), df)
    spread = t.scale.diagonal().sqrt()
    level = torch.tensor([1e-12, 1e-4, 0.025, 0.4999, 0.5, 0.7, 0.999], dtype=torch.float64).unsqueeze(-1)
    exact = stats.t(df)
    # scipy's quantile near the median: 1e-8 of its value (checked against 40 digits), 1e-12 absolutely.
    assert np.allclose((t.icdf(level) - t.loc) / spread, exact.ppf(level.numpy()), rtol=1e-10, atol=1e-11)
    x = t.loc + 3 * torch.randn(5, 2, dtype=torch.float64)
    assert np.allclose(t.cdf(x), exact.cdf(((x - t.loc) / spread).numpy()), rtol=1e-12)
    assert torch.allclose(t.cdf(t.quantile(level)), level.expand(-1, 2), rtol=1e-11, atol=0)
    lower, upper = t.confidence_region(0.9)
    assert torch.allclose(t.cdf(upper) - t.cdf(lower), torch.tensor(0.9).double())
    assert t.icdf(0.0)[0] == -math.inf and t.icdf(1.0)[1] == math.inf


@pytest.mark.parametrize("df", [1e15, math.inf])
def test_limit_is_the_normal(df):
    t = MultivariateStudentT(torch.randn(3).double(), spd(3), df)
    normal = torch.distributions.MultivariateNormal(t.loc, t.scale)
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.allclose(t.log_prob(x), normal.log_prob(x), rtol=1e-12)
    assert torch.allclose(t.entropy(), normal.entropy(), rtol=1e-12)
    assert torch.allclose(t.covariance_matrix, t.scale)
    assert np.allclose((t.icdf(0.01) - t.loc) / t.stddev, stats.norm.ppf(0.01), rtol=1e-10)
    base = torch.randn(2, 4, dtype=torch.float64)
    assert torch.allclose(
        t.rsample(base_samples=base), t.loc + base[:, 1:] @ torch.linalg.cholesky(t.scale).T, atol=1e-6
    )
    given = t.condition([0, 2], x[0, [0, 2]])
    ratio = t.log_prob(x[0]) - t.marginal([0, 2]).log_prob(x[0, [0, 2]])
    assert torch.allclose(given.log_prob(x[0, 1:2]), ratio)
    assert given.df == (math.inf if df == math.inf else 1e15 + 2)


def test_condition_is_a_ratio_of_densities(case):
    x = torch.randn(5, 3, dtype=torch.float64)
    for indices in (0, [2], [2, 0], slice(1, None), torch.tensor([True, False, True])):
        known = torch.arange(3)[indices].reshape(-1)
        other = torch.tensor([i for i in range(3) if i not in known])
        given = case.condition(indices, x[:, known])
        ratio = case.log_prob(x) - case.marginal(known).log_prob(x[:, known])
        assert torch.allclose(given.log_prob(x[:, other]), ratio, rtol=1e-11, atol=1e-12)
        assert given.batch_shape == (5,) and bool((given.df == 4.5 + len(known)).all())
    with pytest.raises(ValueError, match="expected some but not all of 3 dimensions, each once, got"):
        case.condition([0, 0], x[:, :2])
    with pytest.raises(ValueError, match=r"values: expected shape \(..., 1\), got \(5, 2\)"):
        case.condition(1, x[:, :2])


def test_indexing(case):
    batch = case.expand((2, 4))
    assert batch.batch_shape == (2, 4) and batch[1].batch_shape == (4,) and batch[:, 2].batch_shape == (2,)
    for index, event in (
        (1, [1]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        (torch.tensor([True, True, False]), [0, 1]),
    ):
        part = batch[..., index]
        assert part.batch_shape == (2, 4) and part.df.shape == (2, 4) and bool((part.df == 4.5).all())
        assert torch.equal(part.loc[0, 0], case.loc[event])
        assert torch.allclose(part.scale[1, 3], case.scale[event][:, event])
    assert batch[0, 1, :2].event_shape == (2,) and batch[..., 1:].islazy == case.islazy
    assert batch[torch.tensor([1, 0, 1])].batch_shape == (3, 4)
    for index in ((0, 0, 0, 0), (..., ...), (None, 0)):
        with pytest.raises(IndexError, match="index: expected"):
            batch[index]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(), (2,), (3, 1), (1, 2), (3, 2)]),
    st.sampled_from([(), (2,), (3, 1), (3, 2)]),
    st.sampled_from([(), (1,), (2,), (3, 2)]),
    st.sampled_from([(), (5,), (2, 1)]),
    st.integers(1, 4),
)
def test_batches_are_the_distributions_one_by_one(loc_shape, scale_shape, df_shape, sample_shape, size):
    loc = torch.randn(*loc_shape, size, dtype=torch.float64)
    scale = spd(*scale_shape, size)
    df = torch.rand(df_shape, dtype=torch.float64) * 5 + 2.5
    t = MultivariateStudentT(loc, scale, df)
    batch = torch.broadcast_shapes(loc_shape, scale_shape, df_shape)
    assert t.batch_shape == batch and t.event_shape == (size,)
    x = torch.randn(*sample_shape, *batch, size, dtype=torch.float64)
    log_prob = t.log_prob(x)
    assert log_prob.shape == sample_shape + batch and t.entropy().shape == batch
    assert t.rsample(sample_shape).shape == x.shape and t.cdf(x).shape == x.shape
    assert t.covariance_matrix.shape == (*batch, size, size) and t.variance.shape == (*batch, size)
    for i in np.ndindex(*batch):
        one = MultivariateStudentT(t.loc[i], t.scale[i], t.df[i])
        at = (..., *i, slice(None))
        assert torch.allclose(one.log_prob(x[at]), log_prob[(..., *i)], rtol=1e-12, atol=1e-12)
        assert torch.allclose(one.entropy(), t.entropy()[i])
        assert torch.allclose(one.icdf(0.3), t.icdf(0.3)[i])


@pytest.mark.parametrize("df", [1.3, 5.0, 31.9, 200.0])
def test_gradients_of_log_prob(df):
    loc = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    root = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    nu = torch.tensor([df, df + 1.0], dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)

    def log_prob(loc, root, nu, x):
        return MultivariateStudentT(loc, root @ root.T + torch.eye(3).double(), nu).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, (loc, root, nu, x))
    assert torch.autograd.gradcheck(lambda r, nu: MultivariateStudentT(loc.detach(), r @ r.T, nu).entropy(), (root, nu))


def test_gradient_in_df_beside_a_normal():
    df = torch.tensor([5.0, math.inf], requires_grad=True)
    t = MultivariateStudentT(torch.zeros(2), torch.eye(2), df)
    (t.log_prob(torch.ones(2)).sum() + t.entropy().sum() + t.rsample().sum()).backward()
    assert bool(torch.isfinite(df.grad).all())


def test_samples_are_differentiable():
    """d E[x^2] / d df of a unit scale matrix, df/(df - 2), is -2/(df - 2)^2."""
    torch.manual_seed(3)
    df = torch.tensor(12.0, dtype=torch.float64, requires_grad=True)
    t = MultivariateStudentT(torch.zeros(1).double(), torch.eye(1).double(), df)
    t.rsample((200_000,)).square().mean().backward()
    # The standard error of the estimate is 0.0005.
    assert abs(float(df.grad) + 0.02) < 0.002


def test_pickle_copy_and_conversion(case):
    x = torch.randn(3, dtype=torch.float64)
    expected = case.log_prob(x)
    for other in (pickle.loads(pickle.dumps(case)), copy.deepcopy(case), case.expand(()), case.to(torch.float64)):
        assert torch.equal(other.log_prob(x), expected)
    assert "MultivariateStudentT(loc: (3,), scale: (3, 3)" in repr(case)
    single = case.to(torch.float32)
    assert single.log_prob(x.float()).dtype == single.rsample().dtype == single.icdf(0.3).dtype == torch.float32
    assert torch.allclose(single.log_prob(x.float()).double(), expected, rtol=1e-5)
    needs_grad = MultivariateStudentT(case.loc.clone().requires_grad_(), case.scale, 5.0)
    needs_grad.log_prob(x)
    copy.deepcopy(needs_grad)


def test_it_is_never_a_normal(case):
    assert not isinstance(case, torch.distributions.MultivariateNormal)
    assert isinstance(case, gpytorch.distributions.Distribution)
    for part in (case[..., :2], case.marginal(0), case.expand((2,)), case.condition(0, case.loc[:1])):
        assert isinstance(part, MultivariateStudentT) and not isinstance(part, torch.distributions.MultivariateNormal)


def test_large_dimensions():
    size = 600
    t = MultivariateStudentT(torch.zeros(size).double(), spd(size), 5.0)
    x = t.sample()
    assert abs(float(t.log_prob(x)) / reference(t).logpdf(x.numpy()) - 1) < 1e-11
    single = t.to(torch.float32)
    # Distances of 600 dimensions in float32: 1e-4 of their value.
    assert abs(float(single.log_prob(x.float())) / float(t.log_prob(x)) - 1) < 1e-4
    diagonal = MultivariateStudentT(torch.zeros(5).double(), DiagLinearOperator(torch.rand(5).double() + 1), 5.0)
    assert diagonal.islazy and diagonal.log_prob(torch.ones(5).double()).shape == ()


def test_singular_scale_can_be_sampled():
    scale = torch.ones(3, 3, dtype=torch.float64)
    t = MultivariateStudentT(torch.zeros(3).double(), scale, 5.0)
    x = t.sample((10,))
    assert torch.allclose(x[:, :1].expand(-1, 3), x, atol=1e-6)  # the root of a rounding error of 1e-16 is 1e-8
    with pytest.raises(NotPositiveDefiniteError, match="scale: expected a positive definite matrix, got one whose"):
        t.log_prob(torch.zeros(3).double())
    bad = MultivariateStudentT(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 5.0)
    with pytest.raises(NotPositiveDefiniteError, match="scale: expected a positive semi-definite matrix, got an eigen"):
        bad.sample()


ZERO, UNIT = torch.zeros(2), torch.eye(2)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: MultivariateStudentT(ZERO, UNIT, 0.0), ValueError, "df: expected numbers > 0, got 0"),
        (lambda: MultivariateStudentT(ZERO, UNIT, math.nan), ValueError, "df: expected numbers > 0, got nan"),
        (lambda: MultivariateStudentT(ZERO, df=2.0, covariance=UNIT), ValueError, "df: expected numbers > 2 for a cov"),
        (
            lambda: MultivariateStudentT(ZERO, UNIT, 2.0).variance,
            ValueError,
            "df: expected > 2 for a covariance to exist",
        ),
        (lambda: MultivariateStudentT(ZERO, df=3.0), TypeError, "exactly one of scale and covariance, got none"),
        (lambda: MultivariateStudentT(ZERO, UNIT, 3.0, covariance=UNIT), TypeError, "scale and covariance, got both"),
        (
            lambda: MultivariateStudentT(ZERO, torch.eye(3), 3.0),
            ValueError,
            r"scale: expected shape \(..., 2, 2\), got",
        ),
        (lambda: MultivariateStudentT(torch.zeros(()), UNIT, 3.0), ValueError, r"loc: expected shape \(..., m\)"),
        (
            lambda: MultivariateStudentT(ZERO, UNIT.double(), 3.0),
            TypeError,
            "expected one dtype for all tensors, got loc",
        ),
        (
            lambda: MultivariateStudentT(ZERO, UNIT.to("meta"), 3.0),
            ValueError,
            "expected one device for all tensors, got",
        ),
        (
            lambda: MultivariateStudentT(ZERO, UNIT * math.nan, 3.0),
            ValueError,
            "scale: expected finite values, got 4 NaN",
        ),
        (lambda: MultivariateStudentT(ZERO / 0, UNIT, 3.0), ValueError, "loc: expected finite values, got 2 NaN"),
        (lambda: MultivariateStudentT([0.0], UNIT, 3.0), TypeError, "loc: expected a torch.Tensor, got list"),
        (lambda: MultivariateStudentT(ZERO, UNIT, 3.0).log_prob(torch.zeros(3)), ValueError, "value: expected shape"),
        (lambda: MultivariateStudentT(ZERO, UNIT, 3.0).icdf(1.1), ValueError, r"level: expected values in \[0, 1\]"),
        (
            lambda: MultivariateStudentT(ZERO, UNIT, 3.0).rsample(base_samples=torch.zeros(4, 2)),
            ValueError,
            r"base_samples: expected shape \(..., 3\), got \(4, 2\)",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
