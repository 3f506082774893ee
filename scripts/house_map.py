"""The map of the house: one line per module, by rooms in the order of the column.

    uv run python scripts/house_map.py             # prints it; the site has it in its reference

A line is the first sentence of a module's docstring, the order that of `ROOMS` in tests/test_house.py: nothing is kept
by hand. Knows nothing of how the site is built.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from steer_heal.commands.script import run_script

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, SCRIPTS, COLUMN = ROOT / "src" / "steer_heal", ROOT / "scripts", ROOT / "tests" / "test_house.py"


@dataclass(frozen=True)
class Arguments:
    """Prints the map; there is nothing to choose."""


def rooms() -> list[str]:
    """Names of the rooms from the top of the column down."""
    tree = ast.parse(COLUMN.read_text(encoding="utf-8"))
    (rows,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "ROOMS")
    return [room for row in ast.literal_eval(rows) for room in row]


def first_sentence(file: Path) -> str:
    """Of a module's docstring, on one line and without its full stop."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).removesuffix(".")


def files_of(room: Path) -> list[Path]:
    """The Python files of a room, or the one file that a room can be; a package stands before its modules."""
    return (
        sorted(room.rglob("*.py"), key=lambda f: f.parent / f.stem.replace("__init__", ""))
        if room.is_dir()
        else [room.with_suffix(".py")]
    )


def house_map() -> str:
    """The map as Markdown: a heading per room that is a folder, a line per module."""
    column = [PACKAGE / room for room in rooms()]
    parts = [
        "# The map of the house",
        "Rooms stand in the order in which a text passes through them; each imports only from those above it.",
        "## Files that everybody may use, and the two entries",
        "\n".join(_line(path.with_suffix(".py"), PACKAGE) for path in column if not path.is_dir()),
    ]
    for room in [*(path for path in column if path.is_dir()), SCRIPTS]:
        start, *others = files_of(room) if room != SCRIPTS else [None, *files_of(room)]
        parts.append(f"## {room.name}")
        parts.append(f"{first_sentence(start)}." if start else "Each parses a command line, calls a study and prints.")
        parts.append("\n".join(_line(file, room) for file in others))
    return "\n\n".join(parts) + "\n"


def _line(file: Path, room: Path) -> str:
    place = file.relative_to(room)
    shown = f"{place.parent}/" if file.name == "__init__.py" else str(place)
    return f"- `{shown}`: {first_sentence(file)}"


main = partial(run_script, Arguments, lambda given: print(house_map()), about=__doc__, name="house_map")


if __name__ == "__main__":
    sys.exit(main())
