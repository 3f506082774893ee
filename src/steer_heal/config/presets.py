"""Settings that suit a few published models: `--preset gemma-3-4b`. None of them was run on its model here.

Knows nothing of the method. An option given on the command line beats the preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from steer_heal.errors import InputError, nearest


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that time and memory follow from; `parameters`: of all; `context`: tokens."""

    parameters: float
    blocks: int
    width: int
    kv_width: int
    vocabulary: int
    context: int


@dataclass(frozen=True)
class Preset:
    """Options for one model, its published sizes, and what a user should know of it."""

    options: Mapping[str, object]
    shape: Shape
    note: str


COMMON = {"dtype": "bfloat16", "layers": (0.45, 0.55), "walk_batch": 48, "max_new_tokens": 256}
PRESETS: dict[str, Preset] = {
    "gemma-3-4b": Preset(
        {"model": "google/gemma-3-4b-it", **COMMON, "batch_size": 4},
        Shape(4.3e9, 34, 2560, 4 * 256, 262208, 131072),
        "needs an accepted licence on the hub",
    ),
    "qwen3-0.6b": Preset(
        {"model": "Qwen/Qwen3-0.6B", **COMMON, "batch_size": 8},
        Shape(0.6e9, 28, 1024, 8 * 128, 151936, 40960),
        "thinks before it answers, and that is then what the texts hold: compare with a model that does not think",
    ),
    "llama-3.1-8b": Preset(
        {"model": "meta-llama/Llama-3.1-8B-Instruct", **COMMON, "batch_size": 2, "grad_accum": 2},
        Shape(8.03e9, 32, 4096, 8 * 128, 128256, 131072),
        "needs an accepted licence on the hub",
    ),
}
UNTRIED = (
    "the preset was not run here on the published model, only on a tiny random one of its family: its values are those "
    "of earlier experiments with gemma-3-4b-it, or a guess"
)


def preset_words(name: str) -> list[str]:
    """A preset as it would be typed; what is typed behind it beats it. InputError for an unknown one."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}{nearest(name, tuple(PRESETS))}: give one of {', '.join(PRESETS)}")
    words = []
    for option, value in PRESETS[name].options.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{option.replace('_', '-')}", *map(str, values)]
    return words
