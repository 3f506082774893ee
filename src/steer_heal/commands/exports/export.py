"""`steer-heal export RUN --to FOLDER`: the student of a run as an adapter or a model with its card; its vector alone.

Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from steer_heal.arguments import checked_scale
from steer_heal.commands.finished import Run
from steer_heal.commands.folders import card_data, finished_run, fold_result, folded_rounds, load_model, vector_of
from steer_heal.errors import InputError, printable
from steer_heal.ledger import Ledger
from steer_heal.model.names import EMBEDDED, check_name
from steer_heal.reading import reachable

if TYPE_CHECKING:
    from steer_heal.healing.bake import AdapterStack
    from steer_heal.model import LM
    from steer_heal.report.pages.card import Made


@dataclass(frozen=True)
class Export:
    """Write a run's student: one adapter for plain peft, or a merged model; with tokenizer and model card.

    The folder counts as written only after it was loaded again and gave the same logits.

    Attributes:
        run: The run's folder.
        to: Folder to write, which must not exist or be empty; a file with --gguf-vector.
        merged: A whole model with the adapters in its weights, instead of an adapter.
        bias: A whole model that steers by its biases, c times the vector: no healing in it.
        gguf_vector: The steering vector, times c, as a control vector for llama.cpp.
        round: Any round instead of the run's pick; of a vector, 0 if not said.
        c: Factor on what is exported, from -1 to 1.5; 1 is as trained.
        rank: Compress the adapter to this rank, and say what that loses.
        base: Hub id or folder that the card and an adapter name as the base; default where the run loaded it from.
        scales: Further c at which the card's table measures trait and coherence; 0 and 1 the run did.
        trait: The run's trait file, if it names code that is to be run for that table.
        device: cpu, cuda, mps or auto; default as the run.
        trust_remote_code: Run Python code that comes with the model.
    """

    run: Run
    to: str
    merged: bool = False
    bias: bool = False
    gguf_vector: bool = False
    round: int | None = None
    c: float = 1.0
    rank: int | None = None
    base: str | None = None
    scales: tuple[float, ...] = (-1.0, -0.5, 0.5, 1.5)
    trait: str | None = None
    device: str | None = None
    trust_remote_code: bool = False

    def __call__(self) -> int:
        """Load the model, fold the rounds in, measure, write."""
        ledger, target = finished_run(self.run), reachable(self.to)
        check_target(target)
        self._check(ledger)
        done = self._vector(ledger, target) if self.gguf_vector else self._model(ledger, target)
        print(printable(f"{target}: {done}"))
        return 0

    def _check(self, ledger: Ledger) -> None:
        """Refuse what does not go together, before a model is loaded."""
        kinds = [f"--{name.replace('_', '-')}" for name in ("merged", "bias", "gguf_vector") if getattr(self, name)]
        if len(kinds) > 1:
            raise InputError(f"{' and '.join(kinds)}: give one of them")
        for c in (self.c, *self.scales):
            checked_scale(c)
        if self.rank is not None and (self.bias or self.gguf_vector or self.rank < 1):
            raise InputError(f"--rank {self.rank}: give at least 1, for an adapter or a merged model")
        if self.base is not None and self.gguf_vector:
            raise InputError(f"--base {self.base!r}: a control vector names no base, leave it out")
        if self.base is not None:
            check_name(self.base)

    def _vector(self, ledger: Ledger, target: Path) -> str:
        number = self.round or 0
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.c * vector_of(ledger, number)).to_gguf(target)
        return f"control vector for llama.cpp, {self.c:g} times the vector of round {number}"

    def _model(self, ledger: Ledger, target: Path) -> str:
        from steer_heal.report.pages.card import ADAPTER, BAKED, MERGED, Made, card

        packed, whole = ledger.config.get("load_in"), self.merged or self.bias
        lm = load_model(ledger, self.device, self.trust_remote_code, full_weights=whole)
        base = self.base or lm.name
        made = Made(ADAPTER, base, self.round or 0, c=self.c, licence=licence_of(base))
        if self.bias:
            from steer_heal.healing.bake.bias import export_biased

            made = replace(made, kind=BAKED, unmeasured="a vector's dose is another one: see the run's own tables")
            export_biased(lm, vector_of(ledger, made.number), self.c, target, card(ledger, made))
            return f"{BAKED}, {self.c:g} times that of round {made.number}; loaded again, logits agree"
        folded = folded_rounds(ledger, self.round)
        stack = fold_result(ledger, lm, number=self.round)
        made = replace(made, number=folded[-1], folded=folded)
        if (pick := ledger.events("end")[-1]["best_round"]) != made.number:
            print(f"round {made.number} is not the run's pick, which is {'none' if pick is None else f'round {pick}'}")
        made = self._measured(ledger, lm, stack, made)
        if packed and whole:
            note = f"The run's base was in {packed}, and its figures are of that; this model is of the full weights."
            made = replace(made, notes=[*made.notes, note])
            print(note)
        with stack.scaled(self.c):
            if self.merged:
                made = replace(made, kind=MERGED)
                stack.export_merged(target, lm, card=card(ledger, made))
                kind = made.kind
            else:
                adapter = stack.export_peft(target, lm, base=self.base, card=card(ledger, made))
                kind = f"PEFT adapter of rank {adapter.rank} for {base}"
        return f"{kind}, rounds {', '.join(map(str, folded))}; loaded again, logits agree"

    def _measured(self, ledger: Ledger, lm: LM, stack: AdapterStack, made: Made) -> Made:
        """With the table of strengths; the stack compressed, where that is asked for, and what that cost."""
        from steer_heal.commands.exports import doses

        found, notes = doses.recorded(ledger, made.number), []
        if self.rank is not None:
            rank, nats = doses.compressed(ledger, lm, stack, self.rank, made.number)
            notes.append(f"Rank {rank}: KL(whole || compressed) is {nats:.2g} nats per token.")
            print(notes[0])
        scales: Sequence[float] = [c for c in self.scales if c not in found]
        try:
            measuring = doses.Measuring(ledger, lm, stack, doses.trait_of(ledger, self.trait))
        except InputError as problem:
            if self.trait is not None:
                raise
            print(printable(f"the card has no figures of other strengths: {problem}"))
            return replace(made, notes=notes, doses=found, unmeasured=str(problem))
        if self.rank is not None:
            whole, found[1.0] = found[1.0], measuring.state()
            notes.append(f"Whole -> compressed, at c = 1: {doses.told(whole, found[1.0])}.")
            print(notes[1])
        scales = sorted({*scales, self.c} - {*found})  # what is written is measured as well
        if scales:
            at = ", ".join(f"{c:g}" for c in scales)
            print(f"measuring the card's figures at c = {at}; --scales 1 leaves those of --c")
        return replace(made, notes=notes, doses=found | measuring.at(scales))


def check_target(target: Path) -> None:
    """Refuse a target that would overwrite something or cannot be written, before anything is measured.

    Raises InputError.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"--to {str(target)!r} is a file: name a folder that does not exist yet")
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"--to {str(target)!r} is not empty: name a folder that does not exist yet")
    for parent in target.parents:
        if parent.exists() and not parent.is_dir():
            raise InputError(f"--to {str(target)!r} lies under {str(parent)!r}, which is a file: name another folder")
    if target.parent.is_dir() and not target.exists():
        try:
            target.mkdir()
        except OSError as problem:
            raise InputError(
                f"--to {str(target)!r} cannot be written ({problem.strerror}): choose another"
            ) from problem
        target.rmdir()


def licence_of(base: str) -> str | None:
    """By a base's model card in its folder or the hub's cache; None where there is none. Nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    if base in EMBEDDED:
        return "mit"
    folder = reachable(base)
    found = folder / "README.md" if folder.is_dir() else try_to_load_from_cache(base, "README.md")
    return card_data(Path(found)).get("license") if isinstance(found, str | Path) else None
