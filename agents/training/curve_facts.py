"""What is known of a task before its first update: what a rate may be predicted from without training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from envs.pool.people import passes_of
from envs.tasks import Task
from envs.training_run import TrainingRun
from gns.graph.layer_graph import NODE_TYPES, layer_graph


def facts_of(task: Task) -> dict[str, Any]:
    """Return static facts of a task and its optimizer, plain values by name, and the loss before training."""
    run = TrainingRun(task, task.optimizer, 1e-3, seed=0)
    start = run.evaluate_reward_split()
    graph = layer_graph(run.model, run.compute_gradient())
    group, modules = run.optimizer.param_groups[0], list(run.model.modules())
    beta1, beta2 = group.get("betas", (group.get("momentum", 0.0), 0.0))
    assert task.budget is not None
    return {
        "optimizer": task.optimizer,
        "momentum": beta1,
        "beta2": beta2,
        "weight_decay": max(group["weight_decay"] for group in run.optimizer.param_groups),
        "budget": task.budget,
        "batch_size": min(task.batch_size, len(task.training_data().train)),
        "examples": len(task.training_data().train),
        "passes": round(passes_of(task), 3),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "layers": graph.num_nodes,
        "edges": graph.num_edges,
        "kinds": {name: int((torch.as_tensor(graph.type_ids) == i).sum()) for i, name in enumerate(NODE_TYPES)},
        "batch_norm": any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules),
        "layer_norm": any(isinstance(module, nn.LayerNorm | nn.GroupNorm) for module in modules),
        "recurrent": any(isinstance(module, nn.RNNBase) for module in modules),
        "fine_tuning": task.name.endswith("_fine_tuned"),
        "clipped": task.clip_norm is not None,
        "start_loss": float(f"{start.loss:.5g}"),
        "start_metric": float(f"{start.metric:.4g}"),
    }
