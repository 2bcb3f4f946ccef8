"""What cannot be saved is refused before a file is touched, and damaged or strange files before a model is built."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import zipfile

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.kernels import Kernel, RBFKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.priors import GammaPrior

import torch_propkernel
from torch_propkernel import FiniteWidthProcess, NetworkGP, ReLU, RenormalizedNNGPKernel, StudentTProcess
from torch_propkernel.activations import Activation, Quadrature
from torch_propkernel.kernels import Composition, Outer
from torch_propkernel.mixing import MixingLaw
from torch_propkernel.saving import SavedModelError, load, save
from torch_propkernel.saving.archive import _TAIL, FORMAT
from torch_propkernel.saving.registry import allowed_names

X, Y = torch.ones(3, 2), torch.arange(3.0)


def network(kernel=None, likelihood=None, mean=None, cls=NetworkGP):
    kernel = RenormalizedNNGPKernel(ReLU(), 20, bias_variance=1.0) if kernel is None else kernel
    return cls(X, Y, GaussianLikelihood() if likelihood is None else likelihood, kernel, mean)


class OwnModel(NetworkGP):
    pass


class OwnKernel(RBFKernel):
    pass


class OwnMean(gpytorch.means.ZeroMean):
    pass


class OwnComposition(Outer):
    name = "own"


class OwnPrior(GammaPrior):
    pass


def with_lambda_prior():
    kernel = RBFKernel()
    kernel.register_prior("lengthscale_prior", GammaPrior(2.0, 1.0), lambda m: m.lengthscale**2, lambda m, v: None)
    return network(kernel)


def with_submodule():
    model = network()
    model.feature_extractor = torch.nn.Linear(2, 2)
    return model


def with_shared_parameter():
    first, second = RBFKernel(), RBFKernel()
    second.raw_lengthscale = first.raw_lengthscale
    return network(first + second)


def with_other_shape():
    model = network()
    model.covar_module.register_parameter("further", torch.nn.Parameter(torch.ones(2)))
    return model


NAMES = "expected one of .*torch_propkernel.RenormalizedNNGPKernel.*, got "
REFUSED = {
    "a model of one's own": (
        lambda: network(cls=OwnModel),
        "model: expected one of .*, torch_propkernel.NetworkGP, .*, got .*OwnModel; put your mean and kernel",
    ),
    "no model": (lambda: RBFKernel(), "model: expected one of torch_propkernel.F.*, got RBFKernel"),
    "a kernel of one's own": (lambda: network(OwnKernel()), r"model.covar_module: " + NAMES + ".*OwnKernel"),
    "deep inside": (
        lambda: network(gpytorch.kernels.ScaleKernel(RBFKernel() + OwnKernel())),
        r"model.covar_module.base_kernel.kernels\[1\]: " + NAMES + ".*OwnKernel",
    ),
    "an unlisted kernel": (lambda: network(gpytorch.kernels.CosineKernel()), NAMES + "gpytorch.*CosineKernel"),
    "a callable activation": (
        lambda: network(RenormalizedNNGPKernel(Quadrature(torch.sin), 20)),
        "model.covar_module.activation: expected one of .*.Tanh, got .*Quadrature; a file holds no code",
    ),
    "a composition": (
        lambda: network(RenormalizedNNGPKernel(ReLU(), 20, OwnComposition())),
        "model.covar_module.composition: expected one of .*torch_propkernel.Outer, got .*OwnComposition",
    ),
    "a mean": (lambda: network(mean=OwnMean()), "mean_module: expected one of gpytorch.ConstantMean, .*gpytorch.Zero"),
    "a likelihood": (
        lambda: network(likelihood=gpytorch.likelihoods.FixedNoiseGaussianLikelihood(torch.ones(3))),
        "model.likelihood: expected one of gpytorch.GaussianLikelihood, .*, got .*FixedNoiseGaussianLikelihood",
    ),
    "a prior": (
        lambda: network(RBFKernel(lengthscale_prior=OwnPrior(1.0, 1.0))),
        r"model.covar_module.lengthscale_prior: expected one of gpytorch.GammaPrior, .*, got .*OwnPrior",
    ),
    "a prior's transform": (
        lambda: network(RBFKernel(lengthscale_prior=GammaPrior(1.0, 1.0, transform=lambda v: v + 1))),
        r"lengthscale_prior.transform: expected numbers, texts, .*, got builtins.function",
    ),
    "a lambda prior": (
        with_lambda_prior,
        "lengthscale_prior: expected a prior that was given to the constructor .* functions of its own",
    ),
    "a constraint's transform": (
        lambda: network(RBFKernel(lengthscale_constraint=gpytorch.constraints.Positive(lambda v: v**2, torch.sqrt))),
        "raw_lengthscale_constraint.transform: expected numbers, .*, got builtins.function",
    ),
    "a further submodule": (with_submodule, "model.feature_extractor: expected no further submodule, got Linear"),
    "a shared parameter": (with_shared_parameter, r"kernels\[1\].raw_lengthscale: expected a parameter of one module"),
    "a further parameter": (with_other_shape, r"expected the parameters \[.*'further'.*\] of the file"),
    "bfloat16": (lambda: network().bfloat16(), "expected a dtype that NumPy has, got torch.bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_save(name, tmp_path):
    make, message = REFUSED[name]
    (tmp_path / "m").write_bytes(b"old")
    with pytest.raises(SavedModelError, match=message):
        save(make(), tmp_path / "m")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("m", b"old")]


def test_refused_extras(tmp_path):
    for extra, message in [
        ({"f": print}, r"extra\['f'\]: expected numbers, texts"),
        ({1: 2}, "extra: expected numbers, texts"),
        ([1], "extra: expected a dict or None, got list"),
        ({"a": [object()]}, r"extra\['a'\]\[0\]: expected"),
    ]:
        with pytest.raises(SavedModelError, match=message):
            save(network(), tmp_path / "m", extra=extra)
    with pytest.raises(SavedModelError, match="normalization: expected a Normalization or None, got tuple"):
        save(network(), tmp_path / "m", normalization=(0.0, 1.0))


def test_a_law_of_ones_own(tmp_path):
    from torch_propkernel import FiniteWidthLikelihood
    from torch_propkernel.models import NetworkFiniteWidthProcess

    class OwnLaw(MixingLaw):
        batch_shape, mean, variance = torch.Size(), torch.ones(()), torch.ones(())
        log_density = sample = None

    kernel = RenormalizedNNGPKernel(ReLU(), 20)
    model = NetworkFiniteWidthProcess(X, Y, FiniteWidthLikelihood(), kernel, mixing=OwnLaw())
    with pytest.raises(SavedModelError, match="model.mixing: expected one of torch_propkernel.GammaMixing, .*OwnLaw"):
        save(model, tmp_path / "m")


@pytest.fixture
def whole(tmp_path):
    """The bytes of a good file, and load(bytes)."""
    save(network(), tmp_path / "good", extra={"note": "x"})

    def load_bytes(data):
        (tmp_path / "m").write_bytes(data)
        return load(tmp_path / "m")

    return (tmp_path / "good").read_bytes(), load_bytes


def test_truncated_at_any_place(whole):
    data, load_bytes = whole
    for size in [*range(0, len(data), 61), *range(len(data) - 150, len(data))]:
        with pytest.raises(SavedModelError, match="truncated or damaged|another kind of file|checksum"):
            load_bytes(data[:size])
    for longer in (data + b"x", data + data):
        with pytest.raises(SavedModelError):
            load_bytes(longer + b"x")


def test_any_flipped_bit_is_found(whole):
    data, load_bytes = whole
    generator = random.Random(0)
    for place in [*(generator.randrange(len(data)) for _ in range(300)), *range(len(data) - 120, len(data))]:
        changed = bytearray(data)
        changed[place] ^= 1 << generator.randrange(8)
        with pytest.raises(SavedModelError):
            load_bytes(bytes(changed))


def sealed(members, version=FORMAT, compression=zipfile.ZIP_STORED):
    """A file with a good checksum, as somebody who means harm can make it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
        file.comment = b" " * len(_TAIL.format(0, "0" * 64))
    body = buffer.getvalue()[: -len(_TAIL.format(0, "0" * 64))]
    return body + _TAIL.format(version, hashlib.sha256(body).hexdigest()).encode()


def members_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_the_seal_of_these_tests_is_good(whole):
    data, load_bytes = whole
    assert load_bytes(sealed(members_of(data))).extra == {"note": "x"}


def test_newer_format(whole):
    data, load_bytes = whole
    with pytest.raises(SavedModelError, match="expected format 1 or lower, got 2: .* newer torch_propkernel, upgrade"):
        load_bytes(sealed(members_of(data), version=2))


class Trap:
    """Leaves a trace if it is unpickled."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_foreign_files_run_nothing(whole, tmp_path):
    _, load_bytes = whole
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([Trap()], dtype=object))
    torch.save({"a": Trap()}, tmp_path / "t")
    for data in (b"", b"hello", pickle.dumps(Trap()), buffer.getvalue(), (tmp_path / "t").read_bytes()):
        with pytest.raises(SavedModelError, match="another kind of file"):
            load_bytes(data)
    assert not Trap.sprung


def test_arrays_of_objects_run_nothing(whole):
    data, load_bytes = whole
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap()], dtype=object))
    with pytest.raises(SavedModelError, match="allow_pickle"):
        load_bytes(sealed(members_of(data) | {"0.npy": buffer.getvalue()}))
    assert not Trap.sprung


def replaced(document, find, put):
    """Replace every value ``find`` in a JSON document."""
    if document == find and type(document) is type(find):
        return put
    if isinstance(document, dict):
        return {replaced(key, find, put): replaced(value, find, put) for key, value in document.items()}
    return [replaced(item, find, put) for item in document] if isinstance(document, list) else document


@pytest.mark.parametrize(
    ("find", "put", "message"),
    [
        ("torch_propkernel.ReLU", "builtins.eval", "expected a class that can be loaded, got 'builtins.eval'"),
        ("torch_propkernel.ReLU", "torch_propkernel.Quadrature", "expected a class that can be loaded"),
        ("torch_propkernel.ReLU", ["os", "system"], "expected a class that can be loaded"),
        ("torch_propkernel.ReLU", "gpytorch.Positive", "expected"),
        ("torch_propkernel.NetworkGP", "gpytorch.ZeroMean", "expected"),
        ("exp", "eval", "KeyError"),
        ("raw_order_parameter", "raw_lengthscale", "nonexistent parameter|expected the parameters"),
        ("tensor", "pickle", "KeyError"),
        ({"tensor": 0}, {"tensor": 99}, "IndexError"),
        ({"tensor": 0}, {"tensor": "0"}, "TypeError"),
        ("model", "other", "KeyError"),
        ("class", "klass", "expected the description of a model"),
    ],
)
def test_strange_descriptions(whole, find, put, message):
    data, load_bytes = whole
    members = members_of(data)
    document = json.loads(members["torch_propkernel.json"])
    if isinstance(put, list):
        text = json.dumps(replaced(document, find, "<here>")).replace('"<here>"', json.dumps(put))
    else:
        text = json.dumps(replaced(document, find, put))
    assert text != json.dumps(document)
    with pytest.raises(SavedModelError, match=message):
        load_bytes(sealed(members | {"torch_propkernel.json": text}))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "1", "{}", "[" * 100_000, '{"model": {"a": 1, "b": 2}, "versions": {}}', "\udcff"]
)
def test_texts_that_are_no_description(whole, text):
    data, load_bytes = whole
    content = text.encode("utf-8", "surrogateescape")
    with pytest.raises(SavedModelError):
        load_bytes(sealed(members_of(data) | {"torch_propkernel.json": content}))


def test_compressed_members_are_refused(whole):
    data, load_bytes = whole
    with pytest.raises(SavedModelError, match="compressed members"):
        load_bytes(sealed(members_of(data), compression=zipfile.ZIP_DEFLATED))


def test_random_changes_of_the_description_end_in_a_model_or_an_error(whole):
    """Fuzzing behind the checksum: no exception but SavedModelError gets out."""
    data, load_bytes = whole
    members = members_of(data)
    text = members["torch_propkernel.json"].decode()
    generator = random.Random(1)
    pieces = ['"tensor"', "0", "1", "null", "true", "[]", "{}", '"list"', '"same"', '"size"', '"dict"', '"class"', "-1"]
    for _ in range(150):
        place = generator.randrange(len(text))
        changed = text[:place] + generator.choice(pieces) + text[place + generator.randrange(1, 6) :]
        try:
            load_bytes(sealed(members | {"torch_propkernel.json": changed}))
        except SavedModelError:
            pass


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere")


def test_every_class_of_the_package_is_listed():
    def names(kind):
        found = [value for value in vars(torch_propkernel).values() if isinstance(value, type)]
        abstract = (Quadrature, Composition, Kernel, Activation, MixingLaw, FiniteWidthProcess, StudentTProcess)
        return {c.__name__ for c in found if issubclass(c, kind) and c not in abstract}

    for kind in (Activation, Composition, Kernel, MixingLaw, gpytorch.likelihoods.Likelihood, gpytorch.models.ExactGP):
        missing = names(kind) - {name.split(".")[1] for name in allowed_names(kind)}
        assert not missing, f"saving/classes.py has no entry for {sorted(missing)}"
