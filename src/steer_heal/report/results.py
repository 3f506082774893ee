"""The run as one line of `results.tsv`.

Knows nothing of pages.
"""

from __future__ import annotations

from steer_heal.ledger import Ledger
from steer_heal.report.headline import event

RESULT_COLUMNS = (
    "run", "model", "trait", "reg", "seed", "rounds", "verdict", "best_round", "trait_base", "trait_best",
    "log_odds_base", "log_odds_best", "sentence_ok_base", "sentence_ok_best", "reverted", "controls", "seconds",
)  # fmt: skip


def result_row(ledger: Ledger) -> dict[str, object]:
    """The run as one line of `results.tsv`. Raises ValueError when the run has no `end` event."""
    start, end, base = event(ledger, "start"), event(ledger, "end"), event(ledger, "baseline")["base"]
    rounds = {e["round"]: e["healed"] for e in ledger.events("evaluate")}
    best = rounds.get(end["best_round"], {})
    values = (
        ledger.folder.name, start["model"], start["trait"], start["reg"], start["seed"], len(rounds), end["verdict"],
        end["best_round"], base["free_trait"], best.get("free_trait"), base["log_odds"], best.get("log_odds"),
        base["sentence_ok"], best.get("sentence_ok"), sum(not e["stands"] for e in ledger.events("gate")),
        end["controls"], end["seconds"],
    )  # fmt: skip
    return dict(zip(RESULT_COLUMNS, values, strict=True))
