"""The examples in CONTRIBUTING.md run, with the tests that they bring, and stay short."""

from __future__ import annotations

import re
import runpy
import subprocess
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


def load_script(path: Path) -> dict:
    """Return the names that a script defines."""
    return runpy.run_path(str(path), run_name="documentation")


class TestGallery:
    gallery = load_script(ROOT / "docs" / "make_gallery.py")

    def test_page_is_what_the_scripts_say(self):
        assert (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8") == self.gallery["page"]()

    def test_every_tutorial_has_its_picture(self):
        names = {path.stem for path in (ROOT / "examples" / "tutorials").glob("*.py")}
        assert {name for name, _, _ in self.gallery["rows"]()} == names
        pictures = {path.stem: path.read_bytes() for path in (ROOT / "docs" / "gallery").glob("*.png")}
        assert set(pictures) == names
        for picture in pictures.values():
            width = int.from_bytes(picture[16:20], "big")  # of the PNG's header
            assert width == self.gallery["WIDTH"] and 10_000 < len(picture) < 200_000


class TestHabits:
    """The workflow and the hooks call what .ci/run calls; what the changelog promises exists."""

    def test_workflow_calls_the_script_for_every_supported_python(self):
        text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
        commands = re.findall(r"- run: (.+)", text)
        assert commands and all(command.startswith(".ci/run") for command in commands)
        classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text(encoding="utf-8"))
        assert re.search(r"python: \[(.+)\]", text)[1] == ", ".join(f'"{version}"' for version in classifiers)
        script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
        for command in commands:
            for option in re.findall(r"--\w+", command):
                assert f"\n{option})" in script

    @pytest.mark.parametrize("arguments", [["--bogus"], ["--install", "old", "with"]])
    def test_script_refuses_what_it_does_not_know(self, arguments):
        run = subprocess.run([ROOT / ".ci" / "run", *arguments], capture_output=True, text=True)
        assert run.returncode == 2 and "expected" in run.stderr and arguments[-1] in run.stderr

    def test_hooks_run_the_linters_of_the_script(self):
        script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
        hooks = re.findall(r"entry: (.+)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
        assert [hook.split(" --")[0] for hook in hooks] == [
            "ruff check",
            "ruff format",
            "mypy torch_propkernel tests/test_typing_face.py",
        ]
        assert all(f" {hook.split(' --')[0]}" in script for hook in hooks)
