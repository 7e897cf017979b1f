"""Memory and open files of a training that goes on and on: do they grow?

``python -m benchmarks.soak [--minutes 60] [--every 10] [SETTING=VALUE ...]`` starts ``train_agent.py`` with the
settings given, on more episodes than it can do, reads memory (the sum over its processes, shared pages shared out:
``Pss``) and open file descriptors from ``/proc`` every few seconds, and stops it by SIGTERM when the time is over.
Prints the largest of each in every five minutes, and the growth from the second five minutes to the last; the first
are for warming up.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WINDOW = 300.0  # seconds
SETTINGS = ("episodes=100000000", "baseline.controllers=[]")  # tuning schedules first would be another phase


def processes_under(parent: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # gone by now
            continue
        children.setdefault(above, []).append(int(folder.name))
    found = [parent]
    for pid in found:
        found += children.get(pid, [])
    return found


def memory_and_files(pids: list[int]) -> tuple[float, int]:
    """Return MiB of memory and the number of open files of processes."""
    memory, files = 0, 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            memory += int(re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[0])
            files += len(os.listdir(f"/proc/{pid}/fd"))
        except (OSError, IndexError):
            continue
    return memory / 1024, files


def main() -> None:
    """Train, watch and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=10.0)
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_args()
    windows: list[list[tuple[float, int]]] = []
    with tempfile.TemporaryDirectory() as place:
        training = subprocess.Popen(
            [sys.executable, str(ROOT / "train_agent.py"), "name=soak", *SETTINGS, *arguments.settings],
            cwd=place,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        start = time.monotonic()
        while (passed := time.monotonic() - start) < 60.0 * arguments.minutes:
            time.sleep(arguments.every)
            if training.poll() is not None:
                raise SystemExit(f"train_agent.py ended by itself with status {training.returncode}.")
            if passed >= WINDOW * len(windows):
                windows.append([])
            windows[-1].append(memory_and_files(processes_under(training.pid)))
            if len(windows) > 1 and len(windows[-1]) == 1:
                show(len(windows) - 1, windows[-2])
        show(len(windows), windows[-1])
        training.send_signal(signal.SIGTERM)
        print(f"stopped with status {training.wait()}")
    if len(windows) > 2:
        (early, some), (late, many) = ([max(column) for column in zip(*windows[i], strict=True)] for i in (1, -1))
        print(f"from the second five minutes to the last: memory {late / early - 1:+.1%}, files {many - some:+d}")


def show(number: int, seen: list[tuple[float, int]]) -> None:
    """Print a window's largest figures."""
    memory, files = (max(column) for column in zip(*seen, strict=True))
    print(f"{5 * number:3d} min: {memory:8.1f} MiB, {files:4.0f} files", flush=True)


if __name__ == "__main__":
    main()
