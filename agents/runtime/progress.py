"""Progress on the terminal: a live bar, or a plain line now and then where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


@dataclass(frozen=True)
class Work:
    """How far something is.

    :param done: of what is counted, those that are done, and those among them whose results were known before
    :param total: how many there will be
    :param fresh: those that were done since the clock started
    :param made: what these cost, in any unit that is proportional to time
    :param left: what is to come costs, in the same unit
    """

    done: int
    total: int
    fresh: int
    made: float
    left: float

    def after(self, other: Work) -> Work:
        """Return this as what follows on other work."""
        done, total, fresh = self.done + other.done, self.total + other.total, self.fresh + other.fresh
        return Work(done, total, fresh, self.made + other.made, self.left)


class ProgressBar:
    """A bar with a rate, the time left and a message.

    :param description: what is being done
    :param unit: what is counted, such as ``episodes``
    :param console: where to write
    :param every: seconds between plain lines where there is no terminal
    :param clock: seconds, never going back
    """

    def __init__(
        self,
        description: str,
        unit: str,
        console: Console,
        every: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._unit, self._console, self._every = description, unit, console, every
        self._clock = clock
        self._start = self._last = clock()
        self._bar: Progress | None = None

    def __enter__(self) -> ProgressBar:
        self._start = self._last = self._clock()
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=10),
                MofNCompleteColumn(),
                TextColumn("{task.fields[message]}"),
                console=self._console,
            )
            self._bar.start()
            self._line = self._bar.add_task(self._description, total=None, message="")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, work: Work, message: str = "") -> None:
        """Show how far it is. As long as nothing was made, the clock starts anew: it took preparation, or was known."""
        now = self._clock()
        if not work.made:
            self._start = now
        said = ", ".join(filter(None, (*_speed(work, now - self._start), message if self._bar else "")))
        if self._bar:
            self._bar.update(self._line, completed=min(work.done, work.total), total=work.total, message=said)
        elif now - self._last >= self._every or work.done == work.total:
            self._last = now
            counted = f"{work.done}/{work.total} {self._unit}"
            line = f"{self._description}: {', '.join(filter(None, (counted, said)))}{f'; {message}' if message else ''}"
            self._console.print(line, highlight=False, soft_wrap=True)


def _speed(work: Work, elapsed: float) -> tuple[str, str]:
    """Say how fast it is and how long it will last, where that is known."""
    left = "0 s left" if work.done >= work.total else ""
    if not (work.fresh and work.made > 0.0 and elapsed > 0.0):
        return "", left
    each = elapsed / work.fresh
    speed = f"{1.0 / each:.1f}/s" if each <= 1.0 else f"{each:.1f} s each"
    return speed, left or f"{elapsed / work.made * max(work.left, 0.0):.0f} s left"
