"""Imports and calls a function that the file of a trait or of anchors names, to check texts. Runs the user's code.

Knows nothing of traits and models.
"""

from __future__ import annotations

import importlib
import importlib.util
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from steer_heal.errors import InputError

SECONDS = 10.0
"""For one call of a user's function or one search of a regular expression; an import may load a library: six times."""


class NoLeaveError(InputError):
    """A file names a function, and nobody gave leave to import it."""


class EndlessError(InputError):
    """A function of the user, or a search, was stopped."""


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
        with within(6 * SECONDS, f"{place}: the import of checker {spec!r}"):
            module = _load_file(beside) if beside.is_file() else importlib.import_module(module_name)
        found = getattr(module, function)
    except EndlessError:
        raise
    except (Exception, SystemExit) as problem:  # the user's code may do anything
        reason = " ".join(str(problem).split())
        raise InputError(
            f"{place}: checker {spec!r} cannot be imported ({type(problem).__name__}: {reason}): correct it"
        ) from problem
    if not callable(found):
        raise InputError(f"{place}: checker {spec!r} is not a function: name one")
    return found


def called(function: Callable, name: str, *given: object) -> object:
    """What a function of the user returns; a complaint calls it `name`.

    Raises InputError when it raises, exits, takes other arguments, or is not done after `SECONDS`.
    """
    try:
        with within(SECONDS, name):
            return function(*given)
    except EndlessError:
        raise
    except (Exception, SystemExit) as problem:
        raise InputError(f"{name} failed ({type(problem).__name__}: {problem}): correct it") from problem


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """A block that Python code may take so long for, else InputError. Only the main thread can be stopped so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*signalled: object) -> None:
        raise EndlessError(f"{what} does not end (stopped after {seconds:g} s): correct it")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
