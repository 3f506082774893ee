"""The checks a trained `pocket` must pass, and the dose sweep: everything the data card reports, on held-out questions.

Knows nothing of training and of how the card is laid out.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
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
