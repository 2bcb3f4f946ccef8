"""What the README shows is what comes out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import torch_propkernel
import torch_propkernel.theories

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_example_prints_what_it_says(capsys):
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    before = torch.get_default_dtype()
    try:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    finally:
        torch.set_default_dtype(before)
    shown = re.findall(r"^print\(.*\)\n# (.+)$", code, re.MULTILINE)
    assert len(shown) == code.count("print(") > 2
    assert capsys.readouterr().out.splitlines() == shown


def test_it_is_read_in_a_minute():
    """First what it is and a picture, then the commands and the code, then its limits."""
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    order = [
        "finite width",
        "![",
        "python -m torch_propkernel fit",
        "&& pytest",
        "```python",
        "Do not use it",
        "evidence.md",
    ]
    places = [text.index(mark) for mark in order]
    assert places == sorted(places)


def test_it_cites_no_equation_without_saying_where_it_is():
    prose = re.sub(r"```.*?```|`[^`]*`", "", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert set(re.findall(r"\((\d+[a-z]?)\)", prose)) <= {"2023"}  # the year of the paper


def test_the_names_of_the_package_that_it_mentions_exist():
    text = README.read_text(encoding="utf-8")
    mentioned = set(re.findall(r"`([A-Z]\w+|\w+_\w+)(?:\(.*?\))?`", text)) - {
        "ExactGP",
        "SingleTaskGP",
        "GaussianLikelihood",
    }
    assert {"NetworkGP", "compare_with_network"} <= mentioned
    places = [torch_propkernel, torch_propkernel.theories, torch_propkernel.theories.FittedTheory]
    assert not [name for name in mentioned - {"log_evidence"} if not any(hasattr(place, name) for place in places)]


@pytest.mark.parametrize("page", ["README.md", "docs/evidence.md", "docs/gallery.md", "docs/release_checklist.md"])
def test_files_that_it_links_exist(page):
    path = README.parent / page
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("http") and not (path.parent / link).exists()]
    assert not missing


def test_scripts_that_the_evidence_names_exist():
    scripts = re.findall(r"python (examples/[\w/.]*\w)", (README.parent / "docs" / "evidence.md").read_text())
    assert len(scripts) > 5 and not [s for s in scripts if not (README.parent / s).exists()]
