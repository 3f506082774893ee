"""A round's heal once more: the student as it stood before it, rebuilt from the run folder, and one heal of it.

Knows nothing of grids and tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, evaluate
from steer_heal.healing import HealConfig, Healed, ReferenceStates, reference_states
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.ledger import Ledger
from steer_heal.ledger.units import FORGET, Forgetful
from steer_heal.loop import steps
from steer_heal.loop.gate import anchors_of
from steer_heal.loop.steps.training import row_weights, under_vector
from steer_heal.model import LM
from steer_heal.report.console import Reporter
from steer_heal.steering import SteeringVector
from steer_heal.studies.entries import number_or_text, read_entry
from steer_heal.studies.material import config_of, healed, load_material, read_round
from steer_heal.texts.completion import Completion, load_completions
from steer_heal.texts.generation import derive_seed
from steer_heal.trait import Trait

KNOBS = {f.name for f in fields(HealConfig) if not isinstance(f.default, bool | tuple)} - {"reg", "seed"}
SAME_STUDENT_NATS = 0.02
"""Forced choice of the rebuilt student may differ from the stored one by this much (other hardware), not by more."""


@dataclass(frozen=True)
class Setting:
    """The student as it stood before the round's heal (folded into `lm`), its data, and what it is compared with."""

    config: RunConfig
    lm: LM
    trait: Trait
    stack: AdapterStack
    number: int
    rows: list[Completion]
    weights: Sequence[float] | None
    references: Mapping[str, ReferenceStates]
    vector: SteeringVector
    first: SteeringVector
    lam0: Mapping[str, float] | None
    base: Metrics
    prompted: Metrics
    steered: Metrics
    previous: Metrics
    folder: Path


class Unkept(steps.Setting):
    """A run's setting for a measurement that the run's folder is not to keep."""

    def keep(self, *labels: object) -> Forgetful:
        return FORGET


def parse(entry: str, config: HealConfig) -> HealConfig:
    """`reg,option=value,...` on top of a configuration. InputError for what HealConfig does not know."""
    reg, options = read_entry(entry, KNOBS, "grid", ", ".join(sorted(KNOBS)))
    return replace(config, reg=reg, **{name: number_or_text(value) for name, value in options.items()})


def load_setting(run_dir: Path, number: int) -> Setting:
    """Rebuild the student before round `number`'s heal from the run folder.

    Raises InputError for a folder without this round, a starved round, and a model that is not the run's any more.
    """
    ledger = Ledger.open(run_dir)
    config = config_of(ledger)
    folders = [run_dir / "rounds" / f"{i:02d}" for i in range(number + 1)]
    if not (folders[number] / "adapter").is_dir():
        raise InputError(f"{run_dir} has no healed round {number}: it is missing, or it starved")
    material = load_material(config)
    lm, stack = material.lm, material.stack
    counted = anchors_of(config, material.trait).not_replayed(material.trait.anchors)
    trait = replace(material.trait, anchors=counted)
    for folder in folders[:number]:
        stack.push(Adapter.load(folder / "adapter"))
    base = Metrics.load(run_dir / "base.json")
    previous = read_round(folders[number - 1])[1] if number else base
    _check_student(lm, trait, config, previous)
    sampled = load_completions(folders[number] / "completions.jsonl")
    rows = [c for c in sampled if c.kept]
    if (mixed_in := folders[number] / "mixed_in.jsonl").is_file():  # older runs have none
        rows += load_completions(mixed_in)
    lengths = ledger.events("calibrate")[0]["calibration"]["tokens"]
    prev = reference_states(lm, rows)
    with stack.unfolded():
        original = reference_states(lm, rows) if number else prev
    carried = config.lam_mode == "budget" and number
    return Setting(
        config=config,
        lm=lm,
        trait=trait,
        stack=stack,
        number=number,
        rows=rows,
        weights=row_weights(config.match_lengths, rows, lengths, sampled),
        references={"prev": prev, "base": original},
        vector=SteeringVector.load(folders[number] / "vector.safetensors"),
        first=SteeringVector.load(folders[0] / "vector.safetensors"),
        lam0=ledger.events("heal")[number - 1]["lam"] if carried else None,
        base=base,
        prompted=Metrics.load(run_dir / "prompted.json"),
        steered=read_round(folders[number])[0],
        previous=previous,
        folder=run_dir,
    )


def _check_student(lm: LM, trait: Trait, config: RunConfig, stored: Metrics) -> None:
    now = evaluate(lm, trait, n_items=config.eval_items, n_free=0, seed=derive_seed(config.seed, "evaluate"))
    if abs(now.log_odds - stored.log_odds) > SAME_STUDENT_NATS:
        raise InputError(
            f"the student before this round measures {now.log_odds:+.3f} nats, the run stored {stored.log_odds:+.3f}: "
            f"the weights of {lm.name} or the trait's items have changed since; make the run again"
        )


def heal_once(setting: Setting, config: HealConfig) -> tuple[Healed, Metrics]:
    """One heal and its evaluation on the run's items; the stack is afterwards as it was."""
    lm, references = setting.lm, setting.references
    options = {"lam0": setting.lam0, "weights": setting.weights}
    frozen = references["prev"], references["base"]
    ledger = Ledger.open(setting.folder)
    unkept = Unkept(setting.config, lm, setting.trait, ledger, Reporter(quiet=True), setting.stack)
    vectors = setting.vector, setting.first
    caused, teacher = under_vector(unkept, setting.number, vectors, setting.rows, config, *frozen)
    options |= {"steering_divergence": caused, "teacher": teacher}
    rows, round = setting.rows, setting.number
    with healed(lm, setting.stack, rows, config, references, round=round, **options) as found:
        return found, steps.measure(unkept, "healed")


def heal_seed(seed: int, number: int) -> int:
    """The seed that a run with this seed gives to round `number`'s heal."""
    return derive_seed(seed, number, "heal") % 2**31
