"""What tracking adds to the time of a training: TensorBoard, CSV files and W&B offline together, over none.

    python -m benchmarks.tracking_cost [--pairs 5] [SETTING=VALUE ...]

Runs ``train_agent.py`` in pairs, once with ``tracker=none`` and once with ``tracker=[tensorboard,csv,wandb]``, each in
a process and a folder of its own; which comes first changes from pair to pair, and one run before all is not counted.
Prints seconds of whole commands and of training alone, and their ratios: median, and lowest to highest over pairs.
Settings are those of ``train_agent.py``, such as ``episodes=600``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
TRACKERS = {"none": "tracker=none", "tracked": "tracker=[tensorboard,csv,wandb]"}
TIMED = """
import time
import train_agent

train = train_agent.train

def timed(*arguments, **named):
    start = time.perf_counter()
    policy = train(*arguments, **named)
    print(f"seconds of training: {time.perf_counter() - start}")
    return policy

train_agent.train = timed
if __name__ == "__main__":
    train_agent.launch("train_agent", train_agent.run)
"""


def run(tracker: str, settings: list[str]) -> tuple[float, float]:
    """Train once, and return the seconds of the whole command and of training alone.

    :raises SystemExit: if the training fails
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "timed_training.py"
        path.write_text(TIMED, encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
        command = [sys.executable, str(path), "name=x", tracker, *settings]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    found = re.search(r"seconds of training: ([\d.]+)", done.stdout)
    assert found is not None
    return seconds, float(found[1])


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("settings", nargs="*", help="of train_agent.py")
    arguments = parser.parse_args()
    run(TRACKERS["none"], arguments.settings)  # what runs first reads files that the others find in memory
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in TRACKERS}
    for number in range(arguments.pairs):
        for name in list(TRACKERS) if number % 2 == 0 else list(TRACKERS)[::-1]:
            times[name].append(run(TRACKERS[name], arguments.settings))
        both = [times[name][-1] for name in TRACKERS]
        print(f"pair {number + 1}: {both[0][0]:.1f} s without, {both[1][0]:.1f} s with trackers", flush=True)
    for place, what in enumerate(("whole commands", "training alone")):
        without, tracked = ([pair[place] for pair in times[name]] for name in TRACKERS)
        ratios = [b / a for a, b in zip(without, tracked, strict=True)]
        print(
            f"{what}: {median(without):.1f} s without, {median(tracked):.1f} s with trackers; "
            f"ratio {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f} over {len(ratios)} pairs)"
        )


if __name__ == "__main__":
    main()
