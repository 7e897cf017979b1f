"""The features of a run, slowly and readably: one layer, one tensor, one update at a time, in float64.

Written from the definitions, to be compared with the fast path. Nothing here calls it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gns.schedules.static import default_rate

TINY = 1e-12
KINDS = ("sgd", "adam", "adamw", "other")


@dataclass
class RunTwin:
    """What a run has been through; kept by telling it of every update and every decision.

    :param budget: updates of the whole run
    :param initial_lrs: rate each parameter group began with
    :param predictions: outputs on held-out data at the last decision
    :param start: the weights that the run began with
    :param default: the default rate as the run began
    """

    budget: int
    initial_lrs: list[float]
    updates: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # updates of each parameter that had a gradient
    losses: list[float] = field(default_factory=list)
    intervals: list[float] = field(default_factory=list)
    predictions: Tensor | None = None
    start: dict[str, Tensor] = field(default_factory=dict)  # the weights that the run began with
    default: float | None = None

    def updated(self, loss: float, model: nn.Module) -> None:
        """Note an update and the parameters that took part in it."""
        self.updates += 1
        self.losses.append(loss)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self.counts[name] = self.counts.get(name, 0) + 1

    def decided(self, predictions: Tensor | None = None) -> None:
        """Note a decision, which closes an interval, and the outputs on held-out data then."""
        self.predictions = predictions
        if self.losses:
            self.intervals.append(sum(self.losses) / len(self.losses))
        self.losses = []


@dataclass
class TensorState:
    """One parameter tensor: weight, pending gradient, optimizer state and coming update at a rate of 1.

    ``gradient_mean`` and ``gradient_power`` are the running means of the gradient and of its square, both free of
    their start-up bias; the latter is the square itself where the optimizer keeps no such mean.
    """

    weight: Tensor
    gradient: Tensor
    momentum: Tensor | None
    gradient_mean: Tensor | None
    gradient_power: Tensor
    update: Tensor
    learning_rate: float
    is_bias: bool


def read_tensor(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, run: RunTwin, factor: float):
    """Read one parameter as the documentation of its optimizer describes the coming update."""
    parameter = dict(model.named_parameters())[name]
    number = next(i for i, g in enumerate(optimizer.param_groups) if any(p is parameter for p in g["params"]))
    group, state = optimizer.param_groups[number], optimizer.state.get(parameter, {})
    weight = parameter.detach().double()
    gradient = torch.zeros_like(weight) if parameter.grad is None else parameter.grad.double()
    read = read_sgd if isinstance(optimizer, torch.optim.SGD) else read_adam
    decoupled = isinstance(optimizer, torch.optim.AdamW)
    momentum, mean, power, update = read(group, state, weight, gradient, run.counts.get(name, 0), decoupled)
    return TensorState(
        weight=weight,
        gradient=gradient,
        momentum=momentum,
        gradient_mean=mean,
        gradient_power=power,
        update=torch.zeros_like(weight) if parameter.grad is None else update,  # no gradient, no update
        learning_rate=run.initial_lrs[number] * factor,
        is_bias=name.split(".")[-1].startswith("bias"),
    )


def read_sgd(group, state, weight, gradient, count, decoupled):
    """``torch.optim.SGD``: b <- mu b + (1 - dampening) d, and b = d at first; step along b, or d + mu b (Nesterov)."""
    mu, gain = group["momentum"], 1 - group["dampening"]
    direction = (-gradient if group["maximize"] else gradient) + group["weight_decay"] * weight
    buffer = state.get("momentum_buffer")
    if mu == 0 or buffer is None:
        update = (1 + mu) * direction if group["nesterov"] else direction
        return None, None, gradient**2, update
    weights = 1.0  # what the gradients in the buffer are weighted with, in all
    for _ in range(count - 1):
        weights = mu * weights + gain
    buffer = buffer.double()
    ahead = mu * buffer + gain * direction
    update = direction + mu * ahead if group["nesterov"] else ahead
    return buffer, buffer / weights, gradient**2, update


def read_adam(group, state, weight, gradient, count, decoupled):
    """Algorithm 1 of Kingma and Ba with AMSGrad's maximum, and weight decay in the gradient (Adam) or apart (AdamW)."""
    beta1, beta2 = group["betas"]
    decay = group["weight_decay"]
    direction = (-gradient if group["maximize"] else gradient) + (0.0 if decoupled else decay) * weight
    nothing = torch.zeros_like(weight)
    m, v, most = (state.get(key, nothing).double() for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
    m_next = beta1 * m + (1 - beta1) * direction
    v_next = beta2 * v + (1 - beta2) * direction**2
    denominator = torch.maximum(most, v_next) if group["amsgrad"] else v_next
    t = count + 1
    update = (m_next / (1 - beta1**t)) / ((denominator / (1 - beta2**t)).sqrt() + group["eps"])
    if decoupled:
        update = update + decay * weight
    if "exp_avg" not in state:
        return None, None, gradient**2, update
    return m, m / (1 - beta1**count), v / (1 - beta2**count), update


def features(schema, graph, model, optimizer, run: RunTwin, factor: float) -> tuple[list[list[float]], list[float]]:
    """Return the node matrix and the global vector as lists of numbers."""
    layers = [[read_tensor(name, model, optimizer, run, factor) for name in names] for names in graph.parameters]
    if schema == "gns-paper":
        return [bounded(paper_row(tensors, run, factor), 1e6) for tensors in layers], []
    rows = [gns_row(tensors, depth) for tensors, depth in zip(layers, graph.depths, strict=True)]
    of_run = gns_globals(optimizer, run, factor)
    if schema == "gns-2":
        starts = [[run.start[name].double() for name in names] for names in graph.parameters]
        rows = [row + travel_features(*pair) for row, *pair in zip(rows, layers, starts, strict=True)]
        everything, start = [t for row in layers for t in row], [x for row in starts for x in row]
        of_run += [*facts(optimizer, everything, graph, model, run, factor), *travel_features(everything, start)]
        of_run.append(over_random_walk(everything, start, run.updates))
    return [bounded(row, 5.0) for row in rows], bounded(of_run, 5.0)


def travel_features(tensors: list[TensorState], start: list[Tensor]) -> list[float]:
    """Displacement over the start, and cosine of gradient and displacement."""
    ways = [t.weight - x0 for t, x0 in zip(tensors, start, strict=True)]
    length = math.sqrt(sum(float((way**2).sum()) for way in ways))
    if length == 0.0:
        return [0.0, 0.0]
    size = math.sqrt(sum(float((x0**2).sum()) for x0 in start))
    gradient = math.sqrt(sum(float((t.gradient**2).sum()) for t in tensors))
    product = sum(float((t.gradient * way).sum()) for t, way in zip(tensors, ways, strict=True))
    cosine = product / (gradient * length) if gradient else 0.0
    return [math.log10(length / size) + 1, cosine / 0.33]


def over_random_walk(tensors: list[TensorState], start: list[Tensor], updates: int) -> float:
    """Displacement over the length of a random walk of as many updates of the coming one's size."""
    if not updates:
        return 0.0
    length = math.sqrt(sum(float(((t.weight - x0) ** 2).sum()) for t, x0 in zip(tensors, start, strict=True)))
    step = math.sqrt(sum(t.learning_rate**2 * float((t.update**2).sum()) for t in tensors))
    return math.log10(length / (step * math.sqrt(updates)))


def facts(optimizer, tensors: list[TensorState], graph, model: nn.Module, run: RunTwin, factor: float) -> list[float]:
    """What is known before the first update: the rate's level over the default, settings, sizes."""
    groups = optimizer.param_groups
    largest = max(range(len(groups)), key=lambda i: sum(p.numel() for p in groups[i]["params"]))
    if run.default is None:  # what a later look would take for a pretrained model is a new one at the start
        run.default = default_rate(optimizer, model, graph, run.budget)
    default = run.default / run.initial_lrs[largest]
    progress = run.updates / run.budget
    rex = (1 - progress) / (0.5 + 0.5 * (1 - progress))
    adam = "betas" in groups[0]
    momentum = groups[0]["betas"][0] if adam else groups[0]["momentum"]
    return [
        math.log10(factor / rex / default),
        (math.log10(1 - momentum) + 1) / 0.5,
        math.log10(1 - groups[0]["betas"][1]) + 2.5 if adam else 0.0,
        math.log10(max(group["weight_decay"] for group in groups) + 1e-5) + 4,
        1.0 if isinstance(optimizer, torch.optim.AdamW) else 0.0,
        math.log10(total(tensors, torch.numel)) - 4,
        (math.log10(graph.num_nodes) - 0.7) / 0.5,
        0.0,  # pretrained
    ]


def srls_features(
    output_layer: nn.Module, run: RunTwin, factor: float, validation_loss: float, predictions: Tensor
) -> list[float]:
    """The seven features of SRLS, from the model and its outputs on held-out data.

    :param output_layer: the layer with the last ``weight``
    """
    weights = [float(w) for w in output_layer.weight.detach().flatten()]
    mean = sum(weights) / len(weights)
    rms = math.sqrt(sum(w * w for w in weights) / len(weights))
    now = [float(p) for p in predictions.flatten()]
    change = 0.0
    if run.predictions is not None:
        differences = [a - float(b) for a, b in zip(now, run.predictions.flatten(), strict=True)]
        change = log10(variance(differences)) / 2
    values = [
        ln(sum(run.losses) / len(run.losses)) / 2 if run.losses else 0.0,
        ln(validation_loss) / 2,
        log10(variance(now)) / 2,
        change,
        mean / rms,
        log10(variance(weights)) / 2 + 1,
        (log10(run.initial_lrs[0] * factor) + 3) / 2,
    ]
    return bounded(values, 5.0)


def variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def gns_row(tensors: list[TensorState], depth: float) -> list[float]:
    """Node features of one layer."""
    size = total(tensors, torch.numel)
    weight_rms = math.sqrt(sum(float((t.weight**2).sum()) for t in tensors) / size)
    squared_gradient = sum(float((t.gradient**2).sum()) for t in tensors)
    update_rms = math.sqrt(sum(t.learning_rate**2 * float((t.update**2).sum()) for t in tensors) / size)
    agreement, signal_to_noise = 0.0, 1.0  # without momentum, one gradient is its own mean
    if any(t.momentum is not None for t in tensors):
        momenta = [t for t in tensors if t.momentum is not None]
        product = sum(float((t.gradient * t.momentum).sum()) for t in momenta)
        squared_momentum = sum(float((t.momentum**2).sum()) for t in momenta)
        agreement = product / (math.sqrt(squared_gradient * squared_momentum) + TINY**2)
        signal = sum(float((t.gradient_mean**2).sum()) for t in momenta)
        power = sum(float(t.gradient_power.sum()) for t in tensors)
        signal_to_noise = (signal + TINY) / (power + TINY)
    return [
        log10(weight_rms) + 1,
        (log10(math.sqrt(squared_gradient / size)) + 3) / 2,
        agreement,
        log10(signal_to_noise) + 1,
        (log10((update_rms + TINY) / (weight_rms + 1e-8)) + 3) / 1.5,
        (math.log10(size) - 3) / 2,
        2 * float(depth) - 1,
    ]


def gns_globals(optimizer: torch.optim.Optimizer, run: RunTwin, factor: float) -> list[float]:
    """Global features of the run."""
    level = since_start = change = slope = spread = 0.0
    count = len(run.losses)
    if count:
        mean = sum(run.losses) / count
        level = ln(mean)
        if run.intervals:
            since_start = level - ln(run.intervals[0])
            change = level - ln(run.intervals[-1])
        if count > 1:
            half = count // 2
            slope = ln(sum(run.losses[-half:]) / half) - ln(sum(run.losses[:half]) / half)
            deviation = math.sqrt(sum((loss - mean) ** 2 for loss in run.losses) / count)
            spread = ln(deviation / max(abs(mean), 1e-8) + 1e-3) / 2 + 1
    kind = "adamw" if isinstance(optimizer, torch.optim.AdamW) else type(optimizer).__name__.lower()
    return [
        (log10(run.initial_lrs[0] * factor) + 3) / 2,
        level / 2,
        since_start / 2,
        2 * change,
        2 * slope,
        spread,
        2 * run.updates / run.budget - 1,
        math.log10(run.budget) - 2.5,
        0.0,  # rolled_back
        1.0 if count == 0 else 0.0,
        *(1.0 if kind == known else 0.0 for known in KINDS),
    ]


def paper_row(tensors: list[TensorState], run: RunTwin, factor: float) -> list[float]:
    """Node features of one layer as in the paper's released code."""
    row = []
    for value in (lambda t: t.weight.sum(), lambda t: t.gradient.abs().sum()):
        for bias in (False, True):
            chosen = [t for t in tensors if t.is_bias == bias]
            row.append(sum(float(value(t)) for t in chosen) / max(total(chosen, torch.numel), 1))
    loss = sum(run.losses) / len(run.losses) if run.losses else 0.0
    return [*row, loss, run.initial_lrs[0] * factor]


def total(tensors: list[TensorState], count) -> int:
    return sum(count(t.weight) for t in tensors)


def log10(value: float) -> float:
    return math.log10(max(value, TINY))


def ln(value: float) -> float:
    return math.log(max(value, 1e-8))


def bounded(values: list[float], bound: float) -> list[float]:
    return [min(max(value, -bound), bound) for value in values]
