"""Code that a recorded configuration names, and the leave to run it: the user gives it in the very call, or nobody.

Knows nothing of run folders. Nothing is imported here.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from steer_heal.errors import InputError
from steer_heal.healing.config import KL_NAMES
from steer_heal.ledger import plain
from steer_heal.trait import Anchor, Trait
from steer_heal.trait.rows import read_rows
from steer_heal.user_function import NoLeaveError

READ = {
    "trait": lambda path: Trait.load(path, code=False),
    "anchors": lambda path: read_rows(path, Anchor, code=False),
}
"""Options that name a file which may name a function; each reads it without importing anything."""


def named_code(config: Mapping[str, object]) -> dict[str, list[str]]:
    """By option, the words that give leave to run the code that it names. Raises InputError for an unreadable file."""
    found = {}
    if config.get("trust_remote_code"):
        found["trust_remote_code"] = ["--trust-remote-code"]
    if config.get("reg") not in (None, "nll", *KL_NAMES):
        found["reg"] = ["--reg", str(config["reg"])]
    for name, read in READ.items():
        if config.get(name) is not None:
            try:
                read(str(config[name]))
            except NoLeaveError:
                found[name] = [f"--{name}", str(config[name])]
    return found


def check_leave(config: Mapping[str, object], given: Mapping[str, object], folder: Path) -> None:
    """Raises InputError for code that the configuration of `folder` names and the options of this call do not."""
    for name, words in named_code(config).items():
        if name not in given or plain(given[name]) != config[name]:
            raise InputError(
                f"{str(folder)!r} names code to run, and its word is no leave: if you trust it, say so in this call "
                f"with {shlex.join(words)}"
            )
