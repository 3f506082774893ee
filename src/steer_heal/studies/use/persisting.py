"""What is left of a trait when the student is asked otherwise, argued against, or trained on something neutral.

Knows nothing of how the student came to be: whatever is folded into the model's weights is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from steer_heal.evaluation import Metrics, Shift, compare, evaluate
from steer_heal.healing import HealConfig, heal
from steer_heal.healing.bake import AdapterStack
from steer_heal.healing.bake.stack import stack_of
from steer_heal.model import LM
from steer_heal.statistics import Estimate, paired_ratio
from steer_heal.studies.arms.comparing import joined
from steer_heal.texts.completion import Completion
from steer_heal.texts.generation import derive_seed, generate
from steer_heal.trait import Trait

NEUTRAL = "neutral prompt"
OTHER = "you put warmth before brevity."
"""A system prompt about another matter than the trait, which `pocket` was trained to follow."""


@dataclass(frozen=True)
class Pair:
    """The original model and a student, measured on the same items under the same system prompt, one per seed."""

    before: tuple[Metrics, ...]
    after: tuple[Metrics, ...]

    @cached_property
    def shift(self) -> Shift:
        """Paired, clustered by item and prompt over the seeds."""
        return compare(joined(self.before), joined(self.after))


def under_prompts(lm: LM, trait: Trait, other: str = OTHER, **sizes: object) -> dict[str, Metrics]:
    """The model as it is under the neutral, another and the opposing persona's system prompt.

    Args:
        sizes: what `evaluate` is given beside the prompt: n_items, n_free, max_new_tokens, seed, scorer.
    """
    prompts = {NEUTRAL: trait.neutral, "another prompt": other, "opposing persona": trait.neg}
    return {name: evaluate(lm, trait, system=system, **sizes) for name, system in prompts.items()}


def neutral_rows(lm: LM, trait: Trait, n: int, max_new_tokens: int, seed: int) -> dict[str, list[Completion]]:
    """The model's own replies under the neutral prompt, n to prompts beside the trait and n to the trait's training
    prompts, by the name of the fine-tuning on them. To be sampled from the ORIGINAL model.
    """
    asked = {"tuned beside the trait": trait.replay_prompts, "tuned on its prompts": trait.prompts}
    same = {"system": trait.neutral, "max_new_tokens": max_new_tokens, "origin": "own"}
    return {
        name: generate(lm, [some[i % len(some)] for i in range(n)], seed=derive_seed(seed, name), **same)
        for name, some in asked.items()
        if some
    }


def persistence(
    lm: LM,
    trait: Trait,
    before: Mapping[str, Metrics],
    rows: Mapping[str, Sequence[Completion]],
    config: HealConfig,
    *,
    other: str = OTHER,
    **sizes: object,
) -> dict[str, Pair]:
    """The student `lm` under every prompt, and under the neutral one after an epoch of fine-tuning on neutral text.

    The weights are afterwards what they were.

    Args:
        before: the original model's `under_prompts`, measured with the same `other` and `sizes`.
        rows: the original model's `neutral_rows`, by the name of the fine-tuning; none: no fine-tuning.
        config: whose rank, lr and batches the fine-tuning has; it is plain nll, one epoch, nothing held out.

    Raises InputError for `before` of other items.
    """
    found = {name: Pair((before[name],), (after,)) for name, after in under_prompts(lm, trait, other, **sizes).items()}
    stack = stack_of(lm.model)
    stack = AdapterStack(lm.model) if stack is None else stack
    plain = replace(config, reg="nll", targets="tokens", epochs=1, heldout=0.0, tau_rel=None, spectral=0.0)
    for name, own in rows.items():
        stack.push(heal(lm, list(own), plain).adapter)
        try:
            found[name] = Pair((before[NEUTRAL],), (evaluate(lm, trait, **sizes),))
        finally:
            stack.pop()
    return found


def share(part: Pair, whole: Pair, figure: str) -> Estimate | None:
    """What `part` moved as a share of what `whole` moved, each against its own `before`; paired by item or prompt.

    Args:
        figure: `log_odds` (items) or `free_trait` (replies in which all four models take a stance).

    None where `whole` moved nothing or nothing was measured.
    """
    states = (part.before, part.after, whole.before, whole.after)
    rows, name, field = ("items", "id", "log_odds") if figure == "log_odds" else ("replies", "prompt", "trait")
    aligned = zip(*([row for one in state for row in getattr(one, rows)] for state in states), strict=True)
    found = [(getattr(four[0], name), *(getattr(row, field) for row in four)) for four in aligned]
    found = [row for row in found if None not in row]
    if not found:
        return None
    clusters, a, b, c, d = zip(*found, strict=True)
    return paired_ratio(np.subtract(b, a), np.subtract(d, c), clusters)
