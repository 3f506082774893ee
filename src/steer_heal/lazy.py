"""Names that a package imports when they are first asked for: a help page or a mistyped option then needs no torch.

Knows nothing of what it imports.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path


def lazily(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of a package, from the imports that stand under its `if TYPE_CHECKING:`.

    Modules of the package itself are found without being listed; `dir` names the package's `__all__`.
    """
    module = sys.modules[package]
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for_checkers = next(node.body for node in tree.body if isinstance(node, ast.If))
    places = {alias.name: node.module for node in for_checkers for alias in node.names}

    def __getattr__(name: str) -> object:
        if name in places:
            found = getattr(importlib.import_module(places[name]), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            found = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(module, name, found)
        return found

    return __getattr__, lambda: list(module.__all__)
