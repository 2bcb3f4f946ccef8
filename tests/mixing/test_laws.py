"""What every mixing law must satisfy: normalization, moments, samples, tails, limits, batches."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats

from torch_propkernel.mixing import (
    GammaMixing,
    InverseGammaMixing,
    LogNormalMixing,
    MixingLaw,
    PointMass,
    ProductGammaMixing,
)


def double(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


LAWS = {
    "gamma-0.5": lambda: GammaMixing(double(0.5)),
    "gamma-3": lambda: GammaMixing(double(3.0)),
    "gamma-100": lambda: GammaMixing(double(100.0)),
    "gamma-1e15": lambda: GammaMixing(double(1e15)),
    "product-1": lambda: ProductGammaMixing(double(7.0).reshape(1)),
    "product-2": lambda: ProductGammaMixing(double(0.5, 40.0)),
    "product-3": lambda: ProductGammaMixing(double(3.0, 5.0, math.inf)),
    "product-6": lambda: ProductGammaMixing(double(2.0, 5.0, 10.0, 50.0, 1e3, 1e12)),
    "inverse-gamma-5": lambda: InverseGammaMixing(double(5.0)),
    "inverse-gamma-40": lambda: InverseGammaMixing(double(40.0)),
    "inverse-gamma-1e14": lambda: InverseGammaMixing(double(1e14)),
    "log-normal-0.01": lambda: LogNormalMixing(double(0.01)),
    "log-normal-2": lambda: LogNormalMixing(double(2.0)),
}


@pytest.fixture(params=LAWS)
def law(request):
    return LAWS[request.param]()


def integrate(law, function, tail=1e-18, nodes=801):
    """The trapezoidal rule in u = log r over the law's interval."""
    lower, upper = (v.double() for v in law.log_interval(tail))
    u = lower + (upper - lower) * torch.linspace(0, 1, nodes, dtype=torch.float64)
    return (function(u) * law.log_density(u).double().exp()).sum() * (u[1] - u[0])


def test_density_is_normalized(law):
    assert abs(integrate(law, torch.ones_like) - 1) < 1e-10


def test_moments(law):
    tail = 1e-30  # r^2 reaches farther out than r
    assert abs(integrate(law, torch.exp, tail) - law.mean) < 1e-10
    if law.variance < 1e6 and not (isinstance(law, InverseGammaMixing) and law.df < 6):
        second = integrate(law, lambda u: torch.expm1(u).square(), tail)
        # Infinite fourth moments and log-normal tails put part of the variance beyond any bound of the mass.
        assert abs(second / law.variance - 1) < 1e-9


def test_samples_follow_the_law(law):
    generator = torch.Generator().manual_seed(1)
    draws = law.sample((4000,), generator=generator).double().log()
    assert draws.shape == (4000,)
    lower, upper = (v.double() for v in law.log_interval())
    u = lower + (upper - lower) * torch.linspace(0, 1, 1001, dtype=torch.float64)
    mass = law.log_density(u).double().exp() * (u[1] - u[0])
    cdf = mass.cumsum(0) - 0.5 * mass
    assert stats.kstest(draws.numpy(), lambda x: np.interp(x, u.numpy(), cdf.numpy())).pvalue > 1e-3
    assert torch.equal(law.sample((3,), generator=generator.manual_seed(5)), law.sample((3,), generator.manual_seed(5)))


@pytest.mark.parametrize("tail", [1e-6, 1e-18])
def test_interval_holds_the_mass(law, tail):
    lower, upper = (v.double() for v in law.log_interval(tail))
    width = upper - lower
    u = torch.linspace(0, 1, 801, dtype=torch.float64).square() * 2 * width  # finer where the density is steep
    outside = sum(torch.trapezoid(law.log_density(v).exp(), u) for v in (lower - u, upper + u))
    assert outside < tail
    # Not wastefully wide either: with half of it much more than the tail is lost.
    assert torch.logaddexp(*(law.log_density(v) for v in (lower + width / 4, upper - width / 4))) > math.log(tail)


def test_log_prob_is_the_density_of_r(law):
    r = torch.exp(law.log_interval(1e-3)[1].double())
    assert abs(law.log_prob(r) - (law.log_density(r.log()) - r.log())) < 1e-12


def test_pickle_copy_repr_and_conversion(law):
    u = torch.tensor(0.01, dtype=torch.float64)
    for other in (pickle.loads(pickle.dumps(law)), copy.deepcopy(law), law.to(torch.float64)):
        assert torch.equal(other.log_density(u), law.log_density(u))
    assert eval(repr(law).replace("inf", "math.inf")).mean.shape == law.mean.shape
    assert law.to(torch.float32).mean.dtype == torch.float32
    assert not law.is_point_mass


def test_derivative_in_u(law):
    if law.variance < 1e-8:
        pytest.skip("finite differences of log r are rounding at this width")
    u = torch.tensor([-0.3, 0.02, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(law.log_density, (u,))
    assert torch.autograd.gradgradcheck(law.log_density, (u,))


@pytest.mark.parametrize(
    "near, name",
    [
        (lambda: GammaMixing(double(1e8)), "width"),
        (lambda: ProductGammaMixing(double(2e8, 2e8)), "widths"),
        (lambda: InverseGammaMixing(double(1e8)), "df"),
        (lambda: LogNormalMixing(double(1e-8)), "c"),
    ],
)
def test_limits_are_one_normal_in_log_r(near, name):
    """With variance v of r, log r is N(-v/2, v) up to relative corrections of order sqrt(v)."""
    law = near()
    v = law.variance
    u = v.sqrt() * torch.linspace(-3, 3, 7, dtype=torch.float64)
    normal = torch.distributions.Normal(-v / 2, v.sqrt()).log_prob(u)
    assert torch.allclose(law.log_density(u), normal, atol=20 * float(v.sqrt()), rtol=0)


@pytest.mark.parametrize(
    "law",
    [
        PointMass(),
        GammaMixing(math.inf),
        ProductGammaMixing([math.inf, math.inf]),
        InverseGammaMixing(math.inf),
        LogNormalMixing(0.0),
    ],
)
def test_point_masses(law):
    assert law.is_point_mass and law.batch_shape == ()
    assert law.mean == 1 and law.variance == 0
    assert torch.equal(law.sample((3,)), torch.ones(3))
    assert [float(v) for v in law.log_interval()] == [0.0, 0.0]
    with pytest.raises(ValueError, match="expected a law with a density, got a point mass"):
        law.log_density(torch.zeros(()))


def test_value_of_a_point_mass():
    law = PointMass(torch.tensor([0.5, 2.0]))
    assert law.batch_shape == (2,) and law.sample((3,)).shape == (3, 2)
    assert torch.allclose(law.log_interval()[0].exp(), law.mean)


BATCHES = [
    GammaMixing(double(3.0, math.inf)),
    ProductGammaMixing(torch.tensor([[3.0, 20.0], [math.inf, math.inf]])),
    InverseGammaMixing(double(7.0, math.inf)),
    LogNormalMixing(double(0.4, 0.0)),
]


@pytest.mark.parametrize("law", BATCHES, ids=lambda law: type(law).__name__)
def test_batch_with_a_point_mass(law):
    assert law.batch_shape == (2,) and not law.is_point_mass
    assert law.point_masses.tolist() == [False, True]
    lower, upper = law.log_interval()
    assert lower[0] < -0.5 and upper[0] > 0.5 and lower[1] == 0 and upper[1] == 0
    density = law.log_density(torch.tensor([[0.0], [0.3]]))
    assert density.shape == (2, 2) and bool(torch.isfinite(density[:, 0]).all())
    assert density[:, 1].tolist() == [0.0, -math.inf]
    draws = law.sample((5,))
    assert draws.shape == (5, 2) and bool((draws[:, 1] == 1).all()) and not bool((draws[:, 0] == 1).any())


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: GammaMixing(0.0), ValueError, "width: expected values > 0, got 0"),
        (lambda: GammaMixing(math.nan), ValueError, "width: expected values > 0, got nan"),
        (lambda: GammaMixing([10.0, 20.0]), TypeError, "width: expected a number or a tensor, got list"),
        (lambda: GammaMixing(torch.tensor(3)), TypeError, "width: expected a floating-point tensor"),
        (lambda: ProductGammaMixing([10.0, -1.0]), ValueError, "width: expected positive numbers"),
        (lambda: ProductGammaMixing([]), ValueError, "width: expected one number per hidden layer"),
        (lambda: InverseGammaMixing(2.0), ValueError, "df: expected values > 2, got 2"),
        (lambda: LogNormalMixing(-0.1), ValueError, "c: expected finite values >= 0"),
        (lambda: LogNormalMixing(math.inf), ValueError, "c: expected finite values >= 0, got inf"),
        (lambda: PointMass(True), TypeError, "value: expected a number or a tensor, got bool"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_law_without_an_end():
    class Flat(GammaMixing):
        def log_density(self, u):
            return torch.zeros_like(u)

    with pytest.raises(RuntimeError, match="found no end of its support"):
        Flat(3.0).log_interval()
    assert issubclass(Flat, MixingLaw)


def test_float32():
    for make in LAWS.values():
        law = make().to(torch.float32)
        u = torch.tensor([-0.1, 0.2])
        assert law.log_density(u).dtype == torch.float32
        if law.variance > 1e-3:
            exact = law.log_density(u.double())
            assert torch.allclose(law.log_density(u).double(), exact.double(), rtol=1e-5, atol=1e-5)
