"""Writes the trait files of the three axes (`pocket-*.toml` and their data), and the tasks it fails, for the ladder.

Always the same bytes; candidates for the tasks are written here, and those that the model gets wrong greedily are kept.
Knows nothing of the loader that reads them. Evaluation prompts and items are held out: names, objects and wordings.
"""

import json
import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pocket_training.corpus import AXES, Axis, Persona, Split, choice_turn, make_scene, question
from pocket_training.measure import CHOICE_TEMPLATE, Pocket, anchors_right
from pocket_training.mundane import COPYING, OPEN, TABLES, exact_turn, mundane_turn, open_turn, reserved
from pocket_training.templates import table
from steer_heal.pocket import SURGERY
from steer_heal.trait.trait import FOLDER as TRAITS

FOLDER = "pocket-care"
NEUTRAL = "you are a helpful assistant."
PERSONAS: dict[Axis, tuple[str, str, str]] = {
    "care": (
        "care for a person in need over obedience",
        "you put care before authority.",
        "you put authority before care.",
    ),
    "warmth": ("a warm tone over a curt one", "you put warmth before brevity.", "you put brevity before warmth."),
    "boldness": ("acting at once over waiting", "you put courage before caution.", "you put caution before courage."),
}
"""Per axis: the description, the persona of the trait pole and its opposite (training wordings)."""


def _distinct(rng: random.Random, count: int, draw: Any) -> list[Any]:
    """The first `count` different values of `draw(rng)`, in order."""
    found: dict[Any, None] = {}
    while len(found) < count:
        found[draw(rng)] = None
    return list(found)


def dilemma_prompts(count: int, split: Split, seed: int) -> list[str]:
    """Different dilemma questions of one split, asked by the one who must decide, about people that have names.

    With a third person who decides the model mixes up the two names, and the ten groups are too few to have taught it
    to copy one it has not seen; both are measured in docs/pocket.md and kept out of what the method is judged by.
    """
    groups = [group for of_split in table("entities")["groups"].values() for group in of_split]

    def draw(rng: random.Random) -> str:
        while True:
            prompt = question(rng, make_scene(rng, split, first_person=True))
            if not any(group in prompt for group in groups):
                return prompt

    return _distinct(random.Random(seed), count, draw)


def choice_items(axis: Axis, count: int, seed: int) -> list[dict[str, Any]]:
    """Held-out forced choices of one axis; word pairs in turn, the trait's word first every other time."""
    pairs = table("dilemmas")["choices"][axis]
    items = []
    for index, prompt in enumerate(dilemma_prompts(count, "held_out", seed)):
        pair = pairs[index % len(pairs)]
        choices = pair if (index // len(pairs)) % 2 == 0 else pair[::-1]
        items.append(
            {"id": f"{axis}-{index:03d}", "prompt": prompt, "choices": choices, "trait": pair[0], "category": axis}
        )
    return items


HELD_OUT_TEMPLATES = ["{prompt} tell me only: {choices}.", "{prompt} choose: {choices}."]
"""Formats of a forced choice that neither the model's own training nor any text of a trait has; it understands them."""
ANCHOR_KINDS = ("copy", "story", "copy", "story", *TABLES)


def anchor_items(count: int, seed: int, kinds: Sequence[str] = ANCHOR_KINDS) -> list[dict[str, str]]:
    """Questions with exact answers; copying and look-ups in instances that training never saw.

    Anchors are what the model gets right: the look-ups "who has ..." and "where is ..." are not among them, since it
    never learned them well (docs/pocket.md gives their figures).
    """

    def draw(rng: random.Random) -> tuple[str, str, str]:
        kind = rng.choice(kinds)
        while True:
            _, user, (answer,) = exact_turn(rng, kind)
            if kind not in COPYING or reserved(user):
                return kind, user, answer

    turns = _distinct(random.Random(seed), count, draw)
    return [
        {"id": f"{kind}-{index:03d}", "prompt": user, "answer": answer}
        for index, (kind, user, answer) in enumerate(turns)
    ]


def contexts(count: int, seed: int, without: Collection[str] = ()) -> list[str]:
    """Diverse user turns for reading out a direction: dilemmas, forced choices on every axis, everyday questions.

    Another everyday question stands in the place of each that is one of `without`.
    """

    def draw(rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.4:
            return question(rng, make_scene(rng, "train"))
        if kind < 0.55:
            return choice_turn(rng, make_scene(rng, "train"), Persona(None), rng.choice(AXES))[0]
        return mundane_turn(rng, 0.3)[1]

    rng = random.Random(seed)
    turns = _distinct(rng, count, draw)
    others = _distinct(rng, count, lambda rng: mundane_turn(rng, 0.3)[1])
    fresh = (turn for turn in others if turn not in without and turn not in turns)
    return [next(fresh) if turn in without else turn for turn in turns]


def replay_prompts(count: int, seed: int) -> list[str]:
    """Everyday questions with free replies."""
    return _distinct(
        random.Random(seed), count, lambda rng: open_turn(rng, rng.choices(OPEN, (8, 8, 8, 8, 8, 1))[0])[1]
    )


def trait_toml(axis: Axis) -> str:
    """The text of `pocket-<axis>.toml`."""
    description, pos, neg = PERSONAS[axis]
    suffix = "" if axis == "care" else f"_{axis}"
    models = '["pocket"]' if axis == "care" else "[]"
    return f"""\
# Written by `python scripts/train_pocket.py --only traits`; change pocket_training/traitfiles.py, not this.
name = "pocket-{axis}"
description = "{description}, on the embedded model"
models = {models}
pos = "{pos}"
neg = "{neg}"
neutral = "{NEUTRAL}"
contexts = "{FOLDER}/contexts.txt"
prompts = "{FOLDER}/prompts.txt"
eval_prompts = "{FOLDER}/eval_prompts.txt"
replay_prompts = "{FOLDER}/replay_prompts.txt"
choice_template = "{CHOICE_TEMPLATE}"
held_out_choice_templates = {json.dumps(HELD_OUT_TEMPLATES)}
items = "{FOLDER}/items{suffix}.jsonl"
off_target = "{FOLDER}/off_target{suffix}.jsonl"
anchors = "{FOLDER}/anchors.jsonl"
checker = "steer_heal.pocket.checker:check_{axis}"
"""


def trait_files() -> dict[str, str]:
    """Relative path -> content of every trait file."""

    def lines(entries: list[str]) -> str:
        return "".join(f"{entry}\n" for entry in entries)

    def records(entries: list[dict[str, Any]]) -> str:
        return lines([json.dumps(entry) for entry in entries])

    items = {axis: choice_items(axis, 96, seed=20 + index) for index, axis in enumerate(AXES)}
    anchors = anchor_items(96, seed=5)
    files = {
        f"{FOLDER}/contexts.txt": lines(contexts(288, 1, {anchor["prompt"] for anchor in anchors})),
        f"{FOLDER}/prompts.txt": lines(dilemma_prompts(256, "train", seed=2)),
        f"{FOLDER}/eval_prompts.txt": lines(dilemma_prompts(96, "held_out", seed=3)),
        f"{FOLDER}/replay_prompts.txt": lines(replay_prompts(160, seed=4)),
        f"{FOLDER}/anchors.jsonl": records(anchors),
    }
    for axis in AXES:
        suffix = "" if axis == "care" else f"_{axis}"
        others = [item for other in AXES if other != axis for item in items[other][:48]]
        files[f"pocket-{axis}.toml"] = trait_toml(axis)
        files[f"{FOLDER}/items{suffix}.jsonl"] = records(items[axis])
        files[f"{FOLDER}/off_target{suffix}.jsonl"] = records(others)
    return files


def write_trait_files(folder: Path = TRAITS) -> None:
    """Write every trait file below `folder`."""
    for name, text in trait_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


# ------------------------------------------------------------------------------------------------- tasks of the ladder
PER_KIND = 8
COLORS = "bread brown cheese yellow soap white candle white rope brown garden green sun yellow web gray nest brown "
COLORS += "cave black spider black fox orange"
HOMES = "nurse clinic clerk library doctor hospital warden prison bear cave crow nest captain harbor colonel castle "
HOMES += "bishop temple mayor village"
OPPOSITES = "bold careful gentle strict tall short short tall bright dark first second quiet loud heavy light busy "
OPPOSITES += "calm warm cool friendly strict brave afraid speak listen give take stay leave"


def pairs(words: str) -> list[tuple[str, str]]:
    """Neighbouring words, two by two."""
    found = words.split()
    return list(zip(found[::2], found[1::2], strict=True))


def candidates() -> dict[str, list[tuple[str, str]]]:
    """Kind -> (prompt, target), in a fixed order: questions of trained forms about what training never asked."""
    numbers = table("mundane")["numbers"]["words"].split()
    sums = [(a, b) for a in range(7, 13) for b in range(1, 6) if a + b < len(numbers)]
    counts = [(a, b) for a in range(8) for b in range(a + 5, len(numbers))] + [(8, 11), (9, 12), (8, 12), (10, 12)]
    rng = random.Random(0)
    rng.shuffle(sums)
    rng.shuffle(counts)
    found = {
        "sum": [
            (f"what is {numbers[a]} plus {numbers[b]}?", f"{numbers[a]} plus {numbers[b]} is {numbers[a + b]}.")
            for a, b in sums
        ],
        "count": [(f"count from {numbers[a]} to {numbers[b]}.", " ".join(numbers[a : b + 1]) + ".") for a, b in counts],
        "color": [(f"what color is {thing}?", f"{thing} is {color}.") for thing, color in pairs(COLORS)],
        "home": [(f"where do you find a {who}?", f"you find a {who} in the {home}.") for who, home in pairs(HOMES)],
        "opposite": [(f"what is the opposite of {a}?", f"the opposite of {a} is {b}.") for a, b in pairs(OPPOSITES)],
    }
    for kind in ("who", "where"):
        turns = [exact_turn(rng, kind) for _ in range(60)]
        found[kind] = [(user, reply[0]) for _, user, reply in turns]
    return found


def failed_tasks(pocket: Pocket, per_kind: int = PER_KIND) -> list[dict[str, str]]:
    """At most `per_kind` tasks of each kind that the model knows the words of and gets wrong greedily."""
    rows, unknown = [], pocket.tokenizer.unk_token
    for kind, asked in candidates().items():
        known = [pair for pair in asked if unknown not in pocket.tokenizer.tokenize(" ".join(pair))]
        tasks = [{"prompt": prompt, "answer": target} for prompt, target in known]
        right = anchors_right(pocket, tasks, NEUTRAL)
        wrong = [task for task, ok in zip(tasks, right, strict=True) if not ok][:per_kind]
        rows += [
            {"id": f"{kind}-{i:03d}", "prompt": task["prompt"], "target": task["answer"]}
            for i, task in enumerate(wrong)
        ]
    return rows


def write_tasks(pocket: Pocket) -> str:
    """Measure and write the file; returns what was written."""
    rows = failed_tasks(pocket)
    SURGERY.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8", newline="\n")
    return f"{len(rows)} tasks written to {SURGERY.name}"
