"""The rooms of the package stand in one column: each imports only from those above it, and nothing in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import steer_heal

PACKAGE = Path(steer_heal.__file__).parent
ROOMS = (
    ("errors", "lazy"),
    ("statistics", "user_function", "terminal", "arguments", "reading", "shown"),
    ("pocket", "processes"),
    ("model",),
    ("trait", "ledger"),
    ("steering",),
    ("texts",),
    ("healing",),
    ("evaluation",),
    ("config",),
    ("report",),
    ("loop",),
    ("commands",),
    ("run", "__main__"),
    ("studies",),
)
"""In the order in which a text passes through them; those of one row stand side by side."""
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def modules(package: Path) -> dict[str, Path]:
    """Dotted names inside the package (a folder's own is that of its `__init__`) and their files."""
    found = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(package: Path) -> dict[str, set[str]]:
    """By module, the modules of the package that it imports anywhere: at the top, in a function, for type checkers."""
    known = modules(package)

    def resolved(name: str) -> str | None:
        parts = name.split(".")
        if parts[0] != "steer_heal":
            return None
        while ".".join(parts[1:]) not in known:
            parts.pop()
        return ".".join(parts[1:])

    found = {}
    for module, file in known.items():
        names = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: imports are written in full"
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        found[module] = {target for name in names if (target := resolved(name)) is not None} - {module}
    return found


def backwards(found: dict[str, set[str]]) -> list[str]:
    """Imports that lead from a room to one that does not stand above it."""
    return [
        f"{module} -> {target}"
        for module, targets in found.items()
        if module
        for target in targets
        if (a := module.split(".")[0]) != (b := target.split(".")[0]) and not FLOOR.get(b, 99) < FLOOR[a]
    ]


def circle(found: dict[str, set[str]]) -> list[str]:
    """The modules of a circle of imports; empty where there is none. A folder's `__init__` hands on and has no say."""
    packages = {module for module, file in modules(PACKAGE).items() if file.name == "__init__.py"}
    try:
        TopologicalSorter({m: t - packages for m, t in found.items() if m not in packages}).prepare()
    except CycleError as problem:
        return problem.args[1]
    return []


def test_every_file_and_folder_of_the_package_is_a_room_of_the_column():
    there = {p.stem for p in PACKAGE.iterdir() if (p.suffix == ".py" or (p / "__init__.py").is_file())} - {"__init__"}
    assert there == set(FLOOR)


def test_a_room_imports_only_from_rooms_above_it():
    assert backwards(imports(PACKAGE)) == []


def test_no_file_imports_in_a_circle():
    assert circle(imports(PACKAGE)) == []


@pytest.mark.parametrize(("low", "high"), [("texts.completion", "healing.loss"), ("trait.items", "ledger.units")])
def test_an_import_that_is_turned_round_is_seen(low, high):
    found = imports(PACKAGE)
    found[low] = found[low] | {high}
    assert f"{low} -> {high}" in backwards(found)


def test_a_circle_is_seen():
    found = imports(PACKAGE)
    assert "loop.controls" in found["loop.rounds"]
    found["loop.controls"] = found["loop.controls"] | {"loop.rounds"}
    assert set(circle(found)) == {"loop.controls", "loop.rounds"}


def test_a_folder_holds_at_most_ten_files():
    crowded = {
        str(folder.relative_to(PACKAGE)): count
        for folder in {file.parent for file in PACKAGE.rglob("*.py")}
        if (count := sum(p.name != "__init__.py" for p in folder.glob("*.py"))) > 10
    }
    assert crowded == {}
