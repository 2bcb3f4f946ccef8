"""ScaleMixtureMultivariateNormal against the Student's t, brute force, and scipy."""

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
from scipy import integrate, optimize, stats

from torch_propkernel.distributions import MultivariateStudentT, ScaleMixtureMultivariateNormal, mixture_marginals
from torch_propkernel.exceptions import NotPositiveDefiniteError
from torch_propkernel.mixing import GammaMixing, InverseGammaMixing, LogNormalMixing, PointMass, ProductGammaMixing


def spd(*shape, seed=0):
    root = torch.randn(*shape, shape[-1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.transpose(-1, -2) / shape[-1] + 0.3 * torch.eye(shape[-1], dtype=torch.float64)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def mixture():
    """Three nodes with their own locations and covariances, in two dimensions."""
    loc = double([0.0, 1.0], [2.0, -1.0], [-1.0, 0.5])
    return ScaleMixtureMultivariateNormal(double(0.5, -1.0, 0.2), loc, spd(3, 2))


def components(mixture):
    weights = mixture.weights.numpy()
    return weights, [
        stats.multivariate_normal(m.numpy(), c.numpy()) for m, c in zip(mixture.loc, mixture._covariance, strict=True)
    ]


class TestFiniteMixture:
    def test_densities(self, mixture):
        weights, normals = components(mixture)
        x = 2 * torch.randn(7, 2, dtype=torch.float64)
        exact = sum(w * n.pdf(x.numpy()) for w, n in zip(weights, normals, strict=True))
        assert np.allclose(mixture.log_prob(x), np.log(exact), rtol=1e-12)
        for i in range(2):
            pieces = [stats.norm(n.mean[i], n.cov[i, i] ** 0.5) for n in normals]
            density = sum(w * p.pdf(x[:, i].numpy()) for w, p in zip(weights, pieces, strict=True))
            cdf = sum(w * p.cdf(x[:, i].numpy()) for w, p in zip(weights, pieces, strict=True))
            assert np.allclose(mixture.marginal_log_prob(x)[:, i], np.log(density), rtol=1e-12)
            assert np.allclose(mixture.cdf(x)[:, i], cdf, rtol=1e-12)
        assert abs(float(mixture.weights.sum()) - 1) < 1e-15 and mixture.num_nodes == 3

    def test_moments(self, mixture):
        weights, normals = components(mixture)
        mean = sum(w * n.mean for w, n in zip(weights, normals, strict=True))
        second = sum(w * (n.cov + np.outer(n.mean, n.mean)) for w, n in zip(weights, normals, strict=True))
        assert np.allclose(mixture.mean, mean, rtol=1e-14)
        assert np.allclose(mixture.covariance_matrix, second - np.outer(mean, mean), rtol=1e-13)
        assert torch.allclose(mixture.variance, mixture.covariance_matrix.diagonal(), rtol=1e-13)
        assert torch.allclose(mixture.lazy_covariance_matrix.to_dense(), mixture.covariance_matrix)
        assert torch.allclose(mixture.stddev.square(), mixture.variance)

    def test_samples(self, mixture):
        x = mixture.rsample((50_000,))
        assert x.shape == (50_000, 2)
        for i in range(2):
            at = mixture.cdf(x)[:, i]  # uniform if the samples follow the law
            assert stats.kstest(at.numpy(), stats.uniform.cdf).pvalue > 1e-3
        # standard error of the covariances of 50,000 draws: 0.01
        assert torch.allclose(torch.cov(x.T), mixture.covariance_matrix, atol=0.05)

    def test_variances_instead_of_covariances(self, mixture):
        marginal = ScaleMixtureMultivariateNormal(
            mixture.log_weights, mixture.loc, variance=mixture._covariance.diagonal(dim1=-1, dim2=-2)
        )
        x = torch.randn(4, 2, dtype=torch.float64)
        assert torch.equal(marginal.marginal_log_prob(x), mixture.marginal_log_prob(x))
        assert torch.equal(marginal.cdf(x), mixture.cdf(x)) and torch.equal(marginal.icdf(0.2), mixture.icdf(0.2))
        assert torch.equal(marginal.variance, mixture.variance)
        for joint in (lambda: marginal.log_prob(x), marginal.rsample, lambda: marginal.covariance_matrix):
            with pytest.raises(ValueError, match="expected covariances for a joint quantity, got variances"):
                joint()

    def test_noise(self, mixture):
        noise = double(0.3, 0.7)
        noisy = mixture.add_noise(noise)
        assert torch.allclose(noisy.covariance_matrix, mixture.covariance_matrix + noise.diag(), rtol=1e-13)
        assert torch.allclose(noisy._covariance, mixture._covariance + noise.diag())
        marginal = ScaleMixtureMultivariateNormal(double(0.0, 0.0), double([1.0], [2.0]), variance=double([1.0], [2.0]))
        assert torch.allclose(marginal.add_noise(double(0.5)).variance, marginal.variance + 0.5)
        shared = ScaleMixtureMultivariateNormal.from_law(
            GammaMixing(double(6.0)[0]), torch.zeros(2).double(), spd(2), 65
        )
        assert torch.allclose(shared.add_noise(noise).variance, shared.variance + noise)

    def test_gradients(self, mixture):
        x = torch.randn(2, 2, dtype=torch.float64)
        level = double(0.01, 0.7)

        def outputs(log_weights, loc, root):
            m = ScaleMixtureMultivariateNormal(log_weights, loc, root @ root.transpose(-1, -2))
            return m.log_prob(x), m.marginal_log_prob(x), m.cdf(x), m.icdf(level), m.variance, m.covariance_matrix

        inputs = (mixture.log_weights, mixture.loc, torch.linalg.cholesky(mixture._covariance))
        assert torch.autograd.gradcheck(outputs, tuple(v.detach().clone().requires_grad_() for v in inputs))

    def test_copies(self, mixture):
        x = torch.randn(2, dtype=torch.float64)
        expected = mixture.log_prob(x)
        for other in (pickle.loads(pickle.dumps(mixture)), copy.deepcopy(mixture), mixture.expand(())):
            assert torch.equal(other.log_prob(x), expected)
        assert mixture.expand((4,)).log_prob(x).shape == (4,)
        assert repr(mixture) == "ScaleMixtureMultivariateNormal(nodes: 3, loc: (3, 2))"
        assert isinstance(mixture, gpytorch.distributions.Distribution)
        assert not isinstance(mixture, torch.distributions.MultivariateNormal)

    def test_linear_operators(self, mixture):
        lazy = ScaleMixtureMultivariateNormal(mixture.log_weights, mixture.loc, to_linear_operator(mixture._covariance))
        x = torch.randn(2, dtype=torch.float64)
        assert torch.allclose(lazy.log_prob(x), mixture.log_prob(x), rtol=1e-13)
        assert torch.allclose(lazy.variance, mixture.variance, rtol=1e-13)


class TestQuantiles:
    def test_against_a_root_finder(self, mixture):
        for level in (1e-10, 1e-3, 0.5, 0.9):
            found = mixture.icdf(level)
            for i in range(2):

                def error(v, i=i, level=level):
                    return float(mixture.cdf(double(v, v))[i]) - level

                exact = optimize.brentq(error, -40, 40, xtol=1e-13, rtol=1e-13)
                assert abs(float(found[i]) - exact) < 1e-10

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 10**6))
    def test_they_invert_the_cdf(self, seed):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        # Nodes far apart: the density vanishes between them, and so does Newton's step.
        hard = ScaleMixtureMultivariateNormal(3 * draw(2, 5), 30 * draw(2, 5, 3), variance=(4 * draw(2, 5, 3)).exp())
        level = torch.rand(6, 2, 3, generator=generator, dtype=torch.float64)
        assert torch.allclose(hard.cdf(hard.icdf(level)), level, rtol=1e-9, atol=1e-12)

    def test_ends_and_regions(self, mixture):
        assert mixture.icdf(0.0).tolist() == [-math.inf] * 2 and mixture.quantile(1.0).tolist() == [math.inf] * 2
        lower, upper = mixture.confidence_region(0.8)
        assert torch.allclose(mixture.cdf(upper) - mixture.cdf(lower), double(0.8, 0.8), rtol=1e-10)
        for level in (1.5, -0.1, math.nan):
            with pytest.raises(ValueError, match=r"level: expected values in \[0, 1\], got"):
                mixture.icdf(level)
        with pytest.raises(ValueError, match="level: expected a number between 0 and 1, got 95"):
            mixture.confidence_region(95)

    def test_blocks_of_nodes_change_nothing(self, mixture, monkeypatch):
        x = torch.randn(5, 2, dtype=torch.float64)
        expected = mixture.icdf(0.3), mixture.marginal_log_prob(x), mixture.cdf(x)
        monkeypatch.setattr(mixture_marginals, "_BLOCK", 1)
        found = mixture.icdf(0.3), mixture.marginal_log_prob(x), mixture.cdf(x)
        assert all(torch.allclose(a, b, rtol=1e-13) for a, b in zip(found, expected, strict=True))

    def test_zero_variance(self):
        point = ScaleMixtureMultivariateNormal(double(0.0), double([1.5]), variance=double([0.0]))
        assert point.icdf(0.3).item() == pytest.approx(1.5, abs=1e-12)
        assert point.cdf(double(1.4)).item() == 0.0 and point.cdf(double(1.6)).item() == 1.0

    def test_float32(self, mixture):
        single = ScaleMixtureMultivariateNormal(
            *(v.float() for v in (mixture.log_weights, mixture.loc, mixture._covariance))
        )
        assert single.icdf(0.2).dtype == torch.float32
        assert torch.allclose(single.icdf(0.2).double(), mixture.icdf(0.2), atol=1e-5)


class TestFromLaw:
    @pytest.mark.parametrize("df", [3.0, 8.0, 200.0, 1e6])
    @pytest.mark.parametrize("size", [1, 3, 40])
    def test_inverse_gamma_is_the_student_t(self, df, size):
        loc, covariance = torch.randn(size, dtype=torch.float64), spd(size)
        mixture = ScaleMixtureMultivariateNormal.from_law(InverseGammaMixing(double(df)[0]), loc, covariance)
        t = MultivariateStudentT(loc, df=df, covariance=covariance)
        x = t.sample((50,))
        assert float(mixture.quadrature_error) < 1e-10
        assert torch.allclose(mixture.log_prob(x), t.log_prob(x), rtol=0, atol=1e-10)
        assert torch.allclose(mixture.cdf(x), t.cdf(x), rtol=1e-10)
        assert torch.allclose(mixture.icdf(0.01), t.icdf(0.01), rtol=0, atol=1e-10)
        # For 3 degrees of freedom the second moment of the tail beyond 1e-18 of the mass is 1e-6.
        assert torch.allclose(mixture.covariance_matrix, covariance, rtol=1e-5 if df == 3.0 else 1e-10)

    @pytest.mark.parametrize(
        "law",
        [GammaMixing(double(2.5)[0]), ProductGammaMixing(double(3.0, 9.0)), LogNormalMixing(double(0.8)[0])],
        ids=lambda law: type(law).__name__,
    )
    def test_brute_force(self, law):
        covariance, x = spd(2), np.array([0.7, -1.2])
        mixture = ScaleMixtureMultivariateNormal.from_law(law, torch.zeros(2).double(), covariance)

        def integrand(u):
            normal = stats.multivariate_normal(np.zeros(2), math.exp(u) * covariance.numpy()).pdf(x)
            return normal * math.exp(float(law.log_density(torch.tensor(u, dtype=torch.float64))))

        exact, _ = integrate.quad(integrand, -12, 6, epsabs=0, epsrel=1e-12, limit=200)
        assert abs(float(mixture.log_prob(torch.from_numpy(x))) - math.log(exact)) < 1e-10
        assert torch.allclose(mixture.covariance_matrix, covariance, rtol=1e-9)

    def test_point_mass_is_the_normal(self):
        covariance = spd(3)
        mixture = ScaleMixtureMultivariateNormal.from_law(PointMass(), torch.zeros(3).double(), covariance)
        normal = torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance)
        x = torch.randn(4, 3, dtype=torch.float64)
        assert mixture.num_nodes == 1 and torch.allclose(mixture.log_prob(x), normal.log_prob(x), rtol=1e-13)
        assert torch.allclose(mixture.icdf(0.975), 1.959963984540054 * normal.stddev, rtol=1e-12)

    def test_batches(self):
        law = GammaMixing(double(4.0, 1e6, math.inf))
        loc, covariance = torch.randn(2, 3, 4, dtype=torch.float64), spd(2, 1, 4)
        mixture = ScaleMixtureMultivariateNormal.from_law(law, loc, covariance)
        x = torch.randn(5, 2, 3, 4, dtype=torch.float64)
        assert mixture.batch_shape == (2, 3) and mixture.rsample((7,)).shape == (7, 2, 3, 4)
        assert mixture.quadrature_error.shape == (2, 3) and mixture.icdf(0.2).shape == (2, 3, 4)
        for j, alone in enumerate((law.width[0], law.width[1])):
            one = ScaleMixtureMultivariateNormal.from_law(GammaMixing(alone), loc[:, j], covariance[:, 0])
            assert torch.allclose(one.log_prob(x[:, :, j]), mixture.log_prob(x)[:, :, j], rtol=1e-10)
        normal = torch.distributions.MultivariateNormal(loc[:, 2], covariance[:, 0])
        assert torch.allclose(mixture.log_prob(x)[:, :, 2], normal.log_prob(x[:, :, 2]), rtol=1e-12)

    def test_error_estimate_is_a_bound(self):
        law, covariance = GammaMixing(double(5.0)[0]), spd(30)
        exact = ScaleMixtureMultivariateNormal.from_law(law, torch.zeros(30).double(), covariance)
        x = torch.randn(30, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
        for nodes in (17, 33, 65):
            rough = ScaleMixtureMultivariateNormal.from_law(law, torch.zeros(30).double(), covariance, nodes)
            assert rough.num_nodes == nodes
            assert abs(float(rough.log_prob(x) - exact.log_prob(x))) < float(rough.quadrature_error) + 1e-13
        assert 1e-10 < float(rough.quadrature_error) < 10

    def test_marginals_need_no_covariance(self):
        law = GammaMixing(double(5.0)[0])
        mixture = ScaleMixtureMultivariateNormal.from_law(law, torch.zeros(2).double(), variance=double(1.0, 4.0))
        full = ScaleMixtureMultivariateNormal.from_law(law, torch.zeros(2).double(), double(1.0, 4.0).diag())
        assert torch.allclose(mixture.icdf(0.1), full.icdf(0.1), rtol=1e-11)

    def test_large_dimensions_share_one_factor(self):
        size = 400
        t = MultivariateStudentT(torch.zeros(size).double(), df=6.0, covariance=spd(size))
        law = InverseGammaMixing(double(6.0)[0])
        mixture = ScaleMixtureMultivariateNormal.from_law(law, t.loc, t.covariance_matrix)
        x = t.sample((3,))
        assert torch.allclose(mixture.log_prob(x), t.log_prob(x), rtol=1e-12)
        assert mixture._factor.shape == (1, size, size) and mixture.sample((100,)).shape == (100, size)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(), (2,), (3, 1)]),
    st.sampled_from([(), (2,), (3, 2)]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(), (5,), (2, 1)]),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_batches_are_the_mixtures_one_by_one(weight_shape, loc_shape, own_loc, own_cov, sample_shape, size, nodes):
    log_weights = torch.randn(*weight_shape, nodes, dtype=torch.float64)
    loc = torch.randn(*loc_shape, nodes if own_loc else 1, size, dtype=torch.float64)
    covariance = spd(nodes if own_cov else 1, size)
    mixture = ScaleMixtureMultivariateNormal(log_weights, loc, covariance)
    batch = torch.broadcast_shapes(weight_shape, loc_shape)
    assert mixture.batch_shape == batch and mixture.num_nodes == nodes
    x = torch.randn(*sample_shape, *batch, size, dtype=torch.float64)
    log_prob, marginal = mixture.log_prob(x), mixture.marginal_log_prob(x)
    assert log_prob.shape == sample_shape + batch and marginal.shape == mixture.cdf(x).shape == x.shape
    assert mixture.rsample(sample_shape).shape == x.shape and mixture.mean.shape == (*batch, size)
    assert mixture.covariance_matrix.shape == (*batch, size, size)
    for i in np.ndindex(*batch):
        one = ScaleMixtureMultivariateNormal(mixture.log_weights[i], mixture.loc[i], covariance)
        at = (..., *i, slice(None))
        assert torch.allclose(one.log_prob(x[at]), log_prob[(..., *i)], rtol=1e-11)
        assert torch.allclose(one.marginal_log_prob(x[at]), marginal[at], rtol=1e-11)
        assert torch.allclose(one.covariance_matrix, mixture.covariance_matrix[i])


WEIGHTS, LOC, COV = torch.zeros(2), torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: ScaleMixtureMultivariateNormal(WEIGHTS, LOC), TypeError, "one of covariance and variance, got none"),
        (lambda: ScaleMixtureMultivariateNormal(WEIGHTS, LOC, COV, variance=LOC), TypeError, "variance, got both"),
        (lambda: ScaleMixtureMultivariateNormal(WEIGHTS, LOC[0], COV), ValueError, "expected log_weights"),
        (
            lambda: ScaleMixtureMultivariateNormal(WEIGHTS, LOC, COV[0]),
            ValueError,
            r"covariance: expected shape \(..., n, 3",
        ),
        (
            lambda: ScaleMixtureMultivariateNormal(torch.zeros(3), LOC, COV),
            ValueError,
            "expected shapes .* that broadcast",
        ),
        (
            lambda: ScaleMixtureMultivariateNormal(torch.zeros(1), LOC, COV),
            ValueError,
            "log_weights: expected 2 nodes, got 1",
        ),
        (
            lambda: ScaleMixtureMultivariateNormal(WEIGHTS / 0, LOC, COV),
            ValueError,
            "log_weights: expected numbers below",
        ),
        (
            lambda: ScaleMixtureMultivariateNormal(WEIGHTS, LOC / 0, COV),
            ValueError,
            "loc: expected finite values, got 6 NaN",
        ),
        (
            lambda: ScaleMixtureMultivariateNormal(WEIGHTS, LOC, variance=LOC - 1),
            ValueError,
            "variance: expected finite",
        ),
        (
            lambda: ScaleMixtureMultivariateNormal(WEIGHTS, LOC, COV, scales=WEIGHTS - 1),
            ValueError,
            "scales: expected finite",
        ),
        (lambda: ScaleMixtureMultivariateNormal(WEIGHTS, LOC, COV.double()), TypeError, "expected one dtype for all"),
        (
            lambda: ScaleMixtureMultivariateNormal(WEIGHTS, LOC, COV.to("meta")),
            ValueError,
            "expected one device for all",
        ),
        (
            lambda: ScaleMixtureMultivariateNormal([0.0], LOC, COV),
            TypeError,
            "log_weights: expected a torch.Tensor, got list",
        ),
        (
            lambda: ScaleMixtureMultivariateNormal(WEIGHTS, LOC, -COV).log_prob(LOC[0]),
            NotPositiveDefiniteError,
            "covariance: expected a positive definite matrix",
        ),
        (
            lambda: ScaleMixtureMultivariateNormal(WEIGHTS, LOC, COV).cdf(torch.zeros(2)),
            ValueError,
            "value: expected shape",
        ),
        (
            lambda: ScaleMixtureMultivariateNormal.from_law(GammaMixing(3.0), LOC[0], COV[0], 2),
            ValueError,
            "num_nodes: expected at least 3, or None, got 2",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
