"""The process that forks workers: started so that signals to a whole group of processes leave it and them alone."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext

from gns.errors import WorkerLostError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def fork_server(preload: str) -> ForkServerContext:
    """Return the context that workers are started in, its server running.

    Ctrl-C and SIGTERM, which terminals and clusters send to a whole group of processes, are for the process that asks:
    it ends its workers, or wants more answers. The server and all that it forks have both blocked from their first
    instruction on.

    :param preload: module that the server imports, once
    :raises WorkerLostError: see :func:`starting`
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    with starting():
        resource_tracker.ensure_running()  # which unblocks them again where it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # what is started has this from us
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def starting() -> Iterator[None]:
    """Name what goes wrong where a worker is started, and let signals wait: one half started could not be ended.

    :raises WorkerLostError: if the server ended, or no process can be started
    """
    try:
        with _signals_waiting():
            yield
    except (EOFError, OSError) as error:
        raise WorkerLostError(
            f"No worker can be started: the process that starts them has ended, or the system refused "
            f"({type(error).__name__}: {error}); expected that nothing kills it. See the memory and the number of "
            "processes that are allowed, start again, or set workers=0."
        ) from error


@contextmanager
def _signals_waiting() -> Iterator[None]:
    """Deliver what comes meanwhile at the end of the block."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in that one alone
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    known = {number: handler for number, handler in before.items() if handler is not None}  # None: not Python's
    for number in known:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in known.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)
