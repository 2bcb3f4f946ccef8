"""The package is layered and imports point downward only; this file holds the picture."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import torch_propkernel

PACKAGE = "torch_propkernel"

# From the bottom up. A module may import its own layer and everything below. Tests of a new top-level module start by
# placing it here.
LAYERS = [
    {"exceptions", "_validation", "_views", "_files", "_memory", "_tasks", "datasets"},  # anything may import these
    {"numerics"},
    {"activations"},
    {"order_parameters"},
    {"kernels"},
    {"spectra"},
    {"actions"},
    {"mixing"},
    {"distributions"},
    {"likelihoods"},
    {"inference"},
    {"reliability"},
    {"networks"},  # with the samplers: a theory may sample
    {"cavity"},  # one hidden unit in the field of all others
    {"theories"},
    {"models"},
    {"mlls"},
    {"tuning"},
    {"practice"},
    {"saving"},
    # Faces; the root does not import them.
    {"botorch_support", "sklearn_support", "plotting", "progress", "commands", "__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FACES = LAYERS[-1]
# What the flat public face torch_propkernel/__init__.py may be imported by, and may import: all below the faces.
ROOT_RANK = len(LAYERS) - 1.5

OPTIONAL_HOSTS = {"matplotlib", "botorch", "sklearn", "tqdm", "triton"}
DEVICE_CODE = f"{PACKAGE}.kernels.triton_"  # imported inside of the function that runs it


def source_folder() -> Path:
    """Return the folder of the package that the tests import."""
    return Path(torch_propkernel.__path__[0])


def modules(folder: Path):
    """Yield (dotted name, is a package, syntax tree) of every module under ``folder``."""
    for path in sorted(folder.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(folder).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        yield ".".join(parts[:-1] if is_package else parts), is_package, ast.parse(path.read_text(encoding="utf-8"))


def imports(name: str, is_package: bool, tree: ast.AST, top_level: set[str]):
    """Yield (dotted target, line) of every import, lazy ones and those for type checkers included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")
            base = base[: len(base) - node.level + is_package] if node.level else []
            target = ".".join(base + ([node.module] if node.module else []))
            for alias in node.names:
                submodule = target == PACKAGE and alias.name in top_level
                yield (f"{target}.{alias.name}" if submodule else target), node.lineno


def rank(name: str) -> float:
    """Return the height of a module of this package."""
    parts = name.split(".")
    if len(parts) == 1:
        return ROOT_RANK
    assert parts[1] in RANK, f"{name}: '{parts[1]}' is in no layer; place it in LAYERS of {Path(__file__).name}"
    return RANK[parts[1]]


def upward_edges(folder: Path) -> list[str]:
    """Return a sentence for every import that points upward."""
    found = list(modules(folder))
    top_level = {name.split(".")[1] for name, _, _ in found if "." in name}
    wrong = []
    for name, is_package, tree in found:
        for target, line in imports(name, is_package, tree, top_level):
            if target.split(".")[0] == PACKAGE and rank(target) > rank(name):
                wrong.append(f"{name}, line {line}: imports {target}, which lies above it")
    return wrong


def third_party(folder: Path):
    """Yield (importing module, line, top-level name of a foreign package)."""
    for name, is_package, tree in modules(folder):
        for target, line in imports(name, is_package, tree, set()):
            foreign = target.split(".")[0]
            if foreign != PACKAGE and foreign not in sys.stdlib_module_names:
                yield name, line, foreign


def test_every_module_has_a_layer():
    assert {name.split(".")[0] for name, _, _ in modules(source_folder())} == {PACKAGE}
    for name, _, _ in modules(source_folder()):
        rank(name)


def test_imports_point_downward():
    wrong = upward_edges(source_folder())
    assert not wrong, "\n".join(wrong)


# From `numerics` to `mixing` no module knows a GPyTorch model; most know torch, numpy and scipy only.
PLAIN = ("numerics", "activations", "spectra", "actions", "mixing", "networks", "cavity")


def test_mathematics_is_plain_tensor_mathematics():
    wrong = [
        f"{name}, line {line}: imports {foreign}"
        for name, line, foreign in third_party(source_folder())
        if name.split(".")[1:2] and name.split(".")[1] in PLAIN and foreign not in {"torch", "numpy", "scipy"}
    ]
    assert not wrong, "\n".join(wrong)


def test_optional_hosts_stay_behind_their_doors():
    wrong = [
        f"{name}, line {line}: imports {foreign}"
        for name, line, foreign in third_party(source_folder())
        if foreign in OPTIONAL_HOSTS and rank(name) != RANK["plotting"]
        if not (foreign == "triton" and name.startswith(DEVICE_CODE))
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_package_loads_no_optional_host():
    # torch itself loads tqdm where it is installed: what the hosts load does not count.
    code = (
        "import sys, torch, gpytorch; before = set(sys.modules); import torch_propkernel; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert PACKAGE in loaded
    assert not loaded & OPTIONAL_HOSTS


def test_importing_the_package_leaves_slow_modules_alone():
    code = "import sys, torch_propkernel; print('scipy.stats' in sys.modules)"  # a third of the import time by itself
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


class TestTheseChecksCanFail:
    @pytest.fixture
    def package(self, tmp_path):
        def write(**sources):
            for name, source in sources.items():
                path = tmp_path.joinpath(*name.split("__in__")[::-1]).with_suffix(".py")
                path.parent.mkdir(exist_ok=True)
                path.write_text(source)
            return tmp_path

        return write

    @pytest.mark.parametrize(
        "source",
        [
            "import torch_propkernel.kernels.nngp",
            "from torch_propkernel import kernels",
            "from torch_propkernel import NNGPKernel",
            "from torch_propkernel.kernels import NNGPKernel",
            "from ..kernels import NNGPKernel",
            "from .. import kernels",
            "def f():\n    from torch_propkernel.theories import fit",
        ],
    )
    def test_upward_import_is_found(self, package, source):
        folder = package(module__in__activations=source, a__in__kernels="", a__in__theories="")
        assert len(upward_edges(folder)) == 1

    @pytest.mark.parametrize(
        "source",
        [
            "from torch_propkernel.activations import dual",
            "from ..activations.dual import dual",
            "from .compositions import outer",
            "from torch_propkernel.exceptions import ConvergenceError",
            "import torch",
        ],
    )
    def test_downward_import_is_fine(self, package, source):
        folder = package(module__in__kernels=source, compositions__in__kernels="", a__in__activations="", exceptions="")
        assert upward_edges(folder) == []

    def test_root_may_not_import_a_face(self, package):
        assert upward_edges(package(__init__="from torch_propkernel import tuning", tuning="")) == []
        assert len(upward_edges(package(__init__="from .plotting import plot", plotting=""))) == 1

    def test_unknown_module_asks_to_be_placed(self, package):
        with pytest.raises(AssertionError, match="'attic' is in no layer; place it in LAYERS"):
            upward_edges(package(attic="", kernels="from torch_propkernel import attic"))
