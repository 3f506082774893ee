"""The loop: extract, walk the dose, filter, heal, bake, evaluate, judge, gate; again, on the student that came of it.

Knows nothing of the command line. Controls are settings of this loop (`vector`, `pairs`), not loops of their own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch

from steer_heal import model as models
from steer_heal.config import RunConfig
from steer_heal.evaluation import Metrics
from steer_heal.evaluation.verdict import Round as JudgedRound
from steer_heal.evaluation.verdict import Verdict, best_round, judge_run
from steer_heal.healing import DivergedError
from steer_heal.healing.bake import AdapterStack
from steer_heal.healing.references import fingerprint
from steer_heal.ledger import Ledger
from steer_heal.ledger.clock import time_passed
from steer_heal.loop import gate, steps
from steer_heal.loop.controls import CONTROLS, against, run_controls
from steer_heal.loop.preflight import check_barrier, check_texts
from steer_heal.loop.resume import recorded_config, resumable
from steer_heal.loop.steps import Round, Run, RunResult
from steer_heal.model import LM
from steer_heal.report.console import Reporter
from steer_heal.trait import Anchor, Trait, default_trait


def run_rounds(
    config: RunConfig | None = None, reporter: Reporter | None = None, resume: Ledger | None = None
) -> RunResult:
    """The whole job: `config.n_rounds` rounds, or fewer when one starves or too many in a row are reverted.

    Args:
        resume: an unfinished run, from `resume.reopen`; it goes on under its own configuration and ends with the same
            bits as if it had not been stopped. `config` is not looked at.

    Raises InputError for input that cannot be used; a round that runs dry or is reverted is a verdict, not an error.
    """
    reporter = reporter or Reporter(quiet=True)
    with ExitStack() as held:
        ledger = resume and held.enter_context(resumable(resume))
        config = recorded_config(ledger) if ledger else (config or RunConfig()).resolved()
        lm, trait, tasks = inputs(config)  # before there is a folder: unusable input leaves none
        if ledger:
            reporter.resumed(len(list((ledger.folder / "units").glob("*.unit"))))
        ledger = ledger or held.enter_context(resumable(new_ledger(config)))
        result = complete(begin(config, lm, trait, tasks, ledger, reporter))
        ledger.settle()
    return result


def complete(run: Run) -> RunResult:
    """All rounds of a prepared run, the fall back to its best, its controls if asked for, and its end."""
    since, ended = run.reporter.clock.since, None
    for number in range(run.config.n_rounds):
        ended = one_round(run, number)
        if ended is not None:
            break
    judged = [JudgedRound(r.number, r.verdict, trait_figure(r.healed), r.stands) for r in run.rounds]
    if ended is not None and ended.name in ("starved", "diverged"):
        judged.append(JudgedRound(len(judged), ended, None))
    verdict, best = judge_run(judged), best_round(judged)
    number = None if best is None else best.number
    gate.fall_back(run, number)
    controls = run_controls(run, complete) if run.config.controls == "all" else {}
    return finish(run, verdict, number, ended, controls, time_passed(run.ledger.events(), since, time.time()))


def one_round(run: Run, number: int) -> Verdict | None:
    """One round of the method; returns the verdict that ends the run, or None to go on."""
    vector = steps.extract_vector(run, number)  # mean difference of two personas, on the current student
    walk = steps.walk_dose(run, number, vector)  # steered completions, filtered; the dose adapts to what survives
    if starved := steps.starve(run, number, vector, walk):
        return starved
    steered = steps.measure_steered(run, number, vector, walk)  # unfiltered, on held-out items
    rows = steps.training_rows(run, number, walk)
    try:
        healed = steps.heal_rows(run, number, vector, walk, rows)  # LoRA on the sampled tokens, under the barrier
    except DivergedError as problem:
        return Verdict("diverged", f"{problem}.")
    steps.bake(run, number, vector, healed)  # into the weights
    student = steps.measure_student(run, number, steered)  # the same items as base, prompted and steered
    verdict = steps.judge(run, number, walk, steered, student)  # what became of trait and text
    figures, decision = gate.examine(run, number, verdict, student)  # against the previous round and the original
    stands = gate.passes(decision, run.config)
    done = Round(
        number, vector, healed.adapter, tuple(walk.banked), steered, student, dict(healed.lam), verdict, figures,
        decision, stands,
    )  # fmt: skip
    return gate.settle(run, done, walk)  # a round that does not stand is taken out of the weights again


def prepare(config: RunConfig, reporter: Reporter) -> Run:
    """Model, trait, run folder, calibrated filter, and the two baselines every round is compared with."""
    given = inputs(config)
    return begin(config, *given, new_ledger(config), reporter)


def inputs(config: RunConfig) -> tuple[LM, Trait, tuple[Anchor, ...]]:
    """Model, trait and anchor tasks."""
    if config.threads or config.model_name in ("pocket", "tiny-random"):
        torch.set_num_threads(config.threads or 1)
    trait = Trait.load(config.trait or default_trait(config.model_name))
    tasks = gate.anchors_of(config, trait)
    lm = models.load(
        config.model_name, dtype=config.dtype, device=config.device, attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code, temperature=config.temperature, top_p=config.top_p,
    )  # fmt: skip
    check_texts(lm, trait, tasks, config)
    check_barrier(lm, config)
    return lm, trait, tasks


def new_ledger(config: RunConfig) -> Ledger:
    """A run folder of its own under `config.out`."""
    return Ledger.create(config.out, f"{config.model_name}_{config.reg_name}_s{config.seed}", config.to_dict())


def begin(config: RunConfig, lm: LM, trait: Trait, tasks: Sequence[Anchor], ledger: Ledger, reporter: Reporter) -> Run:
    """Calibrated filter, captured anchors, and the two baselines; in a run that goes on they are there already."""
    ledger.listeners.append(reporter.on_event)
    reporter.plan(config.n_rounds, 1 + len(CONTROLS) if config.controls == "all" else 1)
    texts = repr((trait, tasks, config.vignettes()))
    ledger.record(
        "start", model=lm.name, trait=trait.name, reg=config.reg_name, n_rounds=config.n_rounds,
        seed=config.seed, device=str(lm.device), folder=str(ledger.folder),
        note="fast dev run: every stage is exercised, the numbers mean nothing" if config.fast_dev_run else None,
        inputs={"weights": fingerprint(lm.base), "texts": hashlib.sha256(texts.encode()).hexdigest()[:32]},
    )  # fmt: skip
    stack = AdapterStack(lm.model)
    fitted = steps.calibrate_filter(lm, trait, config, ledger, reporter)
    captured = gate.capture_anchors(lm, tasks, trait.neutral, config, ledger, reporter)
    keep = ledger.units.part("evaluate")
    base = steps.measure(lm, stack, trait, config, reporter, keep, "base")
    prompted = steps.measure(lm, stack, trait, config, reporter, keep, "prompted", system=trait.pos)
    ledger.write_once("base.json", base.to_json())
    ledger.write_once("prompted.json", prompted.to_json())
    ledger.record("baseline", base=base.summary(), prompted=prompted.summary())
    return Run(config, lm, trait, ledger, reporter, stack, fitted, base, prompted, captured, config.kappa_start)


def finish(
    run: Run, verdict: Verdict, best: int | None, ended: Verdict | None, controls: Mapping[str, RunResult],
    seconds: float,
) -> RunResult:  # fmt: skip
    """The end event and the files a reader opens first."""
    from steer_heal.report import write_report

    student = next((r.healed for r in run.rounds if r.number == best), None)
    compared = against(run, student, len(run.stack), controls)
    trajectory = [{"name": "base", "state": run.base.summary()}]
    for r in run.rounds:
        trajectory += [
            {"name": f"{r.number} steered", "state": r.steered.summary()},
            {"name": f"{r.number} healed{'' if r.stands else ' (reverted)'}", "state": r.healed.summary()},
        ]
    trajectory.append({"name": "prompted", "state": run.prompted.summary()})
    for row in compared[1:]:
        if row["state"]:
            trajectory.append({"name": f"control: {row['name']}, {row['rounds']} rounds", "state": row["state"]})
    run.ledger.record(
        "end", verdict=verdict.name, text=verdict.text, best_round=best,
        folded=[r.number for r in run.standing[: len(run.stack)]], ended_by=ended and ended.text, seconds=seconds,
        trajectory=trajectory, against=compared, controls=run.config.controls, folder=str(run.ledger.folder),
    )  # fmt: skip
    write_report(run.ledger)
    return RunResult(verdict, best, tuple(run.rounds), run.ledger.folder, run, controls)


def trait_figure(metrics: Metrics) -> float:
    """The trait as rounds are ranked by it: log-odds in nats, which have no ceiling; free text soon is at its own."""
    return metrics.log_odds
