"""The tutorials run at their small size, end in a picture and in three sentences, and open as notebooks."""

from __future__ import annotations

import ast
import itertools
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples" / "tutorials"
TUTORIALS = sorted(path.stem for path in FOLDER.glob("*.py"))
HEADING = "What it means:"
NEEDS = {"botorch_models": "botorch"}
MARKER = re.compile(r"^# %%(?: \[markdown\])?$")


def cells(text: str) -> list[tuple[str, list[str]]]:
    """Return (kind, lines) of every cell of a script in percent format."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("# %%"):
            assert MARKER.match(line), f"not a marker of the percent format: {line!r}"
            found.append(("markdown" if line.endswith("[markdown]") else "code", []))
        else:
            assert found, f"a line before the first cell: {line!r}"
            found[-1][1].append(line)
    return found


def sentences(output: str) -> list[str]:
    """Return what was printed below the heading, one sentence for each line."""
    return output.partition(f"\n{HEADING}\n")[2].splitlines()


def overlapping_labels(figure) -> list[str]:
    """Return the neighboring tick labels of a drawn figure that lie on each other."""
    found = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            shown = [
                tick.label1
                for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
                if low <= tick.get_loc() <= high and tick.label1.get_visible() and tick.label1.get_text()
            ]
            boxes = [label.get_window_extent() for label in shown]
            for first, second in itertools.combinations(range(len(shown)), 2):
                if boxes[first].overlaps(boxes[second]):
                    found.append(f"{shown[first].get_text()} and {shown[second].get_text()}")
    return found


def test_there_are_seven_and_the_index_has_them_all():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(TUTORIALS) == 7
    assert sorted(re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\) \|", index, re.MULTILINE)) == TUTORIALS


@pytest.mark.parametrize("name", TUTORIALS)
def test_percent_format(name):
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    found = cells(text)
    kind, lines = found[0]
    assert kind == "markdown" and lines[0].startswith("# # ")
    assert re.search(r"\bYou\b[\s#]+\blearn\b", "\n".join(lines))
    assert len(found) >= 6
    for kind, lines in found:
        body = "\n".join(lines).strip()
        assert body, "an empty cell"
        if kind == "markdown":
            assert all(line.startswith("#") for line in body.splitlines()), "code in a cell of text"
        else:
            ast.parse(body)  # a cell is run by itself in a notebook
    assert len(text.splitlines()) <= 150


# Small sizes: too few draws, data that do not determine the noise, predictions that the package warns of.
@pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.PropKernelWarning")
@pytest.mark.filterwarnings("ignore::linear_operator.utils.warnings.NumericalWarning")
@pytest.mark.parametrize("name", TUTORIALS)
def test_runs(name, tmp_path, capsys, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    picture, before = tmp_path / "picture.png", torch.get_default_dtype()
    drawn, savefig = [], figures.Figure.savefig
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), savefig(self, *a, **k)))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--small", "--plot", str(picture)])
    monkeypatch.chdir(tmp_path)
    try:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    finally:
        torch.set_default_dtype(before)
    assert picture.stat().st_size > 10_000
    [figure] = drawn
    assert overlapping_labels(figure) == []
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    found = sentences(capsys.readouterr().out)
    assert len(found) == 3, found
    for sentence in found:
        assert re.match(r"[A-Z].*[^.]\.$", sentence) and not re.search(r"[.!?] ", sentence), sentence
        assert not re.search(r"\bnan\b", sentence), sentence


class TestTheseChecksCanFail:
    def test_code_before_the_first_cell(self):
        with pytest.raises(AssertionError, match="before the first cell"):
            cells("import torch\n# %%\nx = 1\n")

    def test_misspelled_marker(self):
        with pytest.raises(AssertionError, match="not a marker"):
            cells("# %%[markdown]\n# # Title\n")

    def test_labels_on_each_other(self):
        figures = pytest.importorskip("matplotlib.figure")
        figure = figures.Figure()
        axes = figure.subplots()
        axes.set_xticks([0.5, 0.501, 0.9], ["first", "second", "third"])
        figure.draw_without_rendering()
        assert overlapping_labels(figure) == ["first and second"]

    def test_sentences_are_counted(self):
        assert sentences(f"1.0\n\n{HEADING}\nOne.\nTwo.\n") == ["One.", "Two."]
        assert sentences("no heading") == []
