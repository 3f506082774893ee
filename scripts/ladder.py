"""Teach a model what it fails at several settings, and gate each against what it could do before.

    uv run python scripts/ladder.py --seeds 0 1 2                     # pocket, the tasks it ships for this
    uv run python scripts/ladder.py --rows my_rows.jsonl --model ./folder --anchors my_anchors.jsonl
    uv run python scripts/ladder.py --run out/RUN --round 0           # a round's kept completions as the rows

Every setting starts from the same weights and, by seed, the same initial adapter: heal, bake, gate, keep or revert,
archive. Writes ladder.md, ladder.csv and the adapters with their decisions to OUT. Knows nothing of steering.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from steer_heal.commands.script import run_script
from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation import anchors as gate
from steer_heal.healing import DivergedError, HealConfig
from steer_heal.pocket import SURGERY
from steer_heal.report import markdown_table
from steer_heal.studies import material as study
from steer_heal.studies import surgery
from steer_heal.studies.surgery import Attempt, Operation, Setting


@dataclass(frozen=True)
class Arguments:
    """Rows to learn, anchors to keep, and the settings to try."""

    rows: Path | None = None
    """JSON lines {"prompt", "target"}: tasks to teach. Default on pocket: tasks it fails, shipped with it."""
    run: Path | None = None
    """Folder of a finished run, whose kept completions are the rows instead."""
    round: int = 0
    """Round of that run."""
    model: str = "pocket"
    """Model to operate on; with --run the run's own."""
    trait: str | None = None
    """Trait whose anchors and neutral system prompt are used; default follows the model."""
    anchors: Path | None = None
    """JSON lines of anchors (id, prompt, answer, check) instead of the trait's."""
    shares: tuple[float, ...] = (0.0, 0.28, 0.53, 0.63)
    """Anchor rows as a share of all training rows."""
    lams: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
    """Weights of the barrier; 0 is none."""
    row_weights: tuple[Literal["none", "inv_sqrt"], ...] = ("none", "inv_sqrt")
    """Row weights; those after the first are tried at lam 0 only."""
    barrier_rows: tuple[Literal["replay", "all"], ...] = ("replay", "all")
    """Rows the barrier acts on: anchor rows only, or all."""
    pool: float = 0.5
    """Share of the anchors that may be replayed; the others are only checked."""
    hold_outs: int = 4
    """Replayable anchors whose barrier counts `hold_out_weight` times."""
    hold_out_weight: float = 4.0
    """Factor on their barrier."""
    reg: str = "kl_fwd"
    """Barrier: kl_fwd = KL(before||student), kl_rev, module:function."""
    kl_top_k: int = 50
    """Likeliest tokens of the model before that the KL looks at, the rest as one; 0: all."""
    lr: float = 3e-3
    """Peak learning rate."""
    epochs: int = 10
    """Passes over the rows."""
    batch_size: int = 8
    """Rows per optimiser step."""
    equal_steps: bool = False
    """Widen the batch with the anchor share, so that every setting takes the same number of steps."""
    rank: int = 8
    """LoRA rank; alpha is twice this."""
    max_new_tokens: int = 32
    """Longest answer to a task, in tokens."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of initial adapter, order of rows and choice of replayed anchors."""
    out: Path = Path("out/ladder")
    """Folder of the table, the adapters and the decisions."""


def settings(arguments: Arguments) -> list[Setting]:
    """The rungs in the table's order, each once: shares x lams x barrier rows, then other row weights at lam 0."""
    first, *others = arguments.row_weights
    grid = [
        Setting(share, lam, first, rows)
        for share in arguments.shares for lam in arguments.lams for rows in arguments.barrier_rows
    ]  # fmt: skip
    grid += [Setting(share, 0.0, weights) for weights in others for share in arguments.shares]
    return list(dict.fromkeys(grid))


def prepare(arguments: Arguments) -> tuple[Operation, str]:
    """Load the model, capture what it gets right, and make the rows; also a line that says what was found.

    Raises InputError when no rows were named, and when a setting needs anchors that are not there.
    """
    tasks: tuple = ()
    if arguments.run is not None:
        material = study.of_run(arguments.run, arguments.round)
        rows, what = list(material.rows), f"{len(material.rows)} completions of round {arguments.round}"
    else:
        if arguments.rows is None and arguments.model != "pocket":
            raise InputError(f"there are no shipped rows for {arguments.model!r}: give --rows or --run")
        tasks = surgery.load_tasks(arguments.rows or SURGERY)
        material = study.load_material(RunConfig(model=arguments.model, trait=arguments.trait))
    lm, system = material.lm, material.trait.neutral
    if tasks:
        rows = surgery.task_rows(lm, tasks, system)
        said = gate.answer(lm, tasks, system, arguments.max_new_tokens)
        known = sum(task.passes(c.text) for task, c in zip(tasks, said, strict=True))
        what = f"{len(tasks)} tasks to learn, {known} of them answered right before"
    asked = gate.load_tasks(arguments.anchors) if arguments.anchors else material.trait.anchors
    overlap = {row.prompt for row in rows} & {task.prompt for task in asked}
    if overlap:
        raise InputError(f"{min(overlap)[:60]!r} is both an anchor and a row to learn: take it out of one")
    captured = gate.capture(lm, asked, system=system, max_new_tokens=arguments.max_new_tokens)
    if not captured.tasks:
        raise InputError(f"{lm.name} gets none of {len(asked)} anchors right, so a gate has nothing to protect")
    pool = list(captured.replies)[:: max(1, round(1 / arguments.pool))] if arguments.pool else []
    weights = {reply.prompt: arguments.hold_out_weight for reply in pool[: arguments.hold_outs]}
    config = HealConfig(
        reg=arguments.reg, tau=0.0, kl_agg="mean", kl_top_k=arguments.kl_top_k, lr=arguments.lr,
        epochs=arguments.epochs, batch_size=arguments.batch_size, rank=arguments.rank, alpha=2.0 * arguments.rank,
    )  # fmt: skip
    about = (
        f"{lm.name}: {what}; {len(captured.tasks)} of {len(asked)} anchors are right before, {len(pool)} of them may "
        f"be replayed; {arguments.epochs} epochs at {arguments.lr:g}, rank {arguments.rank}, {arguments.reg} without a "
        f"budget (tau 0, mean, top {arguments.kl_top_k}), batch {arguments.batch_size}"
        f"{' widened to equal steps' if arguments.equal_steps else ''}; seeds {', '.join(map(str, arguments.seeds))}"
    )
    op = Operation(
        lm, material.stack, rows, tasks, captured, pool, weights, config, system, arguments.max_new_tokens,
        arguments.equal_steps,
    )  # fmt: skip
    return op, about


COLUMNS = (
    "anchor share", "lam", "KL on", "row weights", "rows", "steps", "nll of new rows", "learned", "KL new",
    "KL anchors", "anchors right", "replayable", "never replayed", "decision",
)  # fmt: skip
DECODED = """rows: new + anchor rows. nll: token mean over the new rows before -> after, nats. learned: tasks answered
right greedily. KL: token-mean KL(student||before) on the new rows and on the model's own replies to ALL anchors, nats.
anchors right: greedily, of those right before; replayable and never replayed are its two parts. decision: of the gate
on paired 95 % intervals; only keep is kept. Means over seeds, (lowest to highest). SHOULD: without anchor rows anchors
are lost and the gate reverts; if nothing is ever lost, the surgery is too gentle to tell settings apart."""


def table(attempts: Sequence[Attempt]) -> str:
    """One line per setting, seeds together, in the order of first appearance."""
    by_setting: dict[Setting, list[Attempt]] = {}
    for one in attempts:
        by_setting.setdefault(one.setting, []).append(one)
    return markdown_table(list(COLUMNS), [_cells(setting, some) for setting, some in by_setting.items()])


def _cells(setting: Setting, some: Sequence[Attempt]) -> list[str]:
    def spread(values: Sequence[int], of: int) -> str:
        ends = f" ({min(values)} to {max(values)})" if min(values) < max(values) else ""
        return f"{fmean(values):.{1 if ends else 0}f}{ends} / {of}"

    first = some[0]
    outcomes = [one.decision.outcome for one in some]
    counted = [f"{outcomes.count(word)} {word}" for word in dict.fromkeys(outcomes)]
    return [
        f"{setting.share:.2f}", f"{setting.lam:g}", setting.barrier_rows if setting.lam else "-", setting.row_weights,
        f"{first.n_new} + {first.n_anchor}", str(first.steps),
        f"{fmean(one.nll_before for one in some):.2f} -> {fmean(one.nll_after for one in some):.3f}",
        "-" if first.learned is None else spread([one.learned for one in some], first.n_new),
        f"{fmean(one.kl_new for one in some):.2f}", f"{fmean(one.kl_anchors for one in some):.3f}",
        spread([one.passed for one in some], first.n), spread([one.passed_pool for one in some], first.n_pool),
        spread([one.passed - one.passed_pool for one in some], first.n - first.n_pool),
        outcomes[0] if len(some) == 1 else ", ".join(counted),
    ]  # fmt: skip


def regressions(attempts: Sequence[Attempt]) -> str:
    """Per setting and seed the ids of the anchors that were lost."""
    return "\n".join(
        f"- {one.setting.name}, seed {one.seed} ({one.decision.outcome}): {', '.join(one.lost) or 'none lost'}"
        for one in attempts
    )


def write_csv(path: Path, attempts: Sequence[Attempt]) -> None:
    """Every attempt, unrounded."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        names = (
            "n_new", "n_anchor", "steps", "nll_before", "nll_after", "kl_new", "kl_anchors", "learned", "passed", "n",
            "passed_pool", "n_pool",
        )  # fmt: skip
        out.writerow(["share", "lam", "barrier_rows", "row_weights", "seed", *names, "decision", "regressed"])
        for one in attempts:
            s = one.setting
            values = ["" if getattr(one, name) is None else getattr(one, name) for name in names]
            knobs = [s.share, s.lam, s.barrier_rows, s.row_weights, one.seed]
            out.writerow([*knobs, *values, one.decision.outcome, " ".join(one.lost)])


def climb(arguments: Arguments) -> list[Attempt]:
    """Every setting at every seed; writes the files after each seed and returns the attempts."""
    began = time.perf_counter()
    if not arguments.seeds or not arguments.shares or not arguments.lams or not arguments.row_weights:
        raise InputError("give at least one seed, share, lam and row weight")
    if not 0 <= arguments.pool <= 1:
        raise InputError(f"pool {arguments.pool}: give a share from 0 to 1")
    rungs = settings(arguments)
    op, about = prepare(arguments)
    for rung in rungs:
        surgery.replayed_rows(op.pool, len(op.rows), rung.share, 0)
    found, notes = [], []
    for seed in arguments.seeds:
        for rung in rungs:
            try:
                one = surgery.attempt(op, rung, seed, arguments.out)
            except DivergedError as problem:
                notes.append(f"{rung.name}, seed {seed}: left out, {problem}")
                continue
            found.append(one)
            learned = "" if one.learned is None else f"learned {one.learned}, "
            print(
                f"seed {seed} {rung.name}: {learned}anchors {one.passed} / {one.n}, {one.decision.outcome}, "
                f"{time.perf_counter() - began:.0f} s", flush=True,
            )  # fmt: skip
        text = write(arguments.out, about, found, notes)
    print(f"\n{text}\n\n{time.perf_counter() - began:.0f} s; written to {arguments.out}")
    return found


def write(out: Path, about: str, attempts: Sequence[Attempt], notes: Sequence[str]) -> str:
    """Write ladder.md and ladder.csv; returns the table with its words."""
    top = surgery.best(attempts)
    last = (
        "Nothing was kept: every setting was reverted, the model stays as it was."
        if top is None
        else f"Best kept: {top.setting.name}, seed {top.seed}."
    )
    text = "\n\n".join([f"{about}.", table(attempts), DECODED, last, *notes])
    out.mkdir(parents=True, exist_ok=True)
    (out / "ladder.md").write_text(f"{text}\n\nLost anchors:\n\n{regressions(attempts)}\n", encoding="utf-8")
    write_csv(out / "ladder.csv", attempts)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, climb; 2 for unusable input."""
    return run_script(Arguments, lambda given: climb(given) and None, argv, __doc__, "ladder")


if __name__ == "__main__":
    sys.exit(main())
