"""Every check on trained weights: what was measured, and the requirements that it meets or not.

Knows nothing of how the figures are shown.
"""

from dataclasses import dataclass
from statistics import fmean

from pocket_training.checks import DoseRow, Row, by_question, dose_sweep, extract, persona_row, pooled_persona_rows
from pocket_training.corpus import AXES
from pocket_training.measure import FreeText, Pocket, anchors_right
from pocket_training.traitfiles import NEUTRAL, anchor_items

BLOCK_SETS = ((1,), (2,), (1, 2))
SWEPT = (1, 2)
"""The blocks a band of .45-.55 of the depth picks, rounded outwards: the sweep that the checks are read from."""


@dataclass(frozen=True)
class Target:
    """One requirement: what was measured, the bound as text, and whether it holds."""

    name: str
    measured: str
    bound: str
    met: bool


@dataclass(frozen=True)
class Results:
    """All measurements of the card."""

    rows: list[Row]
    questions: dict[str, FreeText]
    anchors: dict[str, tuple[int, int]]
    """Right and asked, by kind."""
    sweeps: dict[tuple[int, ...], list[DoseRow]]
    norms: dict[tuple[int, ...], float]
    targets: list[Target]


def run_checks(pocket: Pocket, count: int = 192) -> Results:
    """Measure everything; `count` replies per row."""
    base = [persona_row(pocket, "none", None, count, 1), persona_row(pocket, f'"{NEUTRAL}"', NEUTRAL, count, 2)]
    poles = {axis: pooled_persona_rows(pocket, axis, count) for axis in AXES}
    items = anchor_items(192, seed=5)
    right = anchors_right(pocket, items, NEUTRAL)
    lookups = anchor_items(96, seed=6, kinds=("who", "where"))
    kinds: dict[str, list[bool]] = {}
    for item, good in zip(items + lookups, right + anchors_right(pocket, lookups, NEUTRAL), strict=True):
        kinds.setdefault(item["id"].split("-")[0], []).append(good)
    anchors = {kind: (sum(found), len(found)) for kind, found in sorted(kinds.items())}
    sweeps = {blocks: dose_sweep(pocket, "care", blocks, count // 2) for blocks in BLOCK_SETS}
    norms = {blocks: fmean(extract(pocket, "care", blocks)[1].values()) for blocks in BLOCK_SETS}
    rows = base + [row for pair in poles.values() for row in pair.values()]
    targets = _base_targets(base) + _separations(poles) + _anchor_targets(sum(right), len(right), sweeps[SWEPT])
    questions = by_question(pocket, count)
    whole = questions["held-out dilemmas, all"].sentence_ok
    targets.insert(
        0,
        Target("sentences right, ALL held-out dilemmas", f"{whole} (n {whole.n})", "at least .95", whole.mean >= 0.95),
    )
    return Results(rows, questions, anchors, sweeps, norms, targets + _dose_targets(sweeps[SWEPT]))


def _base_targets(base: list[Row]) -> list[Target]:
    found = []
    for row in base:
        text = row.texts["care"]
        assert text.trait is not None
        name = f"system prompt {row.name}"
        found += [
            Target(
                f"sentences right, {name}",
                f"{text.sentence_ok} (n {text.sentence_ok.n})",
                "at least .95",
                text.sentence_ok.mean >= 0.95,
            ),
            Target(
                f"trait rate, {name}", f"{text.trait} (n {text.trait.n})", ".25 to .45", 0.25 <= text.trait.mean <= 0.45
            ),
            Target(f"words per reply, {name}", f"{text.words:.1f}", "25 to 45", 25 <= text.words <= 45),
        ]
    sides = {side: fmean(row.texts["care"].by_stance[side].mean for row in base) for side in (0.0, 1.0)}
    error = fmean(row.texts["care"].by_stance[side].se for row in base for side in sides)
    gap = sides[1.0] - sides[0.0]
    found.append(
        Target(
            "sentences right: care minus deference replies",
            f"{gap:+.3f} (each side ± {error:.3f})",
            "within .03",
            abs(gap) <= 0.03,
        )
    )
    return found


def _separations(poles: dict) -> list[Target]:
    found = []
    for axis, pair in poles.items():
        bound = 0.9 if axis == "care" else 0.6
        up, down = pair[1].texts[axis].trait, pair[-1].texts[axis].trait
        error = (up.se**2 + down.se**2) ** 0.5
        gap = up.mean - down.mean
        found.append(
            Target(
                f"persona separation in replies, {axis}",
                f"{gap:.3f} ± {error:.3f} (n {up.n} + {down.n})",
                f"at least {bound:.1f}".replace("0.", "."),
                gap >= bound,
            )
        )
        up, down = pair[1].choices[axis].rate, pair[-1].choices[axis].rate
        gap, error = up.mean - down.mean, (up.se**2 + down.se**2) ** 0.5
        found.append(
            Target(
                f"persona separation in forced choice, {axis}",
                f"{gap:.3f} ± {error:.3f} ({up.n} + {down.n} personas)",
                f"at least {bound:.1f}".replace("0.", "."),
                gap >= bound,
            )
        )
    return found


def _anchor_targets(right: int, count: int, sweep: list[DoseRow]) -> list[Target]:
    rate = right / count
    error = (rate * (1 - rate) / count) ** 0.5
    return [
        Target("anchors right", f"{rate:.3f} ± {error:.3f} (n {count})", "at least .95", rate >= 0.95),
        Target(
            f"anchors right at dose {sweep[-1].dose:g}",
            f"{sweep[-1].anchors:.3f} (n 64)",
            "below .7",
            sweep[-1].anchors < 0.7,
        ),
    ]


def _dose_targets(sweep: list[DoseRow]) -> list[Target]:
    start = sweep[0].text.sentence_ok.mean
    clean = [
        row
        for row in sweep
        if row.text.trait and row.text.trait.mean >= 0.8 and row.text.sentence_ok.mean >= start - 0.03
    ]
    broken = [
        row
        for row in sweep
        if row.dose <= 2 and row.text.trait and row.text.trait.mean >= 0.8 and row.text.sentence_ok.mean < start - 0.05
    ]
    return [
        Target(
            "doses with trait >= .8 and sentences within .03 of dose 0",
            ", ".join(f"{row.dose:g}" for row in clean) or "none",
            "some",
            bool(clean),
        ),
        Target(
            "doses <= 2 with trait >= .8 and sentences down by more than .05",
            ", ".join(f"{row.dose:g}" for row in broken) or "none",
            "some",
            bool(broken),
        ),
    ]
