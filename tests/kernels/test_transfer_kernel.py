"""The kernel of coupled hidden weights: its limits, its coupling by brute force, and what the theories make of it."""

from __future__ import annotations

import math

import gpytorch
import pytest
import torch

from torch_propkernel import NetworkGP, NNGPKernel, RenormalizedNNGPKernel
from torch_propkernel.kernels import BlockRenormalizedKernel, TransferKernel
from torch_propkernel.networks import ConvolutionalNetwork, FiniteNetwork
from torch_propkernel.theories import Adaptive, SaddlePoint, Sampled

pytestmark = pytest.mark.usefixtures("in_double_precision")
OPTIONS = {"weight_variance": [1.5, 0.7], "bias_variance": 0.3}


def points(rows, columns=4, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network():
    return FiniteNetwork("erf", 4, 20, **OPTIONS)


@pytest.fixture
def source(network):
    """Weights that no prior has: along one direction, larger than one."""
    return 0.5 * points(300, network.num_hidden, seed=1) + 1.5


def test_without_coupling_it_is_the_kernel_of_infinite_width(network, source):
    x = points(6)
    kernel = TransferKernel(network, source, coupling=0.0, num_fresh=10)
    expected = NNGPKernel("erf", **OPTIONS)(x).to_dense()
    units = 300 * 20 * 10  # of deviation at most 0.7, the readout's variance, since |erf| < 1
    assert bool(((kernel(x).to_dense() - expected).abs() < 5 * 0.7 / math.sqrt(units)).all())
    coupled = TransferKernel(network, source, coupling=0.8, num_fresh=10)
    assert not bool(((coupled(x).to_dense() - expected).abs() < 5 * 0.7 / math.sqrt(units)).all())
    # weights with the prior's law keep it at any coupling
    drawn = TransferKernel(network, points(3000, network.num_hidden, seed=2), coupling=0.6)
    assert bool(((drawn(x).to_dense() - expected).abs() < 5 * 0.7 / math.sqrt(units)).all())


def test_at_full_coupling_it_is_linear_in_the_features_of_the_source(network, source):
    x, z = points(6), points(3, seed=3)
    kernel = TransferKernel(network, source.reshape(3, 100, -1), coupling=1.0)
    first, second = network.features(x, source), network.features(z, source)
    expected = 0.7 * torch.einsum("snf,smf->nm", first, second) / 300
    torch.testing.assert_close(kernel(x, z).to_dense(), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(kernel(x, diag=True), kernel(x).to_dense().diagonal(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        kernel(torch.stack([x, 2 * x]))[1].to_dense(), kernel(2 * x).to_dense(), rtol=1e-12, atol=0
    )


def test_coupled_units_have_a_shifted_gaussian_law():
    """One unit at one point: E erf(c h_s + sqrt(1 - c^2) g)^2, by quadrature over g."""
    network, weight, c = FiniteNetwork("erf", 1, 1, weight_variance=[2.0, 0.7]), 1.7, 0.6
    kernel = TransferKernel(network, torch.tensor([[weight]]), coupling=c, num_fresh=200_000)
    grid = torch.linspace(-9, 9, 4001)
    values = torch.erf(math.sqrt(2.0) * 0.8 * (c * weight + math.sqrt(1 - c**2) * grid)).square()
    expected = 0.7 * torch.trapezoid(values * torch.exp(-0.5 * grid**2), grid) / math.sqrt(2 * math.pi)
    found = kernel(torch.tensor([[0.8]])).to_dense().squeeze()
    assert abs(found - expected) < 5 * 0.7 * 0.5 / math.sqrt(200_000)  # a number between 0 and 1: at most 1/2


def test_theories_renormalize_it_with_one_number():
    """Without coupling: the saddle point of the network itself, up to the kernel's Monte Carlo error."""
    x, test_x = points(20, 8), points(5, 8, seed=4)
    y, network = 3 * x[:, 0], FiniteNetwork("erf", 8, 100)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 0.2
    kernel = TransferKernel(network, torch.zeros(1000, network.num_hidden), coupling=0.0)
    fitted = SaddlePoint().fit(NetworkGP(x, y, likelihood, BlockRenormalizedKernel([[kernel]], width=30)))
    plain = SaddlePoint().fit(NetworkGP(x, y, likelihood, RenormalizedNNGPKernel("erf", width=30)))
    q, expected = fitted.order_parameters["Q"].item(), plain.order_parameters["q"].item()
    assert abs(expected - 1) > 0.3
    assert q == pytest.approx(expected, rel=0.02)  # 100,000 units: 0.3 %, more in the small eigenvalues
    for one, other in zip(fitted.predict(test_x), plain.predict(test_x), strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


def test_features_that_were_learned_help_a_related_task():
    """A single-index source and another function of the same index: the coupling that leaving out points chooses."""
    direction = torch.zeros(15)
    direction[0] = math.sqrt(15)
    x, target_x, test_x = points(150, 15), points(25, 15, seed=5), points(300, 15, seed=6)

    def index(points):
        return points @ direction / math.sqrt(15)

    def model(x, y, kernel):
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        likelihood.noise = 0.05
        return NetworkGP(x, y, likelihood, kernel)

    task = model(x, 2 * torch.tanh(2 * index(x)), RenormalizedNNGPKernel("erf", width=20))
    sampled = Sampled(num_chains=8, num_draws=10).fit(task)
    kernel = TransferKernel(sampled.conditioned.network, sampled.conditioned.states)
    densities, errors = [], []
    for coupling in (0.0, 0.7, 1.0):
        kernel.coupling = coupling
        renormalized = BlockRenormalizedKernel([[kernel]], width=20)
        fitted = SaddlePoint().fit(model(target_x, 2 * torch.sin(2 * index(target_x)), renormalized))
        densities.append(fitted.leave_one_out().log_density.mean().item())
        errors.append(fitted.error(test_x, 2 * torch.sin(2 * index(test_x))).mean_bias.item())
    best = max(range(3), key=densities.__getitem__)
    assert errors[best] < 0.6 * errors[0]


def test_units_of_the_adaptive_theory_are_a_source():
    """Of a source task with fewer points than inputs: against its sampled networks, with and without a bias."""
    x, test_x = points(12, 16), points(8, 16, seed=4)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 0.1
    for bias in (0.0, 0.5):
        task = NetworkGP(x, 3 * x[:, 0], likelihood, RenormalizedNNGPKernel("erf", width=30, bias_variance=bias))
        sampled = Sampled(num_chains=16, num_draws=30).fit(task)
        units = Adaptive(num_units=1000).fit(task).draw_units(20_000)
        kernels = [
            TransferKernel(FiniteNetwork("erf", 16, 1, bias_variance=bias), units),
            TransferKernel(sampled.conditioned.network, sampled.conditioned.states),
            NNGPKernel("erf", bias_variance=bias),
        ]
        cheap, exact, prior = (kernel(torch.cat([x, test_x])).to_dense() for kernel in kernels)
        # 14,400 units of 16 chains, and 1,000 of the theory
        assert (cheap - exact).norm() < 0.25 * (prior - exact).norm()


def test_other_networks_kinds_and_gradients(network, source):
    image = ConvolutionalNetwork("relu", (1, 4), 3, 2)
    kernel = TransferKernel(image, points(5, image.num_hidden), coupling=0.5)
    assert kernel(points(3)).to_dense().shape == (3, 3)
    single = TransferKernel(network, source, coupling=0.5).float()
    x = points(4).float().requires_grad_()
    single(x).to_dense().sum().backward()
    assert x.grad.dtype == torch.float32 and bool(x.grad.isfinite().all())
    assert not any(parameter.requires_grad for parameter in single.parameters())


def test_bad_input_is_refused(network, source):
    with pytest.raises(ValueError, match="coupling: expected a number from 0 to 1, got 1.5"):
        TransferKernel(network, source, coupling=1.5)
    with pytest.raises(ValueError, match=r"source: expected shape \(..., 100\), got \(300, 99\)"):
        TransferKernel(network, source[:, 1:])
    with pytest.raises(ValueError, match="source: expected finite values, got 30000 NaN"):
        TransferKernel(network, math.nan * source)
    with pytest.raises(TypeError, match="network: expected a FiniteNetwork"):
        TransferKernel(torch.nn.Linear(2, 2), source)
    with pytest.raises(ValueError, match="expected no readout bias, got one of variance 2"):
        TransferKernel(FiniteNetwork("erf", 4, 20, readout_bias_variance=2.0, **OPTIONS), source)
    with pytest.raises(ValueError, match="num_fresh: expected a whole number"):
        TransferKernel(network, source, num_fresh=0)
