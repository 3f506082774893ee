"""What the filter did in each round, with texts: per gate, per dose, and on both sides of every threshold.

Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steer_heal.ledger import Ledger
from steer_heal.report.folder import completions, filter_of, round_folders
from steer_heal.report.headline import event
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.texts.coherence.report import Borderline
from steer_heal.texts.completion import Completion


@dataclass(frozen=True)
class Side:
    """A text beside a threshold: its figure there, the dose it was sampled at."""

    name: str
    value: str
    dose: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Threshold:
    """One rule of the filter: what a breach means, the limit, and the nearest text on either side."""

    gate: str
    meaning: str
    rule: str
    sides: tuple[Side, ...]


@dataclass(frozen=True)
class Gate:
    """One gate of the filter: how many texts it dropped, and one of them with the reason."""

    name: str
    count: int
    share: float
    example: Completion | None
    reason: str


@dataclass(frozen=True)
class Filtered:
    """One round's texts. `drawn`: thresholds that texts lie beyond; `quiet`: those that none broke."""

    number: int
    n: int
    kept: int
    gates: tuple[Gate, ...]
    doses: tuple[tuple[float, int, int], ...]
    drawn: tuple[Threshold, ...]
    quiet: tuple[Threshold, ...]
    examples: tuple[Completion, ...]


def filtered_rounds(ledger: Ledger, examples: int = 2) -> list[Filtered]:
    """The filter's report on every round that sampled texts, with a few kept texts in full."""
    fitted = filter_of(ledger)
    return [filtered(number, fitted, completions(ledger, number), examples) for number in round_folders(ledger)]


def filtered(number: int, fitted: CoherenceFilter, judged: Sequence[Completion], examples: int) -> Filtered:
    """The filter's report on one round."""
    report = fitted.report(judged)
    gates = []
    for name, count in report.by_gate.items():
        example = next((c for c in judged if c.dropped_by == name), None)
        reason = fitted.reason(example) if example else ""
        gates.append(Gate(name, count, count / report.n if report.n else 0.0, example, reason))
    thresholds = [(entry.outside is not None, threshold(entry)) for entry in report.borderline]
    return Filtered(
        number, report.n, report.kept, tuple(sorted(gates, key=lambda gate: -gate.count)),
        tuple((dose, kept, n) for dose, (kept, n) in report.by_dose.items()),
        tuple(t for broken, t in thresholds if broken), tuple(t for broken, t in thresholds if not broken),
        tuple(c for c in judged if c.kept)[:examples],
    )  # fmt: skip


def threshold(entry: Borderline) -> Threshold:
    """A rule with its limit in words and the texts beside it."""
    rule = entry.rule
    sides = [("just inside", entry.inside), ("just outside", entry.outside)]
    bound = "at most" if rule.side == "high" else "at least"
    return Threshold(
        rule.gate, rule.words, f"{rule.figure} {bound} {entry.limit:.3g}",
        tuple(
            Side(name, f"{c.scores[rule.figure]:.3g}", f"{c.dose:.2f}", c.prompt, c.text) for name, c in sides if c
        ),
    )  # fmt: skip


def borderline(ledger: Ledger, each: int = 2) -> list[tuple[str, Completion]]:
    """A few full completions of the last round: kept, dropped, and those nearest to the filter's perplexity limit."""
    rounds = list(round_folders(ledger))
    if not rounds:
        return []
    rows = completions(ledger, rounds[-1])
    limit = event(ledger, "calibrate")["limits"].get("nll.high")
    kept, dropped = [c for c in rows if c.kept], [c for c in rows if not c.kept]
    out = [("kept", c) for c in kept[:each]] + [(f"dropped: {c.dropped_by}", c) for c in dropped[:each]]
    if limit is not None:
        for name, side in (("borderline, kept", kept), ("borderline, dropped", dropped)):
            near = sorted((c for c in side if "nll" in c.scores), key=lambda c: abs(c.scores["nll"] - limit))
            out += [(f"{name} (nll {c.scores['nll']:.4f}, limit {limit:.4f})", c) for c in near[:each]]
    return out
