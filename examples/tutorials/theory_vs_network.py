# %% [markdown]
# # Theory against the real network
#
# `compare_with_network` samples the posterior of the finite network that a model describes and puts the predictions of
# all theories beside it. You learn
#
# - to run it on real data, in a case where the theory works and in one where it fails: relu and erf on images of two
#   digits, which vary in few directions, at the same narrow width;
# - what the reliability note says beforehand, from the training data alone;
# - to read the table: relative errors matter, z-scores reject every approximation once there are enough draws.
#
# Run it as `python examples/tutorials/theory_vs_network.py [--small] [--plot FILE]`. The digits come with scikit-learn;
# without it the yacht data of this package take their place.

# %%
import sys

import gpytorch
import torch
from matplotlib.figure import Figure

from torch_propkernel import Erf, NetworkGP, ReLU, RenormalizedNNGPKernel, fit_order_parameters
from torch_propkernel.datasets import load_yacht
from torch_propkernel.plotting import plot_comparison
from torch_propkernel.practice import compare_with_network

SMALL = "--small" in sys.argv
PLOT = sys.argv[sys.argv.index("--plot") + 1] if "--plot" in sys.argv else "theory_vs_network.png"
WIDTH, ROWS, DRAWS, TEMPERATURE = (5, 15, 150, 0.3) if SMALL else (20, 60, 400, 0.05)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# Labels 0 and 1 of two kinds of images, 64 pixels standardized on the training rows.

# %%
try:
    from sklearn.datasets import load_digits

    x, y = (torch.from_numpy(values).double() for values in load_digits(n_class=2, return_X_y=True))
    data, target = "images of 0 and 1", "label"
except ImportError:
    x, y = load_yacht()
    y, data, target = y / y.std(), "yacht data", "standard deviation"
rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
train, test = rows[:ROWS], rows[ROWS : ROWS + 100]
deviation = x[train].std(0)
x = (x[:, deviation > 0] - x[train][:, deviation > 0].mean(0)) / deviation[deviation > 0]

# %% [markdown]
# The same model twice but for the activation. First what the training data say about the prediction's reliability,
# then the comparison, which takes a second or minutes, depending on rows, width and draws.

# %%
comparisons, notes = {}, {}
for activation in (ReLU(), Erf()):
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = TEMPERATURE
    model = NetworkGP(x[train], y[train], likelihood, RenormalizedNNGPKernel(activation, WIDTH))
    notes[activation] = fit_order_parameters(model, warn=False).reliability
    size = {"num_chains": 4, "num_samples": DRAWS, "warmup": DRAWS // 2}
    comparisons[activation] = compare_with_network(model, x[test], y[test], **size)
    print(f"\n{activation!r}, {WIDTH} units, {data}: {notes[activation]}\n{comparisons[activation]}")

# %% [markdown]
# The picture: relu above, erf below. The line is the sampled network, hollow points know nothing of the width.

# %%
figure = Figure(figsize=(14, 6.5), layout="constrained")
for axes, (activation, comparison) in zip(figure.subplots(2, 5), comparisons.items(), strict=True):
    plot_comparison(comparison, axes, target=target)
    axes[0].set_title(
        f"{activation!r}, {WIDTH} units. Line and band: sampled network, 2 s.e.", fontsize="small", loc="left"
    )
figure.savefig(PLOT, dpi=130)


# %%
def sentence(activation):
    comparison, note = comparisons[activation], notes[activation]
    saddle, infinite, free = (
        100 * comparison.error(theory, "test_error") for theory in ("saddle", "infinite_width", "free_scale")
    )
    closer = (abs(saddle) < abs(infinite)) + (abs(saddle) < abs(free))
    word = ("further off than both", "between", "closer than both")[closer]
    warned = "no warning" if note.reliable else "a warning"
    doubt = "" if comparison.sampled.converged else " (the sampler has not converged)"
    return (
        f"For {activation!r} the saddle point is off by {saddle:+.1f} % in the test error{doubt}, {word} infinite "
        f"width ({infinite:+.1f} %) and free scale ({free:+.1f} %); there was {warned} (score {note.score:.2g})."
    )


off = [f"{100 * comparisons[a].error('saddle', 'order_parameter'):+.0f} % ({a!r})" for a in comparisons]
why = "a rescaled kernel cannot describe hidden units that turn toward a few directions of the inputs"
if abs(comparisons[Erf()].error("saddle", "test_error")) < 0.1:
    why = "few directions, but here a rescaled kernel describes erf units within 10 %"
print("\nWhat it means:")
print(sentence(ReLU()))
print(sentence(Erf()))
print(f"The inputs fill {notes[Erf()].participation_ratio:.1f} directions, and q is off by {' and '.join(off)}: {why}.")
