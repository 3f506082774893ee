"""Every setting at every seed, from the same weights: the options of the ladder, what is loaded for it, and its climb.

Knows nothing of steering, and of what one heal does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation import anchors as gate
from steer_heal.healing import DivergedError, HealConfig
from steer_heal.pocket import SURGERY
from steer_heal.studies.ladder.operation import Attempt, Operation, Setting, attempt
from steer_heal.studies.ladder.rows import load_tasks, task_rows
from steer_heal.studies.ladder.table import write
from steer_heal.studies.material import load_material, of_run
from steer_heal.studies.writing import Stopwatch, say


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
