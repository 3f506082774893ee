"""Imports a module of scripts/, which is no package."""

import importlib.util
import sys
from pathlib import Path


def script(name):
    """The module `scripts/<name>.py`."""
    path = Path(__file__).parents[1] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and tyro look their module up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
