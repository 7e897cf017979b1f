"""Progress as it is shown, and whether what it says of the time left comes true."""

import contextlib
import io
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console

import train_agent
from agents.controllers import PolicyController, ScheduleController
from agents.evaluation import sweep
from agents.evaluation.protocol import EvaluationConfig, Grid, evaluate
from agents.evaluation.results_cache import ResultsCache
from agents.evaluation.sweep import Job
from agents.runtime.progress import ProgressBar, Work
from agents.training.train import TrainConfig
from agents.training.watch import Progress
from envs.env_config import Curriculum, EnvConfig
from envs.tasks import get_task
from gns import GNSPolicy, NetworkConfig, PolicyConfig


def shown(terminal: bool, updates: int) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    with ProgressBar("working", "runs", console, every=0.0) as bar:
        for done in range(1, updates + 1):
            bar.update(Work(done, updates, done, done, updates - done), f"number {done}")
    return out.getvalue()


def test_without_a_terminal_plain_lines_appear():
    lines = shown(terminal=False, updates=3).splitlines()
    assert len(lines) == 3 and all(line.startswith("working: ") for line in lines)
    assert re.search(r"3/3 runs, .*, 0 s left; number 3", lines[-1])


def test_on_a_terminal_a_live_bar_appears():
    text = shown(terminal=True, updates=3)
    assert "3/3" in text and "number 3" in text and "\x1b[" in text


# ---------------------------------------------------------------------- by a made-up clock


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Sweep:
    """Trains nothing: a run takes what ``cost`` says, and is shown on a bar."""

    def __init__(self, cost) -> None:
        self.cost, self.clock, self.out = cost, Clock(), io.StringIO()
        self.ends: list[float] = []

    def run_job(self, job: Job) -> dict:
        self.clock.now += self.cost(job)
        return {
            **sweep._blank(job),
            "reward_loss": abs(math.log(job.episode.learning_rate / 3e-4)),
            "test_loss": 1.0,
            "test_metric": 0.5,
            "seconds": self.cost(job),
            "path": [(0.0, 0.1)],
            "losses": [1.0],
        }

    def evaluate(self, monkeypatch, controllers, tasks, config, cache=None, stop_after=math.inf):
        monkeypatch.setattr(sweep, "run_job", self.run_job)
        console = Console(file=self.out, force_terminal=False, width=200)
        with ProgressBar("evaluating", "training runs", console, every=0.0, clock=self.clock) as bar:

            def show(work):
                bar.update(work)
                self.ends.append(self.clock.now)
                if work.fresh >= stop_after:
                    raise KeyboardInterrupt

            with contextlib.suppress(KeyboardInterrupt):
                evaluate(controllers, tasks, replace(config, together=False), show, cache=cache)

    def told(self) -> list[tuple[int, int, float | None]]:
        """Done, total and seconds left as they were shown, a line a run."""
        found = []
        for line in self.out.getvalue().splitlines():
            done, total = map(int, re.search(r"(\d+)/(\d+) training runs", line).groups())
            left = re.search(r"(\d+) s left", line)
            found.append((done, total, float(left[1]) if left else None))
        return found

    def check(self, known: int = 0) -> None:
        """After a tenth of the work, the time left is told within a quarter."""
        told, end, start = self.told(), self.ends[-1], self.ends[known] - self.cost_of_first
        assert told[-1] == (len(told), len(told), 0.0)
        checked = 0
        for (_, _, left), now in zip(told, self.ends, strict=True):
            if now - start >= 0.1 * (end - start) and end - now > 10.0:
                assert left == pytest.approx(end - now, rel=0.25)
                checked += 1
        assert checked > 10

    cost_of_first = 10.0


REX = ScheduleController("rex", "rex")
TASK = get_task("digits_mlp")
CONFIG = EvaluationConfig(optimizers=None, budgets=(30,), seeds=10, workers=0, grids={"adam": Grid(1e-5, 8)}, widen=3)


def ten(job: Job) -> float:
    return 10.0


def test_time_left_of_a_fresh_sweep_is_right_after_a_tenth(monkeypatch):
    made = Sweep(ten)
    made.evaluate(monkeypatch, [REX], [TASK], CONFIG)
    made.check()
    assert "80/80 training runs, 10.0 s each, 0 s left" in made.out.getvalue()
    assert "40/80 training runs, 10.0 s each, 400 s left" in made.out.getvalue()


def test_results_known_before_take_no_time_and_count_in_no_speed(monkeypatch, tmp_path):
    Sweep(ten).evaluate(monkeypatch, [REX], [TASK], CONFIG, ResultsCache(tmp_path / "cache"), stop_after=30)
    made = Sweep(ten)
    made.evaluate(monkeypatch, [REX], [TASK], CONFIG, ResultsCache(tmp_path / "cache"))
    assert made.told()[29] == (30, 80, None)  # nothing is known yet of how fast it is
    assert made.told()[30] == (31, 80, 490.0)
    made.check(known=30)
    whole = Sweep(ten)
    whole.evaluate(monkeypatch, [REX], [TASK], CONFIG, ResultsCache(tmp_path / "cache"))
    assert whole.told()[-1] == (80, 80, 0.0) and "/s" not in whole.out.getvalue()


def test_long_budgets_and_slow_tasks_count_for_what_they_cost(monkeypatch):
    # What is not seen yet is taken to cost as the rest, an update.
    slow = replace(TASK, name="slow")
    made = Sweep(lambda job: job.episode.budget / 3.0 * (1.2 if job.episode.task.name == "slow" else 1.0))
    config = replace(CONFIG, budgets=(30, 60, 600))
    made.evaluate(monkeypatch, [REX], [TASK, slow], config)
    made.check()


def test_runs_that_wait_for_tuned_schedules_are_counted_from_the_start(monkeypatch, tmp_path):
    GNSPolicy(PolicyConfig(network=NetworkConfig(hidden=4, head=4, type_embedding=2))).save_pretrained(tmp_path)
    made = Sweep(ten)
    config = replace(CONFIG, relative_rates=(0.01, 0.1, 1.0, 10.0, 100.0))
    made.evaluate(monkeypatch, [REX, PolicyController("policy", str(tmp_path))], [TASK], config)
    assert {total for _, total, _ in made.told()} == {80 + 50}
    made.check()


def test_time_left_of_a_training_is_right_after_a_tenth_fresh_and_gone_on_with():
    for before in (0, 600):
        for curriculum in (Curriculum(), Curriculum(episodes=20, start=0.25)):
            settings = TrainConfig(episodes=2400, env=EnvConfig(curriculum=curriculum))
            clock, out = Clock(), io.StringIO()
            clock.now += 500.0  # schedules are tuned
            with ProgressBar("training", "episodes", Console(file=out, width=200), every=0.0, clock=clock) as bar:
                shown, ends = train_agent._Shown(bar, settings), []
                for episode in range(before, settings.total_episodes + 1):
                    if episode > before:
                        clock.now += curriculum.factor((episode - 1) // settings.agent.num_envs)
                    shown.show(Progress(episode, math.nan, 0.5, 0.0))
                    ends.append(clock.now)
            lines = out.getvalue().splitlines()
            assert lines[-1].endswith("s left; loss 0.5000") and ", 0 s left" in lines[-1]
            for number in range(len(lines) // 10, len(lines) - 60):
                left = float(re.search(r"(\d+) s left", lines[number])[1])
                assert left == pytest.approx(ends[-1] - ends[number], rel=0.25)
