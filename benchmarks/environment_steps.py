"""Decisions a second of environments that train a network, and which share of a bare training loop's speed is left.

    python -m benchmarks.environment_steps --dacbench outputs/dacbench/bin/python

Three environments train one model on one batch size with AdamW: the single one (padded, as it is collected), 32 of them
whose runs are trained together, and DACBench's SGD environment, see :mod:`benchmarks.dacbench_steps`. Each takes turns
of a fraction of a second with a plain loop on the same model, in the same process. The limit of a single run is 1: all
the time goes to updates. What the environments do besides differs: ours observe every layer, take a snapshot for the
guard, and evaluate the reward split in full at a fifth of the decisions; DACBench's validates on part of its held-out
data at every decision.

Default settings: ours make 5 to 20 updates a decision and 20 decisions an episode; DACBench's makes one pass over the
data a decision and 100 decisions an episode. With equal updates a decision, ours make as many as DACBench's does in
each of its two modes, a whole pass and one update, still 20 decisions an episode.

DACBench has dependencies of its own, and lives in an environment of its own::

    python3 -m venv outputs/dacbench
    outputs/dacbench/bin/pip install -c constraints.txt torch torchvision==0.28.0 DACBench==0.5.6
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.training.ppo import single_thread
from benchmarks import dacbench_steps
from benchmarks.dacbench_steps import Step, bare_loop, compare
from envs.batched.composite import Group
from envs.env_config import EnvConfig
from envs.learning_rate_env import LearningRateEnv
from envs.tasks import Task, get_task
from gns.deciding.decision import DecisionConfig
from gns.errors import InvalidSettingError

VARIABLE = "GNS_DACBENCH_PYTHON"
OPTIMIZER = "adamw"  # the one that DACBench has
TOGETHER = 32
HOW_TO = (
    "To measure DACBench beside: python3 -m venv outputs/dacbench && outputs/dacbench/bin/pip install -c "
    "constraints.txt torch torchvision==0.28.0 DACBench==0.5.6, then pass --dacbench outputs/dacbench/bin/python or "
    f"set {VARIABLE}."
)
# As envs.memory keeps freed memory: glibc reads these when a process starts.
_KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}


def configuration(updates: int | None) -> EnvConfig:
    """Return what episodes are drawn from.

    :param updates: a decision's; None: as by default
    """
    if updates is None:
        return EnvConfig(optimizers=(OPTIMIZER,))
    decision = DecisionConfig(decision_interval=updates)
    return EnvConfig(optimizers=(OPTIMIZER,), budgets=(decision.num_decisions * updates,) * 2, decision=decision)


def stepping(task: Task, places: int, config: EnvConfig) -> Step:
    """Return what makes a step of environments of a task, resets included.

    :param places: number of environments; more than one: their runs are trained together
    """
    nodes, edges = LearningRateEnv([task], config).graph_limits()
    group = Group(tuple(range(places)), (task,), OPTIMIZER, together=places > 1)
    env: Any = group.make(config, (nodes, max(edges, 1)))
    env.seed(0)
    env.reset()
    actions = np.zeros((places, 1), dtype=np.float32)
    before = [0] * places

    def step() -> tuple[int, int]:
        _, _, dones, infos = env.step(actions)
        updates = sum(info["update"] for info in infos) - sum(before)
        before[:] = [0 if done else info["update"] for info, done in zip(infos, dones, strict=True)]
        return places, updates

    return step


def ours(task: Task, places: int, updates: int | None, seconds: float, least: int = 3) -> dict[str, float]:
    """Measure environments of this project beside the bare loop, see :func:`benchmarks.dacbench_steps.compare`.

    :param updates: a decision's; None: as by default
    """
    config = configuration(updates)
    train = task.training_data().train
    torch.manual_seed(0)
    bare = bare_loop(task.new_model(), train.inputs, train.targets, task.batch_size)
    decisions = config.decision.num_decisions * places
    return compare(stepping(task, places, config), bare, decisions, seconds, least)


def write_problem(task: Task, folder: Path) -> None:
    """Write what :mod:`benchmarks.dacbench_steps` reads: the training and the reward split, and a model."""
    data = task.training_data()
    arrays = {
        f"{name}_{what}": getattr(split, what).numpy()
        for name, split in (("train", data.train), ("held_out", data.reward))
        for what in ("inputs", "targets")
    }
    np.savez(folder / "data.npz", **arrays)
    torch.manual_seed(0)
    torch.save(task.new_model(), folder / "model.pt")


def dacbench(task: Task, python: str | None, seconds: float, least: int = 3) -> dict[str, dict[str, float]]:
    """Measure DACBench's environment beside the bare loop, in its own interpreter.

    :param python: that interpreter
    :return: figures of the modes ``epoch`` and ``batch``, as :func:`benchmarks.dacbench_steps.compare` gives them
    :raises InvalidSettingError: if there is no such interpreter, or DACBench cannot be run there; says how to make one
    """
    if not python:
        raise InvalidSettingError(f"No interpreter with DACBench was given. {HOW_TO}")
    found = shutil.which(python)
    if found is None:
        raise InvalidSettingError(f"{python!r} is no interpreter. {HOW_TO}")
    with tempfile.TemporaryDirectory() as folder:
        write_problem(task, Path(folder))
        command = [found, dacbench_steps.__file__, folder, "--batch-size", str(task.batch_size)]
        command += ["--seconds", str(seconds), "--least", str(least)]
        environment = os.environ | _KEEP_MEMORY | {"OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InvalidSettingError(f"DACBench does not run in {python!r} ({last}). {HOW_TO}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def show(label: str, figures: dict[str, float]) -> None:
    """Print one environment's line."""
    name = f"{label}, {figures['updates_per_decision']:.2f} updates a decision"
    print(
        f"    {name:50s} {figures['decisions_per_second']:8.1f} decisions/s {figures['fraction']:6.3f} of the bare loop"
        f" ({figures['low']:.3f} to {figures['high']:.3f}; its {figures['bare_updates_per_second']:.0f} updates/s)",
        flush=True,
    )


def measure(task: Task, python: str | None, seconds: float, places: int = TOGETHER, least: int = 3) -> None:
    """Measure and print one task; where DACBench cannot be run, one line says why."""
    print(f"{task.name}, batch {task.batch_size}, {OPTIMIZER}")
    try:
        theirs = dacbench(task, python, seconds, least)
    except InvalidSettingError as error:
        print(f"  {error}", flush=True)
        theirs = {}
    a_pass = len(task.training_data().train) // task.batch_size
    for mode, updates in ((None, None), ("epoch", a_pass), ("batch", 1)):
        print("  default settings" if mode is None else f"  equal updates a decision: {updates}")
        show("one run alone", ours(task, 1, updates, seconds, least))
        show(f"{places} runs together", ours(task, places, updates, seconds, least))
        shown = mode or "epoch"
        if shown in theirs:
            show(f"DACBench, {shown} mode", theirs[shown])


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["digits_mlp", "digits_cnn"])
    parser.add_argument("--dacbench", metavar="PYTHON", default=os.environ.get(VARIABLE), help=f"or set {VARIABLE}")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each figure, or three episodes if longer")
    parser.add_argument("--runs", type=int, default=TOGETHER, help="runs trained together")
    args = parser.parse_args()
    single_thread()
    for task in args.tasks:
        measure(get_task(task), args.dacbench, args.seconds, args.runs)


if __name__ == "__main__":
    main()
