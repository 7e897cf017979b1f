"""Parameters of models sharded by ``fully_shard`` (FSDP2): during a forward pass others stand in their place."""

from __future__ import annotations

import sys

from torch import nn

from gns.errors import LayerGraphError


def refuse_flat_parameters(model: nn.Module) -> None:
    """Pass a model that is not wrapped by FSDP1, which makes one flat parameter of many layers.

    :raises LayerGraphError: if it is
    """
    if "torch.distributed.fsdp" not in sys.modules:
        return
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise LayerGraphError(
            "The model is wrapped by FullyShardedDataParallel (FSDP1), whose flat parameters have no layers. Expected "
            "a model sharded by torch.distributed.fsdp.fully_shard (FSDP2), which keeps every parameter."
        )


def sharded_of_unsharded(model: nn.Module) -> dict[int, nn.Parameter] | None:
    """Return the sharded parameter of every one that stands in for it during a forward pass, by the latter's ``id``.

    Those that stand in are the leaves of autograd's graph; the model has the others before and after, and the optimizer
    holds them. There is no public way from one to the other.

    :return: empty for a model that is not sharded; None if this version of PyTorch keeps them in another place
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)
    found: dict[int, nn.Parameter] = {}
    if kind is None:
        return found
    try:
        for module in model.modules():
            if isinstance(module, kind):
                state = module._get_fsdp_state()
                groups = getattr(state, "_fsdp_param_groups", None)
                for group in [state._fsdp_param_group] if groups is None else groups:
                    for parameter in group.fsdp_params if group is not None else ():
                        for name in ("_unsharded_param", "_sharded_post_forward_param"):
                            if (other := getattr(parameter, name, None)) is not None:
                                found[id(other)] = parameter.sharded_param
    except AttributeError:
        return None
    return found
