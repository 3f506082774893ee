"""The engine that is always there: one left-padded batch through transformers' `generate`, under a dose per row or not.

Knows nothing of completions.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from steer_heal.model import LM, evaluating
from steer_heal.model.structure import ONE_AT_A_TIME
from steer_heal.steering import SteeringVector
from steer_heal.texts.decoding import Decoding, Step, eager
from steer_heal.texts.engines.protocol import Cut, Ids, Row
from steer_heal.texts.sampling import Sampling

TICK = 1.0
"""Seconds between two reports of progress within a batch."""


class TransformersEngine:
    """Samples in this process, with the model itself: hooks on it and steering act."""

    name = "transformers"
    steers = True

    def check(self, lm: LM) -> None:
        """Samples any."""

    def rows(self, lm: LM, tokens: int) -> int:
        return lm.rows_that_fit(tokens)

    def sample(
        self,
        lm: LM,
        rows: Sequence[Row],
        vector: SteeringVector | None,
        max_new_tokens: int,
        sampling: Sampling,
        tick: Callable[[int, int], None],
    ) -> list[Ids]:
        doses = [row.dose for row in rows]
        greedy = rows[0].seed is None
        steered = vector is not None and any(doses)
        ticked = time.perf_counter()

        def replies() -> list[Ids]:
            return [until_end(row, lm.eos_ids) for row in decoding.ids[:, : decoding.n_tokens].tolist()]

        def listen() -> None:
            nonlocal ticked
            if time.perf_counter() - ticked > TICK:
                so_far = replies()
                tick(sum(reply[-1] in lm.eos_ids for reply in so_far), sum(map(len, so_far)))
                ticked = time.perf_counter()

        inputs = lm.pad_left([row.prompt_ids for row in rows])
        step, options = self.way(lm, inputs["input_ids"].shape[1] + max_new_tokens)
        with ONE_AT_A_TIME, vector.applied(lm.model, doses) if steered else contextlib.nullcontext() as steering:
            keep_rows = steering.keep_rows if steered else lambda kept: None
            seeds = None if greedy else [row.seed for row in rows]
            decoding = Decoding(len(rows), max_new_tokens, lm.pad_id, lm.device, seeds, keep_rows, listen, step)
            try:
                with evaluating(lm.base):
                    lm.model.generate(
                        **inputs,
                        **options,
                        max_new_tokens=max_new_tokens,
                        repetition_penalty=1.0,
                        pad_token_id=lm.pad_id,
                        eos_token_id=sorted(lm.eos_ids) or None,
                        custom_generate=decoding,
                        **sampling.options(greedy),
                    )
            except KeyboardInterrupt as stop:
                raise Cut(replies()) from stop
        return replies()

    def way(self, lm: LM, tokens: int) -> tuple[Step, dict[str, object]]:
        """How a token is passed, and what `generate` is given for that, for rows of so many tokens at the end."""
        return eager, {}


TRANSFORMERS = TransformersEngine()


def until_end(row: Sequence[int], eos_ids: frozenset[int]) -> Ids:
    """The reply up to and including its first end token; what follows is padding."""
    end = next((i + 1 for i, token in enumerate(row) if token in eos_ids), len(row))
    return tuple(row[:end])
