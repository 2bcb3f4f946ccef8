"""Bad inputs and the error that each gets: the cases of a test, and what docs/bad_inputs.md is written from.

python tests/bad_input_table.py    writes docs/bad_inputs.md anew
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpytorch
import torch

from torch_propkernel import (
    Erf,
    FiniteWidthProcess,
    NNGPKernel,
    NotPositiveDefiniteError,
    ReLU,
    RenormalizedNNGPKernel,
    Spectrum,
    StudentTProcess,
    expected_accuracy,
    fit_order_parameters,
    generalization_error,
    leave_one_out_error,
    solve_order_parameters,
    training_error,
    width_sweep,
)
from torch_propkernel.commands.output import Output
from torch_propkernel.datasets import load_csv
from torch_propkernel.distributions import MultivariateStudentT, ScaleMixtureMultivariateNormal
from torch_propkernel.sklearn_support import PropKernelClassifier, PropKernelRegressor
from torch_propkernel.theories import FreeScale

F = torch.float64
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "bad_inputs.md"


@dataclass(frozen=True)
class BadInput:
    """One bad input.

    Attributes:
        what: What is wrong, in words.
        calls: Name and call of each function that must refuse it in the same words.
        error: Class of the error.
        message: Regular expression that is found in its text.
    """

    what: str
    calls: dict[str, Callable[[], Any]]
    error: type[Exception]
    message: str

    def text(self) -> str:
        """Return the message of the first call."""
        try:
            next(iter(self.calls.values()))()
        except self.error as error:
            return str(error)
        raise AssertionError(f"{self.what}: expected {self.error.__name__}, got no error")


class Model(gpytorch.models.ExactGP):
    """A network's GP that is written out, as a user writes it."""

    def __init__(self, x, y, covariance=None, noise=0.1):
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = covariance or RenormalizedNNGPKernel(ReLU(), 10, bias_variance=0.1)
        self.double()
        self.likelihood.noise = noise

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def points(n=6, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F)


def bad(value, where, what):
    value = value.clone()
    value[where] = what
    return value


def with_data(model, x, y):
    """Replace the training data, which a model converts with itself when it is moved."""
    model.set_train_data(x, y, strict=False)
    return model


def with_likelihood(model, likelihood):
    """Replace the likelihood, which the constructor of ExactGP would refuse."""
    model.likelihood = likelihood.double()
    return model


def csv(what: str, message: str, text: str, *arguments: Any, **options: Any) -> BadInput:
    """Return a case of a table's reader."""

    def read():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "d.csv")
            path.write_text(text, encoding="utf-8")
            try:
                load_csv(path, *arguments, **options)
            except ValueError as error:
                raise ValueError(str(error).replace(str(path), path.name)) from error  # the same on every machine

    return BadInput(what, {"load_csv": read}, ValueError, message)


def outputs(what: str, message: str, paths: dict[str, str]) -> BadInput:
    """Return a case of the command line's outputs."""
    name = "fit " + " ".join(paths)
    writes = {option: Path(path) for option, path in paths.items()}
    return BadInput(what, {name: lambda: Output({"DATA.csv": Path("d.csv")}, writes)}, ValueError, message)


X, Y, EYE = points(), points()[:, 0], torch.eye(6, dtype=F)
FIT_AND_ERRORS = (fit_order_parameters, leave_one_out_error, training_error)
AT_POINTS = (generalization_error, expected_accuracy)


def by_each(functions, make: Callable[[], tuple]) -> dict[str, Callable[[], Any]]:
    """Return calls of several functions with the same arguments, which are made anew for each."""
    return {f.__name__: (lambda f=f: f(*make())) for f in functions}


def kernel(what: str, error: type[Exception], message: str, *arguments: Any, **options: Any) -> BadInput:
    """Return a case of the kernel's constructor."""
    return BadInput(
        what, {"RenormalizedNNGPKernel": lambda: RenormalizedNNGPKernel(*arguments, **options)}, error, message
    )


def model(what: str, error: type[Exception], message: str, build: Callable[[], Any]) -> BadInput:
    """Return a case of a model or its training data."""
    return BadInput(what, by_each(FIT_AND_ERRORS, lambda: (build(),)), error, message)


def at(what: str, error: type[Exception], message: str, x: Any, y: Any) -> BadInput:
    """Return a case of test points."""
    return BadInput(what, by_each(AT_POINTS, lambda: (Model(X, Y), x, y)), error, message)


def matrix(what: str, error: type[Exception], message: str, *arguments: Any, **options: Any) -> BadInput:
    """Return a case of the solver for plain matrices."""
    settings = {"width": 10.0, "temperature": 0.1} | options
    return BadInput(
        what, {"solve_order_parameters": lambda: solve_order_parameters(*arguments, **settings)}, error, message
    )


def call(what: str, name: str, error: type[Exception], message: str, function: Callable[[], Any]) -> BadInput:
    """Return any other case."""
    return BadInput(what, {name: function}, error, message)


def estimator(what: str, message: str, y: Any = Y, **parameters: Any) -> BadInput:
    """Return a case of the regressor's parameters."""
    fit = PropKernelRegressor(**{"theory": "saddle"} | parameters).fit
    return BadInput(what, {"PropKernelRegressor.fit": lambda: fit(X.numpy(), y.numpy())}, ValueError, message)


def batch_of_two():
    width = torch.tensor([[10.0], [20.0]], dtype=F)
    return Model(X.expand(2, 6, 3), Y.expand(2, 6), RenormalizedNNGPKernel(ReLU(), width))


def two_layers(composition):
    return Model(X, Y, RenormalizedNNGPKernel(Erf(), [9, 9], composition))


KERNELS = [
    kernel("unknown activation", ValueError, "expected an Activation or one of the names .*got 'rulu'", "rulu", 9),
    kernel("width zero", ValueError, "width: expected positive numbers", ReLU(), 0),
    kernel("width NaN", ValueError, "width: expected positive numbers", ReLU(), math.nan),
    kernel("width as a string", TypeError, "width: expected a positive number", ReLU(), "100"),
    kernel("no width", ValueError, "width: expected one number per hidden layer, got none", ReLU(), []),
    kernel("depth beside width", TypeError, "depth: expected one number in width for each", ReLU(), 9, depth=2),
    kernel("unknown composition", ValueError, "composition: expected .*got 'inner'", ReLU(), 9, "inner"),
    kernel("negative variance", ValueError, "weight_variance: expected finite", ReLU(), 9, weight_variance=-1.0),
    kernel(
        "too many variances",
        ValueError,
        "weight_variance: expected 1 or 2 numbers",
        ReLU(),
        9,
        weight_variance=[1.0] * 3,
    ),
    kernel("negative bias", ValueError, "bias_variance: expected finite", ReLU(), 9, bias_variance=-1.0),
    call(
        "depth zero", "NNGPKernel", ValueError, "depth: expected an integer >= 1, got 0", lambda: NNGPKernel(ReLU(), 0)
    ),
    call(
        "last_dim_is_batch",
        "NNGPKernel.forward",
        NotImplementedError,
        "last_dim_is_batch: expected False, got True",
        lambda: NNGPKernel(ReLU()).double().forward(X, X, last_dim_is_batch=True),
    ),
    call(
        "an order parameter of a wrong length",
        "RenormalizedNNGPKernel.initialize",
        ValueError,
        r"order_parameter: expected shape \(1, 2\) or one that broadcasts to it, got \(3,\)",
        lambda: RenormalizedNNGPKernel(ReLU(), [9, 9]).initialize(order_parameter=torch.ones(3)),
    ),
    call(
        "a bias variance beyond its bound",
        "NNGPKernel.bias_variance",
        ValueError,
        r"bias_variance: expected numbers between 0.0 and 1000.0, got \[\[2000.0\]\]",
        lambda: setattr(NNGPKernel(ReLU(), bias_variance=1.0), "bias_variance", 2000.0),
    ),
]

MODELS = [
    model(
        "NaN in x",
        ValueError,
        "train_inputs: expected finite values, got 1 NaN",
        lambda: Model(bad(X, (1, 1), math.nan), Y),
    ),
    model("inf in x", ValueError, "0 NaN and 1 infinite of 18", lambda: Model(bad(X, (1, 1), math.inf), Y)),
    model(
        "NaN in y",
        ValueError,
        "train_targets: expected finite values, got 1 NaN",
        lambda: Model(X, bad(Y, 2, math.nan)),
    ),
    model("y too short", ValueError, r"train_targets: expected shape \(..., 6\), got \(4,\)", lambda: Model(X, Y[:4])),
    model("no rows", ValueError, "train_inputs: expected at least 1 row", lambda: Model(X[:0], Y[:0])),
    model(
        "float32 data in a float64 model",
        TypeError,
        "train_inputs: expected dtype torch.float64, the kernel's, got torch.float32",
        lambda: with_data(Model(X, Y), X.float(), Y.float()),
    ),
    model(
        "y of another dtype",
        TypeError,
        "train_targets: expected dtype torch.float64",
        lambda: with_data(Model(X, Y), X, Y.float()),
    ),
    model(
        "integer x", TypeError, "expected a floating-point tensor", lambda: Model(torch.ones(6, 3, dtype=torch.long), Y)
    ),
    model(
        "integer y", TypeError, "expected a floating-point tensor", lambda: Model(X, torch.ones(6, dtype=torch.long))
    ),
    model(
        "no renormalized kernel",
        ValueError,
        r"expected exactly one RenormalizedNNGPKernel in its covariance, got 0 among the kernels \['RBFKernel'\]",
        lambda: Model(X, Y, gpytorch.kernels.RBFKernel()),
    ),
    model(
        "two renormalized kernels",
        ValueError,
        "expected exactly one RenormalizedNNGPKernel in its covariance, got 2",
        lambda: Model(X, Y, RenormalizedNNGPKernel(Erf(), 9) + RenormalizedNNGPKernel(Erf(), 9)),
    ),
    model(
        "a likelihood that is not Gaussian",
        TypeError,
        "likelihood: expected a Gaussian one, whose noise is the temperature, got StudentTLikelihood",
        lambda: with_likelihood(Model(X, Y), gpytorch.likelihoods.StudentTLikelihood()),
    ),
    model("no model", TypeError, "model: expected an ExactGP-like module, got str", lambda: "model"),
    model(
        "no training data",
        TypeError,
        "model: expected an ExactGP-like model with train_inputs, got RenormalizedNNGPKernel without",
        lambda: RenormalizedNNGPKernel(ReLU(), 10),
    ),
    BadInput(
        "several order parameters where one is needed",
        {"width_sweep": lambda: width_sweep(two_layers("nested"), [9.0], theory="mixture")},
        ValueError,
        "composition: expected one in which only the product of the order parameters enters",
    ),
    BadInput(
        "a batch of models where one is needed",
        {
            "theory='mixture'": lambda: width_sweep(batch_of_two(), [9.0], theory="mixture"),
            "FreeScale.fit": lambda: FreeScale().fit(batch_of_two()),
        },
        ValueError,
        "model: expected no batch dimensions",
    ),
]

POINTS = [
    at("1-D x", ValueError, r"x: expected shape \(..., P, N_0\), got \(6,\)", Y, Y),
    at("wrong number of columns", ValueError, "x: expected 3 columns as in training, got 2", points(4, 2), Y[:4]),
    at("y of another length", ValueError, r"y: expected shape \(..., 6\), got \(4,\)", X, Y[:4]),
    at("NaN in x", ValueError, "x: expected finite values", bad(X, (0, 0), math.nan), Y),
    at("inf in y", ValueError, "y: expected finite values", X, bad(Y, 0, math.inf)),
    at("float32", TypeError, "x: expected dtype torch.float64", X.float(), Y),
    at("integers", TypeError, "x: expected a floating-point tensor", torch.ones(6, 3, dtype=torch.long), Y),
    at("no tensor", TypeError, "x: expected a torch.Tensor, got list", X.tolist(), Y),
    at("no rows", ValueError, "x: expected at least 1 row", X[:0], Y[:0]),
    call(
        "labels other than +-1",
        "expected_accuracy",
        ValueError,
        r"y: expected labels \+1 and -1, got values from 0 to 1",
        lambda: expected_accuracy(Model(X, Y), X, (Y > 0).double()),
    ),
]

MATRICES = [
    matrix("1-D K", ValueError, r"kernel matrix: expected shape \(..., P, P\) with P >= 1, got \(6,\)", Y, Y),
    matrix("K not square", ValueError, r"got \(4, 6\)", EYE[:4], Y),
    matrix("empty K", ValueError, r"got \(0, 0\)", EYE[:0, :0], Y[:0]),
    matrix("y of another length", ValueError, r"targets: expected shape \(..., 6\), got \(3,\)", EYE, Y[:3]),
    matrix("NaN in K", ValueError, "kernel matrix: expected finite values", bad(EYE, (0, 1), math.nan), Y),
    matrix("NaN in y", ValueError, "targets: expected finite values", EYE, bad(Y, 0, math.nan)),
    matrix("mixed dtypes", TypeError, "expected one dtype for all tensors, got kernel_matrix", EYE, Y.float()),
    matrix(
        "mixed devices", ValueError, "expected one device for all tensors, got kernel_matrix on meta", EYE.to("meta"), Y
    ),
    matrix("integer K", TypeError, "kernel matrix: expected a floating-point", torch.eye(6, dtype=torch.long), Y),
    matrix("no y", TypeError, "targets: expected a tensor beside a kernel matrix, got None", EYE),
    matrix("indefinite K", NotPositiveDefiniteError, "expected positive semi-definite, got a smallest", EYE - 2, Y),
    matrix("width zero", ValueError, "width: expected positive numbers", EYE, Y, width=0.0),
    matrix("width NaN", ValueError, "width: expected positive numbers", EYE, Y, width=math.nan),
    matrix("temperature negative", ValueError, r"temperature: expected finite numbers >= 0", EYE, Y, temperature=-0.1),
    matrix("temperature NaN", ValueError, "temperature: expected finite numbers >= 0", EYE, Y, temperature=math.nan),
    matrix(
        "T = 0, K singular", NotPositiveDefiniteError, "singular to rounding", torch.ones_like(EYE), Y, temperature=0.0
    ),
    matrix("base of wrong shape", ValueError, r"base: expected shape .* got \(6, 3\)", EYE, Y, base=EYE[:, :3]),
    matrix("base not positive", NotPositiveDefiniteError, "base: expected a positive diagonal", EYE, Y, base=-Y.abs()),
    matrix("base indefinite", NotPositiveDefiniteError, "base: expected a positive definite", EYE, Y, base=EYE - 2),
    matrix(
        "readout precision negative",
        ValueError,
        "readout_precision: expected a finite number > 0",
        EYE,
        Y,
        readout_precision=-1.0,
    ),
    matrix("a spectrum and y", TypeError, "expected None beside a Spectrum", Spectrum.from_kernel(EYE, Y), Y),
    call(
        "negative eigenvalues",
        "Spectrum.from_eigenvalues",
        ValueError,
        "eigenvalues: expected finite numbers >= 0, got a smallest one of -1",
        lambda: Spectrum.from_eigenvalues(-torch.ones(3, dtype=F), Y[:3]),
    ),
]

PROCESSES = [
    call(
        "unknown theory of a process",
        "FiniteWidthProcess",
        ValueError,
        r"theory: expected one of \('mixture', 'saddle'\), got 'exact'",
        lambda: FiniteWidthProcess(X, Y, gpytorch.likelihoods.GaussianLikelihood(), theory="exact"),
    ),
    call(
        "mixing that is no law",
        "FiniteWidthProcess",
        TypeError,
        "mixing: expected a MixingLaw or None, got float",
        lambda: FiniteWidthProcess(X, Y, gpytorch.likelihoods.GaussianLikelihood(), mixing=3.0),
    ),
    call(
        "a Gaussian likelihood for a Student's t process",
        "StudentTProcess",
        TypeError,
        "likelihood: expected a StudentTProcessLikelihood, got GaussianLikelihood",
        lambda: StudentTProcess(X, Y, gpytorch.likelihoods.GaussianLikelihood()),
    ),
    call(
        "covariance and variance",
        "ScaleMixtureMultivariateNormal",
        TypeError,
        "expected exactly one of covariance and variance, got both",
        lambda: ScaleMixtureMultivariateNormal(Y[:1], X[:1], EYE[:3, :3], variance=X[:1] ** 2),
    ),
    call(
        "negative variances",
        "ScaleMixtureMultivariateNormal",
        ValueError,
        "variance: expected finite numbers >= 0, got a smallest one",
        lambda: ScaleMixtureMultivariateNormal(Y[:1], X[:1], variance=-(X[:1] ** 2)),
    ),
    call(
        "no covariance for two degrees of freedom",
        "MultivariateStudentT",
        ValueError,
        "df",
        lambda: MultivariateStudentT(Y, covariance=EYE, df=2.0),
    ),
]

ESTIMATORS = [
    estimator("unknown theory", "theory: expected a Theory or one of the names .*got 'exact'", theory="exact"),
    estimator("temperature zero", "temperature: expected a finite number > 0, got 0.0", temperature=0.0),
    estimator(
        "unknown temperature",
        "temperature: expected a number > 0, or None to fit it, got 'cold'",
        temperature="cold",
    ),
    estimator("width negative", "width: expected positive numbers", width=-3),
    estimator("unknown activation", "activation: expected an Activation or one of the names", activation="rellu"),
    estimator("too many variances", "weight_variance: expected 1 or 2 numbers", weight_variance=(1.0, 1.0, 1.0)),
    estimator(
        "a mixture of several scales",
        "composition: expected one in which only the product of the order parameters enters",
        theory="mixture",
        composition="nested",
        width=(9, 9),
        activation="erf",
        temperature=0.1,
        weight_variance=1.0,
        bias_variance=1.0,
        ard_weights=1.0,
    ),
    call(
        "both spreads",
        "PropKernelRegressor.predict",
        ValueError,
        "return_std, return_cov: expected at most one of them, got both",
        lambda: PropKernelRegressor().predict(X.numpy(), return_std=True, return_cov=True),
    ),
    call(
        "sample weights",
        "PropKernelRegressor.fit",
        TypeError,
        "unexpected keyword argument 'sample_weight'",
        lambda: PropKernelRegressor().fit(X.numpy(), Y.numpy(), sample_weight=Y.numpy()),
    ),
    call(
        "a likelihood of other hyperparameters",
        "PropKernelRegressor.log_marginal_likelihood",
        ValueError,
        "theta: expected None, the fitted hyperparameters, got",
        lambda: PropKernelRegressor(theory="saddle").fit(X.numpy(), Y.numpy()).log_marginal_likelihood([0.0]),
    ),
    call(
        "one class",
        "PropKernelClassifier.fit",
        ValueError,
        "y: expected two classes or more, got one class, 'only'",
        lambda: PropKernelClassifier().fit(X.numpy(), ["only"] * 6),
    ),
]


def botorch_cases() -> list[BadInput]:
    """Return the cases of BoTorch models: what would apply formulas for normal processes."""
    from botorch.acquisition import UpperConfidenceBound
    from botorch.acquisition.active_learning import qNegIntegratedPosteriorVariance
    from botorch.cross_validation import efficient_loo_cv, loo_cv
    from botorch.exceptions import UnsupportedError
    from botorch.sampling.pathwise import draw_kernel_feature_paths, draw_matheron_paths, get_matheron_path_model
    from gpytorch.mlls import ExactMarginalLogLikelihood

    from torch_propkernel.botorch_support import SingleTaskStudentTProcess

    x, y = torch.sigmoid(X), Y.unsqueeze(-1)
    made = SingleTaskStudentTProcess(x, y)
    calls: dict[str, tuple[str, dict[str, Callable[[], Any]]]] = {
        "leave-one-out by a normal's formulas": (
            "must return a MultivariateNormal, got NormalGivenScale",
            {"loo_cv": lambda: loo_cv(made), "efficient_loo_cv": lambda: efficient_loo_cv(made)},
        ),
        "sample paths of a normal process": (
            "pathwise sampling: expected a normal process, got SingleTaskStudentTProcess",
            {
                "draw_matheron_paths": lambda: draw_matheron_paths(made, torch.Size([2])),
                "draw_kernel_feature_paths": lambda: draw_kernel_feature_paths(made, torch.Size([2])),
                "get_matheron_path_model": lambda: get_matheron_path_model(made),
            },
        ),
        "an analytic acquisition function": (
            "expected a model with a normal posterior, got SingleTaskStudentTProcess",
            {"UpperConfidenceBound": lambda: UpperConfidenceBound(made, 1.0)},
        ),
        "a variance after an observation that depends on its value": (
            "expected a model with a normal posterior, got SingleTaskStudentTProcess",
            {"qNegIntegratedPosteriorVariance": lambda: qNegIntegratedPosteriorVariance(made, x)},
        ),
    }
    cases = [BadInput(what, named, UnsupportedError, message) for what, (message, named) in calls.items()]
    objective = ExactMarginalLogLikelihood(made.likelihood, made)
    normal = call(
        "a normal's evidence",
        "ExactMarginalLogLikelihood",
        RuntimeError,
        "can only operate on Gaussian random variables",
        lambda: objective(made.train()(*made.train_inputs), made.train_targets),
    )
    return [*cases, normal]


FILES = [
    csv("a text", r"got 'red', which is not a number; encode categorical columns first", "a,b\n1,2\nred,4\n"),
    csv("a missing value", r"got a missing value \(''\); drop or impute such rows first", "a,b\n1,2\n,4\n"),
    csv("marks between digits", "got '1,029.8', write it without marks between its digits", "a;b\n1;2\n1,029.8;4\n"),
    csv("an underscore", "got '1_000', write it without marks between its digits", "a,b\n1,2\n1_000,4\n"),
    csv("a decimal comma", "got '1,5', write it with a decimal point", "a;b\n1;2\n1,5;4\n"),
    csv("a percentage", "got '5 %', a percentage: write the number alone", "a,b\n1,2\n5 %,4\n"),
    csv("a date", "got '2024-01-31', a date or a time", "a,b\n1,2\n2024-01-31,4\n"),
    csv("a long identifier", "more digits than double precision holds", "a,b\n1,2\n12345678901234567891,4\n"),
    csv("a huge number", r"got '1e300', larger than 1e\+100: rescale the column", "a,b\n1,2\n1e300,4\n"),
    csv("infinity", "got 'inf', if it stands for a missing value, leave the cell empty", "a,b\n1,2\ninf,4\n"),
    csv("a first row that may be a header", "expected names or data, got 0, 1, 2", "0,1,2\n3,5,4\n6,2,1\n"),
    csv("a header without a name", "expected a name for every column of the header", ",a,b\n0,1,2\n1,3,4\n"),
    csv("a short row", "line 2: expected 2 columns separated by ',', got 1", "1,2\n3\n"),
    csv("an unknown target", "expected a target that names one column", "a,b\n1,2\n3,4\n", target="c"),
    csv(
        "a target that is left out", "expected a target that is not left out", "a,b,c\n1,2,3\n4,5,6\n", "c", drop=["c"]
    ),
    outputs("an output that is an input", "expected two files, got d.csv for both", {"--predictions": "d.csv"}),
    outputs("two outputs of one path", "expected two files, got a for both", {"--json": "a", "--save": "a"}),
    outputs("a plot of no known kind", "expected an ending that matplotlib writes", {"--plot": "x.txt"}),
    outputs("a model to stdout", "expected a file, got -", {"--save": "-"}),
]

GROUPS = {
    "Kernels": KERNELS,
    "Models and training data": MODELS,
    "Test points": POINTS,
    "Matrices and spectra": MATRICES,
    "Processes and distributions": PROCESSES,
    "scikit-learn estimators": ESTIMATORS,
    "Files": FILES,
}
if importlib.util.find_spec("botorch"):
    GROUPS["BoTorch models"] = botorch_cases()


def document() -> str:
    """Return docs/bad_inputs.md."""
    lines = [
        "# Bad inputs and the errors they get",
        "",
        "Written by `python tests/bad_input_table.py` from the cases that `tests/test_bad_input.py` runs. A check",
        "comes before the work, and its message says what was expected and what came. Where several functions are",
        "named, the message is the first one's.",
    ]
    for group, cases in GROUPS.items():
        lines += ["", f"## {group}", "", "| input | of | error | message |", "|---|---|---|---|"]
        for case in cases:
            names = ", ".join(f"`{name}`" for name in case.calls)
            text = case.text().replace("|", "\\|").replace("\n", " ")
            lines.append(f"| {case.what} | {names} | `{case.error.__name__}` | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
