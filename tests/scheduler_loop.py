"""Policies and training loops for the scheduler's tests, driven by the scheduler or by the decision core by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gns import DecisionConfig, DecisionCore, GNSPolicy, GNSScheduler, NetworkConfig, PolicyConfig, layer_graph

T = 23


def lively_policy(mode: str = "profile", features: str = "gns-1", **settings) -> GNSPolicy:
    """An untrained policy that does not keep still."""
    decision = DecisionConfig(**{"mode": mode, "features": features, "num_decisions": 5, "base": 2.0, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(21)
        network = NetworkConfig(features=features, **({"convolution": "none"} if features == "srls" else {}))
        policy = GNSPolicy(PolicyConfig(network=network, decision=decision))
    with torch.no_grad():
        policy.network.actor[2].weight.mul_(300.0)
        if decision.per_layer:
            policy.network.layer_actor.head[2].weight.mul_(300.0)
    return policy.eval()


def still_policy() -> GNSPolicy:
    """A policy that never changes the rate."""
    policy = lively_policy(mode="recursive")
    with torch.no_grad():
        policy.network.actor[2].weight.zero_()
        policy.network.actor[2].bias.zero_()
    return policy


class ByHand:
    """What the scheduler must equal: the decision core, called where its docstring says."""

    def __init__(self, optimizer, model, policy: GNSPolicy, budget: int = T) -> None:
        self.optimizer, self.model, self.policy, self.budget = optimizer, model, policy, budget
        self.core: DecisionCore | None = None

    def before(self, loss: Tensor) -> None:
        if self.core is None:
            graph = layer_graph(self.model, loss)
            self.core = DecisionCore(self.model, self.optimizer, graph, self.budget, self.policy.config.decision)
        if self.core.decision_due:
            self.core.decide(self.policy.act(self.core.observe()))
        self.core.set_rates()

    def after(self, loss: Tensor) -> None:
        self.core.note_update(loss)


def network(dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
    )


def batch(number: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Batch of a stream that is a function of its number."""
    generator = torch.Generator().manual_seed(1000 + number)
    inputs = torch.randn(size, 6, generator=generator)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 1).long()


def two_groups(model: nn.Module, kind=torch.optim.AdamW, rate: float = 0.01, **settings) -> torch.optim.Optimizer:
    """The last layer learns three times as fast."""
    parameters = list(model.parameters())
    groups = [{"params": parameters[:-2]}, {"params": parameters[-2:], "lr": _times(rate, 3.0)}]
    return kind(groups, lr=rate, **settings)


def _times(rate, factor):
    return rate * factor if not isinstance(rate, Tensor) else (rate * factor).clone()


class Watch:
    """Rates of all updates that were made."""

    def __init__(self, optimizer) -> None:
        self.rates: list[list[float]] = []
        self._handle = optimizer.register_step_post_hook(
            lambda stepped, *_: self.rates.append([float(group["lr"]) for group in stepped.param_groups])
        )


def make_scheduler(optimizer, model, policy=None, budget: int = T, **settings) -> GNSScheduler:
    """A scheduler of an untrained policy, with no guard unless one is given."""
    settings = {"guard": None, **settings}
    return GNSScheduler(optimizer, model, total_steps=budget, policy=policy or lively_policy(), **settings)
