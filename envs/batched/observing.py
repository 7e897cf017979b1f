"""What a policy sees of runs side by side: the features of one run, computed for all at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from envs.batched.runs import BatchedRuns
from gns.deciding.rate_control import RateControl
from gns.features.schemas import compute_features, get_schema
from gns.features.statistics import (
    NUM_SUMS,
    OPTIMIZER_KINDS,
    SUM_ABS_G,
    SUM_G2,
    SUM_GM,
    SUM_M2,
    SUM_U2,
    SUM_V,
    SUM_W,
    SUM_W2,
    RunStatistics,
)
from gns.features.update_rules import SETTINGS
from gns.graph.layer_graph import LayerGraph


@torch.no_grad()
def travel_of(runs: BatchedRuns, graph: LayerGraph) -> np.ndarray:
    """Return of all runs the sums of :mod:`gns.features.travel`, float64 (N, P, NUM_TRAVEL_SUMS), by run."""
    counts = [part.shape[1] for part in runs.sketched(runs.weights[:1])]
    by_run = torch.from_numpy(runs.rows).to(runs.device)
    starts, found = runs.starts.split(counts, dim=1), []
    parts = zip(starts, runs.sketched(runs.weights), runs.sketched(runs.gradients), runs.model.shapes.values(), strict=True)
    for x0, x, g, shape in parts:
        g, travel = g[by_run], x[by_run] - x0
        products = torch.stack([x0 * x0, travel * travel, g * travel, g * g])
        found.append(products.sum(dim=-1) * (shape.numel() / x0.shape[1]))
    return torch.stack(found).permute(2, 0, 1).cpu().double().numpy()[:, _order(runs, graph)]


@torch.no_grad()
def sums_of(
    runs: BatchedRuns, graph: LayerGraph, losses: torch.Tensor, products: Sequence[tuple[str, str]] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Return per-tensor sums of all runs, float64 (N, P, NUM_SUMS + Q), and losses (N, k), by one copy to the host.

    The pending gradients are read, and the update that each run's optimizer would make with them at a rate of 1.

    :param losses: (N, k) on the runs' device, by row
    :param products: the Q further sums that the feature schema asks for
    :return: both by run
    """
    weights, gradients = runs.weights, runs.gradients
    momentum, second = runs.optimizer.momentum, runs.optimizer.second
    values = torch.zeros(NUM_SUMS + len(products), *weights.shape, device=weights.device)
    values[SUM_W] = weights
    torch.mul(weights, weights, out=values[SUM_W2])
    torch.abs(gradients, out=values[SUM_ABS_G])
    torch.mul(gradients, gradients, out=values[SUM_G2])
    if momentum is not None:
        torch.mul(gradients, momentum, out=values[SUM_GM])
        torch.mul(momentum, momentum, out=values[SUM_M2])
    values[SUM_V] = second if second is not None else values[SUM_G2]
    update = runs.optimizer.coming_update(gradients)
    torch.mul(update, update, out=values[SUM_U2])
    fresh = runs.optimizer.steps == 0
    factors = {"weight": weights, "gradient": gradients, "momentum": momentum, "update": update}
    if products:
        square = gradients.square()
        factors["second"] = square if second is None else torch.where(fresh.to(square.device)[:, None], square, second)
    for column, pair in enumerate(products, NUM_SUMS):
        a, b = (factors[name] for name in pair)
        if a is not None and b is not None:
            torch.mul(a, b, out=values[column])
    sums = torch.stack([part.sum(dim=-1) for part in runs.split(values)]).permute(2, 0, 1)
    host = torch.cat([sums.reshape(runs.size, -1), losses], dim=1).cpu().numpy().astype(np.float64)
    table, losses_host = np.split(host, [sums[0].numel()], axis=1)
    table = table.reshape(sums.shape)[:, _order(runs, graph)]
    if second is not None:  # of no gradient yet: the squared gradient stands in, as it does alone
        table[fresh.numpy(), :, SUM_V] = table[fresh.numpy(), :, SUM_G2]
    return table[runs.rows], losses_host[runs.rows]


def _order(runs: BatchedRuns, graph: LayerGraph) -> list[int]:
    """Number among the model's parameters of each tensor of the graph, (P,)."""
    numbers = {name: number for number, name in enumerate(runs.model.shapes)}
    return [numbers[name] for layer in graph.parameters for name in layer]


def _setting(runs: BatchedRuns, graph: LayerGraph, name: str) -> np.ndarray:
    """A setting of the optimizer for each tensor of every run, (N, P)."""
    settings, order = runs.optimizer.settings, _order(runs, graph)
    value = SETTINGS[name](settings.kind, vars(settings))
    if isinstance(value, torch.Tensor):  # one for each scalar, the same for those of a tensor
        value = torch.stack([part[0] for part in runs.split(value)]).cpu().numpy()[order]
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (runs.size, len(order)))


def observe(
    runs: BatchedRuns, graph: LayerGraph, controls: Sequence[RateControl], losses: torch.Tensor, schema: str, pretrained: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Observe all runs, and tell their controls what was seen.

    :param controls: of each of the N runs
    :param losses: of the updates of each run since its last decision, oldest first, (N, at least
        as many), by row
    :param pretrained: whether the model came with weights of another training
    :return: node features (N, L, F) and global features (N, G) of the schema
    """
    known_schema = get_schema(schema)
    sums, losses_host = sums_of(runs, graph, losses, known_schema.products)
    count, tensors = sums.shape[:2]
    memories = [control.memory for control in controls]
    known = np.array([memory.interval_updates for memory in memories])
    momentum_scale, second_scale = (scale[runs.rows] for scale in runs.optimizer.scales())
    rates = np.array([control.learning_rate for control in controls])
    statistics = RunStatistics(
        sums=sums,
        learning_rates=np.broadcast_to(rates[:, None], (count, tensors)),
        momentum_scale=np.broadcast_to(momentum_scale[:, None], (count, tensors)),
        second_scale=np.broadcast_to(second_scale[:, None], (count, tensors)),
        losses=losses_host,
        loss_counts=known,
        first_loss=np.array([memory.first_loss for memory in memories]),
        previous_loss=np.array([memory.previous_loss for memory in memories]),
        learning_rate=rates,
        progress=np.array([min(control.update / control.budget, 1.0) for control in controls]),
        budget=np.array([control.budget for control in controls], dtype=np.float64),
        rolled_back=np.array([memory.rolled_back for memory in memories], dtype=np.float64),
        level=np.array([control.level for control in controls]),
        pretrained=np.full(count, float(pretrained)),
        travel=travel_of(runs, graph) if known_schema.needs_start else np.asarray(np.nan),
        optimizer_kind=np.full(count, OPTIMIZER_KINDS.index(runs.optimizer.settings.kind)),
        settings={name: _setting(runs, graph, name) for name in known_schema.settings},
    )
    gradients = np.sqrt(sums[:, :, SUM_G2].sum(axis=1)).tolist()
    finite = zip(statistics.finite.tolist(), statistics.state_finite.tolist(), strict=True)
    for control, its_losses, length, (whole, state), gradient in zip(
        controls, losses_host, known.tolist(), finite, gradients, strict=True
    ):
        control.note_observation(its_losses[:length], whole, gradient, state)
    return compute_features(schema, graph, statistics)
