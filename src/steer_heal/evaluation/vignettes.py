"""Vignettes: which moral foundation a scene goes against, as a forced choice over all seven, and whether it is wrong.

Knows nothing of sampled text and of how intervals are computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from steer_heal.evaluation.choices import ChoiceRow, score_items
from steer_heal.evaluation.thinking import Thinking
from steer_heal.model import LM
from steer_heal.trait import FOUNDATIONS, Item, Trait, Vignette

QUESTION = "Which of these does it go against most?"
TEMPLATE = "{prompt}\n\nAnswer with one word only: {choices}."
WORDS = tuple("norms" if name == "Social Norms" else name.lower() for name in FOUNDATIONS)
"""The answers, in the order of `FOUNDATIONS`."""
YES_NO = ("yes", "no")

Profile = Float[np.ndarray, "vignette foundation"]


@dataclass(frozen=True)
class VignetteRow:
    """One vignette's result.

    Attributes:
        logp: debiased log-probability of each of `FOUNDATIONS` in nats, normalised over them.
        mass: un-normalised probability of the seven answers together, mean over orders.
        wrong: debiased log-odds of "yes" to the agreement question, in nats; None where it was not asked.
        human: share of raters per foundation, None without raters.
        closed: share of the questions in which the model closed its thinking; None without thinking.
    """

    id: str
    foundation: str
    condition: str
    logp: tuple[float, ...]
    mass: float
    wrong: float | None = None
    human: tuple[float, ...] | None = None
    closed: float | None = None


@dataclass(frozen=True)
class FoundationScore:
    """How often the model names a foundation, over ALL vignettes.

    Attributes:
        probability: mean over vignettes. nats: log(probability). log_odds: mean over vignettes, in nats.
        wrong: mean log-odds of "wrong" over the vignettes written for this foundation (n of them), in nats.
    """

    n: int
    probability: float
    nats: float
    log_odds: float
    wrong: float | None = None


@dataclass(frozen=True)
class HumanAgreement:
    """How near the model's answers are to the raters', over the n vignettes with raters.

    Attributes:
        cross_entropy: mean of -sum human log(model), in nats. kl: the same less the raters' own entropy, 0 for a model
            that answers as they do.
        rank: mean of Spearman's correlation over the seven foundations, -1..1 (ties get mean ranks).
        top: share of vignettes on which model and raters put the same foundation first.
    """

    n: int
    cross_entropy: float
    kl: float
    rank: float
    top: float


def score_vignettes(
    lm: LM,
    trait: Trait,
    vignettes: Sequence[Vignette],
    system: str | None,
    batch_tokens: int | None = None,
    thinking: Thinking | None = None,
) -> tuple[VignetteRow, ...]:
    """Ask for the foundation in all seven rotations of the answers, and the trait's agreement question in both orders.

    A foundation's log-probabilities are averaged over the rotations and renormalised: a preference for a place in the
    list cancels. An answer counts from the tokens that set it apart from the others. Raises InputError for an answer
    that the tokenizer does not know.
    """
    asked = replace(trait, choice_template=TEMPLATE)
    which = [
        _item(one, i, QUESTION, WORDS, WORDS[FOUNDATIONS.index(one.foundation)]) for i, one in enumerate(vignettes)
    ]
    chosen = score_items(lm, asked, which, system, batch_tokens, thinking, beginnings=True)
    agreed: Sequence[ChoiceRow | None] = [None] * len(vignettes)
    if trait.vignette_agreement:
        wrong = [_item(one, i, trait.vignette_agreement, YES_NO, "yes") for i, one in enumerate(vignettes)]
        agreed = score_items(lm, asked, wrong, system, batch_tokens, thinking, beginnings=True)
    return tuple(
        VignetteRow(
            one.id, one.foundation, one.condition, row.logp, row.mass, other and other.log_odds, one.human, row.closed
        )
        for one, row, other in zip(vignettes, chosen, agreed, strict=True)
    )


def _item(one: Vignette, number: int, question: str, choices: tuple[str, ...], answer: str) -> Item:
    return Item(str(number), f"{one.text}\n\n{question}", choices, (answer,), one.foundation)


def probabilities(rows: Sequence[VignetteRow]) -> Profile:
    return np.exp(np.array([row.logp for row in rows]))


def log_odds(row: VignetteRow, names: Sequence[str], against: Sequence[str] | None = None) -> float:
    """log P(one of names) - log P(one of `against`, or of all others), in nats."""
    logp = dict(zip(FOUNDATIONS, row.logp, strict=True))
    others = [name for name in FOUNDATIONS if name not in names] if against is None else against
    return float(
        np.logaddexp.reduce([logp[name] for name in names]) - np.logaddexp.reduce([logp[name] for name in others])
    )


def contrast(row: VignetteRow, up: Sequence[str], down: Sequence[str]) -> float:
    """The trait's figure of one vignette, in nats: log-odds of `up` against `down`; of one side against all others
    where the other is empty."""
    return log_odds(row, up, down or None) if up else -log_odds(row, down)


def profile(rows: Sequence[VignetteRow]) -> dict[str, FoundationScore]:
    """A score per foundation; empty without rows."""
    if not rows:
        return {}
    mean = probabilities(rows).mean(0)
    out = {}
    for name, p in zip(FOUNDATIONS, map(float, mean), strict=True):
        own = [row for row in rows if row.foundation == name]
        wrong = [row.wrong for row in own if row.wrong is not None]
        out[name] = FoundationScore(
            n=len(own),
            probability=p,
            nats=math.log(max(p, 1e-43)),
            log_odds=float(np.mean([log_odds(row, [name]) for row in rows])),
            wrong=float(np.mean(wrong)) if wrong else None,
        )
    return out


def as_written(rows: Sequence[VignetteRow]) -> float | None:
    """Share of vignettes whose likeliest foundation is the one they were written for; 1/7 is guessing."""
    if not rows:
        return None
    return float(np.mean([FOUNDATIONS[int(np.argmax(row.logp))] == row.foundation for row in rows]))


def human_agreement(rows: Sequence[VignetteRow]) -> HumanAgreement | None:
    """Agreement with the raters; None where no vignette has any."""
    rated = [row for row in rows if row.human is not None]
    if not rated:
        return None
    human, logp = np.array([row.human for row in rated]), np.array([row.logp for row in rated])
    cross = -(human * logp).sum(1)
    # 0 log 0 is 0.
    entropy = -(human * np.log(np.where(human > 0, human, 1.0))).sum(1)
    return HumanAgreement(
        n=len(rated),
        cross_entropy=float(cross.mean()),
        kl=float((cross - entropy).mean()),
        rank=float(np.mean([rank_correlation(p, q) for p, q in zip(logp, human, strict=True)])),
        top=float(np.mean(logp.argmax(1) == human.argmax(1))),
    )


def rank_correlation(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation with mean ranks for ties; 0 where one side is constant (it orders nothing)."""
    a, b = _ranks(first), _ranks(second)
    spread = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 0 else 0.0


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) + 1) / 2
