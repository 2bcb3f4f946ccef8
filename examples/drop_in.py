"""One kernel, four ways to the same order parameter.

Usage::

    python examples/drop_in.py [--plot drop_in.png]

A renormalized kernel carries the prior that the width dictates, so whatever fits its one parameter by maximum a
posteriori solves the theory: ``fit_order_parameters``, an ExactGP trained by Adam or by LBFGS, a BoTorch
SingleTaskGP (if BoTorch is installed). Two cases: a relu network on the shipped yacht data, and an erf network on
synthetic data in 100 dimensions, where q is far from one. Then a plot of the predicted errors of the second case.

To read q as a prediction, everything but the order parameter is fixed: the noise, the variances, the mean (zero).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gpytorch
import torch

from torch_propkernel import Erf, ReLU, RenormalizedNNGPKernel, fit_order_parameters, width_sweep
from torch_propkernel.datasets import YACHT, load_yacht
from torch_propkernel.theories import FreeScale

LBFGS = {
    "lr": 1.0,
    "max_iter": 50,
    "line_search_fn": "strong_wolfe",
    "tolerance_grad": 1e-10,
    "tolerance_change": 1e-14,
}

MEANING = """
The width enters a GP as the prior of one number, so any training loop that adds log priors finds the theory's q.
Infinite width (q = 1) and a free scale (no prior) are the two ends, and the theory's claim is that a network of width N
lies between them, where the prior Gamma(N/2 + 1, N/2) and the data put it.
So q says which errors networks of a width have, not that a narrow one is better, nor that a GP whose scale is fitted by
evidence is worse; where the prediction fails is in section 7 of THEORY.md."""


class GP(gpytorch.models.ExactGP):
    """Zero mean and any kernel."""

    def __init__(self, x, y, likelihood, kernel):
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = kernel

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def fixed_noise_likelihood(temperature):
    """Gaussian noise of variance T that does not train; Positive, because GPyTorch's default bound is 1e-4."""
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    likelihood.noise = temperature
    likelihood.raw_noise.requires_grad_(False)
    return likelihood


def renormalized_kernel(activation, width, bias_variance):
    """Kernel of one hidden layer whose only trainable parameter is q, at q = 1."""
    kernel = RenormalizedNNGPKernel(activation, width, bias_variance=bias_variance)
    kernel.requires_grad_(False)
    kernel.raw_order_parameter.requires_grad_(True)
    return kernel


def train(model, optimizer_class, steps, **options):
    """Maximize the ordinary marginal log likelihood; GPyTorch adds the log prior of q by itself."""
    model.train()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = optimizer_class([p for p in model.parameters() if p.requires_grad], **options)
    decay = 0.985 if optimizer_class is torch.optim.Adam else 1.0
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)

    def closure():
        optimizer.zero_grad()
        loss = -mll(model(*model.train_inputs), model.train_targets)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        schedule.step()


def with_botorch(x, y, temperature, kernel):
    """Return a fitted SingleTaskGP; BoTorch's own trainable mean and its standardization are turned off."""
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP

    model = SingleTaskGP(
        x,
        y.unsqueeze(-1),
        likelihood=fixed_noise_likelihood(temperature),
        covar_module=kernel,
        mean_module=gpytorch.means.ZeroMean(),
        outcome_transform=None,
    )
    # BoTorch's default tolerances stop at a relative difference of 1e-5 in q.
    tight = {"options": {"ftol": 1e-15, "gtol": 1e-9}}
    fit_gpytorch_mll(gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs=tight)
    return model


def four_ways(name, x, y, activation, width, temperature, bias_variance):
    """Print q from each way, and return the model that fit_order_parameters solved."""

    def model():
        kernel = renormalized_kernel(activation, width, bias_variance)
        return GP(x, y, fixed_noise_likelihood(temperature), kernel)

    solved, adam, lbfgs = model(), model(), model()
    solution = fit_order_parameters(solved)
    train(adam, torch.optim.Adam, 500, lr=0.1)
    train(lbfgs, torch.optim.LBFGS, 1, **LBFGS)
    models = {"fit_order_parameters": solved, "ExactGP, Adam": adam, "ExactGP, LBFGS": lbfgs}
    try:
        models["BoTorch SingleTaskGP"] = with_botorch(
            x, y, temperature, renormalized_kernel(activation, width, bias_variance)
        )
    except ImportError:
        print('(BoTorch is not installed: pip install "torch_propkernel[botorch]")')
    print(f"\n{name}: {activation!r}, N = {width}, P = {len(y)}, {x.shape[-1]} inputs, T = {temperature}")
    print(f"  {solution.result.name}; {solution.reliability}")
    best = solution.order_parameter.item()
    for label, fitted in models.items():
        q = fitted.covar_module.order_parameter.item()
        print(f"  {label:22s} q = {q:.9f}   relative difference {q / best - 1:+.1e}")
    return solved


def yacht():
    """Shipped data, standardized; the target is the log of the published resistance."""
    x, y = load_yacht()
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def synthetic(num_data, num_inputs, seed=0):
    """Labels of a noisy linear teacher, twice as large as the prior expects: q leaves one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_data, num_inputs, generator=generator)
    teacher = torch.randn(num_inputs, generator=generator) / num_inputs**0.5
    noise = torch.randn(num_data, generator=generator)
    return x, 2.0 * (x @ teacher) + 0.3 * noise


def main() -> None:
    """Run both cases and save the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, default=Path("drop_in.png"))
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)

    x, y = yacht()
    four_ways(YACHT.name, x, y, ReLU(), width=100, temperature=0.01, bias_variance=1.0)

    activation, temperature, width, size = Erf(), 0.1, 100, 250
    x, y = synthetic(size + 200, 100)
    x, y, test_x, test_y = x[:size], y[:size], x[size:], y[size:]
    model = four_ways("synthetic", x, y, activation, width, temperature, bias_variance=0.0)

    # All widths from one factorization, and the two baselines.
    widths = torch.tensor([20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 2000.0])
    sweep = width_sweep(model, widths, test_x, test_y)
    free = FreeScale().fit(model)
    baseline = {
        "leave_one_out": free.leave_one_out().mean_total.item(),
        "test": free.error(test_x, test_y).mean_total.item(),
    }
    print(f"\nexpected squared error {'':22s}{'infinite width':>16s}{f'N = {width}':>12s}{'free scale':>12s}")
    for label, key, error in (
        ("from training rows (leave-one-out)", "leave_one_out", sweep.leave_one_out),
        ("at given targets, formula (4)", "test", sweep.test),
    ):
        finite = error.mean_total[widths == width].item()
        print(f"  {label:42s}{error.infinite_width.mean_total:16.4f}{finite:12.4f}{baseline[key]:12.4f}")
    q = sweep.order_parameter[widths == width].item()
    print(f"  q = {q:.3f} at N = {width}; free scale r = {free.readout_norm:.3f}")
    try:
        from torch_propkernel.plotting import plot_sweep

        axes = plot_sweep(sweep, free_scale=baseline, chosen=[width])
    except ImportError as error:
        print(error)
    else:
        figure = axes[0].get_figure(root=True)
        figure.suptitle(f"{activation!r} network, {x.shape[-1]} inputs, P = {len(y)}, T = {temperature}")
        figure.savefig(arguments.plot, dpi=150)
        print(f"plot: {arguments.plot}")
    print(MEANING)


if __name__ == "__main__":
    main()
