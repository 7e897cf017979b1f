"""Action mode ``per-layer``: a multiplier for each layer's rate around the shared one."""

import copy
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_loop import Watch, batch, lively_policy, make_scheduler, network
from torch import nn
from torch.nn import functional as F

from gns import (
    DecisionConfig,
    DecisionCore,
    GNSPolicy,
    InvalidSettingError,
    LayerGraphError,
    NetworkConfig,
    PolicyConfig,
    PolicyFormatError,
    UnknownNameError,
    layer_graph,
    parameter_groups,
)
from gns.deciding.rate_control import RateControl
from gns.features.statistics import SUM_U2
from gns.policy.finding import BUNDLED
from gns.policy.network import GNSNetwork, batch_observations, network_for
from gns.scheduler.policy_source import fingerprint

T = 12
OPTIMIZERS = {"adam": torch.optim.Adam, "sgdm": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}
MODEL = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


class Loop:
    """A training loop under a decision core, with one parameter group a layer unless told otherwise."""

    def __init__(self, mode: str = "per-layer", optimizer: str = "adam", groups=parameter_groups, **config) -> None:
        self.model = copy.deepcopy(MODEL)
        self.optimizer = OPTIMIZERS[optimizer](groups(self.model), lr=0.01)
        self.graph = layer_graph(self.model, self.loss(0))
        decision = DecisionConfig(**{"mode": mode, "num_decisions": 4, **config})
        self.core = DecisionCore(self.model, self.optimizer, self.graph, T, decision)
        self.rates: list[list[float]] = []

    def loss(self, update: int) -> torch.Tensor:
        x, y = batch(update)
        return F.cross_entropy(self.model(x), y)

    def run(self, actions, updates: int = T) -> "Loop":
        """Make updates; ``actions`` are those of the decisions to come."""
        actions = iter(actions)
        for _ in range(updates):
            self.optimizer.zero_grad()
            loss = self.loss(self.core.update)
            loss.backward()
            if self.core.decision_due:
                self.core.observe()
                self.core.decide(next(actions))
            self.core.set_rates()
            self.rates.append([group["lr"] for group in self.optimizer.param_groups])
            self.optimizer.step()
            self.core.note_update(loss)
        return self

    @property
    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


SHARED = [0.3, -0.2, 0.1, 0.4]
LAYERS = [[0.5, -0.5, 1.0], [0.0, 0.25, -1.0], [1.0, 1.0, 1.0], [-1.0, 0.0, 0.0]]
ACTIONS = [np.array([shared, *layers]) for shared, layers in zip(SHARED, LAYERS, strict=True)]


# ---------------------------------------------------------------------- what actions do to rates


@settings(deadline=None, max_examples=60)
@given(
    actions=st.lists(st.floats(-1, 1), min_size=1, max_size=12),
    base=st.floats(1.1, 10),
    cuts=st.sets(st.integers(1, 11)),
)
def test_the_geometric_mean_of_the_multipliers_over_layers_is_1(actions, base, cuts):
    held = [part.tolist() for part in np.split(np.arange(len(actions)), sorted(c for c in cuts if c < len(actions)))]
    config = DecisionConfig(mode="per-layer", layer_base=base, num_decisions=2)
    control = RateControl(10, config, [0.01] * len(held), layers=(len(actions), held))
    control.decide(np.array([0.0, *actions]))
    logs = np.log(control.multipliers)
    assert np.dot([len(own) for own in held], logs) == pytest.approx(0.0, abs=1e-9)
    means = np.array([np.mean([actions[i] for i in own]) for own in held])
    np.testing.assert_allclose(logs - logs[0], (means - means[0]) * math.log(base), atol=1e-9)
    assert np.abs(logs).max() <= 2.0 * math.log(base) + 1e-9


def test_rates_follow_the_formula_anew_at_each_decision():
    loop = Loop(profile="linear", base=2.0, layer_base=4.0).run(ACTIONS)
    level = 0.01
    for t, rates in enumerate(loop.rates):
        if t % 3 == 0:
            level *= 2.0 ** SHARED[t // 3]
        layers = np.array(LAYERS[t // 3])
        assert rates == pytest.approx((1.0 - t / T) * level * 4.0 ** (layers - layers.mean()))
    assert loop.rates[6] == [loop.rates[6][0]] * 3  # the third decision wants all layers alike


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_layers_that_want_nothing_leave_mode_profile_bit_for_bit(optimizer):
    plain = Loop("profile", optimizer, lambda model: model.parameters()).run(SHARED)
    for actions in ([np.array([a, 0.0, 0.0, 0.0]) for a in SHARED], SHARED):
        loop = Loop(optimizer=optimizer).run(actions)
        assert loop.rates == [rates * 3 for rates in plain.rates]
        assert torch.equal(loop.weights, plain.weights)


def test_one_parameter_group_has_the_shared_rate_bit_for_bit():
    plain = Loop("profile", groups=lambda model: model.parameters()).run(SHARED)
    loop = Loop(groups=lambda model: model.parameters()).run(ACTIONS)
    assert loop.rates == plain.rates and torch.equal(loop.weights, plain.weights)


def test_a_group_moves_by_the_mean_of_the_layers_whose_parameters_it_holds():
    def matrices_and_vectors_of_the_first_two(model):
        first = [*model[0].parameters(), *model[2].parameters()]
        return [{"params": first}, {"params": [model[3].weight]}, {"params": [model[3].bias]}]

    loop = Loop(groups=matrices_and_vectors_of_the_first_two, layer_base=2.0)
    loop.core.decide(np.array([0.0, 1.0, 0.5, -1.0]))  # places: two in the first group, the last layer in both others
    mean = (1.0 + 0.5 - 1.0 - 1.0) / 4.0
    assert loop.core.multipliers == pytest.approx([2.0 ** (0.75 - mean), 2.0 ** (-1.0 - mean), 2.0 ** (-1.0 - mean)])


def test_a_group_without_layers_of_the_graph_keeps_the_shared_rate():
    spare = nn.Parameter(torch.zeros(2))
    loop = Loop(groups=lambda model: [*parameter_groups(model), {"params": [spare]}])
    loop.core.decide(ACTIONS[0])
    assert loop.core.multipliers[3] == 1.0 and loop.core.multipliers[0] != 1.0


def test_rates_stay_within_their_bounds():
    wanted = [np.array([1.0, 1.0, -1.0, -1.0])] * 4
    loop = Loop(min_lr=5e-3, max_lr=0.1, profile="constant", layer_base=100.0).run(wanted)
    rates = np.array(loop.rates)
    assert rates.min() == 5e-3 and rates.max() == 0.1 and (rates[-1] == [0.1, 5e-3, 5e-3]).all()
    assert loop.core.learning_rate == 0.1  # the shared one


def test_the_first_interval_may_have_the_initial_rate():
    loop = Loop(decide_first=False, profile="constant").run(ACTIONS)
    assert loop.rates[:3] == [[0.01] * 3] * 3
    assert len(set(loop.rates[3])) == 3


def test_a_rollback_cuts_the_shared_rate_and_keeps_the_multipliers():
    loop = Loop(profile="constant").run(ACTIONS, 3)
    before = loop.core.group_factors
    loop.core.roll_back(0.1, 0)
    assert loop.core.group_factors == pytest.approx([0.1 * factor for factor in before])


def test_a_run_goes_on_from_its_state_in_the_middle_of_an_interval():
    whole = Loop().run(ACTIONS)
    first = Loop().run(ACTIONS, 4)
    file = io.BytesIO()
    torch.save([first.core.state_dict(), first.model.state_dict(), first.optimizer.state_dict()], file)
    file.seek(0)
    core, model, optimizer = torch.load(file, weights_only=True)
    second = Loop()
    second.core.load_state_dict(core)
    second.model.load_state_dict(model)
    second.optimizer.load_state_dict(optimizer)
    second.run(ACTIONS[2:], T - 4)
    assert first.rates + second.rates == whole.rates
    assert torch.equal(second.weights, whole.weights)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(3), "The action has 3 numbers; expected 1, or 4: the shared one, then one a layer"),
        (np.zeros(5), "The action has 5 numbers"),
        (np.array([0.0, 0.0, np.nan, 0.0]), "expected a finite number in"),
    ],
)
def test_actions_of_the_wrong_kind_are_refused(action, message):
    core = Loop().core
    with pytest.raises(InvalidSettingError, match=message):
        core.decide(action)
    assert core.decision_due and core.multipliers == [1.0] * 3


def test_other_modes_take_one_number():
    with pytest.raises(InvalidSettingError, match="The action has 4 numbers; expected 1"):
        Loop("profile").core.decide(ACTIONS[0])


# ---------------------------------------------------------------------- what a policy sees


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_update_over_weight_is_that_of_each_layers_own_rate(optimizer):
    actions = np.array([0.0, 1.0, -0.5, 0.0])
    loop = Loop(optimizer=optimizer, profile="constant", layer_base=2.0).run([actions], 3)
    loop.optimizer.zero_grad()
    loop.loss(3).backward()
    loop.core.observe()
    statistics = loop.core.statistics
    assert statistics.learning_rates.tolist() == np.repeat(loop.rates[-1], 2).tolist()
    assert float(statistics.learning_rate) == 0.01
    before = [p.detach().clone() for p in loop.model.parameters()]
    if optimizer == "rmsprop":  # its last update was measured
        loop, before = Loop(optimizer=optimizer, profile="constant", layer_base=2.0).run([actions], 2), None
        before = [p.detach().clone() for p in loop.model.parameters()]
        loop.run([], 1)
    else:
        loop.core.decide(actions)
        loop.core.set_rates()
        loop.optimizer.step()
    made = [float((p.detach() - q).square().sum()) for p, q in zip(loop.model.parameters(), before, strict=True)]
    assert statistics.sums[:, SUM_U2] * statistics.learning_rates**2 == pytest.approx(made, rel=1e-3)


# ---------------------------------------------------------------------- parameter groups


class Branched(nn.Module):
    """Two blocks, a tied weight, a frozen layer and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2))
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.blocks[0][0].weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.frozen(self.tied(x)) * self.scale


def test_there_is_one_group_a_layer_of_the_layer_graph():
    model = Branched()
    graph = layer_graph(model, model(torch.randn(3, 4)).sum())
    groups = parameter_groups(model)
    expected = {frozenset(map(id, layer)) for layer in graph.bind(model)}
    assert {frozenset(map(id, group["params"])) for group in groups} == expected
    assert len(groups) == graph.num_nodes == 6
    core = DecisionCore(
        model, torch.optim.SGD(groups, 0.1), graph, 4, DecisionConfig(mode="per-layer", num_decisions=2)
    )
    core.decide(np.array([0.0, *np.linspace(-1, 1, 6)]))
    assert len(set(core.multipliers)) == 6


def test_groups_by_block_are_those_of_the_graphs_blocks():
    model = Branched()
    graph = layer_graph(model, model(torch.randn(3, 4)).sum())
    blocks = [set() for _ in graph.block_names]
    for layer, number in zip(graph.bind(model), graph.block_ids, strict=True):
        blocks[number].update(map(id, layer))
    found = [frozenset(map(id, group["params"])) for group in parameter_groups(model, "block")]
    assert set(found) == set(map(frozenset, blocks)) and len(found) == 4


def test_groups_that_are_given_are_divided_and_keep_their_settings():
    model = copy.deepcopy(MODEL)
    vectors = [p for p in model.parameters() if p.ndim == 1]
    given = [
        {"params": [model[0].weight, model[3].weight], "weight_decay": 0.1},
        {"params": iter(vectors), "lr": 0.5},
    ]
    groups = parameter_groups(model, groups=given)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [[names[id(p)] for p in group["params"]] for group in groups] == [
        ["0.weight"],
        ["3.weight"],
        ["0.bias"],
        ["2.weight", "2.bias"],
        ["3.bias"],
    ]
    assert [group.get("weight_decay") for group in groups] == [0.1, 0.1, None, None, None]
    assert [group.get("lr") for group in groups] == [None, None, 0.5, 0.5, 0.5]


def test_groups_of_a_compiled_model_and_of_parameters_as_they_come():
    model = copy.deepcopy(MODEL)
    compiled = [group["params"] for group in parameter_groups(torch.compile(model))]
    plain = [group["params"] for group in parameter_groups(model, groups=model.parameters())]
    assert [list(map(id, part)) for part in compiled] == [list(map(id, part)) for part in plain]


def test_groups_that_cannot_be_are_refused():
    with pytest.raises(
        UnknownNameError, match="Unknown level of parameter groups 'stage'; expected one of: block, layer"
    ):
        parameter_groups(MODEL, "stage")
    with pytest.raises(LayerGraphError, match=r"A parameter of shape \(2,\) in the groups is none of Sequential's"):
        parameter_groups(MODEL, groups=[nn.Parameter(torch.zeros(2))])
    with pytest.raises(LayerGraphError, match="no trainable parameter"):
        parameter_groups(nn.Tanh())


# ---------------------------------------------------------------------- the network


def observation(seed: int = 0, **config):
    loop = Loop(**config).run([0.1 * seed], 1)
    return loop.core.observe()


def lively_network(**config) -> GNSNetwork:
    torch.manual_seed(3)
    made = GNSNetwork(NetworkConfig(hidden=16, head=16, per_layer=True, **config)).eval()
    with torch.no_grad():
        made.layer_actor.head[2].weight.mul_(100.0)
    return made


@pytest.mark.parametrize("hierarchical", [False, True])
def test_a_layers_action_stands_in_the_order_of_layers(hierarchical):
    seen = observation()
    if hierarchical:
        seen = replace(seen, blocks=np.array([0, 0, 1]))
    order = np.array([2, 0, 1])
    place = np.argsort(order)
    moved = replace(
        seen,
        nodes=seen.nodes[order],
        node_types=seen.node_types[order],
        blocks=seen.blocks[order],
        edges=place[seen.edges],
    )
    made = lively_network(hierarchical=hierarchical)
    with torch.no_grad():
        shared, layers = made.actions(batch_observations([seen, moved]))
    assert shared.shape == (2, 1) and layers.shape == (6,) and layers.abs().max() <= 1.0
    torch.testing.assert_close(layers[3:], layers[:3][torch.from_numpy(order)])
    if hierarchical:  # layers of one block have its embedding
        assert layers[0] == layers[1] != layers[2]
    else:
        assert len(set(layers[:3].tolist())) == 3


def test_the_actor_of_layers_leaves_all_else_as_it_is():
    torch.manual_seed(5)
    plain = GNSNetwork(NetworkConfig())
    torch.manual_seed(5)
    made = GNSNetwork(NetworkConfig(per_layer=True))
    weights = made.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())
    assert all(name.startswith("layer_actor.") for name in set(weights) - set(plain.state_dict()))
    seen = batch_observations([observation(), observation(1)])
    with torch.no_grad():
        (shared, layers), (mean, _) = made.actions(seen), plain(seen)
        assert torch.equal(shared, mean) and plain.actions(seen)[1] is None
        assert layers.abs().max() < 0.02  # a new policy changes next to nothing


def test_gradients_of_layers_actions_reach_encoder_and_their_actor():
    made = lively_network()
    made.actions(batch_observations([observation(), observation(1)]))[1].sum().backward()
    for name, parameter in made.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached == name.startswith(("encoder", "layer_actor")), name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"convolution": "none"}, "per_layer is true and convolution is 'none'; actions of layers need embeddings"),
        ({"features": "srls"}, "per_layer is true and features 'srls' have none of layers"),
    ],
)
def test_a_network_without_embeddings_of_layers_is_refused(config, message):
    with pytest.raises(InvalidSettingError, match=message):
        NetworkConfig(per_layer=True, **config)


def test_settings_that_cannot_be_are_refused():
    for base in (1.0, 0.5):
        with pytest.raises(InvalidSettingError, match=f"layer_base is {base}; expected more than 1"):
            DecisionConfig(layer_base=base)
    with pytest.raises(InvalidSettingError, match="mode is 'per-layer' and features 'srls' have none of layers"):
        DecisionConfig(mode="per-layer", features="srls")
    with pytest.raises(InvalidSettingError, match="per_layer = true, for which mode 'anchored' has no use; set env"):
        network_for(NetworkConfig(per_layer=True), DecisionConfig(mode="anchored"))


# ---------------------------------------------------------------------- policies


def test_a_policy_gets_the_actor_that_its_mode_asks_for_and_survives_its_files(tmp_path):
    policy = lively_policy("per-layer")
    assert policy.config.network.per_layer
    policy.save_pretrained(tmp_path)
    loaded = GNSPolicy.from_pretrained(tmp_path)
    seen = observation()
    action = loaded.act(seen)
    assert action.shape == (4,) and len(set(action.tolist())) == 4 and (np.abs(action) <= 1.0).all()
    assert np.array_equal(action, policy.act(seen)) and loaded.to_dict() == policy.to_dict()
    assert isinstance(lively_policy().act(seen), float)


def test_a_policy_whose_files_do_not_fit_its_mode_is_refused(tmp_path):
    lively_policy("per-layer").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["decision"]["mode"] = "profile"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PolicyFormatError, match="per_layer = true, for which mode 'profile' has no use"):
        GNSPolicy.from_pretrained(tmp_path)
    lively_policy().save_pretrained(tmp_path)
    config["decision"]["mode"] = "per-layer"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PolicyFormatError, match=r"missing: \['network.layer_actor"):
        GNSPolicy.from_pretrained(tmp_path)


def test_policies_of_before_the_mode_load_and_keep_their_digests(tmp_path):
    bundled = GNSPolicy.from_pretrained(BUNDLED)
    bundled.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not config["network"].pop("per_layer") and not config["network"].pop("levels")
    assert config["network"].pop("members") == 1
    del config["decision"]["layer_base"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = GNSPolicy.from_pretrained(tmp_path)
    assert old.act(observation()) == bundled.act(observation())
    other = GNSPolicy(PolicyConfig(bundled.config.network, replace(bundled.config.decision, layer_base=5.0)))
    other.load_state_dict(bundled.state_dict())
    assert fingerprint(old) == fingerprint(bundled) == fingerprint(other)
    policy, twin = lively_policy("per-layer"), lively_policy("per-layer", layer_base=5.0)
    assert fingerprint(policy) != fingerprint(twin)


# ---------------------------------------------------------------------- the scheduler


def train(model, optimizer, scheduler, updates: range) -> list[list[float]]:
    watch = Watch(optimizer)
    for number in updates:
        x, y = batch(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    return watch.rates


def make(groups=parameter_groups, policy=None, **settings):
    torch.manual_seed(1)
    model = network()
    optimizer = torch.optim.AdamW(groups(model), lr=0.01)
    return model, optimizer, make_scheduler(optimizer, model, policy or lively_policy("per-layer"), **settings)


def test_the_scheduler_gives_each_layer_its_rate_and_goes_on_from_its_state():
    model, optimizer, scheduler = make()
    rates = np.array(train(model, optimizer, scheduler, range(23)))
    own = rates / np.exp(np.log(rates).mean(axis=1, keepdims=True))
    assert rates.shape == (23, 3) and np.abs(np.log(own)).max() > 0.02
    shared = scheduler.run_history().rate_path()[1]
    np.testing.assert_allclose(np.exp(np.log(rates).mean(axis=1)), shared, rtol=1e-9)
    assert all(isinstance(record.action, float) for record in scheduler.history)

    model, optimizer, scheduler = make()
    first = train(model, optimizer, scheduler, range(7))  # a decision is 2 updates old
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    model, optimizer, scheduler = make()
    for part, state in zip((model, optimizer, scheduler), states, strict=True):
        part.load_state_dict(state)
    assert first + train(model, optimizer, scheduler, range(7, 23)) == rates.tolist()


def test_one_group_is_as_good_as_mode_profile_and_says_so(caplog):
    policy = lively_policy("per-layer")
    plain = GNSPolicy(
        PolicyConfig(replace(policy.config.network, per_layer=False), replace(policy.config.decision, mode="profile"))
    )
    plain.load_state_dict({name: value for name, value in policy.state_dict().items() if "layer_actor" not in name})
    found = []
    for one in (policy, plain):
        model, optimizer, scheduler = make(lambda model: model.parameters(), one)
        found.append(train(model, optimizer, scheduler, range(23)))
    assert found[0] == found[1]
    assert next(r.getMessage() for r in caplog.records if "one parameter group" in r.getMessage()).endswith(
        "Make the optimizer on gns.parameter_groups(model)."
    )


def resumed(loop: Loop, initial_lrs: list[float]) -> DecisionCore:
    """A core that goes on after 4 updates, and knows only the rates by now."""
    core = DecisionCore(loop.model, loop.optimizer, loop.graph, T, loop.core.config, initial_lrs=initial_lrs)
    core.go_on_after(4, [group["lr"] for group in loop.optimizer.param_groups])
    return core


def test_a_run_resumed_without_a_state_stands_at_the_shared_rate():
    loop = Loop(profile="constant").run(ACTIONS, 4)
    shared = loop.core.learning_rate
    core = resumed(loop, [0.01] * 3)
    assert core.learning_rate == pytest.approx(shared) and core.multipliers == [1.0] * 3


def test_so_it_does_where_groups_hold_different_numbers_of_layers():
    def two_layers_and_one(model):
        return [{"params": [*model[0].parameters(), *model[2].parameters()]}, {"params": model[3].parameters()}]

    loop = Loop(profile="constant", groups=two_layers_and_one).run(ACTIONS, 4)
    shared = loop.core.learning_rate
    core = resumed(loop, [0.01] * 2)
    assert core.learning_rate == pytest.approx(shared)
