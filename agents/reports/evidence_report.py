"""The files of a suite: evidence.md and evidence.json, and a folder for each part."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from agents.evaluation.evidence import Evidence, OpenLoop, Standing
from agents.evaluation.promises import Claim
from agents.evaluation.suite import PartResult
from agents.evaluation.transfer import LONGEST
from agents.reports.files import plain_json
from agents.reports.tables import markdown_table, terminal_table
from envs.trivial import NOTHING
from gns.tools.console import printable

_PROMISE = {
    "in_distribution": "in distribution",
    "held_out": "held out, from scratch",
    "fine_tuning": "fine-tuning",
    "rex": "REX protocol",
    "long": "longer budgets",
}
_LEGEND = (
    "*ratio*: geometric mean over settings (task, optimizer, budget) of the mean test loss over that of the best tuned "
    "schedule, with its 95 % bootstrap interval over seeds; *worst*: the largest. *log-ratio*: interquartile mean over "
    "settings and seeds of ln(test loss / the best tuned schedule's with that seed). *Top-1/3*: percent of settings, "
    "among schedules and policies, by the task's metric and by the test loss. *learned nothing*: runs with a test loss "
    f"that is not finite or at least {NOTHING:g} times that of a model that has learned nothing. *cost*: updates one "
    "result takes, over the budget; *evaluations*: passes over the reward split. What is tuned counts at its tuned "
    "rate, a policy with all its initial rates."
)


def write_evidence(folder: Path, results: Sequence[PartResult], found: Evidence, about: dict[str, Any]) -> list[Path]:
    """Write results.csv (all parts in one table), evidence.md and evidence.json; return their paths.

    :param about: what made the results: configuration, versions
    """
    table, text, data = folder / "results.csv", folder / "evidence.md", folder / "evidence.json"
    runs = [result.evaluation.runs.assign(part=result.name) for result in results if result.evaluation is not None]
    if runs:
        together = pd.concat(runs, ignore_index=True)
        together[["part", *together.columns.drop("part")]].to_csv(table, index=False)
    text.write_text(evidence_markdown(results, found), encoding="utf-8")
    content = plain_json({**asdict(found), **about})
    data.write_text(json.dumps(content, indent=2, allow_nan=False), encoding="utf-8")
    return [*([table] if runs else []), text, data]


def claims_table(claims: Sequence[Claim]) -> Table:
    """Return the promises as a rich table."""
    cells = [[row[place] for place in (0, 1, 2, 3, 4, 5, 7)] for row in map(_claim_cells, claims)]
    headings = ("promise", "policy", "what", "figure", "95 %", "to be", "verdict")
    return terminal_table("promises", headings, cells, left=(0, 1, 2, 6))


def evidence_markdown(results: Sequence[PartResult], found: Evidence) -> str:
    """Return the report in Markdown: promises first, then parts, failures and computation."""
    policies = {name: tasks for result in results for name, tasks in result.policies.items()}
    lines = ["# Evidence", ""]
    lines += [f"- Policy `{name}` was trained on: {printable(tasks, LONGEST)}." for name, tasks in policies.items()]
    lines += ["", "## Promises", ""]
    headings = ["promise", "policy", "what", "figure", "95 %", "to be", "settings", "verdict", "note"]
    lines += markdown_table(headings, [_claim_cells(claim) for claim in found.claims], left=(0, 1, 2, 7, 8))
    lines += ["A verdict is of the figure; its interval may reach beyond the threshold.", ""]
    if found.left_out:
        lines += ["## Left out", ""]
        lines += [f"- {part}: `{task}`. {why}" for part, task, why in found.left_out] + [""]
    for result in results:
        lines += _part_lines(result, [item for item in found.standings if item.part == result.name])
    lines += [_LEGEND, ""]
    if found.overall:
        lines += [
            "## Overall",
            "",
            "Parts that promise something and have all the schedules; methods in all of them.",
            "",
        ]
        rows = [
            [
                item.controller,
                _number(item.log_ratio),
                _interval(item.low, item.high),
                f"{item.learned_nothing}/{item.runs}",
            ]
            for item in found.overall
        ]
        lines += markdown_table(["controller", "log-ratio", "95 %", "learned nothing"], rows)
    if found.open_loops:
        lines += ["## Does the state matter?", ""]
        lines += [
            "A policy's rates on other seeds' runs, applied open loop: ln(test loss / the policy's with that seed and "
            "initial rate), interquartile mean. Above 0 the policy gains by looking at the run. Open loop, updates "
            "that the guard undid are made for good; *calm*: initial rates from which no run was rolled back.",
            "",
        ]
        rows = [_loop_cells(item) for item in found.open_loops]
        lines += markdown_table(
            ["part", "policy", "control", "rates", "log-ratio", "95 %", "runs"], rows, left=(0, 1, 2, 3)
        )
    lines += ["## Failures", ""]
    lines += [f"- {line}" for line in found.failures] or ["No run was lost."]
    lines += ["", "## Compute", ""]
    rows = [
        [item.part, str(item.runs), str(item.updates), str(item.search_updates), f"{item.seconds:.0f}"]
        for item in found.compute
    ]
    lines += markdown_table(["part", "runs", "updates", "search updates", "seconds"], rows)
    lines += ["Seconds are those of training, summed over processes, without the evaluation at the end.", ""]
    return "\n".join(lines)


def _part_lines(result: PartResult, standings: Sequence[Standing]) -> list[str]:
    lines = [f"## {result.name}", ""]
    if result.evaluation is None:
        return [*lines, "Not run: the data of none of its tasks were found.", ""]
    runs, part = result.evaluation.runs, result.part
    about = [
        "held out (neither trained nor selected on)" if part.held_out else "in distribution",
        f"tasks {', '.join(f'`{name}`' for name in runs.task.unique())}",
        f"optimizers {', '.join(runs.optimizer.unique())}",
        f"budgets {', '.join(map(str, sorted(runs.budget.unique())))} updates",
        f"{result.protocol.seeds} seeds",
    ]
    if result.protocol.relative_rates:
        factors = ", ".join(f"{factor:g}" for factor in result.protocol.relative_rates)
        about.append(f"policies from {factors} times the tuned rate of the schedule that is best on the reward split")
    headings = ["controller", "ratio", "95 %", "worst", "log-ratio", "95 %", "Top-1/3, metric", "Top-1/3, loss"]
    headings += ["learned nothing", "cost", "evaluations"]
    return [
        *lines,
        "; ".join(about) + ".",
        "",
        *markdown_table(headings, [_standing_cells(item) for item in standings]),
    ]


def _standing_cells(item: Standing) -> list[str]:
    return [
        item.controller,
        _number(item.ratio),
        _interval(item.low, item.high),
        _number(item.worst),
        _number(item.log_ratio),
        _interval(item.log_low, item.log_high),
        _shares(item.top),
        _shares(item.top_loss),
        f"{item.learned_nothing}/{item.runs}",
        f"{item.cost:.1f}",
        f"{item.evaluations:.1f}",
    ]


def _loop_cells(item: OpenLoop) -> list[str]:
    return [
        item.part,
        item.policy,
        item.control,
        "calm" if item.calm else "all",
        _number(item.log_ratio),
        _interval(item.low, item.high),
        str(item.runs),
    ]


def _claim_cells(claim: Claim) -> list[str]:
    return [
        _PROMISE[claim.promise],
        claim.policy,
        claim.statement,
        _number(claim.figure),
        _interval(claim.low, claim.high),
        f"{claim.comparison} {claim.threshold:g}",
        str(claim.settings),
        claim.verdict,
        claim.note,
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value + 0.0:.3f}"


def _interval(low: float, high: float) -> str:
    return "-" if math.isnan(low) or math.isnan(high) else f"{_number(low)} to {_number(high)}"


def _shares(shares: tuple[float, float]) -> str:
    return "/".join("-" if math.isnan(share) else f"{100 * share:.0f}" for share in shares)
