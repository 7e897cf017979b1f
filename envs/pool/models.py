"""Networks of drawn tasks, each a body and a head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from envs.pool.data import VOCABULARY, DataSpec, load, reproducible
from envs.pool.layers import (
    CELLS,
    Attention,
    Bare,
    CausalAttention,
    EmbeddingBag,
    GraphBody,
    GroupNorm,
    LastPosition,
    Mean,
    MeanPosition,
    Patches,
    Positions,
    Residual,
    weight_normalise,
)
from envs.tasks.base import Task
from envs.training_run import TrainingRun

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class NetworkSpec:
    """A network.

    :param family: a name in :data:`FAMILIES`
    :param shape: of an example
    :param outputs: numbers of its output
    :param widths: of the hidden layers, in channels for a ``cnn``; of a ``transformer`` all alike
    :param activation: a name in :data:`ACTIVATIONS`
    :param norm: ``none``, ``batch``, or ``layer`` (of a ``cnn``: group norm; ``group``: that one written
        out, so that many runs share it); a ``transformer`` has layer norm
    :param residual: whether a layer whose input has its width is added to it
    :param dropout: share of activations dropped; 0: no such layer
    :param pooling: of a ``cnn``: ``average``, ``max`` (of images) or ``stride``
    :param flat: of a ``cnn``: whether its head reads every position, not their mean
    :param patch: of a ``transformer`` or ``recurrent`` network on signals: points of a token
    :param cell: of a ``recurrent`` network, a name in :data:`envs.pool.layers.CELLS`; of a ``graph`` network one
        in :data:`envs.pool.layers.GRAPH_LAYERS`
    :param vocabulary: tokens there are, where examples are numbers of tokens
    :param sequence: whether there is an output for every token
    :param parametrised: whether linear and convolutional layers are weight normalised
    """

    family: str
    shape: tuple[int, ...]
    outputs: int
    widths: tuple[int, ...]
    activation: str = "relu"
    norm: str = "none"
    residual: bool = False
    dropout: float = 0.0
    pooling: str = "average"
    flat: bool = False
    patch: int = 1
    cell: str = "gru"
    vocabulary: int = VOCABULARY
    sequence: bool = False
    parametrised: bool = False

    def build(self) -> Network:
        """Return the network, drawn from torch's global random numbers."""
        network = FAMILIES[self.family](self)
        if self.parametrised:
            weight_normalise(network)
        return network


class Network(nn.Module):
    """A head on a body.

    :param body: features (N, F) of inputs
    :param head: outputs of features
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs."""
        return self.head(self.body(inputs))


def _mlp(spec: NetworkSpec) -> Network:
    inputs = int(torch.Size(spec.shape).numel())
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([inputs, *spec.widths]):
        layer: list[nn.Module] = [nn.Linear(before, after)]
        if spec.norm != "none":
            layer.append(nn.BatchNorm1d(after) if spec.norm == "batch" else nn.LayerNorm(after))
        layer += [ACTIVATIONS[spec.activation](), *_dropout(spec)]
        layers.append((Residual if spec.residual and before == after else nn.Sequential)(*layer))
    return Network(nn.Sequential(*layers), nn.Linear(spec.widths[-1], spec.outputs))


def _cnn(spec: NetworkSpec) -> Network:
    """3-wide convolutions; positions are halved after each but the first (after that too, if it is the only one)."""
    flat, size = len(spec.shape) == 2, spec.shape[-1]
    convolution, batch_norm = (nn.Conv1d, nn.BatchNorm1d) if flat else (nn.Conv2d, nn.BatchNorm2d)
    average = nn.AvgPool1d if flat else nn.AvgPool2d
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise([spec.shape[0], *spec.widths])):
        halved = size >= 4 and (number > 0 or len(spec.widths) == 1)
        strided = halved and spec.pooling == "stride"
        layer: list[nn.Module] = [convolution(before, after, 3, stride=2 if strided else 1, padding=1)]
        if spec.norm != "none":
            group_norm = GroupNorm if spec.norm == "group" else nn.GroupNorm
            layer.append(batch_norm(after) if spec.norm == "batch" else group_norm(2 if after < 16 else 4, after))
        layer.append(ACTIVATIONS[spec.activation]())
        layers.append((Residual if spec.residual and before == after and not strided else nn.Sequential)(*layer))
        if halved and not strided:
            layers.append(nn.MaxPool2d(2) if spec.pooling == "max" and not flat else average(2))
        size = (size + 1) // 2 if strided else size // 2 if halved else size
    layers += [nn.Flatten() if spec.flat else MeanPosition(), *_dropout(spec)]
    positions = (size if flat else size * size) if spec.flat else 1
    return Network(nn.Sequential(*layers), nn.Linear(spec.widths[-1] * positions, spec.outputs))


def _transformer(spec: NetworkSpec) -> Network:
    """An encoder with norms first, on rows of pixels, patches of signals or numbers of tokens."""
    width = spec.widths[0]
    if len(spec.shape) == 1:
        count, begin = spec.shape[0], [nn.Embedding(spec.vocabulary, width)]
    else:
        count, taken = (spec.shape[1:]) if len(spec.shape) == 3 else (spec.shape[1] // spec.patch, spec.patch)
        begin = [Patches(spec.patch), nn.Linear(taken, width)]  # type: ignore[list-item]
    layers: list[nn.Module] = [*begin, Positions(count, width)]
    for _ in spec.widths:
        between = [nn.Linear(width, 2 * width), ACTIVATIONS[spec.activation](), *_dropout(spec)]
        layers.append(Residual(nn.LayerNorm(width), Attention(width)))
        layers.append(Residual(nn.LayerNorm(width), *between, nn.Linear(2 * width, width)))
    return Network(nn.Sequential(*layers, nn.LayerNorm(width), Mean()), nn.Linear(width, spec.outputs))


def _recurrent(spec: NetworkSpec) -> Network:
    """Recurrent layers over rows of pixels, patches of signals, or embedded tokens; the head reads the last state."""
    begin, width = _tokens(spec)
    layers: list[nn.Module] = [*begin]
    for after in spec.widths:
        layers.append(CELLS[spec.cell](width, after, batch_first=True))
        width = after
    if spec.norm == "layer":
        layers.append(nn.LayerNorm(width))
    if not spec.sequence:
        layers.append(Mean() if spec.pooling == "average" else LastPosition())
    return Network(nn.Sequential(*layers, *_dropout(spec)), nn.Linear(width, spec.outputs))


def _tokens(spec: NetworkSpec) -> tuple[list[nn.Module], int]:
    """Return what makes tokens (N, T, width) of examples, and their width."""
    if len(spec.shape) == 1:
        return [nn.Embedding(spec.vocabulary, spec.widths[0])], spec.widths[0]
    return [Patches(spec.patch)], spec.shape[-1] if len(spec.shape) == 3 else spec.patch


def _bag(spec: NetworkSpec) -> Network:
    """A bag of embeddings, and fully connected layers on it."""
    layers: list[nn.Module] = [EmbeddingBag(spec.vocabulary, spec.widths[0])]
    for before, after in pairwise(spec.widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[spec.activation](), *_dropout(spec)]
    return Network(nn.Sequential(*layers), nn.Linear(spec.widths[-1], spec.outputs))


def _graph(spec: NetworkSpec) -> Network:
    """Graph layers and a head."""
    body = GraphBody(spec.cell, spec.shape[1] - spec.shape[0], spec.widths, ACTIVATIONS[spec.activation])
    return Network(body, nn.Linear(spec.widths[-1], spec.outputs))


def _bare(spec: NetworkSpec) -> Network:
    """A fully connected network of layers that PyTorch does not name."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([int(torch.Size(spec.shape).numel()), *spec.widths]):
        layers += [Bare(before, after), ACTIVATIONS[spec.activation](), *_dropout(spec)]
    return Network(nn.Sequential(*layers), Bare(spec.widths[-1], spec.outputs))


def _language_model(spec: NetworkSpec) -> Network:
    """A decoder with norms first (Radford et al., 2019) on numbers of tokens; outputs (N, T, vocabulary)."""
    width = spec.widths[0]
    layers: list[nn.Module] = [nn.Embedding(spec.vocabulary, width), Positions(spec.shape[0], width)]
    for _ in spec.widths:
        between = [nn.Linear(width, 2 * width), ACTIVATIONS[spec.activation](), *_dropout(spec)]
        layers.append(Residual(nn.LayerNorm(width), CausalAttention(width)))
        layers.append(Residual(nn.LayerNorm(width), *between, nn.Linear(2 * width, width)))
    return Network(nn.Sequential(*layers, nn.LayerNorm(width)), nn.Linear(width, spec.outputs))


def _dropout(spec: NetworkSpec) -> list[nn.Module]:
    return [nn.Dropout(spec.dropout)] if spec.dropout else []


FAMILIES: dict[str, Callable[[NetworkSpec], Network]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "transformer": _transformer,
    "recurrent": _recurrent,
    "bag": _bag,
    "graph": _graph,
    "bare": _bare,
    "language": _language_model,
}


@dataclass(frozen=True)
class Pretraining:
    """A short training run whose body is what fine-tuning begins with: Adam, warm-up, linear decay.

    :param network: with as many outputs as the data have
    :param data: what it learns
    :param loss: mean loss of outputs and targets
    :param updates: how many
    :param learning_rate: the highest
    :param batch_size: examples an update
    """

    network: NetworkSpec
    data: DataSpec
    loss: Callable[[Tensor, Tensor], Tensor]
    updates: int = 200
    learning_rate: float = 3e-3
    batch_size: int = 64


@cache
def pretrained_body(what: Pretraining) -> dict[str, Tensor]:
    """Return the state of a pretrained body, trained once a process; to be copied and never changed."""
    data, build = partial(load, what.data), what.network.build
    task = Task("pretraining", data, build, batch_size=what.batch_size, budget=what.updates, loss=what.loss)
    with reproducible():
        run = TrainingRun(task, "adam", what.learning_rate, seed=what.data.seed)
        for update in range(what.updates):
            run.compute_gradient()
            factor = min((update + 1) / (0.1 * what.updates), 1.0 - update / what.updates)
            for group in run.optimizer.param_groups:
                group["lr"] = what.learning_rate * factor
            run.apply_update()
    assert isinstance(run.model, Network)
    return {name: value.clone() for name, value in run.model.body.state_dict().items()}


def fine_tuned(network: NetworkSpec, pretraining: Pretraining) -> Network:
    """Return a network with a pretrained body, its head drawn from torch's global random numbers."""
    body = pretrained_body(pretraining)
    model = network.build()
    model.body.load_state_dict(body)
    return model
