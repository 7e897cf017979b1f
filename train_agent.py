"""Train a scheduling policy: ``python train_agent.py [name=... task=[...] episodes=... seed=...]``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from agents.command import launch, plain, use_data_root
from agents.progress import ProgressBar
from agents.report import prepare_folder
from agents.resuming import Resuming, identity_of
from agents.settings import build
from agents.stopping import StopRequest
from agents.training import Progress, TrainConfig, train, versions
from envs.tasks import get_task
from envs.tasks.pool import PoolConfig, draw_pool
from gns.errors import InvalidSettingError

_OUTSIDE_TRAINING = ("name", "task", "pool", "tracker", "data_root", "resume")
_NO_PART_OF_THE_RESULT = ("name", "tracker", "data_root", "resume", "workers", "engine", "checkpoint")


def run(config: DictConfig) -> Path:
    """Train as the configuration says and return the policy's folder."""
    settings = build(TrainConfig, {key: value for key, value in plain(config).items() if key not in _OUTSIDE_TRAINING})
    use_data_root(config.data_root)
    tasks = [get_task(name, **changes) for name, changes in (plain(config).get("task") or {}).items()]
    tasks += draw_pool(build(PoolConfig, plain(config)["pool"], "pool"))
    if not tasks:
        raise InvalidSettingError("There is no task to train on; expected some, as in task=[digits_mlp] or pool=broad.")
    folder = prepare_folder(Path("outputs") / config.name)
    console = Console()
    OmegaConf.save(config, folder / "train_config.yaml", resolve=True)
    (folder / "versions.json").write_text(json.dumps(versions(), indent=2), encoding="utf-8")
    console.print(f"Training a policy on {', '.join(t.name for t in tasks)}; tuning schedules to compare with first.")
    console.print(
        "loss: recent final losses on the reward split; x tuned: over the best tuned schedule's.", highlight=False
    )
    checkpoints = Resuming(folder / "checkpoints", settings.checkpoint, identity_of(part_of_the_result(config)))
    if config.resume == "never":
        checkpoints.clear()
    elif config.resume != "auto":
        raise InvalidSettingError(f"resume is {config.resume!r}; expected auto or never.")

    def noted(name: str) -> None:
        console.print(f"{name}: finishing this rollout, then stopping. A second one ends at once.")

    with StopRequest(noted) as stop, ProgressBar("training", "episodes", console) as bar:

        def show(progress: Progress) -> None:
            tuned = "" if math.isnan(progress.ratio) else f", {progress.ratio:.2f} x tuned"
            message = f"loss {progress.loss:.4f}{tuned}"
            dropped = f", {progress.dropped} dropped" if progress.dropped else ""
            bar.update(progress.episodes, settings.total_episodes, message + dropped)

        tensorboard = folder / "tensorboard" if config.tracker.tensorboard else None
        policy = train(tasks, settings, tensorboard, show, checkpoints=checkpoints, stop=stop)
    target = folder / "policy"
    policy.save_pretrained(target)
    checkpoints.clear()
    console.print(f"Policy: {target} (load it with gns.GNSPolicy.from_pretrained)")
    if config.tracker.tensorboard:
        console.print(f"Curves: tensorboard --logdir {folder / 'tensorboard'}")
    return target


def part_of_the_result(config: DictConfig) -> dict[str, Any]:
    """Return the settings that the policy depends on."""
    return {key: value for key, value in plain(config).items() if key not in _NO_PART_OF_THE_RESULT}


if __name__ == "__main__":
    launch("train_agent", run)
