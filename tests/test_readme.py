"""What the README shows is what comes out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.filterwarnings("ignore::torch_propkernel.ReliabilityWarning")  # six inputs at a low T: rightly warned of
def test_the_example_prints_what_it_says(capsys):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    before = torch.get_default_dtype()
    try:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    finally:
        torch.set_default_dtype(before)
    order_parameter, errors = capsys.readouterr().out.strip().splitlines()
    shown = [line.partition("  # ")[2] for line in code.splitlines() if line.startswith("print")]
    assert order_parameter.startswith(shown[0].removesuffix(" ..."))
    assert errors == shown[1]


def test_files_that_it_links_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    missing = [link for link in links if not link.startswith("http") and not (README.parent / link).exists()]
    assert not missing


def test_scripts_that_it_names_exist():
    scripts = re.findall(r"python (examples/\S+\.py)", README.read_text())
    assert scripts and not [s for s in scripts if not (README.parent / s).exists()]
