"""Writes a run's pages and plots into its folder, each in one step.

Knows nothing of what is on them.
"""

from __future__ import annotations

from pathlib import Path

from steer_heal.ledger import Ledger
from steer_heal.ledger.files import write_whole
from steer_heal.report.page import html
from steer_heal.report.plots import plots
from steer_heal.report.plots.drawing import png
from steer_heal.report.results import result_row
from steer_heal.report.summary import summary


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
