"""Imports a function that the file of a trait or of anchors names, to check texts or replies. Runs the user's code.

Knows nothing of traits and models.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from steer_heal.errors import InputError


class NoLeaveError(InputError):
    """A file names a function, and nobody gave leave to import it."""


def import_function(spec: str, folder: Path, builtin: bool, place: str, code: bool = True) -> Callable:
    """The function `module:name`; an undotted module may also be a .py file in `folder`. It runs the user's code.

    Raises InputError for one that cannot be had; NoLeaveError where `code` is false and the file is not built in.
    """
    module_name, colon, function = spec.partition(":")
    if not colon or not module_name or not function:
        raise InputError(f"{place}: checker {spec!r}: write it as module:function")
    if not (code or builtin):
        raise NoLeaveError(f"{place}: checker {spec!r} would be run: name the file itself to allow it")
    if builtin and module_name.split(".")[0] != "steer_heal":
        raise InputError(f"{place}: checker {spec!r}: a built-in trait may only name a steer_heal module")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(f"{place}: checker {spec!r}: {module_name!r} is no module name; put the file beside this one")
    beside = folder / f"{module_name}.py"
    if beside.is_file() and not beside.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{place}: checker {spec!r}: {beside.name} leads out of the folder: put the file itself there")
    try:
        module = _load_file(beside) if beside.is_file() else importlib.import_module(module_name)
        found = getattr(module, function)
    except (ImportError, SyntaxError, AttributeError, NameError, TypeError, ValueError, LookupError) as problem:
        reason = " ".join(str(problem).split())
        raise InputError(
            f"{place}: checker {spec!r} cannot be imported ({type(problem).__name__}: {reason}): correct it"
        ) from problem
    if not callable(found):
        raise InputError(f"{place}: checker {spec!r} is not a function: name one")
    return found


def _load_file(path: Path) -> ModuleType:
    """A module from a file, under a name of its own so that it shadows nothing; run again only when it has changed."""
    name, state = f"steer_heal_checker_{path.stem}", (path.resolve(), path.stat().st_mtime_ns, path.stat().st_size)
    if getattr(sys.modules.get(name), "__state__", None) == state:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses of the module look themselves up there
    spec.loader.exec_module(module)
    module.__state__ = state
    return module
