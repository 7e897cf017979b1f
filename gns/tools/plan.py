"""What would be scheduled: the layers of a model, its parameter groups, and when rates would be decided."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from gns.deciding.decision import DecisionConfig, DecisionCore
from gns.errors import InvalidSettingError, UnknownNameError, needing, require_positive
from gns.features.moments import group_of_each, optimizer_kind
from gns.graph.layer_graph import LayerGraph
from gns.policy.artefact import GNSPolicy
from gns.policy.finding import PRIOR
from gns.tools.console import print_line, print_table
from gns.tools.drawing import dpi_within_budget
from gns.tools.inspect_policy import decision_rule

_SGDM_MOMENTUM = 0.9
_SHOWN_SETTINGS = ("momentum", "nesterov", "betas", "eps", "weight_decay")


def describe_layers(model: nn.Module, graph: LayerGraph) -> dict[str, Any]:
    """Describe which parameters a schedule sees, as plain JSON values.

    :param graph: layer graph of the model
    :return: ``layers`` and ``blocks``, each with the numbers of those that follow it; ``frozen`` and ``outside`` (they
        train, but the outputs do not depend on them): parameters by the layer that owns them; ``tied``: lists of names
        of one tensor; ``totals``
    """
    inside = {name for names in graph.parameters for name in names}
    named = dict(model.named_parameters())
    frozen = {name: p.numel() for name, p in named.items() if not p.requires_grad}
    outside = {name: p.numel() for name, p in named.items() if p.requires_grad and name not in inside}
    return {
        "layers": _layers(graph),
        "blocks": _blocks(graph),
        "frozen": _by_layer(frozen),
        "outside": _by_layer(outside),
        "tied": _tied(model),
        "totals": {
            "layers": graph.num_nodes,
            "edges": graph.num_edges,
            "blocks": len(graph.block_names),
            "scheduled": sum(graph.sizes),
            "outside": sum(outside.values()),
            "frozen": sum(frozen.values()),
            "parameters": sum(p.numel() for p in named.values()),
        },
    }


def build_optimizer(model: nn.Module, name: str, learning_rate: float | None) -> torch.optim.Optimizer:
    """Return an optimizer on the parameters that train.

    :param name: a class of ``torch.optim`` in lower case, or ``sgdm``: SGD with momentum 0.9
    :param learning_rate: initial rate; ``None``: PyTorch's default
    :raises UnknownNameError: if there is no such optimizer
    :raises InvalidSettingError: if it takes no such rate or model
    """
    known = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if name != "sgdm" and name not in known:
        raise UnknownNameError("optimizer", name, [*known, "sgdm"])
    settings: dict[str, Any] = {} if learning_rate is None else {"lr": learning_rate}
    if learning_rate is not None:
        require_positive("--lr", learning_rate)
    if name == "sgdm":
        settings["momentum"] = _SGDM_MOMENTUM
    try:
        return known["sgd" if name == "sgdm" else name]([p for p in model.parameters() if p.requires_grad], **settings)
    except (ValueError, TypeError) as error:
        raise InvalidSettingError(
            f"Optimizer {name} cannot be built on {type(model).__name__} ({error}); choose another."
        ) from error


def describe_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, graph: LayerGraph) -> dict[str, Any]:
    """Describe parameter groups, and the kind of optimizer a policy takes it for."""
    counts = [0] * len(optimizer.param_groups)
    bound = [p for layer in graph.bind(model) for p in layer]
    for owner, parameter in zip(group_of_each(optimizer, bound), bound, strict=True):
        counts[owner] += parameter.numel()
    groups = []
    for number, group in enumerate(optimizer.param_groups):
        parameters = sum(p.numel() for p in group["params"])
        groups.append(
            {
                "number": number,
                "tensors": len(group["params"]),
                "parameters": parameters,
                "scheduled": counts[number],
                "lr": float(group["lr"]),
                "settings": {key: group[key] for key in _SHOWN_SETTINGS if key in group},
            }
        )
    return {"class": type(optimizer).__name__, "kind": optimizer_kind(optimizer), "groups": groups}


def describe_decisions(budget: int, policy: str | None) -> tuple[dict[str, Any], DecisionConfig]:
    """Describe when rates would be decided over a budget.

    :param budget: number of updates T
    :param policy: folder or Hub id; ``None``: the prior
    :return: plain JSON values, and the settings
    :raises InvalidSettingError: if the budget is no positive whole number, or smaller than the number of decisions
    :raises PolicyFormatError: if the policy cannot be used
    """
    loaded = GNSPolicy.from_pretrained(PRIOR if policy is None else policy).config
    config = loaded.decision
    interval = config.interval(budget)
    count = math.ceil(budget / interval)
    described = {
        "policy": policy,
        "budget": budget,
        "decisions": count,
        "interval": interval,
        "last_interval": budget - (count - 1) * interval,
        "rule": decision_rule(config),
        "formula": config.action_mode.described(config),
        "min_lr": config.min_lr,
        "max_lr": config.max_lr,
        "training": loaded.training,
    }
    return described, config


def check_schedule(
    model: nn.Module, optimizer: torch.optim.Optimizer, graph: LayerGraph, budget: int, config: DecisionConfig
) -> None:
    """Raise what a schedule on these would raise at its start, see :class:`gns.deciding.decision.DecisionCore`."""
    DecisionCore(model, optimizer, graph, budget, config)


def save_picture(graph: LayerGraph, path: str, blocks: bool) -> None:
    """Draw the graph into a file whose format its name ends with.

    :raises InvalidSettingError: if it cannot be written, or the format is unknown
    """
    with needing("plots"):
        import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axis = graph.plot(level="block" if blocks else "layer")
    try:
        axis.figure.savefig(path, dpi=dpi_within_budget(axis.figure))
    except (OSError, ValueError) as error:
        raise InvalidSettingError(f"--png is {path!r} and cannot be written ({error}); give another file.") from error
    finally:
        plt.close(axis.figure)


def print_plan(plan: dict[str, Any], blocks: bool) -> None:
    """Print a plan as text.

    :param plan: ``target``, ``model``, ``inputs``, what :func:`describe_layers` returned, and, where asked for,
        ``optimizer`` and ``decisions``
    :param blocks: blocks in place of layers
    """
    totals = plan["totals"]
    print_line(f"{plan['target']}: {plan['model']}; sample batch {', '.join(plan['inputs'])}")
    print_line(
        f"layer graph: {totals['layers']} layers, {totals['edges']} edges, {totals['blocks']} blocks; of "
        f"{totals['parameters']:,} parameters {totals['scheduled']:,} in the graph, {totals['outside']:,} outside it, "
        f"{totals['frozen']:,} frozen"
    )
    if blocks:
        rows = [
            [b["number"], b["name"], b["layers"], b["parameters"], f"{b['depth']:.2f}", _list(b["next"])]
            for b in plan["blocks"]
        ]
        print_table("blocks", ("#", "name", "layers", "parameters", "depth", "edges to"), rows)
    else:
        rows = [
            [r["number"], r["name"], r["type"], r["parameters"], r["block"], f"{r['depth']:.2f}", _list(r["next"])]
            for r in plan["layers"]
        ]
        print_table("layers", ("#", "name", "type", "parameters", "block", "depth", "edges to"), rows)
    for key, title in (
        ("frozen", "frozen: not in the graph, no rate"),
        (
            "outside",
            "outside the graph: the outputs do not depend on them; their group's rate applies, no policy sees them",
        ),
    ):
        if plan[key]:
            rows = [[row["name"], row["tensors"], row["parameters"]] for row in plan[key]]
            print_table(title, ("layer", "tensors", "parameters"), rows)
    if plan["tied"]:
        print_table("tied weights: one tensor, in the graph once", ("names",), [[" = ".join(n)] for n in plan["tied"]])
    if "optimizer" in plan:
        _print_optimizer(plan["optimizer"])
    if "decisions" in plan:
        _print_decisions(plan["decisions"])


# ---------------------------------------------------------------------- inside


def _layers(graph: LayerGraph) -> list[dict[str, Any]]:
    return [
        {
            "number": number,
            "name": graph.names[number],
            "type": graph.types[number],
            "parameters": graph.sizes[number],
            "block": graph.block_names[graph.block_ids[number]],
            "depth": float(graph.depths[number]),
            "next": [int(target) for source, target in graph.edges.T if source == number],
        }
        for number in range(graph.num_nodes)
    ]


def _blocks(graph: LayerGraph) -> list[dict[str, Any]]:
    counts = np.bincount(graph.block_ids)
    depths = np.bincount(graph.block_ids, weights=graph.depths) / counts
    sizes = np.array(graph.sizes)
    return [
        {
            "number": number,
            "name": name,
            "layers": int(counts[number]),
            "parameters": int(sizes[graph.block_ids == number].sum()),
            "depth": float(depths[number]),
            "next": [int(target) for source, target in graph.block_edges.T if source == number],
        }
        for number, name in enumerate(graph.block_names)
    ]


def _by_layer(sizes: dict[str, int]) -> list[dict[str, Any]]:
    """Group parameters, given with their sizes, by the module that owns them."""
    rows: dict[str, dict[str, Any]] = {}
    for name, size in sizes.items():
        owner = name.rpartition(".")[0] or "(root)"
        row = rows.setdefault(owner, {"name": owner, "tensors": 0, "parameters": 0})
        row["tensors"] += 1
        row["parameters"] += size
    return list(rows.values())


def _tied(model: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [shared for shared in names.values() if len(shared) > 1]


def _print_optimizer(optimizer: dict[str, Any]) -> None:
    rows = [
        [
            group["number"],
            group["tensors"],
            group["parameters"],
            group["scheduled"],
            f"{group['lr']:g}",
            ", ".join(f"{key} {value}" for key, value in group["settings"].items()),
        ]
        for group in optimizer["groups"]
    ]
    title = f"parameter groups of {optimizer['class']}, which a policy sees as {optimizer['kind']!r}"
    print_table(title, ("#", "tensors", "parameters", "in the graph", "lr", "settings"), rows)


def _print_decisions(decisions: dict[str, Any]) -> None:
    budget, interval, count = decisions["budget"], decisions["interval"], decisions["decisions"]
    due = [str(k * interval) for k in range(min(count, 3))]
    due += ["..."] * (count > 4) + [str((count - 1) * interval)] * (count > 3)
    rows = [
        ("policy", decisions["policy"] or "none given: the prior"),
        ("budget", f"{budget:,} updates"),
        ("decisions", f"{count:,}, before updates {', '.join(due)} (the first is 0)"),
        ("interval", f"{interval:,} updates; the last one {decisions['last_interval']:,}"),
        ("rule", decisions["rule"]),
        ("action", decisions["formula"]),
        ("rates", f"within [{decisions['min_lr']:g}, {decisions['max_lr']:g}]"),
    ]
    print_table("decisions", ("", ""), rows)
    if decisions["training"]:
        rows = [(key, str(value)) for key, value in decisions["training"].items()]
        print_table("the policy was trained on", ("", ""), rows)


def _list(numbers: list[int]) -> str:
    return " ".join(map(str, numbers)) or "-"
