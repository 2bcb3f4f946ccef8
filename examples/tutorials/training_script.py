# %% [markdown]
# # A training script
#
# All hyperparameters of a finite-width network by evidence: the temperature T, the ratio of bias to weight variance and
# one weight for each input (ARD), with the order parameter integrated out. You learn
#
# - to write it as a loop, `FiniteWidthMarginalLogLikelihood` with Adam, on the CPU or a GPU (`--device cuda`);
# - to get it by one call, `fit_hyperparameters`, which restarts, checks convergence and reports bounds;
# - to predict the test error from the training rows alone, and to save and load the model.
#
# Run it as `python examples/tutorials/training_script.py [--small] [--plot FILE] [--device cuda]`.

# %%
import sys
import tempfile
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from torch_propkernel import (
    FiniteWidthLikelihood,
    FiniteWidthMarginalLogLikelihood,
    ReLU,
    RenormalizedNNGPKernel,
    generalization_error,
    leave_one_out_error,
)
from torch_propkernel.datasets import YACHT, load_yacht
from torch_propkernel.inference import Normalization
from torch_propkernel.models import NetworkFiniteWidthProcess
from torch_propkernel.plotting import BLUE, GRAY, VERMILLION
from torch_propkernel.saving import load, save
from torch_propkernel.theories import FreeScale
from torch_propkernel.tuning import fit_hyperparameters

SMALL = "--small" in sys.argv
PLOT = sys.argv[sys.argv.index("--plot") + 1] if "--plot" in sys.argv else "training_script.png"
DEVICE = sys.argv[sys.argv.index("--device") + 1] if "--device" in sys.argv else "cpu"
WIDTH, ROWS, STEPS = 50, 30 if SMALL else 150, 15 if SMALL else 140
torch.set_default_dtype(torch.float64)

# %% [markdown]
# Data in the model's units; `Normalization` remembers the user's, for the file. The model lives where its data are.

# %%
x, y = load_yacht()
rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
train, test = rows[:ROWS], rows[ROWS:]
units = Normalization.of(x[train], y[train])
x, y = units.to_model(x).to(DEVICE), units.targets.to_model(y).to(DEVICE)


def new_model():
    kernel = RenormalizedNNGPKernel(ReLU(), width=WIDTH, bias_variance=1.0, ard_num_dims=6)
    model = NetworkFiniteWidthProcess(x[train], y[train], FiniteWidthLikelihood(), kernel).to(DEVICE)
    model.likelihood.noise = 0.1
    return model


# %% [markdown]
# The loop. The kernel brings its priors (of the bias ratio and the ARD weights), the likelihood none.

# %%
by_loop = new_model().train()
objective = FiniteWidthMarginalLogLikelihood(by_loop.likelihood, by_loop)
optimizer = torch.optim.Adam([p for p in by_loop.parameters() if p.requires_grad], lr=0.1)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
start, path = time.perf_counter(), []
for _ in range(STEPS):
    optimizer.zero_grad()
    loss = -objective(by_loop(x[train]), y[train])
    loss.backward()
    optimizer.step()
    schedule.step()
    path.append(-loss.item() * len(train))
loop_seconds = time.perf_counter() - start

# %% [markdown]
# The call. It maximizes the same function with L-BFGS from several starts, and solves q for the result.

# %%
by_call, start = new_model(), time.perf_counter()
names = ("temperature", "bias_ratio", "ard")
fit = fit_hyperparameters(by_call, train=names, warn=False, starts=1 if SMALL else 3)
call_seconds = time.perf_counter() - start
q = by_call.covar_module.order_parameter.item()
print(f"loop: log posterior {path[-1]:.3f} after {STEPS} steps, {loop_seconds:.1f} s")
print(f"call: log posterior {fit.log_posterior:.3f}, {call_seconds:.1f} s; {fit}")

# %% [markdown]
# The error that the training rows predict, beside the one at the held-out rows, for standardized targets. Then
# the file: it holds no code, and the loaded model predicts the same numbers.

# %%
left_out, held_out = leave_one_out_error(by_call), generalization_error(by_call, x[test], y[test])
# The fair baseline: infinite width with a free overall scale.
free = FreeScale().fit(by_call).error(x[test], y[test])
print(f"q = {q:.3f}; leave-one-out: {left_out}; held-out: {held_out}; held-out, free scale: {free}")
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "yacht.zip")
    save(by_call, file, normalization=units, extra={"target": YACHT.target_name})
    loaded = load(file)  # on the CPU
with torch.no_grad():
    before, after = by_call.eval()(x[test]).mean.cpu(), loaded.model(x[test].cpu()).mean
print(f"largest difference after saving and loading: {(before - after).abs().max():.1e}")
print(f"first prediction, as {loaded.extra['target']}: {loaded.normalization.targets.value(after)[0]:.3f}")

# %% [markdown]
# The picture: how far the loop is from the call's maximum, and the ARD weights (mean one) that both find.

# %%
figure = Figure(figsize=(11, 4), layout="constrained")
left, right = figure.subplots(1, 2)
left.plot([max(fit.log_posterior - value, 1e-6) for value in path], color=BLUE, linewidth=2)
left.set_yscale("log")
left.set(xlabel="step of Adam", ylabel="log posterior below the call's maximum (nats)")
ends = (("fit_hyperparameters", by_call, VERMILLION, "o", 10), ("loop with Adam", by_loop, BLUE, "x", 6))
for label, model, color, marker, size in ends:
    weights = model.covar_module.ard_weights.detach().flatten().cpu()
    right.plot(weights, range(6), color=color, marker=marker, markersize=size, linestyle="none", label=label)
right.axvline(1.0, color=GRAY, linewidth=1, label="all inputs alike")
right.set_xscale("log")
right.set_xticks([0.03, 0.1, 0.3, 1, 3], ["0.03", "0.1", "0.3", "1", "3"])
right.minorticks_off()
right.set_yticks(range(6), YACHT.feature_names)
right.set(xlabel="relative prior variance of the input's weights", ylim=(5.5, -0.5))
right.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize="small", frameon=False)
figure.savefig(PLOT, dpi=130)

# %%
gap = fit.log_posterior - path[-1]
weights = by_call.covar_module.ard_weights.detach().flatten().cpu()
most = int(weights.argmax())
where = (
    "at the call's maximum" if abs(gap) < 0.01 else f"{abs(gap):.2g} nats {'below' if gap > 0 else 'above'} the call"
)
predicted, measured, infinite = (e.mean_total.item() for e in (left_out, held_out, held_out.infinite_width))
print("\nWhat it means:")
print(f"The loop ends {where}, after {loop_seconds:.1f} s; the call took {call_seconds:.1f} s.")
print(
    f"The evidence gives the {YACHT.feature_names[most]} {weights[most]:.1f} of 6 parts of the input weights' variance."
)
print(
    f"Leave-one-out predicts a squared error of {predicted:.4f} where held-out rows give {measured:.4f}; with the same "
    f"hyperparameters infinite width gives {infinite:.4f} there, a free scale {free.mean_total:.4f}."
)
