"""What comes before a run's profile: a warm-up, and a time at a steady rate whose end may not be known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phases:
    """Where in a run the warm-up ends and the profile begins.

    Update t < W of the warm-up has the share (t + 1) / (W + 1) of its rate, those after it the whole. The profile is at
    its beginning up to update S and comes to its end with the budget, as in warmup-stable-decay (Hu et al., "MiniCPM",
    2024), where it is called the decay.

    :param warmup: number of updates W
    :param steady: update S, W or more; None: not known yet, as is the budget then
    """

    warmup: int = 0
    steady: int | None = 0

    def ramp(self, update: int) -> float:
        """Return the share of its rate that an update has."""
        return (update + 1) / (self.warmup + 1) if update < self.warmup else 1.0

    def position(self, update: int, budget: int) -> float:
        """Return where on the profile an update is, from 0 to 1."""
        if self.steady is None or update <= self.steady:
            return 0.0
        return (update - self.steady) / (budget - self.steady) if update < budget else 1.0
