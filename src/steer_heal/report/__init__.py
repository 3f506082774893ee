"""What a run shows: the screen while it runs, pages, pictures and a line in `results.tsv` when it is done.

Knows nothing of how a figure was made; everything comes from a run folder's events, metrics and completions.
"""

from steer_heal.report.console import Reporter
from steer_heal.report.pages import (
    RESULT_COLUMNS,
    html,
    markdown_table,
    result_row,
    summary,
    write_pages,
    write_report,
)
from steer_heal.report.plots import Plot, plots

__all__ = [
    "RESULT_COLUMNS",
    "Plot",
    "Reporter",
    "html",
    "markdown_table",
    "plots",
    "result_row",
    "summary",
    "write_pages",
    "write_report",
]
