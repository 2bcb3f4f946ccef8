# %% [markdown]
# # Several hidden layers
#
# With one hidden layer all forms of the theory are equal. With two or three one has to say how the order parameters of
# the layers enter the kernel, and the answers differ. You learn
#
# - the three compositions of `RenormalizedNNGPKernel`, and the `Gated` theory of two relu layers;
# - that every theory has one interface, `SaddlePoint().fit(model).error(x, y)`;
# - to sample the posterior of the real two-layer network with `sample_posterior`, and to judge the theories by it.
#
# The inputs are random here, with 200 columns: the theory is one of high-dimensional inputs. For real data with few
# directions see `theory_vs_network.py`. Run it as `python examples/tutorials/deep_networks.py [--small] [--plot FILE]`.

# %%
import sys

import gpytorch
import torch
from matplotlib.figure import Figure

from torch_propkernel import Erf, NetworkGP, ReLU, RenormalizedNNGPKernel
from torch_propkernel.networks import sample_posterior
from torch_propkernel.plotting import BLUE, GRAY, GREEN, ORANGE, SKY, VERMILLION
from torch_propkernel.practice import network_from_model
from torch_propkernel.theories import FreeScale, Gated, InfiniteWidth, SaddlePoint

SMALL = "--small" in sys.argv
PLOT = sys.argv[sys.argv.index("--plot") + 1] if "--plot" in sys.argv else "deep_networks.png"
WIDTH, ROWS, DRAWS, TEMPERATURE = (5, 8, 150, 0.3) if SMALL else (20, 40, 250, 0.1)
COMPOSITIONS = {"outer": BLUE, "nested": ORANGE, "linear_part": GREEN}
torch.set_default_dtype(torch.float64)

# %% [markdown]
# Signs of a linear teacher, and networks of 1, 2 and 3 hidden layers of the same width.

# %%
generator = torch.Generator().manual_seed(0)
x = torch.randn(ROWS + 100, 200, generator=generator)
y = torch.sign(x @ torch.randn(200, generator=generator))
train, test = (x[:ROWS], y[:ROWS]), (x[ROWS:], y[ROWS:])


def network(activation, depth, composition="outer"):
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    likelihood.noise = TEMPERATURE
    return NetworkGP(*train, likelihood, RenormalizedNNGPKernel(activation, [WIDTH] * depth, composition))


# %% [markdown]
# Predicted test errors. A baseline needs no theory of the width: the infinite network with a free scale.

# %%
DEPTHS = (1, 2, 3)
predicted = {}
for activation in (Erf(), ReLU()):
    curves = {name: [] for name in ("infinite width", "free scale", *COMPOSITIONS)}
    for depth in DEPTHS:
        model = network(activation, depth)
        curves["infinite width"].append(InfiniteWidth().fit(model).error(*test).mean_total.item())
        curves["free scale"].append(FreeScale().fit(model).error(*test).mean_total.item())
        for composition in COMPOSITIONS:
            theory = SaddlePoint().fit(network(activation, depth, composition))
            curves[composition].append(theory.error(*test).mean_total.item())
    predicted[activation] = curves
gated = Gated().fit(network(ReLU(), 2))
predicted[ReLU()]["gated"] = [None, gated.error(*test).mean_total.item(), None]
print(f"gated: {gated}")

# %% [markdown]
# The real networks with two layers, sampled: the network that the kernel describes, at the likelihood's temperature.

# %%
measured, good = {}, {}
for activation in predicted:
    sampled = sample_posterior(
        network_from_model(network(activation, 2)),
        *train,
        TEMPERATURE,
        test_x=test[0],
        test_y=test[1],
        num_chains=4,
        num_samples=DRAWS,
        warmup=DRAWS // 2,
    )
    measured[activation], good[activation] = sampled.test_error, sampled.converged
    print(f"{activation!r}, two layers, sampled: test error {sampled.test_error}; {sampled.message}")

# %% [markdown]
# The picture: predictions against depth; the sampled networks, with two standard errors, at depth two.

# %%
figure = Figure(figsize=(11, 4.8), layout="constrained")
style = {"infinite width": (GRAY, "--"), "free scale": (SKY, "-.")} | {k: (c, "-") for k, c in COMPOSITIONS.items()}
for ax, (activation, curves) in zip(figure.subplots(1, 2, sharey=True), predicted.items(), strict=True):
    for number, (name, values) in enumerate(curves.items()):
        color, dashes = style.get(name, (VERMILLION, "none"))
        size = 12 - 1.5 * number if name in COMPOSITIONS else 10 if name == "gated" else 4  # equal ones stay visible
        marker = "*" if name == "gated" else "o"
        ax.plot(DEPTHS, values, color=color, linestyle=dashes, marker=marker, markersize=size, label=name)
    value = measured[activation]
    style_of_points = {"color": "black", "marker": "s", "capsize": 4, "linestyle": "none"}
    ax.errorbar(2.06, value.mean, yerr=2 * value.standard_error, label="sampled network", **style_of_points)
    ax.set_xticks(DEPTHS)
    ax.set(xlabel=f"hidden layers of {WIDTH} {activation!r} units")
figure.legend(*figure.axes[1].get_legend_handles_labels(), loc="outside right upper", fontsize="small", frameon=False)
figure.axes[0].set_ylabel("expected squared test error (labels are +1 and -1)")
figure.savefig(PLOT, dpi=130)


# %%
def off(activation, name):
    return f"{100 * (predicted[activation][name][1] / measured[activation].mean - 1):+.1f} %"


def nearest(activation):
    values = {name: abs(curve[1] / measured[activation].mean - 1) for name, curve in predicted[activation].items()}
    return " and ".join(name for name, value in values.items() if value < min(values.values()) + 1e-3)


print("\nWhat it means:")
for a, more in ((Erf(), ""), (ReLU(), f", gated by {off(ReLU(), 'gated')}")):
    certain = f"{200 * measured[a].standard_error / measured[a].mean:.1f} %"
    doubt = "" if good[a] else ", which has not converged,"
    print(
        f"Two {a!r} layers of {WIDTH} units: outer is off by {off(a, 'outer')}, nested by {off(a, 'nested')}, linear "
        f"part by {off(a, 'linear_part')}{more}, infinite width by {off(a, 'infinite width')} and the free scale by "
        f"{off(a, 'free scale')}; two standard errors of the sampler{doubt} are {certain}, and nearest is {nearest(a)}."
    )
print("One data set does not rank the compositions: section 7 of THEORY.md has measurements on more of them.")
