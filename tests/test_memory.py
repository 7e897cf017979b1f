"""Memory that is freed stays with the process, where glibc can be told so."""

import platform
import subprocess
import sys

COUNT = """
import resource
from envs.memory import keep_freed_memory
import torch
torch.set_num_threads(1)
kept = keep_freed_memory() if {keep} else False
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    tensors = [torch.ones(2_000_000) for _ in range(6)]; del tensors
before = faults()
for _ in range(20):
    tensors = [torch.ones(2_000_000) for _ in range(6)]; del tensors
print(int(kept), faults() - before)
"""


def page_faults(keep: bool) -> tuple[bool, int]:
    command = [sys.executable, "-c", COUNT.format(keep=keep)]
    kept, count = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return kept == "1", int(count)


def test_large_tensors_are_made_without_asking_the_system_for_memory_again():
    kept, count = page_faults(True)
    assert kept is (platform.libc_ver()[0] == "glibc")
    if kept:  # asked for anew, every page of every tensor would be one
        assert count < 0.05 * 20 * 6 * 2_000_000 * 4 / 4096
