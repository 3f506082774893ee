"""Forced choice: log-probabilities of a set of answers right after the prompt, in every order, debiased.

Knows nothing of sampled text, of traits' checkers and of statistics.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from steer_heal.errors import InputError
from steer_heal.evaluation.thinking import Thinking, think
from steer_heal.model import LM, by_batch
from steer_heal.model.chat import templated
from steer_heal.trait import Item, Trait
from steer_heal.trait.items import CONTINUATION

FLOOR = -100.0
"""Log-probability (nats) that stands for "impossible" and for NaN, so that a broken model gets numbers, bad ones."""

Ids = tuple[int, ...]


@dataclass(frozen=True)
class ChoiceRow:
    """One item's result.

    Attributes:
        logp: debiased log-probability of each choice in nats, normalised over the choices.
        by_order: log-odds of the trait in each order of the choices, in nats.
        log_odds: debiased log-odds of the trait, in nats: log P(trait choices) - log P(others), from `logp`.
        mass: un-normalised probability of all choices together, mean over orders. A coherence floor and no more.
        closed: share of the orders in which the model closed its thinking; None without thinking.
    """

    id: str
    category: str
    choices: tuple[str, ...]
    trait: tuple[str, ...]
    logp: tuple[float, ...]
    by_order: tuple[float, ...]
    log_odds: float
    mass: float
    closed: float | None = None

    @property
    def probability(self) -> float:
        """Debiased probability of the trait choices, normalised over the choices."""
        return 1 / (1 + math.exp(-self.log_odds))


def orders(n: int, named: bool = True) -> list[tuple[int, ...]]:
    """The rotations of n choices: each stands once in each place, so any bias by place cancels (n = 2: both orders).

    One order where the question does not name its choices: they have no place.
    """
    return [tuple((i + shift) % n for i in range(n)) for shift in range(n if named else 1)]


def score_items(
    lm: LM,
    trait: Trait,
    items: Sequence[Item],
    system: str | None,
    batch_tokens: int | None = None,
    thinking: Thinking | None = None,
    beginnings: bool = False,
) -> tuple[ChoiceRow, ...]:
    """Score every item in every rotation of its choices (once, if they are continuations); deterministic, no sampling.

    Per choice the log-probabilities of the orders are averaged and renormalised, which for two choices is the average
    of the log-odds: additive preference for a place cancels exactly. With `thinking` the model first thinks, greedily,
    in every order. With `beginnings` a choice counts from the tokens that set it apart from the others (a reply that
    starts with "sanct" can only mean one of them): many answers cost one forward pass then. Raises InputError for a
    choice that the tokenizer does not know and for two choices that are the same tokens.
    """
    slot, named = AnswerSlot.of(lm), trait.choice_template != CONTINUATION
    spelled = {choice: slot.forms(lm, choice) for choice in dict.fromkeys(c for item in items for c in item.choices)}
    prompts: list[Ids] = []
    forms: list[list[list[Ids]]] = []
    for item in items:
        known = _distinct_forms(item, [spelled[choice] for choice in item.choices])
        known = set_apart(known) if beginnings else known
        for order in orders(len(item.choices), named):
            question = trait.question(item, [item.choices[i] for i in order])
            prompts.append((*lm.chat_ids(question, system), *(() if thinking else slot.lead)))
            forms.append(known)
    closed: list[bool | None] = [None] * len(prompts)
    if thinking:
        prompts, closed = think(lm, prompts, thinking, slot.text)
    scored = iter(zip(choice_logprobs(lm, prompts, forms, batch_tokens), closed, strict=True))
    return tuple(_row(item, [next(scored) for _ in orders(len(item.choices), named)]) for item in items)


def _row(item: Item, asked: Sequence[tuple[list[float], bool | None]]) -> ChoiceRow:
    """An item from its orders: log-probability of each choice in nats, and whether thinking was closed."""
    logp: Float[np.ndarray, "order choice"] = np.array([found for found, _ in asked])
    closed = [done for _, done in asked if done is not None]
    chosen = np.array([choice in item.trait for choice in item.choices])
    mean = logp.mean(0)
    mean = mean - np.logaddexp.reduce(mean)
    by_order = np.logaddexp.reduce(logp[:, chosen], 1) - np.logaddexp.reduce(logp[:, ~chosen], 1)
    log_odds = np.logaddexp.reduce(mean[chosen]) - np.logaddexp.reduce(mean[~chosen])
    mass = float(np.exp(logp).sum(1).mean())
    figures = (tuple(map(float, mean)), tuple(map(float, by_order)), float(log_odds), mass)
    share = sum(closed) / len(closed) if closed else None
    return ChoiceRow(item.id, item.category, item.choices, item.trait, *figures, share)


@dataclass(frozen=True)
class AnswerSlot:
    """Where an answer begins, found by rendering a finished chat and comparing it with the generation prompt.

    Attributes:
        lead: token ids the template puts between the assistant tag and the answer (an empty thinking block).
        before: rendered text of a small chat up to the answer. space: blank the template writes in front of it.
        text: `lead` as text.
    """

    lead: Ids
    before: str
    space: str
    text: str = ""

    @staticmethod
    def of(lm: LM) -> AnswerSlot:
        tokenizer = lm.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            return AnswerSlot((), "a", " ")
        turns = [{"role": "user", "content": "a"}]
        before = templated(tokenizer, turns, assistant=True)
        whole = templated(tokenizer, [*turns, {"role": "assistant", "content": "qzx"}])
        if not whole.startswith(before) or "qzx" not in whole[len(before) :]:
            return AnswerSlot((), before, "")
        lead = whole[len(before) :].split("qzx")[0]
        text = lead.rstrip(" ")
        tagged = before + text
        return AnswerSlot(_continuation(tokenizer, before, text), tagged, lead[len(text) :], text)

    def forms(self, lm: LM, choice: str) -> list[Ids]:
        """Token sequences that spell a choice at the start of a reply: as written first, then with the other initial.

        Models answer "Help" where the question said "help"; both are counted. A form with an unknown token is none.
        """
        texts = [choice, choice[:1].swapcase() + choice[1:]]
        found = [_continuation(lm.tokenizer, self.before, self.space + text) for text in texts]
        unknown = lm.tokenizer.unk_token_id
        found = [ids for ids in dict.fromkeys(found) if ids and unknown not in ids]
        if not found:
            raise InputError(f"the tokenizer of {lm.name} does not know the choice {choice!r}: use another word")
        return found


def _continuation(tokenizer, before: str, text: str) -> Ids:
    """Token ids of `text` as they come out right after `before`."""
    if not text:
        return ()
    start = tokenizer.encode(before, add_special_tokens=False)
    whole = tokenizer.encode(before + text, add_special_tokens=False)
    if whole[: len(start)] == start:
        return tuple(whole[len(start) :])
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _distinct_forms(item: Item, forms: list[list[Ids]]) -> list[list[Ids]]:
    """Forms that belong to one choice only; a choice's own spelling wins over another's changed initial."""
    if len({some[0] for some in forms}) < len(forms):
        raise InputError(f"item {item.id!r}: two of the choices {list(item.choices)} are the same tokens: reword one")
    count = Counter(form for some in forms for form in some)
    return [[form for form in some if count[form] == 1 or form == some[0]] for some in forms]


def set_apart(forms: Sequence[Sequence[Ids]]) -> list[list[Ids]]:
    """Each form cut after the first token at which it differs from every form of the other choices."""

    def shared(one: Ids, other: Ids) -> int:
        return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    def cut(form: Ids, others: Sequence[Ids]) -> Ids:
        return form[: 1 + max((shared(form, other) for other in others), default=0)]

    others = [[form for j, some in enumerate(forms) if j != i for form in some] for i in range(len(forms))]
    return [list(dict.fromkeys(cut(form, others[i]) for form in some)) for i, some in enumerate(forms)]


@torch.no_grad()
def choice_logprobs(
    lm: LM, prompts: Sequence[Ids], forms: Sequence[Sequence[Sequence[Ids]]], batch_tokens: int | None = None
) -> list[list[float]]:
    """Log-probability (nats, un-normalised) of every choice of every prompt, a choice being the union of its forms.

    One forward per batch of rows sorted by length. Forms that differ in their last token only share a row, so
    one-token choices cost one row per prompt and the output head is applied to its last position alone.
    """
    rows: dict[tuple[int, Ids], list[Ids]] = {}
    for i, choices in enumerate(forms):
        for form in dict.fromkeys(form for choice in choices for form in choice):
            rows.setdefault((i, form[:-1]), []).append(form)
    keys = list(rows)
    logp: list[dict[Ids, float]] = [{} for _ in prompts]

    def last(batch: list[int]) -> list[list[float]]:
        some = [keys[j] for j in batch]
        return _last_logprobs(lm, [(prompts[i], stem, [f[-1] for f in rows[i, stem]]) for i, stem in some])

    found = by_batch(lm, [len(prompts[i]) + len(stem) for i, stem in keys], last, batch_tokens)
    for (i, stem), row in zip(keys, found, strict=True):
        for form, value in zip(rows[i, stem], row, strict=True):
            logp[i][form] = value
    return [
        [_union([event_logprob(form, scores) for form in choice]) for choice in choices]
        for choices, scores in zip(forms, logp, strict=True)
    ]


def _last_logprobs(lm: LM, rows: Sequence[tuple[Ids, Ids, list[int]]]) -> list[list[float]]:
    """For each (prompt, stem, last tokens): log P(stem, last | prompt) of each last token."""
    depth = max(len(stem) for _, stem, _ in rows)
    width = max(len(lasts) for _, _, lasts in rows)
    place = torch.full((len(rows), depth + width), depth)
    token = torch.zeros((len(rows), depth + width), dtype=torch.long)
    for j, (_, stem, lasts) in enumerate(rows):
        for k, value in enumerate(stem):
            place[j, k], token[j, k] = depth - len(stem) + k, value
        token[j, depth : depth + len(lasts)] = torch.tensor(lasts)
    hidden = lm.hidden_states(lm.pad_left([(*prompt, *stem) for prompt, stem, _ in rows]))
    logits = lm.head(hidden[:, -depth - 1 :])
    place, token = place.to(logits.device), token.to(logits.device)
    index = torch.arange(len(rows), device=logits.device)[:, None]
    picked = logits[index, place, token] - logits.logsumexp(-1).gather(1, place)
    picked = picked.double().nan_to_num(FLOOR, 0.0, FLOOR).clamp_min(FLOOR).cpu()
    out = []
    for j, (_, stem, lasts) in enumerate(rows):
        before = picked[j, : len(stem)].sum()
        out.append((before + picked[j, depth : depth + len(lasts)]).clamp_min(FLOOR).tolist())
    return out


def event_logprob(form: Ids, scores: dict[Ids, float]) -> float:
    """log P(the reply starts with `form` and not with a longer one of `scores`): choices stay disjoint events.

    "act" as tokens (act) and "active" as (act, ive) overlap: P(act) must not count "active".
    """
    longer = [other for other in scores if len(other) > len(form) and other[: len(form)] == form]
    nearest = [x for x in longer if not any(y != x and x[: len(y)] == y for y in longer)]
    if not nearest:
        return scores[form]
    left = math.exp(scores[form]) - sum(math.exp(scores[other]) for other in nearest)
    return max(math.log(left), FLOOR) if left > 0 else FLOOR


def _union(logps: Sequence[float]) -> float:
    return float(np.logaddexp.reduce(logps))
