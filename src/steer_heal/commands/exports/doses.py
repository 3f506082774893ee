"""What a folded student is at other strengths, measured as its run measured it at 0 and 1; and what a rank costs.

Knows nothing of files that are exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from steer_heal.commands.folders import complete
from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, evaluate
from steer_heal.evaluation.shift import summary
from steer_heal.healing import HealConfig, mean_divergence, reference_states
from steer_heal.healing.bake import AdapterStack
from steer_heal.ledger import Ledger
from steer_heal.loop.steps.judging import original_nll
from steer_heal.model import LM
from steer_heal.report.pages.folder import base_of, completions
from steer_heal.report.tables import number
from steer_heal.texts.generation import derive_seed
from steer_heal.trait import Trait, default_trait
from steer_heal.user_function import NoLeaveError

PER_TOKEN = HealConfig(reg="kl_fwd", kl_agg="mean")
"""KL(whole || compressed), nats, the mean over a text's tokens."""
COMPARED = 64
"""Texts of the run on which a compressed student is compared with the whole one."""


def trait_of(ledger: Ledger, named: str | None) -> Trait:
    """A run's trait; code that its file names is imported only where the user names the file in this call.

    Raises InputError: such a file was not named, cannot be read, or is of another trait.
    """
    start = ledger.events("start")[-1]
    recorded = named or ledger.config.get("trait") or default_trait(start["model"])
    try:
        trait = Trait.load(recorded, code=named is not None)
    except NoLeaveError as problem:
        raise InputError(f"the run's trait file {recorded!r} names code: name it with --trait") from problem
    if trait.name != start["trait"]:
        raise InputError(f"--trait {recorded!r} is {trait.name!r}, the run's is {start['trait']!r}")
    return trait


@dataclass(frozen=True)
class Measuring:
    """How a run measured its students: the same items, prompts and seed, without what no table of strengths shows."""

    ledger: Ledger
    lm: LM
    stack: AdapterStack
    trait: Trait

    def state(self) -> dict:
        """The summary of the student as it is folded now."""
        options = self.ledger.config
        with complete(self.ledger):
            asked = {
                "n_items": options["eval_items"],
                "n_free": options["eval_replies"],
                "max_new_tokens": options["max_new_tokens"],
                "think_tokens": options["eval_think_tokens"],
                "think_closing": options["eval_think_closing"],
                "seed": derive_seed(options["seed"], "evaluate"),
            }
        bare = replace(self.trait, anchors=(), off_target=(), vignettes=())
        found = evaluate(self.lm, bare, scorer=original_nll(self.lm, self.stack), **asked)
        return summary(found, self.base)

    @property
    def base(self) -> Metrics:
        return base_of(self.ledger)

    def at(self, scales: Sequence[float]) -> dict[float, dict]:
        """By c, the summary of the student with c times its adapters."""
        found = {}
        for c in scales:
            with self.stack.scaled(c):
                found[c] = self.state()
        return found


def recorded(ledger: Ledger, number: int) -> dict[float, dict]:
    """The summaries at 0 and 1 that the run wrote. Empty for a round that was not measured."""
    return next(({0.0: e["base"], 1.0: e["healed"]} for e in ledger.events("evaluate") if e["round"] == number), {})


def compressed(ledger: Ledger, lm: LM, stack: AdapterStack, rank: int, at: int) -> tuple[int, float]:
    """Put the nearest adapter of a rank in the place of the stack: (the rank it has, what that costs in nats).

    The cost is KL(whole || compressed), the mean per token over texts of round `at`.
    """
    texts = [c for c in completions(ledger, at) if c.token_ids][:COMPARED]
    whole = reference_states(lm, texts)
    adapter = stack.compress(rank)
    return adapter.rank, mean_divergence(lm, reference_states(lm, texts), whole, texts, PER_TOKEN)


def told(before: dict, after: dict) -> str:
    """Trait of a compressed student beside the whole one's."""
    return "; ".join(
        f"{name} {number(before[key], 2)} -> {number(after[key], 2)}"
        for name, key in (("trait", "free_trait"), ("log-odds", "log_odds"), ("coherence", "coherence"))
        if before.get(key) is not None
    )
