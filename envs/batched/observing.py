"""What a policy sees of runs side by side: the features of one run, computed for all at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from envs.batched.optimizers import Settings
from envs.batched.runs import BatchedRuns
from gns.deciding.rate_control import RateControl
from gns.features.schemas import (
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
    compute_features,
)
from gns.graph.layer_graph import LayerGraph


@torch.no_grad()
def sums_of(runs: BatchedRuns, graph: LayerGraph, losses: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return per-tensor sums of all runs, float64 (N, P, NUM_SUMS), and their losses (N, k), with one copy to the host.

    The pending gradients are read, and the update that each run's optimizer would make with them at a rate of 1.

    :param losses: (N, k) on the runs' device, by row
    :return: both by run
    """
    weights, gradients = runs.weights, runs.gradients
    momentum, second = runs.optimizer.momentum, runs.optimizer.second
    values = torch.zeros(NUM_SUMS, *weights.shape, device=weights.device)
    values[SUM_W] = weights
    torch.mul(weights, weights, out=values[SUM_W2])
    torch.abs(gradients, out=values[SUM_ABS_G])
    torch.mul(gradients, gradients, out=values[SUM_G2])
    if momentum is not None:
        torch.mul(gradients, momentum, out=values[SUM_GM])
        torch.mul(momentum, momentum, out=values[SUM_M2])
    values[SUM_V] = second if second is not None else values[SUM_G2]
    update = _coming_update(runs)
    torch.mul(update, update, out=values[SUM_U2])
    sums = torch.stack([part.sum(dim=-1) for part in runs.split(values)]).permute(2, 0, 1)
    host = torch.cat([sums.reshape(runs.size, -1), losses], dim=1).cpu().numpy().astype(np.float64)
    table, losses_host = np.split(host, [sums[0].numel()], axis=1)
    numbers = {name: number for number, name in enumerate(runs.model.shapes)}
    table = table.reshape(sums.shape)[:, [numbers[name] for layer in graph.parameters for name in layer]]
    if second is not None:  # of no gradient yet: the squared gradient stands in, as it does alone
        fresh = runs.optimizer.steps.numpy() == 0
        table[fresh, :, SUM_V] = table[fresh, :, SUM_G2]
    return table[runs.rows], losses_host[runs.rows]


def _coming_update(runs: BatchedRuns) -> torch.Tensor:
    """The update of every run at a rate of 1, (N, P); see :mod:`gns.features.moments`."""
    optimizer, gradients = runs.optimizer, runs.gradients
    settings, momentum, second = optimizer.settings, optimizer.momentum, optimizer.second
    if settings.decays and not settings.decoupled:
        gradients = settings.with_decay(gradients, runs.weights)
    if momentum is None:
        return gradients
    if second is None:
        return torch.add(gradients, momentum, alpha=settings.momentum)
    (beta1, beta2), steps = settings.betas, (optimizer.steps + 1.0).unsqueeze(1)
    update = torch.lerp(momentum, gradients, 1.0 - beta1)
    scale = second.mul(beta2).addcmul_(gradients, gradients, value=1.0 - beta2).rsqrt_().reciprocal_()
    scale.mul_((1.0 - beta2**steps).rsqrt().to(scale)).add_(settings.eps)
    update.div_(scale).div_((1.0 - beta1**steps).to(update))
    return settings.with_decay(update, runs.weights) if settings.decays and settings.decoupled else update


def _scales(settings: Settings, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors that make momentum a mean of gradients, and second moments free of their bias, (N,) each."""
    ones = np.ones_like(steps)
    if settings.kind == "sgd":
        first = settings.momentum ** (np.maximum(steps, 1.0) - 1.0)
        return (1.0 / (first + (1.0 - first) / (1.0 - settings.momentum)) if settings.momentum else ones), ones
    started = steps > 0
    safe = np.where(started, steps, 1.0)
    beta1, beta2 = settings.betas
    return np.where(started, 1.0 / (1.0 - beta1**safe), 1.0), np.where(started, 1.0 / (1.0 - beta2**safe), 1.0)


def observe(
    runs: BatchedRuns, graph: LayerGraph, controls: Sequence[RateControl], losses: torch.Tensor, schema: str
) -> tuple[np.ndarray, np.ndarray]:
    """Observe all runs, and tell their controls what was seen.

    :param controls: of each of the N runs
    :param losses: of the updates of each run since its last decision, oldest first, (N, at least
        as many), by row
    :return: node features (N, L, F) and global features (N, G) of the schema
    """
    sums, losses_host = sums_of(runs, graph, losses)
    count, tensors = sums.shape[:2]
    memories = [control.memory for control in controls]
    known = np.array([memory.interval_updates for memory in memories])
    momentum_scale, second_scale = _scales(runs.optimizer.settings, runs.optimizer.steps.numpy()[runs.rows])
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
        optimizer_kind=np.full(count, OPTIMIZER_KINDS.index(runs.optimizer.settings.kind)),
    )
    gradients = np.sqrt(sums[:, :, SUM_G2].sum(axis=1)).tolist()
    for control, its_losses, length, finite, gradient in zip(
        controls, losses_host, known.tolist(), statistics.finite.tolist(), gradients, strict=True
    ):
        control.saw(its_losses[:length], finite, gradient)
    return compute_features(schema, graph, statistics)
