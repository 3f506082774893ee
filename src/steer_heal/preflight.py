"""Everything about a run's texts that can be known to fail before anything is sampled or written.

Knows nothing of rounds; `prepare` calls it once model and trait are there.
"""

from __future__ import annotations

from collections.abc import Sequence

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.lm import LM
from steer_heal.trait import Anchor, Trait


def check_texts(lm: LM, trait: Trait, anchors: Sequence[Anchor], config: RunConfig) -> None:
    """Every text fits the model's context with its system prompt and room for the reply, and its vocabulary.

    Raises InputError, which says which list the text stands in.
    """
    sampled = {
        "prompts": trait.prompts, "eval_prompts": trait.eval_prompts,
        "replay_prompts": trait.replay_prompts if config.replay else (), "anchors": [a.prompt for a in anchors],
    }  # fmt: skip
    for name, texts in sampled.items():
        for text in texts:
            _check(lm, trait, name, text, trait.neutral, config.max_new_tokens)
    if config.too_long == "error":
        for text in trait.contexts:
            for system in (trait.pos, trait.neg):
                _check(lm, trait, "contexts", text, system, 0)
    for name, items in (("items", trait.items), ("off_target", trait.off_target)):
        for item in items:
            _check(lm, trait, name, trait.question(item, item.choices), trait.pos, 0)


def _check(lm: LM, trait: Trait, name: str, text: str, system: str, room: int) -> None:
    try:
        n = len(lm.chat_ids(text, system or None))
    except InputError as problem:
        raise InputError(f"trait {trait.name}, {name}: {problem}") from problem
    if n + room > lm.context_length:
        raise InputError(
            f"trait {trait.name}, {name}: {text[:60]!r} has {n} tokens and a reply up to {room}, together over the "
            f"context of {lm.name} ({lm.context_length}): shorten it or lower --max-new-tokens"
        )
