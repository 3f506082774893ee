"""Writes a run's pages and pictures into its folder, each in one step, and its line in `results.tsv`.

Knows nothing of what is on them.
"""

from __future__ import annotations

from pathlib import Path

from steer_heal.ledger import Ledger
from steer_heal.ledger.files import write_whole
from steer_heal.report.headline import event
from steer_heal.report.pages.page import html
from steer_heal.report.pages.summary import summary
from steer_heal.report.plots import plots, png

OF_STATE = {"trait": "free_trait", "log_odds": "log_odds", "sentence_ok": "sentence_ok", "coherence": "coherence"}
"""Figures of base and of the result in a line of `results.tsv`, and their names in events."""
RESULT_COLUMNS = (
    *("run", "model", "trait", "reg", "seed", "rounds", "verdict", "best_round"),
    *(f"{name}_{state}" for name in OF_STATE for state in ("base", "best")),
    *("reverted", "controls", "seconds"),
)


def result_row(ledger: Ledger) -> dict[str, object]:
    """The run as one line of `results.tsv`. Raises ValueError when the run has no `end` event."""
    start, end, base = event(ledger, "start"), event(ledger, "end"), event(ledger, "baseline")["base"]
    rounds = {e["round"]: e["healed"] for e in ledger.events("evaluate")}
    best = rounds.get(end["best_round"], {})
    found = {name: start[name] for name in ("model", "trait", "reg", "seed")}
    found |= {name: end[name] for name in ("verdict", "best_round", "controls", "seconds")}
    for name, key in OF_STATE.items():
        found |= {f"{name}_base": base.get(key), f"{name}_best": best.get(key)}
    found |= {"run": ledger.folder.name, "rounds": len(rounds)}
    found["reverted"] = sum(not e["stands"] for e in ledger.events("gate"))
    return {name: found[name] for name in RESULT_COLUMNS}


def write_report(ledger: Ledger) -> None:
    """Write the pages, and add the run's line to `results.tsv`. Raises ValueError when the run has no `end` event."""
    write_pages(ledger)
    ledger.append_result(result_row(ledger))


def write_pages(ledger: Ledger) -> list[Path]:
    """Write `report.html`, `summary.md` and the plots as PNG; returns their paths.

    Raises ValueError when the run has no `end` event, InputError when a file of the run is missing or damaged, and
    NotWrittenError; a page that was there is then still there.
    """
    drawn = plots(ledger)
    contents = {
        "summary.md": summary(ledger, drawn).encode("utf-8"),
        "report.html": html(ledger, drawn).encode("utf-8"),
        **{f"{plot.name}.png": png(plot) for plot in drawn},
    }
    for name, content in contents.items():
        write_whole(ledger.folder / name, content)
    return [ledger.folder / name for name in contents]
