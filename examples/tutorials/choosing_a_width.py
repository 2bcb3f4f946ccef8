# %% [markdown]
# # Choosing a width
#
# Which width does a data set ask for? `choose_network` compares a grid of networks by evidence and leave-one-out. You
# learn
#
# - to read its recommendation with its uncertainty: probabilities, "no preference", plausible values;
# - that the answer about the width depends on the readout variance: with that free, infinite width wins the evidence;
# - what fair baselines, tuned by evidence, reach on the same rows.
#
# Run it as `python examples/tutorials/choosing_a_width.py [--small] [--plot FILE]`; the data are those of the package.

# %%
import math
import sys

import torch
from matplotlib.figure import Figure

from torch_propkernel import ReLU
from torch_propkernel.datasets import load_yacht
from torch_propkernel.plotting import BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, VERMILLION, plot_map
from torch_propkernel.tuning import choose_network

SMALL = "--small" in sys.argv
PLOT = sys.argv[sys.argv.index("--plot") + 1] if "--plot" in sys.argv else "choosing_a_width.png"
ROWS = 30 if SMALL else 100
WIDTHS = (5.0, 50.0, math.inf) if SMALL else (5.0, 10.0, 20.0, 50.0, 100.0, 300.0, math.inf)
TEMPERATURES = (1e-3, 1e-2, 1e-1) if SMALL else (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
READOUTS = (1.0, 30.0) if SMALL else (1.0, 3.0, 10.0, 30.0, 100.0)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# The grid: every combination, each equally likely beforehand. Inputs and targets are standardized by the call.

# %%
x, y = load_yacht()
rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:ROWS]
choice = choose_network(
    x[rows],
    y[rows],
    activations=ReLU(),
    widths=WIDTHS,
    depths=(1,) if SMALL else (1, 2),
    temperatures=TEMPERATURES,
    bias_ratios=(1.0,) if SMALL else (0.3, 3.0),
    readout_variances=READOUTS,
)
print(choice)

# %% [markdown]
# The width at each readout variance, and at the best one of each width: log evidence averaged over all else.

# %%
by_readout = choice.marginal("readout_variance", "width")  # in the order of the grid's axes
highest = by_readout.amax(0)
one = by_readout[choice.grid["readout_variance"].index(1.0)]
print("log evidence, averaged over temperature, depth and bias")
print(f"{'readout variance':>20s}" + "".join(f"{f'N = {width:g}':>12s}" for width in WIDTHS))
for variance, line in zip(READOUTS, by_readout, strict=True):
    print(f"{variance:20g}" + "".join(f"{value:12.2f}" for value in line))

# %% [markdown]
# The picture: leave-one-out error over widths and temperatures at the recommended depth and variances, and evidence
# against width.

# %%
best = choice.index()
errors = choice.leave_one_out_error[best[:5]].T  # the last two axes are temperature and width
figure = Figure(figsize=(13, 4.8), layout="constrained")
left, right = figure.subplots(1, 2)
plot_map(WIDTHS, TEMPERATURES, errors, left, label="leave-one-out error, (log resistance)$^2$", log=True)
places = range(len(WIDTHS))
for variance, line, color in zip(READOUTS, by_readout, (BLUE, SKY, GREEN, PURPLE, ORANGE), strict=False):
    right.plot(places, line, color=color, marker="o", markersize=4, label=f"readout variance {variance:g}")
right.plot(places, highest, color=VERMILLION, linewidth=4, alpha=0.4, zorder=0, label="best readout variance")
right.axhspan(highest.max() - 3, highest.max(), color=GRAY, alpha=0.15, linewidth=0, label="within 3 nats of the best")
right.set_xticks(places, ["∞" if math.isinf(width) else f"{width:g}" for width in WIDTHS])
right.set(
    xlabel="width N (units)", ylabel="log evidence (nats)", ylim=(max(by_readout.min(), highest.max() - 40), None)
)
right.legend(fontsize="small", frameon=False)
figure.savefig(PLOT, dpi=130)


# %%
def shown(width):
    return "infinite" if math.isinf(width) else f"{width:g}"


index = WIDTHS.index(choice.recommended["width"])
spread = choice.marginal("width")
preferred = choice.preference("width")
verdict = "no preference" if preferred is None else f"a preference for {shown(preferred)}"
free, matern = choice.baselines
mean, error = choice.difference(best, free)
word = "tied with" if abs(mean) < 2 * error else "ahead of" if mean > 0 else "behind"
top = WIDTHS[int(highest.argmax())]
print("\nWhat it means:")
print(
    f"The recommended width is {shown(choice.recommended['width'])} with probability "
    f"{choice.probability('width')[index]:.2f}; all lie within {spread.max() - spread.min():.1f} nats: {verdict}."
)
tuned, grid = free.fit.log_evidence, choice.log_evidence.max().item()
above = "above every network of the grid" if tuned > grid else "not above the best network of the grid"
print(
    f"At readout variance 1 the evidence is highest at width {shown(WIDTHS[int(one.argmax())])}, at the grid's best "
    f"one for each width at {shown(top)}; with a free one infinite width wins, since an average over the scale is at "
    f"most its maximum: tuned, it reaches {tuned:.1f} nats, {above} ({grid:.1f})."
)
print(
    f"In leave-one-out log density the recommended network is {word} the tuned free scale (difference {mean:+.3f} +- "
    f"{error:.3f}), and Matern-5/2 with ARD is at {matern.leave_one_out_log_density:.3f} where the network is at "
    f"{choice.leave_one_out_log_density[best]:.3f}."
)
