"""Progress on the terminal: a live bar, or a plain line now and then where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressBar:
    """A bar with a rate, the time left and a message.

    :param description: what is being done
    :param unit: what is counted, such as ``episodes``
    :param console: where to write
    :param every: seconds between plain lines where there is no terminal
    """

    def __init__(self, description: str, unit: str, console: Console, every: float = 15.0) -> None:
        self._description, self._unit, self._console, self._every = description, unit, console, every
        self._start = self._last = 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> ProgressBar:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=10),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[message]}"),
                console=self._console,
            )
            self._bar.start()
            self._line = self._bar.add_task(self._description, total=None, message="", rate="")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, total: int, message: str = "") -> None:
        """Show how far it is."""
        now = time.perf_counter()
        if not self._start:  # what was done before the first call is preparation
            self._start = self._last = now
        elapsed = now - self._start
        rate = f"{done / elapsed:.1f}/s" if elapsed > 0 else ""
        if self._bar:
            self._bar.update(self._line, completed=min(done, total), total=total, message=message, rate=rate)
        elif now - self._last >= self._every or done == total:
            self._last = now
            left = max(elapsed / max(done, 1) * (total - done), 0.0)
            self._console.print(
                f"{self._description}: {done}/{total} {self._unit}, {rate}, {left:.0f} s left; {message}".rstrip("; "),
                highlight=False,
                soft_wrap=True,
            )
