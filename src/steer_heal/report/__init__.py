"""What a finished run leaves for readers: `report.html`, `summary.md`, plots, and its line in `results.tsv`.

Reads a run folder only, knows nothing of models; every figure and text comes from its events, metrics and completions.
"""

from steer_heal.report.page import html
from steer_heal.report.plots import Plot, plots
from steer_heal.report.results import RESULT_COLUMNS, result_row
from steer_heal.report.summary import markdown_table, summary
from steer_heal.report.writing import write_pages, write_report

__all__ = [
    "RESULT_COLUMNS",
    "Plot",
    "html",
    "markdown_table",
    "plots",
    "result_row",
    "summary",
    "write_pages",
    "write_report",
]
