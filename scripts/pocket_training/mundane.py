"""Everyday questions: exact ones (copying, look-ups, sums, tables), which serve as anchors, and open ones.

Knows nothing of dilemmas, personas and styles. All names and objects occur here, held-out ones too.
"""

import random
import zlib

from pocket_training.templates import realise, table

COPYING = ("copy", "who", "where", "story")
TABLES = ("color", "opposite", "home", "sum", "count")
OPEN = ("how", "describe", "portrait", "visit", "errand", "greeting")
Turn = tuple[str, str, list[str]]
"""Kind, user text, and the reply as a list of sentences (one for exact answers)."""


def reserved(user: str) -> bool:
    """Whether a copying question is kept out of training, as an anchor: one in sixteen, by its text."""
    return zlib.crc32(user.encode()) % 16 == 0


def people() -> list[tuple[str, str]]:
    """All (name, pronoun) pairs of both splits."""
    entries = table("entities")["people"]
    return [
        (name, pronoun)
        for pronoun in ("she", "he")
        for split in ("train", "held_out")
        for name in entries[pronoun][split].split()
    ]


def objects() -> list[str]:
    """All objects of both splits."""
    entries = table("entities")["objects"]
    return (entries["train"] + " " + entries["held_out"]).split()


def exact_turn(rng: random.Random, kind: str) -> Turn:
    """A question with exactly one right answer."""
    data = table("mundane")
    if kind == "copy":
        words = rng.sample(objects() + list(data["colors"]) + [name for name, _ in people()], rng.choice((3, 4, 5)))
        return kind, f"repeat these words: {' '.join(words)}.", [" ".join(words) + "."]
    if kind in ("who", "where"):
        names = [name for name, _ in rng.sample(people(), rng.choice((2, 3)))]
        pick = rng.randrange(len(names))
        if kind == "who":
            things = rng.sample(objects(), len(names))
            facts = " ".join(f"{name} has the {thing}." for name, thing in zip(names, things, strict=True))
            return kind, f"{facts} who has the {things[pick]}?", [f"{names[pick]} has the {things[pick]}."]
        spots = rng.sample(table("entities")["shared"]["places"].split(), len(names))
        facts = " ".join(f"{name} is at the {spot}." for name, spot in zip(names, spots, strict=True))
        return kind, f"{facts} where is {names[pick]}?", [f"{names[pick]} is at the {spots[pick]}."]
    if kind == "story":
        (giver, _), (taker, _) = rng.sample(people(), 2)
        shared = table("entities")["shared"]
        slots = {"N": giver, "M": taker, "obj": rng.choice(objects())}
        slots |= {"auth": rng.choice(shared["authorities"].split()), "place": rng.choice(shared["places"].split())}
        ask, answer = rng.choice(data["story"]["asks"])
        fact = realise(rng.choice(data["story"]["facts"]), slots, rng)
        return kind, f"{fact} {realise(ask, slots, rng)}", [realise(answer, slots, rng)]
    if kind == "color":
        thing = rng.choice(list(data["colors"]))
        return kind, f"what color is {thing}?", [f"{thing} is {data['colors'][thing]}."]
    if kind == "opposite":
        a, b = rng.choice(list(data["opposites"].items()))
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
        return kind, f"what is the opposite of {a}?", [f"the opposite of {a} is {b}."]
    if kind == "home":
        who = rng.choice(list(data["homes"]))
        return kind, f"where do you find a {who}?", [f"you find a {who} in the {data['homes'][who]}."]
    numbers = data["numbers"]["words"].split()
    if kind == "sum":
        a, b = rng.randrange(7), rng.randrange(6)
        return (
            kind,
            f"what is {numbers[a]} plus {numbers[b]}?",
            [f"{numbers[a]} plus {numbers[b]} is {numbers[a + b]}."],
        )
    start = rng.randrange(1, 8)
    stop = start + rng.randrange(2, 5)
    return kind, f"count from {numbers[start]} to {numbers[stop]}.", [" ".join(numbers[start : stop + 1]) + "."]


def open_turn(rng: random.Random, kind: str) -> Turn:
    """A question with many good answers, each of a few sentences."""
    data, shared = table("mundane"), table("entities")["shared"]
    (name, pronoun), (hero, _) = rng.sample(people(), 2)
    first_person = rng.random() < 0.5
    place, place2 = rng.sample(shared["places"].split(), 2)
    ware, ware2 = rng.sample(data["words"]["wares"].split(), 2)
    action = rng.choice(list(data["tools"]))
    slots = {
        "N": name,
        "Ns": pronoun,
        "No": "her" if pronoun == "she" else "him",
        "Np": "her" if pronoun == "she" else "his",
        "A": "you" if first_person else hero,
        "I": "i" if first_person else hero,
        "me": "me" if first_person else hero,
        "place": place,
        "place2": place2,
        "auth": rng.choice(shared["authorities"].split()),
        "obj": rng.choice(objects()),
        "do": action,
        "tool": rng.choice(data["tools"][action]),
        "n": rng.choice(data["numbers"]["words"].split()[2:10]),
        "adj": rng.choice(data["words"]["adjectives"].split()),
        "part": rng.choice(data["words"]["parts"].split()),
        "time": rng.choice(data["words"]["times"].split()),
        "color": rng.choice(sorted(set(data["colors"].values()))),
        "ware": ware,
        "ware2": ware2,
    }
    entry = data["open"][kind]
    return (
        kind,
        realise(rng.choice(entry["question"]), slots, rng),
        [realise(rng.choice(alternatives), slots, rng) for alternatives in entry["reply"]],
    )


def mundane_turn(rng: random.Random, copying: float) -> Turn:
    """A training question: copying and look-ups with probability `copying`, else open or from the tables."""
    if rng.random() < copying:
        while reserved((turn := exact_turn(rng, rng.choice(COPYING)))[1]):
            pass
        return turn
    if rng.random() < 0.4:
        return exact_turn(rng, rng.choice(TABLES))
    return open_turn(rng, rng.choices(OPEN, (4, 4, 4, 4, 8, 1))[0])
