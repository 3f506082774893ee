"""`steer-heal chat RUN|MODEL --prompt ...`: base, steered and healed side by side on the same prompt.

Knows nothing of training and filters; what is printed is unfiltered. Torch waits until the names were looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from steer_heal.arguments import checked_scale
from steer_heal.commands.folders import (
    card_data,
    check_run_or_model,
    finished_run,
    fold_result,
    is_run,
    load_model,
    vector_of,
)
from steer_heal.commands.options import console
from steer_heal.errors import InputError
from steer_heal.reading import reachable
from steer_heal.trait import Trait, builtin_traits, default_trait

if TYPE_CHECKING:
    from steer_heal.healing.bake import AdapterStack
    from steer_heal.model import LM
    from steer_heal.steering import SteeringVector


@dataclass(frozen=True)
class Chat:
    """Ask the original model, the model steered at a dose, and the healed student of a run the same thing.

    With a model instead of a run: original and steered. Without --prompt, prompts are read line by line.

    Attributes:
        source: A run's folder; or a model: pocket, tiny-random, a folder, a hub id.
        prompt: What to ask; several may be given, each in quotes.
        dose: Multiple of the steering vector (round 0's of a run; of a model, one extracted now); no unit.
        vector: A saved vector (.safetensors) to steer with instead.
        trait: Trait whose personas a vector is extracted from, of a model; default the model's.
        system: System prompt; default none, so that the healed column is what the export says.
        c: Factor on what the run trained, from -1 to 1.5.
        max_new_tokens: Longest reply, in tokens.
        seed: Seed of the sampling, the same for every column.
        greedy: Take the likeliest token instead of sampling.
        device: cpu, cuda, mps or auto; default as the run, or auto.
        trust_remote_code: Run Python code that comes with the model.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    prompt: tuple[str, ...] = ()
    dose: float = 1.0
    vector: str | None = None
    trait: str | None = None
    system: str | None = None
    c: float = 1.0
    max_new_tokens: int = 120
    seed: int = 0
    greedy: bool = False
    device: str | None = None
    trust_remote_code: bool = False

    def __call__(self) -> int:
        """Print the replies to each prompt, one column per speaker."""
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens {self.max_new_tokens}: give at least 1")
        checked_scale(self.c)
        if any(not prompt.strip() for prompt in self.prompt):
            raise InputError("--prompt is empty: give every prompt at least one word")
        speakers, out = self.speakers(), console(120)
        from rich.table import Table

        for prompt in self.prompt or _read_prompts():
            said = self.replies(speakers, prompt)
            columns = Table(title=f"> {prompt}", title_justify="left", show_lines=True)
            for name in said:
                columns.add_column(name, ratio=1, overflow="fold")
            columns.add_row(*(text or "(empty)" for text in said.values()))
            out.print(columns)
        return 0

    def speakers(self) -> Speakers:
        """Model, vector and, of a run, the folded student. Raises InputError."""
        folder = reachable(self.source)
        if is_run(folder):
            ledger = finished_run(folder)
            if self.trait is not None:
                raise InputError(f"--trait {self.trait!r} with a run, which has its vector: leave it out")
            lm = load_model(ledger, self.device, self.trust_remote_code)
            vector = self._saved_vector() or vector_of(ledger)
            stack = fold_result(ledger, lm) if ledger.events("end")[-1]["best_round"] is not None else None
        else:
            check_run_or_model(self.source)
            if self.c != 1:
                raise InputError(f"--c {self.c:g} with a model: it scales what a run trained, --dose a vector")
            trait = Trait.load(self.trait or trait_of_card(folder) or default_trait(self.source))
            from steer_heal import model as models
            from steer_heal.steering import extract

            lm = models.load(self.source, device=self.device or "auto", trust_remote_code=self.trust_remote_code)
            vector, stack = self._saved_vector() or extract(lm, trait.pos, trait.neg, trait.contexts), None
        with vector.applied(lm.model, 0.0):
            pass  # a vector of another model is an error here, before anything is sampled
        return Speakers(lm, vector, stack)

    def replies(self, speakers: Speakers, prompt: str) -> dict[str, str]:
        """What each says, by its name."""
        from steer_heal.texts.generation import generate

        sampled = {"max_new_tokens": self.max_new_tokens, "seed": self.seed, "greedy": self.greedy}

        def say(dose: float = 0.0) -> str:
            vector = speakers.vector if dose else None
            return generate(speakers.lm, [prompt], vector, (dose,), system=self.system or None, **sampled)[0].text

        def unhealed() -> dict[str, str]:
            return {"base": say(), f"steered, dose {self.dose:g}": say(self.dose)}

        if speakers.stack is None:
            return unhealed()
        with speakers.stack.unfolded():
            said = unhealed()
        with speakers.stack.scaled(self.c):
            return {**said, "healed" if self.c == 1 else f"healed, c {self.c:g}": say()}

    def _saved_vector(self) -> SteeringVector | None:
        from steer_heal.steering import SteeringVector

        return SteeringVector.load(self.vector) if self.vector else None


@dataclass(frozen=True)
class Speakers:
    """The original model, what to steer it with, and a run's student: `healed` answers with its adapters folded in."""

    lm: LM
    vector: SteeringVector
    stack: AdapterStack | None = None


def _read_prompts() -> Iterator[str]:
    """Prompts from standard input, up to its end or an empty line."""
    if sys.stdin.isatty():
        print("One prompt per line; an empty line ends.")
    while prompt := sys.stdin.readline().strip():
        yield prompt


def trait_of_card(folder: Path) -> str | None:
    """The built-in trait that the card of an export names."""
    ours = card_data(folder / "README.md").get("steer_heal")
    named = ours.get("trait") if isinstance(ours, Mapping) else None
    return named if named in builtin_traits() else None
