"""The command line as a whole: help, exit codes, the installed program, progress bars."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
import time

import pytest

from torch_propkernel import ConvergenceError
from torch_propkernel.__main__ import build_parser, main
from torch_propkernel.commands import COMMANDS
from torch_propkernel.commands import fit as fit_module
from torch_propkernel.commands import steps as steps_module
from torch_propkernel.commands.steps import steps

NAMES = [command.__name__.split(".")[-1].replace("_", "-") for command in COMMANDS]


def test_main_without_a_command_and_version(capsys):
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert "torch_propkernel" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_the_help_says_what_scripts_need(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "exit codes: 0 done; 1 " in text and "--json" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_the_help_run(name, capsys, tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fit_module, "DEFAULT_THEORY", "saddle")  # sampling takes a minute on the yacht data
    for path, columns in (("data.csv", "a,b,price"), ("new.csv", "b,a")):
        rows = [columns] + [",".join(f"{v:.5f}" for v in rng.normal(size=columns.count(",") + 1)) for _ in range(30)]
        (tmp_path / path).write_text("\n".join(rows))
    rows = ["id;date;size;price"] + [f"X{i};2024-01-31;{i};{i * i % 7}" for i in range(30)]
    (tmp_path / "export.csv").write_text("\n".join(rows))
    assert main([name, "--help"]) == 0
    examples = re.findall(r"^  torch-propkernel (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(examples) >= 2
    for example in examples:
        assert main(shlex.split(example)) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("a"), 2), (TypeError("a"), 2), (OSError("a"), 2), (MemoryError("a"), 2), (ConvergenceError("a"), 1)],
)
def test_exit_codes(error, code, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr(COMMANDS[0], "run", fail)
    assert main(["fit"]) == code
    captured = capsys.readouterr()
    assert captured.err == "torch-propkernel fit: error: a\n" and captured.out == ""


def test_an_error_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(COMMANDS[0], "run", lambda arguments: {}["a bug"])
    with pytest.raises(KeyError):
        main(["fit"])


def test_every_command_is_in_the_help():
    text = build_parser().format_help()
    assert all(re.search(rf"^    {name}\s", text, re.MULTILINE) for name in NAMES)


def test_as_a_program(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "torch_propkernel", *arguments], capture_output=True, text=True, cwd=tmp_path
        )

    good = run("--version")
    assert good.returncode == 0 and good.stdout.startswith("torch_propkernel ") and good.stderr == ""
    bad = run("fit", "nowhere.csv")
    assert bad.returncode == 2 and bad.stdout == "" and "nowhere.csv" in bad.stderr and "Traceback" not in bad.stderr


def test_a_reader_that_goes_away_does_not_stop_the_work(tmp_path, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return stream.fileno()

    monkeypatch.chdir(tmp_path)
    with open("standard_output", "w") as stream:
        monkeypatch.setattr(sys, "stdout", Closed())
        assert main(["compare-widths", "--widths", "50", "--json", "n.json"]) == 0
    assert (tmp_path / "n.json").exists()


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestSteps:
    def test_a_long_run_shows_its_steps_on_a_terminal(self, monkeypatch):
        monkeypatch.setattr(steps_module, "DELAY", 0.05)
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with steps(2) as step:
            step("first")
            time.sleep(0.3)
            step("second")
        assert "first" in terminal.getvalue()

    @pytest.mark.parametrize(("stream", "delay"), [(io.StringIO, 0.01), (Terminal, 5.0)])
    def test_nothing_in_a_file_and_on_a_short_run(self, stream, delay, monkeypatch):
        monkeypatch.setattr(steps_module, "DELAY", delay)
        stderr = stream()
        monkeypatch.setattr(sys, "stderr", stderr)
        with steps(2) as step:
            step("first")
            time.sleep(0.05)
            step("second")
        assert stderr.getvalue().strip("\r ") == ""

    def test_without_tqdm(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tqdm", None)
        with steps(2) as step:
            step("first")
