"""Compare controllers: ``python evaluate.py [name=... task=[...] controller=[...] policy=[...] seeds=...]``.

Or run a whole suite of comparisons: ``python evaluate.py suite=evidence policy=FOLDER``.
"""

from __future__ import annotations

if __name__ == "__main__":  # before all imports: --help and --cfg need none of them, and they take seconds
    import sys
    from importlib import import_module

    from agents.runtime.command import launch

    launch("evaluate", lambda config: import_module("evaluate").run(config))
    sys.exit()

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from agents.controllers import Controller, make_controllers
from agents.evaluation.comparison import compare, hindsight
from agents.evaluation.evidence import Evidence, evidence
from agents.evaluation.protocol import EvaluationConfig, evaluate
from agents.evaluation.results import Evaluation
from agents.evaluation.results_cache import ResultsCache
from agents.evaluation.shares import shares
from agents.evaluation.suite import Suite, prepare
from agents.evaluation.sweep import RunCheckpoints
from agents.evaluation.transfer import transfer
from agents.evaluation.yardstick import yardstick
from agents.reports import wandb_report
from agents.reports.controller_figures import Compared
from agents.reports.evidence_report import claims_table, evidence_markdown, write_evidence
from agents.reports.files import NOTHING_LEGEND, tables, write_results
from agents.reports.kinds import WANDB, chosen_reports, command, write_reports
from agents.reports.parts import Parts
from agents.reports.pictures import draw_relative_rates, draw_settings
from agents.reports.shares_tables import LEGEND as SHARES_LEGEND
from agents.reports.shares_tables import shares_tables, write_shares
from agents.reports.transfer_matrix import LEGEND, transfer_tables, write_transfer
from agents.reports.worth_tables import write_worth
from agents.runtime.command import plain, require_device, use_data_root
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
    console, results, compared, report = Console(markup=False), [], [], Parts()
    with _place(content) as folder, _tracked(content, folder) as tracked, stopping_at_once():
        cache, checkpoints = _kept(content, folder, settings)
        for part in parts:
            names = ", ".join(c.name for c in part.controllers), ", ".join(t.name for t in part.tasks)
            console.print(f"{part.name}: {names[0]} on {names[1]}.")
            with ProgressBar(part.name, "training runs", console) as bar:
                result = part.run(bar.update, cache, checkpoints)
            for name, why in result.left_out.items():
                console.print(f"{part.name}: {name} is left out. {why}", style="bold")
            results.append(result)
            if result.evaluation is not None:
                made = _compared(part.name, result.evaluation, trained_on(part.controllers), part.protocol)
                compared.append(_write(report, folder / part.name, made, reports, about))
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
        report.write("trackers", tracked.keep, compared, methods, about, tables)
        words = evidence_markdown(results, found)
        report.write("W&B report", _tell, console, content, folder, tracked, compared, words)
    report.require_all(folder)
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
    console, report = Console(markup=False), Parts()
    with _place(content) as folder, _tracked(content, folder) as tracked:
        console.print(f"Comparing {', '.join(c.name for c in controllers)} on {', '.join(t.name for t in tasks)}.")
        cache, checkpoints = _kept(content, folder, settings)
        with stopping_at_once(), ProgressBar("evaluating", "training runs", console) as bar:
            evaluation = evaluate(controllers, tasks, settings, bar.update, cache=cache, checkpoints=checkpoints)
        checkpoints.clear()
        made = _compared("", evaluation, homes, settings)
        about = {
            "transfer": [asdict(cell) for cell in made.cells],
            "shares": [asdict(item) for item in made.shares],
            "config": content,
            "versions": dict(versions()),
        }
        made = _write(report, folder, made, chosen_reports(content["report"]), about)
        _print_comparison(console, made)
        for path in report.written:
            console.print(f"wrote {path}")
        report.write("trackers", tracked.keep, [made], controllers, about)
        report.write("W&B report", _tell, console, content, folder, tracked, [made])
    report.require_all(folder)
    return evaluation


def _compared(name: str, evaluation: Evaluation, homes: Mapping[str, str], protocol: EvaluationConfig) -> Compared:
    """Return the comparison of what was run, without pictures.

    :param homes: what each policy was trained on
    """
    standing = shares(evaluation) if evaluation.percents else []
    return Compared(name, evaluation, compare(evaluation), transfer(evaluation, homes), protocol, standing)


def _write(report: Parts, folder: Path, made: Compared, names: Sequence[str], about: dict[str, Any]) -> Compared:
    """Write the files of one comparison, a part each, and return it with its pictures.

    :param names: of further reports
    :param about: what made the results
    """
    folder.mkdir(parents=True, exist_ok=True)
    evaluation, where = made.evaluation, f" of {made.name}" if made.name else ""
    report.write(f"results{where}", write_results, folder, evaluation, made.lines, about)
    drawn = report.write(f"pictures{where}", draw_settings, folder, evaluation)
    if made.name:
        path = folder / "relative_rates.png"
        drawn += report.write(f"relative rates{where}", draw_relative_rates, path, evaluation)
    if made.protocol.tuning_seeds > 1:
        report.write(f"worth in tries{where}", lambda: write_worth(folder, yardstick(evaluation)))
    if made.cells:
        drawn += report.write(f"transfer{where}", write_transfer, folder, made.cells)
    if made.shares:
        report.write(f"shares{where}", write_shares, folder, made.shares)
    report.write(f"reports{where}", write_reports, names, folder, evaluation, made.lines, made.cells, about)
    return replace(made, pictures=[path for path in drawn if path.suffix == ".png"])


def _print_comparison(console: Console, made: Compared) -> None:
    lines, cells, chosen = made.lines, made.cells, hindsight(made.evaluation)
    for table in tables(lines):
        console.print(table)
    console.print(
        "lr: initial rate (schedules: tuned on the reward split; all: mean over a policy's; own: needs none)."
    )
    console.print("vs best: test loss over the best tuned schedule's. cost: updates one result takes, over the budget.")
    if any(line.learned_nothing for line in lines):
        console.print(NOTHING_LEGEND, highlight=False)
    if made.shares:
        for table in shares_tables(made.shares):
            console.print(table)
        console.print(SHARES_LEGEND, highlight=False)
    if cells and (len({cell.policy for cell in cells}) > 1 or len({cell.task for cell in cells}) > 1):
        for table in transfer_tables(cells):
            console.print(table)
        console.print(LEGEND, highlight=False)
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
