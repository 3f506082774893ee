"""Keeps the map of the house in CONTRIBUTING.md true: one line per module, the first sentence of its docstring.

    uv run python scripts/house_map.py             # `just map`
    uv run python scripts/house_map.py --check     # write nothing; exit code 1 when the map is not true

A line stays where it was put. New modules come after the last one of their folder, and under "Not placed yet" where
there is none; lines of modules that are gone go.
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from steer_heal.commands.script import run_script

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(r"^- `(?P<path>[\w./]+(?:\.py|/))`: (?P<text>.*)$")
UNPLACED = "### Not placed yet"
FOLDERS = ("src/steer_heal", "scripts")


@dataclass(frozen=True)
class Arguments:
    """Where the map stands."""

    page: Path = ROOT / "CONTRIBUTING.md"
    """The page."""
    check: bool = False
    """Write nothing."""


def modules(root: Path = ROOT) -> dict[str, str]:
    """What the map has to say: path of every package (`dose/`) and module (`dose/walk.py`), and its first sentence."""
    found = {}
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            place = file.relative_to(root / "src" / "steer_heal" if folder == FOLDERS[0] else root)
            if place.name == "__init__.py":
                place = place.parent
            if str(place) == ".":
                continue
            path = f"{place}/" if file.name == "__init__.py" else str(place)
            text = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
            found[path] = " ".join(text.split()).removesuffix(".")
    return found


def refreshed(page: str, wanted: dict[str, str]) -> str:
    """The page with a true map."""
    lines, there = [], set()
    for line in page.split("\n"):
        if match := LINE.match(line):
            path = match["path"]
            if path not in wanted or path in there:
                continue
            there.add(path)
            line = _line(path, wanted[path])
        lines.append(line)
    for path in (path for path in wanted if path not in there):
        lines.insert(_place(lines, path), _line(path, wanted[path]))
    return "\n".join(lines)


def _line(path: str, text: str) -> str:
    return f"- `{path}`: {text}"


def _place(lines: list[str], path: str) -> int:
    """Where a new module's line goes."""
    folder = re.sub(r"[^/]+/?$", "", path)
    places = [at for at, line in enumerate(lines) if (match := LINE.match(line)) and match["path"].startswith(folder)]
    if folder and places:
        return places[-1] + 1
    if UNPLACED not in lines:
        end = max((at for at, line in enumerate(lines) if LINE.match(line)), default=len(lines) - 1) + 1
        lines[end:end] = ["", UNPLACED, ""]
    return lines.index(UNPLACED) + 2


def refresh(arguments: Arguments) -> int:
    """Refresh or check; returns the exit code."""
    page = arguments.page.read_text(encoding="utf-8")
    true = refreshed(page, modules())
    if arguments.check and true != page:
        print(f"{arguments.page.name}: the map is not true, run `just map`", file=sys.stderr)
        return 1
    if not arguments.check:
        arguments.page.write_text(true, encoding="utf-8")
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_script(Arguments, refresh, argv, __doc__, "house_map")


if __name__ == "__main__":
    sys.exit(main())
