"""Re-heal one round of a run over a grid of regularisers x seeds, and rank what comes of it.

    uv run python scripts/heal_sweep.py out/RUN --round 0 --seeds 0 1 2
    uv run python scripts/heal_sweep.py out/RUN --round 1 --grid nll kl_rev,lam=0.1 kl_rev,lam=1,kl_agg=cvar

Model, trait and every option that the grid does not name come from the run; writes sweep.md, sweep.csv and sweep.png
to RUN/sweep_KK. Knows nothing of how completions were sampled and filtered: it reads a run folder.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean

import torch
import tyro

from steer_heal import lm as models
from steer_heal import steps
from steer_heal.adapter import Adapter
from steer_heal.bake import AdapterStack
from steer_heal.completion import Completion, load_completions
from steer_heal.config import RunConfig
from steer_heal.console import Reporter
from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, compare, evaluate
from steer_heal.evaluation.shift import coherent
from steer_heal.generation import derive_seed
from steer_heal.healing import DivergedError, HealConfig, Healed, heal, mean_divergence, reference_states
from steer_heal.healing.references import ReferenceStates
from steer_heal.ledger import Ledger
from steer_heal.report import markdown_table
from steer_heal.statistics import Estimate
from steer_heal.steering import SteeringVector
from steer_heal.steps.training import row_weights
from steer_heal.trait import Trait, default_trait
from steer_heal.units import FORGET
from steer_heal.verdict import Floors, gather, under_floors

DEFAULT_GRID = (
    "nll", "kl_rev,lam=0.03", "kl_rev,lam=0.1", "kl_rev,lam=0.3", "kl_rev,lam=1", "kl_fwd,lam=0.3",
    "nll,spectral=0.01", "nll,spectral=0.1", "nll,weight_decay=1", "kl_rev,lam_mode=budget",
)  # fmt: skip
KNOBS = {f.name for f in fields(HealConfig) if not isinstance(f.default, bool | tuple)} - {"reg", "seed"}
SAME_STUDENT_NATS = 0.02
"""Forced choice of the rebuilt student may differ from the stored one by this much (other hardware), not by more."""


@dataclass(frozen=True)
class Arguments:
    """One round of one run, a grid of regularisers, seeds."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of a run: it holds config.json and rounds/."""
    round: int = 0
    """Round to heal again, on the adapters of the rounds before it."""
    grid: tuple[str, ...] = DEFAULT_GRID
    """Regularisers: reg, or reg,option=value,... with options of HealConfig. All others are the run's own."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial adapter, held-out rows and order, the same for every regulariser; the run's own repeats it."""
    out: Path | None = None
    """Folder of the three files; default RUN/sweep_KK."""


@dataclass(frozen=True)
class Setting:
    """The student as it stood before the round's heal (folded into `lm`), its data, and what it is compared with."""

    config: RunConfig
    lm: models.LM
    trait: Trait
    stack: AdapterStack
    number: int
    rows: list[Completion]
    weights: Sequence[float] | None
    references: Mapping[str, ReferenceStates]
    vector: SteeringVector
    lam0: Mapping[str, float] | None
    base: Metrics
    prompted: Metrics
    steered: Metrics
    previous: Metrics


@dataclass(frozen=True)
class Row:
    """One row of the table, against base on the same items.

    Attributes:
        name, seed: regulariser or reference; one seed, `all` for the seeds pooled, empty for a reference.
        trait: forced-choice log-odds in nats. free: free-text trait in shares, None without a checker.
        coherence, level: change of coherence in shares, and where it stands.
        under: floors that were missed, in words; pooled rows collect them over the seeds.
        spread: smallest and largest trait over the seeds, in nats.
        kl, fired: token-mean KL to the previous student after the heal in nats; share of rows over budget.
    """

    name: str
    seed: str
    trait: Estimate
    free: Estimate | None
    coherence: Estimate
    level: float
    under: tuple[str, ...] = ()
    spread: tuple[float, float] | None = None
    kl: float | None = None
    fired: float | None = None

    @property
    def per_nat(self) -> float | None:
        """Coherence change per nat of trait; None where the trait moved less than its noise."""
        return self.coherence.value / abs(self.trait.value) if self.trait.excludes_zero else None


def parse(entry: str, config: HealConfig) -> HealConfig:
    """`reg,option=value,...` on top of a configuration. InputError for what HealConfig does not know."""
    reg, *options = entry.split(",")
    changes = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in KNOBS or not value:
            raise InputError(f"grid {entry!r}: {option!r} is no option=value of {', '.join(sorted(KNOBS))}")
        changes[key] = _number(value)
    return replace(config, reg=reg, **changes)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def load_setting(run_dir: Path, number: int) -> Setting:
    """Rebuild the student before round `number`'s heal from the run folder.

    Raises InputError for a folder without this round, a starved round, and a model that is not the run's any more.
    """
    ledger = Ledger.open(run_dir)
    known = {f.name for f in fields(RunConfig)}
    stored = {k: tuple(v) if isinstance(v, list) else v for k, v in ledger.config.items() if k in known}
    config = RunConfig(**stored)
    folders = [run_dir / "rounds" / f"{i:02d}" for i in range(number + 1)]
    if not (folders[number] / "adapter").is_dir():
        raise InputError(f"{run_dir} has no healed round {number}: it is missing, or it starved")
    if config.threads or config.model_name in ("pocket", "tiny-random"):
        torch.set_num_threads(config.threads or 1)
    lm = models.load(
        config.model_name, dtype=config.dtype, device=config.device, attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code, temperature=config.temperature, top_p=config.top_p,
    )  # fmt: skip
    trait = Trait.load(config.trait or default_trait(config.model_name))
    stack = AdapterStack(lm.model)
    for folder in folders[:number]:
        stack.push(Adapter.load(folder / "adapter"))
    base = Metrics.load(run_dir / "base.json")
    previous = read_metrics(folders[number - 1], "healed") if number else base
    _check_student(lm, trait, config, previous)
    sampled = load_completions(folders[number] / "completions.jsonl")
    rows = [c for c in sampled if c.kept]
    lengths = ledger.events("calibrate")[0]["calibration"]["tokens"]
    prev = reference_states(lm, rows)
    with stack.unfolded():
        original = reference_states(lm, rows) if number else prev
    carried = config.lam_mode == "budget" and number
    return Setting(
        config, lm, trait, stack, number, rows, row_weights(config.match_lengths, rows, lengths, sampled),
        {"prev": prev, "base": original},
        SteeringVector.load(folders[number] / "vector.safetensors"),
        ledger.events("heal")[number - 1]["lam"] if carried else None,
        base, Metrics.load(run_dir / "prompted.json"), read_metrics(folders[number], "steered"), previous,
    )  # fmt: skip


def read_metrics(folder: Path, name: str) -> Metrics:
    """`steered` or `healed` out of a round's metrics.json."""
    return Metrics.from_dict(json.loads((folder / "metrics.json").read_text("utf-8"))[name])


def _check_student(lm: models.LM, trait: Trait, config: RunConfig, stored: Metrics) -> None:
    now = evaluate(lm, trait, n_items=config.eval_items, n_free=0, seed=derive_seed(config.seed, "evaluate"))
    if abs(now.log_odds - stored.log_odds) > SAME_STUDENT_NATS:
        raise InputError(
            f"the student before this round measures {now.log_odds:+.3f} nats, the run stored {stored.log_odds:+.3f}: "
            f"the weights of {lm.name} or the trait's items have changed since; make the run again"
        )


def heal_once(setting: Setting, config: HealConfig) -> tuple[Healed, Metrics]:
    """One heal and its evaluation on the run's items; the stack is afterwards as it was."""
    caused = None
    if config.tau_rel is not None and config.reg != "nll":
        rows = [c for c in setting.rows if c.dose]
        steered = reference_states(
            setting.lm, rows, around=lambda part: setting.vector.applied(setting.lm.model, [c.dose for c in part])
        )
        caused = mean_divergence(setting.lm, steered, setting.references["prev"], rows, config)
    healed = heal(
        setting.lm, setting.rows, config, setting.references, round=setting.number, steering_divergence=caused,
        lam0=setting.lam0, weights=setting.weights,
    )  # fmt: skip
    setting.stack.push(healed.adapter)
    try:
        quiet = Reporter(quiet=True)
        return healed, steps.measure(
            setting.lm, setting.stack, setting.trait, setting.config, quiet, FORGET, "healed"
        )  # fmt: skip
    finally:
        setting.stack.pop()


def heal_seed(seed: int, number: int) -> int:
    """The seed that a run with this seed gives to round `number`'s heal."""
    return derive_seed(seed, number, "heal") % 2**31


Cell = tuple[int, Healed, Metrics]
"""What one heal gave: its seed, the heal, the evaluation."""


def row_of(setting: Setting, name: str, seeds: Sequence[int], found: Sequence[tuple[Healed | None, Metrics]]) -> Row:
    """One row out of one or more heals: rows of all seeds side by side, clustered by item and prompt as always."""
    base, students = setting.base, [metrics for _, metrics in found]
    shift = compare(joined([base] * len(students)), joined(students))
    floors = Floors(coherence=setting.config.coherence_floor)
    evidence = [gather(base, setting.steered, m, prompted=setting.prompted) for m in students]
    under = [f for found in evidence for f in under_floors(found, floors)]
    figures = [healed.figures for healed, _ in found if healed is not None]
    fired = [value for f in figures for key, value in f.items() if key.endswith("_fired")]
    moved = [m.log_odds - base.log_odds for m in students]
    seed = "" if not seeds else str(seeds[0]) if len(seeds) == 1 else "all"
    return Row(
        name, seed, shift.log_odds, shift.free_trait, shift.coherence,
        fmean(c for m in students for c in coherent(m, base)), tuple(under),
        (min(moved), max(moved)) if len(moved) > 1 else None,
        fmean(f["kl_prev_after"] for f in figures) if figures else None, fmean(fired) if fired else None,
    )  # fmt: skip


def joined(parts: Sequence[Metrics]) -> Metrics:
    """Evaluations on the same items as one; an item's rows keep its name, so they stay one cluster."""
    names = ("items", "off_target", "replies", "anchors")
    return replace(parts[0], **{name: sum((getattr(part, name) for part in parts), ()) for name in names})


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Rows above the floors by trait moved, then those under one; never by a ratio, whose denominator flatters."""
    return sorted(rows, key=lambda row: (bool(row.under), -row.trait.value))


COLUMNS = (
    "row", "floors", "trait, nats [95 %]", "seeds", "free-text trait", "coherence change", "coherence", "per nat",
    "KL prev", "fired",
)  # fmt: skip
DECODED = """trait: forced-choice log-odds against base. seeds: its range over them. free-text trait: share of replies.
coherence: share of sound sentences (without a checker: of sound replies), its change against base. per nat: coherence
change per nat of trait, blank where the trait's interval includes 0. KL prev: token-mean KL(student||previous student)
after the heal, nats. fired: share of rows over budget. floors: what a row is under; such rows stand last.
Intervals resample items and prompts, not seeds. SHOULD: the barriers give less trait and at least nll's coherence; if
no row differs from nll by more than its seeds do, nothing here depends on the regulariser."""


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, in the order given."""
    return markdown_table(list(COLUMNS), [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    def show(value: float | None, form: str = "+.3f") -> str:
        return "" if value is None else format(value, form)

    return [
        row.name.replace(",", " "), "; ".join(dict.fromkeys(row.under)) or "above",
        f"{row.trait.value:+.2f} [{row.trait.low:+.2f}, {row.trait.high:+.2f}]",
        "" if row.spread is None else f"{row.spread[0]:+.2f} to {row.spread[1]:+.2f}",
        show(row.free and row.free.value), str(row.coherence), show(row.level, ".3f"), show(row.per_nat, "+.4f"),
        show(row.kl, ".3f"), show(row.fired, ".2f"),
    ]  # fmt: skip


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every row, pooled and per seed, unrounded."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        estimates = ("trait_nats", "free_trait", "coherence_change")
        names = [f"{name}{end}" for name in estimates for end in ("", "_low", "_high")]
        out.writerow(["row", "seed", *names, "coherence", "coherence_per_nat", "kl_prev", "fired", "under"])
        for row in rows:
            values = [
                v for e in (row.trait, row.free, row.coherence) for v in ((e.value, e.low, e.high) if e else [""] * 3)
            ]
            tail = ["" if v is None else v for v in (row.level, row.per_nat, row.kl, row.fired)]
            out.writerow([row.name, row.seed, *values, *tail, "; ".join(row.under)])


def plot(path: Path, pooled: Sequence[Row], single: Sequence[Row], references: Sequence[Row], caption: str) -> None:
    """Which regulariser moves the trait furthest at what change of coherence? A marker each, faint ones are seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, shown in ((left, references), (right, [])):  # the steered model is far away: the right panel zooms in
        for i, row in enumerate(pooled):
            style = {"color": f"C{i % 10}", "marker": "os^Dv<>phX"[i % 10]}
            for point in (p for p in single if p.name == row.name):
                axis.plot(point.trait.value, point.coherence.value, alpha=0.3, markersize=5, linestyle="", **style)
            error = [[row.trait.value - row.trait.low], [row.trait.high - row.trait.value]]
            label = row.name.replace(",", " ") + (" (under a floor)" if row.under else "")
            axis.errorbar(
                row.trait.value, row.coherence.value, xerr=error, markersize=9, linestyle="", label=label, **style
            )
        for row, marker in zip(shown, "*Px", strict=False):
            axis.plot(row.trait.value, row.coherence.value, f"k{marker}", markersize=12, linestyle="", label=row.name)
        axis.axhline(0, color="#555555", linewidth=0.8)
        axis.set_xlabel("trait moved against base: forced choice, log-odds (nats; bars 95 % over items)")
        axis.set_ylabel("coherence change against base (share)")
        axis.grid(alpha=0.25)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    figure.supxlabel(caption, fontsize=9)
    figure.savefig(path, dpi=110)


def sweep(arguments: Arguments) -> list[Row]:
    """Heal every cell, write the three files, return the rows of the table in its order.

    Raises InputError for a wrong grid before the first heal, and for a run folder that cannot be used.
    """
    began = time.perf_counter()
    if not arguments.grid or not arguments.seeds:
        raise InputError("give at least one regulariser and one seed")
    setting = load_setting(arguments.run_dir, arguments.round)
    for entry in arguments.grid:
        parse(entry, setting.config.heal_config(0))
    out = arguments.out or arguments.run_dir / f"sweep_{arguments.round:02d}"
    found: dict[str, list[Cell]] = {}
    notes = []
    if setting.config.replay or setting.config.accumulate or setting.config.pairs != "real":
        notes.append("the run trained on replayed, accumulated or shuffled rows too; the sweep has the kept ones alone")
    for seed in arguments.seeds:
        for entry in arguments.grid:
            config = parse(entry, setting.config.heal_config(heal_seed(seed, arguments.round)))
            try:
                healed, metrics = heal_once(setting, config)
            except DivergedError as problem:
                notes.append(f"{entry}, seed {seed}: left out, {problem}")
                continue
            found.setdefault(entry, []).append((seed, healed, metrics))
            moved = metrics.log_odds - setting.base.log_odds
            print(f"seed {seed} {entry}: {moved:+.2f} nats, {time.perf_counter() - began:.0f} s", flush=True)
        # After each seed, so that an interrupted sweep leaves the seeds it has done.
        rows, text = write(setting, arguments.seeds[: arguments.seeds.index(seed) + 1], found, notes, out)
    print(f"\n{text}\n\n{time.perf_counter() - began:.0f} s; written to {out}")
    return rows


def write(
    setting: Setting, seeds: Sequence[int], found: Mapping[str, list[Cell]], notes: Sequence[str], out: Path
) -> tuple[list[Row], str]:
    """Write the three files for the seeds done; returns the rows of the table in its order and the text."""
    single = [row_of(setting, name, [s], [(h, m)]) for name, cells in found.items() for s, h, m in cells]
    pooled = ranked([
        row_of(setting, name, [s for s, _, _ in cells], [(h, m) for _, h, m in cells]) for name, cells in found.items()
    ])  # fmt: skip
    single = single if len(seeds) > 1 else []
    before = "previous student" if setting.number else "previous student (= base)"
    states = {"base": setting.base, "steered": setting.steered, before: setting.previous}
    references = [row_of(setting, name, [], [(None, metrics)]) for name, metrics in states.items()]
    config, base = setting.config, setting.base
    caption = (
        f"{config.model_name}, trait {setting.trait.name}, round {setting.number} of a run with seed {config.seed}, "
        f"heal seeds {', '.join(map(str, seeds))}; {len(setting.rows)} kept completions;\n"
        f"{len(base.items)} items in both orders and {len(base.replies)} replies, the same for every row; steered at "
        f"dose {setting.steered.dose:.2f}, unfiltered"
    )
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "sweep.csv", [*references, *pooled, *single])
    plot(out / "sweep.png", pooled, single, references, caption)
    text = "\n\n".join([caption + ".", table([*references, *pooled]), DECODED, *notes])
    (out / "sweep.md").write_text(f"{text}\n", encoding="utf-8")
    return [*references, *pooled], text


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, sweep; 2 for unusable input."""
    arguments = tyro.cli(Arguments, args=argv)
    try:
        sweep(arguments)
    except InputError as problem:
        print(f"heal_sweep: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
