"""Train a scheduling policy: ``python train_agent.py [name=... task=[...] episodes=... seed=...]``."""

from __future__ import annotations

if __name__ == "__main__":  # before all imports: --help and --cfg need none of them, and they take seconds
    import sys
    from importlib import import_module

    from agents.runtime.command import launch

    launch("train_agent", lambda config: import_module("train_agent").run(config))
    sys.exit()

import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from agents.evaluation.results_cache import ResultsCache
from agents.runtime.command import plain, require_device, use_data_root
from agents.runtime.output_folder import output_folder
from agents.runtime.progress import ProgressBar, Work
from agents.runtime.settings import build
from agents.runtime.stopping import StopRequest
from agents.trackers import TrackerConfig, make_tracker
from agents.training.resuming import Resuming, identity_of
from agents.training.saving import POLICY, require_unfinished, save_policy
from agents.training.train import TrainConfig, train, versions
from agents.training.watch import Progress
from envs.pool import PoolConfig, draw_pool
from envs.tasks import Task, get_task
from gns.errors import InvalidSettingError

_OUTSIDE_TRAINING = ("name", "task", "pool", "validation_tasks", "tracker", "data_root", "resume", "overwrite")
_NO_PART_OF_THE_RESULT = ("name", "tracker", "data_root", "resume", "overwrite", "workers", "engine", "checkpoint")


def run(config: DictConfig) -> Path:
    """Train as the configuration says and return the policy's folder; one that is finished is left as it is.

    :raises InvalidSettingError: among others, if a finished policy of other settings has the name
    """
    settings = build(TrainConfig, {key: value for key, value in plain(config).items() if key not in _OUTSIDE_TRAINING})
    use_data_root(config.data_root)
    require_device(settings.env.device, "env.device", settings.engine)
    tasks = [get_task(name, **changes) for name, changes in (plain(config).get("task") or {}).items()]
    pool = build(PoolConfig, plain(config)["pool"], "pool")
    others = build(ValidationTasks, plain(config)["validation_tasks"], "validation_tasks")
    tasks += draw_pool(pool)
    validation_tasks = others.tasks(pool) if settings.validation.every else []
    if not tasks:
        raise InvalidSettingError("There is no task to train on; expected some, as in task=[digits_mlp] or pool=broad.")
    if config.resume not in ("auto", "never"):
        raise InvalidSettingError(f"resume is {config.resume!r}; expected auto or never.")
    if not isinstance(config.overwrite, bool):
        raise InvalidSettingError(f"overwrite is {config.overwrite!r}; expected true or false.")
    console = Console()
    with output_folder(config.name, "train_agent") as folder:
        identity = identity_of(part_of_the_result(config))
        checkpoints = Resuming(folder / "checkpoints", settings.checkpoint, identity)
        goes_on = config.resume == "auto" and checkpoints.begun
        if not (config.overwrite or goes_on or require_unfinished(folder, identity)):
            console.print(
                f"All is done: {folder / POLICY} was trained with these settings, and is left as it is. To train anew, "
                "choose another name or set overwrite=true."
            )
            return folder / POLICY
        if config.resume == "never":
            checkpoints.clear()
        _say_what_is_done(console, settings, tasks, validation_tasks)
        return _train(config, settings, folder, checkpoints, tasks, validation_tasks, console)


def _say_what_is_done(
    console: Console, settings: TrainConfig, tasks: Sequence[Task], validation_tasks: Sequence[Task]
) -> None:
    first = "; tuning schedules to compare with first" if settings.baseline.controllers else ""
    console.print(f"Training a policy on {_named(tasks)}{first}.")
    if validation_tasks:
        console.print(f"The best on {_named(validation_tasks)}, none of which it learns from, is taken.")
    console.print(
        "loss: recent final losses on the reward split; x tuned: over the best tuned schedule's.", highlight=False
    )


def _train(
    config: DictConfig,
    settings: TrainConfig,
    folder: Path,
    checkpoints: Resuming,
    tasks: Sequence[Task],
    validation_tasks: Sequence[Task],
    console: Console,
) -> Path:
    OmegaConf.save(config, folder / "train_config.yaml", resolve=True)
    (folder / "versions.json").write_text(json.dumps(versions(), indent=2), encoding="utf-8")
    pool = build(PoolConfig, plain(config)["pool"], "pool")

    def noted(name: str) -> None:
        console.print(f"{name}: finishing this rollout, then stopping. A second one ends at once.")

    kept = build(TrackerConfig, config.tracker, "tracker")
    tracker = make_tracker(kept, folder, str(config.name), "train", plain(config))
    with closing(tracker), StopRequest(noted) as stop, ProgressBar("training", "episodes", console) as bar:
        policy = train(
            tasks,
            settings,
            tracker,
            _Shown(bar, settings).show,
            checkpoints=checkpoints,
            stop=stop,
            validation_tasks=validation_tasks,
            about={"drawn tasks": _of_pool(pool)} if pool.size else {},
            tuning=ResultsCache(folder / "tuning.jsonl"),
        )
        target = save_policy(policy, folder, checkpoints.identity)
        tracker.policy(folder.name, target, policy.config.training)
        tracker.summary(dict(versions()) | policy.config.training)
    checkpoints.clear()
    console.print(f"Policy: {target} (load it with gns.GNSPolicy.from_pretrained)")
    for line in tracker.where():
        console.print(line, soft_wrap=True)
    return target


class _Shown:
    """Shows the progress of a training on a bar; episodes cost what the curriculum gives them of their budgets."""

    def __init__(self, bar: ProgressBar, settings: TrainConfig) -> None:
        episodes, side_by_side = settings.total_episodes, settings.agent.num_envs
        costs = [settings.env.curriculum.factor(begun // side_by_side) for begun in range(episodes)]
        self._bar, self._total = bar, episodes
        self._costs = [0.0, *accumulate(costs)]  # of the first 0, 1, 2, ... episodes
        self._before: int | None = None  # episodes that were done as it began, or went on

    def show(self, progress: Progress) -> None:
        """Show it; the first call is where training begins, or goes on."""
        if self._before is None:
            self._before = progress.episodes
        before, now, end = (self._costs[min(n, self._total)] for n in (self._before, progress.episodes, self._total))
        work = Work(progress.episodes, self._total, progress.episodes - self._before, now - before, end - now)
        loss = "" if math.isnan(progress.loss) else f"loss {progress.loss:.4f}"
        tuned = "" if math.isnan(progress.ratio) else f", {progress.ratio:.2f} x tuned"
        dropped = f", {progress.dropped} dropped" if progress.dropped else ""
        self._bar.update(work, (loss + tuned + _scored(progress) + dropped).removeprefix(", "))


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
