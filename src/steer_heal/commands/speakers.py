"""Who answers in a chat: the original model, the model steered at a dose, the healed student of a run.

Knows nothing of training, filters and printing; what they say is unfiltered.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steer_heal import model as models
from steer_heal.commands.chat import Options
from steer_heal.commands.folders import finished_run
from steer_heal.commands.handed_over import fold_result, load_model, vector_of
from steer_heal.errors import InputError
from steer_heal.healing.bake import AdapterStack
from steer_heal.ledger import Ledger
from steer_heal.model import LM
from steer_heal.steering import SteeringVector, extract
from steer_heal.texts.generation import generate
from steer_heal.trait import REVERSED, Trait, builtin_traits, default_trait


@dataclass(frozen=True)
class Speakers:
    """The original model, what to steer it with, and a run's student: `healed` answers with its adapters folded in."""

    lm: LM
    vector: SteeringVector
    system: str | None
    stack: AdapterStack | None = None


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


def _is_run(folder: Path) -> bool:
    """A run has events, or rounds; a model folder has neither."""
    return (folder / "events.jsonl").exists() or (folder / "rounds").is_dir()
