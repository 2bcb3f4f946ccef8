# %% [markdown]
# # Student's t and finite width: GPs whose scale is unknown
#
# A finite-width network and a Student's t process are both one GP whose kernel is multiplied by a random scale r. They
# differ in the law of r, and in whether the noise is scaled too. You learn
#
# - to build and fit the four processes: a GP of fixed scale, a finite width, Student's t, and a GP of free scale;
# - to get intervals and cumulative probabilities from a mixture, its saddle, and a Student's t;
# - to check them on held-out yacht data with `plot_calibration`.
#
# Run it as `python examples/tutorials/students_t_and_finite_width.py [--small] [--plot FILE]`.

# %%
import sys

import torch
from matplotlib.figure import Figure

from torch_propkernel import FiniteWidthLikelihood, NNGPKernel, ReLU, RenormalizedNNGPKernel, StudentTProcessLikelihood
from torch_propkernel.datasets import load_yacht
from torch_propkernel.models import NetworkFiniteWidthProcess, NetworkGP, NetworkStudentTProcess
from torch_propkernel.plotting import plot_calibration, plot_intervals
from torch_propkernel.tuning import fit_hyperparameters

SMALL = "--small" in sys.argv
PLOT = sys.argv[sys.argv.index("--plot") + 1] if "--plot" in sys.argv else "students_t_and_finite_width.png"
WIDTH, ROWS, GRID = 5, 25 if SMALL else 70, 15 if SMALL else 80
torch.set_default_dtype(torch.float64)

# %% [markdown]
# Data: some rows to train on, all others to test. Inputs and targets are standardized on the training rows.

# %%
x, y = load_yacht()
rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
train, test = rows[:ROWS], rows[ROWS:]
x, y = (x - x[train].mean(0)) / x[train].std(0), (y - y[train].mean()) / y[train].std()

# %% [markdown]
# The processes. All have the same relu kernel of one hidden layer with biases and ARD; the readout variance is one but
# for the last, the fair baseline. Temperature, bias ratio and ARD weights are fitted by each one's own evidence.

# %%
options = {"bias_variance": 1.0, "ard_num_dims": 6}
data, fixed = (x[train], y[train]), ["temperature", "bias_ratio", "ard"]
models = {
    "GP, fixed scale": (NetworkGP(*data, FiniteWidthLikelihood(), NNGPKernel(ReLU(), **options)), fixed),
    f"width {WIDTH}": (
        NetworkFiniteWidthProcess(*data, FiniteWidthLikelihood(), RenormalizedNNGPKernel(ReLU(), WIDTH, **options)),
        fixed,
    ),
    "Student's t": (
        NetworkStudentTProcess(*data, StudentTProcessLikelihood(), NNGPKernel(ReLU(), **options)),
        [*fixed, "deg_free"],
    ),
    "GP, free scale": (NetworkGP(*data, FiniteWidthLikelihood(), NNGPKernel(ReLU(), **options)), [*fixed, "scale"]),
}
for name, (model, names) in models.items():
    model.likelihood.noise = 0.1
    print(f"{name}: {fit_hyperparameters(model, train=names, warn=False, throw=False, starts=2)}")
    model.eval()

# %% [markdown]
# Predictives of new targets, noise included. A finite width has three forms: the mixture over r, its saddle (a normal
# law), and a Student's t with the mixture's moments. All give quantiles and cumulative probabilities.


# %%
@torch.no_grad()
def predictive(name, points):
    process, _, form = name.partition(": ")
    model = models[process][0]
    if form == "student_t":
        latent = model.student_t(points)
    else:
        latent = model.predict(points, form) if form else model(points)
    law = model.likelihood(latent)
    normal = isinstance(law, torch.distributions.MultivariateNormal)
    return torch.distributions.Normal(law.mean, law.stddev) if normal else law


saddle, mixture = f"width {WIDTH}: saddle", f"width {WIDTH}: mixture"
names = ("GP, fixed scale", saddle, mixture, "Student's t", "GP, free scale")
probabilities = {name: predictive(name, x[test]).cdf(y[test]) for name in names}
coverage, size = {}, {}
for name, value in probabilities.items():
    coverage[name] = ((value - 0.5).abs() <= 0.475).double().mean().item()
    low, high = (predictive(name, x[test]).icdf(torch.full_like(y[test], level)) for level in (0.025, 0.975))
    size[name] = (high - low).mean().item()
    print(f"{name:18s} 95 % intervals: mean width {size[name]:.3f}, hold {100 * coverage[name]:.1f} % of the test rows")

# %% [markdown]
# The picture: intervals along the speed for the hull with the fewest training rows, and calibration on all test rows.

# %%
hull = x[::14, :5]  # 22 hulls at 14 speeds each
known = [int((x[train, :5] == each).all(-1).sum()) for each in hull]
each = hull[known.index(min(count for count in known if count > 0))]
here = (x[train, :5] == each).all(-1)
speed = torch.linspace(x[:, 5].min(), x[:, 5].max(), GRID)
points = torch.cat([each.expand(GRID, 5), speed[:, None]], 1)
curves = {}
for name in ("GP, fixed scale", mixture, "Student's t"):
    law = predictive(name, points)
    curves[name] = law.mean, *(law.icdf(torch.full((GRID,), level)) for level in (0.025, 0.975))
figure = Figure(figsize=(11, 4.8), layout="constrained")
left, right = figure.subplots(1, 2)
plot_intervals(speed, curves, (x[train][here][:, 5], y[train][here]), left, target="log resistance (standardized)")
others = (x[test, :5] == each).all(-1)
left.plot(x[test][others][:, 5], y[test][others], "x", color="black", label="test points")
left.set_xlabel("Froude number (standardized)")
left.legend(fontsize="small", frameon=False)
plot_calibration(probabilities, right)
figure.savefig(PLOT, dpi=130)


# %%
def listed(level, name):
    return f"{100 * ((probabilities[name] - 0.5).abs() <= level / 2).double().mean():.1f} % ({name})"


gap = 2 * (0.95 * 0.05 / len(test)) ** 0.5
near = [name for name in names if abs(coverage[name] - 0.95) < gap]
apart = (probabilities[saddle] - probabilities[mixture]).abs().max().item()
print("\nWhat it means:")
print(
    f"Nominal 95 % intervals hold {', '.join(listed(0.95, name) for name in names)} of {len(test)} test rows; within "
    f"two standard errors of a calibrated one ({100 * gap:.1f} %) are: {', '.join(near) or 'none'}."
)
print(
    f"Nominal 50 % intervals hold {listed(0.5, mixture)} and {listed(0.5, 'GP, free scale')}: a law of the scale sets "
    "how wide intervals are, not the shape of the errors."
)
print(
    f"Saddle and mixture of width {WIDTH} give cumulative probabilities that differ by at most {apart:.3f}, and a GP "
    f"whose scale is fitted has intervals {size['GP, free scale'] / size[mixture]:.2f} times as wide as the mixture's."
)
