"""Whether runs of a task can be trained side by side, and are faster for it."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from envs.batched.model import NotBatchableError
from envs.batched.runs import BatchedRuns
from envs.tasks import Task

PAYS_UP_TO = 4e7  # floating-point operations of a forward pass on a batch: above, a CPU is as fast one by one


def faster_together(task: Task, device: str = "cpu") -> bool:
    """Say whether runs of a task can be trained side by side on a device and are faster for it.

    On a CPU small networks are, see docs/performance.md: those whose forward pass on a batch has at most
    :data:`PAYS_UP_TO` operations.
    """
    small = torch.device(device).type != "cpu" or forward_operations(task) <= PAYS_UP_TO
    return small and _batchable(task)


def _batchable(task: Task) -> bool:
    """Say whether runs can be trained together, by doing it once."""
    try:
        runs = BatchedRuns(task, "sgd", 2)
        runs.begin(range(2), [0, 1])
        runs.compute_gradients(torch.ones(2, dtype=torch.bool))
        runs.evaluate_reward_split([0, 1], with_metrics=False)
    except NotBatchableError:
        return False
    return True


def forward_operations(task: Task) -> int:
    """Return the floating-point operations of a model's forward pass on one batch: of products and convolutions."""
    train = task.training_data().train
    rows = torch.arange(min(task.batch_size, len(train)))
    with torch.random.fork_rng(devices=[]):
        model = task.new_model()  # which may be trained first
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(task.prepare(train.batch(rows)[0], False))
    return int(counter.get_total_flops())
