"""A task's model as a function of its parameters, so that N sets of parameters are evaluated at once.

The model is rewritten where ``torch.func.vmap`` cannot follow it or is slow: a dropout layer takes its mask as an
input, drawn beforehand from the run's own random numbers, and 2x2 max pooling keeps channels last in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from envs.batched.optimizers import Settings, batched_kind, settings_in
from envs.tasks.base import Task, all_parameters, cross_entropy
from envs.training_run import OPTIMIZERS
from gns.errors import GNSError


class NotBatchableError(GNSError, ValueError):
    """Runs of this task cannot be trained side by side; train them one at a time."""


class MaskedDropout(nn.Module):
    """Dropout by a mask that is given, of zeros and ``1 / (1 - p)``, or none in evaluation."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.mask: Tensor | None
        self.register_buffer("mask", None, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply by the mask."""
        return inputs if self.mask is None or not self.training else inputs * self.mask


class _Pooling(torch.autograd.Function):
    """PyTorch's 2x2 max pooling of (B, C, H, W), which under ``vmap`` takes runs and channels for one dimension.

    Its second result, the places of the largest entries, has no gradient.
    """

    @staticmethod
    def forward(inputs: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.aten.max_pool2d_with_indices.default(inputs, [2, 2], [2, 2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Tensor:
        inputs, places = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        backward = torch.ops.aten.max_pool2d_with_indices_backward.default
        return backward(gradient, inputs, [2, 2], [2, 2], [0, 0], [1, 1], False, places)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], inputs: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        folded = inputs.movedim(in_dims[0], 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        pooled, places = (tensor.unflatten(1, (info.batch_size, -1)) for tensor in _Pooling.apply(folded))
        return (pooled, places), (1, 1)


class FoldedMaxPool2d(nn.Module):
    """2x2 max pooling of (B, C, H, W) with runs and channels last in memory: ten times as fast as channels first."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, C, H // 2, W // 2)."""
        return _Pooling.apply(inputs)[0]


class BatchedModel:
    """One architecture, evaluated with many sets of parameters.

    :param task: whose model and loss they are
    :raises NotBatchableError: if runs of this task cannot share a forward pass
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        _require_batchable(task)
        with torch.random.fork_rng(devices=[]):
            model = task.new_model()
        self.task = task
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        if any(not parameter.requires_grad for parameter in model.parameters()):
            raise NotBatchableError(f"Task {task.name} has frozen parameters; its runs are trained one at a time.")
        self.settings = {name: _settings(task, name, model) for name in OPTIMIZERS}
        self.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.dropouts = {name: module.p for name, module in model.named_modules() if type(module) is nn.Dropout}
        self.mask_shapes = _input_shapes(model, task, list(self.dropouts))
        rewritten = _rewritten(model).to(device)
        self._training, self._evaluation = rewritten, copy.deepcopy(rewritten).eval()
        self._losses: Callable[..., Tensor] = vmap(self._training_loss)
        self._logits: Callable[..., Tensor] = vmap(self._training_outputs)
        self._split_losses: Callable[[Tensor, Tensor], Tensor] = vmap(task.loss, in_dims=(0, None))
        self._outputs: Callable[..., Tensor] = vmap(self._evaluation_outputs)

    def losses(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        masks: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
    ) -> Tensor:
        """Return the mean training loss of each run, (n,); buffers are moved in place as layers move them.

        :param parameters: tensors (n, *shape) by name
        :param buffers: likewise
        :param masks: of each dropout layer, (n, *shape of its input)
        :param inputs: prepared batch of each run, (n, B, ...)
        :param targets: (n, B, ...)
        """
        try:
            if self.task.loss is not cross_entropy:
                return self._losses(parameters, buffers, masks, inputs, targets)
            return cross_entropies(self._logits(parameters, buffers, masks, inputs), targets)
        except RuntimeError as problem:
            raise NotBatchableError(
                f"The model of task {self.task.name} cannot be evaluated for many runs at once ({problem}); its runs "
                "are trained one at a time."
            ) from problem

    def _training_loss(self, parameters: Any, buffers: Any, masks: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.task.loss(self._training_outputs(parameters, buffers, masks, inputs), targets)

    def _training_outputs(self, parameters: Any, buffers: Any, masks: Any, inputs: Tensor) -> Any:
        held = {**parameters, **buffers, **{f"{name}.mask": mask for name, mask in masks.items()}}
        return functional_call(self._training, held, (inputs,))

    def _evaluation_outputs(self, parameters: Any, buffers: Any, inputs: Tensor) -> Any:
        return functional_call(self._evaluation, {**parameters, **buffers}, (inputs,))

    @torch.no_grad()
    def outputs(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """Return each run's outputs for prepared batches (n, B, ...) in evaluation mode, (n, B, ...)."""
        return self._outputs(parameters, buffers, inputs)

    @torch.no_grad()
    def split_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each run's mean loss of its outputs (n, B, ...) for the same targets (B, ...), (n,)."""
        if self.task.loss is cross_entropy:
            return cross_entropies(outputs, targets.expand(len(outputs), *targets.shape))
        return self._split_losses(outputs, targets)


def laid_out(inputs: Tensor) -> Tensor:
    """Lay a batch of each run out as layers for many runs are fast on; images with runs and channels last in memory.

    Convolutions of many runs are one with groups, (B, n C, H, W); with channels last it is faster, elementwise layers
    and pooling follow it, and nothing is copied on the way.

    :param inputs: (n, B, ...)
    :return: the same tensor
    """
    if inputs.dim() != 5:
        return inputs
    return inputs.permute(1, 3, 4, 0, 2).contiguous().permute(3, 0, 4, 1, 2)


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of each run, (n,).

    Classes are the first dimension of the softmax: over a short last one PyTorch's kernel takes a CPU ten times as
    long, for the same figures.

    :param logits: (n, B, C)
    :param targets: classes, int64 (n, B)
    """
    logs = nn.functional.log_softmax(logits.flatten(0, 1).t().contiguous(), dim=0)
    return -logs.gather(0, targets.reshape(1, -1)).view(targets.shape).mean(1)


def _require_batchable(task: Task) -> None:
    reasons = {
        "has examples of several lengths": task.training_data().train.lengths is not None,
        f"runs at precision {task.precision}": task.precision != "float32",
        "accumulates over parts of unequal size": task.batch_size % task.accumulation != 0,
    }
    for reason, holds in reasons.items():
        if holds:
            raise NotBatchableError(f"Task {task.name} {reason}; its runs are trained one at a time.")


def _settings(task: Task, optimizer: str, model: nn.Module) -> Settings:
    """Return the settings that come with the task's parameter groups; weight decay may differ between them.

    :raises NotBatchableError: if anything else does, or groups have settings that runs side by side do not know
    """
    alone = OPTIMIZERS[optimizer](task.parameter_groups(model), 1.0)
    usual = OPTIMIZERS[optimizer]([nn.Parameter(torch.zeros(1))], 1.0)
    kind, (first, *others) = batched_kind(alone), alone.param_groups
    found = settings_in(kind, first)
    if task.parameter_groups is all_parameters:
        return found
    known = {"params", *(vars(found).keys() & first.keys())}
    for group in alone.param_groups:
        unknown = [key for key, value in usual.param_groups[0].items() if key not in known and group[key] != value]
        differing = [key for key in known - {"params", "weight_decay"} if group.get(key) != first[key]]
        if unknown or differing:
            raise NotBatchableError(
                f"Parameter groups of task {task.name} have {', '.join(sorted(unknown + differing))} of their own for "
                f"{optimizer}; its runs are trained one at a time."
            )
    decays = {parameter: group["weight_decay"] for group in alone.param_groups for parameter in group["params"]}
    parameters = list(model.parameters())
    if len(decays) != len(parameters):
        raise NotBatchableError(
            f"Parameter groups of task {task.name} leave out {len(parameters) - len(decays)} parameters; its runs are "
            "trained one at a time."
        )
    if all(group["weight_decay"] == first["weight_decay"] for group in others):
        return found
    return replace(found, weight_decay=torch.cat([torch.full((p.numel(),), decays[p]) for p in parameters]))


def _rewritten(model: nn.Module) -> nn.Module:
    """Replace layers in place; names stay."""
    for name, child in list(model.named_children()):
        if type(child) is nn.Dropout:
            setattr(model, name, MaskedDropout(child.p))
        elif type(child) is nn.MaxPool2d and _is_two_by_two(child):
            setattr(model, name, FoldedMaxPool2d())
        else:
            _rewritten(child)
    return model


def _is_two_by_two(pool: nn.MaxPool2d) -> bool:
    pairs = [value if isinstance(value, tuple) else (value, value) for value in (pool.kernel_size, pool.stride)]
    plain = pool.padding in (0, (0, 0)) and pool.dilation in (1, (1, 1))
    return pairs == [(2, 2), (2, 2)] and plain and not pool.return_indices and not pool.ceil_mode


def _input_shapes(model: nn.Module, task: Task, names: Sequence[str]) -> dict[str, torch.Size]:
    """Shape of what each of some layers is given for a batch of the task; (B, ...)."""
    if not names:
        return {}
    seen: dict[str, list[torch.Size]] = {name: [] for name in names}
    handles = [model.get_submodule(name).register_forward_pre_hook(_note(seen[name])) for name in names]
    train = task.training_data().train
    size = min(task.batch_size, len(train)) // task.accumulation
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        state = copy.deepcopy(model.state_dict())
        model.train()(task.prepare(train.batch(torch.arange(size))[0], True))
        model.load_state_dict(state)
    for handle in handles:
        handle.remove()
    if any(len(shapes) != 1 for shapes in seen.values()):
        raise NotBatchableError(
            f"A dropout layer of task {task.name} is not called once a forward pass; its runs are trained one at a "
            "time."
        )
    return {name: shapes[0] for name, shapes in seen.items()}


def _note(shapes: list[torch.Size]) -> Callable[..., None]:
    return lambda module, args: shapes.append(args[0].shape)
