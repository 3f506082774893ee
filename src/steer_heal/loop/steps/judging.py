"""A round's evidence: measure every condition on the same items, judge, and write the round's folder.

Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from steer_heal.config import RunConfig
from steer_heal.evaluation import Metrics, compare, evaluate
from steer_heal.evaluation.verdict import Floors, Rules, Verdict, gather, judge_round
from steer_heal.healing.bake import AdapterStack
from steer_heal.ledger import write_json, write_text
from steer_heal.ledger.units import Keep
from steer_heal.loop.kinds import METRICS
from steer_heal.loop.steps.state import Round, Run
from steer_heal.model import LM, completion_logprobs
from steer_heal.report.console import Reporter
from steer_heal.steering import SteeringVector
from steer_heal.texts.completion import Completion, save_completions
from steer_heal.texts.dose import Walk
from steer_heal.texts.generation import derive_seed
from steer_heal.trait import Trait

STARVED_UNDER = 30
"""Fewer kept completions than this (or than n_min, if smaller) train nothing: the round is starved."""


def measure(
    lm: LM, stack: AdapterStack, trait: Trait, config: RunConfig, reporter: Reporter, keep: Keep, name: str, **condition
) -> Metrics:
    """Evaluate one condition; every condition of a run is measured on the same items with the same seed."""
    reporter.progress(f"evaluate {name}", 0, 1)

    def original_nll(completions: list[Completion]) -> list[float]:
        with stack.unfolded():
            rows = completion_logprobs(lm, [c.prompt_ids for c in completions], [c.token_ids for c in completions])
        return [-float(row.mean()) for row in rows]

    vignettes = (config.vignettes() or trait.vignettes)[: 2 if config.fast_dev_run else None]

    def compute() -> Metrics:
        return evaluate(
            lm, trait, n_items=config.eval_items, n_free=config.eval_replies, max_new_tokens=config.max_new_tokens,
            seed=derive_seed(config.seed, "evaluate"), scorer=original_nll, vignettes=vignettes,
            think_tokens=config.eval_think_tokens, think_closing=config.eval_think_closing, keep=keep.part(name),
            on_batch=reporter.batches(f"evaluate {name}"), **condition,
        )  # fmt: skip

    return keep.once(name, compute, METRICS)


def measure_steered(run: Run, number: int, vector: SteeringVector, walk: Walk) -> Metrics:
    """The student before its heal, steered at the highest dose its training texts were kept from, unfiltered."""
    dose = max(c.dose for c in walk.completions if c.kept)
    condition = {"vector": vector, "dose": dose} if dose else {}
    keep = run.keep(number, "evaluate")
    return measure(run.lm, run.stack, run.trait, run.config, run.reporter, keep, "steered", **condition)


def measure_student(run: Run, number: int, steered: Metrics) -> Metrics:
    """The healed student, on the same items as base, prompted and steered."""
    keep = run.keep(number, "evaluate")
    student = measure(run.lm, run.stack, run.trait, run.config, run.reporter, keep, "healed")
    run.ledger.record(
        "evaluate", number, base=run.base.summary(), prompted=run.prompted.summary(), steered=steered.summary(),
        healed=student.summary(), steered_dose=steered.dose, shift=asdict(compare(run.base, student)),
        step=asdict(compare(run.previous, student)), steered_shift=asdict(compare(run.base, steered)),
    )  # fmt: skip
    return student


def free_trait(trait: Trait, completions: Sequence[Completion]) -> float | None:
    """Mean trait of completions by the checker, 0..1; None without a checker or a stance."""
    found = [trait.judge(c.prompt, c.text, c.finished) for c in completions]
    stances = [j.trait for j in found if j is not None and j.trait is not None]
    return sum(stances) / len(stances) if stances else None


def needed(config: RunConfig) -> int:
    """Kept completions below which a round trains nothing."""
    return min(STARVED_UNDER, config.n_min)


def judge(run: Run, number: int, walk: Walk, steered: Metrics, student: Metrics) -> Verdict:
    """The round's verdict: what became of trait and text."""
    kept = walk.banked
    evidence = gather(
        run.base, steered, student, prompted=run.prompted, training_trait=free_trait(run.trait, kept), kept=len(kept),
        needed=needed(run.config),
    )  # fmt: skip
    verdict = judge_round(evidence, Rules(floors=Floors(coherence=run.config.coherence_floor)))
    run.ledger.record("verdict", number, verdict=verdict.name, text=verdict.text, retain=evidence.retained)
    return verdict


def starve(run: Run, number: int, vector: SteeringVector, walk: Walk) -> Verdict | None:
    """The verdict of a round that ran dry, with everything it sampled kept; None when it has enough to train on."""
    least = needed(run.config)
    if len(walk.banked) >= least:
        return None
    text = f"{len(walk.banked)} of {len(walk.completions)} completions survived the filter, {least} are needed"
    verdict = Verdict("starved", f"{text}; the last kappa was {walk.kappa:.2f}.")
    with run.ledger.round_folder(number) as folder:
        vector.save(folder / "vector.safetensors")
        save_completions(walk.completions, folder / "completions.jsonl")
        write_json(folder / "metrics.json", {"verdict": asdict(verdict)})
    run.ledger.record("verdict", number, verdict=verdict.name, text=verdict.text, retain=None)
    return verdict


def save_round(run: Run, done: Round, walk: Walk) -> None:
    """Write `rounds/NN/`: vector, completions, adapter, metrics, decision, and the filter's report with full texts."""
    with run.ledger.round_folder(done.number) as folder:
        done.vector.save(folder / "vector.safetensors")
        save_completions(walk.completions, folder / "completions.jsonl")
        done.adapter.save(folder / "adapter")
        write_json(folder / "metrics.json", {
            "steered": asdict(done.steered), "healed": asdict(done.healed), "verdict": asdict(done.verdict),
        })  # fmt: skip
        write_json(folder / "decision.json", {"stands": done.stands, **asdict(done.decision)})
        write_text(folder / "filter.txt", f"{run.filter.report(walk.completions)}\n")
