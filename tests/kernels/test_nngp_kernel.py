"""The NNGP kernel: parametrization, exactness, shapes, what trains, bad input."""

from __future__ import annotations

import copy
import pickle

import gpytorch
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from torch_propkernel import ArcCosineKernel, Erf, NNGPKernel, ReLU
from torch_propkernel.activations import GELU, Identity, Sign, Square, Tanh
from torch_propkernel.exceptions import InputScaleWarning


def points(n: int = 7, d: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def monte_carlo_covariance(phi, x, weights, biases, width=1500, networks=60, seed=0):
    """Covariance of the outputs of wide networks drawn from the prior: the meaning of every variance."""
    rng = np.random.default_rng(seed)
    total = np.zeros((len(x), len(x)))
    for _ in range(networks):
        h = x @ rng.normal(0, np.sqrt(weights[0] / x.shape[1]), (x.shape[1], width))
        h = h + rng.normal(0, np.sqrt(biases[0]), width)
        for w, b in zip(weights[1:-1], biases[1:], strict=True):
            h = phi(h) @ rng.normal(0, np.sqrt(w / width), (width, width)) + rng.normal(0, np.sqrt(b), width)
        total += weights[-1] * phi(h) @ phi(h).T / width  # the readout is integrated out exactly
    return total / networks


def test_variances_mean_what_the_docstring_says():
    x = points(5).numpy()
    kernel = NNGPKernel(ReLU(), 2, weight_variance=[1.5, 0.7, 2.0], bias_variance=[0.3, 0.2]).double()
    ours = kernel(torch.from_numpy(x)).to_dense().detach().numpy()
    sampled = monte_carlo_covariance(lambda u: np.maximum(u, 0), x, [1.5, 0.7, 2.0], [0.3, 0.2])
    # Two layers fluctuate by 1/sqrt(width * networks) = 0.3 % of the diagonal, the biases of layer 1 by more.
    assert np.abs(ours / sampled - 1).max() < 0.05


@pytest.mark.parametrize("activation", [Erf(), ReLU(), GELU(), Tanh(), Sign(), Square(), Identity()], ids=repr)
def test_dense_diagonal_equals_diag(activation):
    x = torch.cat([points(), points()[:3], 1e-4 * points()[:2], torch.zeros(1, 4, dtype=torch.float64)])
    kernel = NNGPKernel(activation, 3, bias_variance=0.1 if activation != Sign() else 0.0).double()
    dense = kernel(x).to_dense()
    assert torch.allclose(dense.diagonal(), kernel(x, diag=True), rtol=1e-13, atol=1e-15)
    assert torch.equal(dense, dense.transpose(0, 1)) or torch.allclose(dense, dense.transpose(0, 1), rtol=1e-13)
    # elementwise over two different sets of points
    other = points(seed=1)
    kernel.eval()
    expected = kernel(points(), other).to_dense().diagonal()
    assert torch.allclose(kernel(points(), other, diag=True), expected, rtol=1e-12, atol=1e-14)


def test_duplicates_in_two_tensors_agree_with_the_diagonal():
    x = points()
    dense = NNGPKernel(Sign(), 2).double()(x, x.clone()).to_dense()
    assert torch.allclose(dense.diagonal(), torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-12)


def test_homogeneity_and_rotation():
    x, kernel = points(), NNGPKernel(ReLU(), 2).double()
    rotation = torch.linalg.qr(points(4, 4, seed=2)).Q
    assert torch.allclose(kernel(3 * x).to_dense(), 9 * kernel(x).to_dense(), rtol=1e-12)
    assert torch.allclose(kernel(x @ rotation).to_dense(), kernel(x).to_dense(), rtol=1e-11)


def test_arc_cosine_is_half_of_cho_and_saul():
    x = points(3)
    c = (x @ x.T) / 4
    t = torch.arccos((c / torch.sqrt(c.diag()[:, None] * c.diag())).clamp(-1, 1))
    j = [
        torch.pi - t,
        torch.sin(t) + (torch.pi - t) * torch.cos(t),
        3 * torch.sin(t) * torch.cos(t) + (torch.pi - t) * (1 + 2 * torch.cos(t) ** 2),
    ]
    for order in range(3):
        theirs = (c.diag()[:, None] * c.diag()) ** (order / 2) * j[order] / torch.pi
        # arccos loses half the digits on the diagonal; off it the two agree to rounding
        assert torch.allclose(ArcCosineKernel(order).double()(x).to_dense(), theirs / 2, rtol=1e-7)
    with pytest.raises(ValueError, match="expected 0, 1 or 2, got 3"):
        ArcCosineKernel(3)


def test_ard_weights_have_mean_one_and_act_on_the_columns():
    kernel = NNGPKernel(Erf(), ard_num_dims=4).double()
    kernel.ard_weights = torch.tensor([4.0, 2.0, 1.0, 1.0])
    assert torch.allclose(kernel.ard_weights, torch.tensor([[2.0, 1.0, 0.5, 0.5]], dtype=torch.float64), rtol=1e-12)
    plain = NNGPKernel(Erf()).double()
    scaled = points() * torch.tensor([2.0, 1.0, 0.5, 0.5], dtype=torch.float64).sqrt()
    assert torch.allclose(kernel(points()).to_dense(), plain(scaled).to_dense(), rtol=1e-12)


def test_what_trains():
    trainable = lambda k: {n for n, p in k.named_parameters() if p.requires_grad}  # noqa: E731
    assert trainable(NNGPKernel(ReLU(), 2)) == {"raw_readout_variance"}
    assert trainable(NNGPKernel(ReLU(), 2, bias_variance=0.1)) == {"raw_readout_variance", "raw_bias_variance"}
    assert trainable(NNGPKernel(Erf(), 2)) == {"raw_readout_variance", "raw_hidden_weight_variance"}


def test_a_layer_without_bias_stays_without():
    kernel = NNGPKernel(Erf(), 2, bias_variance=[0.2, 0.0])
    assert kernel.bias_variance.tolist()[0][1] == 0.0
    with pytest.raises(ValueError, match="built without a bias"):
        kernel.bias_variance = torch.tensor([0.1, 0.1])
    kernel.initialize(bias_variance=torch.tensor([0.4, 0.0]))
    assert kernel.bias_variance[0, 0].item() == pytest.approx(0.4, rel=1e-6)


def test_gradients_at_coincident_and_zero_rows():
    base = points(4, 3)
    x = torch.cat([base, base[:2], torch.zeros(1, 3, dtype=torch.float64)]).requires_grad_(True)
    kernel = NNGPKernel(Erf(), 2, bias_variance=0.1).double()
    assert gradcheck(lambda v: kernel(v).to_dense(), (x,), atol=1e-8)
    # relu has no derivative at a zero row, at coincident ones it has
    x = torch.cat([base, base[:2]]).requires_grad_(True)
    relu = NNGPKernel(ReLU(), 2, bias_variance=0.1).double()
    # The finite difference moves coincident rows apart, where the kernel has a kink of third order: error of order eps.
    assert gradcheck(lambda v: relu(v).to_dense(), (x,), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [Erf(), ReLU(), Tanh(), Sign()], ids=repr)
def test_gradients_are_finite_for_hard_rows(activation, dtype):
    base = points(3, 3).to(dtype)
    x = torch.cat([base, base, -base, 1e-12 * base, torch.zeros(2, 3, dtype=dtype)]).requires_grad_(True)
    kernel = NNGPKernel(activation, 2).to(dtype)
    value = kernel(x).to_dense()
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in kernel.parameters() if p.grad is not None)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.sampled_from([(), (2,), (3, 2)]),
    data_batch=st.sampled_from([(), (2,), (3, 1)]),
    n=st.integers(1, 4),
    m=st.integers(1, 4),
    d=st.integers(1, 3),
    depth=st.integers(1, 3),
)
def test_shapes(batch, data_batch, n, m, d, depth):
    generator = torch.Generator().manual_seed(0)
    kernel = NNGPKernel(Erf(), depth, bias_variance=0.1, batch_shape=torch.Size(batch)).double()
    x1 = torch.randn(*data_batch, n, d, generator=generator, dtype=torch.float64)
    x2 = torch.randn(*data_batch, m, d, generator=generator, dtype=torch.float64)
    shape = torch.broadcast_shapes(batch, data_batch)
    dense = kernel(x1, x2).to_dense()
    assert dense.shape == (*shape, n, m)
    index = tuple(0 for _ in shape)
    alone = NNGPKernel(Erf(), depth, bias_variance=0.1).double()
    first = alone(x1[tuple(0 for _ in data_batch)], x2[tuple(0 for _ in data_batch)]).to_dense()
    assert torch.allclose(dense[index], first, rtol=1e-12)
    # forward, because GPyTorch mistakes a b x n diagonal with b = n for a matrix
    assert kernel.forward(x1, x1, diag=True).shape == (*shape, n)


def test_host_combinations():
    x = points(6, 4)
    kernel = NNGPKernel(ReLU(), active_dims=[0, 1]).double() + NNGPKernel(Erf(), active_dims=[2, 3]).double()
    parts = [NNGPKernel(ReLU()).double()(x[:, :2]).to_dense(), NNGPKernel(Erf()).double()(x[:, 2:]).to_dense()]
    assert torch.allclose(kernel(x).to_dense(), parts[0] + parts[1], rtol=1e-12)
    product = NNGPKernel(ReLU(), active_dims=[0, 1]).double() * NNGPKernel(Erf(), active_dims=[2, 3]).double()
    assert torch.allclose(product(x).to_dense(), parts[0] * parts[1], rtol=1e-12)
    multitask = gpytorch.kernels.MultitaskKernel(NNGPKernel(Erf()), num_tasks=2, rank=1).double()
    assert multitask(x).to_dense().shape == (12, 12)
    with gpytorch.settings.lazily_evaluate_kernels(False):
        assert torch.allclose(NNGPKernel(Erf()).double()(x[:, 2:]).to_dense(), parts[1], rtol=1e-12)


def test_inducing_points():
    x = points(20, 3)
    base = NNGPKernel(Erf(), bias_variance=0.1).double()
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    kernel = gpytorch.kernels.InducingPointKernel(base, inducing_points=x.clone(), likelihood=likelihood)
    # All rows as inducing points: Nystrom is exact up to GPyTorch's jitter.
    assert torch.allclose(kernel(x).to_dense(), base(x).to_dense(), atol=1e-3)


def test_functional_transforms():
    x = points(3, 2)
    kernel = NNGPKernel(Erf(), 2, bias_variance=0.1).double().requires_grad_(False)
    function = lambda v: kernel.forward(v, v).sum()  # noqa: E731
    gradient = torch.func.grad(function)(x)
    reference = torch.autograd.grad(function(y := x.clone().requires_grad_(True)), y)[0]
    assert torch.allclose(gradient, reference, rtol=1e-12)
    hessian = torch.func.hessian(function)(x)
    assert torch.isfinite(hessian).all()
    fresh = NNGPKernel(Erf(), 2, bias_variance=0.1).double().requires_grad_(False)  # has not looked at any input yet
    assert torch.func.vmap(lambda v: fresh.forward(v, v).sum())(torch.stack([x, x])).shape == (2,)
    batch = torch.stack([x, 2 * x])
    assert torch.allclose(torch.func.vmap(function)(batch)[1], function(2 * x), rtol=1e-12)


def test_copies():
    kernel = NNGPKernel(Tanh(), 2, bias_variance=0.1, ard_num_dims=4).double()
    value = kernel(points()).to_dense()
    for other in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert torch.equal(other(points()).to_dense(), value)


def test_samples_from_priors_are_set():
    torch.manual_seed(0)
    kernel = NNGPKernel(Erf(), 2, bias_variance=[0.1, 0.0], ard_num_dims=3)
    for name in ("weight_variance_prior", "readout_variance_prior", "bias_ratio_prior", "ard_prior"):
        before = [p.clone() for p in kernel.parameters()]
        kernel.sample_from_prior(name)
        assert any(not torch.equal(a, b) for a, b in zip(before, kernel.parameters(), strict=True)), name
    assert kernel.bias_variance[0, 1] == 0


def test_input_scale_warns_once():
    kernel = NNGPKernel(Erf()).double()
    with pytest.warns(InputScaleWarning, match="expected inputs of about unit scale"):
        kernel(1e4 * points()).to_dense()
    kernel(1e4 * points()).to_dense()  # a second warning would be an error here


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(activation="rulu"), "expected an Activation or one of the names .* got 'rulu'"),
        (dict(activation=ReLU), "expected an Activation or one of the names"),
        (dict(activation=ReLU(), depth=0), "depth: expected an integer >= 1, got 0"),
        (dict(activation=ReLU(), depth=1.5), "depth: expected an integer >= 1, got 1.5"),
        (dict(activation=ReLU(), weight_variance=-1.0), "weight_variance: expected finite numbers > 0"),
        (dict(activation=ReLU(), weight_variance=[1.0, 1.0, 1.0]), "expected 1 or 2 numbers"),
        (dict(activation=ReLU(), bias_variance=-0.1), "bias_variance: expected finite numbers >= 0"),
        (dict(activation=ReLU(), bias_variance=float("nan")), "bias_variance: expected finite numbers >= 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        NNGPKernel(**arguments)


def test_last_dim_is_batch_is_refused():
    kernel = NNGPKernel(Erf())
    with pytest.raises(NotImplementedError, match="last_dim_is_batch"):
        kernel.forward(points(), points(), last_dim_is_batch=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda():
    kernel = NNGPKernel(ReLU(), 2, bias_variance=0.1).double()
    expected = kernel(points()).to_dense()
    assert torch.allclose(kernel.cuda()(points().cuda()).to_dense().cpu(), expected, rtol=1e-11)
