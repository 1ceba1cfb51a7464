"""What a long command says while it runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL = 15.0
"""Seconds between two lines about one file where there is no terminal."""


class Reporter:
    """Results on stdout, progress and errors on stderr.

    Args:
        quiet: say nothing but errors.
        total: files to do.
    """

    def __init__(self, quiet: bool = False, total: int = 1) -> None:
        self.quiet = quiet
        self.total = total
        self.index = 0
        self._name = ""
        self._last = 0.0
        self._started = 0.0
        self._errors = Console(stderr=True, soft_wrap=True, highlight=False)
        self._progress: Progress | None = None
        if not quiet and self._errors.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                MofNCompleteColumn(),
                TextColumn("steps,"),
                TimeElapsedColumn(),
                TextColumn("gone,"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._errors,
                transient=True,
            )
            self._task = self._progress.add_task("", total=None, visible=False)

    def __enter__(self) -> Reporter:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def start(self, name: str) -> None:
        """The next file begins."""
        self.index += 1
        self._name = f"[{self.index}/{self.total}] {name}" if self.total > 1 else name
        self._last = self._started = time.monotonic()
        if self._progress:
            self._progress.reset(self._task, description=self._name, total=None, visible=True)

    def step(self, step: int, total: int, detail: str = "") -> None:
        """One step of the current file is done."""
        if self._progress:
            description = f"{self._name} {detail}".rstrip()
            self._progress.update(self._task, completed=step, total=total, description=description)
            return
        now = time.monotonic()
        if not self.quiet and now - self._last > PLAIN_INTERVAL and step < total:
            left = (now - self._started) * (total - step) / step
            self._last = now
            print(f"{self._name}: step {step} of {total}, about {left:.0f} s left", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A result or a note about the current file."""
        if self.quiet:
            return
        line = f"{self._name}: {text}" if self._name else text
        self._out(line)

    def line(self, text: str) -> None:
        """A line of its own."""
        if not self.quiet:
            self._out(text)

    def _out(self, line: str) -> None:
        if self._progress and sys.stdout.isatty():
            self._progress.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def error(self, text: str) -> None:
        """Something failed; said even when quiet."""
        show_error(text, self._errors)


def show_error(text: str, console: Console | None = None) -> None:
    """One line on stderr."""
    console = console or Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"error: {text}", markup=False, style="red" if console.is_terminal else None)
