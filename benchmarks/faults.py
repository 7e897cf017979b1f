"""Training while its workers are killed, and then its driver: does it go on, count what it lost, and still learn?

``python -m benchmarks.faults [--engine ray] [--workers 4] [--every 5] [--last 60] [--episodes 2400]`` trains a policy
on ``digits_mlp`` twice by ``train_agent.py``: undisturbed, and with a worker killed (SIGKILL) every few seconds for a
while, then, after the next checkpoint, the driver, which is started again by the same command. Prints what was killed,
what the training counted, and the loss of its last episodes over that of tuned schedules, on the reward split. Reads
``/proc``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from envs.batched.composite import LARGEST_GROUP

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"ray": b"ray::_Holder", "processes": b"multiprocessing.forkserver"}  # in command lines of workers


def processes() -> dict[int, tuple[int, bytes]]:
    """Return the parent and the command line of every process there is."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = parent, (folder / "cmdline").read_bytes()
        except (OSError, ValueError):  # gone by now
            continue
    return found


def workers(engine: str, driver: int) -> list[int]:
    """Return the processes that hold environments; of the fork server those it has forked."""
    there = processes()
    named = [pid for pid, (_, line) in there.items() if NAMES[engine] in line]
    if engine == "ray":
        return named
    return [pid for pid in named if there[pid][0] in named and there[there[pid][0]][0] == driver]


def start(folder: Path, overrides: Sequence[str], log: str) -> subprocess.Popen:
    """Start a training in a folder."""
    with (folder / log).open("ab") as file:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train_agent.py"), "name=x", "task=[digits_mlp]", *overrides],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def told(folder: Path) -> dict[str, object]:
    """Return what a policy says of its training."""
    return json.loads((folder / "outputs" / "x" / "policy" / "config.json").read_text())["training"]


def wait_for_checkpoint(folder: Path, driver: subprocess.Popen) -> None:
    """Wait until another checkpoint is written.

    :raises SystemExit: if the training is over before
    """
    known = checkpoints(folder)
    while not checkpoints(folder) - known:
        if driver.poll() is not None:
            raise SystemExit((folder / "log").read_text())
        time.sleep(0.05)


def checkpoints(folder: Path) -> set[str]:
    """Return the names of the checkpoints of a training."""
    return {path.name for path in (folder / "outputs" / "x" / "checkpoints").glob("*.checkpoint")}


def disturb(driver: subprocess.Popen, engine: str, every: float, last: float, rng: random.Random) -> int:
    """Kill workers, one at a time; return how many."""
    killed, end = 0, time.monotonic() + last
    while time.monotonic() < end and driver.poll() is None:
        if there := workers(engine, driver.pid):
            os.kill(rng.choice(there), signal.SIGKILL)
            killed += 1
        time.sleep(every)
    return killed


def main() -> None:
    """Train twice and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=sorted(NAMES), default="ray")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--every", type=float, default=5.0)
    parser.add_argument("--last", type=float, default=60.0)
    parser.add_argument("--episodes", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings = [f"workers={arguments.workers}", f"episodes={arguments.episodes}", f"seed={arguments.seed}"]
    size = LARGEST_GROUP * max(arguments.workers, 2)  # environments, so that every worker has a group
    settings += [f"agent.num_envs={size}", f"agent.episodes_per_rollout={size}"]
    settings += [f"engine.name={arguments.engine}", "checkpoint.every=5"]
    with tempfile.TemporaryDirectory() as place:
        calm, rough = Path(place) / "calm", Path(place) / "rough"
        for folder in (calm, rough):
            folder.mkdir()
        begun = time.monotonic()
        if start(calm, settings, "log").wait():
            raise SystemExit((calm / "log").read_text())
        print(f"undisturbed, {time.monotonic() - begun:.0f} s: {told(calm)}", flush=True)
        driver = start(rough, settings, "log")
        wait_for_checkpoint(rough, driver)
        killed = disturb(driver, arguments.engine, arguments.every, arguments.last, random.Random(arguments.seed))
        wait_for_checkpoint(rough, driver)
        alive = driver.poll() is None
        driver.kill()
        driver.wait()
        if start(rough, settings, "again").wait():
            raise SystemExit((rough / "again").read_text())
        restarts = re.findall(r"Worker (\d+) .*is started again", (rough / "log").read_text())
        print(
            f"{killed} workers killed in {arguments.last:g} s, {len(restarts)} restarts told of (workers "
            f"{', '.join(restarts)}), driver {'alive until it was killed' if alive else 'over before'}; started again "
            f"it ended with {told(rough)}"
        )


if __name__ == "__main__":
    main()
