"""A round's adapter: heal the student on the training rows, and bake what came of it.

Knows nothing of how the rows were sampled.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from steer_heal.healing import (
    DivergedError,
    HealConfig,
    Healed,
    HealInterrupted,
    ReferenceStates,
    heal,
    mean_divergence,
    overfit_check,
    reference_states,
)
from steer_heal.healing.adapter import Adapter
from steer_heal.ledger.files import whole_folder
from steer_heal.ledger.units import PLAIN
from steer_heal.loop.kinds import STATES, healed_kind
from steer_heal.loop.steps.rows import shuffled_pairs
from steer_heal.loop.steps.state import Run, Setting, contexts
from steer_heal.model import LM
from steer_heal.model.memory import free_for
from steer_heal.model.structure import fingerprint
from steer_heal.steering import SteeringVector
from steer_heal.steering.direction import mean_states, state_shift
from steer_heal.texts.completion import Completion, save_completions
from steer_heal.texts.dose import Walk
from steer_heal.texts.selection import length_weights


def heal_rows(run: Run, number: int, vector: SteeringVector, walk: Walk, rows: list[Completion]) -> Healed:
    """Train this round's adapter on the rows, under the barrier.

    Raises DivergedError after saving the rows and the last good adapter, if there is one, to `rounds/NN.diverged/`,
    and on Ctrl-C HealInterrupted after saving the same to `rounds/NN.interrupted/`.
    """
    config = run.config.heal_config(run.seed(number, "heal") % 2**31)
    if config.targets == "teacher":
        config = replace(config, target_temperature=run.heat(config.target_temperature))
    weights = row_weights(run.config.match_lengths, rows, run.filter.calibration["tokens"], walk.completions)
    memory = run.keep(number).once("memory", lambda: free_for(run.lm.base), PLAIN)
    compute = partial(_trained, run, number, vector, rows, weights, config, memory)
    healed, beside = run.keep(number).once("heal", compute, healed_kind(config))
    run.ledger.record(
        "heal",
        number,
        rows=len(rows),
        seconds=beside["seconds"],
        figures=dict(healed.figures),
        reg=run.config.reg_name,
        target_temperature=config.target_temperature,
        tau=dict(healed.tau),
        lam=dict(healed.lam),
        steering_divergence=beside["caused"],
        epochs=[dict(e) for e in healed.epochs],
        notes=list(healed.notes()),
        steps=[dict(s) for s in healed.steps],
        overfit=beside["overfit"],
        tokens_cut=sum(not c.finished for c in rows),
        lengths=length_figures(rows, weights),
    )
    return healed


def _trained(
    run: Run,
    number: int,
    vector: SteeringVector,
    rows: list[Completion],
    weights: list[float] | None,
    config: HealConfig,
    memory: float,
) -> tuple[Healed, dict]:
    """The heal itself, and what is measured beside it: seconds, the steering's own nats, the overfit check."""
    started = time.perf_counter()
    run.reporter.progress("references", 0, 1)
    prev = reference_states(run.lm, rows)
    with run.stack.unfolded():
        base = reference_states(run.lm, rows) if len(run.stack) else prev
    vectors = vector, run.rounds[0].vector if run.rounds else vector
    caused, teacher = under_vector(run, number, vectors, rows, config, prev, base)
    n_train = len(rows) - int(len(rows) * config.heldout)
    total = -(-n_train // (config.batch_size * config.grad_accum)) * config.epochs

    def on_step(row: dict) -> None:
        if row["kind"] == "step":
            run.reporter.step(row, total)
        else:
            run.reporter.epoch(row)

    lam0 = run.standing[-1].training.lam if run.standing else None
    given = {"steering_divergence": caused, "lam0": lam0, "weights": weights, "teacher": teacher, "memory": memory}
    try:
        healed = heal(run.lm, rows, config, {"prev": prev, "base": base}, round=number, on_step=on_step, **given)
    except DivergedError as problem:
        final = _save_stopped(run, f"{number:02d}.diverged", rows, problem.adapter)
        figures = {"step": problem.step, "rows": problem.rows, "adapter": problem.adapter is not None}
        run.ledger.record("diverged", number, text=str(problem), folder=str(final), **figures)
        run.ledger.record("verdict", number, verdict="diverged", text=f"{problem}.", retain=None)
        raise
    except HealInterrupted as stop:
        _save_stopped(run, f"{number:02d}.interrupted", rows, stop.adapter)
        raise
    seconds = time.perf_counter() - started
    overfit = _overfit(run, rows, config) if run.config.overfit_check else None
    return healed, {"seconds": seconds, "caused": caused, "overfit": overfit}


def under_vector(
    run: Setting,
    number: int,
    vectors: tuple[SteeringVector, SteeringVector],
    rows: Sequence[Completion],
    config: HealConfig,
    prev: ReferenceStates,
    base: ReferenceStates,
) -> tuple[float | None, ReferenceStates | None]:
    """What the steered student is needed for: the nats that steering causes (`tau_rel`), and the teacher of each row.

    `vectors` are this round's and the first one's.

    The teacher of a row is the student under this round's vector at the row's dose, or, on the trait's own prompts with
    `trait_teacher` original, the original model under the first round's: that one stays where it is, and gives back
    the length and variety that a student teaching itself round after round loses. The original model teaches rows of
    its own as it is, and under the persona as system prompt the share `prompted_teacher` of the others. The control of
    shuffled pairs lets the teacher read another row's prompt than the student.
    """
    lm, (vector, first) = run.lm, vectors
    teaches, relative = config.targets == "teacher", config.tau_rel is not None
    dosed = [c for c in rows if c.dose]
    if not (teaches or relative):
        return None, None
    teacher, caused = prev, None
    if dosed:
        torn = teaches and run.config.pairs == "shuffled"
        shown = shuffled_pairs(dosed, run.seed(number, "pairs")) if torn else dosed
        steered = steered_states(lm, vector, shown).shown_as(shown, dosed)
        caused = mean_divergence(lm, steered, prev, dosed, config) if relative else None
        teacher = prev.replaced(dosed, steered)
        pairs = zip(dosed, shown, strict=True)
        fixed = [(c, other) for c, other in pairs if teaches and len(run.stack) and _taught_by_original(run, c)]
        if fixed:
            mine, read = (list(side) for side in zip(*fixed, strict=True))
            with run.stack.unfolded():
                original = steered_states(lm, first, read)
            teacher = teacher.replaced(mine, original.shown_as(read, mine))
    if not teaches:
        return caused, None
    if asked := prompted_rows(rows, run.config.prompted_teacher, run.seed(number, "prompted")):
        shown = [
            replace(c, system=run.trait.pos, prompt_ids=tuple(lm.chat_ids(c.prompt, run.trait.pos))) for c in asked
        ]
        with run.stack.unfolded():
            teacher = teacher.replaced(asked, reference_states(lm, shown).shown_as(shown, asked))
    return caused, teacher.replaced([c for c in rows if c.origin == "base"], base)


def steered_states(lm: LM, vector: SteeringVector, rows: Sequence[Completion]) -> ReferenceStates:
    """What the model as it is thinks of the rows under the vector, each at its own dose."""
    return reference_states(lm, rows, around=lambda some: vector.applied(lm.model, [c.dose for c in some]))


def _taught_by_original(run: Setting, row: Completion) -> bool:
    """Whether the original model is under the vector in the row's teacher, and not the student."""
    return run.config.trait_teacher == "original" and row.prompt not in run.trait.contexts


def prompted_rows(rows: Sequence[Completion], share: float, seed: int) -> list[Completion]:
    """The rows that the persona-prompted model teaches: a share, drawn from the seed, of all but the original's own."""
    own = [c for c in rows if c.origin != "base"]
    return random.Random(seed).sample(own, round(share * len(own)))


def _save_stopped(run: Run, name: str, rows: Sequence[Completion], adapter: Adapter | None) -> Path:
    """What a heal that was stopped leaves: the rows, which a message names by their place, and its last adapter."""
    final = run.ledger.folder / "rounds" / name
    with whole_folder(final) as folder:
        save_completions(rows, folder / "rows.jsonl")
        if adapter is not None:
            adapter.save(folder)
    return final


def row_weights(
    match_lengths: str, rows: Sequence[Completion], base: Sequence[int], sampled: Sequence[Completion]
) -> list[float] | None:
    """Weights that undo what the filter did to the length of the student's own texts; others' texts keep weight 1.

    `match_lengths` says as what lengths should be spread: `base`, those of the original model's texts in tokens, or
    `sampled`, those of the walk's completions; `none` gives no weights.
    """
    wanted = {"base": base, "sampled": [len(c.token_ids) for c in sampled if c.finished]}.get(match_lengths)
    own = [i for i, c in enumerate(rows) if c.origin != "base"]
    if not wanted or not own:
        return None
    weights = [1.0] * len(rows)
    for i, weight in zip(own, length_weights([len(rows[i].token_ids) for i in own], wanted), strict=True):
        weights[i] = weight
    return weights


def length_figures(rows: Sequence[Completion], weights: Sequence[float] | None) -> dict[str, float]:
    """Mean length of the training rows in tokens, as they are and as they are weighted."""
    lengths = [len(c.token_ids) for c in rows]
    weighted = lengths if weights is None else [n * w for n, w in zip(lengths, weights, strict=True)]
    return {"mean": sum(lengths) / len(rows), "weighted": sum(weighted) / (sum(weights) if weights else len(rows))}


def _overfit(run: Run, rows: Sequence[Completion], config: HealConfig) -> float:
    """Nats that plain training on the one completion that shows the trait most takes off its nll."""

    def shown(c: Completion) -> float:
        judged = run.trait.judge(c.prompt, c.text, c.finished)
        return 0.0 if judged is None or judged.trait is None else judged.trait

    run.reporter.progress("overfit check", 0, 1)
    return overfit_check(run.lm, max(rows, key=lambda c: (c.dose > 0, shown(c), c.finished)), config)


def bake(run: Run, number: int, vector: SteeringVector, healed: Healed) -> None:
    """Fold the adapter into the weights; record how far and in which direction the student's states went."""
    keep, start = run.keep(number, "states"), fingerprint(run.lm.base)
    if start not in run.states:  # else an earlier round was left with the student that this one began with
        run.states[start] = keep.once("before", lambda: student_states(run, vector), STATES)
    report = run.stack.push(healed.adapter)
    after = run.states[fingerprint(run.lm.base)] = keep.once("after", lambda: student_states(run, vector), STATES)
    moved = state_shift(run.states[start], after, vector)
    first = run.rounds[0].adapter if run.rounds else healed.adapter
    run.ledger.record(
        "bake",
        number,
        depth=len(run.stack),
        rounding_loss=report.rounding_loss,
        gain=report.gain,
        relative_change=report.relative_change,
        cosine_first=healed.adapter.cosine(first),
        warning=report.warning,
        cosine_vector=moved.cosine,
        shift_dose=moved.dose,
    )


def student_states(run: Run, vector: SteeringVector) -> dict[int, Float[Tensor, " width"]]:
    """The student's mean states on the extraction contexts under the neutral prompt, at the vector's blocks."""
    return mean_states(run.lm, contexts(run), run.trait.neutral, vector.layers, run.config.position)
