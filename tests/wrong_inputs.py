"""Wrong inputs by kind, generated from a seed: values, and damages to sound files; and what becomes of one."""

import contextlib
import hashlib
import io
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

from steer_heal.commands.main import main
from steer_heal.errors import InputError

SECONDS = 20
"""Within which a wrong input is refused, on a machine that does other things too."""
DIGITS, HALF = 10**5000, "\ud800"
NEVER = (math.nan, math.inf, -math.inf, 10**400, DIGITS, b"x", {}, object(), HALF, [[]], (HALF,), ("a", [1]))
"""Values that no option takes."""
JSON_VALUES = ("abc", "", 5, -1, 1.5, math.inf, math.nan, True, None, [], [1, 2], {}, {"a": 1}, 10**400, "x" * 5000)
LONG = "x" * 300


def wrong_values(hint: object) -> list[object]:
    """Values that are none of an annotation, told without the checks of the package."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    kinds = {get_origin(one) or one for one in (hint, *get_args(hint))}
    several = {tuple, Literal, Callable} & kinds
    takes = {
        "randm": str in kinds and Literal not in kinds,
        8.5: float in kinds and not several,
        5: bool({int, float} & kinds) and not several,
        True: bool in kinds and not several,
    }
    return [*NEVER, *(value for value, fine in takes.items() if not fine)]


def damages(seed: int) -> dict[str, Callable[[Path], object]]:
    """Ways to damage a file, by name; bits and places are drawn from the seed."""
    draw = random.Random(seed)

    def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
        return lambda path: (path.unlink(), make(path))

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes() or b"0")
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)

    return {
        "gone": Path.unlink,
        "empty": lambda path: path.write_bytes(b""),
        "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "flipped": flip,
        "folder": instead(Path.mkdir),
        "pipe": instead(os.mkfifo),
        "device": instead(lambda path: path.symlink_to("/dev/zero")),
        "circle": instead(lambda path: path.symlink_to(path)),
        "nul": lambda path: path.write_bytes(b"\0" * 50),
        "deep": lambda path: path.write_text("[" * 10**5 + "]" * 10**5),
        "digits": lambda path: path.write_text("9" * 10**5),
        "half": lambda path: path.write_text('{"a": "\\ud800"}'),
    }


def places(data: dict | list, before: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a JSON document; of long lists the first ones."""
    for key, value in list(data.items() if isinstance(data, dict) else enumerate(data))[:40]:
        yield (*before, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*before, key))


def retyped(path: Path, place: tuple, value: object) -> None:
    """Puts another value into a JSON file."""
    data = inner = json.loads(path.read_text("utf-8"))
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(data), "utf-8")


def tree(*folders: Path) -> dict[str, str]:
    """Everything under the folders, files with their content; a lock only tells who had a run last."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*") if path.name != "lock"):
        whole = path.is_file() and not path.is_symlink()
        found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if whole else str(path.lstat().st_mode)
    return found


def called(action: Callable[[], object]) -> str:
    """ "refused" in one line, "done", or what else became of a call."""
    began = time.monotonic()
    try:
        action()
    except InputError as problem:
        said = str(problem)
        fine = said and "\n" not in said and len(said) <= 800 and time.monotonic() - began < SECONDS
        return "refused" if fine else f"refused with {said!r}"
    except BaseException as problem:
        return f"{type(problem).__name__}: {str(problem)[:200]}"
    return "done"


def told(words: list[str], *folders: Path) -> str:
    """The same of a command, which writes nothing under the folders when it refuses."""
    before, out, err, began = tree(*folders), io.StringIO(), io.StringIO(), time.monotonic()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    except BaseException as problem:
        return f"{type(problem).__name__}: {str(problem)[:200]}"
    if code in (0, 3):
        return "done"
    said = err.getvalue()
    fine = code == 2 and said.startswith("steer_heal: ") and said.count("\n") == 1 and not out.getvalue()
    if not fine or len(said) > 1200 or time.monotonic() - began > SECONDS:
        return f"code {code} after {time.monotonic() - began:.0f} s: {said[-300:]!r} {out.getvalue()[-100:]!r}"
    return "refused" if tree(*folders) == before else f"refused, but something was written or lost: {said!r}"
