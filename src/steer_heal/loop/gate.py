"""The gate between bake and next round: capture, check, decide, and take a round out again that must not stand.

Knows nothing of generation and training. A run's result is its best standing round, never simply its last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise, takewhile

import torch

from steer_heal import model as models
from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, compare, evaluate
from steer_heal.evaluation.anchors import (
    Before,
    Captured,
    Check,
    Checked,
    Decision,
    Figures,
    Halves,
    capture,
    check,
    decide,
    figures,
    halves,
    load_tasks,
)
from steer_heal.evaluation.verdict import UNDER_A_FLOOR, Floors, Verdict, shape_reference
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.healing.lora import linear_names
from steer_heal.loop import steps
from steer_heal.loop.kinds import CHECKED, captured_kind
from steer_heal.loop.steps import Round, Run, Setting
from steer_heal.model import LM
from steer_heal.model.structure import full_weight
from steer_heal.statistics import Estimate
from steer_heal.texts.completion import Completion
from steer_heal.trait import Anchor, Trait, default_trait


def anchors_of(config: RunConfig, trait: Trait) -> Halves:
    """The tasks to freeze: the configured file's, else the trait's; with some to replay, half of them to count.

    Raises InputError when none are there to replay, and for a counted one that stands among the training texts.
    """
    tasks = load_tasks(config.anchors) if config.anchors else trait.anchors
    if not config.replay_anchors:
        return Halves(tasks)
    if not tasks:
        raise InputError(
            f"replay_anchors {config.replay_anchors}: the trait {trait.name} has no anchors; give some with --anchors"
        )
    found = halves(tasks)
    texts = {*trait.contexts, *trait.prompts, *trait.replay_prompts}
    if seen := next((task for task in found.counted if task.prompt in texts), None):
        raise InputError(
            f"anchor {seen.id!r} is to be counted and stands among the contexts, prompts or replay_prompts of "
            f"{trait.name} ({seen.prompt[:60]!r}): leave it out of one"
        )
    return found


def capture_anchors(run: Setting, tasks: Halves) -> tuple[Captured, tuple[Completion, ...]]:
    """What the original model gets right of the counted tasks, before anything is trained; empty without tasks.

    And its own right answers to the others, to be replayed. Raises InputError when it gets none of these right.
    """
    captured = _captured(run, "capture", tasks.counted)
    pool = _captured(run, "replayable", tasks.replayed).replies
    if tasks.replayed and not pool:
        raise InputError(
            f"replay_anchors {run.config.replay_anchors}: {run.lm.name} gets none of {len(tasks.replayed)} anchors "
            "right that are to be replayed; give others with --anchors, or leave it at 0"
        )
    run.ledger.record(
        "capture",
        tasks=len(tasks.counted),
        right=len(captured.tasks),
        failed=captured.failed,
        to_replay=len(tasks.replayed),
        replayed=len(pool),
    )
    return captured, pool


def _captured(run: Setting, name: str, tasks: Sequence[Anchor]) -> Captured:
    if not tasks:
        return Captured((), (), ())
    asked = run.sampled("capture the anchors", name) | {"system": run.trait.neutral or None}
    return run.keep().once(name, partial(capture, run.lm, tasks, **asked), captured_kind(tasks))


def checks_of(config: RunConfig, base: Metrics, prompted: Metrics, captured: Captured) -> tuple[Check, ...]:
    """What the gate asks of a student: floors, and allowed drops of coherence and anchors.

    Without captured anchors nothing is asked of them. Length and diversity must keep the verdict's share of base's;
    where the prompted model itself is under that, as for a trait of short replies, it is the floor. Length must be
    surely under it to count: it differs much from prompt to prompt.
    """
    floors = Floors(coherence=config.coherence_floor)
    checks = [Check("coherence", share=floors.coherence, max_drop=config.max_drop, total_drop=config.coherence_drop)]
    if captured.tasks:
        checks.append(Check("anchors", max_drop=config.max_drop, total_drop=config.total_drop))
    least = shape_reference(base, prompted)
    for name, own in shape_reference(base).items():
        share = getattr(floors, name)
        floor = min(share * own, least[name])
        words = "of the prompted model" if floor < share * own else f"{share:.0%} of base's {own:.3g}"
        checks.append(Check(name, floor=floor, floor_words=words, surely=name == "words"))
    return tuple(checks)


def examine(run: Run, number: int, verdict: Verdict, student: Metrics) -> tuple[Figures, Decision]:
    """Re-check the anchors on the student, compare with the previous round and the original, and decide.

    A round whose verdict is that it is under a floor is never kept, whatever the paired drops say.
    """
    asked = run.sampled("check the anchors", number, "anchors") | {"system": run.trait.neutral or None}
    checked = run.keep(number).once("anchors", partial(check, run.lm, run.captured, **asked), CHECKED)
    original = original_figures(run)
    now = figures(student, run.base, checked)
    before = Before(run.standing[-1].figures if run.standing else original, original)
    decision = decide(before, now, checks_of(run.config, run.base, run.prompted, run.captured))
    if verdict.name in UNDER_A_FLOOR and decision.outcome != "revert":
        decision = replace(decision, outcome="revert", reasons=(str(verdict), *decision.reasons))
    return now, decision


def original_figures(run: Run) -> Figures:
    """The figures of the original model; it has every captured anchor by definition."""
    return figures(run.base, run.base, Checked(tuple(task.id for task in run.captured.tasks), (), ()))


def passes(decision: Decision, config: RunConfig) -> bool:
    """Whether a round stands: always when the gate only watches; an inconclusive one as the configuration says."""
    if config.gate == "watch":
        return True
    if decision.outcome == "inconclusive":
        return {"estimate": decision.within, "keep": True, "revert": False}[config.on_inconclusive]
    return decision.outcome == "keep"


def settle(run: Run, done: Round) -> Verdict | None:
    """Write the round's folder; take the round out of the weights if it does not stand.

    Returns the verdict that ends the run after too many reverts in a row, at the lowest dose, or, if asked for, when
    the standing rounds no longer move; else None.
    """
    steps.save_round(run, done)
    run.rounds.append(done)
    ended = None
    if not done.stands:
        run.stack.pop()
        run.kappa *= run.config.kappa_shrink
        ended = enough(run)
    else:
        # Back up again: the round that was too much may have been bad luck.
        run.kappa = min(run.config.kappa_start, run.kappa / run.config.kappa_shrink)
        if run.config.early_stop:
            ended = stalled(movements(run))
    run.ledger.record(
        "gate",
        done.number,
        mode=run.config.gate,
        stands=done.stands,
        **asdict(done.decision),
        figures={name: _mean(found) for name, found in done.figures.items()},
        original={name: _mean(found) for name, found in original_figures(run).items()},
        on_inconclusive=run.config.on_inconclusive,
        anchors=len(run.captured.tasks),
        depth=len(run.stack),
        kappa_next=run.kappa,
        ended=ended and ended.text,
    )
    return ended


def enough(run: Run) -> Verdict | None:
    """The verdict that ends the run, when a lower dose is not worth another try."""
    config, in_a_row = run.config, len(list(takewhile(lambda done: not done.stands, reversed(run.rounds))))
    if in_a_row >= config.max_reverts:
        return Verdict("reverted", f"{in_a_row} rounds in a row were reverted (--max-reverts {config.max_reverts}).")
    if run.kappa < config.kappa_floor:
        return Verdict("reverted", f"the next walk would start under the lowest kappa of {config.kappa_floor}.")
    return None


def movements(run: Run) -> list[Estimate]:
    """Paired shift of the log-odds by each standing round, against the student it started from, in nats."""
    students = [run.base, *(done.healed for done in run.standing)]
    return [compare(before, after).log_odds for before, after in pairwise(students)]


STALLED = 2
"""Standing rounds in a row whose movement may be noise before the run ends early: one alone happens by chance."""


def stalled(moved: Sequence[Estimate]) -> Verdict | None:
    """The verdict that ends a run whose last standing rounds did not surely move, either way; None to go on."""
    last = moved[-STALLED:]
    if len(last) < STALLED or any(shift.excludes_zero for shift in last):
        return None
    told = ", then ".join(map(str, last))
    return Verdict("inconclusive", f"the last {STALLED} rounds moved within their noise, {told} nats (--early-stop).")


def fall_back(run: Run, best: int | None) -> None:
    """Pop the stack down to the best round, so that the model is the run's result; the original without a best."""
    numbers = [done.number for done in run.standing]
    for _ in range(len(numbers) - (numbers.index(best) + 1 if best is not None else 0)):
        run.stack.pop()


def _mean(values) -> float:
    return sum(values.values()) / len(values)


def blocks_a_ruined_model(model: str = "pocket") -> tuple[bool, str]:
    """Whether the gate reverts what it must, with its first reason: a check of `steer-heal doctor`."""
    lm = models.load(model)
    trait, stack = Trait.load(default_trait(model)), AdapterStack(lm.model)
    original = evaluate(lm, trait, n_items=1, n_free=8)
    stack.push(must_block_adapter(lm))
    ruined = evaluate(lm, trait, n_items=1, n_free=8)
    stack.pop()
    known = figures(original, original)
    decision = decide(Before(known, known), figures(ruined, original))
    return decision.outcome == "revert", decision.reasons[0]


def must_block_adapter(lm: LM, size: float = 1.0, rank: int = 8, seed: int = 0) -> Adapter:
    """An adapter that every gate must block: random factors whose delta is `size` times each weight's Frobenius norm.

    It adapts the linear layers that a heal adapts by default (20-80 % of depth). At size 1 half of each adapted map is
    noise: text falls apart and known answers are lost. The same for the same model, rank and seed.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b, transposed = {}, {}, False
    for name in linear_names(lm, (0.2, 0.8)):
        module = lm.base.get_submodule(name)
        transposed = type(module).__name__ == "Conv1D"
        weight = full_weight(lm.base, name).float().cpu()
        outputs, inputs = weight.T.shape if transposed else weight.shape
        a[name] = torch.randn(rank, inputs, generator=generator)
        drawn = torch.randn(outputs, rank, generator=generator)
        b[name] = drawn * (size * weight.norm() / (drawn @ a[name]).norm())
    return Adapter(a, b, rank, float(rank), lm.name, transposed)
