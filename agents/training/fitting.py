"""Fits policies to cost curves: supervised, no run is trained on the way.

``python -m agents.training.fitting CURVES --out FOLDER`` fits a policy of action mode ``prior`` to records of
:mod:`agents.training.curves` and writes it to a folder; with ``--cv`` it first prints what policies fitted to some
tasks cost on others. The network predicts the costs of levels around the default rate
(:class:`gns.policy.network.CostActor`) and is taught those that were measured, as AggreVaTe (Ross and Bagnell, 2014)
teaches the costs of actions at states that the learner may reach. Where nothing is worth more than the default rate,
the costs are even and the action is 0.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.training.curve_records import TUNING, read_records
from agents.training.curves import BASE, DECISIONS
from agents.training.examples import PROFILE, REACH, Example, examples_of
from agents.training.tuning_curves import ratio_with_interval
from gns import DecisionConfig, GNSPolicy, NetworkConfig, PolicyConfig
from gns.errors import InvalidSettingError
from gns.features.statistics import OPTIMIZER_KINDS
from gns.graph.layer_graph import NODE_TYPES
from gns.policy.network import CostActor, GNSNetwork, GraphBatch, batch_observations
from gns.policy.trained_on import TrainedOn

LEVELS = 17  # that the network predicts the costs of, an eighth of a decade apart
_BLUR = np.array([0.25, 0.5, 0.25])  # over the measured costs, a quarter of a decade apart: one run's end is noise
_FEWEST = 10  # states of a task that together weigh as much as any other task's


@dataclass(frozen=True)
class FittingConfig:
    """How a network is fitted.

    :param steps: of AdamW, its rate rising and falling once (Smith and Topin, 2018)
    :param batch_size: states a step
    :param rate: largest rate
    :param weight_decay: of matrices
    :param noise: standard deviation of what is added to every feature
    :param forgotten: share of the global features that are set to 0
    :param dropout: on what the encoder gives; dropout between its convolutions costs more than it gains
    """

    steps: int = 400
    batch_size: int = 128
    rate: float = 4e-3
    weight_decay: float = 1e-2
    noise: float = 0.1
    forgotten: float = 0.05
    dropout: float = 0.1


def network_config(features: str, members: int = 3) -> NetworkConfig:
    """Return the network that is fitted."""
    return NetworkConfig(features=features, hidden=32, head=32, levels=LEVELS, members=members)


def fit(
    examples: Sequence[Example], network: NetworkConfig, seed: int = 0, config: FittingConfig | None = None
) -> GNSNetwork:
    """Return a network fitted to examples, in evaluation mode. The caller's random numbers stay as they are.

    :param network: its shape, ``levels`` among it; each member is fitted by itself
    :raises InvalidSettingError: if there are no examples, or the network does not tell costs
    """
    if not examples or not network.levels:
        problem = "levels is 0" if examples else "there are no examples"
        raise InvalidSettingError(f"{problem}; expected examples, and a network that tells the costs of levels.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = GNSNetwork(network)
        for number, member in enumerate(whole.members or [whole]):
            assert isinstance(member, GNSNetwork)
            _fit_member(member, examples, config or FittingConfig(), np.random.default_rng([seed, number]))
    return whole.eval()


def _fit_member(
    member: GNSNetwork, examples: Sequence[Example], config: FittingConfig, draws: np.random.Generator
) -> None:
    """Fit one network to the costs that are known, by squared error."""
    costs, known = _targets(examples, member.config)
    matrices = [p for p in member.parameters() if p.dim() > 1]
    others = [p for p in member.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, config.rate)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.rate, total_steps=config.steps, pct_start=0.15)
    member.train()
    order = np.zeros(0, dtype=np.int64)
    for _ in range(config.steps):
        while len(order) < config.batch_size:
            order = np.concatenate([order, draws.permutation(len(examples))])
        chosen, order = order[: config.batch_size], order[config.batch_size :]
        batch = _disturbed(batch_observations([examples[i].observation for i in chosen]), config)
        assert isinstance(member.actor, CostActor)
        embedding = torch.dropout(member.encoder(batch), config.dropout, train=True)
        errors = (member.actor.costs(embedding) - costs[chosen]) ** 2
        optimizer.zero_grad()
        (errors * known[chosen]).sum().div(config.batch_size).backward()
        optimizer.step()
        rates.step()
    member.eval()


def _targets(examples: Sequence[Example], network: NetworkConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return costs at the levels that a network tells of, and the weight of each in the loss: both (N, levels).

    What lies beyond a curve's ends weighs nothing. All tasks weigh alike but those of few states.
    """
    levels = np.linspace(-1.0, 1.0, network.levels) * network.action_scale * np.log10(BASE)
    blurred = [replace(one, costs=np.convolve(np.pad(one.costs, 1, mode="edge"), _BLUR, "valid")) for one in examples]
    costs = np.array([one.costs_at(levels) for one in blurred])
    within = [abs(levels - one.level) <= REACH[-1] + 1e-6 for one in examples]
    counts = _counts(examples)
    shares = np.array([1.0 / max(counts[one.task], _FEWEST) for one in examples])[:, None]
    known = np.array(within) / np.maximum(np.sum(within, axis=1, keepdims=True), 1) * shares / shares.mean()
    return torch.tensor(costs, dtype=torch.float32), torch.tensor(known, dtype=torch.float32)


def _counts(examples: Sequence[Example]) -> dict[str, int]:
    names, counts = np.unique([one.task for one in examples], return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _disturbed(batch: GraphBatch, config: FittingConfig) -> GraphBatch:
    """Return a batch with noise on its features, and some of the global ones forgotten."""
    nodes = batch.nodes + config.noise * torch.randn_like(batch.nodes)
    globals_ = batch.globals + config.noise * torch.randn_like(batch.globals)
    return batch._replace(nodes=nodes, globals=globals_ * (torch.rand_like(globals_) >= config.forgotten))


# ---------------------------------------------------------------------- what it costs on other tasks


@torch.no_grad()
def actions_of(network: GNSNetwork, examples: Sequence[Example]) -> np.ndarray:
    """Return the network's action at each of N examples, (N,)."""
    return network(batch_observations([one.observation for one in examples]))[0].squeeze(1).double().numpy()


def cross_validated(
    examples: Sequence[Example],
    fitted: Callable[[Sequence[Example], int], GNSNetwork],
    folds: int = 8,
    seed: int = 1,
) -> np.ndarray:
    """Return the action at each of N examples by a network that was fitted to other tasks, (N,).

    :param fitted: returns a network, from examples and the number of the fold
    :param folds: that the tasks are dealt to
    :param seed: of the deal
    """
    names = sorted(_counts(examples))
    order = np.random.default_rng(seed).permutation(names).tolist()
    dealt = dict(zip(order, np.arange(len(names)) % folds, strict=True))
    fold, found = np.array([dealt[one.task] for one in examples]), np.zeros(len(examples))
    for number in np.unique(fold):
        rest = [one for one, where in zip(examples, fold, strict=True) if where != number]
        held = [one for one, where in zip(examples, fold, strict=True) if where == number]
        found[fold == number] = actions_of(fitted(rest, int(number)), held)
    return found


def regrets(examples: Sequence[Example], actions: np.ndarray) -> np.ndarray:
    """Return the mean cost of each task's actions, in log loss over the best, (tasks,), tasks in order of name."""
    at = np.array([one.costs_at(np.array(a * np.log10(BASE))) for one, a in zip(examples, actions, strict=True)])
    tasks = np.array([one.task for one in examples])
    return np.array([at[tasks == name].mean() for name in np.unique(tasks)])


def report(examples: Sequence[Example], actions: np.ndarray) -> list[str]:
    """Return lines of text: what actions cost on tasks that they know nothing of, and what others do."""
    lines = []
    for name, states in (("later", lambda one: one.decision > 0), ("start", lambda one: one.decision == 0)):
        some = np.array([states(one) for one in examples])
        if not some.any():
            continue
        seen, chosen = [one for one in examples if states(one)], actions[some]
        prior = regrets(seen, np.zeros(len(seen)))
        best = np.array([(one.level + REACH[np.argmin(one.costs)]) / np.log10(BASE) for one in seen])
        ways = {"best of nine": best, "present level": np.array([one.level for one in seen]) / np.log10(BASE)}
        ways |= {"the prior": np.zeros(len(seen)), "half of the action": chosen / 2, "action": chosen}
        for way, its in ways.items():
            cost = regrets(seen, its)
            numbers = [*ratio_with_interval(cost), *ratio_with_interval(cost - prior)]
            text = "loss over the best {:.3f} [{:.3f}, {:.3f}], over the prior's {:.3f} [{:.3f}, {:.3f}]".format(
                *numbers
            )
            lines.append(f"{name}, {len(seen)} states of {len(cost)} tasks, {way}: {text}")
    return lines


# ---------------------------------------------------------------------- the command


def policy_of(network: GNSNetwork, records: Sequence[dict[str, Any]], training: dict[str, Any]) -> GNSPolicy:
    """Return a fitted network as a policy that continues the prior.

    :param records: that it was fitted to
    :param training: what else the model card is to say
    """
    features = network.config.features
    decision = DecisionConfig(mode="prior", profile=PROFILE, base=BASE, num_decisions=DECISIONS, features=features)
    facts = [record["facts"] for record in records if record["kind"] == TUNING]
    budgets, losses = [one["budget"] for one in facts], [one["start_loss"] for one in facts]
    trained_on = TrainedOn(
        layer_types=tuple(kind for kind in NODE_TYPES if any(one["kinds"].get(kind, 0) for one in facts)),
        optimizers=tuple(kind for kind in OPTIMIZER_KINDS if any(_kind(one) == kind for one in facts)),
        budgets=(float(min(budgets)), float(max(budgets))),
        losses=(float(min(losses)), float(max(losses))),
        fine_tuning=any(one["fine_tuning"] for one in facts),
    )
    policy = GNSPolicy(PolicyConfig(network.config, decision, training=training, trained_on=trained_on))
    policy.network.load_state_dict(network.state_dict())
    return policy.eval()


def _kind(facts: dict[str, Any]) -> str:
    return "sgd" if facts["optimizer"].startswith("sgd") else facts["optimizer"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m agents.training.fitting", description=__doc__.split("\n")[0])
    parser.add_argument("curves", type=Path, help="file of records, see agents.training.curves")
    parser.add_argument("--out", type=Path, required=True, help="folder of the policy")
    parser.add_argument("--features", default="gns-2", help="schema of what it sees")
    parser.add_argument("--members", type=int, default=3, help="networks whose actions are averaged")
    parser.add_argument("--seed", type=int, default=0, help="of the networks")
    parser.add_argument("--cv", action="store_true", help="print first what it costs on tasks it was not fitted to")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    shape = network_config(given.features, given.members)
    records = list(read_records(given.curves))
    cache = given.curves.with_name(f"{given.curves.name.split('.')[0]}.{given.features}.pt")
    examples = examples_of(records, given.features, cache)
    training: dict[str, Any] = {"fitted to": f"{len(examples)} states of {len(_counts(examples))} drawn tasks"}
    training |= {**asdict(FittingConfig()), "seed": given.seed, "members": given.members}
    if given.cv:
        actions = cross_validated(examples, lambda rest, fold: fit(rest, shape, given.seed + fold))
        print("\n".join(report(examples, actions)), flush=True)
    policy_of(fit(examples, shape, given.seed), records, training).save_pretrained(given.out)
    print(f"{training['fitted to']}: {given.out}")


if __name__ == "__main__":
    main()
