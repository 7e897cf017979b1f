"""The forward hook of a scheduler, and how tracers (Dynamo, export, TorchScript) get past it."""

from __future__ import annotations

import copy
import sys
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gns.graph.layer_graph import unwrap
from gns.scheduler.opaque import opaque

if TYPE_CHECKING:
    from gns.scheduler.scheduler import GNSScheduler

_PREPARE = "__prepare_scriptable__"  # torch.jit.script calls what a module has by this name, and scripts the answer


class OutputHook:
    """A module's forward hook, which a copy of the module carries along without effect.

    :param scheduler: told of every output; None for a hook without effect
    """

    def __init__(self, scheduler: GNSScheduler | None = None) -> None:
        self._scheduler = weakref.ref(scheduler) if scheduler is not None else None
        self._busy = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Pass on what the module returned; nothing of what an exported or traced module returns."""
        if not (torch.compiler.is_exporting() or torch.jit.is_tracing()):
            _pass_on(self, module, args, kwargs, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return OutputHook, ()

    @property
    def is_dead(self) -> bool:
        """Whether its scheduler is gone, or it is a copy."""
        return self._scheduler is None or self._scheduler() is None


@opaque  # within a compiled model it ends the compiled part
def _pass_on(hook: OutputHook, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Tell a hook's scheduler what the module returned."""
    scheduler = hook._scheduler() if hook._scheduler is not None else None
    if scheduler is None or hook._busy:
        return
    hook._busy = True  # a forward pass made to take the graph comes here as well
    try:
        scheduler._after_forward(args, kwargs, output, module)
    finally:
        hook._busy = False


class _WithoutHook:
    """Gives ``torch.jit.script``, which compiles hooks, the module without ours; refers to the module weakly."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)

    def __call__(self) -> nn.Module:
        module = self._module()
        assert module is not None
        twin = copy.copy(module)  # with the same parameters and submodules
        for name in ("_forward_hooks", "_forward_hooks_with_kwargs"):
            mine = module._forward_hooks
            kept = {key: hook for key, hook in vars(module)[name].items() if not isinstance(mine.get(key), OutputHook)}
            vars(twin)[name] = type(vars(module)[name])(kept)
        vars(twin).pop(_PREPARE, None)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> _WithoutHook:
        module = self._module()
        assert module is not None
        return _WithoutHook(copy.deepcopy(module, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _WithoutHook, (self._module(),)


class HookHandle:
    """A scheduler's hook on a module, to be removed."""

    def __init__(self, model: nn.Module, scheduler: GNSScheduler | None) -> None:
        for key in [key for key, hook in model._forward_hooks.items() if isinstance(hook, OutputHook) and hook.is_dead]:
            del model._forward_hooks[key]
            model._forward_hooks_with_kwargs.pop(key, None)
        forget_compiled(model)
        self._model = weakref.ref(model)
        self._handle = model.register_forward_hook(OutputHook(scheduler), with_kwargs=True)
        if _PREPARE not in vars(model) and not hasattr(model, _PREPARE):
            vars(model)[_PREPARE] = _WithoutHook(model)

    def remove(self) -> None:
        """Take the hook off, and with the last one what was added beside it."""
        self._handle.remove()
        model = self._model()
        if model is None or any(isinstance(hook, OutputHook) for hook in model._forward_hooks.values()):
            return
        if isinstance(vars(model).get(_PREPARE), _WithoutHook):
            del vars(model)[_PREPARE]


def forget_compiled(model: nn.Module) -> None:
    """Let Dynamo compile a model of a class that it has compiled before: its guards do not look at hooks.

    Without this, a model that gets a hook runs what was compiled for another that had none.
    """
    if "torch._dynamo" not in sys.modules:
        return
    try:
        from torch._dynamo.eval_frame import _debug_get_cache_entry_list, reset_code
        from torch._dynamo.external_utils import wrap_inline

        # A module is compiled from its forward; one of torch.nn's, which Dynamo does not enter by itself, from here.
        frames = [type(unwrap(model)).forward.__code__]
        frames += [code for code in wrap_inline.__code__.co_consts if hasattr(code, "co_code")]
        for code in frames:
            if _debug_get_cache_entry_list(code):
                reset_code(code)
    except (ImportError, AttributeError):  # another version keeps them elsewhere
        torch.compiler.reset()
