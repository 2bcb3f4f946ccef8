# %% [markdown]
# # Finite-width models in BoTorch
#
# Which of 22 yacht hulls has the least resistance at the highest speed that was towed? Some hulls have been tested; one
# step of Bayesian optimization chooses the next. You learn
#
# - `SingleTaskGP(covar_module=RenormalizedNNGPKernel(...))`: the saddle point, whose posterior is normal;
# - `SingleTaskFiniteWidthGP`: the mixture over the scale, for Monte Carlo acquisition functions;
# - that `fit_gpytorch_mll` trains both as any other model, and what is refused.
#
# Run it as `python examples/tutorials/botorch_models.py [--small] [--plot FILE]`; it needs BoTorch.

# %%
import sys

import gpytorch
import torch
from matplotlib.figure import Figure

from torch_propkernel import FiniteWidthMarginalLogLikelihood, ReLU, RenormalizedNNGPKernel
from torch_propkernel.datasets import YACHT, load_yacht
from torch_propkernel.plotting import BLUE, GRAY, VERMILLION

try:
    from botorch.acquisition import LogExpectedImprovement, qLogNoisyExpectedImprovement
    from botorch.exceptions import UnsupportedError
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.transforms.input import Normalize
    from botorch.optim import optimize_acqf_discrete

    from torch_propkernel.botorch_support import SingleTaskFiniteWidthGP
except ImportError:
    print('This tutorial needs BoTorch: pip install "torch_propkernel[botorch]"')
    sys.exit()

SMALL = "--small" in sys.argv
PLOT = sys.argv[sys.argv.index("--plot") + 1] if "--plot" in sys.argv else "botorch_models.png"
WIDTH, TESTED, DRAWS = 10, 8, 500 if SMALL else 4000
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)

# %% [markdown]
# The hulls: five numbers each, standardized. BoTorch maximizes, so the target is minus the log resistance.

# %%
x, y = load_yacht()
fastest = x[:, 5] == x[:, 5].max()
x, y = x[fastest, :5], -(y[fastest] + YACHT.target_mean).unsqueeze(-1)
x = (x - x.mean(0)) / x.std(0)
tested, untested = torch.arange(len(y)).split([TESTED, len(y) - TESTED])  # the first rows of the table come first

# %% [markdown]
# Three models and their fits. BoTorch standardizes the targets: noise and widths' scale are in these units. Only the
# mixture has an objective of its own, in which the order parameter is integrated.

# %%
kernel = RenormalizedNNGPKernel(ReLU(), width=WIDTH, bias_variance=1.0, ard_num_dims=5)
models = {
    "BoTorch's default GP": SingleTaskGP(x[tested], y[tested], input_transform=Normalize(5)),
    f"width {WIDTH}, saddle": SingleTaskGP(x[tested], y[tested], covar_module=kernel),
    f"width {WIDTH}, mixture": SingleTaskFiniteWidthGP(x[tested], y[tested], width=WIDTH),
}
for model in models.values():
    mixture = isinstance(model, SingleTaskFiniteWidthGP)
    objective = FiniteWidthMarginalLogLikelihood if mixture else gpytorch.mlls.ExactMarginalLogLikelihood
    fit_gpytorch_mll(objective(model.likelihood, model))
print(f"q of the saddle: {kernel.order_parameter.item():.3f}")

# %% [markdown]
# One step: noisy expected improvement by Monte Carlo, over the hulls that are left. Formulas for normal posteriors are
# refused for the mixture, since they would be wrong without a sign of it.

# %%
chosen, predicted = {}, {}
for name, model in models.items():
    acquisition = qLogNoisyExpectedImprovement(model, X_baseline=x[tested], prune_baseline=False)
    candidate, _ = optimize_acqf_discrete(acquisition, q=1, choices=x[untested])
    chosen[name] = int((x[untested] - candidate).norm(dim=-1).argmin())
    with torch.no_grad():  # 95 % intervals of noisy values: quantiles of draws, for any kind of posterior
        draws = model.posterior(x[untested], observation_noise=True).rsample(torch.Size([DRAWS])).squeeze(-1)
    predicted[name] = torch.exp(-torch.quantile(draws, torch.tensor([0.975, 0.5, 0.025]), dim=0))
resistance = torch.exp(-y[:, 0])
best = resistance[tested].min().item()
for name, index in chosen.items():
    print(f"{name}: tow hull {untested[index]} next (it has {resistance[untested[index]]:.1f}, best so far {best:.1f})")
try:
    LogExpectedImprovement(models[f"width {WIDTH}, mixture"], best_f=y[tested].max())
except UnsupportedError as error:
    print(f"refused: {error}")

# %% [markdown]
# The picture: what each model expects of the hulls that have not been towed, and what they turn out to be.

# %%
figure = Figure(figsize=(9, 4.5), layout="constrained")
ax = figure.subplots()
rank = resistance[untested].argsort()
place = torch.arange(len(rank))
for number, ((name, (low, middle, high)), color) in enumerate(
    zip(predicted.items(), (GRAY, BLUE, VERMILLION), strict=True)
):
    at, bars = place + 0.2 * (number - 1), torch.stack([middle - low, high - middle])[:, rank]
    ax.errorbar(at, middle[rank], yerr=bars, color=color, marker="o", markersize=4, linestyle="none", label=name)
    where = int((rank == chosen[name]).nonzero())
    ax.plot(at[where], middle[chosen[name]], color=color, marker="*", markersize=13, linestyle="none")
ax.plot(place, resistance[untested][rank], color="black", marker="_", markersize=16, linestyle="none", label="measured")
ax.axhline(best, color="black", linewidth=0.8, linestyle=":", label="best hull towed so far")
ax.set_xticks(place, [str(int(hull)) for hull in untested[rank]])
ax.set(xlabel="hull, not yet towed, by measured resistance", ylabel="residuary resistance per unit weight")
ax.set_title("star: next hull to tow; bars: 95 % intervals", fontsize="small", loc="left")
ax.legend(fontsize="small", frameon=False, ncols=2)
figure.savefig(PLOT, dpi=130)

# %%
default, saddle, mixture = predicted
size = {name: (high - low).mean().item() for name, (low, _, high) in predicted.items()}
inside = {
    name: int(((resistance[untested] >= low) & (resistance[untested] <= high)).sum())
    for name, (low, _, high) in predicted.items()
}
found = {name: f"{resistance[untested[index]]:.1f}" for name, index in chosen.items()}
same = "choose the same hull" if len(set(chosen.values())) == 1 else "do not all choose the same hull"
print("\nWhat it means:")
print(
    f"The three models {same}; the resistance of their choices turns out to be {found[default]}, {found[saddle]} and "
    f"{found[mixture]}, where the best so far has {best:.1f} and the best of all {resistance.min():.1f}."
)
print(
    f"The mixture's intervals are {size[mixture] / size[saddle]:.2f} times as wide as the saddle's and "
    f"{size[mixture] / size[default]:.2f} times as wide as the default GP's; of {len(untested)} measured values these "
    f"95 % intervals hold {inside[mixture]}, the saddle's {inside[saddle]} and the GP's {inside[default]}."
)
print("One step on 22 hulls shows that the models are drop-in, not that a finite width optimizes better than a GP.")
