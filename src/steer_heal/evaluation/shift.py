"""Paired differences of two evaluations over the same items, with bootstrap intervals clustered by item or prompt.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from steer_heal.arguments import checked
from steer_heal.errors import InputError
from steer_heal.evaluation.choices import ChoiceRow
from steer_heal.evaluation.metrics import Metrics
from steer_heal.evaluation.text import mean
from steer_heal.evaluation.vignettes import VignetteRow, contrast, log_odds
from steer_heal.shown import brief, table
from steer_heal.statistics import Estimate, paired_difference, paired_ratio
from steer_heal.trait import FOUNDATIONS


@dataclass(frozen=True)
class Shift:
    """after - before, each figure with its 95 % interval.

    Attributes:
        log_odds: trait, forced choice, in nats; clusters are items. categories: the same per category of the trait.
        off_target: per off-target category, in nats.
        held_out_log_odds: trait, forced choice in formats that no training text has, in nats; None without such.
        free_trait, sentence_ok: in shares; clusters are prompts; None without a checker. Replies without a stance do
            not count for `free_trait`.
        coherence: `sentence_ok` where there is a checker, else the share of coherent replies (see `coherent`).
        pair_fit: how much better replies fit their own prompt than another, in nats per token; clusters are prompts;
            None without a scorer.
        vignettes: per foundation, log-odds of its being named, in nats; clusters are vignettes.
        vignette_contrast: the trait's foundations against each other, in nats; None for a trait that has none.
        vignette_wrong: log-odds of "yes, this is wrong", in nats; None where it was not asked.
        vignette_target: the trait's own foundations.
    """

    log_odds: Estimate
    categories: dict[str, Estimate]
    off_target: dict[str, Estimate]
    free_trait: Estimate | None
    sentence_ok: Estimate | None
    coherence: Estimate | None
    pair_fit: Estimate | None = None
    vignettes: dict[str, Estimate] = field(default_factory=dict)
    vignette_contrast: Estimate | None = None
    vignette_wrong: Estimate | None = None
    vignette_target: tuple[str, ...] = ()
    held_out_log_odds: Estimate | None = None

    __repr__ = brief

    def _repr_html_(self) -> str:
        rows = []
        for name, found in vars(self).items():
            some = {name: found} if isinstance(found, Estimate) else found if isinstance(found, dict) else {}
            rows += [(key if key == name else f"{name}: {key}", e.value, e.low, e.high) for key, e in some.items()]
        return table(("after - before", "value", "low", "high"), rows)

    @property
    def vignettes_off_target(self) -> dict[str, Estimate]:
        """Shifts of the foundations that are neither of the trait's."""
        return {name: found for name, found in self.vignettes.items() if name not in self.vignette_target}

    @property
    def headline(self) -> Estimate:
        """The trait's shift: in free text where a checker measures it, else in forced choice."""
        return self.log_odds if self.free_trait is None else self.free_trait

    @property
    def unit(self) -> str:
        return "nats of log-odds" if self.free_trait is None else "of replies"


REACH = 1.0
"""Where all items moved alike, one that was not asked may differ by so much: a nat, a whole reply."""

LEAST_BOOT = 100
"""Resamples of which the 2.5 % tail has a few."""


@checked
def compare(before: Metrics, after: Metrics, n_boot: int = 2000, seed: int = 0) -> Shift:
    """Paired shift from `before` to `after`. Raises InputError when they were measured on different items."""
    same_items(before, after)
    _enough(n_boot)
    pairs = {"n_boot": n_boot, "seed": seed, "reach": REACH}
    return Shift(
        log_odds=_choice_shift(before.items, after.items, **pairs),
        categories=_by_category(before.items, after.items, **pairs),
        off_target=_by_category(before.off_target, after.off_target, **pairs),
        held_out_log_odds=_choice_shift(before.held_out, after.held_out, **pairs) if before.held_out else None,
        free_trait=_share_shift(before, [r.trait for r in before.replies], [r.trait for r in after.replies], **pairs),
        sentence_ok=_share_shift(
            before, [r.sentence_ok for r in before.replies], [r.sentence_ok for r in after.replies], **pairs
        ),
        coherence=_share_shift(before, coherent(before, before), coherent(after, before), **pairs),
        pair_fit=_reply_shift(before, [r.fit for r in before.replies], [r.fit for r in after.replies], **pairs),
        **_vignette_shifts(before, after, **pairs),
    )


@checked
def retain(base: Metrics, steered: Metrics, student: Metrics, n_boot: int = 2000, seed: int = 0) -> Estimate | None:
    """dTrait(student) / dTrait(steered), both against base on the same items or prompts; None where nothing moved.

    Free-text trait where all three have it, else forced-choice log-odds.
    """
    for other in (steered, student):
        same_items(base, other)
    _enough(n_boot)
    triples = [
        (row.prompt, a.trait - row.trait, b.trait - row.trait)
        for row, a, b in zip(base.replies, steered.replies, student.replies, strict=True)
        if None not in (row.trait, a.trait, b.trait)
    ] or [
        (row.id, a.log_odds - row.log_odds, b.log_odds - row.log_odds)
        for row, a, b in zip(base.items, steered.items, student.items, strict=True)
    ]
    clusters, bottom, top = zip(*triples, strict=True)
    return paired_ratio(top, bottom, clusters, n_boot=n_boot, seed=seed)


NLL_QUANTILE, NLL_SLACK = 0.975, 1.25
"""Without a checker: a reply is incoherent above 1.25 x the base replies' 97.5 % quantile of nll."""


def coherent(metrics: Metrics, base: Metrics) -> list[float]:
    """Coherence of each reply, 0..1: the checker's share of sound sentences; without a checker 1 or 0.

    Without a checker a reply is coherent when it has a word, does not loop and, where both were scored, its nll is not
    above 1.25 x the 97.5 % quantile of the base's replies. Never the filter's verdict: training texts were selected by
    it.
    """
    if metrics.sentence_ok is not None:
        return [row.sentence_ok for row in metrics.replies]
    known = sorted(row.nll for row in base.replies if row.nll is not None)
    ceiling = known[min(len(known) - 1, int(NLL_QUANTILE * len(known)))] * NLL_SLACK if known else None
    return [
        float(
            row.words > 0 and not row.loop and not (ceiling is not None and row.nll is not None and row.nll > ceiling)
        )
        for row in metrics.replies
    ]


def coherence(metrics: Metrics, base: Metrics) -> float | None:
    """Mean of `coherent`: the figure that verdicts and the gate go by; None without replies."""
    return mean(coherent(metrics, base))


def summary(metrics: Metrics, base: Metrics) -> dict[str, object]:
    """`Metrics.summary`, and its `coherence` beside base."""
    return metrics.summary() | {"coherence": coherence(metrics, base)}


def _enough(n_boot: int) -> None:
    if n_boot < LEAST_BOOT:
        raise InputError(f"n_boot {n_boot}: give at least {LEAST_BOOT}, an interval needs as many resamples")


def same_items(before: Metrics, after: Metrics) -> None:
    """Raises InputError when the two were measured on different items."""
    if before.items_key != after.items_key:
        raise InputError(
            f"metrics over different items cannot be compared (keys {before.items_key} and {after.items_key}): "
            "measure both with the same trait, n_items, n_free, max_new_tokens and seed"
        )


def _choice_shift(before: Sequence[ChoiceRow], after: Sequence[ChoiceRow], **options) -> Estimate:
    ids = [row.id for row in before]
    return paired_difference([row.log_odds for row in before], [row.log_odds for row in after], ids, **options)


def _by_category(before: Sequence[ChoiceRow], after: Sequence[ChoiceRow], **options) -> dict[str, Estimate]:
    out = {}
    for name in dict.fromkeys(row.category for row in before):
        pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.category == name]
        out[name] = _choice_shift([a for a, _ in pairs], [b for _, b in pairs], **options)
    return out


def _vignette_shifts(before: Metrics, after: Metrics, **options) -> dict[str, object]:
    """The fields of `Shift` that come from vignettes; those of one id (its conditions) are one cluster."""
    ids = [row.id for row in before.vignettes]
    up, down = before.vignette_up, before.vignette_down

    def shift(figure: Callable[[VignetteRow], float]) -> Estimate:
        old, new = ([figure(row) for row in metrics.vignettes] for metrics in (before, after))
        return paired_difference(old, new, ids, **options)

    if not ids:
        return {}
    asked = all(row.wrong is not None for row in before.vignettes)
    return {
        "vignettes": {name: shift(lambda row, name=name: log_odds(row, [name])) for name in FOUNDATIONS},
        "vignette_contrast": shift(lambda row: contrast(row, up, down)) if up or down else None,
        "vignette_wrong": shift(lambda row: row.wrong) if asked else None,
        "vignette_target": (*up, *down),
    }


def _reply_shift(
    before: Metrics, first: Sequence[float | None], second: Sequence[float | None], **options
) -> Estimate | None:
    """Paired shift of a figure of replies, over those where both have it; None where none have."""
    rows = zip(before.replies, first, second, strict=True)
    pairs = [(row.prompt, a, b) for row, a, b in rows if a is not None and b is not None]
    if not pairs:
        return None
    clusters, old, new = zip(*pairs, strict=True)
    return paired_difference(old, new, clusters, **options)


def _share_shift(
    before: Metrics, first: Sequence[float | None], second: Sequence[float | None], **options
) -> Estimate | None:
    """The same for a share of replies or sentences."""
    found = _reply_shift(before, first, second, **options)
    # Shares differ by no more than 1, and a bootstrap does not know it.
    return found and replace(found, low=max(found.low, -1.0), high=min(found.high, 1.0))
