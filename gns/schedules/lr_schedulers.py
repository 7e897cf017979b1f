"""Fixed schedules as plain PyTorch learning-rate schedulers; nothing else of this package is needed beside them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from gns.errors import InvalidSettingError, require_count
from gns.schedules.profiles import onecycle_momentum
from gns.schedules.schedule import EVERY_UPDATE, Schedule


class ProfileLR(LRScheduler):
    """Sets every parameter group's rate to ``initial_lr * f(min(t/T, 1))`` after t calls of :meth:`step`.

    f is a :class:`gns.schedules.schedule.Schedule`. It is a closed form: a jump to update t gives what t steps give.
    Past T the last value stays. The rate of the last update, t = T - 1, is not 0 in any profile.

    The state dict holds everything and no function, so it goes through ``torch.save`` and any safe loader. Like that of
    PyTorch's own, :meth:`load_state_dict` leaves the optimizer's rates alone: load the optimizer's state dict too,
    before or after.

    :param optimizer: its rates now, or ``initial_lr`` where a group has it, are the initial ones
    :param total_steps: number of updates T of the run
    :param profile: a name in :data:`gns.schedules.profiles.PROFILES`
    :param sampling: how often the profile is read, a name in :data:`gns.schedules.schedule.SAMPLING_RATES`
    :param warmup: share of the budget, in [0, 1), over which the rate first climbs
    :param warmup_start: factor that the warm-up starts from, in (0, 1]
    :param cycle_momentum: let momentum, or Adam's beta1, run between 0.95 and 0.85 against the rate; None: with profile
        ``onecycle``, in groups that have one
    :param last_epoch: index of the last update when a run is resumed without a state dict, see PyTorch
    :param settings: of the profile, such as ``power=2``
    :raises UnknownNameError: on an unknown profile, sampling rate or setting
    :raises InvalidSettingError: on a value outside its domain
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        profile: str = "rex",
        *,
        sampling: str = EVERY_UPDATE,
        warmup: float = 0.0,
        warmup_start: float = 0.01,
        cycle_momentum: bool | None = None,
        last_epoch: int = -1,
        **settings: Any,
    ) -> None:
        require_count("total_steps", total_steps)
        schedule = Schedule(profile, sampling, warmup, warmup_start, settings)
        if cycle_momentum and not any(_has_momentum(group) for group in optimizer.param_groups):
            raise InvalidSettingError(
                f"cycle_momentum is True, but {type(optimizer).__name__} has neither betas nor a momentum above 0; "
                "give it one, or leave cycle_momentum out."
            )
        self.total_steps = int(total_steps)
        self.profile, self.sampling, self.settings = profile, sampling, dict(schedule.settings)
        self.warmup, self.warmup_start = schedule.warmup, schedule.warmup_start
        self.cycle_momentum = profile == "onecycle" if cycle_momentum is None else cycle_momentum
        self._prepare()
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return each group's rate at ``last_epoch``; for :meth:`step` alone, as in PyTorch's schedulers.

        Sets the momentum of the groups as well, where it is cycled.
        """
        if not self._get_lr_called_within_step:
            warnings.warn("To get the last rates set, use get_last_lr().", UserWarning, stacklevel=2)
        update, total = self.last_epoch, self.total_steps
        progress = update / total if update < total else 1.0
        if self.cycle_momentum:
            momentum = onecycle_momentum(self._position(progress) if self._position else progress)
            for group in self.optimizer.param_groups:
                if "betas" in group:
                    betas = group["betas"]
                    group["betas"] = (momentum, betas[1]) if len(betas) == 2 else (momentum, *betas[1:])
                elif group.get("momentum"):
                    group["momentum"] = momentum
        factor = self._factor(progress)
        return [initial * factor for initial in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the optimizer, as plain values."""
        return {key: value for key, value in self.__getstate__().items() if key != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, whose profile, settings and budget take the place of those given."""
        super().load_state_dict(state_dict)
        self._prepare()

    def _prepare(self) -> None:
        """Make the functions that a step calls, which are no part of the state."""
        schedule = Schedule(self.profile, self.sampling, self.warmup, self.warmup_start, self.settings)
        at_progress = not schedule.warmup and schedule.sampling == EVERY_UPDATE
        self._factor, self._position = schedule.function, None if at_progress else schedule.position

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_factor", "_position")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()


class REXLR(ProfileLR):
    """REX, the reflected exponential: ``initial_lr * (1 - z) / (1/2 + (1 - z)/2)`` with ``z = t/T``.

    Chen, Wolfe and Kyrillidis, MLSys 2022, section 4.1. Stands where ``CosineAnnealingLR(optimizer, T_max)`` stood.

    :param optimizer: see :class:`ProfileLR`
    :param total_steps: number of updates T of the run
    :param last_epoch: see PyTorch
    :raises InvalidSettingError: if ``total_steps`` is not a positive whole number
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int, last_epoch: int = -1) -> None:
        super().__init__(optimizer, total_steps, "rex", last_epoch=last_epoch)


def _has_momentum(group: dict[str, Any]) -> bool:
    return "betas" in group or bool(group.get("momentum"))
