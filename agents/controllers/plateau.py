"""Decay on plateau, on the loss of the reward split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from agents.controllers.base import LOWEST_RATE, Controller, Session, new_run, require_share
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns.errors import InvalidSettingError, require_positive


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
        for name in ("every", "factor"):
            require_positive(name, getattr(self, name))
            require_share(name, getattr(self, name))
        require_positive("min_lr", self.min_lr)
        for name in ("patience", "cooldown"):
            if getattr(self, name) < 0:
                raise InvalidSettingError(f"{name} is {getattr(self, name)!r}; expected a whole number, 0 or above.")
        if not 0.0 <= self.threshold < math.inf:
            raise InvalidSettingError(f"threshold is {self.threshold!r}; expected a share, 0 or more, finite.")

    def start(self, episode: Episode) -> Session:
        """Begin a training run."""
        return _PlateauSession(new_run(episode), episode, self)


class _PlateauSession(Session):
    def __init__(self, run: TrainingRun, episode: Episode, controller: PlateauController) -> None:
        super().__init__(run, episode.budget)
        self._initial, self._lowest = episode.learning_rate, controller.min_lr
        # An optimizer of nothing whose rate, from 1, is the multiplier: the groups' own rates round at every cut.
        self._multiplier = SGD([nn.Parameter(torch.empty(0))], lr=1.0)
        self._plateau = ReduceLROnPlateau(
            self._multiplier,
            factor=controller.factor,
            patience=controller.patience,
            threshold=controller.threshold,
            cooldown=controller.cooldown,
        )
        self._every = max(1, round(controller.every * episode.budget))

    def before_update(self) -> None:
        """Write the rate."""
        self.rates.append(max(self._initial * self._multiplier.param_groups[0]["lr"], self._lowest))
        self.set_rate(self.rates[-1])

    def after_update(self, loss: Tensor) -> None:
        """Look at the reward split if it is time."""
        super().after_update(loss)
        if self.ledger.updates % self._every == 0 and not self.finished:
            self._plateau.step(self.reward_loss())

    def own_state(self) -> dict[str, Any]:
        """The plateau's state, and the multiplier."""
        return {"plateau": self._plateau.state_dict(), "multiplier": self._multiplier.param_groups[0]["lr"]}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        self._plateau.load_state_dict(dict(state["plateau"]))
        self._multiplier.param_groups[0]["lr"] = state["multiplier"]
