"""The kernel solves the theory inside ordinary training loops: GPyTorch with Adam and LBFGS, BoTorch."""

from __future__ import annotations

import copy
import pickle
import warnings

import gpytorch
import pytest
import torch

from torch_propkernel import (
    EffectiveAction,
    Erf,
    ReliabilityWarning,
    RenormalizedNNGPKernel,
    fit_order_parameters,
    solve_order_parameters,
)
from torch_propkernel.exceptions import IdentifiabilityWarning

# 1e-6 relative is asked for; Adam is the coarsest of the four. The width is a third of P, so that |q - 1| > 0.3.
TOLERANCE = 1e-6
SIZES = [40, 150, 400]


class Model(gpytorch.models.ExactGP):
    def __init__(self, x, y, kernel, noise=0.1, batch_shape=()):
        likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=torch.Size(batch_shape))
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ZeroMean(batch_shape=torch.Size(batch_shape))
        self.covar_module = kernel
        self.to(x.dtype)
        likelihood.noise = noise
        likelihood.raw_noise.requires_grad_(False)

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def data(size: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 100, generator=generator, dtype=torch.float64)
    return x, torch.sign(torch.randn(size, generator=generator, dtype=torch.float64))


def model_for(size: int, **kwargs) -> Model:
    x, y = data(size)
    kernel = RenormalizedNNGPKernel(Erf(), size // 3, **kwargs)
    for name, parameter in kernel.named_parameters():
        parameter.requires_grad_(name == "raw_order_parameter")
    return Model(x, y, kernel)


def train(model, optimizer_class, steps, mll_class=gpytorch.mlls.ExactMarginalLogLikelihood, sign=-1.0, **options):
    model.train()
    mll = mll_class(model.likelihood, model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_class(parameters, **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.96 if optimizer_class is torch.optim.Adam else 1.0)

    def closure():
        optimizer.zero_grad()
        loss = sign * mll(model(*model.train_inputs), model.train_targets)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        scheduler.step()
    return model.covar_module.order_parameter.detach()


@pytest.fixture(params=SIZES)
def solved(request):
    model = model_for(request.param)
    solution = fit_order_parameters(model, warn=False)
    assert solution.result.name == "global_minimum"
    assert abs(solution.order_parameter.item() - 1) > 0.3
    return request.param, solution.order_parameter.item()


def test_adam(solved):
    size, q = solved
    model = model_for(size)
    assert train(model, torch.optim.Adam, 250, lr=0.3, betas=(0.7, 0.9)).item() == pytest.approx(q, rel=TOLERANCE)


def test_lbfgs(solved):
    size, q = solved
    model = model_for(size)
    found = train(
        model,
        torch.optim.LBFGS,
        3,
        max_iter=50,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
    )
    assert found.item() == pytest.approx(q, rel=TOLERANCE)


def test_effective_action_as_a_loss(solved):
    size, q = solved
    options = dict(max_iter=50, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-15)
    model = model_for(size)
    found = train(model, torch.optim.LBFGS, 3, mll_class=EffectiveAction, sign=1.0, **options)
    assert found.item() == pytest.approx(q, rel=TOLERANCE)
    solution = fit_order_parameters(model, warn=False)
    value = EffectiveAction(model.likelihood, model)(model(*model.train_inputs), model.train_targets)
    assert value.item() == pytest.approx(solution.action.item(), rel=1e-10)


def test_botorch(solved):
    botorch = pytest.importorskip("botorch")
    size, q = solved
    x, y = data(size)
    kernel = model_for(size).covar_module
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = 0.1
    likelihood.raw_noise.requires_grad_(False)
    model = botorch.models.SingleTaskGP(
        x, y.unsqueeze(-1), likelihood=likelihood, covar_module=kernel, mean_module=gpytorch.means.ZeroMean(),
        outcome_transform=None,
    )  # fmt: skip
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    with warnings.catch_warnings():
        # BoTorch asks for inputs in the unit cube and standardized targets
        warnings.filterwarnings("ignore", module="botorch")
        botorch.fit.fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"gtol": 1e-12, "ftol": 0.0}})
    assert model.covar_module.order_parameter.item() == pytest.approx(q, rel=TOLERANCE)
    model.covar_module.order_parameter = 1.0
    assert fit_order_parameters(model, warn=False).order_parameter.item() == pytest.approx(q, rel=1e-10)


def test_without_the_prior_the_loops_find_something_else(solved):
    """The prior is what makes the width count: without it the fit is the best overall scale."""
    size, q = solved
    model = model_for(size)
    del model.covar_module._priors["order_parameter_prior"]
    found = train(
        model,
        torch.optim.LBFGS,
        3,
        max_iter=50,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
    )
    assert abs(found.item() / q - 1) > 0.05


def test_a_free_scale_takes_the_order_parameter_to_one():
    model = model_for(150)
    kernel = model.covar_module
    q = fit_order_parameters(model, warn=False).order_parameter.item()
    kernel.raw_readout_variance.requires_grad_(True)
    with pytest.warns(ReliabilityWarning), pytest.warns(IdentifiabilityWarning, match="readout variance trains beside"):
        fit_order_parameters(model)
    train(
        model,
        torch.optim.LBFGS,
        5,
        max_iter=100,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
    )
    assert abs(q - 1) > 0.3
    # The two directions are nearly degenerate along q * w: LBFGS places each to 1e-5.
    assert kernel.order_parameter.item() == pytest.approx(1.0, abs=1e-5)
    # and the free scale is that of ScaleKernel over the infinite-width kernel
    x, y = data(150)
    wide = Model(x, y, gpytorch.kernels.ScaleKernel(RenormalizedNNGPKernel(Erf(), float("inf"))))
    for name, parameter in wide.named_parameters():
        parameter.requires_grad_(name.endswith("raw_outputscale"))
    wide.train()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(wide.likelihood, wide)
    optimizer = torch.optim.LBFGS(
        [wide.covar_module.raw_outputscale],
        max_iter=200,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
    )

    def closure():
        optimizer.zero_grad()
        loss = -mll(wide(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert kernel.readout_variance.item() == pytest.approx(wide.covar_module.outputscale.item(), rel=1e-4)


def test_outputscale_warns():
    x, y = data(40)
    model = Model(x, y, gpytorch.kernels.ScaleKernel(RenormalizedNNGPKernel(Erf(), 20)))
    with pytest.warns(IdentifiabilityWarning, match="outputscale around the kernel"):
        fit_order_parameters(model)
    model.covar_module.raw_outputscale.requires_grad_(False)
    fit_order_parameters(model)  # no warning: it would be an error


def test_hyperparameters_train_jointly_at_a_fixed_scale():
    """Temperature, bias ratio and ARD weights train with q; q stays away from one and solves the action at the end."""
    x, y = data(150)
    y = y + 3.0 * torch.sign(x[:, 0])
    kernel = RenormalizedNNGPKernel(Erf(), 50, bias_variance=0.1, ard_num_dims=100)
    kernel.raw_hidden_weight_variance.requires_grad_(False)
    model = Model(x, y, kernel)
    model.likelihood.raw_noise.requires_grad_(True)
    train(model, torch.optim.LBFGS, 4, max_iter=60, line_search_fn="strong_wolfe")
    q = kernel.order_parameter.item()
    assert abs(q - 1) > 0.3
    assert kernel.ard_weights[0, 0] > 2 * kernel.ard_weights[0, 1:].mean()
    # LBFGS stops on its relative change of the loss, 1e-9: q is then good to about 1e-3
    assert fit_order_parameters(model, warn=False).order_parameter.item() == pytest.approx(q, rel=3e-3)


def test_batch_of_models():
    x, y = data(60)
    batch_y = torch.stack([y, 3 * y, 0.1 * y])
    width = torch.tensor([[20.0], [30.0], [1e6]], dtype=torch.float64)
    model = Model(x.expand(3, -1, -1), batch_y, RenormalizedNNGPKernel(Erf(), width), batch_shape=torch.Size([3]))
    solution = fit_order_parameters(model, warn=False)
    assert solution.order_parameter.shape == (3, 1) and model.covar_module.order_parameter.shape == (3, 1, 1)
    for i in range(3):
        alone = Model(x, batch_y[i], RenormalizedNNGPKernel(Erf(), width[i]))
        expected = fit_order_parameters(alone, warn=False).order_parameter
        assert torch.allclose(solution.order_parameter[i], expected, rtol=1e-10)


def test_batch_of_models_with_nested_composition():
    x, y = data(40)
    batch_y = torch.stack([y, 3 * y])
    width = torch.tensor([[20.0, 30.0], [15.0, 10.0]], dtype=torch.float64)
    kernel = RenormalizedNNGPKernel(Erf(), width, "nested")
    model = Model(x.expand(2, -1, -1), batch_y, kernel, batch_shape=torch.Size([2]))
    solution = fit_order_parameters(model, warn=False)
    assert solution.result.name == "local_minimum"
    assert solution.message.startswith("local minimum, [4, 4] of 4 starts agree")
    for i in range(2):
        alone = Model(x, batch_y[i], RenormalizedNNGPKernel(Erf(), width[i], "nested"))
        expected = fit_order_parameters(alone, warn=False).order_parameter
        assert torch.allclose(solution.order_parameter[i], expected, rtol=1e-8)


def with_fixed_kernel(kind: str, x, y):
    base = RenormalizedNNGPKernel(Erf(), 20)
    if kind == "sum":
        covariance = base + gpytorch.kernels.RBFKernel()
    elif kind == "constant":
        covariance = base + gpytorch.kernels.ConstantKernel()
    elif kind == "product":
        covariance = base * gpytorch.kernels.RBFKernel()
    else:
        covariance = gpytorch.kernels.ScaleKernel(base) + gpytorch.kernels.RBFKernel(active_dims=[0, 1])
    return Model(x, 3 * y, covariance), base


@pytest.mark.parametrize("kind", ["sum", "constant", "product", "scaled sum"])
def test_fixed_terms(kind):
    """The saddle with a fixed term is the MAP of the same model in a training loop."""
    x, y = data(60)
    model, kernel = with_fixed_kernel(kind, x / 4, y)
    solution = fit_order_parameters(model, warn=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    kernel.raw_order_parameter.requires_grad_(True)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    model.train()
    gradient = torch.autograd.grad(mll(model(*model.train_inputs), model.train_targets), kernel.raw_order_parameter)[0]
    assert gradient.abs().item() < 1e-10
    assert solution.result.name == "global_minimum"
    action = EffectiveAction(model.likelihood, model)(model(*model.train_inputs), model.train_targets)
    assert action.item() == pytest.approx(solution.action.item(), rel=1e-10)


def test_fixed_noise_likelihood():
    x, y = data(40)
    noise = torch.linspace(0.05, 0.5, 40, dtype=torch.float64)

    class FixedNoiseModel(Model):
        def __init__(self):
            gpytorch.models.ExactGP.__init__(self, x, y, gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise))
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = RenormalizedNNGPKernel(Erf(), 20).double()

    model = FixedNoiseModel()
    solution = fit_order_parameters(model, warn=False)
    kernel_matrix = model.covar_module.at(torch.ones(1))(x).to_dense()
    expected = solve_order_parameters(kernel_matrix.detach(), y, width=20, temperature=1.0, base=noise)
    assert torch.allclose(solution.order_parameter, expected.order_parameter, rtol=1e-12)
    dense = solve_order_parameters(kernel_matrix.detach(), y, width=20, temperature=1.0, base=torch.diag(noise))
    assert torch.allclose(dense.order_parameter, expected.order_parameter, rtol=1e-10)
    whitened = kernel_matrix.detach() / (noise[:, None] * noise).sqrt()
    again = solve_order_parameters(whitened, y / noise.sqrt(), width=20, temperature=1.0)
    assert torch.allclose(again.order_parameter, expected.order_parameter, rtol=1e-10)


def test_mean_is_subtracted():
    x, y = data(40)
    model = Model(x, y + 5.0, RenormalizedNNGPKernel(Erf(), 20))
    model.mean_module = gpytorch.means.ConstantMean().double()
    model.mean_module.constant = 5.0
    expected = fit_order_parameters(Model(x, y, RenormalizedNNGPKernel(Erf(), 20)), warn=False).order_parameter
    assert torch.allclose(fit_order_parameters(model, warn=False).order_parameter, expected, rtol=1e-9)


def test_prediction_cache_is_dropped_and_mode_kept():
    x, y = data(40)
    model = Model(x, 3 * y, RenormalizedNNGPKernel(Erf(), 10))
    model.eval()
    before = model(x[:3]).mean
    fit_order_parameters(model, warn=False)
    assert not model.training
    after = model(x[:3]).mean
    assert (before - after).abs().max() > 1e-3
    covariance = model.covar_module(x).to_dense()
    weights = torch.linalg.solve(covariance + 0.1 * torch.eye(40, dtype=torch.float64), 3 * y)
    # GPyTorch's own prediction uses conjugate gradients or a jittered factorization
    assert torch.allclose(after, covariance[:3] @ weights, rtol=1e-4)


def test_copies_after_a_prediction():
    x, y = data(40)
    model = Model(x, y, RenormalizedNNGPKernel(Erf(), 10))
    fit_order_parameters(model, warn=False)
    model.eval()
    mean = model(x[:3]).mean.detach()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.eval()
        assert torch.allclose(other(x[:3]).mean, mean, rtol=1e-12)
    fresh = Model(x, y, RenormalizedNNGPKernel(Erf(), 99))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.covar_module.order_parameter, model.covar_module.order_parameter)
    assert fresh.covar_module.width.item() == 10


def test_fantasies_keep_q_and_can_be_solved_again():
    x, y = data(40)
    model = Model(x, 3 * y, RenormalizedNNGPKernel(Erf(), 10))
    q = fit_order_parameters(model, warn=False).order_parameter
    model.eval()
    model(x[:1])
    fantasy = model.get_fantasy_model(data(5, seed=3)[0], 9 * data(5, seed=3)[1])
    assert torch.equal(fantasy.covar_module.order_parameter.squeeze(-2), model.covar_module.order_parameter.squeeze(-2))
    again = fit_order_parameters(fantasy, warn=False).order_parameter
    assert again.item() > q.item() * 1.05  # five large targets ask for a larger scale
    expected = Model(*(torch.cat(v) for v in zip((x, 3 * y), (data(5, 3)[0], 9 * data(5, 3)[1]), strict=True)),
                     RenormalizedNNGPKernel(Erf(), 10))  # fmt: skip
    assert torch.allclose(again, fit_order_parameters(expected, warn=False).order_parameter, rtol=1e-10)


def test_float32_model():
    x, y = data(60)
    double = Model(x, 3 * y, RenormalizedNNGPKernel(Erf(), 10))
    single = Model(x.float(), 3 * y.float(), RenormalizedNNGPKernel(Erf(), 10))
    expected = fit_order_parameters(double, warn=False).order_parameter
    found = fit_order_parameters(single, warn=False).order_parameter
    # the kernel matrix has rounding errors of 1e-7, q follows them
    assert torch.allclose(found, expected, rtol=1e-5)
    assert single.covar_module.order_parameter.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_model():
    x, y = data(60)
    expected = fit_order_parameters(Model(x, y, RenormalizedNNGPKernel(Erf(), 10)), warn=False).order_parameter
    model = Model(x.cuda(), y.cuda(), RenormalizedNNGPKernel(Erf(), 10)).cuda()
    assert torch.allclose(fit_order_parameters(model, warn=False).order_parameter.cpu(), expected, rtol=1e-9)
