"""Policies fitted to cost curves: what is taught, that it is learned, and that the command writes a policy."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

import agents.training.examples
from agents.runtime.command import CONFIG_FOLDER
from agents.training import curves, fitting
from agents.training.curve_facts import facts_of
from agents.training.curve_records import BRANCH, RECIPE, TUNING, pool_of, recipe_of
from agents.training.examples import REACH, Example, branch_costs, examples_of, tuning_costs
from agents.training.fitting import FittingConfig, actions_of, cross_validated, fit, regrets, report
from gns import DecisionConfig, GNSPolicy, InvalidSettingError, NetworkConfig, Observation
from gns.features.schemas import get_schema
from gns.schedules.profiles import get_profile

TEACHER = 1  # number of a cheap task

SHAPE = NetworkConfig(hidden=16, head=16, levels=9)
QUICK = FittingConfig(steps=120, batch_size=32)


def example(number: int, rng: np.random.Generator) -> Example:
    """A state whose best level shows in its features: half a decade up or down, by the sign of one of them."""
    schema, layers = get_schema("gns-1"), int(rng.integers(1, 5))
    seen = Observation(
        nodes=rng.normal(size=(layers, len(schema.node))).astype(np.float32),
        node_types=rng.integers(7, size=layers),
        blocks=np.zeros(layers, dtype=np.int64),
        edges=np.stack([np.arange(layers - 1), np.arange(1, layers)]),
        globals=rng.normal(size=len(schema.globals)).astype(np.float32),
    )
    level, best = float(rng.uniform(-0.5, 0.5)), 0.5 * np.sign(seen.globals[3])
    costs = np.minimum((level + REACH - best) ** 2, 2.0)
    return Example(f"task {number % 8}", 1 + number % 3, level, costs - costs.min(), seen)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    return [example(number, rng) for number in range(240)]


def test_a_fitted_network_knows_the_best_level_of_tasks_it_was_not_fitted_to(examples):
    actions = cross_validated(examples, lambda rest, fold: fit(rest, SHAPE, fold, QUICK), folds=2)
    best = np.array([0.5 * np.sign(one.observation.globals[3]) for one in examples])
    assert np.corrcoef(actions, best)[0, 1] > 0.8
    assert regrets(examples, actions).mean() < 0.4 * regrets(examples, np.zeros(len(examples))).mean()
    assert len(report(examples, actions)) == 5


def test_no_fold_is_fitted_to_a_task_that_it_judges(examples):
    seen, network = [], fit(examples[:2], SHAPE, config=FittingConfig(steps=1, batch_size=2))

    def fitted(rest, fold):
        seen.append({one.task for one in rest})
        return network

    cross_validated(examples, fitted, folds=3)
    left_out = [{one.task for one in examples} - tasks for tasks in seen]
    assert sorted(map(len, left_out)) == [2, 3, 3] and len(set.union(*left_out)) == 8


def test_even_costs_leave_the_prior_as_it_is(examples):
    even = [replace(one, costs=np.zeros(9)) for one in examples]
    assert np.abs(actions_of(fit(even, SHAPE, config=QUICK), even)).max() < 0.1


def test_a_fit_is_a_function_of_its_seed_and_leaves_the_callers_draws_alone(examples):
    torch.manual_seed(5)
    one, config = torch.rand(1), FittingConfig(steps=3, batch_size=8)
    torch.manual_seed(5)
    found = [actions_of(fit(examples[:20], SHAPE, seed, config), examples) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), one)
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_members_are_fitted_each_by_itself(examples):
    made = fit(examples[:20], replace(SHAPE, members=2), config=FittingConfig(steps=3, batch_size=8))
    alone = [actions_of(member, examples) for member in made.members]
    assert np.allclose(np.mean(alone, axis=0), actions_of(made, examples), atol=1e-6)
    assert not np.allclose(*alone, atol=1e-4)


def test_levels_beyond_a_curve_teach_nothing_and_tasks_weigh_alike(examples):
    rng = np.random.default_rng(1)
    of_many = [replace(example(0, rng), task="many", level=1.0) for _ in range(40)]
    of_some = [replace(example(0, rng), task="some", level=0.0) for _ in range(20)]
    _, weights = fitting._targets([*of_many, *of_some], SHAPE)
    assert (weights[:40, :4] == 0).all() and (weights[:40, 4:] > 0).all() and (weights[40:] > 0).all()
    assert weights[:40].sum().item() == pytest.approx(weights[40:].sum().item(), rel=1e-5)


@pytest.mark.parametrize(("count", "levels", "problem"), [(0, 9, "there are no examples"), (5, 0, "levels is 0")])
def test_what_cannot_be_fitted_is_refused(examples, count, levels, problem):
    with pytest.raises(InvalidSettingError, match=problem):
        fit(examples[:count], replace(SHAPE, levels=levels))


# ---------------------------------------------------------------------- records


def test_costs_of_a_branch_are_over_its_best_and_lost_runs_cost_most():
    record = {"losses": [0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0.2, None, 5.0], "diverged": [0] * 8 + [1]}
    costs = branch_costs(record)
    assert costs[3] == pytest.approx(0.0, abs=1e-12) and costs[-1] == costs[-2] == 2.0
    assert costs[1] == pytest.approx(0.25 * (np.log(4) + 2 * np.log(2)))  # smoothed
    assert branch_costs({"losses": [0.1] * 9, "diverged": [1] * 9}) is None


def test_costs_of_a_tuning_curve_are_those_around_the_default():
    rates = np.logspace(-4.0, 0.0, 17)
    losses = np.exp((np.log10(rates) + 2.0) ** 2).tolist()
    record = {"profiles": ["rex"], "rates": rates.tolist(), "losses": [losses], "diverged": [[0] * 17]}
    facts = {"momentum": 0.9, "optimizer": "sgdm"}
    costs = tuning_costs({**record, "facts": facts}, default=10.0**-1.5)
    assert np.argmin(costs) == 2 and costs.min() == 0.0
    assert costs[-1] - costs[2] == pytest.approx(1.5**2, abs=0.1) or costs[-1] == pytest.approx(2.0, abs=0.1)


# ---------------------------------------------------------------------- the command


@pytest.fixture
def records(monkeypatch) -> list[dict]:
    """Records of one cheap task of 40 updates: a made-up tuning curve, and two states of each of two runs."""
    drawn = curves.draw_task
    for module in (curves, agents.training.examples):
        monkeypatch.setattr(module, "draw_task", lambda pool, number: replace(drawn(pool, number), budget=40))
    monkeypatch.setattr(curves, "BRANCHED_AT", (1, 4))
    monkeypatch.setattr(curves, "TRUNKS", 2)
    pool = pool_of(yaml.safe_load((CONFIG_FOLDER / "pool" / "people.yaml").read_text())["pool"])
    recipe, settings = recipe_of(pool)
    task = curves.draw_task(pool, TEACHER)
    facts, rates = facts_of(task), np.logspace(-5.0, 1.0, 19)
    losses = 0.1 * facts["start_loss"] * np.exp(np.minimum((np.log10(rates) + 2.0) ** 2, 2.0))
    base = {"recipe": recipe, "number": TEACHER, "task": task.name}
    tuning = {"kind": TUNING, **base, "facts": facts, "profiles": ["rex"], "seeds": [0], "rates": rates.tolist()}
    tuning |= {"losses": [losses.tolist()], "diverged": [[0] * 19]}
    branches = curves.branches(task, 0.03, np.random.default_rng(4))
    head = {"kind": RECIPE, "recipe": recipe, "pool": settings, "torch": "2"}
    return json.loads(json.dumps([head, tuning, *({"kind": BRANCH, **base, **branch} for branch in branches)]))


def test_states_are_those_that_were_branched_and_replayed_once(records, tmp_path, monkeypatch):
    cache = tmp_path / "states.pt"
    found = examples_of(records, "gns-1", cache)
    branches = [record for record in records if record["kind"] == BRANCH]
    assert [one.decision for one in found] == [0, *(record["decision"] for record in branches)] and len(found) == 5
    assert found[0].level == pytest.approx(0.0, abs=1e-9)
    for one, record in zip(found[1:], branches, strict=True):
        assert np.allclose(one.observation.nodes, np.array(record["nodes"])[:, 2:], atol=1e-3)
        assert np.allclose(one.observation.globals, record["globals"], atol=1e-3)
        at_profile = record["rate"] / get_profile(record["profile"])(record["update"] / 40)
        default = found[0].observation.globals[0] * 2.0 - 3.0  # of the first rate, which is the default at its peak
        assert one.level == pytest.approx(np.log10(at_profile) - default, abs=1e-3)
    monkeypatch.setattr(agents.training.examples, "begin_trunk", None)
    monkeypatch.setattr(agents.training.examples, "replays", None)
    again = examples_of(records, "gns-1", cache)
    assert [one.level for one in again] == [one.level for one in found]
    assert np.array_equal(again[-1].observation.nodes, found[-1].observation.nodes)


def test_the_command_writes_a_policy_that_continues_the_prior(records, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fitting, "FittingConfig", lambda: FittingConfig(steps=2, batch_size=4))
    path = tmp_path / "curves.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "policy"
    fitting.main([str(path), "--out", str(out), "--features", "gns-1", "--members", "2"])
    assert "5 states of 1 drawn tasks" in capsys.readouterr().out
    policy = GNSPolicy.from_pretrained(out)
    assert policy.config.decision == DecisionConfig(mode="prior", base=10.0, num_decisions=20)
    assert policy.config.network.members == 2 and policy.config.network.levels == 17
    assert policy.config.trained_on.budgets == (40.0, 40.0) and policy.config.trained_on.layer_types
    assert -1.0 <= policy.act(examples_of(records, "gns-1")[0].observation) <= 1.0
