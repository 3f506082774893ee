"""Real or shuffled pairs x barrier off or on, healed from the same rows: is what a heal learns content or one shift?

Within a seed all heals share the kept rows, the held-out prompts and the initial adapter; held-out nll is measured on
REAL pairs, whatever a cell trained on. Knows nothing of how completions were sampled and filtered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation.probes import Probe, probe
from steer_heal.healing import HealConfig, reference_states
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.loss import measure
from steer_heal.loop.rounds import run_rounds
from steer_heal.loop.steps import shuffled_pairs
from steer_heal.report.tables import number
from steer_heal.statistics import Estimate, paired_difference
from steer_heal.studies.material import Material, healed, of_run, split_by_prompt
from steer_heal.studies.writing import Stopwatch, markdown, say, write_csv, write_page
from steer_heal.texts.generation import derive_seed, generate

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


def material_of(arguments: Arguments, seed: int) -> Material:
    """A finished run's rows, or those of one round that is run now. InputError for too few."""
    run_dir = arguments.run
    if run_dir is None:
        few = {"targets": "tokens", "n_rounds": 1, "eval_items": 8, "eval_replies": 8}
        config = RunConfig(model=arguments.model, seed=seed, out=str(arguments.out / "rounds"), **few)
        run_dir = run_rounds(config).folder
    material = of_run(run_dir, arguments.round)
    if len(material.rows) < MIN_ROWS:
        raise InputError(f"{len(material.rows)} kept rows are too few for a matrix: give at least {MIN_ROWS}")
    return material


def build(arguments: Arguments) -> tuple[list[Column], str]:
    """All seeds, the files written after each; returns the columns and the page. InputError for unusable input."""
    watch = Stopwatch()
    if not arguments.seeds or not arguments.lams:
        raise InputError("give at least one seed and one lam")
    barrier = {"reg": arguments.reg, "tau": arguments.tau, "lams": arguments.lams}
    columns: list[Column] = []
    for seed in arguments.seeds:
        material = material_of(arguments, seed)
        columns.append(column(material, seed, heldout_share=arguments.heldout, show=arguments.show, **barrier))
        say(f"seed {seed}: {verdict(columns[-1:])} {watch}")
        text = write(arguments.out, about(arguments, columns), columns)
    return columns, f"{text}\n\n{watch}; written to {arguments.out}"


def about(arguments: Arguments, columns: Sequence[Column]) -> str:
    """What was healed on which rows, in one line."""
    where = f"one round on {arguments.model} per seed"
    if arguments.run:
        where = f"round {arguments.round} of {arguments.run}"
    rows = ", ".join(f"{c.n_train} + {len(c.prompts)}" for c in columns)
    base = fmean(x for c in columns for x in c.base)
    return (
        f"{where}; seeds {', '.join(str(c.seed) for c in columns)}; training + held-out rows {rows}; barrier "
        f"{arguments.reg} against base, tau {arguments.tau:g}; held-out nll of base {base:.4f}."
    )


# ---------------------------------------------------------------- the heals of a seed


@dataclass(frozen=True)
class Cell:
    """One heal, measured on held-out real pairs.

    Attributes:
        nll, kl: per completion, nats per token; kl is KL(student||base).
        fired: share of training rows over the budget, None without a barrier.
        replies: (prompt, greedy reply) of held-out prompts, for reading.
    """

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


def barriers(config: HealConfig, reg: str, tau: float, lams: Sequence[float]) -> dict[str, HealConfig]:
    """Heal settings by name: off, then one per lam. No rows are held out by the heal: the study has its own."""
    config = replace(config, heldout=0.0, tau_rel=None, reference="prev", lam_mode="constant")
    named = {"off": replace(config, reg="nll")}
    for lam in lams:
        named[f"lam {lam:g}"] = replace(config, reg=reg, lam=lam, tau=tau)
    return named


def column(
    material: Material, seed: int, *, reg: str, tau: float, lams: Sequence[float], heldout_share: float, show: int
) -> Column:
    """All heals of one seed and the probes between them.

    Args:
        seed: of split, shuffle and initial adapter.
        reg, tau, lams: the barrier where it is on, its budget in nats, its weights.
        heldout_share: of the rows, by whole prompts, that no cell trains on.
        show: held-out prompts that every cell answers greedily.
    """
    lm, config = material.lm, material.config
    same = {"system": material.trait.neutral, "max_new_tokens": config.max_new_tokens}
    train, heldout = split_by_prompt(material.rows, heldout_share, derive_seed(seed, "split"))
    prompts = [row.prompt for row in train]
    unsteered = generate(lm, prompts, seed=derive_seed(seed, "unsteered"), origin="control", **same)
    data = {"real": train, "shuffled": shuffled_pairs(train, derive_seed(seed, "pairs")), "unsteered": unsteered}
    seeded = config.heal_config(derive_seed(seed, "heal") % 2**31)
    settings = barriers(replace(seeded, targets="tokens"), reg, tau, lams)  # pairs are torn in the tokens
    states = reference_states(lm, heldout)
    base = measure(lm, heldout, {})["nll"]
    shown = list(dict.fromkeys(row.prompt for row in heldout))[:show]

    def cell(pairs: str, barrier: str) -> Cell:
        """Heal, measure on the held-out pairs, take the adapter out again."""
        rows = data[pairs]
        with healed(lm, material.stack, rows, settings[barrier], {"prev": reference_states(lm, rows)}) as one:
            found = measure(lm, heldout, {"prev": states})
            replies = generate(lm, shown, greedy=True, **same) if shown else []
        said = tuple((reply.prompt, reply.text) for reply in replies)
        fired = one.figures.get("prev_fired")
        return Cell(pairs, barrier, seed, found["nll"], found["prev"], fired, one.adapter, said)

    cells = {(pairs, barrier): cell(pairs, barrier) for barrier in settings for pairs in PAIRS}
    probes = {
        name: probe(lm, material.stack, heldout, *(cells[pairs, name].adapter for pairs in PAIRS)) for name in settings
    }
    return Column(seed, len(train), [row.prompt_ids for row in heldout], base, cells, probes)


# ---------------------------------------------------------------- the files


def difference(columns: Sequence[Column], one: tuple[str, str] | None, other: tuple[str, str]) -> Estimate:
    """nll of `one` (None: before any heal) minus nll of `other`, paired, all seeds side by side, by prompt."""
    mine = [x for c in columns for x in (c.base if one is None else c.cells[one].nll)]
    theirs = [x for c in columns for x in c.cells[other].nll]
    return paired_difference(theirs, mine, [prompt for c in columns for prompt in c.prompts])


def cell_table(columns: Sequence[Column]) -> str:
    """One line per cell, seeds pooled."""
    rows = []
    for key in columns[0].cells:
        cells = [c.cells[key] for c in columns]
        fired = [cell.fired for cell in cells if cell.fired is not None]
        rows.append(
            {
                "pairs": key[0],
                "barrier": key[1],
                "held-out nll": f"{fmean(x for cell in cells for x in cell.nll):.4f}",
                "gain over base [95 %]": str(difference(columns, None, key)),
                "by seed": ", ".join(f"{fmean(cell.nll):.4f}" for cell in cells),
                "KL to base": f"{fmean(x for cell in cells for x in cell.kl):.4f}",
                "fired": f"{fmean(fired):.2f}" if fired else "-",
            }
        )
    return markdown(rows)


def difference_table(columns: Sequence[Column]) -> str:
    """What the pairs are worth at each barrier, and what the barrier costs at each kind of pairs."""
    names = list(columns[0].probes)
    compared = {f"shuffled - real, barrier {name}": (("shuffled", name), ("real", name)) for name in names}
    for pairs in PAIRS[:2]:
        on = [name for name in names if name != "off"]
        compared |= {f"{name} - off, {pairs} pairs": ((pairs, name), (pairs, "off")) for name in on}
    head = "difference of held-out nll, nats"
    return markdown([{head: what, "[95 %]": str(difference(columns, *two))} for what, two in compared.items()])


def probe_table(columns: Sequence[Column]) -> str:
    """The probes' figures, one line per seed and barrier."""
    return markdown(
        [
            {
                "seed": str(c.seed),
                "barrier": name,
                "cosine to shuffled": number(p.cosine, signed=True),
                "without means": number(p.rest_cosine, signed=True),
                "mean explains": number(p.mean_share, 2),
                "entropy / log V": f"{p.entropy:.3f} / {p.log_vocab:.3f}",
                "peak kept": number(p.peak_share, 2),
                "gain, nats": str(p.gain),
                "lead over shuffled, nats": str(p.lead),
                "cosine to unsteered": number(p.unsteered_cosine, signed=True),
                "weights: shuffled": number(p.weight_cosines["shuffled"], signed=True),
                "weights: unsteered": number(p.weight_cosines["unsteered"], signed=True),
                "size, logits": number(p.size),
                "verdict": p.verdict,
            }
            for c in columns
            for name, p in c.probes.items()
        ]
    )


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


def replies_text(columns: Sequence[Column]) -> str:
    """Greedy replies of every cell to held-out prompts, for reading."""
    cells = [(c.seed, cell) for c in columns for cell in c.cells.values()]
    return "\n".join(
        f"- seed {seed}, {cell.pairs}, {cell.barrier}: [{prompt}] {text}"
        for seed, cell in cells
        for prompt, text in cell.replies
    )


PROBED = ("cosine", "rest_cosine", "mean_share", "entropy", "peak_share", "unsteered_cosine", "size", "verdict")


def as_written(columns: Sequence[Column]) -> list[dict[str, object]]:
    """Every cell of every seed as a line of the CSV file, unrounded, with the probe of its barrier on real pairs."""
    rows = []
    for c in columns:
        for (pairs, name), cell in c.cells.items():
            row = {"seed": c.seed, "pairs": pairs, "barrier": name, "nll_base": fmean(c.base), "nll": fmean(cell.nll)}
            row |= {"kl_base": fmean(cell.kl), "fired": cell.fired}
            rows.append(row | {figure: getattr(c.probes[name], figure) for figure in PROBED if pairs == "real"})
    return rows


def write(out: Path, about: str, columns: Sequence[Column]) -> str:
    """Write matrix.md and matrix.csv; returns the text without the replies."""
    tables = [cell_table(columns), difference_table(columns), probe_table(columns)]
    parts = [about, *tables, DECODED, verdict(columns)]
    write_page(out / "matrix.md", *parts, replies_text(columns))
    write_csv(out / "matrix.csv", as_written(columns))
    return "\n\n".join(parts)
