"""Sampling with a static key-value cache and compiled blocks; on a GPU a token of all rows is one replayed CUDA graph.

Steering acts as without: its hooks run between the blocks, and the graph holds what they launch. Knows nothing of
completions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from types import MethodType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, StaticCache
from transformers.utils import ModelOutput

from steer_heal.errors import InputError
from steer_heal.model import LM, text_config
from steer_heal.model.structure import is_quantised
from steer_heal.texts.decoding import Step
from steer_heal.texts.engines.transformers import TransformersEngine

BACKEND = "inductor"
"""torch's compiler that makes a block."""
CACHE_STEP = 64
"""A cache's length is a multiple of it, in tokens: few lengths, few compilations."""
SHAPES = 8
"""Compilations of one block that are kept, one for each number of rows and length of the cache until torch takes one
for all."""


class CompiledEngine(TransformersEngine):
    """Samples in this process, under a dose or not; rows that have ended stay until all have."""

    name = "compiled"

    def check(self, lm: LM) -> None:
        """Raises InputError for a model whose decoding cannot be compiled as a whole."""
        remedy = "--engine transformers"
        if not getattr(lm.base, "_can_compile_fullgraph", False):
            raise InputError(
                f"engine compiled: decoding of a {lm.base.config.model_type} model cannot be compiled: {remedy}"
            )
        if len(set(getattr(lm.base, "hf_device_map", {}).values())) > 1:
            raise InputError(f"engine compiled: {lm.name} lies on several devices, it takes one: {remedy}")
        if any(is_quantised(module) for module in lm.base.modules()):
            raise InputError(f"engine compiled: the packed weights of {lm.name} are not compiled: {remedy}")
        inner = [module for block in lm.blocks for module in block.modules() if module is not block]
        if any("forward" in block.__dict__ for block in lm.blocks) or any(hooked(module) for module in inner):
            raise InputError(f"engine compiled: hooks or a forward of another program within the blocks: {remedy}")

    def way(self, lm: LM, tokens: int) -> tuple[Step, dict[str, object]]:
        self.check(lm)
        length = -(-tokens // CACHE_STEP) * CACHE_STEP
        static = StaticCache(config=text_config(lm.base), max_cache_len=length)
        return CompiledStep(list(lm.blocks), lm.device.type == "cuda"), {"past_key_values": static}


def hooked(module: nn.Module) -> bool:
    """Whether something acts on a module's calls, which would be compiled in once and for all."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


class CompiledStep:
    """A forward pass for one more token of every row, of shapes that stay.

    The first call compiles and runs the blocks. With `captures`, on a GPU, the second one is captured, steering's hooks
    included, and from then on replayed: Python launches nothing any more, a token costs what its kernels cost.
    """

    def __init__(self, blocks: list[nn.Module], captures: bool):
        self.blocks, self.captures = blocks, captures
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, model: PreTrainedModel, ready: dict[str, object]) -> ModelOutput:
        """Logits of these inputs, in memory that the next call overwrites where it is a replay."""
        self.calls += 1
        passed = partial(model, **ready, return_dict=True)
        if self.graph is not None:
            for name, value in tensors(ready):
                given = self.given[name]
                if given.shape != value.shape:
                    raise RuntimeError(f"{name} has shape {tuple(value.shape)} and had {tuple(given.shape)}")
                given.copy_(value)
        elif self.calls == 1 or not self.captures:
            with compiled(self.blocks):
                return passed()
        else:
            self.given = dict(tensors(ready))
            self.graph = torch.cuda.CUDAGraph()
            with compiled(self.blocks), torch.cuda.graph(self.graph):
                self.output = passed()
        self.graph.replay()
        return self.output


def tensors(inputs: Mapping[str, object], within: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors among a model's inputs by their names, also those of a mask per kind of attention."""
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            yield within + name, value
        elif isinstance(value, dict):
            yield from tensors(value, f"{within}{name}.")


@cache
def compiled_forward(kind: type[nn.Module]) -> Callable:
    """Compiled without its hooks, once for all blocks of a kind."""
    return torch.compile(kind.forward, backend=BACKEND, fullgraph=True)


@contextmanager
def compiled(blocks: list[nn.Module]) -> Iterator[None]:
    """The blocks' own forward is compiled within; hooks on them stay outside of what is compiled."""
    limits = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), SHAPES * len(blocks))
    try:
        for block in blocks:
            block.forward = MethodType(compiled_forward(type(block)), block)
        # Steering keeps the compiler off, for what was compiled without its hooks; here they are outside.
        with torch.compiler.set_stance("default"), torch._dynamo.config.patch(limits):
            yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
