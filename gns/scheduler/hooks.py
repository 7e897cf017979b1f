"""Hooks by which a scheduler sees a training loop from outside: the optimizer's steps and the model's outputs.

A hook refers to its scheduler weakly. A copy of a model, pickled or deep, has hooks that do nothing: a scheduler
belongs to the model it was given, and comes along with it only where the two are copied together.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gns.graph.autograd_walk import walk_back
from gns.graph.layer_graph import LayerGraph, layer_graph, tensors_in, unwrap
from gns.scheduler.closures import closure_of, updating
from gns.scheduler.opaque import opaque

if TYPE_CHECKING:
    from gns.scheduler.scheduler import GNSScheduler


_on_optimizer: weakref.WeakKeyDictionary[torch.optim.Optimizer, weakref.WeakSet[GNSScheduler]]
_on_optimizer = weakref.WeakKeyDictionary()


def attach(scheduler: GNSScheduler, optimizer: torch.optim.Optimizer, model: nn.Module) -> Callable[[], None]:
    """Register all hooks of a scheduler; return what removes them, which the scheduler's end does too.

    On a ``LightningModule`` with a trainer, which calls no module, a callback of the trainer stands for the forward
    hook. Where the trainer has set its callbacks aside, to look for a learning rate say, the scheduler does nothing.
    """
    reference = weakref.ref(scheduler)
    handles: list[Any] = []
    ready: Callable[[bool], bool] | None = None

    def watch_model() -> Callable[[bool], bool]:
        trainer = lightning_trainer(model)
        if trainer is not None:
            from gns.integrations.lightning import report_to

            subscription = report_to(reference, trainer)
            handles.append(subscription)
            return subscription.ready
        if not isinstance(model, torch.jit.RecursiveScriptModule):  # which takes no hook
            from gns.scheduler.tracers import HookHandle  # with Dynamo, as long as torch itself; any optimizer needs it

            handles.append(HookHandle(model, reference()))
        return lambda _: True

    def before(stepped: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal ready
        scheduler = reference()
        if scheduler is None:
            return None
        ready = ready or watch_model()
        return scheduler._before_update(stepped, args, kwargs) if ready(closure_of(args, kwargs) is not None) else None

    def after(*_: Any) -> None:
        scheduler = reference()
        if scheduler is not None:
            scheduler._after_optimizer_step()

    optimizer = updating(optimizer)  # a wrapper may call no hooks of its own, or be stepped in other ways
    beside = _on_optimizer.setdefault(optimizer, weakref.WeakSet())
    beside.add(scheduler)
    handles += [optimizer.register_step_pre_hook(opaque(before)), optimizer.register_step_post_hook(opaque(after))]
    if "_forward_hooks" in vars(model):  # else a model that holds its scheduler is being copied, and is not there yet
        ready = watch_model()

    def detach() -> None:
        if (alive := reference()) is not None:
            beside.discard(alive)
        for handle in handles:
            handle.remove()

    end = weakref.finalize(scheduler, detach)
    end.atexit = False
    return end


def others_on(optimizer: torch.optim.Optimizer, scheduler: GNSScheduler) -> list[GNSScheduler]:
    """Return the other schedulers that have hooks on an optimizer."""
    return [other for other in _on_optimizer.get(optimizer, ()) if other is not scheduler]


def lightning_trainer(model: nn.Module) -> Any | None:
    """Return the trainer that a ``LightningModule`` is attached to; None for any other module."""
    model = unwrap(model)
    if not is_lightning(model) or getattr(model, "fabric", None) is not None:
        return None
    try:
        return model.trainer
    except RuntimeError:  # not attached
        return None


def is_lightning(model: nn.Module) -> bool:
    """Say whether a module is a ``LightningModule``, under either name of the package; neither is imported."""
    return any(kind.__name__ == "LightningModule" for kind in type(unwrap(model)).__mro__)


def loss_in(output: Any) -> Tensor | None:
    """Return the loss of a model's output that has one by that name and with a gradient, else None."""
    if isinstance(output, Tensor):
        return None  # at every update: asking a tensor for what it lacks takes ten times as long
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return loss if isinstance(loss, Tensor) and loss.requires_grad else None


def is_share(kwargs: dict[str, Any]) -> bool:
    """Say whether a model that was called with these returns shares of an update's loss, not a mean of its own.

    So do models of transformers that are told the number of items in all parts of an update: they divide by it.
    """
    return kwargs.get("num_items_in_batch") is not None


def graph_of_forward(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> LayerGraph | None:
    """Take the layer graph from what a forward pass returned: from its loss if it has one, else from all of it.

    Where compiled functions hide layers from autograd, the pass is made once more, eagerly, on the same inputs; random
    numbers and buffers stay as they are.

    :return: the graph, or None if nothing in the output has a gradient
    :raises LayerGraphError: if the output depends on no trainable parameter
    """
    loss = loss_in(output)
    outputs = output if loss is None else loss
    roots = [tensor.grad_fn for tensor in tensors_in(outputs) if tensor.grad_fn is not None]
    if not roots:
        return None
    if walk_back(roots, {}).opaque and not isinstance(unwrap(module), torch.jit.ScriptModule):
        eager = _eager_output(unwrap(module), args, kwargs)
        loss = loss_in(eager)
        outputs = eager if loss is None else loss
    return layer_graph(module, outputs)


def _eager_output(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    devices = {p.device for p in module.parameters() if p.device.type not in ("cpu", "meta")}
    kind = next((device.type for device in devices), "cuda")
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with (
        torch.random.fork_rng([device for device in devices if device.type == kind], device_type=kind),
        torch.compiler.set_stance("force_eager"),
    ):
        return functional_call(module, buffers, args, kwargs)


def unscale(optimizer: torch.optim.Optimizer) -> None:
    """Undo a ``GradScaler``'s scale, which it leaves to fused optimizers to undo, in the pending gradients."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    inverse = scale.double().reciprocal().float()
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(inverse.to(parameter.grad.device))
    optimizer.grad_scale = None  # type: ignore[attr-defined]


def left_out(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether a fused optimizer will leave the coming update out, as its ``GradScaler`` found infinities.

    The scaler of an optimizer that is not fused reads that flag itself, and does not call the optimizer.
    """
    return bool(getattr(optimizer, "found_inf", False))


def without_gradient(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether no parameter has a gradient, as where a framework skips a batch: the update will change nothing."""
    for group in optimizer.param_groups:  # mostly the first has one
        for parameter in group["params"]:
            if parameter.grad is not None:
                return False
    return True
