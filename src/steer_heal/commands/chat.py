"""`steer-heal chat RUN|MODEL --prompt ...`: base, steered and healed side by side on the same prompt.

Knows nothing of training and filters; what is printed is unfiltered.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from steer_heal import lm as models
from steer_heal.bake import AdapterStack
from steer_heal.commands.folders import finished_run, fold_result, load_model, vector_of
from steer_heal.errors import InputError
from steer_heal.generation import generate
from steer_heal.ledger import Ledger
from steer_heal.lm import LM
from steer_heal.steering import SteeringVector, extract
from steer_heal.trait import REVERSED, Trait, builtin_traits, default_trait

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


@dataclass(frozen=True)
class Speakers:
    """The original model, what to steer it with, and a run's student: `healed` answers with its adapters folded in."""

    lm: LM
    vector: SteeringVector
    system: str | None
    stack: AdapterStack | None = None


def main(options: Options) -> int:
    """Print the replies to each prompt, one column per speaker."""
    if options.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {options.max_new_tokens}: give at least 1")
    if any(not prompt.strip() for prompt in options.prompt):
        raise InputError("--prompt is empty: give every prompt at least one word")
    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    speakers = gather(options)
    for prompt in options.prompt or typed(console):
        console.print(side_by_side(prompt, replies(speakers, prompt, options)))
    return 0


def gather(options: Options) -> Speakers:
    """Model, vector and, of a run, the folded student. Raises InputError."""
    folder = Path(options.source).expanduser()
    if _is_run(folder):
        ledger = finished_run(folder)
        system = _system_of(options, ledger)
        lm = load_model(ledger, options.device, options.trust_remote_code)
        vector = SteeringVector.load(options.vector) if options.vector else vector_of(ledger)
        stack = fold_result(ledger, lm) if ledger.events("end")[-1]["best_round"] is not None else None
    else:
        trait = Trait.load(options.trait or default_trait(options.source))
        system = trait.neutral if options.system is None else options.system
        lm = models.load(options.source, device=options.device or "auto", trust_remote_code=options.trust_remote_code)
        vector, stack = SteeringVector.load(options.vector) if options.vector else None, None
        if vector is None:
            vector = extract(lm, trait.pos, trait.neg, trait.contexts)
    with vector.applied(lm.model, 0.0):
        pass  # a vector of another model is an error here, before anything is sampled
    return Speakers(lm, vector, system, stack)


def _system_of(options: Options, ledger: Ledger) -> str:
    """The system prompt of a run's replies. A trait file that only the run folder names is not opened.

    Its checker would be imported: that is for the user to allow, by naming the file. Raises InputError.
    """
    if options.system is not None:
        return options.system
    recorded = ledger.config.get("trait") or default_trait(ledger.events("start")[-1]["model"])
    if not options.trait and recorded.removesuffix(REVERSED) not in builtin_traits():
        raise InputError(f"the run used the trait file {recorded!r}: name it with --trait, or give --system")
    return Trait.load(options.trait or recorded).neutral


def replies(speakers: Speakers, prompt: str, options: Options) -> dict[str, str]:
    """What each says, by its name."""
    lm, stack = speakers.lm, speakers.stack

    def say(dose: float = 0.0) -> str:
        return generate(
            lm, [prompt], speakers.vector if dose else None, (dose,), system=speakers.system or None,
            max_new_tokens=options.max_new_tokens, seed=options.seed, greedy=options.greedy,
        )[0].text  # fmt: skip

    steered = f"steered, dose {options.dose:g}"
    if stack is None:
        return {"base": say(), steered: say(options.dose)}
    with stack.unfolded():
        said = {"base": say(), steered: say(options.dose)}
    return {**said, "healed": say()}


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


def _is_run(folder: Path) -> bool:
    """A run has events, or rounds; a model folder has neither."""
    return (folder / "events.jsonl").exists() or (folder / "rounds").is_dir()
