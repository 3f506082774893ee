"""`steer-heal chat RUN|MODEL --prompt ...`: base, steered and healed side by side on the same prompt.

Knows nothing of models: `speakers` does; what is printed is unfiltered.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.table import Table

from steer_heal.errors import InputError

USAGE = "steer-heal chat RUN|MODEL [--prompt TEXT ...]"
PURPOSE = (
    "Ask the original model, the model steered at a dose, and the healed student of a run the same thing. With a "
    "model instead of a run: original and steered. Without --prompt, prompts are read line by line."
)


@dataclass(frozen=True)
class Options:
    """Whom to ask what."""

    source: tyro.conf.Positional[str]
    """A run's folder; or a model: pocket, tiny-random, a folder, a hub id."""
    prompt: tuple[str, ...] = ()
    """What to ask; several may be given, each in quotes."""
    dose: float = 1.0
    """Multiple of the steering vector (round 0's of a run; of a model, one extracted now); no unit."""
    vector: str | None = None
    """A saved vector (.safetensors) to steer with instead."""
    trait: str | None = None
    """Trait whose personas and neutral system prompt are used; default the run's or the model's."""
    system: str | None = None
    """System prompt; default the trait's neutral one."""
    max_new_tokens: int = 120
    """Longest reply, in tokens."""
    seed: int = 0
    """Seed of the sampling, the same for every column."""
    greedy: bool = False
    """Take the likeliest token instead of sampling."""
    device: str | None = None
    """cpu, cuda, mps or auto; default as the run, or auto."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


def main(options: Options) -> int:
    """Print the replies to each prompt, one column per speaker."""
    if options.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {options.max_new_tokens}: give at least 1")
    if any(not prompt.strip() for prompt in options.prompt):
        raise InputError("--prompt is empty: give every prompt at least one word")
    from steer_heal.commands.speakers import gather, replies

    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    speakers = gather(options)
    for prompt in options.prompt or typed(console):
        console.print(side_by_side(prompt, replies(speakers, prompt, options)))
    return 0


def side_by_side(prompt: str, said: dict[str, str]) -> Table:
    """One column per speaker."""
    out = Table(title=f"> {prompt}", title_justify="left", show_lines=True)
    for name in said:
        out.add_column(name, ratio=1, overflow="fold")
    out.add_row(*(text or "(empty)" for text in said.values()))
    return out


def typed(console: Console) -> Iterator[str]:
    """Prompts from standard input, up to its end or an empty line."""
    if sys.stdin.isatty():
        console.print("One prompt per line; an empty line ends.")
    while prompt := sys.stdin.readline().strip():
        yield prompt
