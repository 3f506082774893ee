"""How often one kind of word follows another in ordinary English, counted for the filter's gate on the order of words.

Knows nothing of models. Only counts of pairs are kept, no text.
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

from labelled_texts.pieces import Pieces
from steer_heal.texts.coherence.order import PAIRS, kinds_of

TUNING = ("narrative", "expository", "dialogue", "advice", "letters", "technical", "short_answers")
PACKAGES = ("torch", "transformers", "numpy", "peft", "matplotlib", "huggingface_hub")
WEIGHT = 30
"""Times that a hand-written piece counts."""
LEAST = 2
"""Pairs seen less often are left out."""


def write_word_pairs(given: Pieces) -> str:
    """Count the prose in docstrings of the standard library and of installed packages, and the pieces of the TUNING
    families; write the counts; returns what was counted."""
    counts: Counter[tuple[str, str]] = Counter()
    paths = sysconfig.get_paths()
    folders = [Path(paths["stdlib"]), *(Path(paths["purelib"]) / name for name in PACKAGES)]
    paragraphs = dict.fromkeys(part for folder in folders for part in docstrings(folder))
    for part in paragraphs:
        counts.update(pairwise(kinds_of(part)))
    for piece in (piece for family in TUNING for piece in given.of(family)):
        for pair in pairwise(kinds_of(piece)):
            counts[pair] += WEIGHT
    lines = [f"{a} {b} {n}" for (a, b), n in sorted(counts.items()) if n >= LEAST]
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as file:
        file.write(("\n".join(lines) + "\n").encode())
    PAIRS.write_bytes(packed.getvalue())
    return f"{len(paragraphs)} paragraphs, {sum(counts.values())} pairs, {len(lines)} kinds of pair"


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
