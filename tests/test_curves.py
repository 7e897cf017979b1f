"""Cost curves: collected once each, found again after a kill, and their states reached again bit for bit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from agents.runtime.command import CONFIG_FOLDER
from agents.training import curves
from agents.training.curve_records import (
    BRANCH,
    FAILED,
    RECIPE,
    TUNING,
    Records,
    pack,
    pool_of,
    read_records,
    recipe_of,
)
from envs.batched.branches import branch
from envs.batched.runs import BatchedRuns
from envs.pool import PoolConfig, draw_task
from gns.errors import InvalidSettingError, StateError

TEACHER, CNN = 1, 8  # numbers of two cheap tasks


@pytest.fixture(scope="module")
def pool() -> PoolConfig:
    return pool_of(yaml.safe_load((CONFIG_FOLDER / "pool" / "people.yaml").read_text())["pool"])


def shortened(pool: PoolConfig, number: int):
    return replace(draw_task(pool, number), budget=40)


@pytest.fixture
def short(monkeypatch):
    """Let tasks have 40 updates, and few runs."""
    drawn = draw_task
    monkeypatch.setattr(curves, "draw_task", lambda pool, number: replace(drawn(pool, number), budget=40))
    monkeypatch.setattr(curves, "FACTORS", (0.1, 1.0, 1e4))
    monkeypatch.setattr(curves, "BRANCHED_AT", (1, 4))
    monkeypatch.setattr(curves, "TRUNKS", 2)


def test_a_stopped_collection_goes_on_where_its_file_ends(pool, short, tmp_path):
    path = tmp_path / "curves.jsonl"
    curves.collect(Records(path), pool, until=3, first=TEACHER, every=2)
    whole = path.read_bytes()
    found = list(read_records(path))
    assert [record["kind"] for record in found[:3]] == [RECIPE, TUNING, TUNING]
    assert pool_of(found[0]["pool"]) == replace(pool, size=PoolConfig.size)
    assert {record["kind"] for record in found[3:]} == {BRANCH}
    path.write_bytes(whole[: len(whole) // 2])  # killed in the middle of a line
    before = len(list(read_records(path)))
    curves.collect(Records(path), pool, until=3, first=TEACHER, every=2)
    again = list(read_records(path))
    assert again[:before] == found[:before] and len(again) > before

    def timeless(records):
        return [{key: value for key, value in record.items() if key != "seconds"} for record in records]

    tunings = [timeless(record for record in part if record["kind"] == TUNING) for part in (found, again)]
    assert tunings[0] == tunings[1]
    size = path.stat().st_size
    curves.collect(Records(path), pool, until=3, first=TEACHER, every=2)
    assert path.stat().st_size == size


@pytest.mark.parametrize("number", [TEACHER, CNN])
def test_a_replay_reaches_the_state_that_was_branched_bit_for_bit(pool, short, number, monkeypatch):
    task, states = shortened(pool, number), []
    taken = curves.branch

    def watched(copies, sources, rates):
        runs = sources[0][0]
        states.append([tensor.clone() for tensor in (runs.weights, runs.gradients, *runs.optimizer.state)])
        return taken(copies, sources, rates)

    monkeypatch.setattr(curves, "branch", watched)
    records = curves.branches(task, 0.03, np.random.default_rng(4))
    assert {record["decision"] for record in records} == {1, 4} and len(states) == 2
    first = [record for record in records if record["seed"] == records[0]["seed"]]
    assert any(any(record["actions"]) for record in records)
    for record, state in zip(first, states, strict=True):
        record = json.loads(json.dumps({"kind": BRANCH, "number": number, "task": task.name, **record}))
        env = curves.replay(record, pool)
        runs = env.runs
        for ours, theirs in zip((runs.weights, runs.gradients, *runs.optimizer.state), state, strict=True):
            assert torch.equal(ours, theirs)
        assert env.controls[0].update == record["update"] == 2 * record["decision"]
        assert curves.observed(env) == {key: record[key] for key in ("rate", "nodes", "globals")}
        left = torch.tensor(env.controls[0].rates(40 - record["update"])).unsqueeze(0)
        end = branch(BatchedRuns(env.task, env.task.optimizer, 1), [(runs, 0)], left)
        assert end.losses[0] == pytest.approx(record["losses"][1], rel=0.02)  # of factor 1


def test_a_lost_run_is_branched_no_more_and_the_others_are(pool, short):
    task = replace(shortened(pool, TEACHER), clip_norm=None)
    records = curves.branches(task, 20.0, np.random.default_rng(3))
    assert 0 < len(records) < 4
    for record in records:
        assert len(record["losses"]) == 3 and record["factors"] == [0.1, 1.0, 1e4]
        assert all(loss <= 1e6 for loss in record["losses"])
    with pytest.raises(StateError, match="expected 'branch'"):
        curves.replay({"kind": TUNING}, pool)


def test_a_tuning_curve_is_widened_where_its_best_rate_is_at_an_end(pool):
    task = shortened(pool, TEACHER)
    found = curves.tuning_curve(task, number=1)
    assert found["profiles"] == ["rex", "rex", "cosine"] and found["seeds"] == [0, 1, 0]
    assert np.array(found["losses"]).shape == (3, len(found["rates"]))
    assert np.ptp(np.diff(np.log(found["rates"]))) < 1e-4
    low = replace(task, learning_rates={task.optimizer: tuple(rate * 1e-4 for rate in task.range_of(task.optimizer))})
    wider = curves.tuning_curve(low, number=1)
    assert len(wider["rates"]) == 13 + 2 * 6 and wider["rates"][0] == pytest.approx(found["rates"][0] * 1e-4, rel=1e-3)
    assert np.min(wider["losses"][0][13:]) < np.min(wider["losses"][0][:13])


def test_a_task_that_learns_nothing_is_named_and_costs_no_curve(pool, short, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "PROBE_LEARNS_BELOW", 0.0)
    records = Records(tmp_path / "curves.jsonl")
    curves.collect(records, pool, until=2, first=TEACHER)
    assert [record["kind"] for record in records.all] == [RECIPE, FAILED]
    assert "ends at" in records.all[1]["reason"]


def test_records_are_packed_with_a_card_and_lose_features_of_layers_where_they_take_too_much(pool, tmp_path):
    recipe, settings = recipe_of(pool)
    noise = np.random.default_rng(0).normal(size=(300, 20)).tolist()
    records = [{"kind": RECIPE, "recipe": recipe, "pool": json.loads(json.dumps(settings)), "torch": "2"}]
    records.append(
        {"kind": TUNING, "recipe": recipe, "number": 3, "profiles": ["rex"], "rates": [1.0], "seconds": 36.0}
    )
    branch = {"kind": BRANCH, "recipe": recipe, "number": 3, "factors": [1.0, 2.0], "nodes": noise, "globals": [0.5]}
    records.append({**branch, "seconds": 36.0})
    path = tmp_path / "kept.jsonl.xz"
    pack(records, path)
    assert list(read_records(path)) == records
    assert "3 training runs" in (tmp_path / "kept.md").read_text()
    pack(records, path, most=5000)
    assert list(read_records(path))[2] == {k: v for k, v in records[2].items() if k != "nodes"}
    assert "Branches lack nodes" in (tmp_path / "kept.md").read_text()
    with pytest.raises(InvalidSettingError, match="at most 10"):
        pack(records, path, most=10)


def test_pools_of_other_sizes_have_the_same_recipe_and_others_do_not(pool):
    assert recipe_of(pool)[0] == recipe_of(replace(pool, size=3))[0]
    assert recipe_of(pool)[0] != recipe_of(replace(pool, seed=3))[0]
