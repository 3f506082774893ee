"""Healing a round of a finished run again under another regulariser, and the table of what comes of each.

Knows nothing of how completions were sampled and filtered: it reads a run folder.
"""

from steer_heal.studies.reheal.again import Setting, heal_once, heal_seed, load_setting, number_or_text, parse
from steer_heal.studies.reheal.table import DECODED, Row, plot, ranked, row_of, table, write_csv

__all__ = [
    "DECODED",
    "Row",
    "Setting",
    "heal_once",
    "heal_seed",
    "load_setting",
    "number_or_text",
    "parse",
    "plot",
    "ranked",
    "row_of",
    "table",
    "write_csv",
]
