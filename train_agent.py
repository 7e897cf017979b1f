"""Train a scheduling policy: ``python train_agent.py [name=... task=[...] episodes=... seed=...]``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from agents.reports.files import prepare_folder
from agents.runtime.command import launch, plain, use_data_root
from agents.runtime.progress import ProgressBar
from agents.runtime.settings import build
from agents.runtime.stopping import StopRequest
from agents.trackers import TrackerConfig, make_tracker
from agents.training.resuming import Resuming, identity_of
from agents.training.train import TrainConfig, train, versions
from agents.training.watch import Progress
from envs.pool import PoolConfig, draw_pool
from envs.tasks import Task, get_task
from gns.errors import InvalidSettingError

_OUTSIDE_TRAINING = ("name", "task", "pool", "validation_tasks", "tracker", "data_root", "resume")
_NO_PART_OF_THE_RESULT = ("name", "tracker", "data_root", "resume", "workers", "engine", "checkpoint")


def run(config: DictConfig) -> Path:
    """Train as the configuration says and return the policy's folder."""
    settings = build(TrainConfig, {key: value for key, value in plain(config).items() if key not in _OUTSIDE_TRAINING})
    use_data_root(config.data_root)
    tasks = [get_task(name, **changes) for name, changes in (plain(config).get("task") or {}).items()]
    pool = build(PoolConfig, plain(config)["pool"], "pool")
    others = build(ValidationTasks, plain(config)["validation_tasks"], "validation_tasks")
    tasks += draw_pool(pool)
    validation_tasks = others.tasks(pool) if settings.validation.every else []
    if not tasks:
        raise InvalidSettingError("There is no task to train on; expected some, as in task=[digits_mlp] or pool=broad.")
    folder = prepare_folder(Path("outputs") / config.name)
    console = Console()
    OmegaConf.save(config, folder / "train_config.yaml", resolve=True)
    (folder / "versions.json").write_text(json.dumps(versions(), indent=2), encoding="utf-8")
    first = "; tuning schedules to compare with first" if settings.baseline.controllers else ""
    console.print(f"Training a policy on {_named(tasks)}{first}.")
    if validation_tasks:
        console.print(f"The best on {_named(validation_tasks)}, none of which it learns from, is taken.")
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

    tracker = make_tracker(build(TrackerConfig, config.tracker, "tracker"), folder, config.name, "train", plain(config))
    with closing(tracker), StopRequest(noted) as stop, ProgressBar("training", "episodes", console) as bar:

        def show(progress: Progress) -> None:
            tuned = "" if math.isnan(progress.ratio) else f", {progress.ratio:.2f} x tuned"
            message = f"loss {progress.loss:.4f}{tuned}"
            dropped = f", {progress.dropped} dropped" if progress.dropped else ""
            bar.update(progress.episodes, settings.total_episodes, message + _scored(progress) + dropped)

        policy = train(
            tasks,
            settings,
            tracker,
            show,
            checkpoints=checkpoints,
            stop=stop,
            validation_tasks=validation_tasks,
            about={"drawn tasks": _of_pool(pool)} if pool.size else {},
        )
        target = folder / "policy"
        policy.save_pretrained(target)
        tracker.policy(config.name, target, policy.config.training)
        tracker.summary(dict(versions()) | policy.config.training)
    checkpoints.clear()
    console.print(f"Policy: {target} (load it with gns.GNSPolicy.from_pretrained)")
    for line in tracker.where():
        console.print(line, soft_wrap=True)
    return target


@dataclass(frozen=True)
class ValidationTasks:
    """Tasks that policies are scored on.

    :param names: of registered tasks
    :param drawn: number of tasks drawn as the pool's are
    :param seed: of these
    """

    names: tuple[str, ...] = ()
    drawn: int = 0
    seed: int = 1000

    def tasks(self, pool: PoolConfig) -> list[Task]:
        """Return them.

        :raises InvalidSettingError: if they would be the pool's own
        """
        if self.drawn and self.seed == pool.seed:
            raise InvalidSettingError(
                f"validation_tasks.seed and pool.seed are both {pool.seed}, which draws the same tasks; expected two."
            )
        drawn = [
            replace(task, name=f"validation_{task.name}")
            for task in draw_pool(replace(pool, size=self.drawn, seed=self.seed))
        ]
        return [get_task(name) for name in self.names] + drawn


def _named(tasks: Sequence[Task]) -> str:
    drawn = sum(task.drawn for task in tasks)
    return ", ".join([task.name for task in tasks if not task.drawn] + ([f"{drawn} drawn tasks"] if drawn else []))


def _of_pool(pool: PoolConfig) -> str:
    """Say of drawn tasks what their training can be repeated from."""
    return (
        f"{pool.size}, seed {pool.seed}, on {', '.join(pool.sources)}; networks: {', '.join(pool.families)}; "
        f"batches of {' to '.join(map(str, pool.batch_sizes))}; {pool.fine_tuning:.0%} fine-tuned"
    )


def _scored(progress: Progress) -> str:
    if progress.score is None or progress.best is None:
        return ""
    return f", validation {math.exp(progress.score.log_loss):.4f} (best {math.exp(progress.best.log_loss):.4f})"


def part_of_the_result(config: DictConfig) -> dict[str, Any]:
    """Return the settings that the policy depends on."""
    return {key: value for key, value in plain(config).items() if key not in _NO_PART_OF_THE_RESULT}


if __name__ == "__main__":
    launch("train_agent", run)
