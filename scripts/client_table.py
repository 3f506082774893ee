"""Write docs/clients.md: what works with which other program or library, the test that holds it, or why it does not.

    uv run python scripts/client_table.py

The rows are those of docs/data/clients.toml; a test that is named and is not there is an error. Knows nothing of how
they are tested.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from steer_heal.commands.script import run_script
from steer_heal.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "clients.md"
ABOUT = """# What works with what

Every row is held by a test, or says why there is none. Tests of `test_clients.py` and `test_libraries.py` run against
the real programs (`uv run just clients` fetches them), the others with all tests. `uv run python
scripts/client_table.py` writes this page and finds each test.
"""
ROWS = ROOT / "docs" / "data" / "clients.toml"


@dataclass(frozen=True)
class Arguments:
    """Writes the page; there is nothing to choose."""


def test_named(start: str) -> str:
    """The whole name of the test that begins so. Raises InputError where there is not exactly one."""
    file, _, begins = start.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    found = [one.name for one in tree.body if isinstance(one, ast.FunctionDef) and one.name.startswith(begins)]
    if len(found) != 1:
        raise InputError(f"{start}: {len(found)} tests begin so: name the one that holds the row")
    return f"`{file.removesuffix('.py')}`: {found[0].removeprefix('test_').replace('_', ' ')}"


def page() -> str:
    """The page."""
    parts = [ABOUT]
    for title, rows in tomllib.loads(ROWS.read_text(encoding="utf-8")).items():
        parts += [f"## {title}\n", "| what | how | held by |", "| --- | --- | --- |"]
        parts += [f"| {what} | {how} | {test_named(test) if test else '-'} |" for what, how, test in rows] + [""]
    return "\n".join(parts).rstrip() + "\n"


def write_page() -> None:
    """Write it."""
    PAGE.write_text(page(), encoding="utf-8")


main = partial(run_script, Arguments, lambda given: write_page(), about=__doc__, name="client_table")


if __name__ == "__main__":
    sys.exit(main())
