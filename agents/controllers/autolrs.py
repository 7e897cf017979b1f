"""AutoLRS: each stage's rate is searched for on the run itself (Jin et al., ICLR 2021, algorithm 1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from agents.controllers.autolrs_search.forecast import forecast
from agents.controllers.autolrs_search.search import best_tried, grid, propose, propose_random
from agents.controllers.base import Controller, Session, new_run, require_bounds
from envs.learning_rate_env import Episode
from gns.errors import InvalidSettingError, UnknownNameError, require_count, require_positive

SEARCHES: tuple[str, ...] = ("bo", "random", "grid")
_SHORTEST_STAGE = 200  # updates of the first stage: of a candidate 20, as fewer do not show which rates diverge
_FEWEST_UPDATES = 5  # of a candidate
_GROWTH = 8  # the paper's longest stage is eight times its first


@dataclass(frozen=True)
class AutoLRSController(Controller):
    """Searches for a rate, trains at it, and searches again.

    A stage of tau updates begins with ``candidates`` rates, each tried for tau' updates from one checkpoint; their loss
    at the end of the stage is forecast, the run is put back, and the stage is trained at the best of them. The next
    stage is twice as long, up to ``tau_max``, and the last one is cut to what is left of the budget.

    The losses of the updates are what is forecast from until stages are ``tau_max`` long; from then on it is the loss
    on the reward split.

    :param search: ``bo`` (Bayesian optimisation), ``random`` or ``grid``
    :param candidates: rates tried in a stage
    :param tau: updates of the first stage; None: a hundredth of the budget, at least 200; all of it below 400
    :param tau_max: updates of the longest stage; None: tau, doubled while it is within eight tau and half the budget
    :param explore_share: tau' / tau; a candidate gets at least 5 updates, or the whole stage if that is shorter
    :param kappa: weight of exploring in Bayesian optimisation; the paper's is 1000
    :param caution: standard errors by which forecasts of noisy series lean towards levelling off; the paper's is 0
    :param min_lr: lowest rate; None: that of the task's range for the optimizer
    :param max_lr: highest rate; None: that of the task's range for the optimizer
    :param validation_evaluations: about how often a candidate is evaluated once stages are ``tau_max`` long
    :raises UnknownNameError: if there is no such search
    :raises InvalidSettingError: if a setting has a value it cannot have
    """

    kind: ClassVar[str] = "autolrs"
    own_rate: ClassVar[bool] = True

    search: str = "bo"
    candidates: int = 10
    tau: int | None = None
    tau_max: int | None = None
    explore_share: float = 0.1
    kappa: float = 2.0
    caution: float = 2.0
    min_lr: float | None = None
    max_lr: float | None = None
    validation_evaluations: int = 16

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise UnknownNameError("search of AutoLRS", str(self.search), SEARCHES)
        for name in ("candidates", "validation_evaluations"):
            require_count(name, getattr(self, name))
        for name in ("tau", "tau_max"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        if self.tau is not None and self.tau_max is not None and self.tau > self.tau_max:
            raise InvalidSettingError(f"tau is {self.tau} and tau_max {self.tau_max}; expected tau <= tau_max.")
        require_positive("explore_share", self.explore_share)
        if self.explore_share > 1.0:
            raise InvalidSettingError(f"explore_share is {self.explore_share}; expected a share, at most 1.")
        for name in ("kappa", "caution"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise InvalidSettingError(f"{name} is {value!r}; expected a finite number of at least 0.")
        for name in ("min_lr", "max_lr"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))

    def start(self, episode: Episode) -> AutoLRSSession:
        """Begin a training run; the episode's initial rate plays no part.

        :raises InvalidSettingError: unless min_lr < max_lr
        :raises UnknownNameError: if the task has no range for the optimizer, and a bound is needed from it
        """
        return AutoLRSSession(self, episode)

    def bounds(self, episode: Episode) -> tuple[float, float]:
        """Return the lowest and the highest rate."""
        low, high = self.min_lr, self.max_lr
        if low is None or high is None:
            own_low, own_high = episode.task.range_of(episode.optimizer)
            low, high = own_low if low is None else low, own_high if high is None else high
        require_bounds(low, high)
        return float(low), float(high)

    def stages(self, budget: int) -> tuple[int, int]:
        """Return tau and tau_max, in updates, for a budget."""
        first = budget if budget < 2 * _SHORTEST_STAGE else max(_SHORTEST_STAGE, budget // 100)
        tau = self.tau or min(first, self.tau_max or budget)
        if self.tau_max is not None:
            return tau, self.tau_max
        longest = tau
        while 2 * longest <= min(_GROWTH * tau, budget // 2):
            longest *= 2
        return tau, longest


@dataclass
class Stage:
    """Where a session is in a stage.

    :param number: 0, 1, ...
    :param tau: updates of the stage if the budget does not end before
    :param length: updates of the stage
    :param explore: updates of a candidate
    :param interval: updates between evaluations of a candidate on the reward split; 0: the training loss is used
    :param checkpoint: the run before the stage, while the search goes on
    :param rate: learning rate of the coming update
    :param done: updates done of the candidate, or of the stage after the search
    :param losses: losses of the candidate, one an update or an evaluation
    :param tried: rates of the candidates before and their forecast losses
    """

    number: int
    tau: int
    length: int
    explore: int
    interval: int
    checkpoint: dict[str, Any] | None
    rate: float = math.nan
    done: int = 0
    losses: list[Any] = field(default_factory=list)
    tried: list[tuple[float, float]] = field(default_factory=list)

    @property
    def horizon(self) -> float:
        """Index in the series of losses of what is forecast: the loss after the stage."""
        return self.length / self.interval - 1 if self.interval else float(self.length)


class AutoLRSSession(Session):
    """A training run under AutoLRS. The ledger counts updates of the search apart.

    :param controller: its settings
    :param episode: what is trained
    """

    def __init__(self, controller: AutoLRSController, episode: Episode) -> None:
        self.low, self.high = controller.bounds(episode)
        super().__init__(new_run(episode), episode.budget)
        self.settings, self.seed = controller, episode.seed
        self.tau, self.tau_max = controller.stages(self.budget)
        self.stage: Stage | None = None

    @property
    def searching(self) -> bool:
        """Whether the coming update is one of the search."""
        stage = self.stage
        return not self.finished and (self._between_stages or (stage is not None and stage.checkpoint is not None))

    @property
    def _between_stages(self) -> bool:
        stage = self.stage
        return stage is None or (stage.checkpoint is None and stage.done == stage.length)

    def before_gradient(self) -> None:
        """Begin the next stage where one is over."""
        if self._between_stages:
            self._begin_stage()

    def before_update(self) -> None:
        """Write the rate of the candidate, or of the stage."""
        assert self.stage is not None
        self.set_rate(self.stage.rate)

    def after_update(self, loss: Tensor) -> None:
        """Count the update; the last one of a candidate is followed by the run as it was before the stage."""
        stage = self.stage
        assert stage is not None
        stage.done += 1
        if stage.checkpoint is None:
            super().after_update(loss)
            self.rates.append(stage.rate)
            return
        self.ledger.search_updates += 1
        if not stage.interval:
            stage.losses.append(loss.detach())  # read at the candidate's end, so that no update waits for the device
        elif (stage.explore - stage.done) % stage.interval == 0:
            stage.losses.append(self.reward_loss())
        if stage.done == stage.explore:
            self._end_candidate(stage)

    def _begin_stage(self) -> None:
        before, settings = self.stage, self.settings
        tau = self.tau if before is None else min(2 * before.tau, self.tau_max)
        length = min(tau, self.budget - self.ledger.updates)
        explore = min(max(round(settings.explore_share * length), _FEWEST_UPDATES), length)
        self.stage = Stage(
            number=0 if before is None else before.number + 1,
            tau=tau,
            length=length,
            explore=explore,
            interval=max(round(explore / settings.validation_evaluations), 1) if tau == self.tau_max else 0,
            checkpoint=self.run.state_dict(),
        )
        self.stage.rate = self._next_candidate(self.stage)

    def _next_candidate(self, stage: Stage) -> float:
        low, high, settings = self.low, self.high, self.settings
        number = len(stage.tried)
        # Drawn from where the search is, and so a resumed session draws what it would have drawn.
        rng = np.random.default_rng([self.seed % 2**63, stage.number, number])
        if settings.search == "grid":
            return grid(low, high, settings.candidates)[number]
        if settings.search == "random":
            return propose_random(low, high, rng)
        return propose(stage.tried, low, high, settings.kappa, rng)

    def _end_candidate(self, stage: Stage) -> None:
        losses = [float(loss) for loss in stage.losses]
        stage.tried.append((stage.rate, forecast(losses, stage.horizon, self.settings.caution)))
        assert stage.checkpoint is not None
        self.run.load_state_dict(stage.checkpoint)
        stage.losses, stage.done = [], 0
        if len(stage.tried) < self.settings.candidates:
            stage.rate = self._next_candidate(stage)
            return
        stage.checkpoint = None
        stage.rate = best_tried(stage.tried)

    def own_state(self) -> dict[str, Any]:
        """Return where the stage is, the run before it among it."""
        if self.stage is None:
            return {"stage": None}
        return {"stage": {**asdict(self.stage), "losses": [float(loss) for loss in self.stage.losses]}}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`own_state` returned."""
        stage = copy.deepcopy(state["stage"])
        self.stage = None if stage is None else Stage(**{**stage, "tried": [tuple(one) for one in stage["tried"]]})
