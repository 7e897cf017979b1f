"""Compare controllers: ``python evaluate.py [name=... task=[...] controller=[...] policy=[...] seeds=...]``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from agents.command import launch, plain, use_data_root
from agents.comparison import compare, hindsight
from agents.controllers import make_controllers
from agents.evaluation import Evaluation, EvaluationConfig, evaluate
from agents.progress import ProgressBar
from agents.report import prepare_folder, tables, write_results
from agents.reports import chosen_reports, write_reports
from agents.results_cache import ResultsCache
from agents.settings import build
from agents.shares import LEGEND as SHARES_LEGEND
from agents.shares import shares, shares_tables, write_shares
from agents.stopping import stopping_at_once
from agents.sweep import RunCheckpoints
from agents.training import versions
from agents.transfer import LEGEND, transfer, transfer_tables, write_transfer
from envs.tasks import get_task

_OUTSIDE_PROTOCOL = ("name", "task", "controller", "policy", "data_root", "cache", "report")


def run(config: DictConfig) -> Evaluation:
    """Evaluate as the configuration says, print the comparison and write it under outputs/NAME."""
    content = plain(config)
    settings = build(EvaluationConfig, {key: value for key, value in content.items() if key not in _OUTSIDE_PROTOCOL})
    reports = chosen_reports(content["report"])
    use_data_root(content["data_root"])
    tasks = [get_task(name, **changes) for name, changes in content["task"].items()]
    controllers = make_controllers(content["controller"])
    trained_on = {item.name: item.trained_on for item in controllers if hasattr(item, "trained_on")}
    folder = prepare_folder(Path("outputs") / config.name)
    cache = ResultsCache(folder / "cache.jsonl") if content["cache"] else None
    checkpoints = RunCheckpoints(folder / "runs", settings.checkpoint)
    console = Console()
    console.print(f"Comparing {', '.join(c.name for c in controllers)} on {', '.join(t.name for t in tasks)}.")
    with stopping_at_once(), ProgressBar("evaluating", "training runs", console) as bar:
        evaluation = evaluate(controllers, tasks, settings, bar.update, cache=cache, checkpoints=checkpoints)
    checkpoints.clear()
    lines, cells = compare(evaluation), transfer(evaluation, trained_on)
    standing = shares(evaluation) if evaluation.percents else []
    about = {
        "transfer": [asdict(cell) for cell in cells],
        "shares": [asdict(item) for item in standing],
        "config": content,
        "versions": dict(versions()),
    }
    written = write_results(folder, evaluation, lines, about)
    if cells:
        written += write_transfer(folder, cells)
    if standing:
        written += write_shares(folder, standing)
    written += write_reports(reports, folder, evaluation, lines, cells, about)
    for table in tables(lines):
        console.print(table)
    console.print(
        "lr: initial rate (schedules: tuned on the reward split; all: mean over a policy's; own: needs none)."
    )
    console.print("vs best: test loss over the best tuned schedule's. cost: updates one result takes, over the budget.")
    if standing:
        for table in shares_tables(standing):
            console.print(table)
        console.print(SHARES_LEGEND, highlight=False)
    if cells and (len(trained_on) > 1 or len(tasks) > 1):
        for table in transfer_tables(cells):
            console.print(table)
        console.print(LEGEND, highlight=False)
    chosen = hindsight(evaluation)
    for item in chosen:
        where = f" on {item.task}, {item.optimizer}, {item.budget} updates," if len(chosen) > 1 else ""
        console.print(
            f"Picked on the test split itself, which nobody may:{where} {item.controller} from {item.initial_lr:.2g} "
            f"has test loss {item.test_loss:.4f}.",
            highlight=False,
        )
    for path in written:
        console.print(f"wrote {path}")
    return evaluation


if __name__ == "__main__":
    launch("evaluate", run)
