"""One seed of adapters in use: scaled, summed, under other prompts and after neutral fine-tuning, beside base.

Knows nothing of files and tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from steer_heal.config import RunConfig
from steer_heal.evaluation import evaluate
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.loop.steps.judging import original_nll
from steer_heal.model import LM
from steer_heal.studies.use.persisting import NEUTRAL, Pair, neutral_rows, persistence, under_prompts
from steer_heal.texts.generation import derive_seed
from steer_heal.trait import Trait

BOTH = "both"


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


@contextmanager
def folded(stack: AdapterStack, adapters: Sequence[Adapter], scale: float = 1.0) -> Iterator[None]:
    """Inside the block the model is what it was + scale * the adapters' sum."""
    for adapter in adapters:
        stack.push(adapter, scale)
    try:
        yield
    finally:
        for _ in adapters:
            stack.pop()


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
