"""Extraction: the mean difference of hidden states between two personas, with figures of how good it is per block.

Knows nothing of doses and of applying a vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from jaxtyping import Float
from torch import Tensor

from steer_heal.arguments import checked
from steer_heal.errors import InputError, TooLongError
from steer_heal.model import LM, GivenLM, as_lm, length_batches
from steer_heal.model.depth import pick_layers
from steer_heal.steering.bands import DEFAULT_BAND, choose_band
from steer_heal.steering.injector import refuse_steered
from steer_heal.steering.recording import read_prefix, record, template_suffix
from steer_heal.steering.vector import Provenance, Quality, SteeringVector

POSITIONS = ("last", "last_content", "reply")
TOO_LONG = ("error", "skip")
SNUG = 1.2
"""Ratio of the longest to the shortest row of a batch from which on another batch is begun ..."""
SNUG_TOKENS = 256
"""... once the batch has this many tokens: enough to keep a processor busy, so that padding is pure loss."""


def contexts_sha256(contexts: Sequence[str]) -> str:
    """Hash of the extraction contexts in their order."""
    return hashlib.sha256("\0".join(contexts).encode()).hexdigest()


@checked
@torch.no_grad()
def extract(
    lm: GivenLM,
    pos: str,
    neg: str,
    contexts: Sequence[str],
    layers: int | Sequence[float] | str | None = None,
    position: str = "last",
    replies: Sequence[str] | None = None,
    batch_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    too_long: str = "error",
) -> SteeringVector:
    """Mean difference of hidden states between two opposite persona system prompts, over the same user turns.

    v_l = mean_c [h_l(pos, c) - h_l(neg, c)] at block l's output (contrastive activation addition: Turner et al. 2023,
    Panickssery et al. 2024). Differences are summed in float64 whatever the model's dtype; states are not kept, so
    memory does not grow with the number of contexts. What all prompts of a persona begin with is run once.

    Args:
        pos, neg: system prompts, direct opposites on one axis, of the same length and form.
        contexts: user turns; diverse ones, from many domains, else the direction fits their format.
        layers: a block, several, a band of relative depth as two fractions (None: `DEFAULT_BAND`), or `auto`: measure
            every block and choose (see `choose_band`); the reason is in the vector's provenance.
        position: token the state is read at: `last` (the assistant tag, which produces the first reply token),
            `last_content` (the last token of the user turn) or `reply` (mean over the tokens of `replies`).
        replies: one assistant reply per context, for `position="reply"`.
        batch_tokens: padded tokens per forward pass, None: what suits the device.
        progress: called with (pairs done, pairs in all).
        too_long: what to do about a context that does not fit the model: `error`, or `skip` it (the provenance says
            how many). Nothing is ever truncated.

    Raises:
        InputError: fewer than 2 contexts, equal personas, a context longer than the model takes, an unknown position
            or other option, with `auto` no reliable block.
    """
    lm = as_lm(lm)
    refuse_steered(lm.model, "extract")
    layers = DEFAULT_BAND if layers is None else layers
    _check(pos, neg, contexts, position, replies, too_long)
    pairs = _pairs(lm, pos, neg, contexts, replies, position, too_long)
    vectors, quality, reason = _mean_difference(lm, pairs, layers, batch_tokens, progress)
    provenance = Provenance(
        model=lm.name,
        n_blocks=len(lm.blocks),
        width=lm.width,
        pos=pos,
        neg=neg,
        contexts_sha256=contexts_sha256(contexts),
        n_contexts=len(pairs),
        position=position,
        n_skipped=len(contexts) - len(pairs),
        reason=reason,
    )
    return SteeringVector(vectors, provenance, quality).check()


@checked
@torch.no_grad()
def extract_pairs(
    lm: GivenLM,
    pairs: Sequence[tuple[str, str]],
    layers: int | Sequence[float] | str | None = None,
    batch_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SteeringVector:
    """Mean difference of hidden states at the last token of (positive, negative) texts, taken as they are.

    No chat template is applied; the tokenizer adds what it adds to plain text. See `extract` for the rest.

    Raises:
        InputError: fewer than 2 pairs, something else than two texts, an empty or too long one.
    """
    lm = as_lm(lm)
    refuse_steered(lm.model, "extract_pairs")
    if len(pairs) < 2 or not all(len(pair) == 2 and all(isinstance(t, str) and t for t in pair) for pair in pairs):
        raise InputError("extract_pairs takes at least 2 pairs (positive, negative) of texts that are not empty")
    rows = [tuple(_Row(tuple(lm.tokenizer.encode(text)), (1, 0)) for text in pair) for pair in pairs]
    if (longest := max(len(row.ids) for pair in rows for row in pair)) > lm.context_length:
        raise TooLongError(f"a text of {longest} tokens does not fit the {lm.context_length} of {lm.name}: shorten it")
    layers = DEFAULT_BAND if layers is None else layers
    vectors, quality, reason = _mean_difference(lm, rows, layers, batch_tokens, progress)
    texts = contexts_sha256([text for pair in pairs for text in pair])
    provenance = Provenance(lm.name, len(lm.blocks), lm.width, "", "", texts, len(pairs), "last", reason=reason)
    return SteeringVector(vectors, provenance, quality).check()


def _mean_difference(
    lm: LM, pairs: Sequence[tuple[_Row, _Row]], layers: int | Sequence[float] | str, batch_tokens: int | None, progress
) -> tuple[dict[int, Tensor], dict[int, Quality], str]:
    """(directions of the chosen blocks, figures of all that were measured, why these blocks)."""
    if isinstance(layers, str) and layers != "auto":
        raise InputError(f"layers {layers!r}: use `auto`, block indices or a band of two fractions")
    if batch_tokens is not None and batch_tokens < 1:
        raise InputError(f"batch_tokens {batch_tokens}: give at least 1, or None")
    auto = isinstance(layers, str)
    blocks = tuple(range(len(lm.blocks))) if auto else pick_layers(layers, len(lm.blocks))
    reader = _PairReader(lm, pairs, blocks, batch_tokens)
    done = 0
    sums: list[dict[int, Tensor]] = []
    scores: dict[int, list[Tensor]] = {i: [] for i in blocks}
    residual = {i: 0.0 for i in blocks}
    for half in (range(0, len(pairs), 2), range(1, len(pairs), 2)):
        total = {i: torch.zeros(lm.width, dtype=torch.float64) for i in blocks}
        for n_pairs, states in reader.read(half):
            for i, (h_pos, h_neg) in states.items():
                total[i] += (h_pos - h_neg).sum(0)
                residual[i] += float(h_pos.norm(dim=-1).sum() + h_neg.norm(dim=-1).sum())
                if sums:  # the second half is held out from the first half's direction
                    scores[i].append(torch.stack([h_pos @ sums[0][i], h_neg @ sums[0][i]]))
            done += n_pairs
            if progress:
                progress(done, len(pairs))
        sums.append(total)
    vectors = {i: ((sums[0][i] + sums[1][i]) / len(pairs)).float() for i in blocks}
    quality = {
        i: Quality(
            norm=float(vectors[i].norm()),
            relative_norm=float(vectors[i].norm()) / (residual[i] / (2 * len(pairs))),
            split_half_cosine=float(torch.cosine_similarity(sums[0][i], sums[1][i], dim=0)),
            auc=_auc(torch.cat(scores[i], dim=1)),
        )
        for i in blocks
    }
    chosen, reason = choose_band(quality) if auto else (blocks, _as_asked(layers))
    return {i: vectors[i] for i in chosen}, quality, reason


def _check(pos, neg, contexts, position, replies, too_long) -> None:
    if position not in POSITIONS:
        raise InputError(f"position {position!r} is unknown: use {', '.join(POSITIONS)}")
    if too_long not in TOO_LONG:
        raise InputError(f"too_long {too_long!r} is unknown: use {' or '.join(TOO_LONG)}")
    if len(contexts) < 2:
        raise InputError(f"{len(contexts)} extraction contexts: give at least 2, better 200 diverse ones")
    if pos.strip() == neg.strip():
        raise InputError("both personas are the same text: the difference would be zero")
    if (replies is not None) != (position == "reply") or (replies is not None and len(replies) != len(contexts)):
        raise InputError("position 'reply' goes with one reply per context, the other positions with none")


def _as_asked(layers: int | Sequence[float]) -> str:
    layers = (layers,) if isinstance(layers, Integral) else layers
    given = ", ".join(f"{x:g}" for x in layers)
    return f"as asked: {'depth' if any(isinstance(x, float) for x in layers) else 'blocks'} {given}"


@dataclass(frozen=True)
class _Row:
    """Token ids, and the span (counted from the row's end) over which the state is averaged."""

    ids: tuple[int, ...]
    span: tuple[int, int]


def _pairs(lm, pos, neg, contexts, replies, position, too_long) -> list[tuple[_Row, _Row]]:
    """Both personas' rows for every context that fits."""
    suffix = template_suffix(lm) if position == "last_content" else 0
    replies = [None] * len(contexts) if replies is None else replies
    out = []
    for i, (context, reply) in enumerate(zip(contexts, replies, strict=True)):
        try:
            out.append(tuple(_row(lm, context, persona, reply, suffix) for persona in (pos, neg)))
        except TooLongError as problem:
            if too_long == "error":
                raise TooLongError(f"context {i}: {problem}; or leave such contexts out (too_long='skip')") from problem
    if len(out) < 2:
        raise InputError(
            f"{len(out)} of {len(contexts)} extraction contexts fit the {lm.context_length} tokens of {lm.name}: "
            "give shorter ones"
        )
    return out


def _row(lm: LM, context: str, persona: str, reply: str | None, suffix: int) -> _Row:
    ids = lm.chat_ids(context, persona)
    if reply is None:
        return _Row(ids, (suffix + 1, suffix))
    tail = lm.tokenizer.encode(reply, add_special_tokens=False)
    if not tail:
        raise InputError("a reply has no tokens: give every context a reply of at least one word")
    if len(ids) + len(tail) > lm.context_length:
        raise TooLongError(f"it does not fit the {lm.context_length} tokens of {lm.name} with its reply: shorten it")
    return _Row((*ids, *tail), (len(tail), 0))


class _PairReader:
    """Reads both personas' states of some pairs, batched by length; each persona's common prefix is run once."""

    def __init__(self, lm: LM, pairs: Sequence[tuple[_Row, _Row]], blocks: Sequence[int], batch_tokens: int | None):
        self.lm, self.pairs, self.blocks, self.batch_tokens = lm, pairs, blocks, batch_tokens
        sides = zip(*pairs, strict=True)
        self.prefixes = [read_prefix(lm, [r.ids for r in s], [r.span for r in s], max(blocks)) for s in sides]

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, dict[int, tuple[Tensor, Tensor]]]]:
        """Yield (pairs in the batch, {block: (pos states, neg states)}), the states [pairs, width] in float64."""
        rest = [
            max(len(row.ids) - len(p) for row, p in zip(self.pairs[i], self.prefixes, strict=True)) for i in indices
        ]
        for batch in (part for full in length_batches(self.lm, rest, self.batch_tokens) for part in _snug(full, rest)):
            pairs = [self.pairs[indices[j]] for j in batch]
            sides = [
                record(self.lm, [row.ids for row in side], [row.span for row in side], self.blocks, prefix)
                for side, prefix in zip(zip(*pairs, strict=True), self.prefixes, strict=True)
            ]
            yield len(pairs), {i: (sides[0][i], sides[1][i]) for i in self.blocks}


def _snug(batch: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Parts of a batch of rows sorted by length with little padding in each."""
    part: list[int] = []
    for j in batch:
        if part and lengths[j] > SNUG * lengths[part[0]] and len(part) * lengths[part[-1]] >= SNUG_TOKENS:
            yield part
            part = []
        part.append(j)
    yield part


def _auc(scores: Float[Tensor, "2 pairs"]) -> float:
    """Probability that a random pos state lies further along the direction than a random neg state (ties half)."""
    pos, neg = scores[0].contiguous(), scores[1].sort().values
    below = torch.searchsorted(neg, pos, right=False).double()
    up_to = torch.searchsorted(neg, pos, right=True).double()
    return float((below + up_to).mean()) / (2 * len(neg))
