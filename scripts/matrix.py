"""Is what a heal learns content, or one cheap constant shift? Real or shuffled pairs x barrier off or on, same rows.

    uv run python scripts/matrix.py --seeds 0 1 2                 # one round on pocket per seed gives the rows
    uv run python scripts/matrix.py --run out/RUN --round 0       # a finished run's rows, seeds vary split and heal

Within a seed all cells share the kept rows, the held-out prompts and the initial adapter; nll is measured on held-out
REAL pairs. Writes matrix.md and matrix.csv to OUT. Knows nothing of how completions were sampled and filtered.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from steer_heal import study
from steer_heal.adapter import Adapter
from steer_heal.commands.script import run_script
from steer_heal.completion import Completion
from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.generation import derive_seed, generate
from steer_heal.healing import HealConfig, heal, reference_states
from steer_heal.healing.loss import measure
from steer_heal.probes import Probe, probe
from steer_heal.report import markdown_table
from steer_heal.rounds import run_rounds
from steer_heal.statistics import Estimate, paired_difference
from steer_heal.steps import shuffled_pairs
from steer_heal.study import Material

PAIRS = ("real", "shuffled", "unsteered")
MIN_ROWS = 16
"""Fewest kept rows: a quarter of them is held out, and an interval needs several prompts."""


@dataclass(frozen=True)
class Arguments:
    """Rows, barriers, seeds."""

    run: Path | None = None
    """Folder of a finished run; without it one round is run for each seed first."""
    round: int = 0
    """Round of that run whose kept completions are the rows; the ORIGINAL model is healed on them."""
    model: str = "pocket"
    """Model of the round that is run first."""
    lams: tuple[float, ...] = (0.3, 1.0)
    """Weights of the barrier where it is on."""
    reg: str = "kl_rev"
    """Barrier where it is on."""
    tau: float = 0.05
    """Its budget in nats; low enough to fire on a first round, else on and off are one heal."""
    heldout: float = 0.25
    """Share of the kept rows, by whole prompts, that no cell trains on."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of walk, split, shuffle and initial adapter."""
    show: int = 1
    """Held-out prompts whose greedy replies are written for every cell."""
    out: Path = Path("out/matrix")
    """Folder of the two files and of the rounds that were run."""


@dataclass(frozen=True)
class Cell:
    """One heal, measured on held-out real pairs, per completion (nats per token)."""

    pairs: str
    barrier: str
    seed: int
    nll: Sequence[float]
    kl: Sequence[float]
    fired: float | None
    adapter: Adapter
    replies: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Column:
    """One seed: its held-out prompts, nll before any heal, and the cells by (pairs, barrier)."""

    seed: int
    n_train: int
    prompts: Sequence[object]
    base: Sequence[float]
    cells: Mapping[tuple[str, str], Cell]
    probes: Mapping[str, Probe]


def barriers(arguments: Arguments, config: HealConfig) -> dict[str, HealConfig]:
    """Heal settings by name: off, then one per lam. No rows are held out by the heal: the study has its own."""
    config = replace(config, heldout=0.0, tau_rel=None, reference="prev", lam_mode="constant")
    named = {"off": replace(config, reg="nll")}
    for lam in arguments.lams:
        named[f"lam {lam:g}"] = replace(config, reg=arguments.reg, lam=lam, tau=arguments.tau)
    return named


def material_of(arguments: Arguments, seed: int) -> Material:
    """A finished run's rows, or those of one round that is run now. InputError for too few."""
    run_dir = arguments.run
    if run_dir is None:
        config = RunConfig(
            model=arguments.model, n_rounds=1, seed=seed, eval_items=8, eval_replies=8,
            out=str(arguments.out / "rounds"),
        )  # fmt: skip
        run_dir = run_rounds(config).folder
    material = study.of_run(run_dir, arguments.round)
    if len(material.rows) < MIN_ROWS:
        raise InputError(f"{len(material.rows)} kept rows are too few for a matrix: give at least {MIN_ROWS}")
    return material


def column(arguments: Arguments, seed: int) -> Column:
    """All heals of one seed and the probes between them."""
    material = material_of(arguments, seed)
    lm, trait, config = material.lm, material.trait, material.config
    train, heldout = study.split_by_prompt(material.rows, arguments.heldout, derive_seed(seed, "split"))
    unsteered = generate(
        lm, [row.prompt for row in train], system=trait.neutral, max_new_tokens=config.max_new_tokens,
        seed=derive_seed(seed, "unsteered"), origin="control",
    )  # fmt: skip
    data = {"real": train, "shuffled": shuffled_pairs(train, derive_seed(seed, "pairs")), "unsteered": unsteered}
    settings = barriers(arguments, config.heal_config(derive_seed(seed, "heal") % 2**31))
    states = reference_states(lm, heldout)
    base = measure(lm, heldout, {})["nll"]
    cells = {
        (pairs, name): run_cell(material, pairs, name, seed, data[pairs], heldout, setting, states, arguments.show)
        for name, setting in settings.items() for pairs in PAIRS
    }  # fmt: skip
    probes = {
        name: probe(lm, material.stack, heldout, *(cells[pairs, name].adapter for pairs in PAIRS)) for name in settings
    }
    return Column(seed, len(train), [row.prompt_ids for row in heldout], base, cells, probes)


def run_cell(
    material: Material, pairs: str, name: str, seed: int, rows: Sequence[Completion], heldout: Sequence[Completion],
    setting: HealConfig, states, show: int,
) -> Cell:  # fmt: skip
    """Heal, measure on the held-out pairs, take the adapter out again."""
    lm = material.lm
    healed = heal(lm, rows, setting, {"prev": reference_states(lm, rows)})
    material.stack.push(healed.adapter)
    try:
        found = measure(lm, heldout, {"prev": states})
        prompts = list(dict.fromkeys(row.prompt for row in heldout))[:show]
        replies = []
        if prompts:
            replies = generate(
                lm, prompts, system=material.trait.neutral, max_new_tokens=material.config.max_new_tokens, greedy=True
            )
    finally:
        material.stack.pop()
    return Cell(
        pairs, name, seed, found["nll"], found["prev"], healed.figures.get("prev_fired"), healed.adapter,
        tuple((reply.prompt, reply.text) for reply in replies),
    )  # fmt: skip


def difference(columns: Sequence[Column], one: tuple[str, str] | None, other: tuple[str, str]) -> Estimate:
    """nll of `one` (None: before any heal) minus nll of `other`, paired, all seeds side by side, by prompt."""
    mine = [x for c in columns for x in (c.base if one is None else c.cells[one].nll)]
    theirs = [x for c in columns for x in c.cells[other].nll]
    return paired_difference(theirs, mine, [prompt for c in columns for prompt in c.prompts])


def cell_table(columns: Sequence[Column]) -> str:
    """One line per cell, seeds pooled."""
    lines = []
    for key in columns[0].cells:
        cells = [c.cells[key] for c in columns]
        fired = [cell.fired for cell in cells if cell.fired is not None]
        lines.append([
            key[0], key[1], f"{fmean(x for cell in cells for x in cell.nll):.4f}",
            str(difference(columns, None, key)),
            ", ".join(f"{fmean(cell.nll):.4f}" for cell in cells),
            f"{fmean(x for cell in cells for x in cell.kl):.4f}", f"{fmean(fired):.2f}" if fired else "-",
        ])  # fmt: skip
    names = ["pairs", "barrier", "held-out nll", "gain over base [95 %]", "by seed", "KL to base", "fired"]
    return markdown_table(names, lines)


def difference_table(columns: Sequence[Column]) -> str:
    """What the pairs are worth at each barrier, and what the barrier costs at each kind of pairs."""
    names = list(columns[0].probes)
    lines = [
        [f"shuffled - real, barrier {name}", str(difference(columns, ("shuffled", name), ("real", name)))]
        for name in names
    ]
    lines += [
        [f"{name} - off, {pairs} pairs", str(difference(columns, (pairs, name), (pairs, "off")))]
        for pairs in PAIRS[:2] for name in names if name != "off"
    ]  # fmt: skip
    return markdown_table(["difference of held-out nll, nats", "[95 %]"], lines)


def probe_table(columns: Sequence[Column]) -> str:
    """The probes' figures, one line per seed and barrier."""
    lines = []
    for c in columns:
        for name, p in c.probes.items():
            lines.append([
                str(c.seed), name, f"{p.cosine:+.3f}", "-" if p.rest_cosine is None else f"{p.rest_cosine:+.3f}",
                f"{p.mean_share:.2f}", f"{p.entropy:.3f} / {p.log_vocab:.3f}", f"{p.peak_share:.2f}", str(p.gain),
                str(p.lead), f"{p.unsteered_cosine:+.3f}", f"{p.weight_cosines['shuffled']:+.3f}",
                f"{p.weight_cosines['unsteered']:+.3f}", f"{p.size:.3f}", p.verdict,
            ])  # fmt: skip
    names = [
        "seed", "barrier", "cosine to shuffled", "without means", "mean explains", "entropy / log V", "peak kept",
        "gain, nats", "lead over shuffled, nats", "cosine to unsteered", "weights: shuffled", "weights: unsteered",
        "size, logits", "verdict",
    ]  # fmt: skip
    return markdown_table(names, lines)


def verdict(columns: Sequence[Column]) -> str:
    """One sentence over all seeds and barriers."""
    found = {(c.seed, name): p.verdict for c in columns for name, p in c.probes.items()}
    words = set(found.values())
    if words == {"content"}:
        return f"Content: all {len(found)} probes (seeds x barriers) say that the effect depends on the text."
    if words == {"content-free"}:
        return f"A cheap constant win: all {len(found)} probes say that shuffled pairs teach the same constant shift."
    counts = ", ".join(f"{list(found.values()).count(word)} {word}" for word in sorted(words))
    where = "; ".join(f"seed {seed}, {name}: {word}" for (seed, name), word in found.items() if word != "content")
    return f"Mixed: {counts} of {len(found)} probes ({where})."


DECODED = """nll: mean over held-out real completions of their token-mean nll, nats per token; base is the model
before any heal. Intervals pair completions and resample prompts, not seeds. KL to base: token-mean KL(student||base) on
the same completions, nats. fired: share of training rows over the budget. cosine: between the logit shifts on the
held-out positions, all together; without means: after each shift's mean over positions is taken out. mean explains:
share of the real shift's energy. peak kept: of the single positions' log V - H(softmax(shift)), by the mean shift.
gain: base - real; lead: shuffled - real. weights: cosine of the adapters themselves. size: root mean square shift per
token. SHOULD: real pairs gain over base and lead over shuffled ones, with a cosine clearly under 1. Equal nll, cosine
near 1 and a mean that explains nearly all would be a constant shift that any text of the kind teaches."""


def build(arguments: Arguments) -> list[Column]:
    """All seeds; writes the files after each and returns the columns."""
    began = time.perf_counter()
    if not arguments.seeds or not arguments.lams:
        raise InputError("give at least one seed and one lam")
    columns: list[Column] = []
    for seed in arguments.seeds:
        columns.append(column(arguments, seed))
        print(f"seed {seed}: {verdict(columns[-1:])} {time.perf_counter() - began:.0f} s", flush=True)
        text = write(arguments, columns)
    print(f"\n{text}\n\n{time.perf_counter() - began:.0f} s; written to {arguments.out}")
    return columns


def write(arguments: Arguments, columns: Sequence[Column]) -> str:
    """Write matrix.md and matrix.csv; returns the text."""
    where = (
        f"round {arguments.round} of {arguments.run}" if arguments.run else f"one round on {arguments.model} per seed"
    )
    rows = ", ".join(f"{c.n_train} + {len(c.prompts)}" for c in columns)
    base = fmean(x for c in columns for x in c.base)
    about = (
        f"{where}; seeds {', '.join(str(c.seed) for c in columns)}; training + held-out rows {rows}; barrier "
        f"{arguments.reg} against base, tau {arguments.tau:g}; held-out nll of base {base:.4f}."
    )
    text = "\n\n".join([
        about, cell_table(columns), difference_table(columns), probe_table(columns), DECODED, verdict(columns)
    ])  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "matrix.md").write_text(f"{text}\n\n{replies_text(columns)}\n", encoding="utf-8")
    write_csv(arguments.out / "matrix.csv", columns)
    return text


def replies_text(columns: Sequence[Column]) -> str:
    """Greedy replies of every cell to held-out prompts, for reading."""
    return "\n".join(
        f"- seed {c.seed}, {cell.pairs}, {cell.barrier}: [{prompt}] {text}"
        for c in columns for cell in c.cells.values() for prompt, text in cell.replies
    )  # fmt: skip


def write_csv(path: Path, columns: Sequence[Column]) -> None:
    """Every cell of every seed, with the probe of its barrier on the real cells, unrounded."""
    figures = ("cosine", "rest_cosine", "mean_share", "entropy", "peak_share", "unsteered_cosine", "size", "verdict")
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["seed", "pairs", "barrier", "nll_base", "nll", "kl_base", "fired", *figures])
        for c in columns:
            for (pairs, name), cell in c.cells.items():
                own = (
                    [getattr(c.probes[name], figure) for figure in figures] if pairs == "real" else [""] * len(figures)
                )
                fired = "" if cell.fired is None else cell.fired
                values = [c.seed, pairs, name, fmean(c.base), fmean(cell.nll), fmean(cell.kl), fired, *own]
                out.writerow(["" if value is None else value for value in values])


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build; 2 for unusable input."""
    return run_script(Arguments, lambda given: build(given) and None, argv, __doc__, "matrix")


if __name__ == "__main__":
    sys.exit(main())
