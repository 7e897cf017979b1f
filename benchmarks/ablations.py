"""What each choice of the recipe is worth: policies trained with one of them changed, on tasks that none learned from.

``python -m benchmarks.ablations [--seeds 3] [--only NAME ...] [--folder outputs/ablations] [SETTING=VALUE ...]``
trains a policy a variant and seed by ``train_agent.py`` on a pool of drawn tasks, one after the other, and prints a
table: the geometric mean loss of the variant's policies on the validation episodes (full budgets, without noise, reward
splits, the best of each training) over that of the recipe as it stands, seed by seed, with Student's interval of the
mean over seeds. Train both sides of a ratio on one machine: two processors round differently, and two trainings that
differ in nothing else drift apart as two seeds do. Settings given go to every training and win over the variant's own.
What is there already is not trained again, and a training that was interrupted goes on. Writes ``ablations.csv`` and
``ablations.md`` there.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

ROOT = Path(__file__).resolve().parent.parent
BASE = "recipe"
# What a training on two cores gets through in a few minutes; the settings of pool=broad else.
POOL = [
    "pool=broad",
    "task=[]",
    "pool.size=16",
    "pool.operations=3e8",
    "pool.budgets=[20,400]",
    "agent.num_envs=128",
    "agent.episodes_per_rollout=128",
    "agent.batch_size=320",
    "env.curriculum.episodes=5",
    "episodes=2560",
    "validation.every=512",
    "tracker=none",
]
VARIANTS: dict[str, list[str]] = {
    BASE: [],
    "no graph: global features alone": ["agent.network.convolution=none"],
    "hierarchical graph": ["agent.network.hierarchical=true"],
    "action: recursive": ["env.decision.mode=recursive"],
    "action: anchored": ["env.decision.mode=anchored"],
    "action: gns-paper": ["env.decision.mode=gns-paper"],
    "action: per-layer": ["env.decision.mode=per-layer"],
    "first decision after the first interval": ["env.decision.decide_first=false"],
    "no guard": ["env.guard.enabled=false"],
    "reward: squared metric": ["env.reward=squared-metric"],
    "reward: at a fifth of the decisions": ["env.reward_probability=0.2"],
    # Short budgets come first and take few decisions here: 2,070 become about as many episodes as 2,560 elsewhere.
    "a decision every 10 updates": ["+env.decision.decision_interval=10", "episodes=2070"],
    "no curriculum": ["env.curriculum.episodes=0"],
    "entropy bonus, falling": ["agent.ent_coef=0.01"],
    "three tasks instead of sixteen": ["pool.size=3"],
}


def run_name(variant: str, seed: int) -> str:
    """Return the name of one training: letters, digits and dashes."""
    return "-".join("".join(c if c.isalnum() else " " for c in variant).split()) + f"-{seed}"


def train(folder: Path, variant: str, seed: int, settings: Sequence[str]) -> None:
    """Train a policy, unless it is there; go on with a training that was interrupted.

    :raises SystemExit: if the training fails
    """
    name = run_name(variant, seed)
    if (folder / "outputs" / name / "policy" / "config.json").exists():
        return
    command = [sys.executable, str(ROOT / "train_agent.py"), f"name={name}", f"seed={seed}", *POOL]
    code = subprocess.run([*command, *VARIANTS[variant], *settings], cwd=folder, check=False).returncode
    if code:
        raise SystemExit(code)


def score(folder: Path, variant: str, seed: int) -> Mapping[str, float] | None:
    """Return what the card of a policy says of its validation, None if there is no policy yet."""
    path = folder / "outputs" / run_name(variant, seed) / "policy" / "config.json"
    if not path.exists():
        return None
    card = json.loads(path.read_text(encoding="utf-8"))["training"]
    return {
        "log_loss": card["mean log loss there, on the reward split"],
        "lost": card["share of episodes lost there"],
        "episodes": card["episodes"],
    }


def table(folder: Path, variants: Sequence[str], seeds: int) -> pd.DataFrame:
    """Return a row a training that is done: variant, seed, log_loss, lost, episodes, and log_ratio to the recipe's."""
    rows = []
    for seed in range(seeds):
        base = score(folder, BASE, seed)
        for variant in variants:
            found = score(folder, variant, seed)
            if found is not None:
                ratio = found["log_loss"] - base["log_loss"] if base is not None else math.nan
                rows.append({"variant": variant, "seed": seed, **found, "log_ratio": ratio})
    return pd.DataFrame(rows, columns=["variant", "seed", "log_loss", "lost", "episodes", "log_ratio"])


def markdown(rows: pd.DataFrame) -> str:
    """Return the table: by variant each seed's ratio, their geometric mean and its 95 % interval (t)."""
    lines = [
        "| changed | loss over the recipe's, each seed | mean | 95 % (t) | runs lost |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for variant, own in rows[rows.variant != BASE].groupby("variant", sort=False):
        logs = own.log_ratio.to_numpy(dtype=float)
        each = ", ".join(f"{ratio:.2f}" for ratio in np.exp(logs))
        interval = ""
        if len(logs) > 1:
            low, high = np.exp(student.interval(0.95, len(logs) - 1, logs.mean(), logs.std(ddof=1) / len(logs) ** 0.5))
            interval = f"{low:.2f} to {high:.2f}"
        lines.append(f"| {variant} | {each} | {math.exp(logs.mean()):.2f} | {interval} | {own.lost.mean():.1%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--folder", type=Path, default=Path("outputs/ablations"))
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    variants = list(dict.fromkeys([BASE, *arguments.only]))
    for seed in range(arguments.seeds):
        for variant in variants:
            train(arguments.folder, variant, seed, arguments.settings)
            rows = table(arguments.folder, variants, arguments.seeds)
            rows.to_csv(arguments.folder / "ablations.csv", index=False)
            (arguments.folder / "ablations.md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
