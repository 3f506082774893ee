"""Builds tests/data/coherence_labelled.jsonl from hand-written pieces and seeded corruptions; byte-identical each time.

    python scripts/build_coherence_data.py

Pieces are in tests/data/coherence_seeds/, one file per family, separated by lines "%%".
"""

from pathlib import Path

from labelled_texts.labelled import write_labelled

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"

if __name__ == "__main__":
    print(write_labelled(DATA))
