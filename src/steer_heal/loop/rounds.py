"""The loop: extract, walk the dose, filter, heal, bake, evaluate, judge, gate; again, on the student that came of it.

Knows nothing of the command line. Controls are settings of this loop (`vector`, `pairs`), not loops of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from steer_heal.arguments import checked
from steer_heal.config import RunConfig
from steer_heal.evaluation.verdict import Verdict
from steer_heal.healing import DivergedError
from steer_heal.ledger import Ledger
from steer_heal.loop import gate, steps
from steer_heal.loop.controls import run_controls
from steer_heal.loop.frame import asked, begin, finish, inputs, new_ledger, prepare
from steer_heal.loop.resume import recorded_config, resumable
from steer_heal.loop.steps import Round, Run, RunResult
from steer_heal.model import GivenLM, as_lm
from steer_heal.model.structure import is_sharded
from steer_heal.processes import first, together
from steer_heal.report.console import Reporter
from steer_heal.report.tracking import check_tracker, tracker
from steer_heal.terminal import Terminal
from steer_heal.texts.engines import check_engine
from steer_heal.trait import Trait

__all__ = ["complete", "one_round", "prepare", "run_rounds"]


@checked
def run_rounds(
    config: RunConfig | None = None,
    reporter: Reporter | None = None,
    resume: Ledger | None = None,
    *,
    lm: GivenLM | None = None,
    trait: Trait | str | None = None,
    on_event: Callable[[dict], None] | None = None,
) -> RunResult:
    """The whole job: `config.n_rounds` rounds, or fewer when one starves or too many in a row are reverted.

    Args:
        lm: a model in memory, instead of one that `config` names; options that follow the model follow it. Afterwards
            it has the standing rounds folded in (`RunResult.run`); when the run does not come to its end, for an
            exception or Ctrl-C, its own weights as they were.
        trait: one in memory or a name, instead of the one that `config` names.
        on_event: called with every event of the run as it is recorded, those of a resumed one from its start; not with
            those of its controls. Of a launcher's processes, which are one run, only the first one's is called.
        resume: an unfinished run, from `resume.reopen`; it goes on under its own configuration and ends with the same
            bits as if it had not been stopped. `config` is not looked at.

    Raises InputError for input that cannot be used; a round that runs dry or is reverted is a verdict, not an error.
    """
    lm = None if lm is None else as_lm(lm)
    trait = trait if trait is None or isinstance(trait, Trait) else Trait.load(trait)
    in_memory = lm is not None or trait is not None
    with ExitStack() as held:
        held.enter_context(together(alike=lm is not None and is_sharded(lm.base)))
        if reporter is None or not first():
            reporter = Reporter(Terminal(quiet=not first()), quiet=True)
        ledger = resume and held.enter_context(resumable(resume, in_memory))
        config = recorded_config(ledger) if ledger else asked(config, lm, trait)
        check_tracker(config.track)
        check_engine(config.engine)
        lm, trait, tasks = inputs(config, lm, trait)  # before there is a folder: unusable input leaves none
        if ledger:
            reporter.resumed(len(list((ledger.folder / "units").glob("*.unit"))))
        ledger = ledger or held.enter_context(resumable(new_ledger(config), in_memory))
        if config.track is not None and first():
            ledger.listeners.append(tracker(config.track, ledger.folder, config.to_dict()))
        if on_event is not None and first():
            ledger.listeners.append(on_event)
        run = begin(config, lm, trait, tasks, ledger, reporter)
        try:
            result = complete(run)
        except BaseException:
            run.stack.clear()  # nobody gets the stack, and the model may be the caller's
            raise
        ledger.settle()
        reporter.written(result.folder)
    return result


def complete(run: Run) -> RunResult:
    """All rounds of a prepared run, the fall back to its best, its controls if asked for, and its end."""
    since, ended = run.reporter.clock.since, None
    for number in range(run.config.n_rounds):
        ended = one_round(run, number)
        if ended is not None:
            break
    verdict, best = steps.judge_rounds(run, ended)
    gate.fall_back(run, best)
    controls = run_controls(run, complete) if run.config.controls == "all" else {}
    return finish(run, verdict, best, ended, controls, since)


def one_round(run: Run, number: int) -> Verdict | None:
    """One round of the method; returns the verdict that ends the run, or None to go on."""
    vector = steps.extract_vector(run, number)  # mean difference of two personas, on the current student
    walk = steps.walk_dose(run, number, vector)  # own texts, or steered and filtered ones; the dose adapts
    if starved := steps.starve(run, number, vector, walk):
        return starved
    steered = steps.measure_steered(run, number, vector, walk)  # unfiltered, on held-out items
    rows = steps.training_rows(run, number, walk)  # what the walk kept, and the original's own texts
    try:
        healed = steps.heal_rows(run, number, vector, walk, rows)  # LoRA: learns the teacher, under the barrier
    except DivergedError as problem:
        return Verdict("diverged", f"{problem}.")
    steps.bake(run, number, vector, healed)  # into the weights
    student = steps.measure_student(run, number, steered)  # the same items as base, prompted and steered
    verdict = steps.judge(run, number, walk, steered, healed, student)  # what became of trait and text
    figures, decision = gate.examine(run, number, verdict, student)  # against the previous round and the original
    stands = gate.passes(decision, run.config)
    done = Round(number, vector, walk, steered, healed, student, verdict, figures, decision, stands, tuple(rows))
    return gate.settle(run, done)  # a round that does not stand is taken out of the weights again
