"""The benchmark of environment steps: what it counts, and what it says where DACBench is missing. Nothing is timed."""

import ast
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import dacbench_steps, environment_steps
from benchmarks.dacbench_steps import InMemory, bare_loop, compare
from envs.tasks import get_task
from gns.errors import InvalidSettingError

FIGURES = {
    "decisions_per_second": 90.0,
    "updates_per_decision": 33.0,
    "bare_updates_per_second": 6000.0,
    "fraction": 0.5,
    "low": 0.4,
    "high": 0.6,
}


@pytest.fixture
def interpreter(tmp_path):
    """Makes a stand-in for DACBench's interpreter from the lines of a shell script."""

    def make(*lines: str) -> str:
        path = tmp_path / "python"
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)
        return str(path)

    return make


def test_a_fraction_holds_the_reset_with_its_share(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(dacbench_steps.time, "perf_counter", lambda: clock[0])
    count = [0]

    def step():
        count[0] += 1
        clock[0] += 2.0 + (10.0 if count[0] % 5 == 0 else 0.0)  # a new episode every fifth decision
        return 1, 10

    def bare():
        clock[0] += 0.125
        return 0, 1

    figures = compare(step, bare, decisions=5, seconds=0.0, least=4)
    assert count[0] == 1 + 4 * 5
    assert figures["updates_per_decision"] == 10
    assert figures["bare_updates_per_second"] == 8.0
    assert figures["decisions_per_second"] == 5 / 20
    assert figures["low"] == figures["high"] == figures["fraction"] == 50 / 20 / 8


def test_the_bare_loop_passes_over_whole_batches_and_learns():
    torch.manual_seed(0)
    inputs = torch.randn(10, 3)
    seen = []
    model = nn.Linear(3, 2)
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    before = model.weight.detach().clone()
    update = bare_loop(model, inputs, (inputs[:, 0] > 0).long(), batch_size=4)
    assert [update() for _ in range(4)] == [(0, 1)] * 4
    for batches in (seen[:2], seen[2:]):
        rows = torch.cat(batches)
        assert rows.shape == (8, 3) and len(rows.unique(dim=0)) == 8
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("places", [1, 3])
def test_steps_of_environments_count_every_update_beyond_an_episode(places):
    step = environment_steps.stepping(get_task("digits_mlp"), places, environment_steps.configuration(2))
    assert [step() for _ in range(23)] == [(places, 2 * places)] * 23


def test_default_settings_spend_a_budget_drawn_by_default():
    step = environment_steps.stepping(get_task("digits_mlp"), 1, environment_steps.configuration(None))
    made = [step() for _ in range(20)]
    assert 100 <= sum(updates for _, updates in made) <= 400


def test_an_environment_is_measured_beside_the_bare_loop():
    figures = environment_steps.ours(get_task("digits_mlp"), 2, 3, seconds=0.0, least=1)
    assert set(figures) == set(FIGURES)
    assert figures["updates_per_decision"] == 3
    assert all(np.isfinite(value) and value > 0 for value in figures.values())


@pytest.mark.parametrize("python", [None, "", "no/such/python"])
def test_without_an_interpreter_the_error_says_how_to_make_one(python):
    with pytest.raises(InvalidSettingError, match=r"interpreter.*python3 -m venv.*DACBench.*GNS_DACBENCH_PYTHON"):
        environment_steps.dacbench(get_task("digits_mlp"), python, 0.0)


def test_without_dacbench_one_line_says_so_and_the_rest_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(environment_steps, "ours", lambda *_: FIGURES)
    environment_steps.measure(get_task("digits_mlp"), None, 0.0, places=2)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "DACBench" in line]) == 1
    assert len([line for line in lines if "one run alone" in line]) == 3
    assert len([line for line in lines if "2 runs together" in line]) == 3


def test_an_interpreter_without_dacbench_is_named_with_its_last_word(interpreter):
    python = interpreter("echo Traceback >&2", "echo \"ModuleNotFoundError: No module named 'dacbench'\" >&2", "exit 1")
    with pytest.raises(InvalidSettingError, match=r"No module named 'dacbench'.*venv"):
        environment_steps.dacbench(get_task("digits_mlp"), python, 0.0)


def test_the_interpreter_is_given_the_problem_and_its_last_line_is_read(interpreter, capsys, monkeypatch):
    answer = json.dumps({"epoch": FIGURES, "batch": FIGURES | {"updates_per_decision": 0.99}})
    python = interpreter(
        'test -f "$2/data.npz" && test -f "$2/model.pt" || exit 1', "echo a warning", f"echo '{answer}'"
    )
    monkeypatch.setattr(environment_steps, "ours", lambda *_: FIGURES)
    environment_steps.measure(get_task("digits_mlp"), python, 0.0)
    lines = [line for line in capsys.readouterr().out.splitlines() if "DACBench" in line]
    assert ["epoch" in line for line in lines] == [True, True, False]
    assert "0.99 updates a decision" in lines[2]


def test_dacbench_trains_on_the_training_split_and_never_sees_the_test_split(tmp_path, monkeypatch):
    task = get_task("digits_mlp")
    environment_steps.write_problem(task, tmp_path)
    with np.load(tmp_path / "data.npz") as file:
        monkeypatch.setattr(InMemory, "arrays", {name: torch.from_numpy(file[name]) for name in file.files})
    data = task.training_data()
    learning, testing = InMemory("", train=True, download=True), InMemory("", train=False)
    assert torch.equal(learning.inputs, torch.cat([data.train.inputs, data.reward.inputs]))
    assert torch.equal(testing.inputs, data.reward.inputs) and torch.equal(testing.targets, data.reward.targets)
    for (image, target), row in zip(learning.__getitems__([5, 2]), [5, 2], strict=True):
        assert torch.equal(image, learning[row][0]) and torch.equal(target, learning[row][1])
    model = torch.load(tmp_path / "model.pt", weights_only=False)
    assert [p.shape for p in model.parameters()] == [p.shape for p in task.new_model().parameters()]


@pytest.mark.parametrize(("epoch_mode", "updates"), [(True, [7, 7, 7, 7]), (False, [0, 1, 1, 0])])
def test_a_decision_of_dacbench_counts_the_updates_of_its_mode(epoch_mode, updates):
    env = SimpleNamespace(epoch_mode=epoch_mode, train_loader=range(7), c_step=0)

    def reset():
        env.c_step = 0

    def step(_):
        env.c_step += 1
        return {}, 0.0, False, env.c_step == 3, {}

    env.reset, env.step = reset, step
    make = dacbench_steps.stepping(env)
    assert [make() for _ in range(4)] == [(1, count) for count in updates]


def test_the_side_in_dacbenchs_interpreter_needs_nothing_of_this_project():
    with open(dacbench_steps.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert names - set(sys.stdlib_module_names) == {"numpy", "torch", "torchvision", "dacbench"}
