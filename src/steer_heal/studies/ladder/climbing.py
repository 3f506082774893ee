"""Every setting at every seed, from the same weights: options, what is loaded, the climb, and what came of each.

Knows nothing of steering, and of what one heal does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Literal

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation import anchors as gate
from steer_heal.healing import DivergedError, HealConfig
from steer_heal.pocket import SURGERY
from steer_heal.studies.ladder.operation import Attempt, Operation, Setting, attempt, best
from steer_heal.studies.ladder.rows import load_tasks, task_rows
from steer_heal.studies.material import load_material, of_run
from steer_heal.studies.writing import Stopwatch, grouped, markdown, say, write_csv, write_page


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
    grid = []
    for share in arguments.shares:
        grid += [Setting(share, lam, first, rows) for lam in arguments.lams for rows in arguments.barrier_rows]
    grid += [Setting(share, 0.0, weights) for weights in others for share in arguments.shares]
    return list(dict.fromkeys(grid))


def prepare(arguments: Arguments) -> tuple[Operation, str]:
    """Load the model, capture what it gets right, and make the rows; also a line that says what was found.

    Raises InputError when no rows were named, and when a setting needs anchors that are not there.
    """
    tasks: tuple = ()
    if arguments.run is not None:
        material = of_run(arguments.run, arguments.round)
        rows, what = list(material.rows), f"{len(material.rows)} completions of round {arguments.round}"
    else:
        if arguments.rows is None and arguments.model != "pocket":
            raise InputError(f"there are no shipped rows for {arguments.model!r}: give --rows or --run")
        tasks = load_tasks(arguments.rows or SURGERY)
        material = load_material(RunConfig(model=arguments.model, trait=arguments.trait, targets="tokens"))
    lm, system, longest = material.lm, material.trait.neutral, arguments.max_new_tokens
    if tasks:
        rows = task_rows(lm, tasks, system)
        said = gate.answer(lm, tasks, system, longest)
        known = sum(task.passes(c.text) for task, c in zip(tasks, said, strict=True))
        what = f"{len(tasks)} tasks to learn, {known} of them answered right before"
    asked = gate.load_tasks(arguments.anchors) if arguments.anchors else material.trait.anchors
    overlap = {row.prompt for row in rows} & {task.prompt for task in asked}
    if overlap:
        raise InputError(f"{min(overlap)[:60]!r} is both an anchor and a row to learn: take it out of one")
    captured = gate.capture(lm, asked, system=system, max_new_tokens=longest)
    if not captured.tasks:
        raise InputError(f"{lm.name} gets none of {len(asked)} anchors right, so a gate has nothing to protect")
    pool = list(captured.replies)[:: max(1, round(1 / arguments.pool))] if arguments.pool else []
    weights = {reply.prompt: arguments.hold_out_weight for reply in pool[: arguments.hold_outs]}
    same = ("reg", "kl_top_k", "lr", "epochs", "batch_size", "rank")
    shared = {name: getattr(arguments, name) for name in same}
    config = HealConfig(tau=0.0, kl_agg="mean", alpha=2.0 * arguments.rank, **shared)
    about = (
        f"{lm.name}: {what}; {len(captured.tasks)} of {len(asked)} anchors are right before, {len(pool)} of them may "
        f"be replayed; {arguments.epochs} epochs at {arguments.lr:g}, rank {arguments.rank}, {arguments.reg} without a "
        f"budget (tau 0, mean, top {arguments.kl_top_k}), batch {arguments.batch_size}"
        f"{' widened to equal steps' if arguments.equal_steps else ''}; seeds {', '.join(map(str, arguments.seeds))}"
    )
    asking = {"system": system, "max_new_tokens": longest, "equal_steps": arguments.equal_steps}
    return Operation(lm, material.stack, rows, tasks, captured, pool, weights, config, **asking), about


def climb(arguments: Arguments) -> tuple[list[Attempt], str]:
    """Every setting at every seed, the files written after each seed; returns the attempts and the page.

    Raises InputError for settings that cannot be tried, before the first heal.
    """
    watch = Stopwatch()
    if not all((arguments.seeds, arguments.shares, arguments.lams, arguments.row_weights)):
        raise InputError("give at least one seed, share, lam and row weight")
    if not 0 <= arguments.pool <= 1:
        raise InputError(f"pool {arguments.pool}: give a share from 0 to 1")
    rungs = settings(arguments)
    op, about = prepare(arguments)
    for rung in rungs:
        gate.replayed_rows(op.pool, len(op.rows), rung.share, 0)
    found: list[Attempt] = []
    notes: list[str] = []
    for seed in arguments.seeds:
        for rung in rungs:
            try:
                one = attempt(op, rung, seed, arguments.out)
            except DivergedError as problem:
                notes.append(f"{rung.name}, seed {seed}: left out, {problem}")
                continue
            found.append(one)
            learned = "" if one.learned is None else f"learned {one.learned}, "
            came_of_it = f"{learned}anchors {one.passed} / {one.n}, {one.decision.outcome}"
            say(f"seed {seed} {rung.name}: {came_of_it}, {watch}")
        text = write(arguments.out, about, found, notes)
    return found, f"{text}\n\n{watch}; written to {arguments.out}"


DECODED = """rows: new + anchor rows. nll: token mean over the new rows before -> after, nats. learned: tasks answered
right greedily. KL: token-mean KL(student||before) on the new rows and on the model's own replies to ALL anchors, nats.
anchors right: greedily, of those right before; replayable and never replayed are its two parts. decision: of the gate
on paired 95 % intervals; only keep is kept. Means over seeds, (lowest to highest). SHOULD: without anchor rows anchors
are lost and the gate reverts; if nothing is ever lost, the surgery is too gentle to tell settings apart."""


def table(attempts: Sequence[Attempt]) -> str:
    """One line per setting, seeds together, in the order of first appearance."""
    return markdown([_row(setting, some) for setting, some in grouped(attempts, lambda one: one.setting).items()])


def _row(setting: Setting, some: Sequence[Attempt]) -> dict[str, str]:
    def over_seeds(values: Sequence[int], of: int) -> str:
        ends = f" ({min(values)} to {max(values)})" if min(values) < max(values) else ""
        return f"{fmean(values):.{1 if ends else 0}f}{ends} / {of}"

    def mean(name: str, digits: int = 2) -> str:
        return f"{fmean(getattr(one, name) for one in some):.{digits}f}"

    first = some[0]
    outcomes = [one.decision.outcome for one in some]
    counted = [f"{outcomes.count(word)} {word}" for word in dict.fromkeys(outcomes)]
    return {
        "anchor share": f"{setting.share:.2f}",
        "lam": f"{setting.lam:g}",
        "KL on": setting.barrier_rows if setting.lam else "-",
        "row weights": setting.row_weights,
        "rows": f"{first.n_new} + {first.n_anchor}",
        "steps": str(first.steps),
        "nll of new rows": f"{mean('nll_before')} -> {mean('nll_after', 3)}",
        "learned": "-" if first.learned is None else over_seeds([one.learned for one in some], first.n_new),
        "KL new": mean("kl_new"),
        "KL anchors": mean("kl_anchors", 3),
        "anchors right": over_seeds([one.passed for one in some], first.n),
        "replayable": over_seeds([one.passed_pool for one in some], first.n_pool),
        "never replayed": over_seeds([one.passed - one.passed_pool for one in some], first.n - first.n_pool),
        "decision": outcomes[0] if len(some) == 1 else ", ".join(counted),
    }


def regressions(attempts: Sequence[Attempt]) -> str:
    """Per setting and seed the ids of the anchors that were lost."""
    return "\n".join(
        f"- {one.setting.name}, seed {one.seed} ({one.decision.outcome}): {', '.join(one.lost) or 'none lost'}"
        for one in attempts
    )


def as_written(one: Attempt) -> dict[str, object]:
    """An attempt as a line of the CSV file, unrounded."""
    knobs = {name: getattr(one.setting, name) for name in ("share", "lam", "barrier_rows", "row_weights")}
    figures = {f.name: getattr(one, f.name) for f in fields(one) if f.name not in ("setting", "decision", "replies")}
    return knobs | figures | {"decision": one.decision.outcome, "regressed": " ".join(one.lost)}


def write(out: Path, about: str, attempts: Sequence[Attempt], notes: Sequence[str]) -> str:
    """Write ladder.md and ladder.csv; returns the table with its words."""
    last = "Nothing was kept: every setting was reverted, the model stays as it was."
    if (top := best(attempts)) is not None:
        last = f"Best kept: {top.setting.name}, seed {top.seed}."
    parts = [f"{about}.", table(attempts), DECODED, last, *notes]
    write_page(out / "ladder.md", *parts, "Lost anchors:", regressions(attempts))
    write_csv(out / "ladder.csv", [as_written(one) for one in attempts])
    return "\n\n".join(parts)
