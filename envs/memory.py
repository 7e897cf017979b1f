"""Memory of a process that trains many small runs."""

from __future__ import annotations

import ctypes

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees, for tensors to come.

    The temporaries of an update are large enough for glibc to give them back to the system each time, and to be asked
    for anew page by page: a third of the time of some runs. It keeps at most some hundred megabytes more.

    :return: whether it could be set; elsewhere than under glibc nothing is done
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = {_TRIM_THRESHOLD: 2**30, _TOP_PAD: 2**26, _MMAP_THRESHOLD: 2**25}
    return all([bool(mallopt(name, value)) for name, value in settings.items()])


def out_of_memory(error: BaseException | None) -> bool:
    """Say whether an error means that memory ran out, of a GPU or of this machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
