"""Builds src/steer_heal/coherence/pairs.txt.gz: how often one kind of word follows another in ordinary English.

    python scripts/build_word_pairs.py

Counts come from the prose in docstrings of the standard library and of installed packages, and from the hand-written
pieces of the TUNING families (each counted many times, since docstrings know neither "she" nor the past tense). Only
counts of pairs are kept, no text. Other versions of those packages give slightly other counts. Knows nothing of models.
"""

from __future__ import annotations

import ast
import gzip
import io
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from steer_heal.texts.coherence.order import PAIRS, kinds_of

ROOT = Path(__file__).resolve().parents[1]
SEEDS = ROOT / "tests" / "data" / "coherence_seeds"
TUNING = ("narrative", "expository", "dialogue", "advice", "letters", "technical", "short_answers")
PACKAGES = ("torch", "transformers", "numpy", "peft", "matplotlib", "huggingface_hub")
WEIGHT = 30
"""Times that a hand-written piece counts."""
LEAST = 2
"""Pairs seen less often are left out."""


def docstrings(folder: Path) -> Iterator[str]:
    """Prose paragraphs of all docstrings under a folder."""
    for path in sorted(folder.rglob("*.py")):
        if "test" in path.as_posix() or "site-packages" in path.relative_to(folder).parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                yield from prose(text)


def prose(text: str) -> Iterator[str]:
    """Paragraphs of at least twelve words that are sentences rather than code, tables or doctests."""
    for part in re.split(r"\n\s*\n", text):
        words = re.findall(r"[A-Za-z']+", part)
        plain = sum(c.isalpha() or c in " \n,.'" for c in part)
        if len(words) >= 12 and plain >= 0.96 * len(part) and part.rstrip().endswith("."):
            yield part


def main() -> None:
    """Count and write."""
    counts: Counter[tuple[str, str]] = Counter()
    seen: set[str] = set()
    site = Path(sysconfig.get_paths()["purelib"])
    for folder in (Path(sysconfig.get_paths()["stdlib"]), *(site / name for name in PACKAGES)):
        for part in docstrings(folder):
            if part not in seen:
                seen.add(part)
                counts.update(pairwise(kinds_of(part)))
    for family in TUNING:
        for piece in (SEEDS / f"{family}.txt").read_text(encoding="utf-8").split("\n%%\n"):
            for pair in pairwise(kinds_of(piece)):
                counts[pair] += WEIGHT
    lines = [f"{a} {b} {n}" for (a, b), n in sorted(counts.items()) if n >= LEAST]
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as file:
        file.write(("\n".join(lines) + "\n").encode())
    PAIRS.write_bytes(packed.getvalue())
    print(f"{len(seen)} paragraphs, {sum(counts.values())} pairs, {len(lines)} kinds of pair")


if __name__ == "__main__":
    main()
