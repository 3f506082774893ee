"""Sampling through vLLM, in a process of its own beside the model; plain weights only.

Knows nothing of completions. vLLM draws otherwise than the library's own sampling: the same seed gives another text.
"""

from __future__ import annotations

import gc
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.utils import logging

from steer_heal.errors import InputError
from steer_heal.model import LM
from steer_heal.model.structure import fingerprint
from steer_heal.steering import SteeringVector
from steer_heal.texts.engines.protocol import Cut, Ids, Row
from steer_heal.texts.sampling import Sampling

ROWS = 1024
"""Rows handed over at once, for vLLM to schedule; when a run is stopped, so many are sampled again."""
CACHE = 2**30
"""Bytes of vLLM's key-value cache on a CPU, as long as the environment has no VLLM_CPU_KVCACHE_SPACE."""
CACHE_SHARE = 0.4
"""Share of the accelerator's memory that is free, less a second copy of the weights, for that cache; heal has the
rest."""
CPU_CONTEXT = 4096
"""Longest prompt and reply on a CPU, in tokens: vLLM cannot take a prompt that has a seed in pieces there."""
NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
WARPERS: dict[type, str] = {
    TemperatureLogitsWarper: "temperature",
    TopKLogitsWarper: "top_k",
    TopPLogitsWarper: "top_p",
    MinPLogitsWarper: "min_p",
}
"""What transformers does to logits, by the parameter that both have."""


class VllmEngine:
    """One vLLM for one model. Started by the first call; weights that changed reach it through a folder, no restart."""

    name = "vllm"
    steers = False

    def __init__(self) -> None:
        self._stop()

    def check(self, lm: LM) -> None:
        """Raises InputError for weights that are not plain: an adapter beside them, or quantised ones."""
        if any("lora_" in name for name, _ in lm.base.named_parameters()):
            raise InputError("engine vllm samples plain weights, and an adapter lies beside these: merge it first")
        if getattr(lm.base.config, "quantization_config", None) is not None:
            raise InputError(f"engine vllm takes no quantised weights from {lm.name}: --engine transformers")

    def rows(self, lm: LM, tokens: int) -> int:
        return ROWS

    def sample(
        self,
        lm: LM,
        rows: Sequence[Row],
        vector: SteeringVector | None,
        max_new_tokens: int,
        sampling: Sampling,
        tick: Callable[[int, int], None],
    ) -> list[Ids]:
        """See `Engine`. Raises InputError for a model or a way to sample that vLLM cannot take, and a dose."""
        if any(row.dose for row in rows):
            raise InputError("engine vllm samples plain weights only: rows under a dose go through transformers")
        asked = parameters(lm, rows[0], max_new_tokens, sampling)
        self._follow(lm)
        from vllm import SamplingParams

        longest, limit = max(len(row.prompt_ids) for row in rows) + max_new_tokens, self._llm.model_config.max_model_len
        if longest > limit:
            raise InputError(
                f"engine vllm takes {limit} tokens here, a prompt and its reply may have {longest}: lower "
                "--max-new-tokens, or use --engine transformers"
            )
        prompts = [{"prompt_token_ids": list(row.prompt_ids)} for row in rows]
        try:
            done = self._llm.generate(prompts, [SamplingParams(seed=row.seed, **asked) for row in rows], use_tqdm=False)
        except KeyboardInterrupt as stop:
            self._stop()  # it still has the requests, and would answer them at the next call
            raise Cut([()] * len(rows)) from stop
        return [tuple(one.outputs[0].token_ids) for one in done]

    def _follow(self, lm: LM) -> None:
        """vLLM runs, and has the weights that the model has now."""
        now = fingerprint(lm.base)
        if self._model() is not lm.base:
            self._stop()
            self.check(lm)
            self._folder = tempfile.TemporaryDirectory(prefix="steer-heal-engine-")
            save(lm.base, self._folder.name)
            self._llm = started(lm, self._folder.name)
            self._model = weakref.ref(lm.base)
        elif now != self._weights:
            save(lm.base, self._folder.name)
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": self._folder.name})
        self._weights = now

    def _stop(self) -> None:
        self._llm = self._folder = self._weights = None
        self._model: Callable[[], nn.Module | None] = lambda: None
        gc.collect()  # its process ends with the object, which refers to itself


def parameters(lm: LM, row: Row, max_new_tokens: int, sampling: Sampling) -> dict[str, object]:
    """Arguments of vLLM's SamplingParams but the seed, for what transformers' `generate` would do to the logits.

    `generate` itself is asked, so that the model's generation config counts as it does there. Raises InputError for
    something in it that vLLM does not have by the same name.
    """
    found: list[object] = []

    def look(model: nn.Module, input_ids: torch.Tensor, logits_processor: LogitsProcessorList, **rest) -> torch.Tensor:
        found.extend(logits_processor)
        return input_ids

    greedy = row.seed is None
    options = {"max_new_tokens": 1, "repetition_penalty": 1.0, "pad_token_id": lm.pad_id, **sampling.options(greedy)}
    lm.model.generate(**lm.pad_left([row.prompt_ids]), **options, custom_generate=look)
    if other := [type(one).__name__ for one in found if type(one) not in WARPERS]:
        raise InputError(
            f"engine vllm has no {other[0]}, which the generation config of {lm.name} asks for: --engine transformers"
        )
    given = {name: getattr(one, name) for one in found for name in [WARPERS[type(one)]]}
    return {
        **NEUTRAL,
        **({"temperature": 0.0} if greedy else given),
        "max_tokens": max_new_tokens,
        "stop_token_ids": sorted(lm.eos_ids),
        "detokenize": False,
    }


def save(model: nn.Module, folder: str) -> None:
    """The model as a transformers folder, without a bar of progress."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()


def started(lm: LM, folder: str):
    """vLLM with the model of a folder. Raises InputError when it does not start."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm import LLM

    options = {
        "model": str(Path(folder)),
        "skip_tokenizer_init": True,  # ids go in and come out
        "dtype": str(lm.dtype).removeprefix("torch."),
        "max_model_len": -1,  # all of the model's context, or what of it the cache takes
        "enable_prefix_caching": False,  # a reply must not hang on what was asked before
        "generation_config": "vllm",
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    if lm.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(lm.device)
        weights = sum(p.numel() * p.element_size() for p in lm.base.parameters())
        options["kv_cache_memory_bytes"] = max(CACHE, int(CACHE_SHARE * (free - weights)))
    else:
        options |= {"max_model_len": min(CPU_CONTEXT, lm.context_length), "max_num_batched_tokens": CPU_CONTEXT}
        options |= {"enable_chunked_prefill": False, "enforce_eager": True}  # compiling takes longer than it saves
        if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            options["kv_cache_memory_bytes"] = CACHE
    try:
        return LLM(**options)
    except Exception as problem:
        said = (str(problem) or type(problem).__name__).splitlines()[0][:200]
        raise InputError(
            f"engine vllm does not start with {lm.name} ({said}): see what it printed, or use --engine transformers"
        ) from problem
