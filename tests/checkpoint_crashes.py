"""Saves checkpoints in processes that are killed, and says what is found afterwards; run by test_checkpoints.py.

Forks children of one process, so that torch is loaded once. Prints JSON: a list of [how, last step whose save returned,
step that is found, whether its tensor is whole].
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from agents.runtime.checkpoints import CheckpointStore

CALLS = ("open", "write", "fsync", "close", "replace", "unlink")


def state_of(step: int) -> dict:
    return {"step": step, "weights": torch.full((3000,), float(step))}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: int) -> None:
    """Be killed at the ``moment``-th call that changes the disk: before it, after half of it where it writes."""
    count = 0

    def dying(real):
        def call(*arguments, **settings):
            nonlocal count
            count += 1
            if count == moment:
                if real is write:
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                die()
            return real(*arguments, **settings)

        return call

    write = os.write
    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))


def save_steps(folder: Path, pipe: int, steps: int, prepare) -> None:
    """Save step after step and write each into the pipe once its save has returned."""
    tell = os.write
    prepare()
    store = CheckpointStore(folder, keep=2)
    for step in range(1, steps + 1):
        store.save(state_of(step), step)
        tell(pipe, step.to_bytes(4, "little"))


def crash(folder: Path, steps: int, prepare, kill_after: int | None = None) -> tuple[int, bool]:
    """Return the last step whose save returned, and whether the child was killed.

    :param kill_after: kill it from outside once so many saves have returned, at whatever it does then
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            save_steps(folder, writing, steps, prepare)
        finally:
            os._exit(0)
    os.close(writing)
    last = 0
    while told := os.read(reading, 4):
        last = int.from_bytes(told, "little")
        if last == kill_after:
            os.kill(child, signal.SIGKILL)
    os.close(reading)
    return last, os.WIFSIGNALED(os.waitpid(child, 0)[1])


def found_in(folder: Path) -> tuple[int, bool]:
    newest = CheckpointStore(folder, keep=2).newest()
    if newest is None:
        return 0, True
    step = newest[0]["step"]
    return step, torch.equal(newest[0]["weights"], state_of(step)["weights"])


def main(root: Path) -> None:
    results = []
    moment, killed = 0, True
    while killed:
        moment += 1
        folder = root / f"moment{moment}"
        last, killed = crash(folder, 5, lambda moment=moment: die_at(moment))
        results.append([f"moment {moment}", last, *found_in(folder)])
        CheckpointStore(folder, keep=2).save(state_of(100), 100)
        results.append([f"after moment {moment}", 100, *found_in(folder)])
        left = sorted(path.name for path in folder.iterdir())
        assert len(left) <= 2 and left[-1].endswith("-step-100.checkpoint"), left
    folder = root / "outside"  # one folder for all, as when a training is started again and again
    for attempt in range(40):
        last, killed = crash(folder, 10_000, lambda: None, 1 + attempt % 5)
        assert killed
        results.append([f"outside {attempt}", last, *found_in(folder)])
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
