"""Prodigy (Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", ICML 2024)."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from agents.controllers.peers import WEIGHT_DECAY, PeerController, package


@dataclass(frozen=True)
class ProdigyController(PeerController):
    """Adam that estimates its own step size, by the package ``prodigyopt``.

    The rate reported is its estimate d times the factor. Weight decay follows the optimizer asked for (``adamw``). Its
    authors recommend the cosine schedule, or none (``constant``).

    :param safeguard_warmup: leave the factor out of d's denominator, which its authors recommend under warm-up
    :param d_coef: factor on its estimate, its authors' preferred way to tune it
    :param bias_correction: turn on Adam's bias correction, off by default as in the package
    """

    kind: ClassVar[str] = "prodigy"

    safeguard_warmup: bool = False
    d_coef: float = 1.0
    bias_correction: bool = False

    def make(self, optimizer: str, parameters: Any) -> torch.optim.Optimizer:
        """Return Prodigy."""
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that decay is decoupled
            return package("prodigyopt").Prodigy(
                parameters,
                weight_decay=WEIGHT_DECAY.get(optimizer, 0.0),
                d_coef=self.d_coef,
                safeguard_warmup=self.safeguard_warmup,
                use_bias_correction=self.bias_correction,
            )

    def rate(self, optimizer: torch.optim.Optimizer) -> float:
        """Return its estimate d times the factor."""
        group = optimizer.param_groups[0]
        return float(group["d"]) * float(group["lr"])
