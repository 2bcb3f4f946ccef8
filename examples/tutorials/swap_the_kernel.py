# %% [markdown]
# # Swap the kernel
#
# You have a GPyTorch script. Here it becomes the prediction of a Bayesian network of width 100 by a change of one line.
# You learn
#
# - that the script's own training loop finds the order parameter q, and that `fit_order_parameters` finds it exactly;
# - to put two baselines beside it: the infinitely wide network, and the same kernel with a free scale.
#
# Run it as `python examples/tutorials/swap_the_kernel.py [--small] [--plot FILE]`; the data are those of the package.

# %%
import sys

import gpytorch
import torch
from matplotlib.figure import Figure

from torch_propkernel import NNGPKernel, ReLU, RenormalizedNNGPKernel, fit_order_parameters, leave_one_out_error
from torch_propkernel.datasets import load_yacht
from torch_propkernel.plotting import BLUE, GRAY, GREEN, VERMILLION

SMALL = "--small" in sys.argv
PLOT = sys.argv[sys.argv.index("--plot") + 1] if "--plot" in sys.argv else "swap_the_kernel.png"
WIDTH, ROWS, STEPS = 100, 60 if SMALL else 200, 60 if SMALL else 250
torch.set_default_dtype(torch.float64)  # before models are built

# %% [markdown]
# The script: standardized data, a model with zero mean and any kernel, a training loop. T is the likelihood's noise.

# %%
x, y = load_yacht()
rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
train, test = rows[:ROWS], rows[ROWS:]
x, y = (x - x[train].mean(0)) / x[train].std(0), (y - y[train].mean()) / y[train].std()


class Model(gpytorch.models.ExactGP):
    def __init__(self, kernel):
        super().__init__(x[train], y[train], gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = kernel

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def fit(model):
    """Adam on the ordinary objective; returns q after every step where the kernel has one."""
    model.train()
    objective, path = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model), []
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = -objective(model(x[train]), y[train])
        loss.backward()
        optimizer.step()
        schedule.step()
        path.append(getattr(model.covar_module, "order_parameter", torch.ones(1)).item())
    return path


old = Model(gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=6)))
_ = fit(old)

# %% [markdown]
# The one line. The loop trains T, the bias variance and q together. The solver then takes T and the bias variance as
# the loop left them, finds the global minimum of the effective action over q, and writes it into the kernel.

# %%
new = Model(RenormalizedNNGPKernel(ReLU(), width=WIDTH, bias_variance=1.0))  # was: ScaleKernel(RBFKernel(...))
path = fit(new)
solution = fit_order_parameters(new, warn=False)  # it would warn of what `reliability` says
exact = solution.order_parameter.item()
gap = abs(path[-1] / exact - 1)
print(f"q: loop {path[-1]:.6f}, solver {exact:.6f} ({solution.result.name})")
print(f"as a prediction for real networks: {solution.reliability}")
print(f"predicted from the training rows alone: {leave_one_out_error(new)}")

# %% [markdown]
# Baselines, fitted by the same loop: infinite width (the NNGP with its readout variance fixed, as that of the finite
# network is), and `ScaleKernel(NNGPKernel)`, whose scale is free where q is held by the width's prior.

# %%
bare, inside = (NNGPKernel(ReLU(), bias_variance=1.0) for _ in range(2))
for kernel in (bare, inside):
    kernel.raw_readout_variance.requires_grad_(False)
infinite, free = Model(bare), Model(gpytorch.kernels.ScaleKernel(inside))
_ = fit(infinite), fit(free)
models = {"RBF, ARD, free scale": old, "infinite width": infinite, f"width {WIDTH}": new, "NNGP, free scale": free}
scores = {}
for name, model in models.items():
    with torch.no_grad():
        prediction = model.eval().likelihood(model(x[test]))
        squared = (prediction.mean - y[test]).square()
        surprise = 0.5 * (squared / prediction.variance + (2 * torch.pi * prediction.variance).log())
    scores[name] = squared, surprise
    print(f"{name:22s} RMSE {squared.mean().sqrt():.4f}, negative log density {surprise.mean():+.4f}")

# %% [markdown]
# The picture: q along the training loop, and the log density that each kernel gives to the test rows.

# %%
figure = Figure(figsize=(10, 4), layout="constrained")
left, right = figure.subplots(1, 2)
left.plot(path, color=BLUE, linewidth=2, label="the script's own loop (Adam)")
left.axhline(exact, color=VERMILLION, linestyle="--", label="fit_order_parameters")
left.axhline(1.0, color=GRAY, linewidth=1, label="q = 1, infinite width")
left.set(xlabel="training step", ylabel="order parameter q (dimensionless)")
left.legend(fontsize="small", frameon=False)
for row, ((_, surprise), color) in enumerate(zip(scores.values(), (GRAY, GRAY, BLUE, GREEN), strict=True)):
    mean, error = surprise.mean().item(), surprise.std().item() / len(surprise) ** 0.5
    right.errorbar(mean, row, xerr=2 * error, color=color, marker="o", capsize=3)
right.set_yticks(range(len(scores)), list(scores))
right.set(ylim=(len(scores) - 0.5, -0.5), xlabel="negative log density of a test row (lower is better)")
right.set_title("means, two standard errors", fontsize="small", loc="left")
figure.savefig(PLOT, dpi=130)


# %%
def against(one, two):
    """Paired over test rows: below two standard errors nothing is said."""
    difference = scores[one][1] - scores[two][1]
    mean, error = difference.mean().item(), difference.std().item() / len(difference) ** 0.5
    word = "tied with" if abs(mean) < 2 * error else "behind" if mean > 0 else "ahead of"
    return f"{word} {two} ({mean:+.3f} +- {error:.3f})"


finite, scale = f"width {WIDTH}", free.covar_module.outputscale.item()
found = "finds the same q as the solver" if gap < 0.01 else "has not yet reached the solver's q"
print("\nWhat it means:")
print(f"The script's own loop {found}: {path[-1]:.4f} against {exact:.4f}, a relative difference of {gap:.0e}.")
print(f"In log density of held-out rows {finite} is {against(finite, 'infinite width')} at the same readout variance.")
print(
    f"It is {against(finite, 'NNGP, free scale')}: the width's prior holds q at {exact:.2f}, a free scale goes to "
    f"{scale:.2f}."
)
