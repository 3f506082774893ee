"""What a model takes of the machine: how much memory is in use, and how many threads of the CPU.

Knows nothing of what the model does.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SHORT = ("OutOfMemoryError", "DefaultCPUAllocator", "allocate memory", "not enough memory")
MIB, GIB = 2**20, 2**30


ONE_THREAD = 20_000_000
"""Parameters under which threads wait for each other longer than they save; measured at 1.5 M, set by a guess above."""


def is_short(problem: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's on a CPU is a plain RuntimeError."""
    return isinstance(problem, MemoryError) or any(word in f"{type(problem)} {problem}" for word in SHORT)


def memory_in_use(device: str) -> str:
    """In words: on CUDA what torch holds, its peak, and the device's total; elsewhere what this process holds."""
    if not device.startswith("cuda"):
        return f"process {resident() / MIB:.0f} MiB"
    import torch

    held = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    total = torch.cuda.get_device_properties(device).total_memory
    one, peak, most = (value / GIB for value in (*held, total))
    return f"GPU {one:.1f} GiB allocated, peak {peak:.1f}, of {most:.0f}"


def resident() -> int:
    """Bytes of physical memory that this process holds; where the system does not tell, the most it has held."""
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text("ascii").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def choose_threads(model: nn.Module, threads: int = 0) -> None:
    """Set torch's CPU threads; 0: one for a model of under `ONE_THREAD` parameters, else torch's own choice."""
    import torch

    if threads or sum(p.numel() for p in model.parameters()) < ONE_THREAD:
        torch.set_num_threads(threads or 1)
