"""The loop: extract, walk the dose, filter, heal, bake, evaluate, judge; again, on the student that came of it.

Knows nothing of the command line. Controls are settings of this loop (`vector`, `pairs`), not loops of their own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from steer_heal import lm as models
from steer_heal import steps
from steer_heal.bake import AdapterStack
from steer_heal.config import RunConfig
from steer_heal.console import Reporter
from steer_heal.evaluation import Metrics
from steer_heal.ledger import Ledger
from steer_heal.steps import Round, Run
from steer_heal.trait import Trait, default_trait
from steer_heal.verdict import Round as JudgedRound
from steer_heal.verdict import Verdict, best_round, judge_run


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        verdict: name and the sentence that says what was compared and how sure it is.
        best_round: number of the best round above the coherence floors; None when there is none.
        rounds: the rounds in order.
        folder: where everything is written.
        run: model, stack and trait as they are now, the last round folded in.
    """

    verdict: Verdict
    best_round: int | None
    rounds: tuple[Round, ...]
    folder: Path
    run: Run


def run_rounds(config: RunConfig | None = None, reporter: Reporter | None = None) -> RunResult:
    """The whole job: `config.n_rounds` rounds, or fewer when one starves or coherence falls under its floor.

    Raises InputError for input that cannot be used; a round that runs dry or collapses is a verdict, not an error.
    """
    run = prepare((config or RunConfig()).resolved(), reporter or Reporter(quiet=True))
    started, ended = time.perf_counter(), None
    for number in range(run.config.n_rounds):
        ended = one_round(run, number)
        if ended is not None:
            break
    return finish(run, ended, time.perf_counter() - started)


def one_round(run: Run, number: int) -> Verdict | None:
    """One round of the method; returns the verdict that ends the run, or None to go on."""
    vector = steps.extract_vector(run, number)  # mean difference of two personas, on the current student
    walk = steps.walk_dose(run, number, vector)  # steered completions, filtered; the dose adapts to what survives
    if starved := steps.starve(run, number, vector, walk):
        return starved
    steered = steps.measure_steered(run, vector, walk)  # unfiltered, on held-out items
    rows = steps.training_rows(run, number, walk)
    healed = steps.heal_rows(run, number, vector, rows)  # LoRA on the sampled tokens, under the barrier
    steps.bake(run, number, healed)  # into the weights
    student = steps.measure_student(run, number, steered)  # the same items as base, prompted and steered
    verdict = steps.judge(run, number, vector, walk, healed, steered, student)
    return verdict if verdict.name == "collapsed" else None


def prepare(config: RunConfig, reporter: Reporter) -> Run:
    """Model, trait, run folder, calibrated filter, and the two baselines every round is compared with."""
    if config.threads or config.model_name in ("pocket", "tiny-random"):
        torch.set_num_threads(config.threads or 1)
    lm = models.load(
        config.model_name, dtype=config.dtype, device=config.device, attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    trait = Trait.load(config.trait or default_trait(config.model_name))
    label = f"{config.model_name}_{config.reg_name}_s{config.seed}"
    ledger = Ledger.create(config.out, label, config.to_dict())
    ledger.listeners.append(reporter.on_event)
    ledger.record(
        "start", model=lm.name, trait=trait.name, reg=config.reg_name, n_rounds=config.n_rounds,
        seed=config.seed, device=str(lm.device), folder=str(ledger.folder),
        note="fast dev run: every stage is exercised, the numbers mean nothing" if config.fast_dev_run else None,
    )  # fmt: skip
    stack = AdapterStack(lm.model)
    fitted = steps.calibrate_filter(lm, trait, config, ledger, reporter)
    base = steps.measure(lm, stack, trait, config, reporter, "base")
    prompted = steps.measure(lm, stack, trait, config, reporter, "prompted", system=trait.pos)
    base.save(ledger.folder / "base.json")
    prompted.save(ledger.folder / "prompted.json")
    ledger.record("baseline", base=base.summary(), prompted=prompted.summary())
    return Run(config, lm, trait, ledger, reporter, stack, fitted, base, prompted)


def finish(run: Run, ended: Verdict | None, seconds: float) -> RunResult:
    """The run's verdict, its best round, and the files a reader opens first."""
    from steer_heal.report import write_report

    judged = [JudgedRound(r.number, r.verdict, trait_figure(r.healed)) for r in run.rounds]
    if ended is not None and ended.name == "starved":
        judged.append(JudgedRound(len(judged), ended, None))
    verdict, best = judge_run(judged), best_round(judged)
    best = None if best is None else best.number
    trajectory = [{"name": "base", "state": run.base.summary()}]
    for r in run.rounds:
        trajectory += [
            {"name": f"{r.number} steered", "state": r.steered.summary()},
            {"name": f"{r.number} healed", "state": r.healed.summary()},
        ]
    trajectory.append({"name": "prompted", "state": run.prompted.summary()})
    run.ledger.record(
        "end", verdict=verdict.name, text=verdict.text, best_round=best, seconds=seconds, trajectory=trajectory,
        folder=str(run.ledger.folder),
    )  # fmt: skip
    write_report(run.ledger)
    return RunResult(verdict, best, tuple(run.rounds), run.ledger.folder, run)


def trait_figure(metrics: Metrics) -> float:
    """The trait as rounds are ranked by it: free-text rate where a checker measures it, else log-odds in nats."""
    return metrics.log_odds if metrics.free_trait is None else metrics.free_trait
