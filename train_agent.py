"""Train a scheduling policy: ``python train_agent.py [name=... task=[...] episodes=... seed=...]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from agents.progress import ProgressBar
from agents.report import prepare_folder
from agents.settings import build, check_choices
from agents.training import Progress, TrainConfig, train, versions
from envs.tasks import get_task
from gns.errors import GNSError

_OUTSIDE_TRAINING = ("name", "task", "tracker")


def run(config: DictConfig) -> Path:
    """Train as the configuration says and return the policy's folder."""
    settings = build(TrainConfig, {key: value for key, value in plain(config).items() if key not in _OUTSIDE_TRAINING})
    tasks = [get_task(name, **changes) for name, changes in plain(config)["task"].items()]
    folder = prepare_folder(Path("outputs") / config.name)
    console = Console()
    OmegaConf.save(config, folder / "train_config.yaml", resolve=True)
    (folder / "versions.json").write_text(json.dumps(versions(), indent=2), encoding="utf-8")
    console.print(f"Training a policy on {', '.join(t.name for t in tasks)}; tuning schedules to compare with first.")
    with ProgressBar("training", "episodes", console) as bar:

        def show(progress: Progress) -> None:
            message = f"loss {progress.loss:.4f}, {progress.ratio:.3f} x best tuned schedule"
            bar.update(progress.episodes, settings.total_episodes, message)

        policy = train(tasks, settings, folder / "tensorboard" if config.tracker.tensorboard else None, show)
    target = folder / "policy"
    policy.save_pretrained(target)
    console.print(f"Policy: {target} (load it with gns.GNSPolicy.from_pretrained)")
    if config.tracker.tensorboard:
        console.print(f"Curves: tensorboard --logdir {folder / 'tensorboard'}")
    return target


def plain(config: DictConfig) -> dict:
    """Return a configuration as plain dictionaries, references resolved."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


@hydra.main(version_base=None, config_path="configs", config_name="train_agent")
def main(config: DictConfig) -> None:
    """Compose the configuration and train."""
    try:
        run(config)
    except GNSError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    try:
        check_choices(sys.argv[1:])
    except GNSError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
    main()
