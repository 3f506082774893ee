"""Rounds in words and as rows: paired shifts against base, verdicts, what the gate decided and why.

Knows nothing of pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from steer_heal.evaluation.verdict import SHAPE
from steer_heal.ledger import Ledger
from steer_heal.report.headline import event
from steer_heal.report.tables import anchors_lost, decided, gate_reasons, interval

SHIFT_COLUMNS = [
    "round", "verdict", "free-text trait", "log-odds (nats)", "coherence", "off-target (nats)",
    "words, 4-grams, entropy / base", "anchors lost",
]  # fmt: skip


def trajectory(ledger: Ledger) -> list[tuple[str, dict]]:
    """(name, summary): base, then steered and healed of every round, the prompted model, the controls."""
    return [(t["name"], t["state"]) for t in event(ledger, "end")["trajectory"]]


def shift_rows(ledger: Ledger) -> list[list[str]]:
    """Per round: paired shifts of the healed student against base, its diversity, its anchors and its verdict."""
    verdicts = {e["round"]: e["verdict"] for e in ledger.events("verdict")}
    gates = {e["round"]: e for e in ledger.events("gate")}
    rows = []
    for e in ledger.events("evaluate"):
        r, s = e["round"], e["shift"]
        ratios = [e["healed"][name] / e["base"][name] for name in SHAPE if e["healed"][name] and e["base"][name]]
        rows.append([
            str(r), verdicts[r], interval(s["free_trait"]), interval(s["log_odds"]),
            interval(s["coherence"], 3),
            "; ".join(f"{name} {interval(found)}" for name, found in s["off_target"].items()) or "-",
            " ".join(f"{ratio:.2f}" for ratio in ratios) or "-", anchors_lost(gates[r]),
        ])  # fmt: skip
    return rows


@dataclass(frozen=True)
class GateStory:
    """What the gate decided on a round, and the reasons that decided."""

    outcome: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.outcome}: {'; '.join(self.reasons)}"


def gate_stories(ledger: Ledger) -> dict[int, GateStory]:
    """By round: what the gate decided, and why."""
    return {e["round"]: GateStory(decided(e), tuple(gate_reasons(e))) for e in ledger.events("gate")}
