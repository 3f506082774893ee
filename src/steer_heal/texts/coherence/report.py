"""What the filter did to a batch: counts per gate, kept share per dose, the completions on both sides of each limit.

Knows nothing of models; it reads judged completions and limits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steer_heal.shown import brief, table
from steer_heal.texts.coherence.rules import GATES, RULES, Rule, breaches
from steer_heal.texts.completion import Completion


@dataclass(frozen=True)
class Borderline:
    """The kept completion nearest to a limit (`inside`) and the nearest one that this limit drops (`outside`)."""

    rule: Rule
    limit: float
    inside: Completion | None
    outside: Completion | None


@dataclass(frozen=True)
class FilterReport:
    """Result of one filtering.

    Attributes:
        n: completions judged; `kept` of them passed.
        by_gate: completions per gate that claimed them, zeros included; also where the filter only reports.
        by_dose: dose -> (kept, judged).
        borderline: one entry per active rule with a limit; `outside` is None where no completion breaks it.
    """

    n: int
    kept: int
    by_gate: Mapping[str, int]
    by_dose: Mapping[float, tuple[int, int]]
    borderline: tuple[Borderline, ...]

    __repr__ = brief

    def _repr_html_(self) -> str:
        doses = [(dose, kept, n, kept / n) for dose, (kept, n) in self.by_dose.items()]
        gates = table(("gate", "completions"), [(gate, count) for gate, count in self.by_gate.items() if count])
        return table(("dose", "kept", "of", "share"), doses, f"kept {self.kept} of {self.n}") + gates

    def table(self) -> str:
        """The counts as lines of text, without the completions."""
        share = self.kept / self.n if self.n else 0.0
        gates = ", ".join(f"{gate} {count}" for gate, count in self.by_gate.items() if count) or "none"
        counted = "dropped by" if self.kept + sum(self.by_gate.values()) == self.n else "dropped, or only reported, by"
        lines = [f"kept {self.kept} of {self.n} ({share:.0%}); {counted}: {gates}", "  dose   kept    of  share"]
        for dose, (kept, n) in self.by_dose.items():
            lines.append(f"  {dose:5.3g}  {kept:5d}  {n:4d}   {kept / n:4.2f}")
        return "\n".join(lines)

    def __str__(self) -> str:
        lines = [self.table()]
        for entry in self.borderline:
            rule = entry.rule
            bound = "at most" if rule.side == "high" else "at least"
            lines.append(f"\n[{rule.gate}] {rule.words}: {rule.figure} {bound} {entry.limit:.3g}")
            for name, completion in (("just inside", entry.inside), ("just outside", entry.outside)):
                if completion is not None:
                    value = completion.scores[rule.figure]
                    lines.append(f"  {name} ({value:.3g}, dose {completion.dose:g}): {completion.text}")
        return "\n".join(lines)


def make_report(judged: Sequence[Completion], limits: Mapping[str, float], gates: frozenset[str]) -> FilterReport:
    """The report on judged completions under the limits and gates that judged them."""
    counts = Counter(c.named_by for c in judged if c.named_by is not None)
    by_gate = {gate: counts[gate] for gate in GATES if gate in gates}
    by_dose = {}
    for dose in sorted({c.dose for c in judged}):
        rows = [c for c in judged if c.dose == dose]
        by_dose[dose] = (sum(c.kept for c in rows), len(rows))
    kept, borderline = sum(c.kept for c in judged), tuple(_borderlines(judged, limits, gates))
    return FilterReport(len(judged), kept, by_gate, by_dose, borderline)


def _borderlines(judged: Sequence[Completion], limits: Mapping[str, float], gates: frozenset[str]) -> list[Borderline]:
    broken = [{rule.key for rule in breaches(c.scores, limits, gates)} for c in judged]
    out = []
    for rule in RULES:
        limit = limits[rule.key]
        if rule.gate not in gates or not math.isfinite(limit):
            continue
        outside = [c for c, keys in zip(judged, broken, strict=True) if rule.key in keys]
        inside = [c for c in judged if c.kept and c.flagged_by is None and rule.figure in c.scores]
        if not outside and not inside:
            continue

        def distance(c: Completion, figure: str = rule.figure, limit: float = limit) -> tuple[float, str]:
            return abs(c.scores[figure] - limit), c.text  # the text breaks ties, so that order does not matter

        out.append(Borderline(rule, limit, *(min(side, key=distance, default=None) for side in (inside, outside))))
    return out
