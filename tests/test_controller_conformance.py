"""What every controller must do, by kind and by config: a new one is tested by being there."""

import io
import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loop import same_state, small_task

from agents.controllers import Controller, controller_kinds, make_controller
from agents.controllers.hypergradient import HypergradientSession
from agents.controllers.peers import PeerController
from agents.runtime.command import plain
from agents.runtime.settings import CONFIG_FOLDER, store_task_defaults
from envs.learning_rate_env import Episode
from gns import DecisionConfig, GNSPolicy, NetworkConfig, PolicyConfig
from gns.errors import InvalidSettingError, OutOfOrderError, UnknownNameError

CONFIGS = sorted(path.stem for path in (CONFIG_FOLDER / "controller").glob("*.yaml"))
BUDGET = 40
LOSSES = st.lists(
    st.one_of(
        st.floats(allow_nan=True, allow_infinity=True),
        st.floats(0.01, 5.0),
        st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300]),
    ),
    min_size=1,
    max_size=60,
)
each_controller = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(scope="module", autouse=True)
def policy_folder(tmp_path_factory):
    """A fresh policy, and one of SRLS's features, where the configs look for theirs."""
    folder = tmp_path_factory.mktemp("policies")
    torch.manual_seed(0)
    policy = GNSPolicy()
    with torch.no_grad():
        policy.network.actor[2].weight.mul_(30.0)
    policy.save_pretrained(folder / "policy")
    GNSPolicy(
        PolicyConfig(NetworkConfig("srls", "none"), DecisionConfig("recursive", base=2.0, features="srls"))
    ).save_pretrained(folder / "srls")
    FOLDERS.update(policy=str(folder / "policy"), srls=str(folder / "srls"))
    return FOLDERS


FOLDERS: dict[str, str] = {}


@lru_cache
def settings_of(name: str) -> dict:
    from hydra import compose, initialize_config_dir

    overrides = [f"controller=[{name}]", f"policy={FOLDERS['policy']}"]
    overrides += [f"controller.srls.policy={FOLDERS['srls']}"] if name == "srls" else []
    store_task_defaults()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base=None):
        return plain(compose("evaluate", overrides=overrides))["controller"][name]


def controller(name: str, **changes) -> Controller:
    return make_controller(name, {**settings_of(name), **changes})


def two_groups(model):
    """Weights at the rate given, biases at a quarter of it."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": weights}, {"params": biases, "lr": 0.25 * 0.003}]


def episode(kind: str = "dropout", optimizer: str = "sgdm", seed: int = 3, **changes) -> Episode:
    return Episode(small_task(kind, batch_size=8, **changes), optimizer, BUDGET, 0.003, seed)


def advance(session, updates: int) -> None:
    for _ in range(updates):
        if session.finished:
            return
        session.update()


def saved(session) -> dict:
    """The state after a way through a file, as a resumed process reads it."""
    file = io.BytesIO()
    torch.save(session.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_each_kind_has_a_config_and_each_config_a_kind():
    assert {settings_of(name)["kind"] for name in CONFIGS} == set(controller_kinds())


@each_controller
@pytest.mark.parametrize("optimizer", ["sgd", "sgdm", "adam", "adamw", "nadamw"])
def test_a_run_spends_its_budget_and_says_what_it_cost(name, optimizer):
    if optimizer == "nadamw" and settings_of(name)["kind"] in ("hd", "marthe"):
        with pytest.raises(InvalidSettingError, match="no derivative of the update of nadamw"):
            controller(name).check(small_task("plain"), optimizer, BUDGET)
        return
    run = controller(name).train(episode(optimizer=optimizer))
    assert run.ledger.updates == BUDGET == len(run.rates)
    assert run.ledger.evaluations >= 1 and run.ledger.seconds > 0 and run.ledger.search_updates >= 0
    assert math.isfinite(run.reward_loss) and not any(p.isnan().any() for p in run.model.parameters())
    assert all(0.0 < rate < math.inf for rate in run.rates)


@each_controller
@settings(max_examples=15, deadline=None, derandomize=True)
@given(losses=LOSSES, optimizer=st.sampled_from(["sgdm", "adam"]))
def test_rates_are_positive_finite_and_within_bounds_for_any_losses(name, losses, optimizer):
    method = controller(name)
    session = method.start(episode("plain", optimizer))
    low, high = getattr(method, "min_lr", None) or 0.0, getattr(method, "max_lr", None) or math.inf
    if name.startswith("autolrs"):
        low, high = session.run.task.range_of(optimizer)
    if isinstance(method, PeerController):
        low, high = 0.0, 1.0  # the factor on its own estimate
    position = 0
    while not session.finished and position < 120:
        session.before_gradient()
        session.run.compute_gradient(keep_graph=session.keep_graph)
        session.before_update()
        if session.finished:
            break
        rate = float(session.run.optimizer.param_groups[0]["lr"])
        assert 0.0 < rate < math.inf and low * (1 - 1e-9) <= rate <= high * (1 + 1e-9)
        session.run.apply_update()
        session.after_update(torch.tensor(losses[position % len(losses)]))
        position += 1


@pytest.mark.parametrize("kind", ["hd", "marthe"])
@settings(max_examples=50, deadline=None, derandomize=True)
@given(values=LOSSES, beta_rate=st.sampled_from([0.0, 1e-3, 1e6]))
def test_any_hypergradient_leaves_the_rate_within_bounds(kind, values, beta_rate):
    session = make_controller(kind, {"kind": kind, "beta": 10.0, "beta_rate": beta_rate}).start(episode("plain"))
    assert isinstance(session, HypergradientSession)
    for value in values:
        session.descend([value])
        session.write_rates()
        assert 1e-8 <= session.rates[-1] <= 10.0


@each_controller
@pytest.mark.parametrize("kind", ["dropout", "batch_norm"])
@pytest.mark.parametrize("optimizer", ["sgdm", "adam"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(name, kind, optimizer):
    method = controller(name)
    rng = np.random.default_rng(sum(map(ord, name + kind + optimizer)))
    whole = method.start(episode(kind, optimizer))
    total = 0
    while not whole.finished:
        whole.update()
        total += 1
    for stop in rng.integers(0, total, 3):
        first = method.start(episode(kind, optimizer))
        advance(first, stop)
        state = saved(first)
        advance(first, 3)  # what was saved is no view of a run that goes on
        second = method.start(episode(kind, optimizer))
        advance(second, int(rng.integers(0, 3)))
        second.load_state_dict(state)
        advance(second, total)
        assert second.rates == whole.rates
        assert same_state(second.run.model, whole.run.model)
        assert replace(second.ledger, seconds=0) == replace(whole.ledger, seconds=0)
        assert second.finish().reward_loss == method.train(episode(kind, optimizer)).reward_loss


@each_controller
def test_the_same_seed_gives_the_same_run_and_another_seed_another(name):
    method = controller(name)
    first, again, other = (method.train(episode(seed=seed)) for seed in (3, 3, 4))
    assert first.rates == again.rates and same_state(first.model, again.model)
    assert not same_state(first.model, other.model)


@each_controller
@pytest.mark.parametrize("optimizer", ["sgdm", "adamw"])
def test_two_parameter_groups_keep_their_ratio(name, optimizer):
    method = controller(name)
    grouped = episode("batch_norm", optimizer, parameter_groups=two_groups)
    if isinstance(method, PeerController):  # one rate is all that its optimizer has
        with pytest.raises(InvalidSettingError, match="one rate for all parameter groups"):
            method.start(grouped)
        return
    session = method.start(grouped)
    while not session.finished:
        session.before_gradient()
        session.run.compute_gradient(keep_graph=session.keep_graph)
        session.before_update()
        weights, biases = (float(group["lr"]) for group in session.run.optimizer.param_groups)
        assert biases / weights == pytest.approx(0.25, rel=1e-12)
        session.run.apply_update()
        session.after_update(session.run.loss)


@each_controller
def test_an_unknown_option_is_a_clear_error(name):
    with pytest.raises(UnknownNameError, match=rf"controller\.{name}\.speed"):
        controller(name, speed=3)


@each_controller
def test_a_finished_run_takes_no_further_update(name):
    session = controller(name).start(episode("plain"))
    advance(session, 10**6)
    with pytest.raises(OutOfOrderError, match="over after 40 updates"):
        session.update()


@each_controller
def test_identity_tells_settings_apart_and_names_not(name):
    import json

    method = controller(name)
    assert json.loads(json.dumps(method.identity())) == method.identity()
    assert make_controller("other", settings_of(name)).identity() == method.identity()
    others = [controller(one).identity() for one in CONFIGS if one != name]
    assert method.identity() not in others


@each_controller
def test_the_global_random_numbers_stay(name):
    method = controller(name)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    method.train(episode())
    assert torch.equal(torch.get_rng_state(), before)
