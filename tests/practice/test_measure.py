"""Measured order parameters: their definition, their prior law, and exact statements about the posterior."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from torch_propkernel import Erf, ReLU
from torch_propkernel.activations import Identity
from torch_propkernel.networks import ConvolutionalNetwork, FiniteNetwork
from torch_propkernel.practice import linear_default_variances, measure_order_parameters

TEMPERATURE = 0.5
X = torch.tensor([[1.0, 0.5], [-0.3, 1.2]], dtype=torch.float64)
Y = torch.tensor([1.5, -0.8], dtype=torch.float64)


def prior_draws(activation, width, count=400_000, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return FiniteNetwork(activation, 2, width, batch_shape=(count,), dtype=torch.float64, generator=generator, **kwargs)


def posterior_mean(values, weights):
    """Self-normalized importance sampling: mean over the posterior and its standard error, ``... `` of draws x ..."""
    weights = weights / weights.sum()
    mean = torch.tensordot(weights, values, dims=1)
    return mean, torch.tensordot(weights.square(), (values - mean).square(), dims=1).sqrt()


def likelihood(values):
    return torch.exp(-0.5 * (Y - values).square().sum(-1) / TEMPERATURE)


def test_definition_by_loops():
    net = FiniteNetwork(Erf(), 3, [4, 6, 5], weight_variance=[0.5, 2.0, 3.0, 4.0], bias_variance=1.0).double()
    measured = measure_order_parameters(net)
    weights = [w.detach().numpy() for w, _ in net.layers()]
    v = net.readout.detach().numpy()[:, 0]
    for layer, weight, variance in zip(measured.layers, weights, [0.5, 2.0, 3.0], strict=False):
        assert float(layer.mean_square) == pytest.approx((weight**2).sum() / variance / weight.size, rel=1e-12)
    back_two = weights[2].T @ v / np.linalg.norm(v)
    back_one = weights[1].T @ back_two / np.linalg.norm(back_two)
    expected = [(back_one**2).sum() / 2.0 / 4, (back_two**2).sum() / 3.0 / 6, (v**2).sum() / 4.0 / 5]
    np.testing.assert_allclose(measured.order_parameter.numpy(), expected, rtol=1e-12)
    assert [layer.name for layer in measured.layers] == ["hidden 1", "hidden 2", "hidden 3", "readout"]
    assert [layer.shape for layer in measured.layers] == [(4, 3), (6, 4), (5, 6), (1, 5)]
    assert measured.layers[0].order_parameter is None
    assert float(measured.layers[-1].mean_square) == pytest.approx(expected[-1], rel=1e-12)


def test_prior_law_is_the_theorys_for_any_activation():
    net = prior_draws(ReLU(), [6, 3], count=20_000, weight_variance=[0.5, 2.0, 3.0])
    q = measure_order_parameters(net).order_parameter.numpy()
    for values, width in zip(q.T, (6, 3), strict=True):
        law = scipy.stats.gamma(width / 2, scale=2 / width)
        assert scipy.stats.kstest(values, law.cdf).pvalue > 1e-3
    assert abs(scipy.stats.spearmanr(*q.T).statistic) < 4 / math.sqrt(len(q))  # independent


def test_deep_linear_networks_have_the_order_parameters_of_the_outer_form():
    widths = (4, 3)
    net = prior_draws(Identity(), list(widths), weight_variance=[1.0, 2.0, 1.5])
    with torch.no_grad():
        mean, error = posterior_mean(measure_order_parameters(net).order_parameter, likelihood(net(X)))
    # independent truth: p(q_1, q_2 | y) ~ Gamma(q_1) Gamma(q_2) N(y; 0, T + q_1 q_2 K) on a grid in log q
    u = np.linspace(-9, 4, 700)
    q1, q2 = np.exp(u)[:, None], np.exp(u)[None, :]
    eigenvalues, vectors = np.linalg.eigh(2.0 * 1.5 * (X @ X.T).numpy() / 2)
    z = vectors.T @ Y.numpy()
    variance = TEMPERATURE + (q1 * q2)[..., None] * eigenvalues
    log = -0.5 * (np.log(variance) + z**2 / variance).sum(-1)
    for q, width in ((q1, widths[0]), (q2, widths[1])):
        log = log + scipy.stats.gamma(width / 2, scale=2 / width).logpdf(q) + np.log(q)
    density = np.exp(log - log.max())
    expected = np.array([(density * q).sum() / density.sum() for q in (q1, q2)])
    assert float((error / mean).max()) < 0.005
    assert np.abs((mean.numpy() - expected) / error.numpy()).max() < 4
    assert np.abs(expected - 1).min() > 8 * float(error.max())  # the data do move both


@pytest.mark.parametrize("activation", [ReLU(), Identity(), Erf()])
def test_excess_of_the_mean_squares(activation):
    """N_L (E q_L - 1) = E[(y - f).f] / T always; for homogeneous activations it is every layer's excess."""
    net = prior_draws(activation, [3, 2], weight_variance=[1.5, 2.0, 3.0])
    with torch.no_grad():
        values, layers = net(X), measure_order_parameters(net).layers
        work = ((Y - values) * values).sum(-1) / TEMPERATURE
        excess = torch.stack([math.prod(layer.shape) * (layer.mean_square - 1) for layer in layers], dim=-1)
        difference, error = posterior_mean(excess - work.unsqueeze(-1), likelihood(values))
    score = (difference / error).abs()
    assert float(score[-1]) < 4
    if activation.homogeneous_degree == 1:
        assert float(score.max()) < 4
    else:
        assert float(score[:-1].max()) > 8  # the statement is about homogeneous activations


def test_readouts_with_several_blocks():
    net = FiniteNetwork(Erf(), 3, [4, 6], weight_variance=[1.0, 1.0, 2.0], num_outputs=2, batch_shape=(5,))
    measured = measure_order_parameters(net)
    torch.testing.assert_close(measured.readout_matrix, net.readout.mT @ net.readout / 2.0 / 6)
    with pytest.raises(ValueError, match=r"got a matrix order parameter of shape \(5, 2, 2\); use readout_matrix"):
        _ = measured.order_parameter
    assert "readout matrix (2, 2)" in str(measured)

    conv = ConvolutionalNetwork(Erf(), (1, 6), 4, 3, weight_variance=[1.0, 2.0])
    v = conv.readout.detach().reshape(4, 2)
    torch.testing.assert_close(measure_order_parameters(conv).readout_matrix, v.T @ v / 2.0 / 4)


def linear_twin(net):
    """A torch module in the standard parametrization that is the same function as a FiniteNetwork of relu."""
    sizes = [net.input_dim, *net.width, 1]
    modules = []
    for l in range(len(sizes) - 1):
        modules += [torch.nn.Linear(sizes[l], sizes[l + 1], bias=False, dtype=torch.float64), torch.nn.ReLU()]
    weights = [w for w, _ in net.layers()] + [net.readout.mT]
    with torch.no_grad():
        for module, weight in zip(modules[::2], weights, strict=True):
            module.weight.copy_(weight / math.sqrt(weight.shape[-1]))
    return torch.nn.Sequential(*modules[:-1])


def test_linear_layers_are_read_in_the_standard_parametrization():
    variances = [0.5, 2.0, 3.0]
    net = FiniteNetwork(ReLU(), 2, [4, 6], weight_variance=variances, dtype=torch.float64)
    twin = linear_twin(net)
    torch.testing.assert_close(twin(X).squeeze(-1), net(X), rtol=1e-12, atol=1e-14)
    own, measured = measure_order_parameters(net), measure_order_parameters(twin, variances)
    torch.testing.assert_close(measured.order_parameter, own.order_parameter, rtol=1e-12, atol=0.0)
    for one, other in zip(measured.layers, own.layers, strict=True):
        torch.testing.assert_close(one.mean_square, other.mean_square, rtol=1e-12, atol=0.0)
        assert one.shape == other.shape
    assert [layer.name for layer in measured.layers] == ["0", "2", "4"]


def test_default_initialization_measures_one():
    net = torch.nn.Sequential(torch.nn.Linear(200, 300), torch.nn.Tanh(), torch.nn.Linear(300, 1000))
    weight, _ = linear_default_variances([200, 300])
    measured = measure_order_parameters(net, weight)
    for layer in measured.layers:  # a uniform law: var(x^2) / (E x^2)^2 = 4/5
        count = math.prod(layer.shape)
        assert float(layer.mean_square) == pytest.approx(1.0, abs=4 * math.sqrt(0.8 / count))


def test_layers_can_be_named():
    class Branched(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(5, 1)
            self.body = torch.nn.Linear(3, 5)

    net = Branched()
    with pytest.raises(ValueError, match="expected a chain, got 'head' with 1 outputs before 'body' with 3 inputs"):
        measure_order_parameters(net, 1.0)
    measured = measure_order_parameters(net, 1.0, layers=["body", "head"])
    torch.testing.assert_close(measured.order_parameter, net.head.weight.detach().square().sum().reshape(1))
    with pytest.raises(ValueError, match=r"layers: expected two or more of \['head', 'body'\], got \['body', 'tail'\]"):
        measure_order_parameters(net, 1.0, layers=["body", "tail"])


def test_the_table():
    net = FiniteNetwork(Erf(), 3, [50, 8])
    lines = str(measure_order_parameters(net)).splitlines()
    assert lines[0].split() == "layer shape lambda |W|^2/count q of its inputs prior deviation of q".split()
    assert len(lines) == 4 and lines[1].startswith("hidden 1        (50, 3)")
    assert lines[2].endswith("0.2") and lines[3].endswith("0.5")  # sqrt(2/50), sqrt(2/8)
    batch = FiniteNetwork(Erf(), 3, [50, 8], batch_shape=(9,))
    assert str(measure_order_parameters(batch)).count("+-") == 5


def test_what_cannot_be_measured_is_refused():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    with pytest.raises(TypeError, match="network: expected a torch.nn.Module, got list"):
        measure_order_parameters([net])
    with pytest.raises(ValueError, match=r"expected at least two torch.nn.Linear layers .*, got \[\] in Conv1d"):
        measure_order_parameters(torch.nn.Conv1d(1, 1, 1), 1.0)
    with pytest.raises(ValueError, match=r"got \['linear'\] in Linear"):
        measure_order_parameters(torch.nn.Linear(3, 1), 1.0)
    with pytest.raises(ValueError, match="weight_variance: expected 1 or 2 numbers, got None"):
        measure_order_parameters(net)
    with pytest.raises(ValueError, match="weight_variance: expected 1 or 2 numbers"):
        measure_order_parameters(net, [1.0, 1.0, 1.0])
    torch.nn.init.constant_(net[2].weight, math.nan)
    with pytest.raises(ValueError, match="2: expected finite values, got 4 NaN"):
        measure_order_parameters(net, 1.0)


def test_stacked_convolutions_have_their_readouts_matrix():
    """Only what reads single units follows a direction: filters of several places do not, a pool does."""
    geometry = {"image_shape": (1, 8), "kernel_size": [(2,), (2,), (3,)], "stride": 1}
    pooled = ConvolutionalNetwork("erf", channels=[6, 5, 4], readout="pooled", **geometry)
    q = [layer.order_parameter for layer in measure_order_parameters(pooled).layers]
    assert q[:3] == [None, None, None]
    torch.testing.assert_close(q[3], pooled.readout.square().sum() / 4)
    dense = measure_order_parameters(ConvolutionalNetwork("erf", channels=[6, 5, 4], **geometry))
    assert dense.readout_matrix.shape == (4, 4) and all(layer.order_parameter is None for layer in dense.layers)
