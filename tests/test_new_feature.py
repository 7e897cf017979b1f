"""A feature that needs a sum and a setting nobody read before is a row in its schema, and nothing else is touched.

Every way in which a run is observed gives it: whole tensors, pieces of them, and runs side by side.
"""

import math

import numpy as np
import pytest
import torch
from plain_loop import make_optimizer, small_task
from test_sums import make, parameters, train

from envs.batched.observing import observe
from envs.batched.runs import BatchedRuns
from envs.training_run import TrainingRun
from gns import DecisionConfig, DecisionCore, InvalidSettingError, layer_graph
from gns.deciding.rate_control import RateControl
from gns.features.schema import PRODUCT_FACTORS, Feature, FeatureSchema
from gns.features.schemas import SCHEMAS
from gns.features.statistics import NUM_SUMS, SUM_U2, log10
from gns.features.sums import foreach_sums, piecewise_sums

TRIAL = FeatureSchema(
    name="trial",
    bound=9.0,
    layers=(
        *SCHEMAS["gns-1"].layers,
        Feature(
            "alignment",  # cosine of gradient and coming update, in (-1, 1)
            lambda s: (
                s.product("gradient", "update") / np.sqrt(s.product("gradient", "gradient") * s.sums[..., SUM_U2])
            ),
            scale=0.5,
            label="cosine of gradient and coming update",
        ),
    ),
    run=(
        *SCHEMAS["gns-1"].run,
        Feature("memory", lambda s: log10(1.0 - s.run.settings["momentum"].mean(axis=-1)), shift=-1.0),
        Feature("weight_decay", lambda s: s.run.settings["weight_decay"].max(axis=-1)),
    ),
    products=(("gradient", "update"), ("gradient", "gradient")),
    settings=("momentum", "weight_decay"),
)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(SCHEMAS, TRIAL.name, TRIAL)


@pytest.mark.parametrize(("name", "momentum"), [("sgdm", 0.9), ("adam", 0.9), ("adamw", 0.9), ("sgd", 0.0)])
@pytest.mark.parametrize("updates", [0, 3])
def test_a_run_alone_and_runs_side_by_side_see_it(name, momentum, updates):
    task = small_task(batch_size=16)
    run, config = TrainingRun(task, name, 0.01, seed=5), DecisionConfig(num_decisions=20, features="trial")
    graph = layer_graph(run.model, run.compute_gradient())
    run = TrainingRun(task, name, 0.01, seed=5)
    core, runs = DecisionCore(run.model, run.optimizer, graph, 100, config), BatchedRuns(task, name, 2)
    runs.begin(range(2), [5, 5])
    everyone, rates = torch.ones(2, dtype=torch.bool), torch.full((2,), 0.01, dtype=torch.float64)
    for _ in range(updates):
        run.compute_gradient(), runs.compute_gradients(everyone)
        run.apply_update(), runs.apply_updates(rates, everyone)
    run.compute_gradient(), runs.compute_gradients(everyone)
    observed = core.observe()
    controls = [RateControl(100, config, [0.01]) for _ in range(2)]
    nodes, globals_ = observe(runs, graph, controls, torch.zeros(2, 0), "trial")
    for seen, of_run in ((observed.nodes, observed.globals), (nodes[1], globals_[1])):
        own = dict(zip(TRIAL.globals, of_run.tolist(), strict=True))
        assert own["memory"] == pytest.approx(math.log10(1.0 - momentum) + 1.0, abs=1e-6)
        assert own["weight_decay"] == pytest.approx(run.optimizer.param_groups[0]["weight_decay"])
        np.testing.assert_allclose(seen[:, -1], observed.nodes[:, -1], atol=2e-3)
    bound = graph.bind(run.model)
    before = [[p.detach().clone() for p in layer] for layer in bound]
    run.apply_update()
    for row, layer, old in zip(observed.nodes, bound, before, strict=True):
        gradient = torch.cat([p.grad.flatten() for p in layer])
        change = torch.cat([(a - p.detach()).flatten() for a, p in zip(old, layer, strict=True)])
        expected = float(torch.dot(gradient, change) / (gradient.norm() * change.norm()))
        assert TRIAL.feature("alignment").inverse(float(row[-1])) == pytest.approx(expected, abs=2e-3)
        assert expected > 0.1


@pytest.mark.parametrize("name", ["sgd", "sgd nesterov decay", "sgd maximize", "adam amsgrad decay", "adamw decay"])
@pytest.mark.parametrize("updates", [0, 4])
def test_products_of_pieces_are_those_of_whole_tensors(name, updates):
    tensors = parameters()
    optimizer = make(name, tensors)
    train(optimizer, tensors, updates)
    tensors[2].grad = None  # of a layer that takes no part, nothing is known but its weights and state
    pairs = [(left, right) for left in PRODUCT_FACTORS for right in PRODUCT_FACTORS]
    gradients = [p.grad for p in tensors]
    whole = foreach_sums(optimizer, tensors, gradients, updates, pairs).sums
    pieces = piecewise_sums(optimizer, tensors, gradients, updates, 7, pairs).sums
    assert whole.shape == pieces.shape == (len(tensors), NUM_SUMS + len(pairs))
    squares = {pair[0]: whole[:, NUM_SUMS + i] for i, pair in enumerate(pairs) if pair[0] == pair[1]}
    size = torch.stack([(squares[left] * squares[right]).sqrt() for left, right in pairs], dim=1)
    assert ((whole - pieces)[:, NUM_SUMS:].abs() <= 1e-5 * size + 1e-12).all()
    assert squares["gradient"][2] == squares["update"][2] == 0 != squares["weight"][2]
    assert (size[0] > 0).sum() >= (16 if updates else 9)


def test_an_unknown_optimizers_update_counts_as_nothing():
    tensors = parameters()
    optimizer = make("rmsprop", tensors)
    train(optimizer, tensors, 2)
    pairs = (("gradient", "update"), ("gradient", "second"))
    sums = foreach_sums(optimizer, tensors, [p.grad for p in tensors], 2, pairs).sums
    assert (sums[:, NUM_SUMS] == 0).all() and (sums[:4, NUM_SUMS + 1] != 0).all()


def test_settings_of_groups_are_those_of_their_tensors():
    task = small_task()
    model = task.new_model()
    first, *rest = model.parameters()
    groups = [{"params": [first], "weight_decay": 0.5}, {"params": rest, "momentum": 0.2}]
    optimizer = make_optimizer("sgdm", groups, 0.01)
    data = torch.randn(4, *task.training_data().train.inputs.shape[1:])
    loss = model(data).square().mean()
    core = DecisionCore(model, optimizer, layer_graph(model, loss), 100, DecisionConfig(features="trial"))
    loss.backward()
    core.observe()
    settings = core.statistics.settings
    assert settings["weight_decay"].tolist() == [0.5] + [0.0] * len(rest)
    assert settings["momentum"].tolist() == [0.9] + [0.2] * len(rest)


def test_a_product_of_what_is_not_known_is_refused():
    with pytest.raises(InvalidSettingError, match="products with start; expected factors among weight, gradient"):
        FeatureSchema("trial-2", (), (), 5.0, products=(("gradient", "start"),))
