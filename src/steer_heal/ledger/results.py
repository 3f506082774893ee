"""`results.tsv`: one line per run, beside their folders.

Knows nothing of what the columns mean.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path

from steer_heal.ledger.files import whole_lines
from steer_heal.ledger.json_files import write_text


def add_row(path: Path, row: Mapping[str, object], again: str | None = None) -> None:
    """Add one line; a new file gets the header first. A line that begins with `again` is replaced."""
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # other runs may end at the same time
        lines = whole_lines(path) or ["\t".join(row)]
        if again is not None:
            lines = [line for line in lines if line.split("\t")[0] != again]
        lines.append("\t".join(_cell(value) for value in row.values()))
        write_text(path, "\n".join(lines) + "\n")
    finally:
        os.close(handle)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value).replace("\t", " ")
