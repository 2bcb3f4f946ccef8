"""Models that come back from a file as they went in, bit for bit."""

from __future__ import annotations

import copy
import os
import stat
import subprocess
import sys
import zipfile

import gpytorch
import pytest
import torch
from gpytorch import kernels as gk
from gpytorch.constraints import GreaterThan, Interval, LessThan, Positive
from gpytorch.likelihoods import GaussianLikelihood, MultitaskGaussianLikelihood
from gpytorch.means import ConstantMean, MultitaskMean, ZeroMean
from gpytorch.priors import GammaPrior, HalfCauchyPrior, LogNormalPrior, NormalPrior, SmoothedBoxPrior, UniformPrior

from conftest import double_precision
from torch_propkernel import (
    ArcCosineKernel,
    ArcSineKernel,
    Erf,
    FiniteWidthLikelihood,
    NetworkGP,
    NNGPKernel,
    ReLU,
    RenormalizedNNGPKernel,
    StudentTProcessLikelihood,
    fit_order_parameters,
)
from torch_propkernel.activations import ACTIVATIONS, Identity, LeakyReLU
from torch_propkernel.inference import Normalization
from torch_propkernel.kernels import (
    COMPOSITIONS,
    BlockRenormalizedKernel,
    ConvolutionalNNGPKernel,
    ConvolutionalRenormalizedKernel,
    KernelBlocks,
    MultitaskRenormalizedKernel,
)
from torch_propkernel.mixing import (
    GammaMixing,
    InverseGammaMixing,
    LogNormalMixing,
    PointMass,
    ProductGammaMixing,
)
from torch_propkernel.models import MultitaskNetworkGP, NetworkFiniteWidthProcess, NetworkStudentTProcess
from torch_propkernel.order_parameters import LinearChain
from torch_propkernel.saving import SavedModelError, load, save
from torch_propkernel.theories import SaddlePoint

DIMENSION = 3


def data(dtype=torch.float64, rows=12):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, DIMENSION, generator=generator, dtype=dtype)
    return x, torch.sin(x[:, 0]) + 0.1 * torch.randn(rows, generator=generator, dtype=dtype)


def perturbed(module):
    """Every parameter moved, so that no default hides a value that is lost."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def bits(model, x):
    """All that a prediction has."""
    model.eval()
    with torch.no_grad():
        latent = model(x)
        noisy = model.likelihood(latent)
        return [latent.mean, latent.variance, noisy.mean, noisy.variance]


def round_trip(model, path, **kwargs):
    save(model, path, **kwargs)
    return load(path)


def check(model, path):
    x = torch.randn(5, DIMENSION, generator=torch.Generator().manual_seed(5), dtype=model.train_targets.dtype)
    expected = bits(model, x)
    loaded = round_trip(model, path).model
    assert type(loaded) is type(model)
    assert all(torch.equal(a, b) for a, b in zip(bits(loaded, x), expected, strict=True))
    state, again = model.state_dict(), loaded.state_dict()
    assert list(state) == list(again)
    assert all(torch.equal(state[name], again[name]) and state[name].dtype == again[name].dtype for name in state)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    priors = [
        {
            name: (type(prior), prior.log_prob(closure(module)).sum())
            for name, module, prior, closure, _ in m.named_priors()
        }
        for m in (model, loaded)
    ]
    assert priors[0] == priors[1]
    constraints = [{name: repr(constraint) for name, constraint in m.named_constraints()} for m in (model, loaded)]
    assert constraints[0] == constraints[1]
    return loaded


def two_blocks():
    return [[NNGPKernel("erf", active_dims=(0, 1)), None], [None, gk.ScaleKernel(gk.RBFKernel(active_dims=(2,)))]]


def three_blocks():
    """A table in which one kernel stands four times."""
    shared = NNGPKernel("erf")
    return [[shared, shared, None], [shared, shared, None], [None, None, NNGPKernel("relu")]]


KERNELS = {
    "two layers": lambda: RenormalizedNNGPKernel(ReLU(), [20, 30], bias_variance=[1.0, 0.0]),
    "infinite layer": lambda: RenormalizedNNGPKernel(Erf(), [20, float("inf")], bias_variance=1.0),
    "ard": lambda: RenormalizedNNGPKernel(Erf(), 20, ard_num_dims=DIMENSION, bias_variance=1.0),
    "own priors": lambda: RenormalizedNNGPKernel(
        Erf(),
        20,
        bias_variance=1.0,
        weight_variance_prior=GammaPrior(2.0, 1.0),
        bias_ratio_prior=LogNormalPrior(0.1, 0.7),
        weight_variance_constraint=Interval(0.01, 50.0),
        bias_variance_constraint=GreaterThan(1e-3),
    ),
    "nngp": lambda: NNGPKernel(Erf(), 3, bias_variance=0.5, active_dims=(0, 2)),
    "arc sine": lambda: ArcSineKernel(2, ard_num_dims=DIMENSION),
    "arc cosine": lambda: ArcCosineKernel(2),
    "scale": lambda: gk.ScaleKernel(
        RenormalizedNNGPKernel(ReLU(), 50), GammaPrior(2.0, 0.15), outputscale_constraint=LessThan(9.0)
    ),
    "sum and product": lambda: (
        gk.ScaleKernel(gk.RBFKernel(ard_num_dims=DIMENSION, lengthscale_prior=NormalPrior(1.0, 1.0)))
        + gk.MaternKernel(0.5, active_dims=(1,)) * RenormalizedNNGPKernel(ReLU(), 9)
        + gk.ConstantKernel(constant_prior=HalfCauchyPrior(1.0))
    ),
    "convolution": lambda: ConvolutionalNNGPKernel("relu", (1, 3), 2, stride=1, readout="pooled", bias_variance=0.5),
    "convolution of finite width": lambda: ConvolutionalRenormalizedKernel(
        LeakyReLU(0.3), 9, (1, 3), 2, stride=1, padding=1, bias_variance=0.5, ard_num_dims=DIMENSION
    ),
    "pooled convolution beside a bias": lambda: (
        ConvolutionalRenormalizedKernel("erf", 9, (1, 2), 1, readout="pooled", active_dims=(0, 2)) + gk.ConstantKernel()
    ),
    "stacked convolutions, the last one renormalized": lambda: ConvolutionalRenormalizedKernel(
        "relu", [7, 9], (1, 3), [(2,), (1,)], [1, 1], bias_variance=0.5
    ),
    "stacked linear convolutions": lambda: ConvolutionalRenormalizedKernel(
        "identity", [7, 9], (1, 3), [(2,), (2,)], [1, 1]
    ),
    "chain of given maps": lambda: BlockRenormalizedKernel(
        two_blocks(), [7.0, 9.0], chain=LinearChain([torch.eye(2).unsqueeze(0)], 2)
    ),
    "table of kernels": lambda: BlockRenormalizedKernel(two_blocks(), 9),
    "table in which a kernel is shared": lambda: BlockRenormalizedKernel(three_blocks(), 9, active_dims=(0, 2)),
    "table of kernels, prior mean of rank one": lambda: BlockRenormalizedKernel(
        two_blocks(), 9, prior_mean=torch.tensor([[1.0, 0.5], [0.5, 0.25]])
    ),
    "blocks at infinite width": lambda: gk.ScaleKernel(KernelBlocks(two_blocks())),
    "others": lambda: (
        gk.RQKernel(lengthscale_constraint=Interval(0.1, 9.0, initial_value=0.5))
        + gk.PeriodicKernel(period_length_prior=SmoothedBoxPrior(0.1, 5.0))
        + gk.LinearKernel(variance_prior=UniformPrior(0.0, 9.0))
        + gk.PolynomialKernel(2, offset_prior=GammaPrior(1.0, 1.0))
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name, dtype, tmp_path):
    x, y = data(dtype)
    kernel = perturbed(KERNELS[name]()).to(dtype)
    check(NetworkGP(x, y, GaussianLikelihood().to(dtype), kernel), tmp_path / "m")


@pytest.mark.parametrize("activation", [*(make() for make in ACTIVATIONS.values()), LeakyReLU(0.3)], ids=repr)
def test_activations(activation, tmp_path):
    kernel = RenormalizedNNGPKernel(activation, 20, bias_variance=0.1).double()
    loaded = check(NetworkGP(*data(), GaussianLikelihood().double(), kernel), tmp_path / "m")
    assert loaded.covar_module.activation == activation


def outputs(**options):
    """A model of two outputs whose every number was moved."""
    kernel = MultitaskRenormalizedKernel(
        Erf(), [20.0, 30.0], 2, bias_variance=[1.0, 0.0], weight_variance_prior=GammaPrior(2.0, 1.0), ard_num_dims=2,
        active_dims=(0, 2),
    )  # fmt: skip
    with torch.no_grad():
        kernel.order_parameter = torch.tensor([[[2.0, 0.5], [0.5, 1.0]], [[0.8, -0.1], [-0.1, 0.7]]])
    likelihood = MultitaskGaussianLikelihood(2, **options)
    mean = MultitaskMean([ConstantMean(constant_prior=NormalPrior(0.0, 1.0)), ZeroMean()], 2)
    x, y = data()
    targets = torch.stack([y, y.square()], -1)
    return perturbed(MultitaskNetworkGP(x, targets, likelihood, kernel, mean).double())


@pytest.mark.parametrize(
    "options",
    [
        {"has_task_noise": False, "noise_prior": LogNormalPrior(-4.0, 1.0), "noise_constraint": GreaterThan(1e-8)},
        {"rank": 0, "noise_prior": GammaPrior(2.0, 1.0)},
        {"rank": 1, "has_global_noise": False},
    ],
)
def test_several_outputs(options, tmp_path):
    model = outputs(**options)
    loaded = check(model, tmp_path / "m")
    found, expected = (SaddlePoint().fit(m).order_parameters["Q"] for m in (loaded, model))
    assert torch.equal(found, expected)


def test_several_outputs_with_missing_and_with_new_targets(tmp_path):
    model = outputs()
    x, y = model.train_inputs[0], model.train_targets.clone()
    y[3, 1] = float("nan")
    model.set_train_data(x, y, strict=False)
    path = tmp_path / "m"
    save(model, path)
    again = load(path).model.train_targets
    assert torch.equal(again.isnan(), y.isnan()) and torch.equal(again[:3], y[:3])
    save(model, path, training_data=False)
    loaded = load(path, x=x[:4], y=y[:4]).model
    assert loaded.train_targets.shape == (4, 2)
    with pytest.raises(ValueError, match=r"y: expected 2 columns, got shape \(4, 1\)"):
        load(path, x=x[:4], y=y[:4, :1])
    with pytest.raises(ValueError, match="y: expected shape"):
        load(path, x=x[:4], y=y[:3])


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_compositions(name, tmp_path):
    kernel = perturbed(RenormalizedNNGPKernel(ReLU(), [20, 30], name).double())
    loaded = check(NetworkGP(*data(), GaussianLikelihood().double(), kernel), tmp_path / "m")
    assert loaded.covar_module.composition == kernel.composition


def test_likelihoods_means_and_a_fitted_model(tmp_path):
    with double_precision():
        likelihood = GaussianLikelihood(
            LogNormalPrior(-4.0, 1.0), GreaterThan(1e-8, transform=None, initial_value=0.02)
        )
        mean = ConstantMean(constant_prior=NormalPrior(0.0, 1.0), constant_constraint=Interval(-2.0, 2.0))
        model = NetworkGP(*data(), likelihood, RenormalizedNNGPKernel(ReLU(), 40), mean)
    perturbed(mean)
    fit_order_parameters(model, warn=False)
    loaded = check(model, tmp_path / "m")
    solutions = [fit_order_parameters(m, warn=False).order_parameter for m in (loaded, model)]
    assert torch.equal(*solutions)


@pytest.mark.parametrize(
    "mixing",
    [
        None,
        GammaMixing(20.0),
        InverseGammaMixing(5.0),
        LogNormalMixing(0.1),
        PointMass(1.5),
        ProductGammaMixing([10.0, 30.0]),
    ],
    ids=repr,
)
def test_finite_width_processes(mixing, tmp_path):
    with double_precision():
        likelihood, kernel = FiniteWidthLikelihood(), RenormalizedNNGPKernel(Identity(), 10)
        model = NetworkFiniteWidthProcess(
            *data(), likelihood, kernel, mixing=mixing, theory="mixture" if mixing else "saddle"
        )
    loaded = check(model, tmp_path / "m")
    assert loaded.theory == model.theory
    assert type(loaded.mixing) is type(model.mixing) and torch.equal(loaded.mixing.variance, model.mixing.variance)


def test_student_t_processes(tmp_path):
    with double_precision():
        likelihood = StudentTProcessLikelihood(deg_free_prior=GammaPrior(3.0, 0.2))
        model = NetworkStudentTProcess(*data(), likelihood, NNGPKernel(ReLU()))
    likelihood.deg_free = 7.0
    loaded = check(model, tmp_path / "m")
    assert torch.equal(loaded.likelihood.deg_free, likelihood.deg_free)


def test_batches(tmp_path):
    x, y = data()
    with double_precision():
        shape = torch.Size([2])
        kernel = RenormalizedNNGPKernel(ReLU(), torch.tensor([[10.0], [90.0]]))
        likelihood = GaussianLikelihood(batch_shape=shape)
        mean = ConstantMean(batch_shape=shape)
        model = NetworkGP(x.expand(2, -1, -1), torch.stack([y, 2 * y]), likelihood, kernel, mean)
    check(perturbed(model), tmp_path / "m")


def test_what_is_shared_stays_shared(tmp_path):
    prior, base = GammaPrior(2.0, 1.0), gk.RBFKernel()
    kernel = gk.ScaleKernel(base, prior) + gk.ScaleKernel(base, prior)
    loaded = check(NetworkGP(*data(torch.float32), GaussianLikelihood(), perturbed(kernel)), tmp_path / "m")
    first, second = loaded.covar_module.kernels
    assert first.base_kernel is second.base_kernel and first.outputscale_prior is second.outputscale_prior


def test_a_prior_registered_by_a_parameter_name(tmp_path):
    kernel = gk.RBFKernel()
    kernel.register_prior("short_prior", GammaPrior(3.0, 2.0), "lengthscale")
    loaded = check(NetworkGP(*data(torch.float32), GaussianLikelihood(), kernel), tmp_path / "m")
    loaded.covar_module.sample_from_prior("short_prior")


def test_deep_copies_and_constraints_registered_later(tmp_path):
    model = NetworkGP(*data(torch.float32), GaussianLikelihood(), gk.RBFKernel())
    model.covar_module.register_constraint("raw_lengthscale", Positive(torch.exp, torch.log))
    model.covar_module.raw_lengthscale.requires_grad_(False)
    check(copy.deepcopy(model), tmp_path / "m")


def test_converted_models_keep_what_float32_has_rounded(tmp_path):
    kernel = RenormalizedNNGPKernel(Erf(), 20, bias_variance=0.3, weight_variance_prior=LogNormalPrior(0.3, 1.1))
    likelihood = GaussianLikelihood(HalfCauchyPrior(0.1), GreaterThan(1e-5))
    check(NetworkGP(*data(), likelihood, kernel).double(), tmp_path / "m")


@pytest.mark.parametrize("name", KERNELS)
def test_the_default_dtype_does_not_matter(name, tmp_path):
    model = NetworkGP(*data(torch.float32), GaussianLikelihood(), perturbed(KERNELS[name]()))
    save(model, tmp_path / "a")
    with double_precision():
        loaded = load(tmp_path / "a").model
        save(loaded, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    x = torch.randn(5, DIMENSION)
    assert all(torch.equal(a, b) for a, b in zip(bits(loaded, x), bits(model, x), strict=True))


def test_a_transposed_view_of_the_inputs(tmp_path):
    x, y = data()
    kernel = RenormalizedNNGPKernel(ReLU(), 20).double()
    check(NetworkGP(x.T.contiguous().T, y, GaussianLikelihood().double(), kernel), tmp_path / "m")


PREDICT = """
import sys, torch
from torch_propkernel.saving import load
saved = load(sys.argv[1])
assert saved.extra["threads"] == torch.get_num_threads()
with torch.no_grad():
    latent = saved.model(saved.extra["x"])
    noisy = saved.model.likelihood(latent)
for expected, got in zip(saved.extra["expected"], (latent.mean, latent.variance, noisy.mean, noisy.variance)):
    assert expected.dtype == got.dtype and torch.equal(expected, got), (expected - got).abs().max()
print("equal")
"""


def test_another_process_predicts_the_same_bits(tmp_path):
    x, y = data(rows=150)
    test_x = torch.randn(40, DIMENSION, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    with double_precision():
        kernel = RenormalizedNNGPKernel(ReLU(), [30, 30], bias_variance=1.0)
        model = NetworkGP(x, y, GaussianLikelihood(noise_constraint=Positive()), kernel)
    model.likelihood.noise = 0.01
    fit_order_parameters(model, warn=False)
    extra = {"x": test_x, "expected": bits(model, test_x), "threads": torch.get_num_threads()}
    save(model, tmp_path / "m", extra=extra)
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = subprocess.run(
        [sys.executable, "-c", PREDICT, str(tmp_path / "m")], capture_output=True, text=True, env=environment
    )
    assert run.stdout == "equal\n", run.stderr


@pytest.fixture
def model():
    return NetworkGP(*data(), GaussianLikelihood().double(), RenormalizedNNGPKernel(ReLU(), 20).double())


def test_what_comes_with_the_model(model, tmp_path):
    x, y = data()
    normalization = Normalization.of(10 * x + 3, 5 * y - 1)
    extra = {
        "names": ["a", "b"],
        "depth": 2,
        "none": None,
        "inf": float("inf"),
        "t": torch.arange(3),
        "n": {"k": (1, 2.5)},
    }
    saved = round_trip(model, tmp_path / "m", normalization=normalization, extra=extra)
    assert torch.equal(saved.extra.pop("t"), extra.pop("t")) and saved.extra == extra
    assert saved.versions["torch"] == torch.__version__.split("+")[0] or saved.versions["torch"] == torch.__version__
    assert saved.versions["gpytorch"] == gpytorch.__version__
    assert torch.equal(saved.normalization.to_model(10 * x + 3), normalization.to_model(10 * x + 3))
    assert not saved.model.training


def test_normalization():
    x, y = data()
    units = Normalization.of(x, y)
    torch.testing.assert_close(units.to_model(x).mean(0), torch.zeros(DIMENSION, dtype=torch.float64))
    torch.testing.assert_close(units.to_model(x).square().mean(0), torch.ones(DIMENSION, dtype=torch.float64))
    torch.testing.assert_close(units.targets.value(units.targets.to_model(y)), y)
    torch.testing.assert_close(units.targets.deviation(torch.ones(1).double()), y.std(correction=0).reshape(1))
    with pytest.raises(ValueError, match="input_scale: expected finite numbers > 0"):
        Normalization.of(torch.ones(3, 2), y)
    with pytest.raises(TypeError, match="target_mean: expected a torch.Tensor, got int"):
        Normalization(x, x.abs(), 0, y.std())


class TestWithoutTrainingData:
    @pytest.fixture(params=["network", "finite width", "student t"])
    def without(self, request, tmp_path):
        with double_precision():
            kernel = RenormalizedNNGPKernel(ReLU(), 20)
            model = {
                "network": lambda: NetworkGP(*data(), GaussianLikelihood(), kernel),
                "finite width": lambda: NetworkFiniteWidthProcess(*data(), FiniteWidthLikelihood(), kernel),
                "student t": lambda: NetworkStudentTProcess(*data(), StudentTProcessLikelihood(), kernel),
            }[request.param]()
        save(model, tmp_path / "m", training_data=False)
        return model, tmp_path / "m"

    def test_no_number_of_the_data_is_in_the_file(self, without):
        model, path = without
        rows = model.train_inputs[0].numpy().tobytes(), model.train_targets.numpy().tobytes()
        assert not any(row[:8] in path.read_bytes() for row in rows)

    def test_predicting_raises_and_nothing_else(self, without):
        model, path = without
        loaded = load(path).model
        assert torch.equal(loaded.covar_module.order_parameter, model.covar_module.order_parameter)
        with pytest.raises(SavedModelError, match="saved without; give them with load"):
            loaded(data()[0][:2])
        if not isinstance(loaded, NetworkStudentTProcess):  # refused for its likelihood
            with pytest.raises(SavedModelError, match="saved without"):
                fit_order_parameters(loaded)

    def test_data_given_again(self, without):
        model, path = without
        x, y = data()
        for loaded in (load(path, x=x, y=y).model, load(path).model):
            if isinstance(loaded.train_inputs, tuple):
                assert all(torch.equal(a, b) for a, b in zip(bits(loaded, x[:3]), bits(model, x[:3]), strict=True))
            else:
                loaded.set_train_data(x, y, strict=False)
                assert all(torch.equal(a, b) for a, b in zip(bits(loaded, x[:3]), bits(model, x[:3]), strict=True))

    def test_it_can_be_saved_again(self, without, tmp_path):
        save(load(without[1]).model, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == without[1].read_bytes()


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.ones(4, 3), None, ValueError, "both training inputs and targets or neither"),
        (torch.ones(4, 3), torch.ones(4).double(), TypeError, "x: expected dtype torch.float64"),
        (torch.ones(4, 3).double(), torch.ones(5).double(), ValueError, r"y: expected shape \(..., 4\)"),
        (torch.full((4, 3), torch.nan).double(), torch.ones(4).double(), ValueError, "x: expected finite values"),
    ],
)
def test_data_that_does_not_fit(model, tmp_path, x, y, error, message):
    save(model, tmp_path / "m")
    with pytest.raises(error, match=message):
        load(tmp_path / "m", x=x, y=y)


def test_equal_models_are_equal_files_that_any_zip_reader_opens(model, tmp_path):
    save(model, tmp_path / "a")
    save(load(tmp_path / "a").model, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with zipfile.ZipFile(tmp_path / "a") as file:
        assert file.testzip() is None
        assert {name.split(".")[-1] for name in file.namelist()} == {"json", "npy"}
        assert b"pickle" not in file.read("torch_propkernel.json")


class TestWriting:
    def test_a_crash_leaves_the_old_file(self, model, tmp_path, monkeypatch):
        (tmp_path / "m").write_bytes(b"old")

        def crash(*arguments):
            raise OSError("power cut")

        for step in ("fsync", "replace"):
            with monkeypatch.context() as patch:
                patch.setattr(os, step, crash)
                with pytest.raises(OSError, match="power cut"):
                    save(model, tmp_path / "m")
            assert (tmp_path / "m").read_bytes() == b"old"
            assert [path.name for path in tmp_path.iterdir()] == ["m"]

    def test_it_is_on_the_disk_before_it_is_renamed(self, model, tmp_path, monkeypatch):
        steps = []
        for step in ("fsync", "replace"):
            real = getattr(os, step)
            monkeypatch.setattr(os, step, lambda *a, step=step, real=real: (steps.append(step), real(*a))[1])
        save(model, tmp_path / "m")
        assert steps == ["fsync", "replace"]

    def test_permissions_are_those_of_other_files(self, model, tmp_path):
        (tmp_path / "other").touch()
        save(model, tmp_path / "m")
        assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)
        (tmp_path / "m").chmod(0o640)
        save(model, tmp_path / "m")
        assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o640

    def test_a_symbolic_link_stays_and_its_target_is_replaced(self, model, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "target").write_bytes(b"old")
        (folder / "target").chmod(0o600)
        (tmp_path / "link").symlink_to("folder/target")
        (tmp_path / "dangling").symlink_to("folder/new")
        for name, target in (("link", "target"), ("dangling", "new")):
            save(model, tmp_path / name)
            assert (tmp_path / name).is_symlink() and not (folder / target).is_symlink()
            assert type(load(folder / target).model) is type(model)
        assert stat.S_IMODE((folder / "target").stat().st_mode) == 0o600
        assert sorted(path.name for path in folder.iterdir()) == ["new", "target"]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_a_pipe_is_written_to(self, model, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        save(model, tmp_path / "m")
        end = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        save(model, tmp_path / "pipe")
        assert os.read(end, 1 << 20) == (tmp_path / "m").read_bytes()
        os.close(end)
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)

    def test_no_such_folder(self, model, tmp_path):
        with pytest.raises(FileNotFoundError):
            save(model, tmp_path / "nowhere" / "m")
