"""What all arms of one seed stand on: the original model, its prompts, the texts they share, and what was spent.

Knows nothing of arms.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, evaluate
from steer_heal.healing import HealConfig, reference_states
from steer_heal.healing.references import ReferenceStates, divergences
from steer_heal.ledger.files import write_whole
from steer_heal.model import LM
from steer_heal.steering import SteeringVector, extract
from steer_heal.studies.material import Material, load_material
from steer_heal.texts.completion import Completion, load_completions, save_completions
from steer_heal.texts.generation import derive_seed, generate
from steer_heal.texts.sampling import Sampling


@dataclass(frozen=True)
class Sizes:
    """How much every arm may spend, and what it is measured on.

    Attributes:
        rounds, texts: the budget is so many rounds of so many sampled replies; an arm of one round has all of them.
        epochs: passes over them.
        items, replies: of the evaluation. neutral: the original's own replies on which the divergence is measured.
    """

    rounds: int = 3
    texts: int = 160
    epochs: int = 4
    items: int | None = None
    replies: int = 96
    neutral: int = 48


@dataclass
class Spent:
    """What an arm cost: sampled tokens, optimiser steps, seconds of CPU."""

    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0


class Ground:
    """One seed of the arena; texts that several arms share are sampled once and kept in `folder`."""

    def __init__(self, config: RunConfig, sizes: Sizes, folder: Path):
        self.config, self.sizes, self.folder = config, sizes, folder
        self.material: Material = load_material(config)
        self.spent = Spent()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def lm(self) -> LM:
        return self.material.lm

    def seed(self, *labels: object) -> int:
        """A seed of its own for every use of randomness."""
        return derive_seed(self.config.seed, "arena", *labels)

    @cached_property
    def vector(self) -> SteeringVector:
        """The original model's vector, as round 0 of a run extracts it."""
        trait, config = self.material.trait, self.config
        return extract(self.lm, trait.pos, trait.neg, trait.contexts, layers=config.layers, position=config.position)

    @cached_property
    def prompts(self) -> list[str]:
        """User turns for all rounds' texts, contexts and the trait's own mixed as in a run; in turn if too few."""
        trait, share = self.material.trait, self.config.context_share
        pools = [list(trait.contexts), list(trait.prompts)]
        for name, pool in zip(("contexts", "prompts"), pools, strict=True):
            random.Random(self.seed(name)).shuffle(pool)
        n = self.sizes.rounds * self.sizes.texts
        picked = [int((i + 1) * share) > int(i * share) for i in range(n)]
        counts = [0, 0]
        found = []
        for context in picked:
            which = 0 if context else 1
            found.append(pools[which][counts[which] % len(pools[which])])
            counts[which] += 1
        return found

    def sampled(
        self,
        name: str,
        prompts: Sequence[str],
        system: str | None = None,
        vector: SteeringVector | None = None,
        dose: float = 0.0,
    ) -> list[Completion]:
        """Replies at temperature 1 under a system prompt or the vector, as the student is to give them unasked.

        Whatever they were sampled under, their prompt is then the neutral one. They are read back where they were
        sampled before; the arm has their tokens and seconds on its bill all the same.
        """
        path = self.folder / f"{name}.jsonl"
        bill = path.with_suffix(".json")
        if not bill.is_file():
            started = time.process_time()
            found = generate(
                self.lm,
                prompts,
                vector,
                (dose,),
                system=self.material.trait.neutral if system is None else system,
                max_new_tokens=self.config.max_new_tokens,
                seed=self.seed("texts", name),
                sampling=Sampling(temperature=1.0, top_p=1.0),
                origin="own",
            )
            save_completions([self.unprompted(c) for c in found], path)
            write_whole(bill, json.dumps({"seconds": time.process_time() - started}).encode())
        else:
            self.spent.seconds += json.loads(bill.read_text())["seconds"]
        texts = load_completions(path)
        self.spent.tokens += sum(len(c.token_ids) for c in texts)
        return texts

    def unprompted(self, completion: Completion) -> Completion:
        """The same reply behind the neutral prompt, unsteered."""
        return self.shown(replace(completion, dose=0.0), self.material.trait.neutral)

    def shown(self, completion: Completion, system: str) -> Completion:
        """The same reply behind another system prompt."""
        return replace(completion, system=system, prompt_ids=tuple(self.lm.chat_ids(completion.prompt, system)))

    def persona(self, rows: Sequence[Completion]) -> ReferenceStates:
        """What the original model thinks of the rows under the trait's persona, as its view of the unprompted ones."""
        shown = [self.shown(row, self.material.trait.pos) for row in rows]
        return reference_states(self.lm, shown).shown_as(shown, rows)

    @cached_property
    def neutral(self) -> list[Completion]:
        """The original model's own replies to prompts that have nothing to do with the trait."""
        asked = (self.material.trait.replay_prompts or self.material.trait.eval_prompts)[: self.sizes.neutral]
        return generate(
            self.lm,
            asked,
            system=self.material.trait.neutral,
            max_new_tokens=self.config.max_new_tokens,
            seed=self.seed("neutral"),
        )

    @cached_property
    def neutral_states(self) -> ReferenceStates:
        return reference_states(self.lm, self.neutral)

    def prepare(self) -> None:
        """Compute what must be the original model's while nothing is folded in. InputError without any checker."""
        if self.material.trait.checker is None:
            raise InputError(f"trait {self.material.trait.name!r} has no checker: the arena needs sound sentences")
        _ = self.vector, self.prompts, self.neutral_states

    def measure(self, system: str | None = None) -> tuple[Metrics, float]:
        """The model as it stands: metrics on the seed's items, and KL(original || it) on neutral replies, nats/token.

        Call `prepare` before anything is folded in.
        """
        metrics = evaluate(
            self.lm,
            self.material.trait,
            system=system,
            n_items=self.sizes.items,
            n_free=self.sizes.replies,
            max_new_tokens=self.config.max_new_tokens,
            seed=self.seed("evaluate"),
        )
        return metrics, self.divergence()

    def divergence(self) -> float:
        """Mean over neutral replies of the token-mean KL(original || model as it stands), nats."""
        config = HealConfig(reg="kl_fwd", kl_agg="mean")
        now = reference_states(self.lm, self.neutral)
        found = divergences(self.lm, now, self.neutral_states, self.neutral, config)
        return sum(found) / len(found)

    def timed(self, work: Callable[[], object]) -> object:
        """Do the work and put its seconds of CPU on the bill."""
        started = time.process_time()
        try:
            return work()
        finally:
            self.spent.seconds += time.process_time() - started
