"""What a policy was trained on: written by a training, kept in its file, and said where a run is of another kind."""

import json
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_loop import small_task
from scheduler_loop import lively_policy, network
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import GCNConv

from agents.training.kinds import kinds_of
from envs import EnvConfig
from envs.tasks import get_task
from gns import GNSPolicy, GNSScheduler, Observation, PolicyConfig, layer_graph
from gns.errors import PolicyFormatError
from gns.graph.layer_graph import NODE_TYPES
from gns.policy.trained_on import TrainedOn

MOST = TrainedOn(("linear", "conv", "norm", "attention"), ("sgd", "adamw"), (20, 1000), (0.5, 9.0), True)


class Bare(nn.Module):
    """A layer of bare parameters, by what it does with them."""

    def __init__(self, use, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.use = use
        self.own = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.use(x, *self.own)


BARE = {
    "product": ("linear", Bare(lambda x, w, b: x @ w + b, (4, 3), (3,)), torch.randn(2, 4)),
    "linear": ("linear", Bare(F.linear, (3, 4), (3,)), torch.randn(2, 5, 4)),
    "einsum": ("linear", Bare(lambda x, w: torch.einsum("bnd,hde->bhne", x, w), (2, 4, 3)), torch.randn(2, 5, 4)),
    "scaled first": ("linear", Bare(lambda x, w: x @ (0.1 * w.T), (3, 4)), torch.randn(2, 4)),
    "convolution": ("conv", Bare(F.conv2d, (3, 4, 3, 3)), torch.randn(2, 4, 5, 5)),
    "tokens": ("embedding", Bare(lambda x, w: F.embedding(x, w), (7, 3)), torch.tensor([[1, 2]])),
    "bag": ("linear", Bare(lambda x, w: F.embedding_bag(x, w), (7, 3)), torch.tensor([[1, 2]])),
    "norm": ("norm", Bare(lambda x, w, b: F.layer_norm(x, (4,), w, b), (4,), (4,)), torch.randn(2, 4)),
    "positions": ("other", Bare(lambda x, w: x + w, (5, 4)), torch.randn(2, 5, 4)),
    "bias": ("linear", Bare(lambda x, w: x + w, (4,)), torch.randn(2, 5, 4)),
    "scales": ("other", Bare(lambda x, w: x * w, (4,)), torch.randn(2, 4)),
}


@pytest.mark.parametrize("name", BARE)
def test_a_layer_of_an_unknown_class_is_of_the_type_of_what_it_does(name):
    kind, layer, x = BARE[name]
    assert layer_graph(layer, layer(x)).types == (kind,)


def test_a_graph_layer_and_a_traced_one_are_linear_too():
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    model = GCNConv(4, 3)
    graph = layer_graph(model, model(torch.randn(3, 4), edges))
    assert dict(zip(graph.names, graph.types, strict=True)) == {"lin": "linear", "(root)": "linear"}  # the bias alone
    traced = torch.jit.trace(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(2, 4))
    assert set(layer_graph(traced, traced(torch.randn(2, 4))).types) == {"linear"}


# ---------------------------------------------------------------------- types that were not trained


def observation(*types: str) -> Observation:
    rng = np.random.default_rng(0)
    return Observation(
        nodes=rng.normal(size=(3, 7)).astype(np.float32),
        node_types=np.array([NODE_TYPES.index(kind) for kind in types]),
        blocks=np.arange(3),
        edges=np.array([[0, 1], [1, 2]]),
        globals=rng.normal(size=14).astype(np.float32),
    )


def policy_on(trained_on: TrainedOn) -> GNSPolicy:
    policy = lively_policy()
    same = GNSPolicy(replace(policy.config, trained_on=trained_on))
    same.load_state_dict(policy.state_dict())
    return same.eval()


def test_an_untrained_type_is_read_as_the_nearest_trained_one():
    policy, unknown = policy_on(MOST), policy_on(TrainedOn())
    strange, known = observation("recurrent", "other", "norm"), observation("linear", "linear", "norm")
    assert policy.act(strange) == policy.act(known) == unknown.act(known) != unknown.act(strange)
    trained = observation("conv", "attention", "norm")
    assert policy.act(trained) == unknown.act(trained)
    assert policy_on(replace(MOST, layer_types=NODE_TYPES)).act(strange) == unknown.act(strange)
    without_linear = policy_on(replace(MOST, layer_types=("conv",)))
    assert without_linear.act(strange) == unknown.act(observation("conv", "conv", "conv"))


@pytest.mark.parametrize("make", [nn.GRU, nn.LSTM, nn.RNN])
def test_the_bundled_policy_decides_on_a_recurrent_net_as_if_its_layers_were_linear(make):
    def rates(relabelled: bool) -> list[float]:
        torch.manual_seed(0)
        layer, head = make(6, 8, batch_first=True), nn.Linear(8, 3)
        model = nn.ModuleList([layer, head])
        inputs, targets = torch.randn(16, 5, 6), torch.randint(3, (16,))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
        graph = layer_graph(model, F.cross_entropy(head(layer(inputs)[0][:, -1]), targets))
        assert graph.types == ("recurrent", "linear")
        graph = replace(graph, types=("linear", "linear")) if relabelled else graph
        scheduler = GNSScheduler(optimizer, model, total_steps=40, policy="learned", graph=graph)
        for _ in range(40):
            loss = F.cross_entropy(head(layer(inputs)[0][:, -1]), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
        return [record.learning_rate for record in scheduler.history]

    assert rates(False) == rates(True)


# ---------------------------------------------------------------------- the file


def test_it_is_kept_in_the_policys_file(tmp_path):
    policy_on(MOST).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["trained_on"]["budgets"] == [20, 1000] and written["trained_on"]["fine_tuning"] is True
    assert GNSPolicy.from_pretrained(tmp_path).config.trained_on == MOST
    del written["trained_on"]  # as earlier versions wrote it
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert GNSPolicy.from_pretrained(tmp_path).config.trained_on == TrainedOn()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ([], "trained_on has no keys"),
        ({"layers": []}, "trained_on has no keys"),
        ({"layer_types": ["magic"]}, "layer_types is"),
        ({"layer_types": "linear"}, "layer_types is"),
        ({"optimizers": [["sgd"]]}, "optimizers is"),
        ({"budgets": [1]}, "budgets is"),
        ({"budgets": [1, math.nan]}, "budgets is"),
        ({"losses": [1, "2"]}, "losses is"),
        ({"losses": [1, 1e300]}, "losses is"),
        ({"fine_tuning": "yes"}, "fine_tuning is"),
        ({"fine_tuning": 1.0}, "fine_tuning is"),
    ],
)
def test_what_is_no_such_record_is_refused(wrong, named):
    data = json.loads(json.dumps(lively_policy().to_dict()))
    with pytest.raises(PolicyFormatError, match=named):
        PolicyConfig.from_dict(data | {"trained_on": wrong})


def test_a_training_writes_the_kinds_of_its_tasks():
    before, env = torch.get_rng_state(), EnvConfig(optimizers=("adam", "sgdm"), budgets=(30, 60))
    found = kinds_of([get_task("digits_mlp"), get_task("digits_cnn"), small_task("batch_norm")], env)
    assert torch.equal(before, torch.get_rng_state())
    assert found.layer_types == ("linear", "conv", "norm") and found.optimizers == ("sgd", "adam")
    assert found.budgets == (30, 60) and not found.fine_tuning
    assert 1.5 < found.losses[0] <= found.losses[1] < 4.0

    def pretrained() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            body = nn.Linear(64, 16)
        return nn.Sequential(nn.Flatten(), body, nn.Linear(16, 10))

    assert kinds_of([small_task(build_model=pretrained)], env).fine_tuning


def test_a_training_that_begins_with_a_policy_keeps_its_kinds(tmp_path):
    env = EnvConfig(optimizers=("adam",), budgets=(30, 60))
    policy_on(MOST).save_pretrained(tmp_path / "known")
    found = kinds_of([small_task()], env, str(tmp_path / "known"))
    assert found.layer_types == MOST.layer_types and found.optimizers == ("sgd", "adam", "adamw")
    assert found.budgets == (20, 1000) and found.losses == (0.5, 9.0) and found.fine_tuning
    policy_on(TrainedOn()).save_pretrained(tmp_path / "old")  # of which nobody knows what it has seen
    assert kinds_of([small_task()], env, str(tmp_path / "old")).layer_types == ()


# ---------------------------------------------------------------------- the scheduler says so


def told(caplog, optimizer: type, scale: float = 1.0, total_steps: int = 100, **trained_on) -> list[str]:
    """What a scheduler logs of a run on a policy of these kinds."""
    torch.manual_seed(0)
    model = network()
    made = optimizer(model.parameters(), lr=1e-3)
    scheduler = GNSScheduler(made, model, total_steps, policy=policy_on(replace(MOST, **trained_on)))
    with caplog.at_level(logging.WARNING, "gns"):
        for _ in range(50):
            loss = scale * model(torch.ones(4, 6)).square().mean() + scale
            made.zero_grad()
            loss.backward()
            made.step()
            scheduler.step(loss)
    return [record.getMessage() for record in caplog.records if "trained on" in record.getMessage()]


def test_a_run_like_those_of_the_training_is_not_spoken_of(caplog):
    assert told(caplog, torch.optim.AdamW) == []


def test_one_line_says_in_what_a_run_lies_outside(caplog):
    lines = told(caplog, torch.optim.RMSprop, total_steps=3000, layer_types=("conv", "norm"))
    assert lines == [
        "This run is outside of what the policy was trained on, and its rates may be far off: layers of type linear "
        "(read as conv); an optimizer other than sgd, adamw; 3,000 updates (trained on 20 to 1,000)."
    ]


def test_a_loss_that_is_a_sum_is_told_once_it_is_known(caplog):
    (line,) = told(caplog, torch.optim.AdamW, scale=300.0)
    assert "a loss of 3" in line and "trained on at most 9); is it a sum, not a mean?" in line


def test_nothing_is_said_where_nothing_is_recorded(caplog):
    nothing = {"layer_types": (), "optimizers": (), "budgets": (), "losses": ()}
    assert told(caplog, torch.optim.RMSprop, scale=300.0, total_steps=3000, **nothing) == []
