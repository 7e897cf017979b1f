"""Runs whose end is not known in advance: a policy that is cooled down, beside one that knows it and two that need not.

    python -m benchmarks.unknown_length [--policy POLICY] [--seeds 3]

Mean loss on the reward split at the end of a run of Adam from each of four initial rates, by task and method: the
policy with ``total_steps=None`` and a cooldown over the last fifth; with ``total_steps`` given; warmup-stable-decay
whose decay is the last fifth; schedule-free AdamW. Nothing is tuned.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from statistics import mean

import schedulefree
import torch

from envs.tasks import Task, get_task
from gns import GNSScheduler, ProfileLR

RUNS = {"digits_mlp": 600, "mnist1d_mlp": 1000, "digits_cnn": 400}
METHODS = ("unknown length", "known length", "warmup-stable-decay", "schedule-free")
RATES = (1e-4, 1e-3, 1e-2, 1e-1)
COOLDOWN = 0.2


def final_loss(task: Task, method: str, rate: float, updates: int, seed: int, policy: str | None) -> float:
    """Train once and return the loss on the reward split."""
    torch.manual_seed(seed)
    data, model = task.training_data(), task.build_model(**task.model)
    free = method == "schedule-free"
    kind = schedulefree.AdamWScheduleFree if free else torch.optim.Adam
    optimizer = kind(model.parameters(), lr=rate, weight_decay=0.0)
    cooldown, length = int(COOLDOWN * updates), updates if method == "known length" else None
    scheduler: GNSScheduler | ProfileLR | None = None
    if method.endswith("length"):
        scheduler = GNSScheduler(optimizer, model, total_steps=length, policy=policy)
    elif not free:
        scheduler = ProfileLR(optimizer, updates, "warmup-stable-decay", decay=COOLDOWN)
    else:
        optimizer.train()
    for update in range(updates):
        if method == "unknown length" and update == updates - cooldown:
            scheduler.cooldown(cooldown)
        inputs, targets = data.train.batch(torch.randint(len(data.train), (task.batch_size,)))
        loss = task.loss(model(task.prepare(inputs, True)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step(*([loss] if isinstance(scheduler, GNSScheduler) else []))
    if free:
        optimizer.eval()
    model.eval()
    with torch.no_grad():
        return float(task.loss(model(task.prepare(data.reward.inputs, False)), data.reward.targets))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", help="folder or Hub id; the bundled one by default")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for name, updates in RUNS.items():
        task = get_task(name)
        for method in METHODS:
            losses = [
                mean(final_loss(task, method, rate, updates, seed, given.policy) for seed in range(given.seeds))
                for rate in RATES
            ]
            print(f"{name:<12} {updates:5} {method:<20}", *(f"{loss:.4f}" for loss in losses), flush=True)


if __name__ == "__main__":
    main()
