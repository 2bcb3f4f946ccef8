"""Writes the gallery: runs every tutorial, keeps its picture in docs/gallery, and writes docs/gallery.md.

    python docs/make_gallery.py                  # all of them, a few minutes on one core
    python docs/make_gallery.py deep_networks    # the picture of one; the page is always written

The text comes from the table in examples/tutorials/README.md, which is the one place that describes the tutorials.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "examples" / "tutorials"
GALLERY = ROOT / "docs" / "gallery"
PAGE = ROOT / "docs" / "gallery.md"
WIDTH = 1000
"""Pictures are stored this wide, in pixels: about 100 kB each."""


def rows() -> list[tuple[str, str, str]]:
    """Return (name, what it shows, what its picture shows) of every tutorial, in the order of the table."""
    text = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\) \| (.+?) \| (.+?) \|$", text, flags=re.MULTILINE)


def title(name: str) -> str:
    """Return the headline of a tutorial."""
    return re.search(r"^# # (.+)$", (TUTORIALS / f"{name}.py").read_text(encoding="utf-8"), flags=re.MULTILINE)[1]


def page() -> str:
    """Return the text of the page."""
    lines = [
        "# Gallery of tutorials",
        "",
        "Each tutorial is a script on real data, takes less than a minute on one core and ends in the picture below.",
        "The scripts are in percent format, so editors open them as notebooks.",
        "[How to run them](../examples/tutorials/README.md). The pictures are made by `python docs/make_gallery.py`.",
    ]
    for name, shows, picture in rows():
        lines += [
            "",
            f"## {title(name)}",
            "",
            f"{shows} The script is [{name}.py](../examples/tutorials/{name}.py).",
            "",
            f"![{picture}](gallery/{name}.png)",
            "",
            picture,
        ]
    return "\n".join([*lines, ""])


def draw(name: str) -> None:
    """Run a tutorial at its full size and keep its picture."""
    from PIL import Image  # comes with matplotlib

    GALLERY.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "picture.png")
        environment = {**os.environ, "MPLBACKEND": "Agg"}
        script = [sys.executable, str(TUTORIALS / f"{name}.py"), "--plot", str(picture)]
        subprocess.run(script, check=True, stdout=subprocess.DEVNULL, cwd=folder, env=environment)
        image = Image.open(picture).convert("RGB")
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
        image.save(GALLERY / f"{name}.png", optimize=True)  # in all its colors: a palette makes curves look alike


def main() -> None:
    """Draw what is asked for, and write the page."""
    names = [name for name, _, _ in rows()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"tutorials to run, default all of {', '.join(names)}")
    chosen = parser.parse_args().names or names
    if unknown := set(chosen) - set(names):
        parser.error(f"expected names among {', '.join(names)}, got {', '.join(sorted(unknown))}")
    for name in chosen:
        draw(name)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
