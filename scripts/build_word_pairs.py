"""Builds the word pairs of the coherence filter (texts/coherence/pairs.txt.gz): which kind of word follows which.

    python scripts/build_word_pairs.py

Counts come from the prose in docstrings of the standard library and of installed packages, and from the hand-written
pieces of the tuning families (each counted many times, since docstrings know neither "she" nor the past tense). Other
versions of those packages give slightly other counts.
"""

from pathlib import Path

from labelled_texts.pieces import Pieces
from labelled_texts.word_pairs import write_word_pairs

SEEDS = Path(__file__).resolve().parents[1] / "tests" / "data" / "coherence_seeds"

if __name__ == "__main__":
    print(write_word_pairs(Pieces(SEEDS)))
