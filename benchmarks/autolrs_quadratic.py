"""Whether AutoLRS finds the best constant rate of a noisy quadratic, and what its settings are worth.

The loss of a batch is the mean over its points x of ``1/2 sum_i h_i (w_i - x_i)^2``, with ten curvatures h from 3e-4 to
1 and as much loss along each at the start; the points lie around 0. Plain SGD of one stage of 2000 updates. The
expected loss after the stage is known in closed form for every constant rate, and so is the best one, 1.74: not far
below 2, where the steepest direction diverges. Each seed draws other batches and other candidates, and shifts the
interval of rates, four decades, by up to half the distance of ten rates in it, so that no grid is lucky throughout.

    python -m benchmarks.autolrs_quadratic
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from functools import lru_cache, partial
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from agents.controllers.autolrs import AutoLRSController
from envs.learning_rate_env import Episode
from envs.tasks import Split, Task, TrainingData

LOWEST, HIGHEST, TAU, BATCH, POINTS, NOISE = 1e-3, 10.0, 2000, 4, 4096, 0.15
CURVATURES = np.geomspace(3e-4, 1.0, 10)
SETTINGS = {
    "ours: kappa 2, caution 2": {},
    "kappa 1000 (paper's)": {"kappa": 1000.0},
    "caution 0 (paper's)": {"caution": 0.0},
    "kappa 1000, caution 0 (paper's)": {"kappa": 1000.0, "caution": 0.0},
    "kappa 1e6, caution 0 (its code's)": {"kappa": 1e6, "caution": 0.0},
    "random": {"search": "random"},
    "grid": {"search": "grid"},
    "ours, on the validation loss": {"tau_max": TAU},
}


class Quadratic(nn.Module):
    """Returns 1/2 sum_i h_i (w_i - x_i)^2 of each point: (B, 10) to (B,)."""

    def __init__(self) -> None:
        super().__init__()
        curvatures = torch.tensor(CURVATURES, dtype=torch.float32)
        self.register_buffer("curvatures", curvatures)
        self.weights = nn.Parameter(curvatures.rsqrt())

    def forward(self, points: Tensor) -> Tensor:
        """Return the loss of each point."""
        return 0.5 * (self.curvatures * (self.weights - points).square()).sum(dim=1)

    def excess(self) -> float:
        """Return the loss above that of the best weights, infinity if there is none."""
        with torch.no_grad():
            loss = float(0.5 * (self.curvatures * self.weights.square()).sum())
        return loss if math.isfinite(loss) else math.inf


@lru_cache
def points(noise: float = NOISE) -> TrainingData:
    """Points around 0: their mean is exactly 0, in the training split and in the reward split."""
    drawn = noise * torch.randn(POINTS + 1024, len(CURVATURES), generator=torch.Generator().manual_seed(0))
    train, reward = (part - part.mean(dim=0) for part in (drawn[:POINTS], drawn[POINTS:]))
    return TrainingData(Split(train, train), Split(reward, reward))


def mean_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of the losses that the model returned."""
    return outputs.mean()


def quadratic(noise: float = NOISE) -> Task:
    """Return the task.

    :param noise: standard deviation of the points
    """
    return Task(
        name="quadratic",
        load_training_data=partial(points, noise),
        build_model=Quadratic,
        batch_size=BATCH,
        budget=TAU,
        optimizer="sgd",
        learning_rates={"sgd": (LOWEST, HIGHEST)},
        loss=mean_output,
        metrics={"loss": lambda outputs, split: float(outputs.mean())},
        higher_is_better=False,
    )


def expected_loss(rates: np.ndarray | float, noise: float = NOISE) -> np.ndarray:
    """Return the expected excess loss after a stage at constant rates, batches drawn independently.

    With f = 1 - rate h and s^2 the variance of a batch's mean, E w^2 = f^{2 tau} w_0^2
    + (rate h s)^2 (1 - f^{2 tau}) / (1 - f^2).
    """
    rate = np.atleast_1d(np.asarray(rates, dtype=float))[:, None]
    square = (1.0 - rate * CURVATURES) ** 2
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        kept = square**TAU
        added = (rate * CURVATURES * noise) ** 2 / BATCH * (1.0 - kept) / (1.0 - square)
        loss = 0.5 * (CURVATURES * (kept / CURVATURES + added)).sum(axis=1)
    return np.where(np.isfinite(loss), loss, np.inf)


def best_rate(noise: float = NOISE) -> float:
    """Return the rate of the lowest expected loss."""
    rates = np.geomspace(LOWEST, HIGHEST, 20_001)
    return float(rates[int(np.argmin(expected_loss(rates, noise)))])


def interval(seed: int) -> tuple[float, float]:
    """Return the lowest and the highest rate for a seed."""
    shift = (HIGHEST / LOWEST) ** ((seed * 0.6180339887 % 1.0 - 0.5) / 9.0)
    return LOWEST * shift, HIGHEST * shift


def found(
    settings: dict[str, object], seeds: Iterable[int], train: bool = True, noise: float = NOISE
) -> list[tuple[float, float]]:
    """Return the rate found and the excess loss after the stage, one pair a seed.

    :param settings: of :class:`agents.controllers.autolrs.AutoLRSController`
    :param train: whether to train the stage; else the loss is the expected one
    """
    results = []
    for seed in seeds:
        low, high = interval(seed)
        about = {"tau": TAU, "tau_max": 2 * TAU, "min_lr": low, "max_lr": high, **settings}
        controller = AutoLRSController("autolrs", **about)  # type: ignore[arg-type]
        session = controller.start(Episode(quadratic(noise), "sgd", TAU, 1.0, seed))
        while not session.finished and (train or session.searching):
            session.update()
        assert session.stage is not None
        rate = session.stage.rate
        results.append((rate, session.run.model.excess() if train else float(expected_loss(rate, noise)[0])))
    return results


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--first-seed", type=int, default=200, help="constants were chosen on lower ones")
    parser.add_argument("--noise", type=float, default=NOISE, help="standard deviation of the points")
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    torch.set_num_threads(1)
    noise = arguments.noise
    best = best_rate(noise)
    print(
        f"best constant rate {best:.3f}, expected loss {float(expected_loss(best, noise)[0]):.4f}; {len(seeds)} seeds"
    )
    print(
        "| search | within 20 % | mean abs log error | mean final loss | median | worst |\n"
        + "| --- "
        + "| ---: " * 5
        + "|"
    )
    fixed = {"the best rate": {"candidates": 1, "search": "grid", "min_lr": best * 0.999, "max_lr": best * 1.001}}
    for name, settings in {**fixed, **SETTINGS}.items():
        rates, losses = zip(*found(settings, seeds, noise=noise), strict=True)
        errors = [abs(math.log(rate / best)) for rate in rates]
        near = sum(error <= math.log(1.2) for error in errors)
        figures = " | ".join(f"{value:.3g}" for value in (fmean(losses), float(np.median(losses)), max(losses)))
        print(f"| {name} | {near} of {len(seeds)} | {fmean(errors):.3f} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
