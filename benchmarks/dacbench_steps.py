"""The side of :mod:`benchmarks.environment_steps` that runs in DACBench's interpreter, and the stopwatch of both sides.

    outputs/dacbench/bin/python benchmarks/dacbench_steps.py FOLDER        # prints one line of JSON

FOLDER holds ``data.npz`` (what to train on and what to hold out) and ``model.pt`` (a pickled model). DACBench's SGD
environment (Eimer et al., "DACBench", IJCAI 2021; package version 0.5.6) then trains that model on those data: through
its own loaders, on tensors that are in memory and need no transform, and with a fused AdamW, the only optimizer it has.
What a decision of it is, and what else it does there:

- *epoch mode* (its default): one pass over the training part, a loss read by the host at every update;
- *batch mode*: one update (none at the first decision of an episode), on the first batch of a new pass over its loader;
- in both it validates on at least a tenth of its held-out part, in whole batches (two of twelve here; on all of it
  where its cutoff is a multiple of the batches in a pass), at every decision: part of what its decisions cost.

It imports nothing of this project: PyTorch, NumPy and, where it measures, DACBench and the torchvision that needs.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from torch import Tensor, library, nn

TURN = 0.1  # seconds
RATE = 1e-3
_operators: Any = None  # keeps what it declares
Step = Callable[[], tuple[int, int]]  # makes a step of some environments; says how many decisions and updates it was


def bare_loop(model: nn.Module, inputs: Tensor, targets: Tensor, batch_size: int) -> Step:
    """Return a plain training loop's update: draw a batch, forward, backward, fused AdamW.

    :param inputs: (N, ...) of a classification problem
    :param targets: int64 (N,)
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    whole = len(inputs) // batch_size * batch_size
    order: list[Tensor] = []

    def update() -> tuple[int, int]:
        if not order:
            order.extend(torch.randperm(len(inputs))[:whole].split(batch_size))
        rows = order.pop()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
        return 0, 1

    return update


def compare(step: Step, bare: Step, decisions: int, seconds: float, least: int = 3) -> dict[str, float]:
    """Let an environment and the bare loop take turns of a fraction of a second.

    A ratio is of everything between two resets, so that the cost of a new episode is in each with its due share.

    :param decisions: of an episode, of all environments that a step steps
    :param seconds: how long to go on
    :param least: episodes to measure, however long they take
    :return: medians over episodes, by name; ``fraction``: the environment's updates a second over the bare loop's, and
        its quartiles ``low`` and ``high``
    """
    _turn(bare, 0, TURN)
    _turn(step, 1, 0.0)
    speeds, fractions, bare_speeds, updates_per_decision = [], [], [], []
    end = time.perf_counter() + seconds
    while len(fractions) < least or time.perf_counter() < end:
        own, other = np.zeros(3), np.zeros(3)
        while own[0] < decisions:
            own += _turn(step, decisions - int(own[0]), TURN)
            other += _turn(bare, 0, TURN)
        speeds.append(own[0] / own[2])
        updates_per_decision.append(own[1] / own[0])
        bare_speeds.append(other[1] / other[2])
        fractions.append(own[1] / own[2] / bare_speeds[-1])
    low, _, high = quantiles(fractions, n=4) if len(fractions) > 1 else fractions * 3
    return {
        "decisions_per_second": float(median(speeds)),
        "updates_per_decision": float(median(updates_per_decision)),
        "bare_updates_per_second": float(median(bare_speeds)),
        "fraction": float(median(fractions)),
        "low": float(low),
        "high": float(high),
    }


def _turn(step: Step, decisions: int, seconds: float) -> np.ndarray:
    """Step for a while; return decisions and updates made, and the seconds they took.

    :param decisions: stop after so many, if they come before the time is over; 0: never
    """
    made, updates = 0, 0
    start = now = time.perf_counter()
    while True:
        more_decisions, more_updates = step()
        made, updates = made + more_decisions, updates + more_updates
        now = time.perf_counter()
        if now - start >= seconds or (decisions and made >= decisions):
            return np.array([made, updates, now - start])


class InMemory(torch.utils.data.Dataset):
    """A classification problem in memory, in the shape of torchvision's data sets, which DACBench asks for by name.

    The held-out part stands in for the test split too, on which DACBench evaluates at the end of an episode.
    """

    arrays: dict[str, Tensor] = {}

    def __init__(self, _path: Any, train: bool, download: bool = False, transform: Any = None) -> None:
        parts = ("train", "held_out") if train else ("held_out",)
        self.inputs, self.targets = (
            torch.cat([self.arrays[f"{part}_{what}"] for part in parts]) for what in ("inputs", "targets")
        )

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.inputs[row], self.targets[row]

    def __getitems__(self, rows: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Return a batch's examples: two look-ups in place of two an example."""
        index = torch.tensor(rows)
        return list(zip(self.inputs[index].unbind(), self.targets[index].unbind(), strict=True))


def import_torchvision() -> Any:
    """Import torchvision; also where its compiled part is for another build of PyTorch.

    Then its import stops at two operators that it cannot find; they are declared, and never called.
    """
    try:
        import torchvision
    except RuntimeError:
        global _operators
        _operators = library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


def make_environment(arrays: dict[str, Tensor], model: nn.Module, batch_size: int, epoch_mode: bool) -> Any:
    """Return DACBench's SGD environment, at its default settings but for the problem."""
    torchvision = import_torchvision()
    from dacbench.benchmarks import SGDBenchmark
    from dacbench.envs.sgd import SGDInstance

    InMemory.arrays = arrays
    torchvision.datasets.InMemory = InMemory
    train, held_out = len(arrays["train_inputs"]), len(arrays["held_out_inputs"])
    benchmark = SGDBenchmark()
    benchmark.config.update(
        dataset_config={"InMemory": {"train_transform": None, "test_transform": None}},
        loss_function=nn.CrossEntropyLoss,
        loss_function_kwargs={"reduction": "none"},
        epoch_mode=epoch_mode,
        instance_set={
            0: SGDInstance(
                model=lambda: copy.deepcopy(model),
                optimizer_type=torch.optim.AdamW,
                optimizer_params={"fused": True},
                dataset_path="",
                dataset_name="InMemory",
                batch_size=batch_size,
                fraction_of_dataset=1.0,
                train_validation_ratio=train / (train + held_out),
                seed=0,
            )
        },
    )
    return benchmark.get_environment()


def stepping(env: Any) -> Step:
    """Return what makes a step of DACBench's environment, resets included."""
    env.reset()

    def step() -> tuple[int, int]:
        *_, terminated, truncated, _ = env.step(RATE)
        updates = len(env.train_loader) if env.epoch_mode else int(env.c_step > 1)  # the first has no gradient yet
        if terminated or truncated:
            env.reset()
        return 1, updates

    return step


def main() -> None:
    """Measure what FOLDER holds, and print the figures of both modes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each mode")
    parser.add_argument("--least", type=int, default=3, help="episodes to measure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    with np.load(args.folder / "data.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    model = torch.load(args.folder / "model.pt", weights_only=False)
    figures = {}
    for mode in ("epoch", "batch"):
        env = make_environment(arrays, model, args.batch_size, epoch_mode=mode == "epoch")
        bare = bare_loop(copy.deepcopy(model), arrays["train_inputs"], arrays["train_targets"], args.batch_size)
        figures[mode] = compare(stepping(env), bare, int(env.n_steps), args.seconds, args.least)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
