"""What is known of held-out data at a decision. Of the feature schemas only ``srls`` reads it.

Held-out means the reward split in an environment, and whatever validation set a user keeps elsewhere; never test data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ValidationStatistics:
    """Figures of one full pass over held-out data. NaN says that a figure is not known, infinity that it blew up.

    :param validation_loss: mean loss
    :param prediction_variance: variance of the model's outputs, over all examples and outputs
    :param prediction_change_variance: variance of their difference to the outputs at the last decision, likewise
    """

    validation_loss: float
    prediction_variance: float
    prediction_change_variance: float = math.nan


def validation_statistics(loss: float, predictions: Tensor, before: Tensor | None = None) -> ValidationStatistics:
    """Return the figures of a pass, in float64. A loss or a prediction that is NaN counts as infinite.

    :param loss: mean loss over the held-out examples
    :param predictions: outputs of the model, of any shape and kind of number
    :param before: outputs at the last decision, of that shape; None at the first
    """
    now = predictions.double()
    return ValidationStatistics(
        validation_loss=_infinite_if_nan(float(loss)),
        prediction_variance=_variance(now),
        prediction_change_variance=math.nan if before is None else _variance(now - before.double()),
    )


def _variance(values: Tensor) -> float:
    return _infinite_if_nan(float(values.var(correction=0)))


def _infinite_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value
