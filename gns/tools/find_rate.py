"""A learned rate finder: a short range test (Smith, 2017), undone, read together with what is known of the run.

Sixty updates at rates that rise over seven decades. What rules of thumb read off such a test (the steepest fall, a
tenth of the lowest loss) depends on the task more than the best rate does. Here a regression on drawn tasks reads it:
where the loss is lowest, where it rises for good (the edge), how far it falls, with the static facts of
:mod:`gns.schedules.static` beside it. Its coefficients stand in ``calibrated.json``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gns.errors import InvalidSettingError, require_count
from gns.features.moments import optimizer_kind
from gns.graph.layer_graph import LayerGraph, layer_graph
from gns.schedules.calibrated import calibrated_rate, calibration
from gns.schedules.static import default_rate, facts_of_run, moved_by

UPDATES = 60
EFFECTIVE = {"adam": (1e-6, 10.0), "sgd": (1e-5, 100.0)}  # rates of a test; of SGD over 1 - momentum
READINGS = ("lowest", "steepest", "edge", "first_fall", "depth", "log_start")
_START, _MOST = 15, 3.0  # losses that say where a run starts; log loss above it that nothing lies beyond
_RISEN, _RISEN_FOR_GOOD, _FALLEN = 0.5, 0.15, 0.05  # log losses over, or below, the start
_MEMORY = 0.7  # of the running mean of losses


@dataclass(frozen=True)
class RateAdvice:
    """What :func:`find_rate` found.

    :param rate: advised initial rate, of profile REX, for the parameter group with the most scalars
    :param low: a standard deviation of the regression below it, on tasks it was not fitted to
    :param high: likewise above
    :param prior: what static facts alone advise
    :param edge: rate from which on the loss rises for good
    :param rates: of the test's updates, ascending, (60,)
    :param losses: before each of them and after the last, (61,); infinite where the test had ended
    """

    rate: float
    low: float
    high: float
    prior: float
    edge: float
    rates: np.ndarray
    losses: np.ndarray

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer the advised rate; its parameter groups keep their ratios."""
        _set_rate(optimizer, self.rate, [float(group["lr"]) for group in optimizer.param_groups])

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the test, the edge, the advice and its spread; return the matplotlib figure."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        seen = np.isfinite(self.losses[1:])
        axes.plot(self.rates[seen], self.losses[1:][seen], color="0.35", label="loss after the update")
        axes.axvspan(self.low, self.high, color="tab:blue", alpha=0.15, label="its spread")
        axes.axvline(self.rate, color="tab:blue", label=f"advice {self.rate:.2g}")
        axes.axvline(self.prior, color="tab:green", linestyle=":", label=f"without the test {self.prior:.2g}")
        axes.axvline(self.edge, color="tab:red", linestyle="--", label=f"edge {self.edge:.2g}")
        start, least = float(np.median(self.losses[:_START])), float(self.losses[np.isfinite(self.losses)].min())
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(least - 0.1 * start, 1.8 * start))
        axes.legend(fontsize="small")
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def find_rate(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    total_steps: int,
) -> RateAdvice:
    """Advise an initial rate by a range test of 60 updates, which is undone: model, optimizer and PyTorch's random
    numbers are as before. Of ``batches`` 60 are consumed.

    Use it with ``GNSScheduler(..., policy="prior", trust_initial_rate=True)``, or with any schedule that falls to 0::

        advice = gns.find_rate(model, optimizer, loader, lambda model, batch: loss_of(model, batch), total_steps=5000)
        advice.apply(optimizer)

    :param model: the model to train, as it begins
    :param optimizer: its optimizer: SGD, Adam, AdamW or NAdam
    :param batches: batches; gone through again where there are too few
    :param loss: the loss of a model on a batch, a tensor of one element
    :param total_steps: number of updates that the training will have
    :raises UnknownNameError: if no rate was calibrated for the optimizer
    :raises InvalidSettingError: if there are no batches, or the number of updates is not positive
    """
    require_count("total_steps", total_steps)
    endless = _endless(batches)
    graphs: list[LayerGraph] = []
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    initial, random = [float(group["lr"]) for group in optimizer.param_groups], torch.get_rng_state()

    def update(rate: float) -> float:
        optimizer.zero_grad()
        found = loss(model, next(endless))
        if not graphs:
            graphs.append(layer_graph(model, found))
        found.backward()
        _set_rate(optimizer, rate, initial)
        optimizer.step()
        return float(found.detach())

    try:
        rates, losses = range_test(optimizer, update, lambda: float(loss(model, next(endless)).detach()))
    finally:
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        optimizer.zero_grad()
        torch.set_rng_state(random)
    return advice_of(optimizer, model, graphs[0], total_steps, rates, losses)


def range_test(
    optimizer: torch.optim.Optimizer, update: Callable[[float], float], last: Callable[[], float]
) -> tuple[np.ndarray, np.ndarray]:
    """Make the updates of a range test; return rates (60,) and losses (61,), see :class:`RateAdvice`.

    :param update: makes an update at a rate, and returns the loss before it
    :param last: returns the loss after the last
    """
    kind, share = kind_and_share(optimizer)
    rates = np.geomspace(*EFFECTIVE[kind], UPDATES) * share
    losses = np.full(UPDATES + 1, math.inf)
    for number, rate in enumerate(rates.tolist()):
        losses[number] = update(rate)
        start = np.median(losses[: min(number + 1, _START)])
        if not losses[number] <= start * math.exp(2.0 * _MOST):  # or not finite
            losses[number] = math.inf
            return rates, losses
    losses[-1] = last()
    return rates, losses


def readings(rates: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return the :data:`READINGS` of a range test: log10 of effective rates, and log losses, (6,).

    :param rates: effective rates, (n,)
    :param losses: (n + 1,)
    """
    logs = np.log(np.maximum(np.nan_to_num(losses, nan=1e9, posinf=1e9), 1e-8))
    logs = np.minimum(logs, np.median(logs[:_START]) + _MOST)
    count = len(rates)
    middle = np.array([np.median(logs[max(0, i - 1) : i + 2]) for i in range(count + 1)])
    smooth = middle.copy()
    for i in range(1, count + 1):
        smooth[i] = _MEMORY * smooth[i - 1] + (1.0 - _MEMORY) * middle[i]
    start, after, decades = float(np.median(middle[:_START])), smooth[1:], np.log10(rates)
    lowest = int(np.argmin(after))
    risen = (
        i for i in range(count) if middle[i + 1] > start + _RISEN or (middle[i + 1 :] > start + _RISEN_FOR_GOOD).all()
    )
    edge = next(risen, count - 1)
    steepest = int(np.argmin(np.gradient(after)[: lowest + 1])) if lowest > 1 else 0
    least = max(_FALLEN, float(np.std(middle[:_START])))
    fallen = next((i for i in range(count) if after[i] < start - least), edge)
    places = decades[[lowest, steepest, edge, fallen]].tolist()
    return np.array([*places, after[lowest] - start, start])


def features(read: np.ndarray, facts: np.ndarray, kind: str) -> np.ndarray:
    """Return what the regression reads: readings, the same of SGD alone, facts, and whether it is SGD."""
    sgd = float(kind == "sgd")
    return np.concatenate([read, read * sgd, facts, [sgd]])


def advice_of(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    graph: LayerGraph,
    budget: int,
    rates: np.ndarray,
    losses: np.ndarray,
) -> RateAdvice:
    """Return the advice that a range test gives.

    :param budget: number of updates that the training will have
    """
    known, (kind, share) = calibration()["range"], kind_and_share(optimizer)
    read = readings(rates / share, losses)
    moved = moved_by(features(read, facts_of_run(optimizer, model, graph, budget), kind), known)
    rate = calibrated_rate(optimizer) * known["usual"][kind] * 10.0**moved
    rate = float(np.clip(rate, rates[0], rates[-1]))
    spread, edge = 10.0 ** known["spread"], float(10.0 ** read[READINGS.index("edge")] * share)
    prior = default_rate(optimizer, model, graph, budget)
    return RateAdvice(rate, rate / spread, rate * spread, prior, edge, rates, losses)


def kind_and_share(optimizer: torch.optim.Optimizer) -> tuple[str, float]:
    """Return the kind of optimizer that rates are calibrated for, and its rate over its effective one."""
    calibrated_rate(optimizer)  # names what was not calibrated
    if optimizer_kind(optimizer) == "sgd":
        return "sgd", 1.0 - float(optimizer.param_groups[0]["momentum"])
    return "adam", 1.0


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    empty = True
    while True:
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise InvalidSettingError("batches is empty; expected an iterable of batches, such as a DataLoader.")
        if iter(batches) is batches:
            raise InvalidSettingError(
                f"batches ended early; a range test takes {UPDATES + 1}. Give a DataLoader or a list."
            )


def _set_rate(optimizer: torch.optim.Optimizer, rate: float, initial: list[float]) -> None:
    """Give the group with the most scalars a rate, the others in the ratio of their initial ones."""
    groups = optimizer.param_groups
    largest = max(range(len(groups)), key=lambda i: sum(p.numel() for p in groups[i]["params"]))
    for group, own in zip(groups, initial, strict=True):
        value = rate * own / initial[largest]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value
