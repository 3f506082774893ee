"""The checks a trained `pocket` must pass, and the dose sweep: everything the data card reports, on held-out questions.

Knows nothing of training and of how the card is laid out.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pocket_training.corpus import AXES, Axis, Split, make_scene, persona_texts, question
from pocket_training.measure import (
    Checker,
    Choice,
    Estimate,
    FreeText,
    Pocket,
    Reply,
    Vector,
    anchors_right,
    forced_choice,
    free_text,
    mean_difference,
    nll,
    replies,
    steered,
)
from pocket_training.traitfiles import (
    NEUTRAL,
    PERSONAS,
    anchor_items,
    choice_items,
    contexts,
    dilemma_prompts,
    replay_prompts,
)
from steer_heal.pocket import checker
from steer_heal.pocket.reading import read_question

CHECKERS: dict[Axis, Checker] = {
    "care": checker.check_care,
    "warmth": checker.check_warmth,
    "boldness": checker.check_boldness,
}
DOSES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)


@dataclass(frozen=True)
class Row:
    """One system prompt: its replies judged by each axis's checker, and forced choice on each axis."""

    name: str
    texts: dict[Axis, FreeText]
    choices: dict[Axis, Choice]


@dataclass(frozen=True)
class DoseRow:
    """One dose of a vector: replies, forced choice on target and off target, nll under the unsteered model, anchors."""

    dose: float
    text: FreeText
    choices: dict[Axis, Choice]
    nll: Estimate
    anchors: float


def persona_row(pocket: Pocket, name: str, system: str | None, count: int, seed: int) -> Row:
    """Measure one system prompt on held-out dilemmas."""
    prompts = dilemma_prompts(count, "held_out", seed=100 + seed)
    found = replies(pocket, prompts, system, seed=seed)
    texts = {axis: free_text(prompts, found, CHECKERS[axis]) for axis in AXES}
    choices = {axis: forced_choice(pocket, choice_items(axis, count, 200 + seed), system) for axis in AXES}
    return Row(name, texts, choices)


def by_question(pocket: Pocket, count: int) -> dict[str, FreeText]:
    """Neutral replies to ALL dilemmas of each split, then by who decides and who is in need; and to everyday questions.

    Unlike `dilemma_prompts` this leaves nothing out: it is the corpus's own distribution.
    """
    found = {}
    splits: tuple[Split, ...] = ("train", "held_out")
    for split in splits:
        rng = random.Random(700)
        prompts = [question(rng, make_scene(rng, split)) for _ in range(2 * count)]
        pairs = list(zip(prompts, replies(pocket, prompts, NEUTRAL, seed=8), strict=True))
        cells: dict[str, list[tuple[str, Reply]]] = {"all": pairs}
        for prompt, reply in pairs:
            meant = read_question(prompt).meant
            decider = "the asker decides" if meant["hero"] == "you" else "a third person decides"
            needy = "a group in need" if meant["they"] == "they" else "a named person in need"
            cells.setdefault(f"{decider}, {needy}", []).append((prompt, reply))
        for cell, members in sorted(cells.items()):
            asked, told = zip(*members, strict=True)
            found[f"{split.replace('_', '-')} dilemmas, {cell}"] = free_text(asked, told, checker.check_care)
    asked = replay_prompts(count, seed=4)
    found["everyday questions"] = free_text(asked, replies(pocket, asked, NEUTRAL, seed=9), checker.check_care)
    return found


def pooled_persona_rows(pocket: Pocket, axis: Axis, count: int) -> dict[int, Row]:
    """Both poles of an axis, over both held-out statements and four held-out comparisons; `count` replies per pole."""
    rows = {}
    for pole in (1, -1):
        texts = persona_texts(axis, pole, "held_out")
        systems = texts[:2] + random.Random(0).sample(texts[2:], 4)
        prompts = dilemma_prompts(count, "held_out", seed=300)
        found, odds = [], {other: [] for other in AXES}
        for index, system in enumerate(systems):
            found += zip(
                prompts[index :: len(systems)],
                replies(pocket, prompts[index :: len(systems)], system, seed=index),
                strict=True,
            )
            for other in AXES:
                odds[other].append(
                    forced_choice(pocket, choice_items(other, max(8, count // len(systems)), 400 + index), system)
                )
        asked, told = [prompt for prompt, _ in found], [reply for _, reply in found]
        rows[pole] = Row(
            f"{axis} {'+' if pole > 0 else '-'} (held-out personas)",
            {other: free_text(asked, told, CHECKERS[other]) for other in AXES},
            {other: _pool(values) for other, values in odds.items()},
        )
    return rows


def _pool(choices: Sequence[Choice]) -> Choice:
    """One forced-choice figure for several personas; the error is over personas."""
    return Choice(
        Estimate.of([choice.rate.mean for choice in choices]),
        Estimate.of([choice.log_odds.mean for choice in choices]),
        sum(choice.allowed_mass for choice in choices) / len(choices),
    )


def extract(pocket: Pocket, axis: Axis, blocks: Sequence[int]) -> tuple[Vector, dict[int, float]]:
    """The axis's vector from its training personas over 128 mixed contexts, and its norm relative to the residual."""
    _, pos, neg = PERSONAS[axis]
    vector, residual = mean_difference(pocket, pos, neg, contexts(128, seed=1), blocks)
    return vector, {block: (vector[block].norm() / residual[block]).item() for block in blocks}


def dose_sweep(
    pocket: Pocket, axis: Axis, blocks: Sequence[int], count: int, doses: Sequence[float] = DOSES
) -> list[DoseRow]:
    """Steer along an axis at each dose under the neutral system prompt, on held-out dilemmas."""
    vector, _ = extract(pocket, axis, blocks)
    prompts = dilemma_prompts(count, "held_out", seed=500)
    items: dict[Axis, list[dict[str, Any]]] = {other: choice_items(other, min(count, 96), 600) for other in AXES}
    anchors = anchor_items(64, seed=5)
    rows = []
    for dose in doses:
        with steered(pocket, vector, dose):
            found = replies(pocket, prompts, NEUTRAL, seed=7)
            choices = {other: forced_choice(pocket, items[other], NEUTRAL) for other in AXES}
            right = anchors_right(pocket, anchors, NEUTRAL)
        told = free_text(prompts, found, CHECKERS[axis])
        rows.append(DoseRow(dose, told, choices, nll(pocket, prompts, found, NEUTRAL), sum(right) / len(right)))
    return rows


# -------------------------------------------------------------------------------------------------------- requirements
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
    questions = by_question(pocket, count)
    whole = questions["held-out dilemmas, all"].sentence_ok
    first = "sentences right, ALL held-out dilemmas"
    swept = sweeps[SWEPT]
    targets = [Target(first, f"{whole} (n {whole.n})", "at least .95", whole.mean >= 0.95)]
    targets += _base_targets(base) + _separations(poles)
    targets += _anchor_targets(sum(right), len(right), swept[-1]) + _dose_targets(swept)
    return Results(rows, questions, anchors, sweeps, norms, targets)


def _base_targets(base: list[Row]) -> list[Target]:
    found = []
    for row in base:
        text, name = row.texts["care"], f"system prompt {row.name}"
        assert text.trait is not None
        sound, trait = text.sentence_ok, text.trait
        found += [
            Target(f"sentences right, {name}", f"{sound} (n {sound.n})", "at least .95", sound.mean >= 0.95),
            Target(f"trait rate, {name}", f"{trait} (n {trait.n})", ".25 to .45", 0.25 <= trait.mean <= 0.45),
            Target(f"words per reply, {name}", f"{text.words:.1f}", "25 to 45", 25 <= text.words <= 45),
        ]
    sides = {side: fmean(row.texts["care"].by_stance[side].mean for row in base) for side in (0.0, 1.0)}
    error = fmean(row.texts["care"].by_stance[side].se for row in base for side in sides)
    gap = sides[1.0] - sides[0.0]
    measured = f"{gap:+.3f} (each side ± {error:.3f})"
    found.append(Target("sentences right: care minus deference replies", measured, "within .03", abs(gap) <= 0.03))
    return found


def _separations(poles: dict[Axis, dict[int, Row]]) -> list[Target]:
    found = []
    for axis, pair in poles.items():
        bound = 0.9 if axis == "care" else 0.6
        wanted = f"at least {bound:.1f}".replace("0.", ".")
        texts, choices = ([getattr(pair[pole], kind)[axis] for pole in (1, -1)] for kind in ("texts", "choices"))
        both = {"replies": [text.trait for text in texts], "forced choice": [choice.rate for choice in choices]}
        for where, (up, down) in both.items():
            gap, error = up.mean - down.mean, (up.se**2 + down.se**2) ** 0.5
            counted = f"n {up.n} + {down.n}" if where == "replies" else f"{up.n} + {down.n} personas"
            measured = f"{gap:.3f} ± {error:.3f} ({counted})"
            found.append(Target(f"persona separation in {where}, {axis}", measured, wanted, gap >= bound))
    return found


def _anchor_targets(right: int, count: int, strongest: DoseRow) -> list[Target]:
    rate, kept = right / count, strongest.anchors
    error = (rate * (1 - rate) / count) ** 0.5
    return [
        Target("anchors right", f"{rate:.3f} ± {error:.3f} (n {count})", "at least .95", rate >= 0.95),
        Target(f"anchors right at dose {strongest.dose:g}", f"{kept:.3f} (n 64)", "below .7", kept < 0.7),
    ]


def _dose_targets(sweep: list[DoseRow]) -> list[Target]:
    start = sweep[0].text.sentence_ok.mean
    moved = [row for row in sweep if row.text.trait and row.text.trait.mean >= 0.8]
    clean = [row for row in moved if row.text.sentence_ok.mean >= start - 0.03]
    broken = [row for row in moved if row.dose <= 2 and row.text.sentence_ok.mean < start - 0.05]

    def some(name: str, rows: list[DoseRow]) -> Target:
        return Target(name, ", ".join(f"{row.dose:g}" for row in rows) or "none", "some", bool(rows))

    return [
        some("doses with trait >= .8 and sentences within .03 of dose 0", clean),
        some("doses <= 2 with trait >= .8 and sentences down by more than .05", broken),
    ]
