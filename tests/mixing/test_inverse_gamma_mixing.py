"""Student's t process: InverseGamma(df/2, scale (df - 2)/2)."""

import numpy as np
import pytest
import torch
from scipy import stats

from torch_propkernel.mixing import InverseGammaMixing, LogNormalMixing


@pytest.mark.parametrize("df", [2.5, 5.0, 50.0, 3000.0])
def test_density_is_that_of_scipy(df):
    law = InverseGammaMixing(torch.tensor(df, dtype=torch.float64))
    r = torch.tensor([0.1, 0.7, 1.0, 1.3, 5.0, 1e4], dtype=torch.float64)
    expected = stats.invgamma(df / 2, scale=(df - 2) / 2).logpdf(r.numpy())
    assert np.allclose(law.log_prob(r), expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("df", [2.3, 33.9, 34.1, 1e4])
def test_gradient_in_df(df):
    value = torch.tensor([df], dtype=torch.float64, requires_grad=True)
    u = torch.tensor([-0.4, 0.0, 0.9], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: InverseGammaMixing(v).log_density(u), (value,))
    assert torch.autograd.gradgradcheck(lambda v: InverseGammaMixing(v).log_density(u), (value,))


def test_gradient_with_a_point_mass_in_the_batch():
    df = torch.tensor([5.0, torch.inf], requires_grad=True)
    InverseGammaMixing(df).log_density(torch.zeros(2)).sum().backward()
    assert bool(torch.isfinite(df.grad).all())


def test_variance_where_it_does_not_exist():
    assert InverseGammaMixing(torch.tensor([3.0, 4.0, 6.0])).variance.tolist() == [torch.inf, torch.inf, 1.0]


def test_gradient_of_the_log_normal_law():
    c = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: LogNormalMixing(v).log_density(torch.tensor([-0.4, 0.9])), (c,))
