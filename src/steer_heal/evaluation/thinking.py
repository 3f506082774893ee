"""Thinking before the answer: greedy tokens up to a closing marker, written for the model that does not reach it.

Knows nothing of items and of what is asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import StoppingCriteriaList

from steer_heal.errors import InputError
from steer_heal.model import LM, evaluating
from steer_heal.processes import count, each, told
from steer_heal.texts.sampling import MODELS_OWN

Ids = tuple[int, ...]
CLOSING = "</think>"
AFTER = "\n\n"
"""What stands between marker and answer where the template does not say."""
TAIL = 24
"""Tokens in which a new marker is looked for after every step: more than any marker has."""


@dataclass(frozen=True)
class Thinking:
    """At most `tokens` tokens of thinking, which ends with the text `closing`."""

    tokens: int
    closing: str = CLOSING

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InputError(f"{self.tokens} thinking tokens: give at least 1")
        if not self.closing.strip():
            raise InputError("the marker that closes thinking is empty: give the model's own, such as </think>")


def around(lead: str, closing: str) -> tuple[str, str]:
    """(text before the thinking, text between marker and answer) from what a template puts in front of an answer.

    A template that writes an empty block ("<think>\\n\\n</think>\\n\\n") says how it opens; without one the model opens
    its thinking itself, or the generation prompt has done so.
    """
    before, found, after = lead.partition(closing)
    if not found:
        return "", lead or AFTER
    opened = before.rstrip()
    return opened + before[len(opened) :][:1], after


@torch.no_grad()
def think(lm: LM, prompts: Sequence[Ids], thinking: Thinking, lead: str = "") -> tuple[list[Ids], list[bool]]:
    """Each prompt with its thoughts, closed, up to where the answer begins; and whether the model closed them itself.

    Greedy, so deterministic. A model that ends its reply instead of closing has not closed. Raises InputError when a
    prompt leaves no room for the thinking.
    """
    opening, after = around(lead, thinking.closing)
    opened = [(*prompt, *_encode(lm, opening)) for prompt in prompts]
    longest = max(map(len, opened)) + thinking.tokens
    if longest >= lm.context_length:
        raise InputError(
            f"a question of {longest - thinking.tokens} tokens and {thinking.tokens} of thinking exceed the context of "
            f"{lm.name} ({lm.context_length}): lower --eval-think-tokens"
        )
    out: list[Ids] = [()] * len(prompts)
    closed = [False] * len(prompts)
    order = sorted(range(len(opened)), key=lambda i: (len(opened[i]), i))
    rows = min(told(lambda: lm.rows_that_fit(longest)), -(-len(order) // count()))
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]
    found = each(batches, lambda some: _greedy(lm, [opened[i] for i in some], thinking))
    for i, thought in zip(order, itertools.chain.from_iterable(found), strict=True):
        end = _closed_at(lm, thought, thinking.closing)
        closed[i] = end is not None
        shut = () if closed[i] else _encode(lm, "\n" + thinking.closing)
        out[i] = (*opened[i], *thought[:end], *shut, *_encode(lm, after))
    return out, closed


def _greedy(lm: LM, prompts: Sequence[Ids], thinking: Thinking) -> list[Ids]:
    """Thoughts, each up to its marker, its end of reply (left out) or the limit; what follows may be padding."""
    batch = lm.pad_left(prompts)
    width = batch["input_ids"].shape[1]

    def marked(ids: Int[Tensor, "row position"], scores: object, **_: object) -> Bool[Tensor, " row"]:
        texts = [_text(lm, row) for row in ids[:, max(width, ids.shape[1] - TAIL) :].tolist()]
        return torch.tensor([thinking.closing in text for text in texts], device=ids.device)

    options = {**MODELS_OWN.options(greedy=True), "repetition_penalty": 1.0, "max_new_tokens": thinking.tokens}
    ends = {"pad_token_id": lm.pad_id, "eos_token_id": sorted(lm.eos_ids) or None}
    with evaluating(lm.base):
        ids = lm.model.generate(**batch, **options, **ends, stopping_criteria=StoppingCriteriaList([marked]))
    return [_until_end(row, lm) for row in ids[:, width:].tolist()]


def _until_end(row: list[int], lm: LM) -> Ids:
    end = next((i for i, token in enumerate(row) if token in lm.eos_ids), len(row))
    return tuple(row[:end])


def _closed_at(lm: LM, thought: Ids, closing: str) -> int | None:
    """Number of tokens up to and including the marker, None without one."""
    if closing not in _text(lm, thought):
        return None
    return next(n for n in range(1, len(thought) + 1) if closing in _text(lm, thought[:n]))


def _text(lm: LM, ids: Sequence[int]) -> str:
    return lm.tokenizer.decode(list(ids), skip_special_tokens=False)


def _encode(lm: LM, text: str) -> Ids:
    return tuple(lm.tokenizer.encode(text, add_special_tokens=False)) if text else ()
