"""Compare controllers: ``python evaluate.py [name=... task=[...] controller=[...] policy=[...] seeds=...]``.

Or run a whole suite of comparisons: ``python evaluate.py suite=evidence policy=FOLDER``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from agents.command import launch, plain, use_data_root
from agents.comparison import compare, hindsight
from agents.controllers import Controller, make_controllers
from agents.evaluation import Evaluation, EvaluationConfig, evaluate
from agents.evidence import Evidence, evidence
from agents.evidence_report import claims_table, write_evidence, write_part
from agents.progress import ProgressBar
from agents.report import prepare_folder, tables, write_results
from agents.reports import chosen_reports, write_reports
from agents.results_cache import ResultsCache
from agents.settings import build
from agents.shares import LEGEND as SHARES_LEGEND
from agents.shares import shares, shares_tables, write_shares
from agents.stopping import stopping_at_once
from agents.suite import Suite, prepare
from agents.sweep import RunCheckpoints
from agents.training import versions
from agents.transfer import LEGEND, transfer, transfer_tables, write_transfer
from envs.tasks import get_task

_OUTSIDE_PROTOCOL = ("name", "task", "controller", "policy", "data_root", "cache", "suite", "report")


def run(config: DictConfig) -> Evaluation | Evidence:
    """Evaluate as the configuration says, a suite if it names one."""
    content = plain(config)
    settings = build(EvaluationConfig, {key: value for key, value in content.items() if key not in _OUTSIDE_PROTOCOL})
    suite = build(Suite, content["suite"], "suite")
    chosen_reports(content["report"])  # before any run
    use_data_root(content["data_root"])
    return run_suite(content, suite, settings) if suite.parts else run_comparison(content, settings)


def run_suite(content: dict[str, Any], suite: Suite, settings: EvaluationConfig) -> Evidence:
    """Run a suite, print its promises and write its evidence under outputs/NAME.

    :param content: the configuration
    :param settings: its protocol, for what the suite's parts leave open
    """
    parts = prepare(suite, settings, content["task"], content["controller"])
    folder = prepare_folder(Path("outputs") / content["name"])
    cache = ResultsCache(folder / "cache.jsonl") if content["cache"] else None
    checkpoints = RunCheckpoints(folder / "runs", settings.checkpoint)
    about = {"config": content, "versions": dict(versions())}
    reports = chosen_reports(content["report"])
    console, results = Console(), []
    with stopping_at_once():
        for part in parts:
            names = ", ".join(c.name for c in part.controllers), ", ".join(t.name for t in part.tasks)
            console.print(f"{part.name}: {names[0]} on {names[1]}.")
            with ProgressBar(part.name, "training runs", console) as bar:
                result = part.run(bar.update, cache, checkpoints)
            for name, why in result.left_out.items():
                console.print(f"{part.name}: {name} is left out. {why}", style="bold", markup=False)
            results.append(result)
            write_part(folder / part.name, result, about)
            if result.evaluation is not None:
                lines, cells = compare(result.evaluation), transfer(result.evaluation, trained_on(part.controllers))
                write_reports(reports, folder / part.name, result.evaluation, lines, cells, about)
            found = evidence(results)
            written = write_evidence(folder, results, found, about)  # what is known so far
    checkpoints.clear()
    console.print(claims_table(found.claims))
    for path in written:
        console.print(f"wrote {path}")
    return found


def trained_on(controllers: Sequence[Controller]) -> dict[str, str]:
    """Return what each policy among controllers was trained on, by the controller's name."""
    return {item.name: item.trained_on for item in controllers if hasattr(item, "trained_on")}


def run_comparison(content: dict[str, Any], settings: EvaluationConfig) -> Evaluation:
    """Evaluate, print the comparison and write it under outputs/NAME.

    :param content: the configuration
    :param settings: its protocol
    """
    tasks = [get_task(name, **changes) for name, changes in content["task"].items()]
    controllers = make_controllers(content["controller"])
    homes = trained_on(controllers)
    folder = prepare_folder(Path("outputs") / content["name"])
    cache = ResultsCache(folder / "cache.jsonl") if content["cache"] else None
    checkpoints = RunCheckpoints(folder / "runs", settings.checkpoint)
    console = Console()
    console.print(f"Comparing {', '.join(c.name for c in controllers)} on {', '.join(t.name for t in tasks)}.")
    with stopping_at_once(), ProgressBar("evaluating", "training runs", console) as bar:
        evaluation = evaluate(controllers, tasks, settings, bar.update, cache=cache, checkpoints=checkpoints)
    checkpoints.clear()
    lines, cells = compare(evaluation), transfer(evaluation, homes)
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
    written += write_reports(chosen_reports(content["report"]), folder, evaluation, lines, cells, about)
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
    if cells and (len(homes) > 1 or len(tasks) > 1):
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
