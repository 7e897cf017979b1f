"""How much of a sweep is done, by what its runs cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agents.evaluation.sweep import Job
from agents.runtime.progress import Work

Kind = tuple[str, str, int]  # task, controller, budget


class Workload:
    """The training runs of a sweep: those known before, those made, and those to come.

    A run is taken to cost so many seconds an update as the runs of its task and controller did so far; where there are
    none, as those of its task; else as all.

    :param progress: told after every run
    """

    def __init__(self, progress: Callable[[Work], None]) -> None:
        self._progress = progress
        self._known = 0
        self._made: Counter[Kind] = Counter()
        self._left: Counter[Kind] = Counter()
        self._expected: Counter[Kind] = Counter()
        self._spent: dict[tuple[str, ...], list[float]] = {}  # seconds and updates of (task, controller), (task,), ()

    def expect(self, kinds: Iterable[Kind]) -> None:
        """Count runs that will be needed; the next :meth:`add` takes their place."""
        self._expected.update(kinds)

    def add(self, jobs: Iterable[Job], in_place: bool = False) -> None:
        """Count runs to come.

        :param in_place: whether they are those that were expected
        """
        if in_place:
            self._expected.clear()
        self._left.update(map(_kind, jobs))

    def done(self, job: Job, row: Mapping[str, Any], trained: bool) -> None:
        """Note a run that is done.

        :param row: its result
        :param trained: whether it was made now, and not known before
        """
        kind = _kind(job)
        self._left[kind] -= 1
        if trained:
            self._made[kind] += 1
        else:
            self._known += 1
        if "failed" not in row and row["seconds"] > 0.0:
            for known in (kind[:2], kind[:1], ()):
                spent = self._spent.setdefault(known, [0.0, 0.0])
                spent[0] += row["seconds"]
                spent[1] += job.episode.budget
        self._progress(self._work())

    def _work(self) -> Work:
        fresh, to_come = self._made.total(), self._left + self._expected
        done = self._known + fresh
        return Work(done, done + to_come.total(), fresh, self._cost(self._made), self._cost(to_come))

    def _cost(self, runs: Mapping[Kind, int]) -> float:
        cost = 0.0
        for kind, count in runs.items():
            seconds, updates = next(
                (self._spent[known] for known in (kind[:2], kind[:1], ()) if known in self._spent), (1.0, 1.0)
            )
            cost += count * kind[2] * seconds / updates
        return cost


def _kind(job: Job) -> Kind:
    return job.episode.task.name, job.controller.name, job.episode.budget
