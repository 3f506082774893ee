"""Does a budget carry over between models? One heal per budget, on every model, trait and dose given, in one table.

Knows nothing of rounds: everything is a first round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean

import tyro

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, evaluate
from steer_heal.evaluation.shift import coherence
from steer_heal.healing import mean_divergence, reference_states
from steer_heal.loop.calibration import calibrate
from steer_heal.report.tables import number
from steer_heal.steering import SteeringVector, extract
from steer_heal.studies.entries import number_or_text, read_entry
from steer_heal.studies.material import Material, healed, load_material
from steer_heal.studies.writing import grouped, markdown, say, write_csv, write_page
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


@dataclass(frozen=True)
class Cell:
    """One heal.

    Attributes:
        case, dose, seed, arm, rows: what was healed how, and on how many kept texts.
        caused: divergence of the steered from the plain model on the kept rows, mean over rows of the aggregate, nats.
        tau: budget in nats, None without a barrier. fired: share of rows over budget during training.
        reached: divergence of the healed from the original model on the same rows, nats.
        log_odds, free: the trait's shift against base, in nats of forced choice and in shares of replies.
        coherence: share of sound sentences; without a checker, of replies that do not loop.
    """

    case: str
    dose: float
    seed: int
    arm: str
    rows: int
    caused: float
    tau: float | None
    fired: float | None
    reached: float
    log_odds: float
    free: float | None
    coherence: float | None


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
            about = {"case": name, "dose": dose, "seed": seed, "rows": len(rows)}
            figures = heal_arms(material, arguments, vector, rows, base, seed)
            found += [Cell(**about, **of_arm) for of_arm in figures]
    return found


def heal_arms(
    material: Material,
    arguments: Arguments,
    vector: SteeringVector,
    rows: Sequence[Completion],
    base: Metrics,
    seed: int,
) -> Iterator[dict]:
    """One heal without a barrier and one per budget, from the same initial adapter: the figures of a `Cell`."""
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
    for arm, options in arms.items():
        with healed(lm, material.stack, rows, options, {"prev": plain}, steering_divergence=caused) as found:
            reached = mean_divergence(lm, reference_states(lm, rows), plain, rows, barrier)
            after = measured(material, arguments, seed)
        yield {
            "arm": arm,
            "caused": caused,
            "tau": found.tau.get("prev"),
            "fired": found.figures.get("prev_fired"),
            "reached": reached,
            "log_odds": after.log_odds - base.log_odds,
            "free": None if None in (after.free_trait, base.free_trait) else after.free_trait - base.free_trait,
            "coherence": coherence(after, base),
        }


def measured(material: Material, arguments: Arguments, seed: int) -> Metrics:
    """The model as it is now, on the run's items."""
    sizes = {"n_items": material.config.eval_items, "max_new_tokens": material.config.max_new_tokens}
    seed = derive_seed(seed, "evaluate")
    return evaluate(material.lm, material.trait, n_free=arguments.replies, seed=seed, **sizes)


# ---------------------------------------------------------------- the files

DECODED = """caused: divergence from the plain model that the steering itself caused on the kept texts; D: that of the
healed model from the original on the same texts; both the mean over texts of rmse_t KL, nats. tau: the
budget in nats. fired: share of rows over budget in training. trait: forced-choice log-odds against base,
nats; / nll: its share of what plain nll moved. free: free-text trait against base. ok: share of sound
sentences (without a checker: of replies that do not loop). Means over seeds. SHOULD: a budget that carries
over fires as often, leaves the same D / caused and keeps the same share of the trait in every case."""


def write(cells: Sequence[Cell], arguments: Arguments, notes: Sequence[str] = ()) -> str:
    """Write the two files; returns the page."""
    pooled = means(cells)
    write_csv(arguments.out / "carry_over.csv", [asdict(cell) for cell in cells])
    title = (
        f"Budgets tau {arguments.tau:g} nats and tau_rel {arguments.tau_rel:g}, lam {arguments.lam:g} "
        f"({arguments.lam_mode}), at most {arguments.rows} rows, seeds {', '.join(map(str, arguments.seeds))}."
    )
    ranges = "Over all cases and doses:\n" + "\n".join(spread(pooled))
    return write_page(arguments.out / "carry_over.md", title, table(pooled), DECODED, ranges, *notes)


def means(cells: Sequence[Cell]) -> list[Cell]:
    """One cell per case, dose and arm: the mean over seeds."""
    out = []
    for same in grouped(cells, lambda cell: (cell.case, cell.dose, cell.arm)).values():
        figures = {}
        for name in ("caused", "tau", "fired", "reached", "log_odds", "free", "coherence"):
            values = [getattr(cell, name) for cell in same]
            figures[name] = None if None in values else fmean(values)
        out.append(replace(same[0], **figures))
    return out


def table(cells: Sequence[Cell]) -> str:
    """Every case, dose and arm as Markdown, in the order given."""
    return markdown(
        [
            {
                "case": c.case,
                "dose": f"{c.dose:g}",
                "caused": number(c.caused, 2),
                "arm": c.arm,
                "tau": number(c.tau, 2),
                "fired": number(c.fired, 2),
                "D": number(c.reached, 2),
                "D / caused": number(c.reached / c.caused, 2),
                "trait, nats": number(c.log_odds, 2, signed=True),
                "trait / nll": number(kept_share(c, cells), 2),
                "free": number(c.free, 2, signed=True),
                "ok": number(c.coherence, 2),
            }
            for c in cells
        ]
    )


def kept_share(cell: Cell, cells: Sequence[Cell]) -> float | None:
    """Trait moved as a share of what plain nll moved there; None where nll moved it by less than .1 nats."""
    (plain,) = (c for c in cells if (c.case, c.dose, c.arm) == (cell.case, cell.dose, "nll"))
    return cell.log_odds / plain.log_odds if plain.log_odds >= 0.1 else None


def spread(cells: Sequence[Cell]) -> list[str]:
    """Per budget, how far each figure ranges over the cases and doses: what carries over ranges little."""
    lines = []
    for arm in ("tau", "tau_rel"):
        own = [c for c in cells if c.arm == arm]
        figures = {
            "fired": [c.fired for c in own],
            "D / caused": [c.reached / c.caused for c in own],
            "trait / nll": [kept_share(c, cells) for c in own],
        }
        ranges = []
        for name, values in figures.items():
            known = [value for value in values if value is not None]
            if known:
                ranges.append(f"{name} {min(known):.2f} to {max(known):.2f} (range {max(known) - min(known):.2f})")
        lines.append(f"- {arm}: {'; '.join(ranges)}")
    return lines
