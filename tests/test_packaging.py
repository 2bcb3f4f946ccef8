"""What an installed copy must carry, and what its documentation promises."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
from importlib import metadata, resources
from pathlib import Path

import pytest

import torch_propkernel

CITATION = re.compile(r"\b(?:eqs?\.|equations?)\s+((?:\(\d+[a-z]?\)(?:\s*(?:,|and|or|to|-|–)\s*)*)+)", re.IGNORECASE)
NUMBER = re.compile(r"\((\d+[a-z]?)\)")
SECTION = re.compile(r"THEORY\.md,\s+section\s+(\d+)")
ROOT = Path(__file__).resolve().parents[1]
YEAR = re.compile(r"\b(?:19|20)\d\d\b")


def cited_equations(text: str) -> set[str]:
    """Return the numbers of the equations that a text cites, as "eq. (n)" or "eqs. (n), (m)".

    After a year, in the same part of a list that ";" separates, the equation is that of another work.
    """
    numbers: set[str] = set()
    for match in CITATION.finditer(text):
        before = re.split(r";|\n\s*\n|THEORY\.md", text[: match.start()])[-1][-120:]
        if not YEAR.search(before):
            numbers |= set(NUMBER.findall(match.group(1)))
    return numbers


def numbered_equations(theory: str) -> set[str]:
    """Return the tags of the displayed equations."""
    return {tag for block in displayed(theory) for tag in re.findall(r"\\tag\{(\d+[a-z]?)\}", block)}


def displayed(text: str) -> list[str]:
    """Return the displayed equations of a Markdown file, in TeX."""
    return re.findall(r"^```math\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def theory() -> str:
    return resources.files("torch_propkernel").joinpath("THEORY.md").read_text(encoding="utf-8")


def docstrings():
    """Yield (place, docstring) of everything in the package that has one."""
    folder = Path(torch_propkernel.__path__[0])
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield f"{path.relative_to(folder)}:{getattr(node, 'name', 'module')}", text


def module_names() -> list[str]:
    found = pkgutil.walk_packages(torch_propkernel.__path__, "torch_propkernel.")
    left_out = "__main__", "triton_product", "triton_gradient"  # a program, and device code
    return ["torch_propkernel", *(module.name for module in found if not module.name.endswith(left_out))]


def public_objects():
    """Return {qualified name: object} of the classes and functions in every __all__."""
    objects = {}
    for name in module_names():
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            value = getattr(module, public)
            if inspect.isclass(value) or inspect.isroutine(value):
                objects[f"{value.__module__}.{value.__qualname__}"] = value
    return objects


@pytest.mark.parametrize("name", ["py.typed", "THEORY.md", "datasets/yacht.csv.gz", "datasets/LICENSE-yacht.txt"])
def test_installed_package_has(name):
    assert resources.files("torch_propkernel").joinpath(name).is_file()


def test_version_is_that_of_the_metadata():
    assert torch_propkernel.__version__ == metadata.version("torch_propkernel")


def test_files_of_a_release_agree():
    version = re.search(r"^version = (.+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)[1]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\n" in citation
    assert re.search(r'^date-released: "\d{4}-\d\d-\d\d"$', citation, re.MULTILINE)
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_public_names_exist():
    for name in module_names():
        module = importlib.import_module(name)
        public = list(getattr(module, "__all__", ()))
        assert len(public) == len(set(public)), f"{name}.__all__ names something twice"
        missing = [item for item in public if not hasattr(module, item)]
        assert not missing, f"{name}.__all__ names {missing}, which do not exist"
    assert torch_propkernel.__all__


def is_result(value) -> bool:
    """Whether users only ever receive this: an exception, a named tuple, or a frozen dataclass of such ones.

    Dataclasses with a constructor of their own (a class method) are made by users.
    """
    if not inspect.isclass(value):
        return False
    if issubclass(value, BaseException) or (issubclass(value, tuple) and hasattr(value, "_fields")):
        return True
    frozen = dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen
    made = any(isinstance(member, classmethod) for member in vars(value).values())
    return frozen and not made and all(base is object or is_result(base) for base in value.__bases__)


def test_what_users_call_or_construct_has_an_example_and_results_have_a_sentence():
    undocumented = [name for name, value in public_objects().items() if not value.__doc__]
    assert not undocumented
    # Of a dataclass or named tuple without a docstring, Python writes "Name(fields)" itself.
    generated = [name for name, value in public_objects().items() if value.__doc__.startswith(f"{value.__name__}(")]
    assert not generated, f"public names without a docstring: {sorted(generated)}"
    without = [name for name, value in public_objects().items() if ">>>" not in value.__doc__ and not is_result(value)]
    assert not without, f"public names whose docstring has no example: {sorted(without)}"


def test_results_are_told_from_what_users_construct():
    public = {value.__name__: value for value in public_objects().values()}
    for name in ("Reliability", "ModelSolution", "Observables", "ConvergenceError", "Solution"):
        assert is_result(public[name]), name
    for name in ("Erf", "LeakyReLU", "Spectrum", "RenormalizedNNGPKernel", "save"):
        assert not is_result(public[name]), name


def test_cited_equations_are_in_the_theory():
    known = numbered_equations(theory())
    assert {"1", "2", "3", "4", "6", "7", "8b"} <= known
    unknown = {place: sorted(cited_equations(text) - known) for place, text in docstrings()}
    unknown = {place: numbers for place, numbers in unknown.items() if numbers}
    assert not unknown, f"equations cited in docstrings that THEORY.md does not have: {unknown}"


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("THEORY.md, eq. (2)", {"2"}),
        ("see eqs. (6), (7) and (8b).", {"6", "7", "8b"}),
        ("Eqs. (1)-(4)", {"1", "4"}),
        ("eq.\n    (8)", {"8"}),
        ("Williams (1997), equation (11); THEORY.md, equation (6)", {"6"}),
        ("Cho and Saul (2009), eqs. (5)-(8)", set()),
        ("Pacelli et al. (2023). See THEORY.md, eq. (3)", {"3"}),
        ("the sequence (2) and f(3)", set()),
    ],
)
def test_citations_are_recognized(text, numbers):
    assert cited_equations(text) == numbers


def test_theory_cites_only_its_own_equations():
    """In its text equations are cited as (2) alone; a number in TeX is no citation."""
    text = theory()
    prose = re.sub(r"^```math\n.*?^```$|\$[^$]+\$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert prose != text and "(2)" in prose
    below_100 = set(re.findall(r"\((\d\d?[a-z]?)\)", prose))  # larger ones are percentages in tables, and years
    assert cited_equations(text) | below_100 <= numbered_equations(text)


def test_equations_are_numbered_once_and_are_balanced():
    tags = re.findall(r"\\tag\{(\w+)\}", theory())
    assert len(tags) == len(set(tags)) and set(tags) == numbered_equations(theory())
    for block in displayed(theory()):
        assert block.count(r"\begin{") == block.count(r"\end{"), block
        assert block.count(r"\left") == block.count(r"\right"), block
        assert block.count("{") == block.count("}"), block


def test_shipped_code_cites_sections_that_exist():
    """A section says something: none is an announcement of a later release."""
    text = theory()
    titles = set(re.findall(r"^## (\d+)\.", text, flags=re.MULTILINE))
    cited = {(place, number) for place, doc in docstrings() for number in SECTION.findall(doc)}
    assert cited and {number for _, number in cited} <= titles, cited
    bodies = dict(re.findall(r"^## (\d+)\.[^\n]*\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    assert all("```math" in bodies[number] for number in titles - {"7"}), "a section without an equation"
    assert "not in this release" not in text.lower()
