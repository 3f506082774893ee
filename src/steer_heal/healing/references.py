"""What a frozen reference thinks of the data: its last hidden states, computed once and keyed to data and weights.

Knows nothing of adapters, losses' weights and rounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steer_heal.arguments import check_value, checked
from steer_heal.errors import InputError
from steer_heal.healing.barriers import aggregate_rows, position_losses, resolve_reg
from steer_heal.healing.config import HealConfig
from steer_heal.model import LM, GivenLM, as_lm, by_batch
from steer_heal.model.structure import fingerprint
from steer_heal.processes import count
from steer_heal.shown import brief
from steer_heal.texts.completion import Completion

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ReferenceStates:
    """Last hidden states of a frozen model at the positions that predict each completion's tokens.

    Attributes:
        rows: by completion key, [completion tokens, width] in the model's dtype and on its device.
        weights: fingerprint of the weights they were computed with.
        model: name of the model.
        plain: False when something (a steering vector) was applied around the forward pass.
    """

    rows: Mapping[str, Float[Tensor, "position width"]]
    weights: str
    model: str
    plain: bool = True

    __repr__ = brief

    def __len__(self) -> int:
        return len(self.rows)

    def replaced(self, completions: Sequence[Completion], other: ReferenceStates) -> ReferenceStates:
        """The same but for some completions, whose states are those of `other`: a teacher of their own, say."""
        rows = {completion_key(c): other.of(c) for c in completions}
        return replace(self, rows={**self.rows, **rows}, plain=self.plain and other.plain)

    def shown_as(self, shown: Sequence[Completion], completions: Sequence[Completion]) -> ReferenceStates:
        """What the model thinks of `shown`, as its view of `completions`: the same replies behind other prompts.

        A teacher that reads a persona, say, which the student is not shown. Raises InputError where replies differ.
        """
        if [c.token_ids for c in shown] != [c.token_ids for c in completions]:
            raise InputError("shown_as needs the same replies in the same order, behind other prompts")
        rows = {completion_key(c): self.of(other) for c, other in zip(completions, shown, strict=True)}
        return replace(self, rows=rows, plain=False)

    def of(self, completion: Completion) -> Float[Tensor, "position width"]:
        """The states of one completion. Raises InputError when it was not among the data they were computed on."""
        found = self.rows.get(completion_key(completion))
        if found is None:
            raise InputError(
                f"the reference states hold no entry for the completion {completion.text[:40]!r}: they were "
                "computed on other data; compute them again with reference_states"
            )
        return found

    def rows_of(self, completions: Sequence[Completion]) -> Float[Tensor, "position width"]:
        """The states of several, one after another."""
        return torch.cat([self.of(completion) for completion in completions])


@checked
@torch.no_grad()
def reference_states(
    lm: GivenLM,
    completions: Sequence[Completion],
    *,
    around: Callable[[list[Completion]], AbstractContextManager] | None = None,
    batch_tokens: int | None = None,
) -> ReferenceStates:
    """Hidden states of the model as it is now, at the positions that predict the completions' tokens.

    A heal compares its student with them through the frozen output head, so the reference needs no forward pass
    during training. For the original model call it inside `stack.unfolded()`.

    Args:
        lm: the reference.
        completions: the data; every completion of a later heal must be among them.
        around: gives, for the completions of one batch, a context to run its forward pass in, for instance
            `lambda batch: vector.applied(lm.model, dose=[c.dose for c in batch])`. Such states measure what steering
            does (see `mean_divergence`) and cannot serve as a heal's reference.
        batch_tokens: padded tokens per forward pass, None: what suits the device.

    Raises:
        InputError: an empty completion, one longer than the context, non-finite states.
    """
    lm = as_lm(lm)
    check_rows(lm, completions)

    def states(batch: list[int]) -> list[Tensor]:
        with around([completions[i] for i in batch]) if around else nullcontext():
            hidden, _, lengths = completion_hidden(lm, [completions[i] for i in batch])
        if not hidden.isfinite().all():
            raise InputError(
                f"{lm.name} gives non-finite hidden states: its weights or its dtype ({lm.dtype}) are broken"
            )
        return [row.clone() for row in hidden.split(lengths)]

    found = by_completion(lm, completions, states, batch_tokens)
    if count() > 1:
        found = [row.to(lm.device) for row in found]
    rows = {completion_key(c): row for c, row in zip(completions, found, strict=True)}
    return ReferenceStates(rows, fingerprint(lm.base), lm.name, around is None)


def completion_hidden(
    lm: LM, completions: Sequence[Completion]
) -> tuple[Float[Tensor, "position width"], Int[Tensor, " position"], list[int]]:
    """(last hidden states, target ids, lengths) at the positions that predict the completions' tokens, row by row."""
    batch = lm.pad_left([(*c.prompt_ids, *c.token_ids) for c in completions])
    lengths = [len(c.token_ids) for c in completions]
    width = batch["input_ids"].shape[1]
    # Token t of a left-padded row of n completion tokens sits at width - n + t and is predicted one position earlier.
    index = torch.cat([torch.arange(width - n, width) + i * width for i, n in enumerate(lengths)]).to(lm.device)
    hidden = lm.hidden_states(batch).flatten(0, 1).index_select(0, index - 1)
    return hidden, batch["input_ids"].flatten()[index], lengths


def by_completion(
    lm: LM,
    completions: Sequence[Completion],
    work: Callable[[list[int]], Sequence[T]],
    batch_tokens: int | None = None,
) -> list[T]:
    """A result per completion; `work` gives those of completions of similar length, by their indices (`by_batch`)."""
    return by_batch(lm, [len(c.prompt_ids) + len(c.token_ids) for c in completions], work, batch_tokens)


def check_rows(lm: LM, completions: Sequence[Completion]) -> None:
    """Raises InputError for no completions, an empty one, one without a prompt, of another model, or too long."""
    if not completions:
        raise InputError("no completions were given: there is nothing to train on")
    known = lm.base.get_input_embeddings().num_embeddings
    for i, completion in enumerate(completions):
        for name in ("prompt_ids", "token_ids"):
            check_value(f"completion {i}: {name}", ids := getattr(completion, name), tuple[int, ...])
            if ids and not (min(ids) >= 0 and max(ids) < known):
                raise InputError(f"completion {i}: {name} are of another tokenizer: {lm.name} has 0 to {known - 1}")
        length = len(completion.prompt_ids) + len(completion.token_ids)
        if not completion.token_ids:
            raise InputError(f"completion {i} has no tokens (prompt {completion.prompt[:40]!r}): drop it")
        if not completion.prompt_ids:
            raise InputError(
                f"completion {i} has no prompt tokens, so nothing predicts its first token: keep prompt_ids"
            )
        if length > lm.context_length:
            raise InputError(
                f"completion {i} has {length} tokens, the context of {lm.name} {lm.context_length}: shorten it"
            )


def completion_key(completion: Completion) -> str:
    """Hash of a completion's prompt ids and token ids."""
    ids = f"{completion.prompt_ids}|{completion.token_ids}"
    return hashlib.sha256(ids.encode()).hexdigest()[:32]


@torch.no_grad()
@checked
def mean_divergence(
    lm: GivenLM,
    student: ReferenceStates,
    reference: ReferenceStates,
    completions: Sequence[Completion],
    config: HealConfig,
) -> float:
    """Mean over completions of `divergences`, in nats.

    With `student` computed under steering at each row's dose and `reference` without, this is the divergence that the
    steering caused: the unit of `tau_rel`, frozen before training. 0 for reg `nll`.
    """
    return sum(divergences(lm, student, reference, completions, config)) / len(completions)


@torch.no_grad()
def divergences(
    lm: GivenLM,
    student: ReferenceStates,
    reference: ReferenceStates,
    completions: Sequence[Completion],
    config: HealConfig,
) -> list[float]:
    """Per completion the aggregated divergence between two sets of states, as the barrier measures it, in nats."""
    lm = as_lm(lm)
    divergence = resolve_reg(config.reg, config.kl_top_k)
    if divergence is None:
        return [0.0] * len(completions)

    def values(batch: list[int]) -> list[float]:
        rows = [completions[i] for i in batch]
        hidden = student.rows_of(rows)
        targets = torch.tensor([t for c in rows for t in c.token_ids], device=hidden.device)
        losses = position_losses(lm.head, hidden, targets, [reference.rows_of(rows)], divergence)
        return aggregate_rows(losses.divergence[0], [len(c.token_ids) for c in rows], config.kl_agg).tolist()

    return by_completion(lm, completions, values)
