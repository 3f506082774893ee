"""A causal language model with its tokenizer: loading, chat rendering, padding, text blocks, output head, log-probs.

Knows nothing of steering and training. Nothing here changes the user's tokenizer or model.
"""

from __future__ import annotations

from steer_heal.lm.chat import takes_system
from steer_heal.lm.logprobs import completion_logprobs, length_batches
from steer_heal.lm.model import LM, position_ids
from steer_heal.lm.structure import Head, find_blocks, text_config, unwrap

__all__ = [
    "LM",
    "Head",
    "completion_logprobs",
    "find_blocks",
    "length_batches",
    "load",
    "position_ids",
    "takes_system",
    "text_config",
    "unwrap",
]


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    temperature: float | None = None,
    top_p: float | None = None,
) -> LM:
    """Load a causal model by name.

    Args:
        name: `pocket` (embedded), `tiny-random` (built in memory), a folder, or a hub id.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 for embedded models and on a CPU, else as stored.
        device: `cpu`, `cuda`, `mps`, or `auto`: the accelerator when there is one.
        attn_implementation: passed to transformers (`sdpa`, `eager`, `flash_attention_2`); None is its default.
        trust_remote_code: run Python code that comes with a hub model. Off unless asked for.
        temperature, top_p: of sampling, instead of those of the model's own generation config.

    Raises:
        InputError: unknown name, missing accelerator, unreachable hub, not a causal language model, no tokenizer,
            an impossible temperature or top_p.
    """
    from steer_heal.loading import load_pretrained, resolve_device, resolve_dtype, set_sampling

    where = resolve_device(device)
    if name == "tiny-random":
        from steer_heal.tiny import tiny_random

        model, tokenizer = tiny_random()
        set_sampling(model, temperature, top_p)
        return LM(model.to(where, resolve_dtype(dtype, where, embedded=True)).eval(), tokenizer, name)
    if name == "pocket":
        from steer_heal.pocket import WEIGHTS

        source, embedded = WEIGHTS, True
    else:
        source, embedded = name, False
    model, tokenizer = load_pretrained(
        source, name, resolve_dtype(dtype, where, embedded), where, attn_implementation, trust_remote_code
    )
    set_sampling(model, temperature, top_p)
    lm = LM(model, tokenizer, name)
    _ = lm.blocks_path  # an unsupported layout is an error here, not in the middle of a run
    return lm
