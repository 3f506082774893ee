"""Builds tests/data/coherence_labelled.jsonl from hand-written pieces and seeded corruptions; byte-identical each time.

    python scripts/build_coherence_data.py

Knows nothing of the filter. Pieces are in tests/data/coherence_seeds/, one file per family, separated by lines "%%".
"""

from __future__ import annotations

import json
from pathlib import Path

from steer_heal.studies.labelled_texts import Pieces, labelled

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"


def build() -> list[dict[str, str]]:
    """All labelled texts."""
    return labelled(Pieces(DATA / "coherence_seeds"))


def main() -> None:
    """Write the file and say what is in it."""
    rows = build()
    with open(DATA / "coherence_labelled.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    good, families = sum(row["label"] == "good" for row in rows), {row["family"] for row in rows}
    print(f"{len(rows)} texts, {good} good, {len(rows) - good} broken, {len(families)} families")


if __name__ == "__main__":
    main()
