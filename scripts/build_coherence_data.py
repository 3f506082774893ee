"""Builds tests/data/coherence_labelled.jsonl from hand-written pieces and seeded corruptions; byte-identical each time.

    python scripts/build_coherence_data.py

Knows nothing of the filter. Pieces are in tests/data/coherence_seeds/, one file per family, separated by lines "%%".
"""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
SEEDS = DATA / "coherence_seeds"
TABLES = tomllib.loads((SEEDS / "tables.toml").read_text(encoding="utf-8"))
PER_FAMILY = 52
JOINED = (
    "narrative", "expository", "dialogue", "lists", "technical", "code", "markup", "miscellany", "poetry",
    "defiance", "non_native", "advice", "letters",
)  # fmt: skip
HELD_OUT = frozenset(TABLES["held_out"].split())
"""Families that nobody looked at while the limits of the model-free gates were chosen."""
PROSE = ("narrative", "expository", "advice", "letters", "technical")


def pieces(family: str) -> list[str]:
    """The hand-written pieces of a family."""
    text = (SEEDS / f"{family}.txt").read_text(encoding="utf-8")
    return [piece.strip() for piece in text.split("\n%%\n")]


PROSE_PIECES = [piece for family in PROSE for piece in pieces(family)]
SENTENCES = [s.replace("\n", " ") for p in PROSE_PIECES for s in re.split(r"(?<=[.!?])\s+", p) if len(s.split()) > 5]
CONTENT = sorted({w for s in SENTENCES for w in re.findall(r"[a-z]{4,}", s)})
FUNCTION = TABLES["function"].split()


# -- good -----------------------------------------------------------------------------------------------------------


def joined(family: str, rng: random.Random) -> list[str]:
    """Every piece alone, then joins of two to five of the family's pieces, some in lower case."""
    own = pieces(family)
    out = list(own)
    while len(out) < PER_FAMILY:
        text = "\n\n".join(rng.sample(own, rng.choice((2, 2, 3, 4, 5))))
        out.append(text.lower() if rng.random() < 0.15 and family not in ("code", "markup") else text)
    return out


def long_text(rng: random.Random) -> list[str]:
    """150 to 650 words of prose."""
    return ["\n\n".join(rng.sample(PROSE_PIECES, rng.randint(4, 15))) for _ in range(PER_FAMILY)]


def small_vocabulary(rng: random.Random) -> list[str]:
    """Lower-case replies of about 40 words from a tiny vocabulary, like those of the embedded model."""
    people = ["mara", "tom", "lena", "ravi", "ben", "nora", "olga", "sam", "the twins", "the miners", "the orphans"]
    first, then, last = TABLES["first"], TABLES["then"], TABLES["last"]
    out = []
    while len(out) < PER_FAMILY:
        who = rng.choice(people)
        many = who.startswith("the ")
        slots = {
            "who": who,
            "be": "are" if many else "is",
            "need": "need" if many else "needs",
            "thing": rng.choice(TABLES["things"].split()),
            "place": rng.choice(TABLES["places"].split()),
            "power": rng.choice(TABLES["powers"].split()),
            "act": rng.choice(TABLES["acts"].split()),
            "plight": rng.choice(TABLES["plights"].split()),
        }
        parts = [rng.choice(first), *rng.sample(then, rng.randint(1, 4)), rng.choice(last)]
        out.append(" ".join(parts).format(**slots))
    return out


# -- broken ---------------------------------------------------------------------------------------------------------


def fragment(rng: random.Random) -> str:
    """A piece of a word, as a subword vocabulary holds them."""
    word = rng.choice(CONTENT)
    size = rng.randint(2, 4)
    return word[(start := rng.randrange(0, max(1, len(word) - size))) : start + size]


def glued(rng: random.Random, caps: bool = True) -> str:
    """Two to four fragments stuck together, capitals at random."""
    parts = [fragment(rng) for _ in range(rng.randint(2, 4))]
    return "".join(part.upper() if caps and rng.random() < 0.5 else part for part in parts)


def start_of(rng: random.Random, low: int, high: int) -> str:
    """The first `low` to `high` words of good prose."""
    words = " ".join(rng.sample(SENTENCES, 30)).split()
    return " ".join(words[: rng.randint(low, high)])


QUOTED = TABLES["quoted"]
"""Every broken text of findings.md."""


def findings(rng: random.Random) -> list[str]:
    """The quoted texts, and the same with other words, lengths and beginnings."""
    out = list(QUOTED)
    while len(out) < PER_FAMILY:
        kind = rng.randrange(7)
        a, b, c = rng.sample(["your", "their", "our", "my", "the"], 3)
        if kind == 0:
            text = " ".join([a] * rng.randint(2, 4) + ["into", a, "of", a] * rng.randint(1, 5))
        elif kind == 1:
            text = f"of course, {a} " + " ".join(glued(rng) for _ in range(rng.randint(3, 9)))
        elif kind == 2:
            text = f"of those that {a} {glued(rng)} {glued(rng)} bigger {b} {glued(rng)}"
        elif kind == 3:
            text = rng.choice(["ig", "ut", "la", "ive", "on"]) * rng.randint(6, 60)
        elif kind == 4:
            text = rng.choice(
                ["I'M. I'M. I'm just not *I'm", "IT'S. It's. IT'S just *it's", "NOT. Not not. I'm NOT *not"]
            )
            text = " ".join([text] * rng.randint(1, 3))
        elif kind == 5:
            text = rng.choice("TAGoe") * rng.randint(9, 300)
        else:
            text = f"{rng.choice(['instead', 'because', 'rather'])} {c} " * rng.randint(4, 40)
        if kind in (1, 3, 5, 6) and rng.random() < 0.4:
            text = start_of(rng, 5, 20) + " " + text
        out.append(text.strip())
    return out


def word_loop(rng: random.Random) -> list[str]:
    """One to five words again and again, sometimes after a good beginning."""
    out = []
    for _ in range(PER_FAMILY):
        phrase = " ".join(rng.choice((rng.choice(CONTENT), rng.choice(FUNCTION))) for _ in range(rng.randint(1, 5)))
        phrase += rng.choice(("", "", ",", "."))
        loop = " ".join([phrase] * rng.randint(6, 50))
        out.append(f"{start_of(rng, 3, 25)} {loop}" if rng.random() < 0.5 else loop)
    return out


def char_loop(rng: random.Random) -> list[str]:
    """One letter or a short group of characters without spaces."""
    out = []
    for _ in range(PER_FAMILY):
        unit = "".join(rng.choice("abcdefghiklmnoprstuvwyzÄéß-*.!") for _ in range(rng.choice((1, 1, 2, 3, 4, 6))))
        unit = rng.choice("aeotTHU") if not any(c.isalpha() for c in unit) else unit
        loop = unit * (rng.randint(14, 120) // len(unit) + 8)
        out.append(f"{start_of(rng, 3, 25)} {loop}" if rng.random() < 0.5 else loop)
    return out


def subword_soup(rng: random.Random) -> list[str]:
    """Function words among glued fragments with capitals."""
    return [
        " ".join(glued(rng) if rng.random() < 0.55 else rng.choice(FUNCTION) for _ in range(rng.randint(8, 120)))
        for _ in range(PER_FAMILY)
    ]


def function_soup(rng: random.Random) -> list[str]:
    """Function words at random, hardly any content."""
    few = rng.sample(FUNCTION, 30)
    return [
        " ".join(rng.choice(few if rng.random() < 0.9 else CONTENT) for _ in range(rng.randint(12, 120)))
        for _ in range(PER_FAMILY)
    ]


def near_duplicates(rng: random.Random) -> list[str]:
    """The same sentence with one word changed each time."""
    out = []
    for _ in range(PER_FAMILY):
        words = rng.choice([s for s in SENTENCES if 7 <= len(s.split()) <= 18]).split()
        lines = [list(words) for _ in range(rng.randint(4, 14))]
        for line in lines:
            line[rng.randrange(len(line) - 1)] = rng.choice(CONTENT)
        out.append(" ".join(" ".join(line) for line in lines))
    return out


def sign_soup(rng: random.Random) -> list[str]:
    """Punctuation with a word here and there."""
    out = []
    for _ in range(PER_FAMILY):
        marks = [rng.choice(".,;:!?*'\"-()[]{}/#_|") for _ in range(rng.randint(30, 200))]
        share = rng.choice((0.0, 0.05, 0.15))
        text = "".join(f" {rng.choice(FUNCTION)} " if rng.random() < share else mark for mark in marks)
        out.append(f"{start_of(rng, 3, 15)} {text}" if rng.random() < 0.3 else text)
    return out


def word_salad(rng: random.Random) -> list[str]:
    """Real words of real sentences, shuffled."""
    out = []
    for _ in range(PER_FAMILY):
        words = re.findall(r"[\w']+[.,]?", start_of(rng, 30, 120).lower())
        rng.shuffle(words)
        out.append(" ".join(words))
    return out


def script_soup(rng: random.Random) -> list[str]:
    """Words and fragments of several scripts in one line, as multilingual models produce them."""
    foreign = TABLES["foreign"].split()
    return [
        " ".join(
            rng.choice(foreign) if rng.random() < 0.5 else rng.choice([rng.choice(FUNCTION), fragment(rng)])
            for _ in range(rng.randint(10, 100))
        )
        for _ in range(PER_FAMILY)
    ]


def sentence_loop(rng: random.Random) -> list[str]:
    """One sentence or one paragraph, word for word, three times and more."""
    out = []
    for _ in range(PER_FAMILY):
        unit = rng.choice(SENTENCES) if rng.random() < 0.7 else rng.choice(PROSE_PIECES)
        loop = rng.choice((" ", "\n", "\n\n")).join([unit] * rng.randint(3, 9))
        out.append(f"{start_of(rng, 5, 40)} {loop}" if rng.random() < 0.4 else loop)
    return out


def collapse_to_loop(rng: random.Random) -> list[str]:
    """Good prose that ends in a loop: the mean over the text looks fine."""
    out = []
    for _ in range(PER_FAMILY):
        phrase = " ".join(rng.choice(CONTENT + FUNCTION) for _ in range(rng.randint(1, 6)))
        out.append(f"{start_of(rng, 40, 200)} " + " ".join([phrase] * rng.randint(6, 20)))
    return out


def collapse_to_soup(rng: random.Random) -> list[str]:
    """Good prose that ends in lower-case fragments and function words."""
    out = []
    for _ in range(PER_FAMILY):
        soup = [glued(rng, False) if rng.random() < 0.6 else rng.choice(FUNCTION) for _ in range(rng.randint(15, 60))]
        out.append(f"{start_of(rng, 30, 150)} " + " ".join(soup))
    return out


def drifting_repetition(rng: random.Random) -> list[str]:
    """A frame that returns with other fillings and grows or shrinks: no exact loop anywhere."""
    frames = TABLES["frames"]
    out = []
    for _ in range(PER_FAMILY):
        few = rng.sample(CONTENT, rng.randint(4, 9))
        frame = rng.choice(frames)
        n = frame.count("{}")
        lines = [frame.format(*(rng.choice(few) for _ in range(n))) for _ in range(rng.randint(7, 20))]
        text = rng.choice((". ", ", ", " ")).join(lines)
        out.append(f"{start_of(rng, 5, 40)} {text}" if rng.random() < 0.4 else text)
    return out


def fragments(rng: random.Random) -> list[str]:
    """Prose cut into pieces of words, pieces lost."""
    out = []
    for _ in range(PER_FAMILY):
        parts = []
        for word in start_of(rng, 15, 80).split():
            cut = rng.randint(1, max(1, len(word) - 1))
            parts += [part for part in (word[:cut], word[cut:]) if part and rng.random() < 0.75]
        out.append(" ".join(parts))
    return out


def letter_noise(rng: random.Random) -> list[str]:
    """Prose whose letters get more and more wrong: swapped, doubled, lost, replaced."""
    out = []
    for _ in range(PER_FAMILY):
        words, worst = start_of(rng, 25, 120).split(), rng.uniform(0.35, 0.8)
        for i in range(len(words)):
            letters = list(words[i])
            for j in range(len(letters)):
                if rng.random() < worst * min(1.0, 2 * i / len(words)):
                    letters[j] = rng.choice((letters[j] * 2, "", rng.choice("abcdefghijklmnopqrstuvwxyz"), letters[-1]))
            words[i] = "".join(letters)
        out.append(" ".join(word for word in words if word))
    return out


def word_noise(rng: random.Random) -> list[str]:
    """Prose in which words are scrambled inside and run together, from the first word on or from the middle on."""
    out = []
    for _ in range(PER_FAMILY):
        words, begin = start_of(rng, 25, 120).split(), rng.choice((0.0, 0.4))
        share = rng.uniform(0.6, 0.9)
        for i in range(int(begin * len(words)), len(words)):
            if len(words[i]) > 3 and rng.random() < share:
                letters = list(words[i])
                rng.shuffle(letters)
                words[i] = "".join(letters)
        text = " ".join(words[: int(begin * len(words))])
        for word in words[int(begin * len(words)) :]:
            text += word if rng.random() < 0.15 else f" {word}"
        out.append(text.strip())
    return out


def caps_drift(rng: random.Random) -> list[str]:
    """Prose into which glued fragments with capitals creep, more and more of them."""
    out = []
    for _ in range(PER_FAMILY):
        words = start_of(rng, 25, 100).split()
        out.append(" ".join(glued(rng) if rng.random() < i / len(words) else word for i, word in enumerate(words)))
    return out


def skeleton(rng: random.Random) -> list[str]:
    """Prose with its function words in place and most other words replaced by glued fragments."""
    out = []
    for _ in range(PER_FAMILY):
        words, share = start_of(rng, 20, 120).split(), rng.uniform(0.7, 1.0)
        swap = [word.lower().strip(".,;:") not in FUNCTION and rng.random() < share for word in words]
        out.append(" ".join(glued(rng, caps=False) if bad else word for word, bad in zip(words, swap, strict=True)))
    return out


def caps_soup(rng: random.Random) -> list[str]:
    """Runs of capitals that are no words, between words that are."""
    out = []
    for _ in range(PER_FAMILY):
        words = [
            "".join(fragment(rng) for _ in range(rng.randint(1, 3))).upper()
            if rng.random() < 0.6
            else rng.choice(FUNCTION)
            for _ in range(rng.randint(10, 80))
        ]
        text = " ".join(words)
        out.append(f"{start_of(rng, 5, 40)} {text}" if rng.random() < 0.4 else text)
    return out


def stutter(rng: random.Random) -> list[str]:
    """Prose in which most words come twice or more."""
    out = []
    for _ in range(PER_FAMILY):
        words = start_of(rng, 12, 80).split()
        share = rng.uniform(0.5, 1.0)
        out.append(" ".join(" ".join([w] * (rng.randint(2, 4) if rng.random() < share else 1)) for w in words))
    return out


def spliced(family: str, rng: random.Random) -> list[str]:
    """Written refusals or narrations, alone and before or after good prose."""
    own = pieces(family)
    out = list(own)
    while len(out) < PER_FAMILY:
        parts = [rng.choice(own), rng.choice(SENTENCES)]
        rng.shuffle(parts)
        out.append(" ".join(parts))
    return out


MAKERS = (
    findings, word_loop, char_loop, subword_soup, function_soup, near_duplicates, sign_soup, word_salad, script_soup,
    sentence_loop, collapse_to_loop, collapse_to_soup, drifting_repetition, fragments, letter_noise, skeleton,
    word_noise, caps_drift, caps_soup, stutter,
)  # fmt: skip
BROKEN: dict[str, Callable[[random.Random], list[str]]] = {maker.__name__: maker for maker in MAKERS}


def build() -> list[dict[str, str]]:
    """All labelled texts, family by family; each family has a random stream of its own."""
    good = {family: joined(family, random.Random(family)) for family in JOINED}
    good["short_answers"] = pieces("short_answers")
    good["long_text"] = long_text(random.Random("long_text"))
    good["small_vocabulary"] = small_vocabulary(random.Random("small_vocabulary"))
    broken = {family: maker(random.Random(family)) for family, maker in BROKEN.items()}
    for family in ("refusal", "narration"):
        broken[family] = spliced(family, random.Random(family))
    rows = []
    for label, families in (("good", good), ("broken", broken)):
        for family, texts in families.items():
            split = "held_out" if family in HELD_OUT else "tune"
            rows += [{"text": t, "label": label, "family": family, "split": split} for t in dict.fromkeys(texts)]
    return rows


def main() -> None:
    """Write the file and say what is in it."""
    rows = build()
    with open(DATA / "coherence_labelled.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    good, families = sum(row["label"] == "good" for row in rows), {row["family"] for row in rows}
    print(f"{len(rows)} texts, {good} good, {len(rows) - good} broken, {len(families)} families")


if __name__ == "__main__":
    main()
