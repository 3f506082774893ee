"""A round's training rows: the texts that stay, and what is mixed in; the control that tears pairs apart.

Knows nothing of how texts are sampled and of training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from steer_heal.evaluation.anchors import replayed_rows
from steer_heal.loop.steps.state import Run
from steer_heal.texts.completion import Completion
from steer_heal.texts.dose import Walk
from steer_heal.texts.generation import generate


def training_rows(run: Run, number: int, walk: Walk) -> list[Completion]:
    """Kept completions, with earlier rounds', the original model's own and its anchors mixed in as configured."""
    config = run.config
    rows = [c for c in walk.completions if c.kept]
    if config.pairs == "shuffled" and config.targets == "tokens":  # with a teacher it is what that reads (`heal_rows`)
        rows = shuffled_pairs(rows, run.seed(number, "pairs"))
    earlier = [c for past in run.standing for c in past.walk.banked]
    if config.accumulate and earlier:
        rows += random.Random(run.seed(number, "accumulate")).sample(earlier, min(config.accumulate, len(earlier)))
    n_replay = round(config.replay / (1 - config.replay - config.replay_anchors) * len(rows))
    if n_replay:
        pool = run.trait.replay_prompts or run.trait.prompts
        prompts = random.Random(run.seed(number, "replay")).choices(pool, k=n_replay)
        with run.stack.unfolded():
            sampling, place = config.text_sampling(), run.sampled("generate replay rows", number, "replay")
            seed = run.seed(number, "replay")
            rows += generate(run.lm, prompts, seed=seed, origin="base", sampling=sampling, **place)
    return rows + replayed_rows(run.replayable, len(rows), config.replay_anchors, run.seed(number, "anchors"))


def shuffled_pairs(rows: Sequence[Completion], seed: int) -> list[Completion]:
    """The same replies, each behind another row's prompt: the control for "any text of this kind does it"."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    # A cycle along a random order: no reply keeps its own place.
    other = {a: b for a, b in zip(order, [*order[1:], order[0]], strict=True)} if order else {}
    return [
        replace(row, prompt=rows[other[i]].prompt, prompt_ids=rows[other[i]].prompt_ids, origin="control")
        for i, row in enumerate(rows)
    ]
