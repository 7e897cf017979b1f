"""Learning-rate finders: a short range test (Smith, 2017), a rule that reads a rate off it, a schedule from there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from agents.controllers.base import Controller, Session, new_run, require_bounds, require_share
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns.errors import InvalidSettingError, UnknownNameError, require_count
from gns.schedules.schedule import Schedule

_DIVERGED = 5.0  # times the lowest smoothed loss: the test ends there, as in torch-lr-finder
_SKIPPED = 10, 5  # points at either end of a curve that no rule reads, as in torch-lr-finder and fastai


@dataclass(frozen=True)
class RangeTest:
    """What a range test found.

    :param rates: (n,), rate of each update, ascending evenly in the logarithm
    :param losses: (n,), smoothed losses of these updates
    """

    rates: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class FinderController(Controller):
    """A schedule whose initial rate a range test finds; the test is undone, and its updates are counted as search.

    :param rule: name in :data:`RULES`
    :param profile: the schedule, see :mod:`gns.schedules.profiles`
    :param lowest: rate of the test's first update
    :param highest: rate of its last
    :param updates: of the test
    :param smoothing: weight of a new loss in the running mean; the default is that of torch-lr-finder
    :raises UnknownNameError: if there is no such rule or profile
    :raises InvalidSettingError: if a setting has a value it cannot have
    """

    kind: ClassVar[str] = "finder"
    own_rate: ClassVar[bool] = True

    rule: str = "steepest"
    profile: str = "cosine"
    lowest: float = 1e-7
    highest: float = 10.0
    updates: int = 100
    smoothing: float = 0.05

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UnknownNameError("rule of a finder", self.rule, RULES)
        require_bounds(self.lowest, self.highest)
        require_count("updates", self.updates)
        fewest = sum(_SKIPPED) + 2
        if self.updates < fewest:
            raise InvalidSettingError(f"updates is {self.updates}; expected {fewest} or more for a range test.")
        require_share("1 - smoothing", 1.0 - self.smoothing)
        Schedule(self.profile)

    def start(self, episode: Episode) -> Session:
        """Begin a training run."""
        return _FinderSession(self, new_run(episode), episode.budget)


class _FinderSession(Session):
    def __init__(self, finder: FinderController, run: TrainingRun, budget: int) -> None:
        super().__init__(run, budget)
        self._finder, self._function = finder, Schedule(finder.profile).function
        self._initial = math.nan

    def before_gradient(self) -> None:
        """Make the range test before anything else, and undo it."""
        if not math.isnan(self._initial):
            return
        before = self.run.state_dict()
        found = self._range_test()
        self.run.load_state_dict(before)
        self.ledger.search_updates += len(found.rates)
        self._initial = suggestion(found, self._finder.rule)

    def _range_test(self) -> RangeTest:
        finder, losses = self._finder, [math.nan]
        rates = np.geomspace(finder.lowest, finder.highest, finder.updates)
        for rate in rates:
            self.run.compute_gradient()
            loss = float(self.run.loss.detach())
            losses.append(loss if len(losses) == 1 else finder.smoothing * loss + (1 - finder.smoothing) * losses[-1])
            if not losses[-1] <= _DIVERGED * min(losses[1:]):  # or not finite
                break
            self.set_rate(float(rate))
            self.run.apply_update()
        return RangeTest(rates[: len(losses) - 1], np.array(losses[1:]))

    def before_update(self) -> None:
        """Write the schedule's rate."""
        self.rates.append(self._initial * self._function(self.progress))
        self.set_rate(self.rates[-1])

    def own_state(self) -> dict[str, Any]:
        """The rate that was found."""
        return {"initial": self._initial}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put it back: no second test is made."""
        self._initial = state["initial"]


def suggestion(found: RangeTest, rule: str) -> float:
    """Return the rate that a rule reads off a range test; of a curve too short to be read, its lowest rate.

    :param rule: name in :data:`RULES`
    """
    first, last = _SKIPPED
    rates, losses = found.rates[first:-last], found.losses[first:-last]
    return float(RULES[rule](rates, losses)) if len(rates) >= 2 else float(found.rates[0])


def _steepest(rates: np.ndarray, losses: np.ndarray) -> float:
    """Rate at which the loss falls fastest, as torch-lr-finder suggests."""
    return rates[int(np.gradient(losses).argmin())]


def _minimum_over_ten(rates: np.ndarray, losses: np.ndarray) -> float:
    """A tenth of the rate of the lowest loss, fastai's ``minimum``."""
    return rates[int(losses.argmin())] / 10.0


def _valley(rates: np.ndarray, losses: np.ndarray) -> float:
    """Rate half-way down the longest valley, fastai's ``valley``: the middle of the longest falling subsequence.

    Its end is where the longest falling subsequence of the losses ends; its length L counts back from there, and the
    suggestion lies L/3 + L/6 beyond that point, both cut to whole numbers.
    """
    lengths = np.ones(len(losses), dtype=int)
    for i in range(1, len(losses)):
        lengths[i] = 1 + max((lengths[j] for j in range(i) if losses[j] > losses[i]), default=0)
    end = int(lengths.argmax())
    third = lengths[end] / 3
    return rates[end - lengths[end] + int(third) + int(third / 2)]


RULES = {"steepest": _steepest, "minimum-over-10": _minimum_over_ten, "valley": _valley}
