"""The examples in CONTRIBUTING.md run, with the tests that they bring, and stay short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"


def examples() -> dict[str, str]:
    """Return {heading: code} of the Python blocks in CONTRIBUTING.md."""
    found = {}
    for section in re.split(r"^#+ +", CONTRIBUTING.read_text(encoding="utf-8"), flags=re.MULTILINE):
        for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            found[section.partition("\n")[0]] = code
    return found


def test_there_is_one_for_each_kind():
    assert list(examples()) == ["Add an activation", "Add a composition", "Add a mixing law", "Add a theory"]


@pytest.mark.parametrize("heading", examples())
def test_example_is_short_and_passes_its_tests(heading):
    code = examples()[heading]
    assert len(code.splitlines()) < 50
    namespace = {"__name__": "contributing"}
    before = torch.get_default_dtype()
    try:
        exec(compile(code, f"CONTRIBUTING.md, {heading}", "exec"), namespace)
        tests = [value for name, value in namespace.items() if name.startswith("test_")]
        assert tests
        for test in tests:
            test()
    finally:
        torch.set_default_dtype(before)


def test_files_that_it_names_exist():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:tests|torch_propkernel|docs|\.ci)/[\w./]*)`", text))
    assert named and not [name for name in named if not (ROOT / name).exists()]
