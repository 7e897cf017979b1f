"""What importing gns takes over importing torch, and what is first imported where a scheduler is made.

    python -m benchmarks.import_time [--runs 5]

Each run is one process under ``python -X importtime`` that imports torch, then gns, then makes a scheduler, so that a
row's ratio is of two times of the same process. Printed are medians over runs, with the lowest and highest ratio. The
second table is seconds of whole commands that train nothing, over a process that imports torch alone, in turns.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
STEPS = {
    "import torch": "import torch",
    "import gns": "import gns",
    "from gns import GNSScheduler": "from gns import GNSScheduler",
    "an optimizer of torch": "m = torch.nn.Linear(2, 2); o = torch.optim.Adam(m.parameters(), lr=1e-3)",
    "a GNSScheduler on it": "GNSScheduler(o, m, total_steps=100)",
}
COMMANDS = {
    "python -c 'import torch'": ["-c", "import torch"],
    "python -m gns inspect --help": ["-m", "gns", "inspect", "--help"],
    "python train_agent.py --cfg job": ["train_agent.py", "--cfg", "job"],
    "python evaluate.py --cfg job": ["evaluate.py", "--cfg", "job"],
    "python evaluate.py --help": ["evaluate.py", "--help"],
}
_LINE = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \|")


def import_seconds() -> dict[str, float]:
    """Return the seconds that each step spends importing, in one process."""
    code = "import sys\n" + "\n".join(f"{step}\nprint({name!r}, file=sys.stderr)" for name, step in STEPS.items())
    command = [sys.executable, "-X", "importtime", "-c", code]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found, own = {}, 0
    for line in finished.stderr.splitlines():
        if match := _LINE.match(line):
            own += int(match[1])
        elif line in STEPS:
            found[line], own = own / 1e6, 0
    return found


def command_seconds(words: list[str]) -> float:
    """Return the seconds that a command takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - start


def _table(rows: dict[str, list[float]]) -> None:
    base = next(iter(rows.values()))
    for name, times in rows.items():
        ratios = [own / first for own, first in zip(times, base, strict=True)]
        print(f"  {name:<34}{median(times):7.3f} s   {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = range(parser.parse_args().runs)
    import_seconds()  # files are read from disk once
    imports = [import_seconds() for _ in runs]
    print("imports of each step, and over those of torch")
    _table({name: [run[name] for run in imports] for name in STEPS})
    commands = [{name: command_seconds(words) for name, words in COMMANDS.items()} for _ in runs]
    print("whole commands, and over importing torch")
    _table({name: [run[name] for run in commands] for name in COMMANDS})


if __name__ == "__main__":
    main()
