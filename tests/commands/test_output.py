"""Files: none that a run reads is written to, paths are checked before the work, each is written in one step."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest

from torch_propkernel.__main__ import main
from torch_propkernel.commands import fit as fit_module
from torch_propkernel.commands import predict as predict_module
from torch_propkernel.commands.output import Output


@pytest.fixture
def refused(table, capsys, monkeypatch):
    """Return refused(*arguments) -> message: of a run that ends with 2 before any work and leaves the folder alone."""
    table()

    def work(*arguments, **keywords):
        raise AssertionError("work has begun")

    def run(*arguments):
        before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
        with monkeypatch.context() as patch:
            for command, name in ((fit_module, "read_rows"), (predict_module, "load")):
                patch.setattr(command, name, work)
            assert main([*arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
        return captured.err

    return run


class TestInputsAreNeverWrittenTo:
    @pytest.mark.parametrize("option", ["--predictions", "--json", "--save"])
    def test_fit(self, refused, option):
        message = refused("fit", "table.csv", "--no-plot", option, "table.csv")
        assert f"{option}, DATA.csv: expected two files, got table.csv for both" in message

    @pytest.mark.parametrize("command", ["sweep", "compare-widths"])
    def test_other_commands(self, table, capsys, command):
        content = Path(table()).read_bytes()
        assert main([command, "table.csv", "--json", "./table.csv"]) == 2
        assert "--json, DATA.csv: expected two files" in capsys.readouterr().err
        assert Path("table.csv").read_bytes() == content

    def test_a_plot(self, refused):
        os.rename("table.csv", "table.png")
        assert "--plot, DATA.csv: expected two files" in refused("fit", "table.png", "--plot", "table.png")
        os.rename("table.png", "propkernel_fit.png")
        assert "--plot, DATA.csv: expected two files" in refused("fit", "propkernel_fit.png")  # the default name

    @pytest.mark.parametrize("option", ["--out", "--json"])
    @pytest.mark.parametrize(("name", "argument"), [("m", "MODEL"), ("new.csv", "NEW.csv")])
    def test_predict(self, refused, option, name, argument):
        Path("m").write_text("a model"), Path("new.csv").write_text("1,2,3\n")
        assert f"{option}, {argument}: expected two files, got {name}" in refused(
            "predict", "m", "new.csv", option, name
        )

    @pytest.mark.parametrize("link", [os.symlink, os.link])
    def test_links(self, refused, link):
        link("table.csv", "other.csv")
        for data, output in (("table.csv", "other.csv"), ("other.csv", "table.csv")):
            message = refused("fit", data, "--no-plot", "--predictions", output)
            assert f"--predictions, DATA.csv: expected two files, got {output} for both" in message

    def test_folders_that_are_links(self, refused, tmp_path):
        os.symlink(tmp_path, "here")
        assert "--json, DATA.csv" in refused("fit", "table.csv", "--json", "here/table.csv")


class TestTwoOutputs:
    @pytest.mark.parametrize("second", ["a", "./a", "link"])
    def test_of_one_path(self, refused, second):
        os.symlink("a", "link")  # to a file that does not exist yet
        message = refused("fit", "table.csv", "--no-plot", "--json", "a", "--predictions", second)
        assert "--json, --predictions: expected two files, got a for both" in message

    def test_on_stdout(self, refused):
        message = refused("fit", "table.csv", "--no-plot", "--json", "-", "--predictions", "-")
        assert "--json, --predictions: expected two files, got stdout for both" in message

    @pytest.mark.parametrize("option", ["--save", "--plot"])
    def test_only_texts_go_to_stdout(self, refused, option):
        assert f"{option}: expected a file, got - (stdout)" in refused("fit", "table.csv", option, "-")


class TestPathsAreCheckedBeforeTheWork:
    def test_ending_of_a_plot(self, refused):
        for name in ("x.txt", "x", "x.png.gz"):
            message = refused("fit", "table.csv", "--plot", name)
            assert f"--plot: expected an ending that matplotlib writes, such as .png or .pdf, got {name}" in message

    def test_a_folder(self, refused):
        os.mkdir("folder")
        assert "--json: expected a file, got the folder folder" in refused("fit", "table.csv", "--json", "folder")
        os.symlink("nowhere/x", "link")
        assert "/nowhere that exists, got link" in refused("fit", "table.csv", "--json", "link")

    @pytest.mark.parametrize("blocked", ["folder", "folder/a.png"])
    def test_what_may_not_be_written(self, refused, monkeypatch, blocked):
        os.mkdir("folder")
        Path("folder/a.png").touch()
        # The root user may write everywhere, so the system's answer is replaced.
        monkeypatch.setattr(os, "access", lambda path, mode: os.path.abspath(path) != os.path.abspath(blocked))
        message = refused("fit", "table.csv", "--plot", "folder/a.png")
        assert f"{blocked} to be writable, got folder/a.png; --no-plot saves none" in message

    def test_a_device(self):
        Output({}, {"--json": Path(os.devnull)}).numbers({"a": 1})
        assert not stat.S_ISREG(os.stat(os.devnull).st_mode)


class TestWriting:
    def test_all_outputs_replace_earlier_ones_and_keep_links_and_modes(self, table):
        files = {"--json": "n.json", "--predictions": "p.csv", "--plot": "p.png", "--save": "m"}
        os.mkdir("folder")
        for name in files.values():
            Path("folder", name).write_text("old")
            Path("folder", name).chmod(0o640)
            os.symlink(f"folder/{name}", name)
        arguments = [text for pair in files.items() for text in pair]
        assert main(["fit", table(), *arguments]) == 0
        for name in files.values():
            assert os.path.islink(name)
            assert Path("folder", name).read_bytes() != b"old"
            assert stat.S_IMODE(os.stat(f"folder/{name}").st_mode) == 0o640
        assert sorted(os.listdir("folder")) == sorted(files.values())

    @pytest.mark.parametrize("option", ["--json", "--predictions", "--plot"])
    def test_a_failure_leaves_the_earlier_file(self, table, option, monkeypatch, capsys):
        Path("a.svg").write_text("old")

        def fail(handle):
            raise OSError("the disk is full")

        monkeypatch.setattr(os, "fsync", fail)
        other = [] if option == "--plot" else ["--no-plot"]
        assert main(["fit", table(), *other, option, "a.svg"]) == 2
        assert "the disk is full" in capsys.readouterr().err
        assert Path("a.svg").read_text() == "old" and sorted(os.listdir()) == ["a.svg", "table.csv"]

    def test_a_table_on_stdout_is_alone_there(self, table, capsys):
        assert main(["fit", table(), "--no-plot", "--predictions", "-", "--json", "n.json"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("line,split,target") and len(lines) == 31
        with open("n.json") as file:
            assert json.load(file)["data"]["rows"] == 30


def test_an_interrupt_ends_with_one_line(table, monkeypatch, capsys):
    monkeypatch.setattr(fit_module, "analyze", lambda *arguments: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert main(["fit", table(), "--no-plot"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    captured = capsys.readouterr()
    assert captured.err == "torch-propkernel fit: interrupted\n" and captured.out == ""
