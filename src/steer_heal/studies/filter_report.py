"""What the filter does to labelled texts: share dropped and kept with intervals, and every miss in full.

Knows nothing of how the labelled texts were made.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from steer_heal.errors import InputError
from steer_heal.model import LM, load
from steer_heal.statistics import wilson
from steer_heal.steering import SteeringVector, extract
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.texts.coherence.proof import ALL, TIGHT, Proof, filters, label_of, prove
from steer_heal.texts.completion import Completion
from steer_heal.texts.generation import derive_seed, generate
from steer_heal.trait import Trait

FILE = "coherence_labelled.jsonl"
"""The labelled texts; `scripts/build_coherence_data.py` makes them."""
DOSES = (0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


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


def report(arguments: Arguments, data: Path) -> Iterator[str]:
    """The lines of the report, over the labelled texts in the folder `data` or on texts of `pocket`.

    Raises InputError for an impossible number of completions.
    """
    if arguments.each < 1:
        raise InputError(f"--each {arguments.each}: give at least 1 completion per dose")
    if arguments.pocket:
        torch.set_num_threads(1)
        yield from proof_lines(pocket_proof(n_each=arguments.each), 0 if arguments.quiet else 5)
        return
    rows = [json.loads(line) for line in (data / FILE).read_text(encoding="utf-8").splitlines()]
    for split in ("tune", "held_out") if arguments.split == "both" else (arguments.split,):
        yield from family_lines([row for row in rows if row["split"] == split], split, arguments.quiet)


# ---------------------------------------------------------------- model-free gates, labelled families


def family_lines(rows: Sequence[Mapping[str, str]], split: str, quiet: bool) -> Iterator[str]:
    """The table of one split and its misses."""
    filt = CoherenceFilter()
    groups: dict[tuple[str, str], list[bool]] = defaultdict(list)
    misses = []
    for row in rows:
        broken = filt.judge_text(row["text"])
        right = bool(broken) == (row["label"] == "broken")
        groups[row["label"], row["family"]].append(right)
        if not right:
            rules = ", ".join(rule.key for rule in broken)
            misses.append(f"\nMISS {row['label']} / {row['family']} {rules}\n  {' '.join(row['text'].split())}")
    yield f"\n== {split} families: share judged right (good kept, broken dropped), 95 % Wilson interval"
    for label in ("good", "broken"):
        of_label = {family: right for (found, family), right in groups.items() if found == label}
        of_label["ALL"] = [right for rights in of_label.values() for right in rights]
        for family, right in of_label.items():
            share = wilson(sum(right), len(right))
            interval = f"{share.value:6.1%}  [{share.low:.1%}, {share.high:.1%}]"
            yield f"{f'{label:6s} {family}':30s} {sum(right):4d} / {len(right):4d}  {interval}"
    if not quiet:
        yield from misses


# ---------------------------------------------------------------- perplexity gates, pocket and its checker


def pocket_proof(n_own: int = 192, n_each: int = 96, seed: int = 0, false_drop: float = 0.05) -> Proof:
    """Fit on unsteered replies to training prompts; judge replies to held-out prompts at every dose."""
    lm, trait = load("pocket"), Trait.load("pocket-care")
    vector = extract(lm, trait.pos, trait.neg, trait.contexts)
    own = _scored(lm, trait, trait.prompts, n_own, None, (0.0,), derive_seed(seed, "own"))
    rows = _scored(lm, trait, trait.eval_prompts, n_each, vector, DOSES, derive_seed(seed, "judged"))
    found = [trait.judge(c.prompt, c.text, c.finished) for c in rows]
    return prove(filters(own, false_drop), rows, [label_of(j.sentence_ok, j.reply_ok) for j in found])


def _scored(
    lm: LM,
    trait: Trait,
    prompts: Sequence[str],
    n: int,
    vector: SteeringVector | None,
    doses: Sequence[float],
    seed: int,
) -> list[Completion]:
    """Scored replies: n per dose, prompts in turn."""
    picked = [prompts[i % len(prompts)] for i in range(n)]
    replies = generate(lm, picked, vector, doses, system=trait.neutral, max_new_tokens=72, seed=seed)
    return CoherenceFilter().score(lm, replies)


def proof_lines(proof: Proof, each: int) -> Iterator[str]:
    """The tables, then a few false drops, misses, and broken texts that only perplexity caught, in full."""
    yield "pocket, pocket-care; limits fitted to 192 unsteered replies, joint false-drop budget 5 %; labels by the"
    yield "checker: good = sound as a whole, broken = at most half of the sentences sound, flawed = in between"
    yield proof.table()
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
        yield f"\n== {title}: {len(texts)} texts, {min(each, len(texts))} shown"
        for c in texts[::step][:each]:
            surprise = " ".join(f"{k} {v:.2f}" for k, v in c.scores.items() if k.startswith("nll"))
            yield f"\n[dose {c.dose:g}, {c.dropped_by or 'kept'}, {surprise}] {c.prompt}\n  {c.text}"
