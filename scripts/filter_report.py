"""What the filter does to labelled texts: share dropped and kept with intervals, misses in full.

uv run python scripts/filter_report.py                  # model-free gates, both splits, all misses
uv run python scripts/filter_report.py --split tune     # only the families that limits were chosen on
uv run python scripts/filter_report.py --pocket         # what perplexity adds, on `pocket` texts and its checker
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from steer_heal.commands.script import run_script
from steer_heal.errors import InputError
from steer_heal.model import load
from steer_heal.statistics import wilson
from steer_heal.steering import extract
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.texts.coherence.proof import ALL, TIGHT, Proof, filters, label_of, prove
from steer_heal.texts.completion import Completion
from steer_heal.texts.generation import derive_seed, generate
from steer_heal.trait import Trait

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "coherence_labelled.jsonl"
DOSES = (0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


def read(path: Path = DATA) -> list[dict[str, str]]:
    """The labelled texts."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# ---------------------------------------------------------------- model-free gates, labelled families


def families(split: str, quiet: bool) -> None:
    """Print the table of one split and its misses."""
    filt = CoherenceFilter()
    groups: dict[tuple[str, str], list[bool]] = defaultdict(list)
    misses = []
    for row in read():
        if row["split"] != split:
            continue
        broken = filt.judge_text(row["text"])
        right = bool(broken) == (row["label"] == "broken")
        groups[row["label"], row["family"]].append(right)
        if not right:
            misses.append((row["label"], row["family"], [rule.key for rule in broken], row["text"]))
    print(f"\n== {split} families: share judged right (good kept, broken dropped), 95 % Wilson interval")
    for label in ("good", "broken"):
        for (found, family), rights in groups.items():
            if found == label:
                _print(f"{label:6s} {family}", rights)
        _print(
            f"{label:6s} ALL", [right for (found, _), rights in groups.items() if found == label for right in rights]
        )
    for label, family, rules, text in () if quiet else misses:
        print(f"\nMISS {label} / {family} {', '.join(rules)}\n  {' '.join(text.split())}")


def _print(name: str, right: list[bool]) -> None:
    share = wilson(sum(right), len(right))
    print(f"{name:30s} {sum(right):4d} / {len(right):4d}  {share.value:6.1%}  [{share.low:.1%}, {share.high:.1%}]")


# ---------------------------------------------------------------- perplexity gates, pocket and its checker


def pocket_proof(n_own: int = 192, n_each: int = 96, seed: int = 0, false_drop: float = 0.05) -> Proof:
    """Fit on unsteered replies to training prompts; judge replies to held-out prompts at every dose."""
    lm, trait = load("pocket"), Trait.load("pocket-care")
    vector = extract(lm, trait.pos, trait.neg, trait.contexts)
    own = _sample(lm, trait, trait.prompts, n_own, None, (0.0,), derive_seed(seed, "own"))
    rows = _sample(lm, trait, trait.eval_prompts, n_each, vector, DOSES, derive_seed(seed, "judged"))
    found = [trait.judge(c.prompt, c.text, c.finished) for c in rows]
    return prove(filters(own, false_drop), rows, [label_of(j.sentence_ok, j.reply_ok) for j in found])


def _sample(lm, trait: Trait, prompts: Sequence[str], n: int, vector, doses, seed: int) -> list[Completion]:
    """Scored replies: n per dose, prompts in turn."""
    picked = [prompts[i % len(prompts)] for i in range(n)]
    replies = generate(lm, picked, vector, doses, system=trait.neutral, max_new_tokens=72, seed=seed)
    return CoherenceFilter().score(lm, replies)


def show(proof: Proof, each: int) -> None:
    """Print the tables, then a few false drops, misses, and broken texts that only perplexity caught, in full."""
    print("pocket, pocket-care; limits fitted to 192 unsteered replies, joint false-drop budget 5 %; labels by the")
    print("checker: good = sound as a whole, broken = at most half of the sentences sound, flawed = in between")
    print(proof.table())
    pairs = zip(proof.judged[ALL], proof.judged[TIGHT], proof.labels, strict=True)
    caught = [c for c, other, label in pairs if label == "broken" and other.kept and not c.kept]
    groups = {
        "GOOD BUT DROPPED by all gates": proof.texts(ALL, "good", kept=False),
        "BROKEN BUT KEPT by all gates": proof.texts(ALL, "broken", kept=True),
        "BROKEN, caught by perplexity alone (the tightened model-free gates kept it)": caught,
        "FLAWED BUT KEPT by all gates": proof.texts(ALL, "flawed", kept=True),
    }
    for title, texts in groups.items():
        step = max(1, len(texts) // max(1, each))
        print(f"\n== {title}: {len(texts)} texts, {min(each, len(texts))} shown")
        for c in texts[::step][:each]:
            surprise = " ".join(f"{k} {v:.2f}" for k, v in c.scores.items() if k.startswith("nll"))
            print(f"\n[dose {c.dose:g}, {c.dropped_by or 'kept'}, {surprise}] {c.prompt}\n  {c.text}")


@dataclass(frozen=True)
class Arguments:
    """What to report on."""

    split: Literal["tune", "held_out", "both"] = "both"
    """Part of the labelled texts."""
    quiet: bool = False
    """Tables only, no misses."""
    pocket: bool = False
    """Measure the perplexity gates on pocket texts instead."""
    each: int = 96
    """With --pocket: completions per dose."""


def report(arguments: Arguments) -> None:
    """Print the tables and the misses. Raises InputError for an impossible number of completions."""
    if arguments.each < 1:
        raise InputError(f"--each {arguments.each}: give at least 1 completion per dose")
    if arguments.pocket:
        torch.set_num_threads(1)
        show(pocket_proof(n_each=arguments.each), 0 if arguments.quiet else 5)
        return
    for split in ("tune", "held_out") if arguments.split == "both" else (arguments.split,):
        families(split, arguments.quiet)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, report; 2 for unusable input."""
    return run_script(Arguments, report, argv, __doc__, "filter_report")


if __name__ == "__main__":
    sys.exit(main())
