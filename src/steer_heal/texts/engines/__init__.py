"""Engines for sampling: what one is asked and gives back, and those there are: `transformers`, `compiled`, `vllm`.

Knows nothing of completions and of where they are kept.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec

from steer_heal.errors import InputError
from steer_heal.processes import count
from steer_heal.texts.engines.protocol import Cut, Engine, Row
from steer_heal.texts.engines.transformers import TRANSFORMERS

__all__ = ["TRANSFORMERS", "Cut", "Engine", "Row", "check_engine", "engine"]


def check_engine(name: str) -> None:
    """Raises InputError for an engine whose package is not installed, and for vllm in several processes."""
    if name == "vllm" and count() > 1:
        raise InputError(f"engine vllm: one process only, {count()} were started: leave --engine out, or the launcher")
    if name == "vllm" and find_spec("vllm") is None:
        raise InputError("engine vllm: the package vllm is not installed: pip install 'steer-heal[vllm]'")


@functools.cache
def engine(name: str) -> Engine:
    """The engine of this name, one of each in a process. Raises InputError like `check_engine`."""
    check_engine(name)
    if name == "transformers":
        return TRANSFORMERS
    if name == "compiled":
        from steer_heal.texts.engines.compiled import CompiledEngine

        return CompiledEngine()
    from steer_heal.texts.engines.vllm import VllmEngine

    return VllmEngine()
