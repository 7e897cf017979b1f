"""Prodigy (Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", ICML 2024)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.controllers.base import Controller, Session, new_run
from agents.controllers.peers import package
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns.errors import InvalidSettingError
from gns.schedules.schedule import Schedule


@dataclass(frozen=True)
class ProdigyController(Controller):
    """Adam that estimates its own step size, by the package ``prodigyopt``; it takes no initial rate.

    The rate reported is its estimate d times the schedule. Weight decay follows the optimizer asked for (``adamw``).

    :param profile: schedule of its factor on d; its authors recommend cosine, or none (``constant``)
    :param safeguard_warmup: leave the factor out of d's denominator, which its authors recommend under warm-up
    :param warmup: share of the budget over which the factor climbs to 1
    :param d_coef: factor on its estimate, its authors' preferred way to tune it
    :param bias_correction: turn on Adam's bias correction, off by default as in the package
    """

    kind: ClassVar[str] = "prodigy"
    own_rate: ClassVar[bool] = True

    profile: str = "cosine"
    safeguard_warmup: bool = False
    warmup: float = 0.0
    d_coef: float = 1.0
    bias_correction: bool = False

    def __post_init__(self) -> None:
        self.schedule()

    def schedule(self) -> Schedule:
        """Return the schedule of its factor."""
        return Schedule(self.profile, warmup=self.warmup)

    def start(self, episode: Episode) -> Session:
        """Begin a training run.

        :raises MissingPackageError: if ``prodigyopt`` is not installed
        :raises InvalidSettingError: if parameter groups have different rates, which Prodigy cannot keep
        """
        cls = package("prodigyopt").Prodigy
        decay = 0.01 if episode.optimizer == "adamw" else 0.0

        def make_optimizer(parameters: Any, lr: float) -> torch.optim.Optimizer:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints that decay is decoupled
                return cls(
                    parameters,
                    lr=lr,
                    weight_decay=decay,
                    d_coef=self.d_coef,
                    safeguard_warmup=self.safeguard_warmup,
                    use_bias_correction=self.bias_correction,
                )

        return _ProdigySession(new_run(episode, make_optimizer), episode.budget, self.schedule())


class _ProdigySession(Session):
    def __init__(self, run: TrainingRun, budget: int, schedule: Schedule) -> None:
        super().__init__(run, budget)
        if any(ratio != 1.0 for ratio in self.ratios):
            raise InvalidSettingError(
                f"Prodigy takes one rate for all parameter groups; theirs have ratios {self.ratios}. Use another "
                "controller, or a task whose groups share a rate."
            )
        self._schedule = schedule

    def before_update(self) -> None:
        """Write the schedule's factor."""
        self.set_rate(self._schedule(self.progress))

    def after_update(self, loss: Tensor) -> None:
        """Note the rate that Prodigy took: its estimate times the factor."""
        super().after_update(loss)
        group = self.run.optimizer.param_groups[0]
        self.rates.append(float(group["d"]) * float(group["lr"]))

    def own_state(self) -> dict[str, Any]:
        """All state is the optimizer's."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""
