"""Real or shuffled pairs x barrier off or on, healed from the same rows: is what a heal learns content or one shift?

Knows nothing of how completions were sampled and filtered.
"""

from steer_heal.studies.matrix.cells import PAIRS, Cell, Column, column
from steer_heal.studies.matrix.table import (
    DECODED,
    cell_table,
    difference,
    difference_table,
    probe_table,
    replies_text,
    verdict,
    write_csv,
)

__all__ = [
    "DECODED",
    "PAIRS",
    "Cell",
    "Column",
    "cell_table",
    "column",
    "difference",
    "difference_table",
    "probe_table",
    "replies_text",
    "verdict",
    "write_csv",
]
