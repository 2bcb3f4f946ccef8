"""The renormalized kernel: width and order parameters as GPyTorch citizens."""

from __future__ import annotations

import copy
import math
import pickle

import gpytorch
import pytest
import torch

from torch_propkernel import Erf, NNGPKernel, ReLU, RenormalizedNNGPKernel
from torch_propkernel.kernels import Composition, Outer
from torch_propkernel.order_parameters import OrderParameterPrior

INF = math.inf


def points(n: int = 6, d: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("composition", ["outer", "nested", "linear_part"])
@pytest.mark.parametrize("activation", [Erf(), ReLU()], ids=repr)
def test_infinite_width_is_the_nngp_kernel_exactly(activation, composition):
    arguments = dict(weight_variance=[1.2, 0.7, 0.9], bias_variance=[0.1, 0.2])
    finite = RenormalizedNNGPKernel(activation, [INF, INF], composition, **arguments).double()
    infinite = NNGPKernel(activation, 2, **arguments).double()
    finite.order_parameter = 0.3  # has no effect
    assert torch.equal(finite.order_parameter, torch.ones(1, 2, dtype=torch.float64))
    # The deviation-carrying forms add zeros: equal to rounding, the others bit for bit.
    tolerance = 0 if composition in ("outer", "nested") else 1e-15
    assert torch.allclose(finite(points()).to_dense(), infinite(points()).to_dense(), rtol=tolerance, atol=0)
    assert (
        sum(p.log_prob(c(m)).sum() for _, m, p, c, _ in finite.named_priors() if isinstance(p, OrderParameterPrior))
        == 0
    )


def test_one_infinite_layer_among_finite_ones():
    kernel = RenormalizedNNGPKernel(Erf(), [INF, 30]).double()
    kernel.order_parameter = torch.tensor([5.0, 2.0])
    assert kernel.order_parameter.tolist() == [[1.0, pytest.approx(2.0, rel=1e-12)]]
    kernel(points()).to_dense().sum().backward()
    assert kernel.raw_order_parameter.grad[0, 0] == 0 and kernel.raw_order_parameter.grad[0, 1] != 0


def test_prior_is_the_gamma_density():
    width = torch.tensor([3.0, 50.0, 1e4], dtype=torch.float64)
    prior = OrderParameterPrior(width)
    q = torch.tensor([[0.3, 1.1, 1.003]], dtype=torch.float64)
    gamma = torch.distributions.Gamma(width / 2 + 1, width / 2)
    # torch's own density cancels lgamma against logs: 1e-12 of 5e3
    assert torch.allclose(prior.log_prob(q), gamma.log_prob(q), rtol=1e-9)
    # far beyond, where lgamma has no digits left, the density at its mode is that of a normal one of variance 2 / N
    huge = OrderParameterPrior(torch.tensor([1e12], dtype=torch.float64)).log_prob(
        torch.ones(1, 1, dtype=torch.float64)
    )
    assert huge.item() == pytest.approx(0.5 * math.log(1e12 / (4 * math.pi)), rel=1e-10)
    assert prior.mean[0, 0].item() == pytest.approx(1 + 2 / 3) and prior.variance[0, 0].item() == pytest.approx(10 / 9)


def test_prior_samples():
    torch.manual_seed(0)
    prior = OrderParameterPrior(torch.tensor([10.0, INF]))
    draws = prior.sample(torch.Size([20000]))
    assert draws.shape == (20000, 1, 2)
    # 20,000 draws of standard deviation 0.49: three standard errors are 0.010
    assert abs(draws[..., 0].mean() - 1.2) < 0.0105


def test_batch_indexing_keeps_one_shape():
    width = torch.tensor([[20.0, 30.0], [40.0, 50.0], [60.0, 70.0]])
    kernel = RenormalizedNNGPKernel(Erf(), width).double()
    kernel.order_parameter = torch.rand(3, 1, 2) + 0.5
    assert kernel.batch_shape == (3,) and kernel.width.shape == kernel.order_parameter.shape == (3, 1, 2)
    one = kernel[1]
    assert one.width.tolist() == [[40.0, 50.0]] and one.order_parameter_prior.width is one.width
    assert torch.equal(one.order_parameter, kernel.order_parameter[1])
    assert one.order_parameter_prior.log_prob(one.order_parameter).shape == (1, 2)
    assert torch.allclose(one(points()).to_dense(), kernel(points()).to_dense()[1], rtol=1e-13)
    two = kernel[torch.tensor([0, 2])]
    assert two.width.shape == two.order_parameter.shape == (2, 1, 2) and two.width[1, 0, 0] == 60
    assert kernel.width.shape == (3, 1, 2)  # the original is as it was


def test_expand_batch_keeps_one_shape():
    kernel = RenormalizedNNGPKernel(Erf(), [20.0, 30.0]).double()
    kernel.order_parameter = torch.tensor([0.4, 2.0])
    wide = kernel.expand_batch(torch.Size([3]))
    assert wide.width.shape == wide.order_parameter.shape == (3, 1, 2)
    log_prob = wide.order_parameter_prior.log_prob(wide.order_parameter)
    assert torch.equal(log_prob[2], kernel.order_parameter_prior.log_prob(kernel.order_parameter))
    assert kernel.expand_batch(torch.Size([])) is kernel


def test_state_dict_into_another_width():
    source = RenormalizedNNGPKernel(Erf(), 50).double()
    source.order_parameter = 1.7
    target = RenormalizedNNGPKernel(Erf(), 80).double()
    target.load_state_dict(source.state_dict())
    assert target.width.item() == 50 and target.order_parameter_prior.width.item() == 50
    assert target.order_parameter.item() == pytest.approx(1.7, rel=1e-14)
    q = target.order_parameter
    assert torch.equal(target.order_parameter_prior.log_prob(q), source.order_parameter_prior.log_prob(q))


def test_samples_from_the_prior():
    torch.manual_seed(0)
    kernel = RenormalizedNNGPKernel(Erf(), torch.tensor([[20.0, INF], [40.0, 50.0]]))
    kernel.sample_from_prior("order_parameter_prior")
    assert kernel.order_parameter.shape == kernel.width.shape == (2, 1, 2)
    assert kernel.order_parameter[0, 0, 1] == 1
    single = RenormalizedNNGPKernel(Erf(), 20)
    single.sample_from_prior("order_parameter_prior")
    assert single.order_parameter.shape == (1, 1) and single.order_parameter.item() != 1


def test_botorch_sample_all_priors():
    utilities = pytest.importorskip("botorch.optim.utils.model_utils")
    torch.manual_seed(0)
    x = points(8, 3)
    model = pytest.importorskip("botorch.models").SingleTaskGP(
        x, x[:, :1], covar_module=RenormalizedNNGPKernel(ReLU(), [20, 30], bias_variance=0.1), outcome_transform=None
    )
    before = model.covar_module.readout_variance.item()
    utilities.sample_all_priors(model)
    assert model.covar_module.order_parameter.shape == (1, 2)
    assert model.covar_module.readout_variance.item() == before  # fixed, so it has no prior


def test_the_same_q_multiplies_every_composition_of_one_layer():
    x = points()
    reference = 1.7 * NNGPKernel(Erf(), bias_variance=0.1).double()(x).to_dense()
    for name in ("outer", "nested", "linear_part"):
        kernel = RenormalizedNNGPKernel(Erf(), 10, name, bias_variance=0.1).double()
        kernel.order_parameter = 1.7
        assert kernel.is_scalar
        assert torch.allclose(kernel(x).to_dense(), reference, rtol=1e-12)


def test_own_composition():
    class Half(Composition):
        name = "half"

        def covariance(self, state, layers, order_parameters):
            return 0.5 * Outer().covariance(state, layers, order_parameters)

    kernel = RenormalizedNNGPKernel(Erf(), [10, 10], Half()).double()
    outer = RenormalizedNNGPKernel(Erf(), [10, 10]).double()
    assert torch.allclose(2 * kernel(points()).to_dense(), outer(points()).to_dense(), rtol=1e-14)
    assert not kernel.is_scalar


@pytest.mark.parametrize("composition", ["outer", "nested", "linear_part"])
def test_gradients_of_every_parameter(composition):
    kernel = RenormalizedNNGPKernel(Erf(), [10, 20, 30], composition, bias_variance=0.1, ard_num_dims=4).double()
    kernel.order_parameter = torch.tensor([0.9, 1.1, 1.5])
    x = torch.cat([points(), points()[:2], torch.zeros(1, 4, dtype=torch.float64)]).requires_grad_(True)
    names = ["raw_order_parameter", "raw_hidden_weight_variance", "raw_bias_variance", "raw_ard_weights"]
    parameters = [getattr(kernel, n) for n in names]

    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = kernel

        def forward(self, x):
            return self.kernel.forward(x, x)

    dense = Dense()

    def value(x, *values):
        return torch.func.functional_call(dense, {f"kernel.{n}": v for n, v in zip(names, values, strict=True)}, (x,))

    assert torch.autograd.gradcheck(value, (x, *parameters), atol=1e-7)


def test_copies_and_views():
    kernel = RenormalizedNNGPKernel(Erf(), [10, 20], "nested").double()
    kernel.order_parameter = torch.tensor([0.5, 2.0])
    value = kernel(points()).to_dense()
    for other in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert torch.equal(other(points()).to_dense(), value)
    view = kernel.at(torch.ones(2))
    lazy = view(points())  # evaluated later, when other views exist
    wide = kernel.with_width(torch.tensor([70.0, 90.0]))
    assert torch.equal(view(points()).to_dense(), NNGPKernel(Erf(), 2).double()(points()).to_dense())
    assert torch.equal(lazy.to_dense(), view(points()).to_dense())
    assert torch.equal(kernel(points()).to_dense(), value) and torch.equal(wide(points()).to_dense(), value)
    assert wide.width.tolist() == [[70.0, 90.0]] and kernel.width.tolist() == [[10.0, 20.0]]
    assert view.raw_readout_variance is kernel.raw_readout_variance
    with pytest.raises(ValueError, match=r"order_parameter: expected shape \(..., 2\), got \(3,\)"):
        kernel.at(torch.ones(3))


def test_views_of_batches_are_indexed_with_the_batch():
    kernel = RenormalizedNNGPKernel(Erf(), torch.tensor([[10.0], [20.0]])).double()
    view = kernel.at(torch.tensor([[0.5], [2.0]]))
    x = points().expand(2, -1, -1)
    expected = view(x).to_dense()[1]
    for one in (view[1], view.expand_batch(3, 2)[0, 1]):
        torch.testing.assert_close(one(points()).to_dense(), expected, rtol=1e-13, atol=1e-15)  # another GEMM


def test_float32_and_back():
    kernel = RenormalizedNNGPKernel(ReLU(), 1e7).double()
    single = copy.deepcopy(kernel).float()
    assert single.width.dtype == torch.float32
    dense = single(points().float()).to_dense()
    assert dense.dtype == torch.float32
    assert torch.allclose(dense.double(), kernel(points()).to_dense(), rtol=1e-5, atol=1e-6)
    # at N = 1e7 the prior pins q: its slope per unit of log q is (N/2)(1 - q), finite also in float32
    single.order_parameter = 1.01
    single.order_parameter_prior.log_prob(single.order_parameter).sum().backward()
    assert single.raw_order_parameter.grad.item() == pytest.approx(-5e6 * 0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (0, "width: expected positive numbers"),
        (-3.0, "width: expected positive numbers"),
        (float("nan"), "width: expected positive numbers"),
        ([10, 0], "width: expected positive numbers"),
        ([], "width: expected one number per hidden layer, got none"),
        ("100", "width: expected a positive number"),
        (True, "width: expected a positive number"),
    ],
)
def test_bad_widths(width, message):
    with pytest.raises((TypeError, ValueError), match=message):
        RenormalizedNNGPKernel(Erf(), width)


def test_bad_arguments():
    with pytest.raises(ValueError, match="composition: expected one of .* got 'inner'"):
        RenormalizedNNGPKernel(Erf(), 10, "inner")
    with pytest.raises(TypeError, match="composition: expected a name or a Composition, got int"):
        RenormalizedNNGPKernel(Erf(), 10, 3)
    with pytest.raises(TypeError, match="depth: expected one number in width"):
        RenormalizedNNGPKernel(Erf(), 10, depth=2)
    with pytest.raises(ValueError, match="order_parameter: expected finite numbers > 0"):
        RenormalizedNNGPKernel(Erf(), 10).order_parameter = -1.0


def test_width_is_not_trained():
    kernel = RenormalizedNNGPKernel(Erf(), 10)
    assert "width" not in dict(kernel.named_parameters()) and "order_parameter_prior.width" in dict(
        kernel.named_buffers()
    )


def test_in_scale_sum_and_product():
    kernel = RenormalizedNNGPKernel(Erf(), 10).double()
    kernel.order_parameter = 2.0
    other = gpytorch.kernels.RBFKernel().double()
    x, k, r = points(), kernel(points()).to_dense(), other(points()).to_dense()
    assert torch.allclose((kernel + other)(x).to_dense(), k + r, rtol=1e-13)
    assert torch.allclose((kernel * other)(x).to_dense(), k * r, rtol=1e-13)
    scaled = gpytorch.kernels.ScaleKernel(kernel).double()
    scaled.outputscale = 3.0
    assert torch.allclose(scaled(x).to_dense(), 3 * k, rtol=1e-12)
