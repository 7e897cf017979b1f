"""Seconds of training until the frozen policy is within 5 % of the best tuned schedule, over several training seeds.

    python -m benchmarks.time_to_quality --json times.json          # the demo's training, seeds 0 1 2
    python -m benchmarks.time_to_quality --training episodes=1200   # another training, set as train_agent.py is

Trains as ``python train_agent.py`` does (``configs/train_agent.yaml``), once a seed, and keeps the policy every few
seconds of training. Afterwards all kept policies, frozen, and the schedules of ``python evaluate.py`` are evaluated in
one run: schedules at the rate tuned on the reward split, policies from initial rates between 1e-4 and 1e-1, the same
seeds for all.

*Seconds* are wall-clock time from the call of ``agents.training.train.train``, workers' start included, to the end of
the update by PPO that gave the policy; what the benchmark does with it is left out. So is tuning the schedules that
training is compared with while it runs, which changes no policy and is timed apart. A policy kept early is what a
training of the whole length has come to by then: a shorter training, whose learning rate falls sooner, may be elsewhere
after as many seconds.

*Ratio* is a policy's mean final loss over all initial rates and runs, over the lowest mean of any tuned schedule, on
each split. Rates are tuned on the reward split. The ratio on the test split, ``evaluate.py``'s "vs best", is a report.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pandas as pd
from hydra import compose, initialize_config_dir
from rich.console import Console

from agents.controllers import Controller, PolicyController, make_controllers
from agents.evaluation.protocol import EvaluationConfig, evaluate
from agents.evaluation.results import Evaluation
from agents.evaluation.results_cache import ResultsCache
from agents.runtime.command import plain, use_data_root
from agents.runtime.progress import ProgressBar
from agents.runtime.settings import CONFIG_FOLDER, build, check_choices, store_task_defaults
from agents.trackers import Tracker, TrackerConfig, make_tracker
from agents.training.schedule_reference import ScheduleReference
from agents.training.train import TrainConfig, train, versions
from envs.tasks import Task, get_task
from gns import GNSPolicy
from gns.errors import InvalidSettingError, require_positive

SPLITS = {"reward split": "reward_loss", "test split": "test_loss"}
T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """A policy on the way.

    :param seed: of its training
    :param seconds: of training until then
    :param episodes: done until then
    """

    seed: int
    seconds: float
    episodes: int
    policy: GNSPolicy

    @property
    def name(self) -> str:
        """Its name among controllers."""
        return f"seed {self.seed} after {self.episodes} episodes"


def keep_policies(tasks: Sequence[Task], config: TrainConfig, every: float, tracker: Tracker) -> list[Kept]:
    """Train, and return the first policy after every multiple of ``every`` seconds of training, and the last one."""
    require_positive("every", every)
    updates: list[Kept] = []
    kept: list[Kept] = []
    outside, start = 0.0, time.perf_counter()

    def keep(policy: GNSPolicy, episodes: int) -> None:
        nonlocal outside
        now = time.perf_counter()
        updates[:] = [Kept(config.seed, now - start - outside, episodes, policy)]
        if updates[0].seconds // every > (kept[-1].seconds // every if kept else 0.0):
            kept.append(updates[0])
        outside += time.perf_counter() - now

    train(tasks, config, tracker, on_policy=keep)
    return kept if kept[-1:] == updates else kept + updates


def times_to_quality(seconds: Sequence[float], ratios: Sequence[float], bound: float) -> tuple[float, float]:
    """Return when a ratio is first within the bound, and from when on all are; infinity: never.

    :param seconds: when each ratio was reached, ascending
    """
    first = next((when for when, ratio in zip(seconds, ratios, strict=True) if ratio <= bound), math.inf)
    for_good = math.inf
    for when, ratio in zip(reversed(seconds), reversed(ratios), strict=True):
        if not ratio <= bound:
            break
        for_good = when
    return first, for_good


def tuned_losses(evaluation: Evaluation) -> pd.DataFrame:
    """Return the mean losses of each schedule at its tuned rate, a column a split."""
    runs = evaluation.runs.merge(evaluation.tuned[["controller", "tuned_lr"]], on="controller")
    runs = runs[(runs.initial_lr == runs.tuned_lr) & runs.controller.isin(evaluation.references)]
    return runs.groupby("controller")[list(SPLITS.values())].mean()


def loss_ratios(evaluation: Evaluation) -> pd.DataFrame:
    """Return each policy's mean losses over the lowest of :func:`tuned_losses`, a column a split."""
    policies = evaluation.runs[~evaluation.runs.controller.isin(evaluation.references)]
    return policies.groupby("controller")[list(SPLITS.values())].mean() / tuned_losses(evaluation).min()


def evaluate_kept(
    kept: Sequence[Kept],
    schedules: Sequence[Controller],
    task: Task,
    settings: EvaluationConfig,
    cache: Path | None,
    console: Console,
) -> Evaluation:
    """Evaluate schedules and kept policies in one run."""
    with TemporaryDirectory() as folder, ProgressBar("evaluating", "training runs", console) as bar:
        policies = []
        for number, item in enumerate(kept):
            item.policy.save_pretrained(Path(folder) / str(number))
            policies.append(PolicyController(item.name, str(Path(folder) / str(number))))
        rows = ResultsCache(cache) if cache else None
        return evaluate([*schedules, *policies], [task], settings, bar.update, cache=rows)


def configuration(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a root configuration as its command composes it."""
    check_choices(overrides)
    store_task_defaults()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base=None):
        return plain(compose(name, overrides=list(overrides)))


def settings_of(cls: type[T], content: dict[str, Any]) -> T:
    """Build a dataclass from the part of a configuration that is its fields."""
    return build(cls, {item.name: content[item.name] for item in fields(cls)})  # type: ignore[arg-type]


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train, evaluate, print, and return what was found.

    :raises InvalidSettingError: before any run, if the evaluation is of more than one setting
    """
    training = configuration("train_agent", arguments.training)
    rates = f"initial_rates.adam={{lowest: 1e-4, highest: 1e-1, count: {arguments.rates}}}"
    wanted = ["optimizers=[adam]", f"seeds={arguments.runs}", rates, *arguments.evaluation]
    protocol = configuration("evaluate", wanted)
    config, settings = settings_of(TrainConfig, training), settings_of(EvaluationConfig, protocol)
    for content in (training, protocol):
        use_data_root(content["data_root"])
    tasks, others = ([get_task(name, **own) for name, own in c["task"].items()] for c in (training, protocol))
    budgets = [budget for task in others for budget in settings.budgets_of(task)]
    if len(budgets) != 1 or len(settings.optimizers or ()) != 1:
        raise InvalidSettingError(
            f"The evaluation is on {', '.join(t.name for t in others)}, budgets {budgets}, optimizers "
            f"{settings.optimizers}; expected one task, one budget and one optimizer. Change what --evaluation says."
        )
    schedules = make_controllers({k: own for k, own in protocol["controller"].items() if own.get("kind") == "schedule"})

    start = time.perf_counter()
    ScheduleReference(tasks, config.env, config.baseline, config.workers)
    tuning = time.perf_counter() - start
    console.print(f"tuning the schedules that training is compared with: {tuning:.1f} s, in no figure below")
    bare = replace(config, baseline=replace(config.baseline, controllers=()))
    kept: dict[int, list[Kept]] = {}
    for seed in dict.fromkeys(arguments.seeds):
        with TemporaryDirectory() as folder:
            tracker = make_tracker(build(TrackerConfig, training["tracker"]), Path(folder), "x", "train", training)
            kept[seed] = keep_policies(tasks, replace(bare, seed=seed), arguments.every, tracker)
        last = kept[seed][-1]
        console.print(f"seed {seed}: {last.episodes} episodes in {last.seconds:.1f} s; kept {len(kept[seed])} policies")

    everything = [item for items in kept.values() for item in items]
    evaluation = evaluate_kept(everything, schedules, others[0], settings, arguments.cache, console)
    ratios, losses = loss_ratios(evaluation), tuned_losses(evaluation)
    times = {
        seed: {
            split: times_to_quality([k.seconds for k in items], [ratios[loss][k.name] for k in items], arguments.bound)
            for split, loss in SPLITS.items()
        }
        for seed, items in kept.items()
    }
    _show(kept, ratios, losses, times, arguments.bound, console)
    return {
        "bound": arguments.bound,
        "tuning_seconds": tuning,
        "schedules": losses.to_dict(orient="index"),
        "policies": [
            {"seed": k.seed, "seconds": k.seconds, "episodes": k.episodes, **ratios.loc[k.name].add_suffix("_ratio")}
            for k in everything
        ],
        "times": [
            {"seed": seed, "split": split, "first": found[0], "for_good": found[1]}
            for seed, own in times.items()
            for split, found in own.items()
        ],
        "config": {"train_agent": training, "evaluate": protocol},
        "processors": os.cpu_count(),
        "versions": dict(versions()),
    }


def _show(
    kept: dict[int, list[Kept]],
    ratios: pd.DataFrame,
    losses: pd.DataFrame,
    times: dict[int, dict[str, tuple[float, float]]],
    bound: float,
    console: Console,
) -> None:
    lines = []
    for split, loss in SPLITS.items():
        lines.append(f"{split}; best tuned schedule: {losses[loss].idxmin()}, {losses[loss].min():.4f}")
        for seed, items in kept.items():
            path = ", ".join(f"{item.seconds:.0f} s {ratios[loss][item.name]:.3f}" for item in items)
            first, for_good = (_seconds(when) for when in times[seed][split])
            lines.append(f"  seed {seed}: within {bound:g} first {first}, for good {for_good}; ratios: {path}")
        for number, what in enumerate(("first", "for good")):
            found = [own[split][number] for own in times.values()]
            middle, low, high = (_seconds(when) for when in (median(found), min(found), max(found)))
            lines.append(f"  {what}, over {len(found)} training seeds: median {middle}, lowest {low}, highest {high}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _seconds(when: float) -> str:
    return f"{when:.1f} s" if math.isfinite(when) else "never"


def _json(value: Any) -> Any:
    """JSON has no infinity: None stands for never, and for the loss of a diverged run."""
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training")
    parser.add_argument("--every", type=float, default=5.0, help="seconds of training between two kept policies")
    parser.add_argument("--bound", type=float, default=1.05, help="ratio that is good enough")
    parser.add_argument("--runs", type=int, default=16, help="training runs of each schedule, policy and rate")
    parser.add_argument("--rates", type=int, default=4, help="initial rates of a policy, from 1e-4 to 1e-1")
    parser.add_argument("--training", nargs="+", default=[], metavar="KEY=VALUE", help="settings of train_agent.py")
    parser.add_argument("--evaluation", nargs="+", default=[], metavar="KEY=VALUE", help="settings of evaluate.py")
    parser.add_argument(
        "--cache", type=Path, help="file that keeps results of runs, such as a cache.jsonl of evaluate.py"
    )
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    return parser.parse_args(words)


def main() -> None:
    """Measure what the arguments say."""
    arguments = parse()
    found = measure(arguments, Console())
    if arguments.json:
        arguments.json.write_text(json.dumps(_json(found), indent=2, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main()
