"""What the filter does to labelled texts: share dropped and kept with intervals, and every miss in full.

On texts of `pocket`, whose checker is the label: what the perplexity gates add to the model-free ones at one false-drop
budget. Knows nothing of how the labelled texts were made.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from steer_heal.errors import InputError
from steer_heal.model import LM, load
from steer_heal.statistics import Estimate, paired_difference, wilson
from steer_heal.steering import SteeringVector, extract
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.texts.coherence.calibration import joint_limits, slack
from steer_heal.texts.coherence.rules import RULES, default_limits
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


LABELS = ("good", "flawed", "broken")
ALL, FREE, TIGHT, SURPRISE = "all gates", "model-free", "model-free, tightened", "perplexity alone"


def label_of(sentence_ok: float, reply_ok: bool) -> str:
    """`good`: sound as a whole; `broken`: at most half of its sentences are sound; `flawed`: in between."""
    return "good" if reply_ok else "broken" if sentence_ok <= 0.5 else "flawed"


def filters(own: Sequence[Completion], false_drop: float = 0.05) -> dict[str, CoherenceFilter]:
    """Filters fitted to the same scored completions of a model under the same joint budget, by name.

    `model-free` is what calibration makes of the gates on text alone: their fixed limits, widened where the model's own
    text breaks them, which may leave most of the budget unused. `model-free, tightened` spends all of it: every limit
    on text and length is set by the data. That is the fair opponent of `all gates`, which spend it too.
    `perplexity alone` has the whole budget for the perplexity gates.
    """
    text = [replace(c, scores={k: v for k, v in c.scores.items() if not k.startswith("nll")}) for c in own]
    model = [replace(c, scores={k: v for k, v in c.scores.items() if k.startswith("nll")}) for c in own]
    rules = [rule for rule in RULES if rule.kind in ("text", "length")]
    data = [c.scores for c in text]
    tight = joint_limits(data, rules, int(false_drop * len(data)), {rule.key: slack(rule) for rule in rules})
    free = frozenset(CoherenceFilter().gates) - {"perplexity"}
    return {
        FREE: replace(CoherenceFilter.fit(text, false_drop=false_drop), gates=free),
        TIGHT: CoherenceFilter(default_limits() | tight, free),
        SURPRISE: CoherenceFilter.fit(model, false_drop=false_drop).only("perplexity"),
        ALL: CoherenceFilter.fit(own, false_drop=false_drop),
    }


@dataclass(frozen=True)
class Outcome:
    """What one filter did to labelled completions: (dose, label) -> (dropped, of)."""

    counts: Mapping[tuple[float, str], tuple[int, int]]

    def dropped(self, label: str, dose: float | None = None) -> Estimate:
        """Share of a label's completions that was dropped, at one dose or at all, with Wilson's interval."""
        cells = [n for (d, lab), n in self.counts.items() if lab == label and dose in (None, d)]
        return wilson(sum(a for a, _ in cells), sum(b for _, b in cells))


@dataclass(frozen=True)
class Proof:
    """Outcomes of all filters on the same completions.

    Attributes:
        doses: doses of the completions.
        outcomes: by filter name; `held_out`: share of the unsteered completions among them that each filter drops.
        gain: by opponent, all gates less the opponent in the share dropped, by label, intervals over prompts.
        judged: by filter name, the completions in their order with the verdict.
        labels: the completions' labels. filters: the filters, by name.
    """

    doses: tuple[float, ...]
    outcomes: Mapping[str, Outcome]
    held_out: Mapping[str, Estimate]
    gain: Mapping[str, Mapping[str, Estimate]]
    judged: Mapping[str, Sequence[Completion]]
    labels: Sequence[str]
    filters: Mapping[str, CoherenceFilter]

    def texts(self, name: str, label: str, kept: bool) -> list[Completion]:
        """Completions of a label that a filter kept, or dropped."""
        pairs = zip(self.judged[name], self.labels, strict=True)
        return [c for c, found in pairs if found == label and c.kept == kept]

    def table(self) -> str:
        """Share of the broken and flawed dropped and of the good kept, by filter and dose, 95 % intervals."""
        lines = []
        for name, outcome in self.outcomes.items():
            lines += [f"\n{name}: drops {_percent(self.held_out[name])} of fresh unsteered completions"]
            lines += ["  dose   broken dropped             flawed dropped             good kept"]
            for dose in (*self.doses, None):
                cells = [_cell(outcome.dropped(label, dose), label == "good") for label in ("broken", "flawed", "good")]
                lines.append(f"  {'all' if dose is None else format(dose, '.3g'):>4s}   " + " ".join(cells))
        for name, gains in self.gain.items():
            shown = ", ".join(f"{label} {gain}" for label, gain in gains.items())
            lines.append(f"\nshare dropped, all gates less {name!r}: {shown}")
        return "\n".join(lines)


def prove(fitted: Mapping[str, CoherenceFilter], scored: Sequence[Completion], labels: Sequence[str]) -> Proof:
    """Judge the same scored and labelled completions with every filter."""
    judged = {name: filt.judge(scored) for name, filt in fitted.items()}
    doses = tuple(sorted({c.dose for c in scored}))
    outcomes, held_out, gain = {}, {}, {}
    for name, rows in judged.items():
        counts = {(dose, label): (0, 0) for dose in doses for label in LABELS}
        for c, label in zip(rows, labels, strict=True):
            dropped, n = counts[c.dose, label]
            counts[c.dose, label] = (dropped + (not c.kept), n + 1)
        outcomes[name] = Outcome(counts)
        plain = [c for c in rows if c.dose == 0]
        held_out[name] = wilson(sum(not c.kept for c in plain), len(plain))
    for name in fitted:
        if name != ALL:
            gain[name] = {label: found for label in LABELS if (found := _gain(judged, name, labels, label))}
    return Proof(doses, outcomes, held_out, gain, judged, labels, fitted)


def _gain(judged, name: str, labels: Sequence[str], label: str) -> Estimate | None:
    picked = [i for i, found in enumerate(labels) if found == label]
    if not picked:
        return None
    before, after = ([float(not judged[which][i].kept) for i in picked] for which in (name, ALL))
    return paired_difference(before, after, [judged[ALL][i].prompt for i in picked])


def _percent(share: Estimate) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}] of {share.n}"


def _cell(dropped: Estimate, kept: bool) -> str:
    if dropped.n == 0:
        return f"{'-':26s}"
    low, high = (1 - dropped.high, 1 - dropped.low) if kept else (dropped.low, dropped.high)
    value = 1 - dropped.value if kept else dropped.value
    return f"{f'{value:4.0%} [{low:3.0%}, {high:4.0%}] of {dropped.n}':26s}"
