"""The blocks of a W&B report: text in plain words, run sets of one evaluation, and panels on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from agents.trackers.evaluation import EVALUATE, REPORT

PLOTTED_SETTINGS = 12  # of a part; more would be slow to look at
_COLUMNS = ("test_loss_over_best", "far_from_best", "learned_nothing", "cost", "rollbacks", "time_over_schedules")
_FIGURES = {
    "test_loss_over_best": "test loss over the best tuned schedule's, geometric mean over settings",
    "far_from_best": "share of runs above twice the test loss of the schedule chosen on the reward split, or diverged",
    "learned_nothing": "share of runs that learned nothing, or diverged",
    "cost": "updates one result takes, over the budget",
    "time_over_schedules": "seconds an update, over the schedules'",
    "evaluations": "passes over the reward split a run",
    "rollbacks": "rollbacks a run",
}


@dataclass(frozen=True)
class ReportSetting:
    """A setting (task, optimizer, budget) of a part.

    :param key: as curves are named, see :meth:`agents.reports.controller_figures.Compared.key`
    :param title: in words
    :param error: what is drawn of the metric, ``test_error`` or ``test_metric``
    :param metric: the metric's name
    :param starts: names of the curves of rates from each initial rate
    """

    key: str
    title: str
    error: str
    metric: str
    starts: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportPart:
    """A comparison.

    :param name: empty where there is but one
    :param sentences: its summary
    :param settings: in the order they were run in
    :param comparison: its table, in Markdown
    :param shares: Top-1 and Top-3 shares in Markdown; empty where budgets were no percentages
    :param transfer: the matrix of transfer in Markdown; empty without policies
    :param pictures: names that its pictures are kept under
    """

    name: str
    sentences: tuple[str, ...]
    settings: tuple[ReportSetting, ...]
    comparison: str
    shares: str = ""
    transfer: str = ""
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportFacts:
    """All that a report is built from.

    :param name: of the evaluation
    :param project: where its runs are
    :param entity: whose; None: the account's own
    :param group: of its runs
    :param parts: its comparisons
    :param evidence: promises and standings of a suite, in Markdown; empty without one
    :param command: which made it; empty if not known
    :param versions: of the code
    """

    name: str
    project: str
    entity: str | None
    group: str
    parts: tuple[ReportPart, ...]
    evidence: str = ""
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def blocks(wr: ModuleType, facts: ReportFacts, entity: str) -> list[Any]:
    """Return the blocks of a report.

    :param wr: the package's module ``reports.v2``
    :param entity: whose project the runs are in; empty: the project of the report itself, with no request to W&B
    """
    grids = _Grids(wr, facts, entity)
    found = [wr.TableOfContents(), *_controllers(wr, grids)]
    if facts.evidence:
        found += [wr.H1("Promises and standings"), wr.MarkdownBlock(facts.evidence)]
    for part in facts.parts:
        found += _part(wr, grids, part)
    found += [wr.H1("How it was made")]
    if facts.command:
        found.append(wr.CodeBlock(facts.command, language="markdown"))
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return [*found, wr.P(f"Versions: {versions}.")]


class _Grids:
    """Panels on the runs of an evaluation."""

    def __init__(self, wr: ModuleType, facts: ReportFacts, entity: str) -> None:
        self._wr, self._facts, self._entity = wr, facts, entity

    def of(self, kind: str, panels: Sequence[Any], columns: Sequence[str] = (), hidden: bool = True) -> Any:
        """Return panels on the runs of one kind.

        :param columns: figures shown in the table of runs
        :param hidden: whether readers see no table of runs
        """
        group = self._facts.group
        runs = self._wr.Runset(
            entity=self._entity,
            project=self._facts.project,
            name="controllers" if kind == EVALUATE else "summary",
            filters=f"Metric('Group') == '{group}' and Metric('JobType') == '{kind}'",
            visible_columns=["run:displayName", *(f"summary:{name}" for name in columns)] if columns else [],
        )
        return self._wr.PanelGrid(runsets=[runs], panels=list(panels), hide_run_sets=hidden)


def _controllers(wr: ModuleType, grids: _Grids) -> list[Any]:
    bars = [
        wr.BarPlot(title=title, metrics=[wr.SummaryMetric(name)], layout=wr.Layout(w=12, h=7))
        for name, title in _FIGURES.items()
    ]
    return [
        wr.H1("Controllers, cost and overhead"),
        wr.P(
            "A bar a controller, over all settings (task, optimizer, budget). Whatever is tuned counts at the initial "
            "rate that was chosen on the reward split, a policy with all its initial rates. The cost of a tuned "
            "controller counts every rate that was tried."
        ),
        grids.of(EVALUATE, bars, _COLUMNS, hidden=False),
    ]


def _part(wr: ModuleType, grids: _Grids, part: ReportPart) -> Iterator[Any]:
    yield wr.H1(part.name or "Summary")
    for sentence in part.sentences:
        yield wr.P(sentence)
    plotted = part.settings[:PLOTTED_SETTINGS]
    if len(plotted) < len(part.settings):
        yield wr.P(f"Plots are of the first {len(plotted)} of {len(part.settings)} settings; tables have all.")
    yield wr.H2("Learning rates and training losses")
    yield wr.P(
        "Over the share of the budget spent: geometric means over seeds, of a policy over its initial rates too; "
        "below, from each initial rate."
    )
    for words in ("learning rate", "training loss"):
        curve = words.replace(" ", "_")
        yield grids.of(EVALUATE, [_over_time(wr, item, [f"{curve}/{item.key}"], words) for item in plotted])
    if any(item.starts for item in plotted):
        yield grids.of(
            EVALUATE, [_over_time(wr, item, item.starts, "learning rate") for item in plotted if item.starts]
        )
    yield wr.H2("Losses and errors against the initial rate")
    yield wr.P("At the end of training, on the test split, means over seeds. A diverged point is left out.")
    yield grids.of(EVALUATE, [plot for item in plotted for plot in _ends(wr, item)])
    yield _pictures(wr, grids, [name for name in part.pictures if "transfer" not in name])
    yield wr.MarkdownBlock(part.comparison)
    if part.shares:
        yield wr.H2("Top-1 and Top-3 shares")
        yield wr.MarkdownBlock(part.shares)
        yield grids.of(REPORT, [_table(wr, "shares")])
    if part.transfer:
        yield wr.H2("Transfer")
        yield wr.MarkdownBlock(part.transfer)
        heat_maps = [name for name in part.pictures if "transfer" in name]
        panels = [wr.MediaBrowser(media_keys=heat_maps, layout=wr.Layout(w=24, h=12))] if heat_maps else []
        yield grids.of(REPORT, [*panels, _table(wr, "transfer")])


def _over_time(wr: ModuleType, setting: ReportSetting, curves: Sequence[str], words: str) -> Any:
    return wr.LinePlot(
        title=setting.title,
        x="progress",
        y=list(curves),
        log_y=True,
        title_x="share of the budget spent",
        title_y=words,
        layout=wr.Layout(w=12, h=9),
        smoothing_factor=0,
    )


def _ends(wr: ModuleType, setting: ReportSetting) -> list[Any]:
    plain = setting.metric if setting.error == "test_metric" else "test error"
    return [
        wr.LinePlot(
            title=f"{setting.title}: {words}",
            x="initial_lr",
            y=[f"{name}/{setting.key}"],
            log_x=True,
            log_y=name != "test_metric",
            title_x="initial learning rate",
            title_y=words,
            layout=wr.Layout(w=12, h=9),
            smoothing_factor=0,
        )
        for name, words in (("test_loss", "test loss"), (setting.error, plain))
    ]


def _pictures(wr: ModuleType, grids: _Grids, names: Sequence[str]) -> Any:
    return grids.of(REPORT, [wr.MediaBrowser(media_keys=list(names), num_columns=1, layout=wr.Layout(w=24, h=14))])


def _table(wr: ModuleType, name: str) -> Any:
    return wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=24, h=10))
