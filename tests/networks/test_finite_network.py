"""The fully connected network against numpy loops, against kernels and against ridge regression."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from torch_propkernel import Erf, NNGPKernel, ReLU
from torch_propkernel.activations import Identity
from torch_propkernel.networks import FiniteNetwork


def network(activation=None, input_dim=3, width=4, **kwargs):
    generator = torch.Generator().manual_seed(0)
    return FiniteNetwork(activation or Erf(), input_dim, width, dtype=torch.float64, generator=generator, **kwargs)


def points(count=5, dim=3, seed=1):
    return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariance_and_error(values):
    """Second moments of ``draws x P`` and their standard errors."""
    products = values.unsqueeze(-1) * values.unsqueeze(-2)
    return products.mean(0), products.std(0) / math.sqrt(len(values))


def slow_forward(net, x):
    """f(x) in Python loops, from the physical weights."""
    numpy = [(w.detach().numpy(), None if b is None else b.detach().numpy()) for w, b in net.layers()]
    output = []
    for row in x.numpy():
        state = row
        for weight, bias in numpy:
            h = [sum(w * s for w, s in zip(line, state, strict=True)) / math.sqrt(len(state)) for line in weight]
            h = [value + (0.0 if bias is None else bias[i]) for i, value in enumerate(h)]
            state = [math.erf(value) for value in h]
        readout = net.readout.detach().numpy()
        weights, shift = readout[: len(state)], readout[len(state) :].sum(0)  # no rows without a bias
        columns = [sum(v * s for v, s in zip(column, state, strict=True)) / len(state) ** 0.5 for column in weights.T]
        output.append(np.array(columns) + shift)
    return np.array(output)


@pytest.mark.parametrize("width", [4, [4, 6, 2]])
@pytest.mark.parametrize("bias", ["none", "all", "last"])
def test_forward_is_the_formula(width, bias):
    depth = 1 if isinstance(width, int) else len(width)
    biases = {"none": [0.0] * depth, "all": [0.5] * depth, "last": [0.0] * (depth - 1) + [2.0]}[bias]
    weights = [0.5 + l for l in range(depth + 1)]
    own = {"none": 0.0, "all": 0.5, "last": 0.0}[bias]
    net = network(width=width, weight_variance=weights, bias_variance=biases, readout_bias_variance=own, num_outputs=2)
    assert len(net.readout) == net.num_features == net.width[-1] + (own > 0)
    assert [b is None for _, b in net.layers()] == [b == 0 for b in biases]
    np.testing.assert_allclose(net(points()).detach().numpy(), slow_forward(net, points()), rtol=1e-12)


def test_layers_have_the_prior_variances():
    net = network(width=[400, 300], input_dim=200, weight_variance=[0.5, 2.0, 4.0], bias_variance=[3.0, 0.7])
    for l, (weight, bias) in enumerate(net.layers()):
        # relative error of a variance of n draws: sqrt(2/n), four of them
        assert float(weight.detach().var()) == pytest.approx(
            float(net.weight_variance[l]), rel=4 * math.sqrt(2 / weight.numel())
        )
        assert float(bias.detach().var()) == pytest.approx(
            float(net.bias_variance[l]), rel=4 * math.sqrt(2 / bias.numel())
        )
    assert float(net.readout.detach().var()) == pytest.approx(4.0, rel=4 * math.sqrt(2 / 300))


@pytest.mark.parametrize("activation", [Erf(), ReLU()])
def test_prior_covariance_of_one_hidden_layer_is_the_kernel_at_any_width(activation):
    kwargs = {"weight_variance": [0.7, 3.0], "bias_variance": 0.4}
    net = network(activation, width=3, readout_bias_variance=0.9, batch_shape=(40_000,), **kwargs)
    kernel = NNGPKernel(activation, **kwargs).double()
    with torch.no_grad():
        covariance, error = covariance_and_error(net(points()))
        expected = kernel(points()).to_dense() + 0.9
    assert float(((covariance - expected) / error).abs().max()) < 4.5  # 15 distinct entries: one in 10,000 seeds
    assert float((error / expected.diagonal().max()).max()) < 0.03  # so a wrong factor 1.15 would be found


def test_second_moments_of_hidden_activations_and_deep_linear_networks():
    kwargs = {"weight_variance": [0.7, 1.5, 3.0], "bias_variance": [0.4, 0.2]}
    net = network(Identity(), width=[3, 2], batch_shape=(40_000,), **kwargs)
    kernel = NNGPKernel(Identity(), 2, **kwargs).double()  # exact at any width for the identity
    x = points()
    with torch.no_grad():
        covariance, error = covariance_and_error(net(x))
        assert float(((covariance - kernel(x).to_dense()) / error).abs().max()) < 4.5
        features = net.features(x)
        gram = features @ features.mT  # its mean is K^2 / w_2
        error = gram.std(0) / math.sqrt(len(gram))
        assert float(((gram.mean(0) - kernel(x).to_dense() / 3.0) / error).abs().max()) < 4.5


def test_deep_nonlinear_prior_approaches_the_kernel():
    net = network(width=[60, 60], batch_shape=(10_000,), weight_variance=[2.0, 1.5, 3.0])
    kernel = NNGPKernel(Erf(), 2, weight_variance=[2.0, 1.5, 3.0]).double()
    with torch.no_grad():
        covariance, error = covariance_and_error(net(points(4)))
        expected = kernel(points(4)).to_dense()
    # a finite width changes it by O(1/60) of the diagonal on top of the Monte Carlo error
    assert bool(((covariance - expected).abs() < 4.5 * error + 2 / 60 * expected.diagonal().max()).all())


def test_input_scale_and_active_dims_are_those_of_the_kernel():
    scale = torch.tensor([0.2, 0.8, 2.0], dtype=torch.float64)
    net = network(width=[5], input_scale=scale, active_dims=[4, 0, 2], batch_shape=(40_000,))
    kernel = NNGPKernel(Erf(), ard_num_dims=3, active_dims=[4, 0, 2]).double()
    kernel.ard_weights = scale
    x = points(4, 6)
    with torch.no_grad():
        covariance, error = covariance_and_error(net(x))
        assert float(((covariance - kernel(x).to_dense()) / error).abs().max()) < 4.5


def test_batches_of_networks_and_of_inputs():
    x = points()
    net = network(width=[4, 6], batch_shape=(7,), bias_variance=1.0)
    assert net(x).shape == (7, 5)
    single = network(width=[4, 6], bias_variance=1.0)
    for i in range(7):
        with torch.no_grad():
            single.hidden.copy_(net.hidden[i])
            single.readout.copy_(net.readout[i])
        torch.testing.assert_close(net(x)[i], single(x), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(net.log_prior()[i], single.log_prior(), rtol=1e-12, atol=0.0)
    assert single.features(x, hidden=net.hidden.expand(2, 7, -1)).shape == (2, 7, 5, 6)
    torch.testing.assert_close(single.features(x, net.hidden[3]), net.features(x)[3], rtol=1e-12, atol=1e-14)
    many = torch.stack([points(seed=s) for s in range(7)])
    torch.testing.assert_close(net(many)[2], net(many[2])[2], rtol=1e-12, atol=1e-14)
    assert network(num_outputs=1)(x).shape == (5, 1)
    assert network(num_outputs=3, batch_shape=(2, 7))(x).shape == (2, 7, 5, 3)


def test_features_differentiate_and_map_over_hidden():
    net, x = network(width=[4, 3], bias_variance=1.0), points()
    assert torch.autograd.gradcheck(lambda hidden: net.features(x, hidden), (net.hidden,))
    hidden = torch.randn(6, net.num_hidden, dtype=torch.float64)
    mapped = torch.func.vmap(lambda h: net.features(x, h))(hidden)
    torch.testing.assert_close(mapped, net.features(x, hidden), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bias", [[], [0.3]])
def test_log_prior_is_the_density_of_both_parameters(bias):
    net = network(
        width=[4, 3],
        weight_variance=[1.0, 1.0, 5.0],
        readout_bias_variance=sum(bias),
        num_outputs=2,
        batch_shape=(3,),
    )
    hidden = torch.distributions.Normal(0.0, 1.0).log_prob(net.hidden).sum(-1)
    deviation = torch.tensor([5.0] * 3 + bias, dtype=torch.float64).sqrt().unsqueeze(-1)
    readout = torch.distributions.Normal(0.0, deviation).log_prob(net.readout).sum((-2, -1))
    torch.testing.assert_close(net.log_prior(), hidden + readout, rtol=1e-12, atol=0.0)


def test_gradient_descent_with_a_fixed_hidden_layer_reaches_the_ridge_solution():
    temperature, variance = 0.3, 2.0
    net, x = network(width=6, weight_variance=[1.0, variance]), points(20)
    y = torch.sin(x.sum(-1))
    net.hidden.requires_grad_(False)
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = 0.5 * (y - net(x)).square().sum() - temperature * net.log_prior()
        value.backward()
        return value

    optimizer.step(loss)
    phi = net.features(x)
    ridge = torch.linalg.solve(phi.T @ phi + temperature / variance * torch.eye(6, dtype=torch.float64), phi.T @ y)
    torch.testing.assert_close(net.readout.detach().squeeze(-1), ridge, rtol=1e-8, atol=1e-8)


def test_all_parameters_get_gradients():
    net = network(width=[4, 3], bias_variance=1.0)
    (0.5 * net(points()).square().sum() - net.log_prior()).backward()
    assert all(bool((p.grad != 0).all()) for p in net.parameters())
    assert dict(net.named_parameters()).keys() == {"hidden", "readout"}


def test_state_dict_pickle_and_copy():
    net = network(width=[4, 3], bias_variance=[1.0, 0.0], weight_variance=[1.0, 2.0, 3.0], input_scale=[1.0, 2.0, 0.0])
    other = FiniteNetwork(Erf(), 3, [4, 3], bias_variance=[1.0, 0.0], input_scale=[1.0, 1.0, 1.0], dtype=torch.float64)
    other.load_state_dict(net.state_dict())
    for twin in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(points()), net(points()))
        assert torch.equal(twin.log_prior(), net.log_prior())
    swapped = FiniteNetwork(Erf(), 3, [4, 4], bias_variance=[0.0, 1.0], dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"expected biases in layers \(False, True\), got \(True, False\)"):
        swapped.load_state_dict(network(width=[4, 4], bias_variance=[1.0, 0.0]).state_dict())
    older = network().state_dict()
    del older["readout_bias_variance"]  # as before there were any
    network().load_state_dict(older)
    with pytest.raises(RuntimeError, match="size mismatch for readout"):
        network().load_state_dict(network(readout_bias_variance=1.0).state_dict())


def test_dtypes_keep_the_variances_exact():
    net = FiniteNetwork(Erf(), 3, 4, weight_variance=[0.1, 0.3])
    assert net.hidden.dtype == torch.float32 and net.weight_variance.dtype == torch.float64
    assert net(points().float()).dtype == torch.float32
    assert net.double().weight_variance.tolist() == [0.1, 0.3]
    assert net(points()).dtype == torch.float64


def test_the_generator_decides_the_draw():
    first, second = network(), network()
    assert torch.equal(first.hidden, second.hidden) and torch.equal(first.readout, second.readout)
    assert second.sample_prior_(torch.Generator().manual_seed(5)) is second
    assert not torch.equal(first.hidden, second.hidden)
    assert first.hidden.requires_grad and first.hidden.is_leaf


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device():
    net = network(width=[4, 3], bias_variance=1.0, input_scale=[1.0, 2.0, 3.0], active_dims=[0, 1, 2])
    torch.testing.assert_close(copy.deepcopy(net).cuda()(points().cuda()).cpu(), net(points()))
    assert FiniteNetwork(Erf(), 3, 4, device="cuda").readout.is_cuda


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": math.inf}, "width: expected a whole number >= 1, got inf; .* use NNGPKernel"),
        ({"width": [4, 2.5]}, "width: expected a whole number >= 1, got 2.5"),
        ({"width": 0}, "width: expected a whole number >= 1, got 0"),
        ({"width": []}, "width: expected one whole number per hidden layer, got none"),
        ({"width": True}, "width: expected a whole number"),
        ({"input_dim": 0}, "input_dim: expected a whole number >= 1, got 0"),
        ({"num_outputs": 0}, "num_outputs: expected a whole number >= 1, got 0"),
        ({"weight_variance": [1.0, 1.0, 1.0]}, r"weight_variance: expected 1 or 2 numbers, got shape \(3,\)"),
        ({"weight_variance": 0.0}, "weight_variance: expected finite numbers > 0"),
        ({"weight_variance": torch.ones(3, 2)}, r"weight_variance: expected 1 or 2 numbers, got shape \(3, 2\)"),
        ({"bias_variance": -1.0}, "bias_variance: expected finite numbers >= 0"),
        ({"input_scale": [1.0, 2.0]}, r"input_scale: expected 3 numbers >= 0, got \[1.0, 2.0\]"),
        ({"active_dims": [0, 1, -1]}, "active_dims: expected 3 numbers >= 0"),
    ],
)
def test_bad_architectures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="activation: expected an Activation or one of the names .* got 'rulu'"):
        FiniteNetwork("rulu", 3, 4)
    assert FiniteNetwork("relu", 3, 4).activation == ReLU()
    net = network()
    with pytest.raises(ValueError, match=r"x: expected shape \(..., P, 3\), got \(5, 4\)"):
        net(points(dim=4))
    with pytest.raises(ValueError, match=r"x: expected shape \(..., P, 3\), got \(3,\)"):
        net(points()[0])
    with pytest.raises(TypeError, match="expected one dtype for all tensors"):
        net(points().float())
    with pytest.raises(ValueError, match=r"hidden: expected shape \(..., 12\), got \(11,\)"):
        net.features(points(), net.hidden[:-1])
