"""All labelled texts as rows, and the file they are kept in.

Knows nothing of the filter.
"""

from __future__ import annotations

import json
from pathlib import Path

from labelled_texts.broken import broken_texts
from labelled_texts.good import good_texts
from labelled_texts.pieces import Pieces
from steer_heal.studies.filter_report import FILE


def labelled(given: Pieces) -> list[dict[str, str]]:
    """All texts, family by family, with label, family and split."""
    rows = []
    for label, families in (("good", good_texts(given)), ("broken", broken_texts(given))):
        for family, texts in families.items():
            split = "held_out" if family in given.held_out else "tune"
            rows += [{"text": t, "label": label, "family": family, "split": split} for t in dict.fromkeys(texts)]
    return rows


def write_labelled(data: Path) -> str:
    """Make the texts from a folder's pieces and write them beside; returns what is in the file."""
    rows = labelled(Pieces(data / "coherence_seeds"))
    with open(data / FILE, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    good, families = sum(row["label"] == "good" for row in rows), {row["family"] for row in rows}
    return f"{len(rows)} texts, {good} good, {len(rows) - good} broken, {len(families)} families"
