"""Does a budget carry over between models? One heal per budget, on every model, trait and dose given, in one table.

    uv run python scripts/carry_over.py pocket,trait=pocket-care,doses=0.5/1 pocket,trait=pocket-warmth,doses=0.5/1

A case is a model, then option=value of a run. Per dose: sample steered texts, keep the coherent ones, measure in nats
what the steering itself caused on them, heal on the same rows without a barrier (nll), under a budget in nats (--tau)
and under one relative to what the steering caused (--tau-rel). Writes carry_over.md and carry_over.csv to OUT. Knows
nothing of rounds: everything is a first round.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
import tyro

import steer_heal as sh
from steer_heal.commands.script import run_script
from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.healing import mean_divergence
from steer_heal.studies.carry_over import DECODED, Cell, means, spread, table
from steer_heal.studies.reheal import number_or_text
from steer_heal.texts.generation import derive_seed
from steer_heal.trait import default_trait

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
    out: Path = field(default=Path("out/carry_over"))
    """Folder of the table."""


def parse(case: str) -> RunConfig:
    """`MODEL,option=value,...` as the options of a run. Raises InputError for what is none."""
    model, *options = case.split(",")
    known = {f.name: f.default for f in fields(RunConfig)}
    changes: dict[str, object] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in known or not value:
            raise InputError(f"case {case!r}: {option!r} is no option=value of a run")
        # Elsewhere a slash is part of a path.
        several = name == "doses" or ("/" in value and name in ("layers", "lora_layers", "betas"))
        changes[name] = tuple(number_or_text(entry) for entry in value.split("/")) if several else number_or_text(value)
    return RunConfig(model=model, **changes)


def run_case(case: str, arguments: Arguments, notes: list[str]) -> list[Cell]:
    """All doses, seeds and arms of one case; a dose at which too few texts are coherent is left out and noted."""
    config = parse(case)
    if config.threads or config.model_name in ("pocket", "tiny-random"):
        torch.set_num_threads(config.threads or 1)
    lm = sh.load(
        config.model_name, dtype=config.dtype, device=config.device, temperature=config.temperature, top_p=config.top_p
    )
    trait = sh.Trait.load(config.trait or default_trait(config.model_name))
    vector = sh.extract(lm, trait.pos, trait.neg, trait.contexts, config.layers, config.position)
    fitted = sh.CoherenceFilter.calibrate(
        lm, trait.prompts, system=trait.neutral, max_new_tokens=config.max_new_tokens, false_drop=config.false_drop
    )
    name = f"{Path(config.model_name).name} {trait.name}"
    if config.target_kl:
        unit = sh.calibrate(
            lm, vector, trait.prompts[:32], config.target_kl, system=trait.neutral, max_new_tokens=config.max_new_tokens
        )
        vector = vector * unit.dose
    found = []
    for seed in arguments.seeds:
        base = _measure(lm, trait, config, arguments, seed)
        for dose in config.doses:
            rows = kept_rows(lm, trait, config, fitted, vector, dose, arguments.rows, seed)
            if len(rows) < LEAST_ROWS:
                notes.append(
                    f"{name}, dose {dose:g}, seed {seed}: left out, {len(rows)} of {3 * arguments.rows} texts coherent"
                )
                continue
            found += [
                replace(c, case=name) for c in heal_arms(lm, trait, config, arguments, vector, dose, rows, base, seed)
            ]
    return found


def kept_rows(lm, trait, config, fitted, vector, dose: float, n: int, seed: int) -> list[sh.Completion]:
    """At most n coherent texts at one dose, out of three times as many."""
    prompts = [trait.prompts[i % len(trait.prompts)] for i in range(3 * n)]
    sampled = sh.generate(
        lm, prompts, vector, doses=(dose,), system=trait.neutral, max_new_tokens=config.max_new_tokens,
        seed=derive_seed(seed, "carry", dose),
    )  # fmt: skip
    return [c for c in fitted(lm, sampled) if c.kept][:n]


def heal_arms(lm, trait, config, arguments: Arguments, vector, dose: float, rows, base, seed: int) -> list[Cell]:
    """The same rows healed under each budget, from the same initial adapter."""
    plain = sh.reference_states(lm, rows)
    steered = sh.reference_states(lm, rows, around=lambda batch: vector.applied(lm.model, [c.dose for c in batch]))
    barrier = replace(
        config.heal_config(seed), reg="kl_rev", reference="prev", lam=arguments.lam, lam_mode=arguments.lam_mode,
        tau=arguments.tau, tau_rel=None,
    )  # fmt: skip
    caused = mean_divergence(lm, steered, plain, rows, barrier)
    arms = {
        "nll": replace(barrier, reg="nll"),
        "tau": barrier,
        "tau_rel": replace(barrier, tau_rel=arguments.tau_rel),
    }
    cells = []
    for arm, options in arms.items():
        healed = sh.heal(lm, rows, options, {"prev": plain}, steering_divergence=caused)
        stack = sh.AdapterStack(lm.model)
        stack.push(healed.adapter)
        reached = mean_divergence(lm, sh.reference_states(lm, rows), plain, rows, barrier)
        after = _measure(lm, trait, config, arguments, seed)
        stack.pop()
        free = None if after.free_trait is None or base.free_trait is None else after.free_trait - base.free_trait
        cells.append(Cell(
            "", dose, seed, arm, len(rows), caused, healed.tau.get("prev"), healed.figures.get("prev_fired"), reached,
            after.log_odds - base.log_odds, free, after.sentence_ok,
        ))  # fmt: skip
    return cells


def _measure(lm, trait, config, arguments: Arguments, seed: int) -> sh.Metrics:
    return sh.evaluate(
        lm, trait, n_items=config.eval_items, n_free=arguments.replies, max_new_tokens=config.max_new_tokens,
        seed=derive_seed(seed, "evaluate"),
    )  # fmt: skip


def write(cells: Sequence[Cell], arguments: Arguments, notes: Sequence[str] = ()) -> str:
    """Write the two files; returns the text."""
    pooled = means(cells)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with open(arguments.out / "carry_over.csv", "w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, [f.name for f in fields(Cell)])
        out.writeheader()
        out.writerows({k: "" if v is None else v for k, v in asdict(cell).items()} for cell in cells)
    title = (
        f"Budgets tau {arguments.tau:g} nats and tau_rel {arguments.tau_rel:g}, lam {arguments.lam:g} "
        f"({arguments.lam_mode}), at most {arguments.rows} rows, seeds {', '.join(map(str, arguments.seeds))}."
    )
    ranges = "Over all cases and doses:\n" + "\n".join(spread(pooled))
    text = "\n\n".join([title, table(pooled), DECODED, ranges, *notes])
    (arguments.out / "carry_over.md").write_text(text + "\n", encoding="utf-8")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run every case; 2 for unusable input."""
    return run_script(Arguments, carry_over, argv, __doc__, "carry_over")


def carry_over(arguments: Arguments) -> None:
    """Run every case, print and write the table. Raises InputError for unusable input."""
    if not arguments.cases or not arguments.seeds:
        raise InputError("give at least one case and one seed")
    for case in arguments.cases:
        parse(case)
    cells: list[Cell] = []
    notes: list[str] = []
    for case in arguments.cases:
        cells += run_case(case, arguments, notes)
        text = write(cells, arguments, notes)  # after each case, so that an interruption leaves those done
        print(f"done: {case}", flush=True)
    print(f"\n{text}\n\nwritten to {arguments.out}")


if __name__ == "__main__":
    sys.exit(main())
