"""One seed of adapters in use: scaled, summed, under other prompts and after neutral fine-tuning, beside base.

Knows nothing of files and tables, and of how a student came to be: what is folded into the weights is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from steer_heal.config import RunConfig
from steer_heal.evaluation import Metrics, Shift, compare, evaluate
from steer_heal.healing import HealConfig
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.healing.bake.stack import stack_of
from steer_heal.loop.steps.judging import original_nll
from steer_heal.model import LM
from steer_heal.statistics import Estimate, paired_ratio
from steer_heal.studies.arms.comparing import joined
from steer_heal.studies.material import folded, healed
from steer_heal.texts.completion import Completion
from steer_heal.texts.generation import derive_seed, generate
from steer_heal.trait import Trait

BOTH, NEUTRAL = "both", "neutral prompt"
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


@dataclass(frozen=True)
class Subject:
    """What was trained for a trait: the adapters of the rounds that stand, and the options of their run."""

    trait: Trait
    config: RunConfig
    adapters: tuple[Adapter, ...]


@dataclass(frozen=True)
class Used:
    """One seed.

    Attributes:
        scaled: by the factor on the first subject's adapters.
        together: by (trait that is measured, trait whose adapters are in: its own, the other's, or `BOTH`).
        kept: of the first trait, by prompt or fine-tuning (see `persistence`).
    """

    seed: int
    scaled: dict[float, Pair]
    together: dict[tuple[str, str], Pair]
    kept: dict[str, Pair]


def use(lm: LM, subjects: Sequence[Subject], seed: int, scales: Sequence[float], other: str, replies: int) -> Used:
    """Measure everything for one seed: the first subject at every scale and alone, with the second both together.

    Args:
        lm: the original model. other: system prompt about another matter. replies: sampled ones per measured model.
    """
    stack, (first, *_) = AdapterStack(lm.model), subjects
    trait, config = first.trait, first.config

    def sizes(trait: Trait) -> dict[str, object]:
        asked = {
            "n_items": config.eval_items,
            "n_free": replies,
            "max_new_tokens": config.max_new_tokens,
            "vignettes": (),
        }
        # Only coherence without a checker needs the nll.
        scorer = None if trait.check else original_nll(lm, stack)
        return asked | {"seed": derive_seed(seed, "evaluate"), "scorer": scorer}

    def pair(trait: Trait, adapters: Sequence[Adapter], scale: float = 1.0) -> Pair:
        with folded(stack, adapters, scale):
            return Pair((base[trait.name],), (evaluate(lm, trait, **sizes(trait)),))

    before = under_prompts(lm, trait, other, **sizes(trait))
    base = {one.trait.name: evaluate(lm, one.trait, **sizes(one.trait)) for one in subjects[1:]}
    base[trait.name] = before[NEUTRAL]
    rows = neutral_rows(lm, trait, config.n_min, config.max_new_tokens, derive_seed(seed, "neutral"))
    with folded(stack, first.adapters):
        tuned = config.heal_config(derive_seed(seed, "tune") % 2**31)
        kept = persistence(lm, trait, before, rows, tuned, other=other, **sizes(trait))
    scaled = {scale: pair(trait, first.adapters, scale) for scale in scales}
    together = {}
    if len(subjects) > 1:
        stacks = {one.trait.name: one.adapters for one in subjects}
        stacks[BOTH] = [adapter for one in subjects for adapter in one.adapters]
        together = {(one.trait.name, name): pair(one.trait, some) for one in subjects for name, some in stacks.items()}
    return Used(seed, scaled, together, kept)


# ---------------------------------------------------------------- what is left of a trait


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
        with healed(lm, stack, list(own), plain):
            found[name] = Pair((before[NEUTRAL],), (evaluate(lm, trait, **sizes),))
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
