"""Draws the picture of worth.md: ``python docs/worth_picture.py`` writes ``docs/images/worth.png``."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from agents.evaluation.worth import TuningCurve, expected_log_loss, log_loss, worth
from agents.training.curve_records import read_records
from agents.training.tuning_curves import learnable, log_losses, starting_rate
from gns.schedules.calibrated import calibration

ROOT = Path(__file__).resolve().parents[1]


def draw(path: Path, number: int = 13) -> None:
    """Draw one drawn task's tuning curves under REX, and what the best of k tries comes to there.

    :param number: of the task among those whose curves are kept
    """
    records = learnable(list(read_records(ROOT / "data" / "curves.jsonl.xz")))
    record = next(one for one in records if one["number"] == number)
    rates, losses = np.array(record["rates"]), np.exp(log_losses(record, "rex"))
    curve = TuningCurve(rates, losses, losses, record["facts"]["start_loss"])
    default = starting_rate(record["facts"], calibration()["profiles"]["rex"])
    logs = log_loss(losses, curve.ceiling)
    ends = np.array([np.interp(np.log(default), np.log(rates), row) for row in logs]).mean()

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    for seed, row in enumerate(logs):
        left.plot(rates, np.exp(row), "o-", ms=3, color="#4477aa", alpha=1.0 - 0.4 * seed, label=f"seed {seed}")
    left.plot(default, np.exp(ends), "D", color="#cc3311", label="default rate, one run")
    left.set(xscale="log", yscale="log", xlabel="initial rate (four decades)", ylabel="final loss, reward split")
    left.set_title("What REX comes to from each rate", fontsize=10)
    left.legend(fontsize=8)
    tries = np.geomspace(0.5, 40, 200)
    right.plot(
        tries, np.exp(expected_log_loss(curve, tries)), color="#4477aa", label="best of k tries, tuned and measured"
    )
    found = worth(curve, float(ends))
    right.axhline(np.exp(ends), color="#cc3311", lw=1)
    right.plot([found, found], [right.get_ylim()[0], np.exp(ends)], ":", color="#cc3311")
    right.plot(found, np.exp(ends), "D", color="#cc3311", label=f"the default is worth {found:.1f} tries here")
    right.set(xscale="log", xlabel="tries k")
    right.set_title("What the best of k tries is expected to come to", fontsize=10)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(ROOT / "docs" / "images" / "worth.png")
