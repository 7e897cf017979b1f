"""The kinds of runs among the tasks of a training, which its policy's file says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from envs.learning_rate_env import EnvConfig
from envs.tasks import Task
from envs.training_run import TrainingRun
from gns.features.moments import optimizer_kind
from gns.features.statistics import OPTIMIZER_KINDS
from gns.graph.layer_graph import NODE_TYPES, layer_graph
from gns.policy.artefact import GNSPolicy
from gns.policy.trained_on import TrainedOn


def kinds_of(tasks: Sequence[Task], env: EnvConfig, initial_policy: str | None = None) -> TrainedOn:
    """Look at one untrained network of each task. The caller's random numbers stay as they are.

    :param env: what episodes are drawn from
    :param initial_policy: folder or Hub id of the policy that the training begins with, whose kinds count too
    """
    types: set[str] = set()
    optimizers: set[str] = set()
    losses: list[float] = []
    fine_tuning = False
    with torch.random.fork_rng(devices=[]):
        for task in tasks:
            for name in env.optimizers_of(task):
                run = TrainingRun(task, name, 1e-3, seed=0, device=env.device)
                optimizers.add(optimizer_kind(run.optimizer))
            loss = run.compute_gradient()
            types.update(layer_graph(run.model, loss).types)
            losses.append(abs(loss.item()))
            torch.manual_seed(1)
            fine_tuning = fine_tuning or _share_weights(run.model, task.new_model())
        before = TrainedOn() if initial_policy is None else GNSPolicy.from_pretrained(initial_policy).config.trained_on
    budgets = [budget for task in tasks for budget in env.budgets_of(task)]
    known = initial_policy is None or before.layer_types  # else types that the earlier training had are not known
    return TrainedOn(
        layer_types=tuple(kind for kind in NODE_TYPES if known and kind in types.union(before.layer_types)),
        optimizers=tuple(kind for kind in OPTIMIZER_KINDS if kind in optimizers.union(before.optimizers)),
        budgets=(min([*budgets, *before.budgets]), max([*budgets, *before.budgets])),
        losses=(min([*losses, *before.losses]), max([*losses, *before.losses])),
        fine_tuning=fine_tuning or bool(before.fine_tuning),
    )


def _share_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks of different seeds begin with some weights alike, which were then trained before."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return any(p.dim() > 1 and torch.equal(p.detach().cpu(), q.detach().cpu()) and bool(p.std() > 0) for p, q in pairs)
