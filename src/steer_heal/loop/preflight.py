"""Everything about a run's texts and its barrier that can be known to fail before anything is sampled or written.

Knows nothing of rounds; `prepare` calls it once model and trait are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.healing.barriers.divergences import resolve_reg
from steer_heal.healing.config import KL_NAMES
from steer_heal.healing.lora import check_rank, target_names
from steer_heal.model import LM
from steer_heal.model.chat import PERSONA_SLOT
from steer_heal.texts.engines import engine
from steer_heal.trait import Anchor, Trait
from steer_heal.trait.trait import FALLBACK


def check_texts(lm: LM, trait: Trait, anchors: Sequence[Anchor], config: RunConfig) -> None:
    """Every text fits the model's context with its system prompt and room for the reply, and its vocabulary.

    Raises InputError, which says which list the text stands in.
    """
    sampled = {
        "prompts": trait.prompts,
        "eval_prompts": trait.eval_prompts,
        "replay_prompts": trait.replay_prompts if config.replay else (),
        "anchors": [a.prompt for a in anchors],
    }
    for name, texts in sampled.items():
        for text in texts:
            _check(lm, trait, name, text, trait.neutral, config.max_new_tokens)
    if config.too_long == "error":
        for text in trait.contexts:
            for system in (trait.pos, trait.neg):
                _check(lm, trait, "contexts", text, system, 0)
    short = min(trait.contexts, key=len)
    if lm.chat_ids(short, trait.pos) == lm.chat_ids(short, trait.neg):
        raise InputError(f"trait {trait.name}: both personas are the same tokens for {lm.name}: write them otherwise")
    asked = [("items", trait, trait.items), ("off_target", trait, trait.off_target)]
    asked += [(one, replace(trait, choice_template=one), trait.items) for one in trait.held_out_choice_templates]
    for name, asking, items in asked:
        for item in items:
            _check(lm, trait, name, asking.question(item, item.choices), trait.pos, 0)


def check_fit(lm: LM, trait: Trait, config: RunConfig) -> None:
    """Raises InputError for a story trait on a chat model or the other way round, a LoRA that fits no weight, and an
    engine that cannot sample the model."""
    engine(config.engine).check(lm)
    check_rank(lm, config.rank)
    target_names(lm, config.heal_config(config.seed))
    tells, chats = PERSONA_SLOT in trait.prompts[0], bool(getattr(lm.tokenizer, "chat_template", None))
    if tells and chats:
        what = f"has {PERSONA_SLOT} in its texts, for base models, and {lm.name} is a chat model"
        raise InputError(f"trait {trait.name} {what}: take a trait of questions, such as {FALLBACK}")
    if not tells and not chats:
        what = f"has texts for chat models, and {lm.name} has no chat template"
        raise InputError(f"trait {trait.name} {what}: put {PERSONA_SLOT} into its texts (docs/how-to/trait.md)")


def check_barrier(lm: LM, config: RunConfig) -> None:
    """A user's own divergence gives a value per position with a gradient, on two positions of random logits.

    Raises InputError when it does not, or raises: found here, not after an hour of sampling.
    """
    if callable(config.reg) or config.reg not in ("nll", *KL_NAMES):
        divergence = resolve_reg(config.reg)
        width = lm.model.get_output_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        logp, logq = (torch.randn(2, width, generator=generator).log_softmax(-1).to(lm.device) for _ in "pq")
        divergence.gradient(logp, logp.exp(), logq)


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
