"""A causal language model with its tokenizer: loading, chat rendering, padding, text blocks, output head, log-probs.

Knows nothing of steering and training. Nothing here changes the user's tokenizer or model.
"""

from typing import TYPE_CHECKING

from steer_heal.lazy import lazily

if TYPE_CHECKING:
    from steer_heal.model.chat import takes_system
    from steer_heal.model.depth import pick_layers
    from steer_heal.model.language_model import LM, GivenLM, as_lm, check_head, position_ids, verified, wrap
    from steer_heal.model.loading import load
    from steer_heal.model.logprobs import by_batch, completion_logprobs, length_batches
    from steer_heal.model.memory import memory_in_use
    from steer_heal.model.structure import Head, evaluating, find_blocks, text_config, unwrap
    from steer_heal.model.tiny import tiny_random, tiny_tokenizer

__all__ = [
    "LM",
    "GivenLM",
    "Head",
    "as_lm",
    "by_batch",
    "check_head",
    "completion_logprobs",
    "evaluating",
    "find_blocks",
    "length_batches",
    "load",
    "memory_in_use",
    "pick_layers",
    "position_ids",
    "takes_system",
    "text_config",
    "tiny_random",
    "tiny_tokenizer",
    "unwrap",
    "verified",
    "wrap",
]

__getattr__, __dir__ = lazily(__name__)
