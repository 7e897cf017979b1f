"""The summary of the HTML report in plain sentences, written from the figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from agents.evaluation.comparison import Line, by_setting
from agents.evaluation.results import FAR, Evaluation, Setting
from agents.evaluation.transfer import TransferCell
from agents.reports.html_tables import Column, Table, number, wrong_runs
from envs.trivial import NOTHING

CLOSE = 1.05  # times the best tuned schedule's loss that still counts as close
FEW_SEEDS = 5


def sentences(evaluation: Evaluation, lines: Sequence[Line], cells: Sequence[TransferCell]) -> list[str]:
    """Return the summary: what was compared, what was best, how policies stand, what went wrong."""
    said = [_compared(evaluation), *_best(lines), *_policies(lines, cells), *_wrong(evaluation, cells)]
    said += _nothing(evaluation, lines)
    seeds = evaluation.runs.seed.nunique()
    if seeds < FEW_SEEDS:
        runs = "one run" if seeds == 1 else f"only {seeds} runs"
        said.append(f"Each figure is a mean of {runs}: too few to tell small differences from chance.")
    return said


def standing_table(lines: Sequence[Line]) -> Table:
    """Return what was best in each setting and how each policy stands there."""
    policies = list(dict.fromkeys(line.controller for line in lines if line.is_mean))
    rows = []
    for setting, own in by_setting(lines).items():
        contenders = _contenders(own)
        best = min(contenders, key=_loss)
        ratios = {line.controller: line.ratio for line in contenders}
        rows.append(
            [
                (", ".join(map(str, setting[:2])), None),
                number(setting[2], ",.0f"),
                (best.controller, None),
                number(best.test_loss),
                *(number(ratios.get(name, math.nan), ".3f") for name in policies),
            ]
        )
    columns = [
        Column("task, optimizer"),
        Column("budget", True),
        Column("lowest mean test loss"),
        Column("its loss", True),
    ]
    columns += [Column(f"{name} vs best schedule", True) for name in policies]
    return Table("What was best in each setting", columns, rows)


def _compared(evaluation: Evaluation) -> str:
    runs = evaluation.runs
    tasks, optimizers, budgets = (list(runs[name].unique()) for name in ("task", "optimizer", "budget"))
    controllers, seeds = runs.controller.nunique(), runs.seed.nunique()
    return (
        f"{_count(controllers, 'controller')} {'was' if controllers == 1 else 'were'} run on {_names(tasks, 'task')} "
        f"with {_names(optimizers, 'optimizer')}, for {_names(sorted(budgets), 'budget')} updates, with "
        f"{_count(seeds, 'seed')} each: {len(runs):,} training runs."
    )


def _best(lines: Sequence[Line]) -> list[str]:
    settings = by_setting(lines)
    if len(settings) == 1:
        (own,) = settings.values()
        ranked = sorted(_contenders(own), key=_loss)
        if not math.isfinite(ranked[0].test_loss):
            return ["No controller ended with a finite mean test loss."]
        said = [f"{_described(ranked[0])} has the lowest mean test loss, {_figures(ranked[0])}."]
        tuned = [line for line in ranked if not line.is_mean and not line.own_rate]
        if tuned and tuned[0] is not ranked[0] and math.isfinite(tuned[0].test_loss):
            said.append(f"Of what was tuned, {_described(tuned[0])} is the best, with {_figures(tuned[0])}.")
        return said
    winners = Counter(
        best.controller
        for best in (min(_contenders(own), key=_loss) for own in settings.values())
        if math.isfinite(best.test_loss)
    )
    counted = ", ".join(f"{name} in {count}" for name, count in winners.most_common())
    return (
        [f"Over {len(settings)} settings (task, optimizer, budget), the lowest mean test loss was of {counted}."]
        if counted
        else []
    )


def _policies(lines: Sequence[Line], cells: Sequence[TransferCell]) -> list[str]:
    said = []
    for name in dict.fromkeys(line.controller for line in lines if line.is_mean):
        means = [line for line in lines if line.controller == name and line.is_mean]
        single = [line for line in lines if line.controller == name and not line.is_mean]
        known = [line for line in means if not math.isnan(line.ratio)]
        if not known:
            said.append(f"There is no tuned schedule with a finite loss to compare {name} with.")
            continue
        ratios = np.array([line.ratio for line in known])
        rates = len({line.initial_lr for line in single})
        start = f"{name}, from {_count(rates, 'initial rate')} and with no tuning,"
        if len(known) == 1:
            said.append(
                f"{start} has a mean test loss of {known[0].test_loss:.4f}, {_relative(ratios[0])} the best tuned "
                "schedule's."
            )
        else:
            said.append(
                f"{start} is better than the best tuned schedule, or within {CLOSE - 1:.0%} of it, in "
                f"{(ratios <= CLOSE).sum()} of {len(ratios)} settings; its mean test loss over the schedule's is "
                f"{ratios.min():.3f} at best, {np.median(ratios):.3f} in the median and "
                f"{f'{ratios.max():.3f}' if math.isfinite(ratios.max()) else 'infinite'} at worst."
            )
        worst = max((line for line in single if not math.isnan(line.ratio)), key=lambda line: line.ratio)
        where = f" on {_words(worst.setting)}" if len(known) > 1 else ""
        said.append(f"From its worst single initial rate, {worst.initial_lr:.2g}{where}, it is {_ratio(worst.ratio)}.")
        said += [_paired(cell) for cell in cells if cell.policy == name and len(known) == 1]
        tuned = [line.cost for line in lines if not line.is_mean and line.controller != name and line.runs > 1]
        if tuned:
            said.append(
                f"A result of {name} takes {np.mean([line.cost for line in means]):.1f} times the budget in updates; "
                f"one of a tuned controller {np.mean(tuned):.1f} times, for the search of its rate."
            )
    return said


def _paired(cell: TransferCell) -> str:
    """The difference to the schedule that could have been chosen, seed by seed."""
    against = f"Against {cell.best} from {cell.best_lr:.2g}, the schedule chosen on the reward split,"
    if cell.learned_nothing == cell.best_learned_nothing == 1.0:
        return f"{against} there is nothing to compare: neither learned anything."
    if not math.isfinite(cell.regret):
        return f"{against} no difference can be given: a run diverged."
    change = f"{against} its test loss is {math.expm1(cell.regret):+.1%}"
    if not math.isfinite(cell.regret_low):
        return f"{change}."
    low, high = math.expm1(cell.regret_low), math.expm1(cell.regret_high)
    verdict = "worse" if low > 0 else "better" if high < 0 else "no difference is shown"
    return f"{change}, with a 95 % interval over seeds from {low:+.1%} to {high:+.1%}: {verdict}."


def _wrong(evaluation: Evaluation, cells: Sequence[TransferCell]) -> list[str]:
    wrong, rolled = wrong_runs(evaluation), evaluation.runs.rollbacks
    failed, diverged = ((wrong.what == what).sum() for what in ("failed", "diverged"))
    said = f"{_count(failed, 'run')} failed and {diverged:,} diverged" if len(wrong) else "No run failed or diverged"
    back = f"{int(rolled.sum()):,} rollbacks in {_count((rolled > 0).sum(), 'run')}" if rolled.sum() else "no rollback"
    sentences = [f"{said}; there was {back}."]
    far = [f"{c.far_from_best:.0%} of {c.policy} on {_words(c.setting)}" for c in cells if c.far_from_best]
    if far:
        sentences.append(f"Runs far from the best, above {FAR:g} times its test loss or not finite: {_first(far)}.")
    return sentences


def _nothing(evaluation: Evaluation, lines: Sequence[Line]) -> list[str]:
    """Say which runs learned nothing, and where no controller learned anything."""
    groups = {setting: _contenders(own) for setting, own in by_setting(lines).items()}
    lost = [_words(setting) for setting, own in groups.items() if all(line.learned_nothing == 1.0 for line in own)]
    some = [
        f"{line.learned_nothing:.0%} of {line.controller} on {_words(setting)}"
        for setting, own in groups.items()
        for line in own
        if line.learned_nothing and _words(setting) not in lost
    ]
    said = []
    if some:
        bar = f"at least {NOTHING:g} times the loss of a model that has learned nothing, or not finite"
        said.append(f"Runs that learned nothing, their test loss being {bar}: {_first(some)}.")
    if lost:
        said.append(f"No controller learned anything on {_first(lost)}: there, none is better than another.")
    return said


def _words(setting: Setting) -> str:
    return f"{setting.task} with {setting.optimizer}, {setting.budget:,} updates"


def _first(items: Sequence[str], most: int = 6) -> str:
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")


def _contenders(lines: Sequence[Line]) -> list[Line]:
    """Return one line for each controller: of a policy its mean, since its best rate is not known before testing."""
    means = {line.controller for line in lines if line.is_mean}
    return [line for line in lines if line.controller not in means or line.is_mean]


def _loss(line: Line) -> float:
    return math.inf if math.isnan(line.test_loss) else line.test_loss


def _described(line: Line) -> str:
    if line.own_rate:
        return line.controller
    return f"{line.controller}{', a mean over its initial rates,' if line.is_mean else f' from {line.initial_lr:.2g}'}"


def _figures(line: Line) -> str:
    interval = f" (95 % interval {line.low:.4f} to {line.high:.4f})" if math.isfinite(line.low) else ""
    return f"{line.test_loss:.4f}{interval}"


def _relative(ratio: float) -> str:
    if not math.isfinite(ratio):
        return "infinitely above"
    change = abs(ratio - 1.0)
    return "equal to" if change < 0.0005 else f"{change:.1%} {'above' if ratio > 1 else 'below'}"


def _ratio(value: float) -> str:
    return f"{value:.2f} times the best tuned schedule's" if math.isfinite(value) else "diverged"


def _names(values: Sequence[object], what: str) -> str:
    if len(values) > 4:
        return f"{len(values)} {what}s"
    return " and ".join([", ".join(map(str, values[:-1])), str(values[-1])]) if len(values) > 1 else str(values[0])


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
