"""`Completion`: one sampled reply with everything later stages need: token ids, dose, seed, scores, verdict.

Knows nothing of how it was sampled or judged. The stages pass lists of these to one another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from steer_heal.arguments import checked
from steer_heal.errors import InputError, writing
from steer_heal.ledger.units import Kind, json_kind
from steer_heal.model.chat import fill_persona
from steer_heal.reading import read_text
from steer_heal.shown import brief

if TYPE_CHECKING:
    from steer_heal.model import GivenLM


@dataclass(frozen=True)
class Completion:
    """One reply of a model to one prompt.

    Attributes:
        prompt: the user turn; `system` is the system prompt it was rendered with (None: no system turn).
        prompt_ids: token ids of the rendered prompt, without padding.
        token_ids: the sampled ids themselves, the end-of-turn token included when the reply ended.
        text: the ids decoded, special tokens left out.
        finished: the reply ended by itself; False means it was cut by length.
        dose: steering dose it was sampled at, in multiples of the vector (0: not steered); of an `own` one its
            teacher's.
        seed: what its tokens were drawn with.
        row: position of the prompt in the list that was asked for.
        origin: `steered`, `own` (the student's, unsteered), `base` (the original model's, unsteered), `control`, or
            `given` (written elsewhere).
        scores: figures the filter measured, by name.
        dropped_by: name of the gate that dropped it; None if it passed or was not judged yet.
        flagged_by: name of the gate that would have dropped it, where the filter only reports (see `flagged`).
        judged: a filter has looked at it.
    """

    prompt: str
    system: str | None
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finished: bool
    dose: float = 0.0
    seed: int = 0
    row: int = 0
    origin: str = "steered"
    scores: dict[str, float] = field(default_factory=dict)
    dropped_by: str | None = None
    judged: bool = False
    flagged_by: str | None = None

    __repr__ = brief

    @staticmethod
    @checked
    def from_text(
        lm: GivenLM,
        prompt: str,
        text: str,
        system: str | None = None,
        *,
        finished: bool = True,
        row: int = 0,
        origin: str = "given",
    ) -> Completion:
        """A reply that was written elsewhere, as if this model had sampled it; `finished` ends it with its end token.

        Raises InputError for an empty text, and for a finished one where the model has no end token.
        """
        from steer_heal.model import as_lm

        lm = as_lm(lm)
        ids = tuple(lm.tokenizer.encode(text, add_special_tokens=False))
        if not ids:
            raise InputError(f"the reply to {prompt[:60]!r} is empty: give every reply at least one word")
        if finished and lm.end_id is None:
            raise InputError(f"{lm.name} has no token that ends a reply: give finished=False")
        ids = (*ids, lm.end_id) if finished else ids
        prompt_ids = lm.chat_ids(prompt, system)
        return Completion(prompt, system, prompt_ids, ids, lm.decode(ids), finished, row=row, origin=origin)

    @property
    def kept(self) -> bool:
        """A filter looked at it and no gate dropped it."""
        return self.judged and self.dropped_by is None

    @property
    def asked(self) -> str:
        """The prompt as the model read it: with its persona, where it has a slot for one."""
        return fill_persona(self.prompt, self.system)[0]

    @property
    def named_by(self) -> str | None:
        """The gate that dropped it, or would have."""
        return self.dropped_by or self.flagged_by


def flagged(completion: Completion) -> Completion:
    """A judged completion that stays whatever the filter found: what it would have dropped is `flagged_by`."""
    return replace(completion, dropped_by=None, flagged_by=completion.dropped_by)


def completion_from(row: Mapping) -> Completion:
    """The inverse of `vars`, also after JSON. Raises TypeError or KeyError for other fields."""
    return Completion(**{**row, "prompt_ids": tuple(row["prompt_ids"]), "token_ids": tuple(row["token_ids"])})


COMPLETIONS: Kind[list[Completion]] = json_kind(
    lambda completions: [vars(completion) for completion in completions],
    lambda rows: [completion_from(row) for row in rows],
)


@checked
def save_completions(completions: Iterable[Completion], path: Path) -> None:
    """One JSON object per line."""
    with writing(path), open(path, "w", encoding="utf-8") as file:
        for completion in completions:
            file.write(json.dumps(vars(completion), ensure_ascii=False) + "\n")


@checked
def load_completions(path: Path) -> list[Completion]:
    """The inverse of `save_completions`. Raises InputError naming the line that cannot be read."""
    out = []
    for number, line in enumerate(read_text(path).split("\n")[:-1], 1):
        try:
            out.append(completion_from(json.loads(line)))
        except (ValueError, TypeError, KeyError, RecursionError) as problem:
            raise InputError(f"{path}, line {number}: not a completion ({problem})") from problem
    return out
