"""Train a scheduling policy: ``python train_agent.py [name=... task=[...] episodes=... seed=...]``."""

from __future__ import annotations

import json
import math
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from agents.command import launch, plain, use_data_root
from agents.progress import ProgressBar
from agents.report import prepare_folder
from agents.settings import build
from agents.training import Progress, TrainConfig, train, versions
from envs.tasks import get_task

_OUTSIDE_TRAINING = ("name", "task", "tracker", "data_root")


def run(config: DictConfig) -> Path:
    """Train as the configuration says and return the policy's folder."""
    settings = build(TrainConfig, {key: value for key, value in plain(config).items() if key not in _OUTSIDE_TRAINING})
    use_data_root(config.data_root)
    tasks = [get_task(name, **changes) for name, changes in plain(config)["task"].items()]
    folder = prepare_folder(Path("outputs") / config.name)
    console = Console()
    OmegaConf.save(config, folder / "train_config.yaml", resolve=True)
    (folder / "versions.json").write_text(json.dumps(versions(), indent=2), encoding="utf-8")
    console.print(f"Training a policy on {', '.join(t.name for t in tasks)}; tuning schedules to compare with first.")
    console.print(
        "loss: recent final losses on the reward split; x tuned: over the best tuned schedule's.", highlight=False
    )
    with ProgressBar("training", "episodes", console) as bar:

        def show(progress: Progress) -> None:
            tuned = "" if math.isnan(progress.ratio) else f", {progress.ratio:.2f} x tuned"
            message = f"loss {progress.loss:.4f}{tuned}"
            bar.update(progress.episodes, settings.total_episodes, message)

        policy = train(tasks, settings, folder / "tensorboard" if config.tracker.tensorboard else None, show)
    target = folder / "policy"
    policy.save_pretrained(target)
    console.print(f"Policy: {target} (load it with gns.GNSPolicy.from_pretrained)")
    if config.tracker.tensorboard:
        console.print(f"Curves: tensorboard --logdir {folder / 'tensorboard'}")
    return target


if __name__ == "__main__":
    launch("train_agent", run)
