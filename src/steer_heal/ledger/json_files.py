"""Text and JSON files that are written in one step, and what of Python's types JSON holds.

Knows nothing of runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from steer_heal.ledger.files import write_whole


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, flush to disk, rename."""
    write_whole(path, text.encode("utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write indented JSON in one step; NaN and infinity become null."""
    write_text(path, json.dumps(plain(content), indent=1, ensure_ascii=False) + "\n")


def plain(value):
    """JSON types only: mappings, lists, strings, numbers; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}"
    if hasattr(value, "item"):
        return plain(value.item())
    raise TypeError(f"{type(value).__name__} does not belong in a ledger")
