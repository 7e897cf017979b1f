"""One seed gives the same rates to the last bit: driven through the environment, and through the decision core alone.

What a policy meets in use is what it met in training.
"""

import numpy as np
import pytest
import torch
from plain_loop import batches, make_optimizer, same_state, small_task

from envs import EnvConfig, LearningRateEnv, get_task
from gns import (
    DecisionConfig,
    DecisionCore,
    GNSPolicy,
    GuardConfig,
    NetworkConfig,
    Observation,
    PolicyConfig,
    layer_graph,
    parameter_groups,
)
from gns.deciding.decision import ACTION_MODES
from gns.features.schemas import get_schema

RATES = {"sgdm": 0.01, "adam": 1e-3}
BUDGET, SEED = 23, 9


def random_policy(decision: DecisionConfig) -> GNSPolicy:
    """An untrained policy that does not keep still."""
    outside = torch.get_rng_state()
    torch.manual_seed(21)
    policy = GNSPolicy(PolicyConfig(network=NetworkConfig(features=decision.features), decision=decision))
    with torch.no_grad():
        policy.network.actor[2].weight.mul_(300.0)
        if decision.per_layer:
            policy.network.layer_actor.head[2].weight.mul_(300.0)
    torch.set_rng_state(outside)
    return policy.eval()


def from_instance(instance, features: str) -> Observation:
    """What a policy sees, from the environment's observation."""
    width = 2 + len(get_schema(features).node)
    return Observation(
        nodes=instance.nodes[:, 2:width],
        node_types=instance.nodes[:, 0].astype(np.int64),
        blocks=instance.nodes[:, 1].astype(np.int64),
        edges=instance.edge_links.T,
        globals=instance.nodes[0, width:],
    )


def through_the_environment(task, optimizer: str, decision: DecisionConfig, seen) -> tuple[list, list, LearningRateEnv]:
    """Rates of all updates and actions; ``seen(env, instance)`` is the observation the policy is given."""
    config = EnvConfig(budgets=(BUDGET, BUDGET), decision=decision, guard=GuardConfig())
    env, policy = LearningRateEnv([task], config), random_policy(decision)
    instance, _ = env.reset(seed=0, options={"seed": SEED, "optimizer": optimizer, "learning_rate": RATES[optimizer]})
    rates, actions, terminated = [], [], False
    env.run.optimizer.register_step_pre_hook(lambda stepped, *_: rates.append([g["lr"] for g in stepped.param_groups]))
    while not terminated:
        actions.append(policy.act(seen(env, instance)))
        instance, _, terminated, _, _ = env.step(np.array([actions[-1]], dtype=np.float32))
    assert env.rollbacks == 0
    return rates, actions, env


def through_the_core(task, optimizer: str, decision: DecisionConfig) -> tuple[list, list, torch.nn.Module]:
    """Rates of all updates and actions of a training loop as a user writes it."""
    policy, outside = random_policy(decision), torch.get_rng_state()
    torch.manual_seed(SEED)
    model = task.build_model(**task.model)
    groups = parameter_groups(model) if decision.per_layer else model.parameters()
    trained_by = make_optimizer(optimizer, groups, RATES[optimizer])
    stream, core, rates, actions = batches(task, SEED), None, [], []
    for _ in range(BUDGET):
        inputs, targets = next(stream)
        trained_by.zero_grad()
        loss = task.loss(model(inputs), targets)
        loss.backward()
        if core is None:
            core = DecisionCore(model, trained_by, layer_graph(model, loss), BUDGET, decision)
        if core.decision_due:
            actions.append(policy.act(core.observe()))
            core.decide(actions[-1])
        core.set_rates()
        rates.append([group["lr"] for group in trained_by.param_groups])
        trained_by.step()
        core.note_update(loss)
    torch.set_rng_state(outside)
    return rates, actions, model


@pytest.mark.parametrize("optimizer", sorted(RATES))
@pytest.mark.parametrize(
    ("mode", "features"), [*((mode, "gns-1") for mode in ACTION_MODES), ("gns-paper", "gns-paper")]
)
@pytest.mark.parametrize("kind", ["digits_mlp", "digits_cnn", "dropout"])
def test_environment_and_decision_core_give_the_same_rates(kind, mode, features, optimizer):
    task = small_task(kind) if kind == "dropout" else get_task(kind)
    decision = DecisionConfig(mode=mode, features=features, num_decisions=5)
    rates, actions, model = through_the_core(task, optimizer, decision)
    from_env = through_the_environment(task, optimizer, decision, lambda env, _: env.core.observe())
    from_graph = through_the_environment(
        task, optimizer, decision, lambda _, instance: from_instance(instance, features)
    )
    assert len(rates) == BUDGET and len(actions) == 5
    assert np.abs(actions).max() > 0.05  # the policy does act
    assert (len(set(rates[-1])) > 1) == decision.per_layer
    for other_rates, other_actions, env in (from_env, from_graph):
        assert np.array_equal(other_actions, actions)
        assert other_rates == rates
        assert same_state(env.run.model, model)


@pytest.mark.parametrize("features", ["gns-1", "gns-paper"])
def test_the_graph_observation_is_the_cores_observation(features):
    decision = DecisionConfig(num_decisions=5, features=features)
    env = LearningRateEnv(["digits_cnn"], EnvConfig(budgets=(BUDGET, BUDGET), decision=decision))
    instance, _ = env.reset(seed=1)
    for _ in range(5):
        ours, cores = from_instance(instance, features), env.core.observe()
        for field in ("nodes", "node_types", "blocks", "edges", "globals"):
            assert np.array_equal(getattr(ours, field), getattr(cores, field))
            assert getattr(ours, field).dtype == getattr(cores, field).dtype
        instance, *_ = env.step(np.array([0.3], dtype=np.float32))


def test_observing_changes_nothing():
    decision = DecisionConfig(num_decisions=5)
    rates = []
    for times in (1, 3):

        def look(env, _, times=times):
            return [env.core.observe() for _ in range(times)][-1]

        rates.append(through_the_environment(small_task(), "adam", decision, look)[0])
    assert rates[0] == rates[1]
