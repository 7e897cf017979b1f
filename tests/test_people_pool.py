"""Tasks drawn as people train them: whole data, all kinds of layers, and the same ones for ever."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from agents.runtime.command import CONFIG_FOLDER
from agents.training.curve_records import pool_of
from envs.batched.branches import begin_all, rates_to_the_end, train_to_the_end
from envs.batched.runs import BatchedRuns
from envs.pool import PoolConfig, draw_pool, draw_task
from envs.pool.layers import GRU, LSTM, RNN, EmbeddingBag, GroupNorm
from envs.pool.models import NetworkSpec
from envs.pool.people import cost_of_update, next_token, passes_of
from envs.pool.sources import Characters, Graphs, Patterns, Table, Words
from envs.tasks import Task
from envs.training_run import TrainingRun
from gns.errors import InvalidSettingError, UnknownNameError
from gns.graph.layer_graph import NODE_TYPES, layer_graph

NUMBERS = (0, 1, 2, 3, 5, 6, 7, 10, 13, 14, 17, 18, 19, 21, 22, 23, 25, 30, 36, 39, 40)  # one of every kind


@pytest.fixture(scope="module")
def config() -> PoolConfig:
    return pool_of(yaml.safe_load((CONFIG_FOLDER / "pool" / "people.yaml").read_text())["pool"])


@pytest.fixture(scope="module")
def pool(config) -> list[Task]:
    return [draw_task(config, number) for number in NUMBERS]


def told(tasks: list[Task]) -> str:
    """Return what is to stay of tasks, shortened."""
    figures = [(task.name, task.batch_size, task.budgets, task.clip_norm) for task in tasks]
    return hashlib.sha256(repr(figures).encode()).hexdigest()[:16]


def test_pools_that_measurements_were_made_on_are_drawn_as_they_were(pool, config):
    assert told(draw_pool(PoolConfig(size=20, seed=5))) == "436288d56e90a726"
    made_up = [task for task in pool if not any(word in task.name for word in ("characters", "words"))]
    assert told(made_up) == "6bc04d7a1b507553"  # text is that of the Python that runs
    assert [task.name for task in draw_pool(replace(config, size=3))] == [task.name for task in pool[:3]]


def test_every_source_family_and_kind_of_layer_appears(pool, config):
    words = {word for task in pool for word in task.name.split("_")}
    assert words >= {*config.families, *config.optimizers, "tuned", "summed"}
    assert words >= {name.split("_")[0] for name in config.sources}
    kinds: set[str] = set()
    for task in pool:
        run = TrainingRun(task, task.optimizer, 1e-3, seed=0)
        graph = layer_graph(run.model, run.compute_gradient())
        kinds |= {NODE_TYPES[kind] for kind in graph.type_ids}
    assert kinds == set(NODE_TYPES)
    groups = [group for task in pool for group in task.parameter_groups(task.new_model())]
    momenta = [group["momentum"] for group in groups if "momentum" in group]
    assert 0.9 in momenta and min(momenta) < 0.5 and 0.95 < max(momenta) <= 0.99


def test_whole_sources_are_passed_over_one_to_thirty_times_within_the_bounds(pool, config):
    passes = np.array([passes_of(task) for task in pool])
    assert (passes <= 31.0).all() and np.mean(passes >= 0.9) > 0.95 and passes.max() > 7.0
    for task in pool:
        assert task.budgets[0] <= task.budget == task.budgets[1] <= 5000 and task.budgets[0] >= 150
        assert task.batch_size <= 128
        if not task.name.endswith("tuned"):
            assert cost_of_update(task) * task.budget <= config.operations
    digits = next(task for task in pool if "_digits_" in task.name and not task.name.endswith("tuned"))
    assert len(digits.training_data().train) == 1077


@pytest.mark.parametrize(
    "word", ["recurrent", "graphs", "words_bag", "language", "bare", "cnn", "_fine_tuned", "summed"]
)
def test_runs_of_every_family_side_by_side_end_where_each_ends_alone(pool, word):
    task = next(task for task in pool if word in task.name)
    low, high = task.range_of(task.optimizer)
    rates = rates_to_the_end([(low * high) ** 0.5, low], ["rex"] * 2, 6)
    runs = BatchedRuns(task, task.optimizer, 2)
    begin_all(runs, [3, 4])
    found = train_to_the_end(runs, rates)
    for number, seed in enumerate((3, 4)):
        alone = TrainingRun(task, task.optimizer, 1.0, seed)
        for rate in rates[number].tolist():
            alone.compute_gradient()
            for group in alone.optimizer.param_groups:
                group["lr"] = rate
            alone.apply_update()
        assert found.losses[number] == pytest.approx(alone.evaluate_reward_split().loss, rel=1e-3)


@pytest.mark.parametrize(("ours", "theirs"), [(GRU, nn.GRU), (LSTM, nn.LSTM), (RNN, nn.RNN)])
def test_written_out_recurrent_layers_are_those_of_pytorch(ours, theirs):
    torch.manual_seed(0)
    layer, tokens = ours(3, 5, batch_first=True), torch.randn(4, 6, 3)
    other = theirs(3, 5, batch_first=True)
    other.load_state_dict(layer.state_dict())
    assert torch.allclose(layer(tokens), other(tokens)[0], atol=1e-6)


def test_other_written_out_layers_are_those_of_pytorch():
    torch.manual_seed(0)
    bag, tokens = EmbeddingBag(10, 4), torch.randint(10, (3, 6))
    assert torch.allclose(bag(tokens), nn.EmbeddingBag.forward(bag, tokens), atol=1e-6)
    norm, images = GroupNorm(2, 6), torch.randn(3, 6, 4, 4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    assert torch.allclose(norm(images), nn.GroupNorm.forward(norm, images), atol=1e-5)
    logits, targets = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert torch.allclose(next_token(logits, targets), expected)


def test_a_language_model_does_not_read_what_it_is_to_predict():
    torch.manual_seed(0)
    spec = NetworkSpec("language", (8,), 11, (16, 16), vocabulary=11, sequence=True)
    model, tokens = spec.build(), torch.randint(11, (2, 8))
    later = tokens.clone()
    later[:, 5:] = (later[:, 5:] + 1) % 11
    assert torch.allclose(model(tokens)[:, :5], model(later)[:, :5], atol=1e-6)
    assert not torch.allclose(model(tokens)[:, 5], model(later)[:, 5], atol=1e-3)


def test_weight_normalised_layers_begin_as_the_plain_ones():
    spec = NetworkSpec("mlp", (6,), 3, (5, 4))
    networks = []
    for parametrised in (False, True):
        torch.manual_seed(0)
        networks.append(replace(spec, parametrised=parametrised).build())
    inputs = torch.randn(7, 6)
    assert torch.allclose(networks[0](inputs), networks[1](inputs), atol=1e-6)
    assert len(list(networks[1].parameters())) == len(list(networks[0].parameters())) + 3


@pytest.mark.parametrize(
    "source",
    [Table("wine"), Table("diabetes"), Patterns(8, 5, 400, 0.8, 3), Graphs(9, 3, 0.02, 400, 4), Words(12, 3, 50)],
)
def test_sources_are_reproducible_and_have_the_shapes_they_say(source):
    data, again = source.training_data(), source.training_data()
    assert torch.equal(data.train.inputs, again.train.inputs) and torch.equal(data.train.targets, again.train.targets)
    for split in (data.train, data.reward):
        assert source.view(split.inputs).shape == (len(split), *source.shape)
        if source.classes:
            assert split.targets.unique().tolist() == list(range(source.classes))
        else:
            assert split.targets.shape == (len(split), source.outputs)


def test_graphs_have_edges_both_ways_and_none_to_themselves():
    source = Graphs(9, 3, 0.05, 300, 4)
    edges = source.training_data().train.inputs[..., 3:]
    assert torch.equal(edges, edges.transpose(1, 2)) and edges.diagonal(dim1=1, dim2=2).sum() == 0
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    plain = Graphs(9, 3, 0.0, 300, 4).training_data().train
    degrees, ring, tree = plain.inputs[..., 3:].sum(2), plain.targets == 1, plain.targets == 2
    assert (degrees[ring] == 2).all() and (degrees[tree].sum(1) == 16).all()


def test_next_characters_follow_inputs_and_the_reward_split_is_of_other_files():
    data = Characters(12, 300, 5).training_data()
    assert torch.equal(data.train.inputs[:, 1:], data.train.targets[:, :-1])
    assert int(data.train.inputs.max()) < 96 and len(data.reward) == 200
    rows = {tuple(row) for row in data.train.inputs.tolist()}
    assert len(rows & {tuple(row) for row in data.reward.inputs.tolist()}) < 10


def test_what_an_edition_does_not_draw_is_refused():
    with pytest.raises(InvalidSettingError, match="edition is 7"):
        PoolConfig(edition=7)
    with pytest.raises(UnknownNameError, match="patterns"):
        PoolConfig(sources=("patterns",))
    with pytest.raises(UnknownNameError, match="graph"):
        PoolConfig(families=("graph",))
    with pytest.raises(UnknownNameError, match="sst2"):
        PoolConfig(edition=1, sources=("sst2",))
    with pytest.raises(InvalidSettingError, match="passes"):
        PoolConfig(edition=1, passes=(3.0, 1.0))
    with pytest.raises(InvalidSettingError, match="operations is 1"):
        draw_task(PoolConfig(edition=1, operations=1.0), 0)
