"""Functions that compiled ones call without looking into them; apart, since Dynamo is loaded where one is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def opaque(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that a compiled function calls, as it calls one that ``torch.compiler.disable`` wraps.

    Called by no compiled function it costs next to nothing more, where that wrapper takes a few microseconds.
    """
    disabled = torch.compiler.disable(function)

    def called(*args: Any, **kwargs: Any) -> Any:
        return disabled(*args, **kwargs) if torch.compiler.is_dynamo_compiling() else function(*args, **kwargs)

    return called
