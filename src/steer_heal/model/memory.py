"""What a model takes of the machine: memory in use, weights packed into fewer bits, threads of the CPU.

Knows nothing of what the model does.
"""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from steer_heal.errors import library
from steer_heal.processes import count, each

if TYPE_CHECKING:
    import torch
    from torch import nn

LoadIn = Literal["4bit", "8bit"]
PACKED = {"4bit": 0.5, "8bit": 1.0}
"""Bytes of a packed weight."""

SHORT = ("OutOfMemoryError", "DefaultCPUAllocator", "allocate memory", "not enough memory")
MIB, GIB = 2**20, 2**30


ONE_THREAD = 20_000_000
"""Parameters from which two threads pay: .6 of a step's time at 21 M.

Below, what they save on idle cores they lose many times over on busy ones.
"""


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


def free_memory(device: str) -> float:
    """Bytes that are free on a CUDA device, else in the machine; infinite where the system does not tell."""
    if device.startswith("cuda"):
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    table = Path("/proc/meminfo")
    if not table.is_file():
        return float("inf")
    rows = dict(line.split(":", 1) for line in table.read_text("ascii").splitlines())
    return 1024.0 * int(rows["MemAvailable"].split()[0])


def free_for(model: nn.Module) -> float:
    """Bytes that a model's work may plan with, the same in all processes: the least that is free for any of them."""
    devices = {str(parameter.device) for parameter in model.parameters()}
    sharing = 1 if all(device.startswith("cuda") for device in devices) else count()  # one machine's memory
    return min(each(range(count()), lambda _: sum(map(free_memory, devices)) / sharing))


def kept_for_backward(forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps of a forward pass for its backward pass, beside parameters.

    Nothing is kept while it is counted, so that it takes no more memory than a pass without gradients.
    """
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef

    sizes: dict[StorageWeakRef, int] = {}

    def pack(tensor: torch.Tensor) -> None:
        if not isinstance(tensor if tensor._base is None else tensor._base, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            sizes[StorageWeakRef(storage)] = storage.nbytes()  # several views of one count once

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda _: None):
        forward()
    return sum(sizes.values())


def packing(load_in: LoadIn, dtype: torch.dtype | str) -> object:
    """How transformers is to pack a model's linear layers with bitsandbytes; its head and embeddings stay as they are.

    4bit is NF4 with sums in `dtype`, bfloat16 for auto (Dettmers et al. 2023, arXiv 2305.14314). 8bit is LLM.int8
    (2208.07339) without its outlier columns: they are picked over a whole batch, so that a row's reply would hang on
    the others. Raises InputError where bitsandbytes is not installed.
    """
    import torch
    from transformers import BitsAndBytesConfig

    library("bitsandbytes", "'steer-heal[quantized]'")
    if load_in == "8bit":
        # It says in every pass of every layer that activations are read as float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    sums = torch.bfloat16 if dtype == "auto" else dtype
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=sums)


def choose_threads(model: nn.Module, threads: int = 0) -> None:
    """Set torch's CPU threads; 0: one for a model of under `ONE_THREAD` parameters, else torch's own choice."""
    import torch

    if threads or sum(p.numel() for p in model.parameters()) < ONE_THREAD:
        torch.set_num_threads(threads or 1)
