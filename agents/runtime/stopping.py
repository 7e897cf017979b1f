"""Ending a command that works for hours when it is asked to: by Ctrl-C, or by SIGTERM as clusters send it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from gns.errors import GNSError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(GNSError):
    """The command ended early because it was asked to; what it had done is kept.

    :param number: the signal that asked
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as shells report it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise :class:`StoppedError` where the work stands, for work kept piece by piece.

    Only the first does: what follows, as when a whole group is signalled twice, would interrupt the ending of workers.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        _handle(signal.SIG_IGN)
        raise StoppedError(number)

    with _handled_by(stop):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread handle signals
        yield
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


def _handle(handler: signal.Handlers) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)


class StopRequest:
    """Takes note of the first SIGINT or SIGTERM while it is entered; a second one ends the process at once.

    :param noted: called when the first one comes, with the signal's name
    """

    def __init__(self, noted: Callable[[str], None] = lambda name: None) -> None:
        self._noted = noted
        self._handlers = ExitStack()
        self._at_once = False
        self.number: int | None = None

    def __enter__(self) -> StopRequest:
        self._handlers.enter_context(_handled_by(self._note))
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.close()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the first signal raise :class:`StoppedError` where the work stands, for work kept piece by piece.

        :raises StoppedError: at once, if it came before
        """
        self.check()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
            if self.number is not None:
                _handle(signal.SIG_DFL)

    def check(self) -> None:
        """Go on, unless a signal came.

        :raises StoppedError: if one did
        """
        if self.number is not None:
            raise StoppedError(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self._at_once:
            _handle(signal.SIG_IGN)  # until workers are ended
            raise StoppedError(number)
        _handle(signal.SIG_DFL)
        self._noted(signal.Signals(number).name)
