"""One heal per budget, on every model, trait and dose given: the options, the cases, and the files.

Knows nothing of rounds: everything is a first round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import tyro

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, evaluate
from steer_heal.evaluation.shift import coherence
from steer_heal.healing import heal, mean_divergence, reference_states
from steer_heal.loop.calibration import calibrate
from steer_heal.steering import SteeringVector, extract
from steer_heal.studies.carry_over.table import DECODED, Cell, means, spread, table
from steer_heal.studies.entries import number_or_text, read_entry
from steer_heal.studies.material import Material, load_material
from steer_heal.studies.writing import say, write_csv, write_page
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.texts.completion import Completion
from steer_heal.texts.generation import derive_seed, generate

LEAST_ROWS = 16
"""Fewer kept texts than this are no basis for a heal."""


@dataclass(frozen=True)
class Arguments:
    """Cases, budgets, sizes."""

    cases: tyro.conf.Positional[tuple[str, ...]]
    """MODEL,option=value,...: options of a run such as trait, doses (a/b), lr, epochs, layers (a/b), temperature."""
    tau: float = 0.2
    """The budget in nats."""
    tau_rel: float = 0.5
    """The relative budget: a share of what the steering caused."""
    lam: float = 0.3
    """Weight of the barrier."""
    lam_mode: str = "constant"
    """constant, or budget: a multiplier that holds the divergence at the budget."""
    rows: int = 64
    """Kept texts per dose to heal on."""
    replies: int = 96
    """Held-out replies per measured model; 0 leaves free text out."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of sampling and of the heals; figures are means over them."""
    out: Path = Path("out/carry_over")
    """Folder of the table."""


def parse(case: str) -> RunConfig:
    """`MODEL,option=value,...` as the options of a run. Raises InputError for what is none."""
    model, options = read_entry(case, [f.name for f in fields(RunConfig)], "case", "a run")
    changes: dict[str, object] = {}
    for name, value in options.items():
        # Elsewhere a slash is part of a path.
        several = name == "doses" or ("/" in value and name in ("layers", "lora_layers", "betas"))
        changes[name] = tuple(number_or_text(entry) for entry in value.split("/")) if several else number_or_text(value)
    return RunConfig(model=model, **{"targets": "tokens", **changes})


def carry_over(arguments: Arguments) -> str:
    """Run every case, the files written after each; returns the page. Raises InputError for unusable input."""
    if not arguments.cases or not arguments.seeds:
        raise InputError("give at least one case and one seed")
    for case in arguments.cases:
        parse(case)
    cells: list[Cell] = []
    notes: list[str] = []
    for case in arguments.cases:
        cells += run_case(case, arguments, notes)
        text = write(cells, arguments, notes)
        say(f"done: {case}")
    return f"{text}\n\nwritten to {arguments.out}"


def run_case(case: str, arguments: Arguments, notes: list[str]) -> list[Cell]:
    """All doses, seeds and arms of one case; a dose at which too few texts are coherent is left out and noted."""
    material = load_material(parse(case))
    config, lm, trait = material.config, material.lm, material.trait
    vector = extract(lm, trait.pos, trait.neg, trait.contexts, config.layers, config.position)
    same = {"system": trait.neutral, "max_new_tokens": config.max_new_tokens}
    fitted = CoherenceFilter.calibrate(lm, trait.prompts, false_drop=config.false_drop, **same)
    name = f"{Path(config.model_name).name} {trait.name}"
    if config.target_kl:
        vector = vector * calibrate(lm, vector, trait.prompts[:32], config.target_kl, **same).dose
    n = 3 * arguments.rows
    prompts = [trait.prompts[i % len(trait.prompts)] for i in range(n)]
    found = []
    for seed in arguments.seeds:
        base = measured(material, arguments, seed)
        for dose in config.doses:
            sampled = generate(lm, prompts, vector, doses=(dose,), seed=derive_seed(seed, "carry", dose), **same)
            rows = [c for c in fitted(lm, sampled) if c.kept][: arguments.rows]
            if len(rows) < LEAST_ROWS:
                notes.append(f"{name}, dose {dose:g}, seed {seed}: left out, {len(rows)} of {n} texts coherent")
                continue
            arms = heal_arms(material, arguments, vector, rows, base, seed)
            found += [replace(cell, case=name, dose=dose) for cell in arms]
    return found


def heal_arms(
    material: Material,
    arguments: Arguments,
    vector: SteeringVector,
    rows: Sequence[Completion],
    base: Metrics,
    seed: int,
) -> list[Cell]:
    """The same rows healed under each budget, from the same initial adapter; case and dose are not yet filled in."""
    lm = material.lm
    plain = reference_states(lm, rows)
    steered = reference_states(lm, rows, around=lambda batch: vector.applied(lm.model, [c.dose for c in batch]))
    budget = {"lam": arguments.lam, "lam_mode": arguments.lam_mode, "tau": arguments.tau, "tau_rel": None}
    barrier = replace(material.config.heal_config(seed), reg="kl_rev", reference="prev", **budget)
    caused = mean_divergence(lm, steered, plain, rows, barrier)
    arms = {
        "nll": replace(barrier, reg="nll"),
        "tau": barrier,
        "tau_rel": replace(barrier, tau_rel=arguments.tau_rel),
    }
    cells = []
    for arm, options in arms.items():
        healed = heal(lm, rows, options, {"prev": plain}, steering_divergence=caused)
        material.stack.push(healed.adapter)
        reached = mean_divergence(lm, reference_states(lm, rows), plain, rows, barrier)
        after = measured(material, arguments, seed)
        material.stack.pop()
        cell = Cell(
            case="",
            dose=0.0,
            seed=seed,
            arm=arm,
            rows=len(rows),
            caused=caused,
            tau=healed.tau.get("prev"),
            fired=healed.figures.get("prev_fired"),
            reached=reached,
            log_odds=after.log_odds - base.log_odds,
            free=None if None in (after.free_trait, base.free_trait) else after.free_trait - base.free_trait,
            coherence=coherence(after, base),
        )
        cells.append(cell)
    return cells


def measured(material: Material, arguments: Arguments, seed: int) -> Metrics:
    """The model as it is now, on the run's items."""
    sizes = {"n_items": material.config.eval_items, "max_new_tokens": material.config.max_new_tokens}
    seed = derive_seed(seed, "evaluate")
    return evaluate(material.lm, material.trait, n_free=arguments.replies, seed=seed, **sizes)


def write(cells: Sequence[Cell], arguments: Arguments, notes: Sequence[str] = ()) -> str:
    """Write the two files; returns the page."""
    pooled = means(cells)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.out / "carry_over.csv", [asdict(cell) for cell in cells])
    title = (
        f"Budgets tau {arguments.tau:g} nats and tau_rel {arguments.tau_rel:g}, lam {arguments.lam:g} "
        f"({arguments.lam_mode}), at most {arguments.rows} rows, seeds {', '.join(map(str, arguments.seeds))}."
    )
    ranges = "Over all cases and doses:\n" + "\n".join(spread(pooled))
    return write_page(arguments.out / "carry_over.md", title, table(pooled), DECODED, ranges, *notes)
