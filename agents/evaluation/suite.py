"""Suites: several evaluations, each with its own tasks, controllers and protocol, run by one command.

A suite is data (``configs/suite``): parts by name. Tasks and controllers come from the groups ``task`` and
``controller`` of the same configuration; a part picks some of them by name, and may change settings of a task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from agents.controllers import Controller, PolicyController, make_controllers
from agents.evaluation.protocol import EvaluationConfig, Grid, InitialRates, evaluate, starts_anywhere
from agents.evaluation.replays import with_replays
from agents.evaluation.results import Evaluation
from agents.evaluation.results_cache import ResultsCache
from agents.evaluation.sweep import RunCheckpoints
from agents.runtime.progress import Work
from envs.tasks import Task, get_task
from envs.tasks.hub import DataNotFoundError
from gns.errors import InvalidSettingError, UnknownNameError, require_positive

PROMISES = ("in_distribution", "held_out", "fine_tuning", "rex", "long")


@dataclass(frozen=True)
class Part:
    """One evaluation of a suite. A setting of the protocol that is None is taken from the command.

    :param tasks: by name in the group ``task``, settings that are changed here
    :param controllers: names in the group ``controller``
    :param held_out: whether policies were neither trained nor selected on these tasks
    :param promise: what the part decides on, one of :data:`PROMISES`; None: nothing
    :param replays: whether the rates that policies took are applied open loop to other runs too
    :param longer: the budget as a multiple of the largest that the policies were trained on
    :param optimizers: see :class:`agents.evaluation.protocol.EvaluationConfig`, as all that follow
    """

    tasks: dict[str, dict[str, Any]]
    controllers: tuple[str, ...]
    held_out: bool = True
    promise: str | None = None
    replays: bool = False
    longer: float | None = None
    optimizers: tuple[str, ...] | None = None
    budgets: tuple[int, ...] | None = None
    budget_percents: tuple[float, ...] | None = None
    seeds: int | None = None
    tuning_seeds: int | None = None
    grids: dict[str, Grid | None] | None = None
    widen: int | None = None
    initial_rates: dict[str, InitialRates | None] | None = None
    relative_rates: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.tasks or not self.controllers:
            raise InvalidSettingError(
                "A part of a suite has no tasks or no controllers; expected at least one of each."
            )
        if self.promise is not None and self.promise not in PROMISES:
            raise UnknownNameError("promise", self.promise, PROMISES)
        if self.longer is not None:
            require_positive("longer", self.longer)
            if self.budgets or self.budget_percents:
                raise InvalidSettingError(
                    f"longer is {self.longer} and there are budgets beside it; expected one of the two."
                )

    def protocol(self, command: EvaluationConfig, trained_budget: int | None) -> EvaluationConfig:
        """Return the command's protocol, changed by the settings of this part.

        :param trained_budget: the largest budget of the policies' training, in updates
        :raises InvalidSettingError: if ``longer`` is given and that budget is not known, or replays of one seed alone
            are asked for
        """
        known = {item.name for item in fields(EvaluationConfig)}
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name in known}
        config = replace(command, **{name: value for name, value in own.items() if value is not None})
        if self.longer is not None:
            if trained_budget is None:
                raise InvalidSettingError(
                    "No policy says which budgets it was trained on; expected suite.trained_budget, in updates."
                )
            config = replace(config, budgets=(round(self.longer * trained_budget),), budget_percents=None)
        if self.replays and config.seeds < 2:
            raise InvalidSettingError("replays are asked for with 1 seed; expected at least 2, or replays: false.")
        return config


@dataclass(frozen=True)
class Suite:
    """Parts by name, in the order they are run in.

    :param parts: none: no suite
    :param trained_budget: the largest budget that the policies were trained on, in updates; None: the
        largest that a policy names
    """

    parts: dict[str, Part] = field(default_factory=dict)
    trained_budget: int | None = None

    def __post_init__(self) -> None:
        for name in self.parts:
            if not re.fullmatch(r"[\w-]+", name):
                raise InvalidSettingError(
                    f"A part of the suite is named {name!r}; expected letters, digits, - and _: a folder is named so."
                )
        promises = [part.promise for part in self.parts.values() if part.promise]
        if len(set(promises)) < len(promises):
            raise InvalidSettingError(f"Promises of the suite's parts are {promises}; expected each once.")
        if self.trained_budget is not None:
            require_positive("suite.trained_budget", self.trained_budget)


@dataclass
class PartResult:
    """The results of a part.

    :param protocol: as it was run
    :param evaluation: its runs; None where all its tasks were left out
    :param policies: names of the policies, and by name the tasks each was trained on (``unknown`` if it does not say)
    :param left_out: tasks whose data or weights were not found, and what was looked for
    """

    name: str
    part: Part
    protocol: EvaluationConfig
    evaluation: Evaluation | None
    policies: dict[str, str]
    left_out: dict[str, str]


@dataclass(frozen=True)
class PreparedPart:
    """A part whose settings have been checked: nothing has been loaded or run.

    :param tasks: with this part's settings
    """

    name: str
    part: Part
    protocol: EvaluationConfig
    tasks: list[Task]
    controllers: list[Controller]

    def run(
        self,
        progress: Callable[[Work], None] = lambda work: None,
        cache: ResultsCache | None = None,
        checkpoints: RunCheckpoints | None = None,
    ) -> PartResult:
        """Run it, without the tasks whose data were not found."""
        tasks, left_out = available(self.tasks)
        evaluation = None
        if tasks:
            shared = {"cache": cache, "checkpoints": checkpoints}
            before = Work(0, 0, 0, 0.0, 0.0)

            def first(work: Work) -> None:
                nonlocal before
                before = work
                progress(work)

            def further(work: Work) -> None:
                progress(work.after(before))

            evaluation = evaluate(self.controllers, tasks, self.protocol, first, **shared)  # type: ignore[arg-type]
            if self.part.replays:
                evaluation = with_replays(evaluation, self.controllers, tasks, self.protocol, further, **shared)  # type: ignore[arg-type]
        policies = {
            item.name: str(getattr(item, "trained_on", "unknown")) for item in self.controllers if starts_anywhere(item)
        }
        return PartResult(self.name, self.part, self.protocol, evaluation, policies, left_out)


def prepare(
    suite: Suite,
    command: EvaluationConfig,
    tasks: Mapping[str, Mapping[str, Any]],
    controllers: Mapping[str, Mapping[str, Any]],
) -> list[PreparedPart]:
    """Check all parts of a suite before any is run.

    :param command: the command's own protocol
    :param tasks: settings by name, the group ``task``
    :param controllers: settings by name, the group ``controller``
    :raises UnknownNameError: if a part names what is not in these groups
    :raises InvalidSettingError: if a setting has a value it cannot have
    """
    prepared = []
    for name, part in suite.parts.items():
        for kind, wanted, group in (("task", part.tasks, tasks), ("controller", part.controllers, controllers)):
            for item in wanted:
                if item not in group:
                    raise UnknownNameError(f"{kind} of suite.parts.{name} in the group {kind}", item, group)
        made = make_controllers({item: controllers[item] for item in part.controllers})
        budget = suite.trained_budget or trained_budget(made)
        protocol = part.protocol(command, budget)
        own = [get_task(item, **_merged(tasks[item], changes)) for item, changes in part.tasks.items()]
        _check(own, made, protocol)
        prepared.append(PreparedPart(name, part, protocol, own, made))
    return prepared


def _check(tasks: Sequence[Task], controllers: Sequence[Controller], protocol: EvaluationConfig) -> None:
    """Pass settings that every controller can run, as far as budgets are known before data are loaded."""
    for task in tasks:
        if task.budget is None and not protocol.budgets:
            continue
        for optimizer in protocol.optimizers or (task.optimizer,):
            for budget in protocol.budgets_of(task):
                for controller in controllers:
                    controller.check(task, optimizer, budget)


def trained_budget(controllers: Iterable[Controller]) -> int | None:
    """Return the largest budget in updates that policies say they were trained on; None if none does."""
    policies = [item for item in controllers if isinstance(item, PolicyController)]
    said = [str(policy.network.config.training.get("budgets", "")) for policy in policies]
    return max((int(number) for text in said for number in re.findall(r"(\d{1,12}) updates", text)), default=None)


def available(tasks: Sequence[Task]) -> tuple[list[Task], dict[str, str]]:
    """Return the tasks whose data and pretrained weights are to be had, and for the others what was looked for."""
    found, left_out = [], {}
    for task in tasks:
        try:
            task.training_data()
            task.new_model()
        except DataNotFoundError as error:
            left_out[task.name] = str(error)
        else:
            found.append(task)
    return found, left_out


def _merged(own: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A task's settings with a part's changes; of budget and epochs the part's takes the other's place."""
    merged = dict(own)
    if {"budget", "epochs"} & set(changes):
        merged = {key: value for key, value in merged.items() if key not in ("budget", "epochs")}
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if both else value
    return merged
