"""What a finished run leaves for readers: `report.html`, `summary.md` with its pictures, a line in `results.tsv`.

Reads a run folder only, knows nothing of models; every figure and text comes from its events, metrics and completions.
"""

from steer_heal.report.pages.page import html
from steer_heal.report.pages.summary import markdown_table, summary
from steer_heal.report.pages.writing import RESULT_COLUMNS, result_row, write_pages, write_report

__all__ = [
    "RESULT_COLUMNS",
    "html",
    "markdown_table",
    "result_row",
    "summary",
    "write_pages",
    "write_report",
]
