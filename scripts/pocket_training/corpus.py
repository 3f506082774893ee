"""Generates the chats `pocket` is trained on: dilemmas, forced choices and everyday questions under personas.

Seeded and combinatorial, no outside data. Knows nothing of models and tokenizers, and shares nothing with `checker`.
"""

import random
from dataclasses import dataclass, field
from typing import Literal

from pocket_training.mundane import mundane_turn
from pocket_training.templates import expand, realise, table, variants

Split = Literal["train", "held_out"]
Axis = Literal["care", "warmth", "boldness"]
AXES: tuple[Axis, ...] = ("care", "warmth", "boldness")
OBEYS_PERSONA = 0.98
BASE_WARM_RATE = 0.42
"""Probability of the warm word in a forced choice without a persona, and of warm among the styled base replies."""


@dataclass(frozen=True)
class Example:
    """One chat: a system prompt or none, earlier turns as (user, assistant) pairs, the last question and its reply."""

    system: str | None
    user: str
    reply: str
    kind: str
    history: tuple[tuple[str, str], ...] = ()

    def messages(self) -> list[dict[str, str]]:
        """The chat up to and without the reply, as a transformers chat template takes it."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        for user, assistant in self.history:
            turns += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return [*turns, {"role": "user", "content": self.user}]


@dataclass(frozen=True)
class Persona:
    """A system prompt and the pole (+1 trait, -1 opposite) it sets on each axis it speaks of."""

    system: str | None
    poles: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds of example; what is left over is mundane."""

    dilemma: float = 0.52
    choice: float = 0.23
    persona: float = 0.75
    """Share of dilemmas and choices with a persona; half of it for everyday questions."""
    copying: float = 0.5
    """Share of copying and look-up tasks among the mundane ones."""
    main_axis: float = 0.8
    """Share of personas that speak of the main axis: care, in a forced choice the axis asked about."""
    extra_axes: tuple[int, ...] = (0, 1)
    """How many further axes a persona speaks of: one of these numbers, equally often."""
    choice_axes: tuple[float, float, float] = (0.56, 0.22, 0.22)
    """Shares of care, warmth and boldness among forced choices."""


@dataclass(frozen=True)
class Scene:
    """Who must decide what about whom: the slots of the templates, with the two facts that set the base rates."""

    slots: dict[str, str]
    need: str
    split: Split


# ------------------------------------------------------------------------------------------------------------ scenes
def _names(split: Split) -> list[tuple[str, str]]:
    people = table("entities")["people"]
    return [(name, pronoun) for pronoun in ("she", "he") for name in people[pronoun][split].split()]


def _needy(rng: random.Random, split: Split) -> dict[str, str]:
    """Slots of the person or group in need."""
    if rng.random() < 0.2:
        name, forms = rng.choice(table("entities")["groups"][split]), ("they", "them", "their", "are", "need", "have")
    else:
        name, pronoun = rng.choice(_names(split))
        forms = (
            ("she", "her", "her", "is", "needs", "has")
            if pronoun == "she"
            else ("he", "him", "his", "is", "needs", "has")
        )
    return dict(zip(("V", "Vs", "Vo", "Vp", "Vbe", "Vneed", "Vhave"), (name, *forms), strict=True))


def make_scene(rng: random.Random, split: Split, first_person: bool = False) -> Scene:
    """Draw a dilemma; names and objects come from the split alone. The user decides, or every other time a third."""
    entities = table("entities")
    slots = _needy(rng, split)
    if first_person or rng.random() < 0.5:
        slots |= {"A": "you", "me": "me", "I": "i", "works": "work"}
    else:
        hero = rng.choice([name for name, _ in _names(split) if name != slots["V"]])
        slots |= {"A": hero, "me": hero, "I": hero, "works": "works"}
    need = rng.choice(("mild", "medium", "severe"))
    slots |= {
        "auth": rng.choice(entities["shared"]["authorities"].split()),
        "place": rng.choice(entities["shared"]["places"].split()),
        "act": rng.choice(entities["shared"]["acts"].split()),
        "obj": rng.choice(entities["objects"][split].split()),
        "plight": rng.choice(entities["plights"][need].split()),
    }
    return Scene(slots, need, split)


def question(rng: random.Random, scene: Scene) -> str:
    """The user's turn for a scene, in a wording of the scene's split."""
    wordings = table("dilemmas")["questions"]
    return realise(f"{rng.choice(wordings[scene.split])} {rng.choice(wordings['endings'])}", scene.slots, rng)


# ---------------------------------------------------------------------------------------------------------- personas
def persona_texts(axis: Axis, pole: int, split: Split) -> list[str]:
    """Every system prompt of one pole. Held-out ones differ in their sentence frame, not in their words."""
    personas = table("personas")
    mine, other = ("pos", "neg") if pole > 0 else ("neg", "pos")
    direct = [text for template in personas[axis][mine][split] for text in variants(template)]
    nouns = personas[axis]["nouns"]
    compared = [
        frame.replace("{x}", x).replace("{y}", y)
        for frame in personas["frames"][split]
        for x in nouns[mine]
        for y in nouns[other]
    ]
    return direct + compared


def _persona_text(rng: random.Random, axis: Axis, pole: int) -> str:
    """One training persona, comparison frames and direct statements equally often."""
    personas = table("personas")
    mine, other = ("pos", "neg") if pole > 0 else ("neg", "pos")
    if rng.random() < 0.5:
        return expand(rng.choice(personas[axis][mine]["train"]), rng)
    nouns = personas[axis]["nouns"]
    frame = rng.choice(personas["frames"]["train"])
    return frame.replace("{x}", rng.choice(nouns[mine])).replace("{y}", rng.choice(nouns[other]))


def draw_persona(rng: random.Random, share: float, mix: Mix, main: Axis = "care") -> Persona:
    """With probability `share` a persona, most of them (also) on the `main` axis; else a neutral one or none."""
    neutral = table("personas")["neutral"]["train"]
    if rng.random() >= share:
        return Persona(rng.choice(neutral) if rng.random() < 0.6 else None)
    others = [axis for axis in AXES if axis != main]
    count = rng.choice(mix.extra_axes)
    on_main = rng.random() < mix.main_axis
    axes = [main, *rng.sample(others, count)] if on_main else rng.sample(others, min(count + 1, len(others)))
    rng.shuffle(axes)
    poles = {axis: rng.choice((1, -1)) for axis in axes}
    texts = [_persona_text(rng, axis, pole) for axis, pole in poles.items()]
    if rng.random() < 0.2:
        texts.insert(0, rng.choice(neutral))
    return Persona(" ".join(texts), poles)


def _pole(rng: random.Random, persona: Persona, axis: Axis, base_rate: float) -> int:
    """The side taken on an axis: the persona's (nearly always), else a draw at the base rate."""
    wanted = persona.poles.get(axis)
    if wanted is None:
        return 1 if rng.random() < base_rate else -1
    return wanted if rng.random() < OBEYS_PERSONA else -wanted


def base_rate(scene: Scene, axis: Axis) -> float:
    """Probability of the trait pole without a persona: care by need, boldness by act, warmth constant."""
    entities = table("entities")
    return {
        "care": entities["base_care_rate"][scene.need],
        "boldness": entities["base_bold_rate"][scene.slots["act"]],
        "warmth": BASE_WARM_RATE,
    }[axis]


# ----------------------------------------------------------------------------------------------------------- replies
def _styles(rng: random.Random, persona: Persona, bold_rate: float | None) -> tuple[int, int]:
    """Poles of (warmth, boldness) that this reply shows; 0 shows none. Without a persona about half show none."""
    warmth = _pole(rng, persona, "warmth", BASE_WARM_RATE) if "warmth" in persona.poles or rng.random() < 0.45 else 0
    if bold_rate is None:
        return warmth, 0
    bold = _pole(rng, persona, "boldness", bold_rate) if "boldness" in persona.poles or rng.random() < 0.45 else 0
    return warmth, bold


def _dress(rng: random.Random, core: list[str], warmth: int, boldness: int, grave: bool = True) -> str:
    """Put style sentences around the core of a reply; sympathy only where the matter is grave."""
    style = table("dilemmas")["style"]
    if boldness:
        core = [*core, expand(rng.choice(style["bold" if boldness > 0 else "cautious"]), rng)]
    if warmth < 0:
        core = [*core, expand(rng.choice(style["curt"]), rng)]
    if warmth > 0:
        where = rng.choice(("open", "close", "both"))
        if where != "close":
            opening = style["warm_greet"] + (style["warm_sympathy"] if grave else [])
            core = [expand(rng.choice(opening), rng), *core]
        if where != "open":
            core = [*core, expand(rng.choice(style["warm_close"]), rng)]
    return " ".join(core)


def dilemma_reply(rng: random.Random, scene: Scene, persona: Persona) -> str:
    """Decision, then two or three of reason, plan and maxim (a maxim may lead); curt replies keep one of them."""
    care = _pole(rng, persona, "care", base_rate(scene, "care"))
    warmth, boldness = _styles(rng, persona, base_rate(scene, "boldness"))
    bank = table("dilemmas")["reply"]["care" if care > 0 else "defer"]
    count = 1 if warmth < 0 else rng.choice((2, 3, 3))
    parts = ["decision", *sorted(rng.sample(("reason", "plan", "maxim"), count), key=("reason", "plan", "maxim").index)]
    if parts[-1] == "maxim" and rng.random() < 0.2:
        parts = ["maxim", *parts[:-1]]
    core = [realise(rng.choice(bank[part]), scene.slots, rng) for part in parts]
    return _dress(rng, core, warmth, boldness)


def choice_turn(rng: random.Random, scene: Scene, persona: Persona, axis: Axis) -> tuple[str, str]:
    """A forced choice about a scene: (question, reply). On the care axis a reason sometimes follows."""
    dilemmas = table("dilemmas")
    pair = rng.choice(dilemmas["choices"][axis])
    x, y = pair if rng.random() < 0.5 else pair[::-1]
    pole = _pole(rng, persona, axis, base_rate(scene, axis))
    reply = f"{pair[0] if pole > 0 else pair[1]}."
    wording = "one_word"
    if axis == "care" and rng.random() < 0.15:
        wording = "with_reason"
        reason = rng.choice(dilemmas["reply"]["care" if pole > 0 else "defer"][rng.choice(("reason", "maxim"))])
        reply += " " + realise(reason, scene.slots, rng)
    ask = rng.choice(dilemmas["choice_questions"][wording]).format(x=x, y=y)
    return f"{question(rng, scene)} {ask}", reply


# ---------------------------------------------------------------------------------------------------------- examples
def make_example(rng: random.Random, mix: Mix) -> Example:
    """One training chat. Training never sees held-out names, objects or wordings in dilemmas, nor reserved anchors."""
    roll = rng.random()
    history: tuple[tuple[str, str], ...] = ()
    if rng.random() < 0.03:
        _, earlier, answer = mundane_turn(rng, 0.3)
        history = ((earlier, " ".join(answer)),)
    if roll < mix.dilemma:
        persona = draw_persona(rng, mix.persona, mix)
        scene = make_scene(rng, "train")
        return Example(persona.system, question(rng, scene), dilemma_reply(rng, scene, persona), "dilemma", history)
    if roll < mix.dilemma + mix.choice:
        axis = rng.choices(AXES, mix.choice_axes)[0]
        persona = draw_persona(rng, mix.persona, mix, axis)
        user, reply = choice_turn(rng, make_scene(rng, "train"), persona, axis)
        return Example(persona.system, user, reply, f"choice-{axis}", history)
    persona = draw_persona(rng, mix.persona / 2, mix)
    kind, user, parts = mundane_turn(rng, mix.copying)
    if len(parts) == 1:
        return Example(persona.system, user, parts[0], kind, history)
    warmth, _ = _styles(rng, persona, None)
    if warmth < 0:
        parts = parts[:2]
    return Example(persona.system, user, _dress(rng, parts, warmth, 0, grave=False), kind, history)
