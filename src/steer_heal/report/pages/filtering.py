"""What the filter did in each round, with texts: per gate, per dose, and on both sides of every threshold.

Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steer_heal.ledger import Ledger
from steer_heal.report.headline import event
from steer_heal.report.pages.folder import completions, filter_of, round_folders
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.texts.coherence.report import Borderline, FilterReport
from steer_heal.texts.completion import Completion


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
    """One round's texts: the filter's report, its gates by how much they dropped, and a few kept texts in full."""

    number: int
    report: FilterReport
    gates: tuple[Gate, ...]
    examples: tuple[Completion, ...]

    @property
    def done(self) -> str:
        """What befell the texts that a gate claimed: own texts are only flagged."""
        if self.report.kept == self.report.n:
            return "flagged"
        only_dropped = self.report.kept + sum(self.report.by_gate.values()) == self.report.n
        return "dropped" if only_dropped else "dropped or flagged"

    @property
    def drawn(self) -> list[Borderline]:
        """Thresholds that texts lie beyond."""
        return [entry for entry in self.report.borderline if entry.outside is not None]

    @property
    def quiet(self) -> list[Borderline]:
        """Thresholds that no text broke."""
        return [entry for entry in self.report.borderline if entry.outside is None]


def filtered_rounds(ledger: Ledger, examples: int = 2) -> list[Filtered]:
    """The filter's report on every round that sampled texts, with a few kept texts in full."""
    fitted = filter_of(ledger)
    return [filtered(number, fitted, completions(ledger, number), examples) for number in round_folders(ledger)]


def filtered(number: int, fitted: CoherenceFilter, judged: Sequence[Completion], examples: int) -> Filtered:
    """The filter's report on one round."""
    report, gates = fitted.report(judged), []
    for name, count in sorted(report.by_gate.items(), key=lambda item: -item[1]):
        example = next((c for c in judged if c.named_by == name), None)
        reason = fitted.reason(example) if example else ""
        gates.append(Gate(name, count, count / report.n if report.n else 0.0, example, reason))
    return Filtered(number, report, tuple(gates), tuple([c for c in judged if c.kept][:examples]))


def borderline(ledger: Ledger, each: int = 2) -> list[tuple[str, Completion]]:
    """A few full completions of the last round: kept, dropped, and those nearest to the filter's perplexity limit."""
    rounds = list(round_folders(ledger))
    if not rounds:
        return []
    rows = completions(ledger, rounds[-1])
    limit = event(ledger, "calibrate")["limits"].get("nll.high")
    kept, dropped = [c for c in rows if c.named_by is None], [c for c in rows if c.named_by]
    out = [("kept", c) for c in kept[:each]]
    out += [(f"{'flagged' if c.kept else 'dropped'}: {c.named_by}", c) for c in dropped[:each]]
    if limit is not None:
        for claimed, side in ((False, kept), (True, dropped)):
            beyond = [c for c in side if "nll" in c.scores and (c.scores["nll"] > limit) == claimed]
            for c in sorted(beyond, key=lambda c: abs(c.scores["nll"] - limit))[:each]:
                what = "kept" if not claimed else "flagged" if c.kept else "dropped"
                out.append((f"borderline, {what} (nll {c.scores['nll']:.4f}, limit {limit:.4f})", c))
    return out
