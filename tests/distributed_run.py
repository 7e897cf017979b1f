"""Training runs for the tests of several processes: the same run whole, in DDP and sharded; and what may go wrong.

As a script it is one rank: ``distributed_run.py FOLDER SCENARIO`` writes what it saw to ``FOLDER/SCENARIO-RANK.pt``.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import sys
import time
from collections import OrderedDict
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from scheduler_loop import ByHand, lively_policy, two_groups
from torch import Tensor, nn
from torch.nn import functional as F

from gns import GNSScheduler, GuardConfig, layer_graph, parameter_groups
from gns.errors import GNSError
from gns.graph.layer_graph import trainable_parameters
from gns.parallel.distributed import gathered, group_of_run, local, share
from gns.scheduler.state import graph_of_first_rank, plain_graph

UPDATES, ROWS = 12, 16
TIMEOUT = 6.0  # seconds that the process group waits, where a rank is killed


class Block(nn.Module):
    """Has two inputs with gradients, of which each goes through one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 9), nn.Linear(16, 9)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.tanh(self.left(left)) + self.right(right)


class Net(nn.Module):
    """Of three rows, of one number, frozen: what two ranks cannot share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(6, 16)
        self.block = Block()
        self.frozen = nn.Linear(9, 9).requires_grad_(False)
        self.gain = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(9, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.block(torch.tanh(self.first(inputs)), torch.tanh(self.second(inputs)))
        return self.head(torch.tanh(self.frozen(hidden)) * self.gain)


OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
    "momentum": lambda model: torch.optim.SGD(
        model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-3
    ),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "adamw": lambda model: two_groups(model, weight_decay=0.1),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-3),
    "layers": lambda model: torch.optim.AdamW(parameter_groups(model), lr=0.01),
    "layers rmsprop": lambda model: torch.optim.RMSprop(parameter_groups(model), lr=1e-3),
}
#: wrapper, optimizer, whether the scheduler is given the wrapped model, micro-batches of an update
CASES: dict[str, tuple[str, str, bool, int]] = {
    "ddp momentum": ("ddp", "momentum", True, 1),
    "ddp adam": ("ddp", "adam", False, 1),
    "ddp adamw, two groups, two micro-batches": ("ddp", "adamw", True, 2),
    "ddp unknown optimizer": ("ddp", "rmsprop", False, 1),
    "fsdp momentum": ("fsdp", "momentum", True, 1),
    "fsdp adam": ("fsdp", "adam", True, 1),
    "fsdp adamw, two groups, two micro-batches": ("fsdp", "adamw", True, 2),
    "fsdp unknown optimizer": ("fsdp", "rmsprop", True, 1),
    "fsdp with a parameter of its own": ("fsdp ignored", "adamw", True, 1),
    "ddp rates of layers": ("ddp", "layers", True, 1),
    "fsdp rates of layers, unknown optimizer": ("fsdp", "layers rmsprop", True, 1),
}


class Run:
    """One training run, on this rank's share of every batch.

    :param case: one of :data:`CASES`
    :param alone: whether one process has the whole batch instead
    """

    def __init__(self, case: str, alone: bool = False, policy: Any = None, **settings: Any) -> None:
        wrapper, optimizer, wrapped, self.parts = CASES[case]
        self.rank, self.world = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
        self.kind = "" if alone else wrapper
        torch.manual_seed(3)
        self.inner = Net()
        self.model = wrap(self.inner, self.kind, settings.pop("mesh", None))
        self.optimizer = OPTIMIZERS[optimizer](self.inner)
        given = self.model if wrapped else self.inner
        policy = policy or lively_policy("per-layer" if optimizer.startswith("layers") else "profile")
        if alone:
            settings["process_group"] = False
        self.scheduler = GNSScheduler(
            self.optimizer, given, total_steps=UPDATES, policy=policy, **{"guard": None} | settings
        )
        self.number, self.seen, self.rates = 0, [], []
        act = self.scheduler.policy.act
        self.scheduler.policy.act = lambda observation: self.seen.append(observation) or act(observation)

    def update(self, spoil: Any = None) -> None:
        """Make an update; ``spoil`` acts once the gradient is pending, and may return another loss."""
        generator = torch.Generator().manual_seed(100 + self.number)
        inputs = torch.randn(ROWS, 6, generator=generator)
        targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 1).long()
        self.optimizer.zero_grad()
        total = torch.zeros(())
        parts = zip(inputs.chunk(self.parts), targets.chunk(self.parts), strict=True)
        for part, (x, y) in enumerate(parts):
            own = slice(self.rank * len(x) // self.world, (self.rank + 1) * len(x) // self.world)
            with self.no_sync(part):
                loss = F.cross_entropy(self.model(x[own]), y[own]) / self.parts
                loss.backward()
            total += loss.detach()
        if self.kind == "fsdp ignored":  # such parameters are the user's to bring in line
            torch.distributed.distributed_c10d.all_reduce(self.inner.head.bias.grad)
            self.inner.head.bias.grad /= self.world
        total = (spoil(self) if spoil is not None else None) or total
        self.optimizer.step()
        self.scheduler.step(total)
        self.rates.append(self.scheduler.get_last_lr())
        self.number += 1

    def no_sync(self, part: int) -> Any:
        last = part == self.parts - 1
        if self.kind.startswith("fsdp"):
            self.model.set_requires_gradient_sync(last)
        return self.model.no_sync() if self.kind == "ddp" and not last else contextlib.nullcontext()

    def updates(self, count: int = UPDATES) -> Run:
        for _ in range(count):
            self.update()
        return self

    def weights(self) -> dict[str, Tensor]:
        """What this rank holds."""
        return {name: held(p.detach()).clone() for name, p in self.inner.named_parameters()}

    def report(self) -> dict[str, Any]:
        return {
            "nodes": [torch.from_numpy(observation.nodes) for observation in self.seen],
            "globals": [torch.from_numpy(observation.globals) for observation in self.seen],
            "rates": self.rates,
            "graph": plain_graph(self.scheduler.graph),
            "multipliers": [record.multiplier for record in self.scheduler.history],
            "rollbacks": [record.update for record in self.scheduler.history if record.rollback],
            "weights": self.weights(),
        }

    def state(self) -> Any:
        """All that a checkpoint of this rank holds."""
        return copy.deepcopy((self.weights(), self.optimizer.state_dict(), self.scheduler.state_dict(), self.number))

    def load(self, state: Any, scheduler_state: Any = None) -> Run:
        weights, optimizer, scheduler, self.number = copy.deepcopy(state)
        with torch.no_grad():
            for name, parameter in self.inner.named_parameters():
                held(parameter).copy_(weights[name])
        self.optimizer.load_state_dict(optimizer)
        self.scheduler.load_state_dict(scheduler_state or scheduler)
        return self


def held(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def wrap(model: Net, kind: str, mesh: Any = None) -> nn.Module:
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if kind.startswith("fsdp"):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model.block, mesh=mesh)
        fully_shard(model, mesh=mesh, ignored_params={model.head.bias} if kind == "fsdp ignored" else None)
    return model


class Collectives:
    """Counts the calls of ``torch.distributed``'s functions; what DDP and FSDP2 do does not go through them."""

    def __enter__(self) -> Collectives:
        self.calls: list[str] = []
        self._real = {name: getattr(dist, name) for name in ("all_reduce", "broadcast", "all_gather", "barrier")}
        self._real["broadcast_object_list"] = dist.broadcast_object_list
        for name, real in self._real.items():
            setattr(dist, name, self._counted(name, real))
        return self

    def _counted(self, name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return real(*args, **kwargs)

        return call

    def __exit__(self, *_: Any) -> None:
        for name, real in self._real.items():
            setattr(dist, name, real)


def caught(act: Any) -> str:
    """Name and text of the error that a call ends with; nothing where it does not."""
    try:
        act()
    except GNSError as error:
        return f"{type(error).__name__}: {error}"
    return ""


# ---------------------------------------------------------------------- scenarios, each run by every rank


def cases() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for case in CASES:
        with Collectives() as collectives:
            run = Run(case).updates()
        found[case] = {**run.report(), "collectives": collectives.calls}
    return found


def troubles() -> dict[str, Any]:
    """What may go wrong on one rank of two."""
    rank, found = dist.get_rank(), {}

    def drift(run: Run) -> None:
        run.scheduler._run.core._memory.scale *= 1.01

    run = Run("ddp adam")
    for number in range(UPDATES):
        run.update(drift if rank == 1 and number == 4 else None)
    found["drift"] = run.report()

    def ahead(run: Run) -> None:
        run.scheduler._run.core._memory.update += 3

    run = Run("ddp adam").updates(3)
    found["another update"] = caught(lambda: run.update(ahead if rank == 1 else None))

    with Collectives() as collectives:
        run = Run("ddp adam", process_group=False)
        for _ in range(UPDATES):
            run.update(lambda run: torch.tensor(1.0 + 100.0 * rank))
    found["alone"] = run.rates, collectives.calls

    found["state"] = Run("ddp adam").updates(4).scheduler.state_dict()

    group = dist.new_group([0, 1])
    run = Run("ddp adam", process_group=group).updates()
    found["group"] = run.rates
    run = copy.deepcopy(Run("ddp adam", process_group=group, policy=lively_policy()).scheduler.__getstate__())["_run"]
    found["copied group"] = caught(lambda: group_of_run(run.process_group))
    own = [dist.new_group([r]) for r in range(2)]
    found["others' group"] = caught(lambda: group_of_run(own[1 - rank]))
    found["sharded, alone"] = caught(Run("fsdp adam", process_group=False).update)

    net = Net()
    graph = layer_graph(net, net(torch.randn(4, 6)).sum() if rank == 0 else net.head(torch.randn(4, 9)).sum())
    world = dist.group.WORLD
    found["adopted graph"] = plain_graph(graph_of_first_rank(graph, net, {"total_steps": 5}, world))
    found["graph of a rank without"] = plain_graph(graph_of_first_rank(None if rank else graph, net, {}, world))
    found["other arguments"] = caught(lambda: graph_of_first_rank(graph, net, {"total_steps": 5 + rank}, world))
    return found


def tensors() -> dict[str, Any]:
    """What is read of tensors spread over two ranks, and of models that cannot be read."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    rank, found = dist.get_rank(), {}
    mesh = init_device_mesh("cpu", (2,))
    weight = DTensor.from_local(torch.zeros(2 - rank, 1), mesh, [Shard(0)], shape=torch.Size([3, 1]), stride=(1, 1))
    pending = DTensor.from_local(torch.arange(3.0)[:, None] * (1 + rank), mesh, [Partial()])
    found["pending gradient"] = local(pending, weight)
    found["loss"] = gathered(DTensor.from_local(torch.tensor(1.0 + rank), mesh, [Partial()]))
    found["plain loss"] = gathered(DTensor.from_local(torch.tensor(5.0), mesh, [Replicate()]))

    flat = FullyShardedDataParallel(Net(), device_id=torch.device("cpu"), use_orig_params=True)
    optimizer = torch.optim.SGD(flat.parameters(), lr=0.1)
    found["flat"] = caught(lambda: GNSScheduler(optimizer, flat, total_steps=UPDATES, policy=lively_policy()))

    whole_net = Net()
    graph = layer_graph(whole_net, whole_net(torch.randn(4, 6)).sum())
    run = Run("fsdp adam")
    with torch.no_grad():
        run.model(torch.randn(4, 6))  # leaves the outermost module unsharded
    found["unsharded"] = [type(p).__name__ for p in trainable_parameters(run.model).values()]
    run.scheduler.remove()
    run.scheduler = GNSScheduler(run.optimizer, run.model, total_steps=UPDATES, policy=lively_policy())
    found["late"] = run.updates().rates

    with mock.patch.object(sys.modules["gns.graph.layer_graph"], "sharded_of_unsharded", lambda model: None):
        found["unreadable"] = caught(Run("fsdp adam").update)
        found["unreadable, graph given"] = Run("fsdp adam", graph=graph).updates().rates

    with Collectives() as collectives:
        run = Run("ddp adam")
        run.scheduler.remove()
        by_hand = ByHand(run.optimizer, run.inner, lively_policy(), UPDATES)
        for number in range(UPDATES):
            loss = (run.model(torch.randn(4, 6)) ** 2).mean()
            run.optimizer.zero_grad()
            loss.backward()
            by_hand.before(loss)
            run.optimizer.step()
            by_hand.after(loss * (1 + rank * number))
    found["core alone"] = collectives.calls
    return found


def guards() -> dict[str, Any]:
    """One rank's losses are not finite, up to the end of an interval; they are told at the decision after update 6."""
    rank, found = dist.get_rank(), {}

    def spoilt(run: Run) -> Tensor:
        return torch.tensor(float("nan"))

    for case in ("ddp adam", "fsdp adam", "fsdp with a parameter of its own"):
        run = Run(case, guard=GuardConfig()).updates(3)
        good = run.weights()
        for number in range(3, 7):
            run.update(spoilt if rank == 1 and number in (4, 5) else None)
        found[case] = {"good": good, "put back": run.weights(), **run.updates(UPDATES - 7).report()}
    return found


def resumes() -> dict[str, Any]:
    """Goes on from the middle of an interval, and from its end."""
    found: dict[str, Any] = {}
    for case in (
        "ddp adamw, two groups, two micro-batches",
        "ddp unknown optimizer",
        "fsdp adam",
        "fsdp unknown optimizer",
    ):
        for before in (4, 6):
            run = Run(case).updates(before)
            state = run.state()
            box = [state[2]]
            dist.broadcast_object_list(box, src=0)
            run.updates(UPDATES - before)
            again = Run(case).load(state).updates(UPDATES - before)
            first = Run(case).load(state, box[0]).updates(UPDATES - before)
            found[f"{case}, {before}"] = {
                "rates": run.rates[before:],
                "again": again.rates,
                "weights": run.weights(),
                "weights again": again.weights(),
                "rank 0's": first.rates,
            }
    return found


def copies() -> dict[str, Any]:
    """Four ranks: sharded over two, and that twice."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts"))
    found: dict[str, Any] = {
        case: Run(case, mesh=mesh).updates().report() for case in ("fsdp adam", "fsdp unknown optimizer")
    }
    spread = {
        "copies of parts": (mesh, [Replicate(), Shard(0)]),
        "parts of parts": (mesh, [Shard(0), Shard(1)]),
        "copies": (mesh, [Replicate(), Replicate()]),
        "parts on one of two meshes": (mesh["parts"], [Shard(0)]),
    }
    ranks = list(range(4))
    found["shares"] = {
        name: share(DTensor.from_local(torch.ones(4, 4), on, how), ranks) for name, (on, how) in spread.items()
    }
    found["shares"]["plain"] = share(torch.ones(3), ranks)
    return found


def parallel() -> dict[str, Any]:
    """Four ranks share the numbers of two layers; or two do, and all layers are sharded over two such pairs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def run(kind: str) -> dict[str, Any]:
        torch.manual_seed(0)
        layers = {"up": nn.Linear(6, 16), "middle": nn.Tanh(), "down": nn.Linear(16, 8), "norm": nn.LayerNorm(8)}
        model = nn.Sequential(OrderedDict(**layers, head=nn.Linear(8, 3)))
        plan, data, place = {"up": ColwiseParallel(), "down": RowwiseParallel()}, 1, 0
        if kind == "tensors":
            parallelize_module(model, init_device_mesh("cpu", (4,)), plan)
        elif kind == "tensors and shards":
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensors"))
            parallelize_module(model, mesh["tensors"], plan)
            fully_shard(model, mesh=mesh["data"])
            data, place = 2, mesh["data"].get_local_rank()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)
        group = None if kind else False
        scheduler = GNSScheduler(
            optimizer, model, total_steps=UPDATES, policy=lively_policy(), process_group=group, guard=GuardConfig()
        )
        generator = torch.Generator().manual_seed(4)
        for _ in range(UPDATES):
            inputs = torch.randn(8, 6, generator=generator)
            own = inputs.chunk(data)[place]
            loss = F.cross_entropy(model(own), (own[:, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
        records = scheduler.history
        return {
            "graph": plain_graph(scheduler.graph),
            "rates": [record.learning_rate for record in records],
            "features": [list(record.features.values()) for record in records],
            "rollbacks": scheduler.rollbacks,
        }

    return {kind: run(kind) for kind in ("", "tensors", "tensors and shards")}


def killed() -> dict[str, Any]:
    """Rank 1 is killed between the backward pass and its decision; the other writes when it was left alone."""
    run = Run("ddp adam").updates(3)

    def die(run: Run) -> None:
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    began = time.monotonic()
    try:
        run.update(die)
    except Exception as error:
        named = isinstance(error, GNSError)
        return {"error": str(error), "named": named, "seconds": time.monotonic() - began}
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, scenarios = Path(sys.argv[1]), sys.argv[2:]
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT if scenarios == ["killed"] else 60.0))
    for scenario in scenarios:
        torch.save(globals()[scenario](), folder / f"{scenario}-{dist.get_rank()}.pt")
    if scenarios != ["killed"]:
        dist.destroy_process_group()
    else:
        os._exit(0)  # nothing of a group without its other rank is put away
