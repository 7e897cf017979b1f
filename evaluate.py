"""Compare controllers: ``python evaluate.py [name=... task=[...] controller=[...] policy=... seeds=...]``."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from agents.command import launch, plain
from agents.controllers import make_controller
from agents.evaluation import Evaluation, EvaluationConfig, compare, evaluate, hindsight
from agents.progress import ProgressBar
from agents.report import prepare_folder, tables, write_results
from agents.settings import build
from agents.training import versions
from envs.tasks import get_task

_OUTSIDE_PROTOCOL = ("name", "task", "controller", "policy")


def run(config: DictConfig) -> Evaluation:
    """Evaluate as the configuration says, print the comparison and write it under outputs/NAME."""
    content = plain(config)
    settings = build(EvaluationConfig, {key: value for key, value in content.items() if key not in _OUTSIDE_PROTOCOL})
    tasks = [get_task(name, **changes) for name, changes in content["task"].items()]
    controllers = [make_controller(name, about) for name, about in content["controller"].items()]
    folder = prepare_folder(Path("outputs") / config.name)
    console = Console()
    console.print(f"Comparing {', '.join(c.name for c in controllers)} on {', '.join(t.name for t in tasks)}.")
    with ProgressBar("evaluating", "training runs", console) as bar:
        evaluation = evaluate(controllers, tasks, settings, bar.update)
    lines = compare(evaluation)
    written = write_results(folder, evaluation, lines, {"config": content, "versions": dict(versions())})
    for table in tables(lines):
        console.print(table)
    console.print("lr: initial rate (schedules: tuned on the reward split; all: mean over a policy's initial rates).")
    console.print("vs best: test loss over the best tuned schedule's. runs: training runs that one result costs.")
    for item in hindsight(evaluation):
        console.print(
            f"Picked on the test split itself, which nobody may: {item.controller} from {item.initial_lr:.2g} has "
            f"test loss {item.test_loss:.4f}.",
            highlight=False,
        )
    for path in written:
        console.print(f"wrote {path}")
    return evaluation


if __name__ == "__main__":
    launch("evaluate", run)
