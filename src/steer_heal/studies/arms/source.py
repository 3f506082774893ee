"""Which version of the package figures come from: a hash of its code and data.

Knows nothing of runs.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

NOT_IN_A_FIGURE = ("report", "studies")
"""Parts of the package that only show or compare figures: a change of theirs makes no run stale."""


def source_hash(package: Path | None = None) -> str:
    """Hash of all code and data that a run's figures come from; comments, docstrings and layout do not count."""
    package = package or Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        relative = path.relative_to(package)
        if relative.parts[0] in NOT_IN_A_FIGURE:
            continue
        content = path.read_bytes()
        digest.update(f"{relative.as_posix()}\n".encode())
        digest.update(_code(content).encode() if path.suffix == ".py" else hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


@cache
def _code(source: bytes) -> str:
    """The syntax tree without strings that stand alone."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [
                line for line in body
                if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
                        and isinstance(line.value.value, str))
            ]  # fmt: skip
    return ast.dump(tree)
