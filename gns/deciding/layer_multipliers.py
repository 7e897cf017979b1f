"""Multipliers of parameter groups around the shared rate, from an action for each layer: action mode ``per-layer``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


class LayerMultipliers:
    """Turns actions of layers into a multiplier for each parameter group.

    A group's multiplier is base^(mean action of its layers - mean action over the layers of all groups), so that the
    geometric mean of the multipliers over layers is 1; that of a group without layers is 1.

    :param layers: number of layers L
    :param held: numbers of the layers that each of G groups holds
    :param base: what an action of 1 multiplies a layer's rate by before the multipliers are centred
    """

    def __init__(self, layers: int, held: Sequence[Sequence[int]], base: float) -> None:
        self._base, self._sizes = base, [len(own) for own in held]
        self._exponents = _around_their_mean(layers, held)

    def of(self, actions: Sequence[float]) -> list[float]:
        """Return the multiplier of each group, (G,), for actions of the layers, (L,)."""
        return (self._base ** (self._exponents @ np.array(actions))).tolist()

    def shared_factor(self, factors: Sequence[float]) -> float:
        """Return the factor that the groups share, where each has this factor, (G,), on its initial rate.

        It is their geometric mean over layers, since that of the multipliers is 1 unless a bound of the rate cut one
        off. Where no group holds a layer it is the first factor.
        """
        if not any(self._sizes):
            return factors[0]
        return math.exp(np.average(np.log(factors), weights=self._sizes))


def _around_their_mean(layers: int, held: Sequence[Sequence[int]]) -> np.ndarray:
    """Return what makes exponents of groups from actions of layers: mean of its own less mean over those of all groups.

    :return: (G, L); a group without layers has the exponent 0
    """
    matrix = np.zeros((len(held), layers))
    total = sum(map(len, held))
    for row, own in zip(matrix, held, strict=True):
        row[list(own)] = 1.0 / max(len(own), 1)
    share = np.bincount([layer for own in held for layer in own], minlength=layers)[:layers] / max(total, 1)
    matrix[[bool(own) for own in held]] -= share
    return matrix
