"""Optuna (Akiba et al., KDD 2019) as the tuner of a schedule's initial rate: what people do who have several runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from agents.controllers.base import Controller, Session, new_run, require_bounds
from agents.controllers.peers import package
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns.errors import require_count
from gns.schedules.schedule import Schedule

_SEED = 1_000_003  # tried runs have the seed of the run plus this: tuned on one seed, measured on another
_REPORTS = 4  # parts of a tried run; after each but the last one the pruner is asked


@dataclass(frozen=True)
class OptunaController(Controller):
    """A schedule whose initial rate is the best of some trials, proposed by TPE and cut short by a median pruner.

    Each trial is a training run of its own, of another seed than the run that counts; its loss on the reward split is
    what Optuna sees. Their updates are counted as search: one result costs up to ``trials + 1`` runs.

    :param trials: runs tried
    :param profile: the schedule, see :mod:`gns.schedules.profiles`
    :param min_lr: lowest rate; None: that of the task's range for the optimizer
    :param max_lr: highest rate; None: likewise
    :raises UnknownNameError: if there is no such profile
    :raises InvalidSettingError: if a setting has a value it cannot have
    """

    kind: ClassVar[str] = "optuna"
    own_rate: ClassVar[bool] = True

    trials: int = 8
    profile: str = "cosine"
    min_lr: float | None = None
    max_lr: float | None = None

    def __post_init__(self) -> None:
        require_count("trials", self.trials)
        if self.min_lr is not None and self.max_lr is not None:
            require_bounds(self.min_lr, self.max_lr)
        Schedule(self.profile)

    def start(self, episode: Episode) -> Session:
        """Begin a training run.

        :raises MissingPackageError: if ``optuna`` is not installed
        """
        package("optuna")
        return _OptunaSession(self, episode)


class _OptunaSession(Session):
    def __init__(self, controller: OptunaController, episode: Episode) -> None:
        super().__init__(new_run(episode), episode.budget)
        self._controller, self._episode = controller, episode
        self._function = Schedule(controller.profile).function
        self._initial = math.nan

    def before_gradient(self) -> None:
        """Make the trials before anything else."""
        if math.isnan(self._initial):
            self._initial = self._search()

    def _search(self) -> float:
        optuna = package("optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        low, high = self._episode.task.range_of(self._episode.optimizer)
        low, high = self._controller.min_lr or low, self._controller.max_lr or high
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=self._episode.seed % 2**32), pruner=optuna.pruners.MedianPruner()
        )
        study.optimize(
            lambda trial: self._try(trial, trial.suggest_float("rate", low, high, log=True)), self._controller.trials
        )
        return float(study.best_params["rate"])

    def _try(self, trial: Any, rate: float) -> float:
        """Train a run at a rate and return its loss on the reward split; infinite losses count as very large ones."""
        run = new_run(replace(self._episode, learning_rate=rate, seed=self._episode.seed + _SEED))
        for part in range(_REPORTS):
            first, last = (self.budget * number // _REPORTS for number in (part, part + 1))
            self._train(run, rate, first, last)
            loss = run.evaluate_reward_split().loss
            self.ledger.evaluations += 1
            loss = loss if math.isfinite(loss) else 1e30
            trial.report(loss, part)
            if part < _REPORTS - 1 and trial.should_prune():
                raise package("optuna").TrialPruned
        return loss

    def _train(self, run: TrainingRun, rate: float, first: int, last: int) -> None:
        for update in range(first, last):
            run.compute_gradient()
            for group, ratio in zip(run.optimizer.param_groups, self.ratios, strict=True):
                group["lr"] = rate * ratio * self._function(update / self.budget)
            run.apply_update()
            self.ledger.search_updates += 1

    def before_update(self) -> None:
        """Write the schedule's rate."""
        self.rates.append(self._initial * self._function(self.progress))
        self.set_rate(self.rates[-1])

    def own_state(self) -> dict[str, Any]:
        """The rate that was found."""
        return {"initial": self._initial}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put it back: nothing is tried again."""
        self._initial = state["initial"]
