"""Decay on plateau, on the loss of the reward split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from agents.controllers.acting import Acting, View
from agents.controllers.base import LOWEST_RATE, Controller, Session, new_run, require_share
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns.deciding.config import DecisionConfig
from gns.errors import require_positive
from gns.schedules.plateau import Plateau


@dataclass(frozen=True)
class PlateauController(Controller):
    """Cuts the rate when the loss on the reward split has stopped falling; its initial rate is tuned.

    The REX paper's "decay on plateau" (section 4.1): factor 0.1 after a patience that is tuned in multiples of 5
    epochs. PyTorch's ``ReduceLROnPlateau``, given the loss every ``every`` of the budget.

    :param every: share of the budget between two looks at the reward split, each a whole pass
    :param factor: factor on the rate
    :param patience: looks without improvement that are borne
    :param threshold: improvement that counts, as a share of the best loss
    :param cooldown: looks after a cut that do not count
    :param min_lr: lowest rate of the first parameter group
    """

    kind: ClassVar[str] = "plateau"
    tuned: ClassVar[bool] = True
    is_schedule: ClassVar[bool] = True

    every: float = 0.05
    factor: float = 0.1
    patience: int = 1
    threshold: float = 1e-4
    cooldown: int = 0
    min_lr: float = LOWEST_RATE

    def __post_init__(self) -> None:
        require_positive("every", self.every)
        require_share("every", self.every)
        require_positive("min_lr", self.min_lr)
        self.plateau()

    def plateau(self) -> Plateau:
        """Return the state machine before the first loss."""
        return Plateau(self.factor, self.patience, self.threshold, cooldown=self.cooldown)

    def start(self, episode: Episode) -> Session:
        """Begin a training run."""
        return _PlateauSession(new_run(episode), episode, self)

    def acting(self, decision: DecisionConfig) -> Acting:
        """Return the same rule as an agent: it looks at the training loss of each interval, a look a decision."""
        return Acting(decision, self._target)

    def _target(self, view: View, memory: dict[str, Any]) -> float:
        plateau = self.plateau()
        if "plateau" in memory:
            plateau.load_state_dict(memory["plateau"])
        if view.loss is not None:
            plateau.step(view.loss)
        memory["plateau"] = plateau.state_dict()
        return max(view.initial * plateau.multiplier, self.min_lr)


class _PlateauSession(Session):
    def __init__(self, run: TrainingRun, episode: Episode, controller: PlateauController) -> None:
        super().__init__(run, episode.budget)
        self._initial, self._lowest = episode.learning_rate, controller.min_lr
        self._plateau = controller.plateau()
        self._every = max(1, round(controller.every * episode.budget))

    def before_update(self) -> None:
        """Write the rate."""
        self.rates.append(max(self._initial * self._plateau.multiplier, self._lowest))
        self.set_rate(self.rates[-1])

    def after_update(self, loss: Tensor) -> None:
        """Look at the reward split if it is time."""
        super().after_update(loss)
        if self.ledger.updates % self._every == 0 and not self.finished:
            self._plateau.step(self.reward_loss())

    def own_state(self) -> dict[str, Any]:
        """The plateau's state."""
        return self._plateau.state_dict()

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        self._plateau.load_state_dict(dict(state))
