"""Compare controllers: ``python evaluate.py [name=... task=[...] controller=[...] policy=[...] seeds=...]``.

Or run a whole suite of comparisons: ``python evaluate.py suite=evidence policy=FOLDER``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from agents.controllers import Controller, make_controllers
from agents.evaluation.comparison import Line, compare, hindsight
from agents.evaluation.evidence import Evidence, evidence
from agents.evaluation.protocol import Evaluation, EvaluationConfig, evaluate
from agents.evaluation.results_cache import ResultsCache
from agents.evaluation.shares import LEGEND as SHARES_LEGEND
from agents.evaluation.shares import Shares, shares, shares_tables, write_shares
from agents.evaluation.suite import Suite, prepare
from agents.evaluation.sweep import RunCheckpoints
from agents.evaluation.transfer import LEGEND, Cell, transfer, transfer_tables, write_transfer
from agents.reports import wandb_report
from agents.reports.controller_figures import Compared
from agents.reports.evidence_report import claims_table, evidence_markdown, write_evidence, write_part
from agents.reports.files import tables, write_results
from agents.reports.kinds import WANDB, chosen_reports, command, write_reports
from agents.runtime.command import launch, plain, require_device, use_data_root
from agents.runtime.output_folder import output_folder
from agents.runtime.progress import ProgressBar
from agents.runtime.settings import build
from agents.runtime.stopping import stopping_at_once
from agents.trackers import TrackerConfig
from agents.trackers.evaluation import EvaluationTracker
from agents.training.train import versions
from envs.tasks import get_task

_OUTSIDE_PROTOCOL = ("name", "task", "controller", "policy", "data_root", "cache", "suite", "report", "tracker")


def run(config: DictConfig) -> Evaluation | Evidence:
    """Evaluate as the configuration says, a suite if it names one."""
    content = plain(config)
    settings = build(EvaluationConfig, {key: value for key, value in content.items() if key not in _OUTSIDE_PROTOCOL})
    suite = build(Suite, content["suite"], "suite")
    if WANDB in chosen_reports(content["report"]):  # before any run
        wandb_report.check(_trackers(content), content["name"])
    use_data_root(content["data_root"])
    require_device(settings.device, "device", settings.engine)
    return run_suite(content, suite, settings) if suite.parts else run_comparison(content, settings)


def run_suite(content: dict[str, Any], suite: Suite, settings: EvaluationConfig) -> Evidence:
    """Run a suite, print its promises and write its evidence under outputs/NAME.

    :param content: the configuration
    :param settings: its protocol, for what the suite's parts leave open
    """
    parts = prepare(suite, settings, content["task"], content["controller"])
    about = {"config": content, "versions": dict(versions())}
    reports = chosen_reports(content["report"])
    console, results, compared = Console(), [], []
    with _place(content) as folder, _tracked(content, folder) as tracked, stopping_at_once():
        cache, checkpoints = _kept(content, folder, settings)
        for part in parts:
            names = ", ".join(c.name for c in part.controllers), ", ".join(t.name for t in part.tasks)
            console.print(f"{part.name}: {names[0]} on {names[1]}.")
            with ProgressBar(part.name, "training runs", console) as bar:
                result = part.run(bar.update, cache, checkpoints)
            for name, why in result.left_out.items():
                console.print(f"{part.name}: {name} is left out. {why}", style="bold", markup=False)
            results.append(result)
            if result.evaluation is not None:
                place = folder / part.name
                lines, cells = compare(result.evaluation), transfer(result.evaluation, trained_on(part.controllers))
                standing = shares(result.evaluation) if result.evaluation.percents else []
                files = write_part(place, result, lines, standing, about)
                write_reports(reports, place, result.evaluation, lines, cells, about)
                pictures = [path for path in files if path.suffix == ".png"]
                compared.append(Compared(part.name, result.evaluation, lines, cells, part.protocol, standing, pictures))
            found = evidence(results)
            written = write_evidence(folder, results, found, about)  # what is known so far
        checkpoints.clear()
        console.print(claims_table(found.claims))
        for path in written:
            console.print(f"wrote {path}")
        methods = [controller for part in parts for controller in part.controllers]
        tables: dict[str, Sequence[Any]] = {
            "promises": found.claims,
            "standings": found.standings,
            "compute": found.compute,
        }
        tracked.keep(compared, methods, about, tables)
        _tell(console, content, folder, tracked, compared, evidence_markdown(results, found))
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
    console = Console()
    with _place(content) as folder, _tracked(content, folder) as tracked:
        console.print(f"Comparing {', '.join(c.name for c in controllers)} on {', '.join(t.name for t in tasks)}.")
        cache, checkpoints = _kept(content, folder, settings)
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
        pictures = [path for path in written if path.suffix == ".png"]
        written += write_reports(chosen_reports(content["report"]), folder, evaluation, lines, cells, about)
        _print_comparison(console, evaluation, lines, cells, standing)
        for path in written:
            console.print(f"wrote {path}")
        compared = [Compared("", evaluation, lines, cells, settings, standing, pictures)]
        tracked.keep(compared, controllers, about)
        _tell(console, content, folder, tracked, compared)
    return evaluation


def _print_comparison(
    console: Console, evaluation: Evaluation, lines: list[Line], cells: Sequence[Cell], standing: Sequence[Shares]
) -> None:
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
    if cells and (len({cell.policy for cell in cells}) > 1 or len({cell.task for cell in cells}) > 1):
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


def _trackers(content: Mapping[str, Any]) -> TrackerConfig:
    return build(TrackerConfig, content["tracker"], "tracker")


def _place(content: Mapping[str, Any]) -> AbstractContextManager[Path]:
    """Hold the folder of an evaluation while the block lasts."""
    return output_folder(content["name"], "evaluate")


def _kept(
    content: Mapping[str, Any], folder: Path, settings: EvaluationConfig
) -> tuple[ResultsCache | None, RunCheckpoints]:
    """Return where results of runs, and runs under way, are kept."""
    cache = ResultsCache(folder / "cache.jsonl") if content["cache"] else None
    return cache, RunCheckpoints(folder / "runs", settings.checkpoint)


def _tracked(content: dict[str, Any], folder: Path) -> closing[EvaluationTracker]:
    """Begin to track an evaluation, which ends with the block."""
    return closing(
        EvaluationTracker(_trackers(content), folder, content["name"], content | {"versions": dict(versions())})
    )


def _tell(
    console: Console,
    content: Mapping[str, Any],
    folder: Path,
    tracked: EvaluationTracker,
    parts: Sequence[Compared],
    evidence_text: str = "",
) -> None:
    """Write the W&B report if there is to be one, and say where everything is."""
    told = tracked.where()
    if WANDB in chosen_reports(content["report"]):
        config = tracked.config.wandb
        assert config is not None  # or it would have been refused before any run
        about = {"versions": versions(), "command": command()}
        facts = wandb_report.describe(parts, config, content["name"], about, evidence_text)
        console.print(f"wrote {wandb_report.write(folder, facts)}")
        told.append(wandb_report.publish(folder, config.mode))
    for line in told:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    launch("evaluate", run)
