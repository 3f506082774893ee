"""Keep or revert: a model state's figures by item, what is asked of them after a change, and what came of it.

Knows nothing of models: every function here is a pure one over metrics and figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

from steer_heal.errors import InputError
from steer_heal.evaluation.anchors.tasks import Checked
from steer_heal.evaluation.metrics import Metrics
from steer_heal.evaluation.shift import coherent
from steer_heal.statistics import Estimate, paired_difference

Figures = Mapping[str, Mapping[str, float]]
"""Figure name -> item id -> value, higher is better: {"anchors": {"sum-1": 1.0, ...}, "coherence": {...}}."""


@dataclass(frozen=True)
class Before:
    """The figures of the student before this round and of the original model."""

    previous: Figures
    original: Figures


@dataclass(frozen=True)
class Check:
    """What is asked of one figure, in the figure's own unit.

    Attributes:
        floor: least mean after the change, absolute; `floor_words` say in the reasons where it comes from.
        share: least mean as a share of the original's.
        surely: a mean under floor or share reverts only where its paired interval against the original is under it too;
            for a figure that is noisy by item, such as length.
        max_drop: largest drop against the previous round. total_drop: largest drop against the original; it bounds what
            drops of many rounds may add up to.
    """

    figure: str
    floor: float | None = None
    share: float | None = None
    max_drop: float | None = None
    total_drop: float | None = None
    floor_words: str = "absolute"
    surely: bool = False


@dataclass(frozen=True)
class Decision:
    """What came of the checks.

    Attributes:
        outcome: keep, revert or inconclusive.
        reasons: one per question asked, those that decided first.
        regressed: the ids whose value fell against the original, by figure.
        within: every drop that was found is within what is allowed, whatever its interval says: the best guess where
            the outcome is inconclusive.
    """

    outcome: str
    reasons: tuple[str, ...]
    regressed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    within: bool = True

    def save(self, path: str | Path) -> None:
        """`decision.json`."""
        Path(path).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")


ROUNDING = 1e-9
"""A drop of exactly what is allowed is allowed, whatever the last bit of a float says."""

DEFAULT_CHECKS = (
    Check("coherence", share=0.8, max_drop=0.10, total_drop=0.15),
    Check("anchors", max_drop=0.10, total_drop=0.15),
    Check("words", share=0.8, surely=True),
    Check("distinct4", share=0.8),
    Check("token_entropy", share=0.8),
)


def figures(metrics: Metrics, original: Metrics, checked: Checked | None = None) -> dict[str, dict[str, float]]:
    """The figures of `DEFAULT_CHECKS` from metrics: coherence and words per prompt, anchors per id, diversity pooled.

    Anchors are those the original got right, from `checked` where given, else from the metrics; without any the
    figure is left out, and its check must be too.
    """
    coherence: dict[str, list[float]] = {}
    words: dict[str, list[float]] = {}
    for row, ok in zip(metrics.replies, coherent(metrics, original), strict=True):
        coherence.setdefault(row.prompt, []).append(ok)
        words.setdefault(row.prompt, []).append(float(row.words))
    held = {row.id for row in original.anchors if row.right}
    anchors = checked.right if checked else {row.id: float(row.right) for row in metrics.anchors if row.id in held}
    out = {
        "coherence": {prompt: fmean(some) for prompt, some in coherence.items()},
        "words": {prompt: fmean(some) for prompt, some in words.items()},
        "anchors": anchors,
    } | {
        # A model that says nothing has no diversity, which must not pass for a figure that was not measured.
        name: {} if getattr(original, name) is None else {"all": getattr(metrics, name) or 0.0}
        for name in ("distinct4", "token_entropy")
    }
    return {name: found for name, found in out.items() if found}


def decide(before: Before, after: Figures, checks: Sequence[Check] = DEFAULT_CHECKS) -> Decision:
    """Keep or revert a change: floors, then paired drops against the previous round and against the original.

    - under a floor: revert, whatever the rest says; NaN is under every floor (but see `Check.surely`);
    - the whole 95 % interval of a drop beyond what is allowed: revert;
    - the whole interval within what is allowed: fine; anything between, or one item only: inconclusive.

    Revert outweighs inconclusive, inconclusive outweighs keep: only a change shown to be no worse is kept. Raises
    InputError when a figure is missing, when its items differ, or without checks.
    """
    if not checks:
        raise InputError("no checks were given: a gate without a check would keep everything")
    worst, good, regressed, within = {"revert": [], "inconclusive": []}, [], {}, True
    for one in checks:
        now, previous, original = (
            _figure(figures, one.figure) for figures in (after, before.previous, before.original)
        )
        _same_ids(one.figure, now, previous, original)
        lost = tuple(item for item in now if not now[item] >= original[item])
        if lost:
            regressed[one.figure] = lost
        within = within and _within(one, now, previous, original)
        for outcome, reason in (*_floors(one, now, original), *_drops(one, now, previous, original)):
            (good if outcome == "keep" else worst[outcome]).append(reason)
    outcome = "revert" if worst["revert"] else "inconclusive" if worst["inconclusive"] else "keep"
    return Decision(outcome, (*worst["revert"], *worst["inconclusive"], *good), regressed, within)


def _within(one: Check, now, previous, original) -> bool:
    """Whether the mean drops themselves are within what is allowed; NaN is not."""
    mean, pairs = fmean(now.values()), ((one.max_drop, previous), (one.total_drop, original))
    allowed = [(drop, fmean(reference.values())) for drop, reference in pairs if drop is not None]
    return all(mean - reference >= -drop - ROUNDING for drop, reference in allowed)


def _floors(one: Check, now: Mapping[str, float], original: Mapping[str, float]) -> list[tuple[str, str]]:
    floors = []
    if one.floor is not None:
        floors.append((one.floor, one.floor_words))
    if one.share is not None:
        floors.append((one.share * fmean(original.values()), f"{one.share:.0%} of the original's"))
    mean, out = fmean(now.values()), []
    for floor, kind in floors:
        told = f"the floor {floor:.3f} ({kind})"
        if mean >= floor - ROUNDING:
            out.append(("keep", f"{one.figure} {mean:.3f} stands on {told}"))
        elif one.surely and (shift := _shift(original, now)).high >= floor - fmean(original.values()) - ROUNDING:
            out.append(("keep", f"{one.figure} {mean:.3f} is not surely under {told}: against the original {shift}"))
        else:
            out.append(("revert", f"{one.figure} {mean:.3f} is under {told}"))
    return out


def _drops(one: Check, now, previous, original) -> list[tuple[str, str]]:
    """Outcome and reason of each allowed drop, from the paired interval of after - reference."""
    out = []
    for allowed, reference, words in (
        (one.max_drop, previous, "the previous round"),
        (one.total_drop, original, "the original"),
    ):
        if allowed is None:
            continue
        shift = _shift(reference, now)
        outcome = "inconclusive"
        if shift.high < -allowed - ROUNDING:
            outcome = "revert"
        elif shift.low >= -allowed - ROUNDING:
            outcome = "keep"
        said = {"revert": "surely beyond", "keep": "surely within", "inconclusive": "perhaps beyond"}[outcome]
        out.append((outcome, f"{one.figure} against {words}: {shift}, {said} the allowed drop of {allowed:g}"))
    return out


def _shift(reference: Mapping[str, float], now: Mapping[str, float]) -> Estimate:
    ids = list(now)
    shift = paired_difference([reference[i] for i in ids], [now[i] for i in ids], ids)
    # A figure that cannot be measured is the worst there is, not an unknown.
    return Estimate(-math.inf, -math.inf, -math.inf, shift.n) if math.isnan(shift.value) else shift


def _figure(figures: Figures, name: str) -> Mapping[str, float]:
    if not figures.get(name):
        raise InputError(f"figure {name!r} was not measured: measure it or leave its check out")
    return figures[name]


def _same_ids(name: str, *figures: Mapping[str, float]) -> None:
    first, *others = (set(figure) for figure in figures)
    for other in others:
        if other != first:
            odd = min(first ^ other)
            raise InputError(
                f"figure {name!r} was measured on different items (such as {odd[:60]!r}): use the same ones"
            )
