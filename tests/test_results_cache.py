"""Results kept by what made them: what is interrupted goes on, what is repeated costs nothing, nothing is mixed up."""

import json
import math
import tracemalloc
from dataclasses import dataclass, replace

import pandas as pd
import pytest
import torch

import gns
from agents.controllers import PolicyController, ScheduleController
from agents.evaluation import sweep
from agents.evaluation.protocol import EvaluationConfig, Grid, evaluate
from agents.evaluation.results_cache import LONGEST, ResultsCache, result_key
from agents.evaluation.sweep import Job, run_jobs
from envs.learning_rate_env import Episode
from envs.tasks import get_task
from gns import GNSPolicy
from gns.deciding.guard import GuardConfig
from gns.errors import InvalidSettingError

ROW = {"controller": "a", "test_loss": math.inf, "test_metric": math.nan, "path": [(0.0, 0.1), (0.5, math.nan)]}
SCHEDULES = [ScheduleController("rex", "rex"), ScheduleController("linear", "linear")]
CONFIG = EvaluationConfig(seeds=2, workers=0, budgets=(5,), grids={"adam": Grid(1e-3, 2)}, widen=1, together=False)


def episode(**changes) -> Episode:
    settings = {"task": get_task("digits_mlp"), "optimizer": "adam", "budget": 5, "learning_rate": 0.003, "seed": 3}
    return Episode(**{**settings, **changes})


@pytest.fixture
def trained(monkeypatch):
    """Jobs that were run, as they are run."""
    jobs, real = [], sweep.run_job

    def counting(job):
        jobs.append(job)
        return real(job)

    monkeypatch.setattr(sweep, "run_job", counting)
    return jobs


def without_seconds(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="seconds")


@pytest.mark.parametrize("after", [1, 5, 9])
def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path, trained, after):
    whole = evaluate(SCHEDULES, [get_task("digits_mlp")], CONFIG)
    needed = len(trained)
    trained.clear()

    def interrupt(work):
        if work.done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(SCHEDULES, [get_task("digits_mlp")], CONFIG, interrupt, cache=ResultsCache(tmp_path / "cache"))
    assert len(trained) == after < needed
    calls = []
    resumed = evaluate(
        SCHEDULES,
        [get_task("digits_mlp")],
        CONFIG,
        lambda work: calls.append((work.done, work.total)),
        cache=ResultsCache(tmp_path / "cache"),
    )
    assert len(trained) == needed
    pd.testing.assert_frame_equal(without_seconds(resumed.runs), without_seconds(whole.runs))
    pd.testing.assert_frame_equal(resumed.tuned, whole.tuned)
    assert resumed.paths == whole.paths
    assert [done for done, _ in calls] == list(range(1, needed + 1)) and calls[-1] == (needed, needed)

    again = evaluate(SCHEDULES, [get_task("digits_mlp")], CONFIG, cache=ResultsCache(tmp_path / "cache"))
    assert len(trained) == needed
    pd.testing.assert_frame_equal(again.runs, resumed.runs)


def test_worker_processes_give_their_results_to_the_cache_too(tmp_path):
    jobs = [Job(SCHEDULES[0], episode(seed=seed)) for seed in (0, 1, 2)]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, 1, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt), ResultsCache(tmp_path / "cache"))
    kept = ResultsCache(tmp_path / "cache")
    assert len(kept) == 1
    rows, here = run_jobs(jobs, 1, cache=kept), run_jobs(jobs, 0)
    for row in (*rows, *here):
        row.pop("seconds")
    assert rows == here and len(kept) == 3


def test_a_row_carries_the_present_name_and_one_run_serves_several_names(tmp_path, trained):
    cache = ResultsCache(tmp_path / "cache")
    ticks = []
    names = [ScheduleController(name, "rex") for name in ("a", "b")]
    rows = run_jobs([Job(item, episode()) for item in names], 0, lambda *_: ticks.append(1), cache)
    assert [row["controller"] for row in rows] == ["a", "b"] and len(trained) == 1 and len(ticks) == 2
    later = run_jobs([Job(ScheduleController("c", "rex"), episode())], 0, cache=ResultsCache(tmp_path / "cache"))
    assert later[0] == {**rows[0], "controller": "c"} and len(trained) == 1


def test_without_a_cache_every_job_is_run(trained):
    run_jobs([Job(SCHEDULES[0], episode())] * 2, 0)
    assert len(trained) == 2


def test_whatever_a_run_depends_on_makes_another_key(tmp_path, monkeypatch):
    def policy(bias: float, **settings):
        torch.manual_seed(0)
        made = GNSPolicy()
        with torch.no_grad():
            made.network.actor[2].bias.fill_(bias)
        made.save_pretrained(tmp_path / "policy")
        return PolicyController(**{"name": "policy", "policy": str(tmp_path / "policy"), **settings})

    task, controller = get_task("digits_mlp"), ScheduleController("rex", "rex")
    jobs = [
        (controller, episode(), True),
        (controller, episode(), False),
        (ScheduleController("rex", "linear"), episode(), True),
        (ScheduleController("rex", "rex", cycle_momentum=True), episode(), True),
        (policy(0.0), episode(), True),
        (policy(0.5), episode(), True),
        (policy(0.0, guard=GuardConfig(max_rollbacks=1)), episode(), True),
        (controller, episode(optimizer="sgdm"), True),
        (controller, episode(budget=6), True),
        (controller, episode(learning_rate=math.nextafter(0.003, 1.0)), True),
        (controller, episode(seed=4), True),
        (controller, episode(device="cuda"), True),
        (controller, episode(task=get_task("digits_cnn")), True),
        (controller, episode(task=get_task("digits_mlp", batch_size=33)), True),
        (controller, episode(task=get_task("digits_mlp", model={"hidden": 33})), True),
        (controller, episode(task=get_task("digits_mlp", clip_norm=1.0)), True),
        (controller, episode(task=replace(task, name="mine")), True),
        (controller, episode(task=replace(task, metrics={**task.metrics, "more": lambda outputs, split: 0.0})), True),
    ]
    keys = [result_key(*job) for job in jobs]
    monkeypatch.setattr(gns, "__version__", "another")
    keys.append(result_key(*jobs[0]))
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "another")
    keys.append(result_key(*jobs[0]))
    monkeypatch.undo()
    monkeypatch.setattr("agents.evaluation.results_cache.CACHE_FORMAT", -1)
    keys.append(result_key(*jobs[0]))
    monkeypatch.undo()
    assert None not in keys and len(set(keys)) == len(keys)
    assert [result_key(*job) for job in jobs] == keys[: len(jobs)]
    assert result_key(ScheduleController("another name", "rex"), episode(), True) == keys[0]
    assert result_key(policy(0.5, name="another name"), episode(), True) == keys[5]


@dataclass(frozen=True)
class Odd:
    """A controller that says what it is in other than JSON values."""

    inner: ScheduleController
    tuned = True
    name = "odd"

    def train(self, episode, checkpoints=None):
        return self.inner.train(episode, checkpoints)

    def identity(self):
        return {"kind": object()}


def test_runs_that_cannot_be_told_apart_are_not_kept(tmp_path, trained):
    cache = ResultsCache(tmp_path / "cache")
    job = Job(Odd(SCHEDULES[0]), episode())
    for _ in range(2):
        run_jobs([job, job], 0, cache=cache)
    assert len(trained) == 4 and len(cache) == 0


def test_what_is_no_number_survives(tmp_path):
    ResultsCache(tmp_path / "cache").put("key", ROW)
    row = ResultsCache(tmp_path / "cache").get("key")
    assert row["test_loss"] == math.inf and math.isnan(row["test_metric"])
    assert row["path"][0] == (0.0, 0.1) and row["path"][1][0] == 0.5 and math.isnan(row["path"][1][1])
    assert ResultsCache(tmp_path / "cache").get("other") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[: len(line) // 2],
        lambda line: line.replace(b"inf", b"nan").replace(b"Infinity", b"1.0"),
        lambda line: b"\xff\xfe" + line,
        lambda line: b"[1, 2]",
        lambda line: b"null",
        lambda line: b"[" * 100_000,
        lambda line: b'{"key": "second", "row": {"path": [], "o": [' + b"{}," * LONGEST + b"{}]}}",
        lambda line: line[:-1] + b" " * 2 * LONGEST + b"}",
        lambda line: json.dumps({**json.loads(line), "key": "third"}).encode(),
    ],
    ids=["torn", "changed", "binary", "list", "null", "deep", "long", "padded", "swapped"],
)
def test_a_damaged_line_is_skipped_with_a_warning_and_costs_itself_alone(tmp_path, caplog, damage):
    path = tmp_path / "cache"
    cache = ResultsCache(path)
    for key in ("first", "second", "third"):
        cache.put(key, {**ROW, "controller": key})
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], damage(lines[1]), lines[2]]) + b"\n")
    cache = ResultsCache(path)
    assert len(cache) == 2 and cache.get("second") is None and cache.get("third")["controller"] == "third"
    assert caplog.text.count("Line 2 of") == 1


def test_a_file_of_garbage_is_told_of_in_few_words_and_little_memory(tmp_path, caplog):
    path = tmp_path / "cache"
    ResultsCache(path).put("first", ROW)
    path.write_bytes(b"\x00garbage\n" * 3000 + path.read_bytes() + b"[" + b"{}," * 2**22)
    tracemalloc.start()
    cache = ResultsCache(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * LONGEST and len(caplog.records) == 11 and "2991 more lines of" in caplog.text
    cache.put("second", ROW)  # on a line of its own
    assert len(ResultsCache(path)) == len(cache) == 2


def test_a_line_cut_off_by_a_crash_does_not_spoil_the_next(tmp_path, caplog):
    path = tmp_path / "cache"
    cache = ResultsCache(path)
    cache.put("first", ROW)
    cache.put("second", ROW)
    path.write_bytes(path.read_bytes()[:-20])
    cache = ResultsCache(path)
    cache.put("third", ROW)
    cache.put("fourth", ROW)
    cache = ResultsCache(path)
    assert len(cache) == 3 and cache.get("second") is None and cache.get("third") is not None


def test_a_cache_that_cannot_be_read_or_written_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidSettingError, match="Cannot read"):
        ResultsCache(tmp_path / "folder")
    with pytest.raises(InvalidSettingError, match="Cannot write"):
        ResultsCache(tmp_path / "nowhere" / "cache").put("key", ROW)
