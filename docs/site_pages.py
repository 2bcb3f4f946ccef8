"""Writes the pages that Sphinx reads: the Markdown files of the project, and a reference from every ``__all__``."""

import importlib
import inspect
import pkgutil
import re
import shutil
import sys
from enum import Enum
from functools import cached_property
from pathlib import Path
from types import FunctionType

from sphinx.pycode import ModuleAnalyzer

import torch_propkernel

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "docs" / "site"
PACKAGE = torch_propkernel.__name__

# Patterns below the root of the repository, in the order of the table of contents.
PAGES = [
    "docs/gallery.md",
    "torch_propkernel/THEORY.md",
    "docs/*.md",
    "examples/**/*.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
LINKED = [
    "docs/*.png",
    "docs/gallery/*.png",
    "examples/**/*.py",
    "examples/**/*.png",
    "CITATION.cff",
    "LICENSE",
]  # what pages offer
PLAIN = "```{highlight} none\n```\n"  # indented blocks are commands

METHODS = (FunctionType, property, cached_property, classmethod, staticmethod)


def public_names() -> dict[str, list[str]]:
    """Return {module: names that it documents}: each subpackage its own ``__all__``, the root the rest."""

    def names(module: str) -> list[str]:
        return sorted(getattr(importlib.import_module(module), "__all__", ()), key=str.lower)

    children = [f"{PACKAGE}.{info.name}" for info in pkgutil.iter_modules(torch_propkernel.__path__)]
    pages = {module: names(module) for module in children if not module.endswith("__main__")}
    elsewhere = {name for module in pages for name in pages[module]}
    return {PACKAGE: [name for name in names(PACKAGE) if name not in elsewhere]} | {m: n for m, n in pages.items() if n}


class Reference:
    """One page for every module, with a table of its names, and one for every public name."""

    def __init__(self) -> None:
        """Import everything."""
        self.modules = public_names()
        self.objects = {
            (module, name): getattr(importlib.import_module(module), name)
            for module, names in self.modules.items()
            for name in names
        }
        self.classes = {value for value in self.objects.values() if inspect.isclass(value)}

    def pages(self) -> dict[str, list[str]]:
        """Return {page: lines}."""
        pages = {f"api/{module}": self.module_page(module) for module in self.modules}
        return pages | {f"api/{module}/{name}": self.object_page(module, name) for module, name in self.objects}

    def module_page(self, module: str) -> list[str]:
        """Return the page of a module: its docstring, then every name with its first sentence."""
        lines = [*title(module), f".. automodule:: {module}", "   :no-members:", ""]
        if not self.modules[module]:  # the root, whose names all have a page in their rooms
            return lines
        lines += [".. list-table::", "   :widths: 1 2", ""]
        for name in self.modules[module]:
            lines += [f"   * - :py:obj:`{name} <{module}.{name}>`", f"     - {self.summary(module, name)}"]
        lines += ["", ".. toctree::", "   :hidden:", ""]
        return [*lines, *(f"   {module}/{name}" for name in self.modules[module])]

    def object_page(self, module: str, name: str) -> list[str]:
        """Return the page of a public name."""
        value = self.objects[module, name]
        lines = [*title(name), f".. py:currentmodule:: {module}", ""]
        if inspect.isclass(value):
            kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
            members = [f"   :members: {', '.join(self.members(value))}"] if self.members(value) else []
            return [*lines, f".. {kind}:: {name}", *members]
        if inspect.isroutine(value):
            return [*lines, f".. autofunction:: {name}"]
        return [*lines, f".. py:data:: {name}", "", *("   " + line for line in comment(module, name))]

    def members(self, value: type) -> list[str]:
        """Return the documented methods and properties: its own, and those of bases that have no page of their own."""
        bases = [c for c in value.__mro__ if c.__module__.startswith(PACKAGE) and (c is value or c not in self.classes)]
        found = {name: member for base in reversed(bases) for name, member in vars(base).items() if name[0] != "_"}
        kinds = (*METHODS, value) if issubclass(value, Enum) else METHODS
        return sorted(name for name, member in found.items() if isinstance(member, kinds) and member.__doc__)

    def summary(self, module: str, name: str) -> str:
        """Return the first sentence of the documentation, on one line."""
        value = self.objects[module, name]
        documentation = inspect.getdoc(value) if inspect.isclass(value) or inspect.isroutine(value) else None
        paragraph = documentation.splitlines() if documentation else comment(module, name)
        return " ".join(paragraph[: paragraph.index("")] if "" in paragraph else paragraph)


def title(text: str) -> list[str]:
    """Return the lines of a title."""
    return [text, "=" * len(text), ""]


def comment(module: str, name: str) -> list[str]:
    """Return the string below the assignment of a constant, in whichever file of the module that is."""
    for path in sorted(found for found in sys.modules if found.startswith(module)):
        lines = ModuleAnalyzer.for_module(path).find_attr_docs().get(("", name))
        if lines:
            return lines
    raise ValueError(f"{module}.{name}: expected a string below its assignment that documents it, found none")


def toctree(caption: str, entries: list[str]) -> str:
    """Return a hidden table of contents, in Markdown."""
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```", ""])


def headline(path: Path) -> str:
    """Return the first title of a Markdown file."""
    return (ROOT / path).read_text(encoding="utf-8").partition("# ")[2].partition("\n")[0]


def files(patterns: list[str]) -> list[Path]:
    """Return the files of these patterns, relative to the root, in order and each once."""
    found = (path.relative_to(ROOT) for pattern in patterns for path in sorted(ROOT.glob(pattern)))
    return list(dict.fromkeys(found))


def rendered(text: str) -> str:
    """Return a Markdown file as Sphinx reads it: GitHub's displayed equations as MathJax's own, with their tags."""
    return re.sub(
        r"^```math\n(.*?)^```$", r"```{math}\n:nowrap:\n\n\\[\n\1\\]\n```", text, flags=re.MULTILINE | re.DOTALL
    )


def write_site() -> None:
    """Write docs/site; a page whose text is that of an earlier build is not touched, so that Sphinx skips it."""
    reference = Reference()
    pages = {
        path: [PLAIN, rendered((ROOT / path).read_text(encoding="utf-8"))] for path in files(["README.md", *PAGES])
    }
    pages[Path("README.md")] += [
        toctree("Pages", [f"{headline(path)} <{path.with_suffix('').as_posix()}>" for path in files(PAGES)]),
        toctree("Reference", [f"{module.rpartition('.')[2]} <api/{module}>" for module in reference.modules]),
    ]
    pages |= {Path(f"{page}.rst"): [*lines, ""] for page, lines in reference.pages().items()}
    for path in files(LINKED):
        (SITE / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, SITE / path)
    for path, lines in pages.items():
        page, text = SITE / path, "\n".join(lines)
        page.parent.mkdir(parents=True, exist_ok=True)
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
    for page in [*SITE.rglob("*.md"), *SITE.rglob("*.rst")]:
        if page.relative_to(SITE) not in pages:
            page.unlink()
