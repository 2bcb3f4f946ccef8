"""A bar over named steps, on a terminal's stderr."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

DELAY = 2.0
"""Seconds before a bar appears."""


@contextmanager
def steps(total: int) -> Iterator[Steps]:
    """Show a bar over ``total`` steps once two seconds have passed, if tqdm is installed and stderr is a terminal."""
    bar = Steps(total)
    try:
        yield bar
    finally:
        bar.close()


class Steps:
    """Call it with the name of each step that begins; a thread keeps the clock of a long step running."""

    def __init__(self, total: int) -> None:
        """Set up the bar, which is not shown yet."""
        self._begun = False
        self._closed = threading.Event()
        self._bar = None
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self._bar = tqdm(total=total, delay=DELAY, leave=False, unit="step", disable=None)
        self._clock = threading.Thread(target=self._tick, daemon=True)
        self._clock.start()

    def _tick(self) -> None:
        wait = DELAY
        while self._bar is not None and not self._closed.wait(wait):
            self._bar.refresh()
            wait = 1.0

    def __call__(self, name: str) -> None:
        """Begin a step, which ends the one before."""
        if self._bar is not None:
            self._bar.set_description(name, refresh=False)  # a refresh would not wait for the delay
            self._bar.update(int(self._begun))
        self._begun = True

    def close(self) -> None:
        """Take the bar away."""
        self._closed.set()
        if self._bar is not None:
            self._clock.join()
            self._bar.close()
