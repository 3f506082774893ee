"""A round's evidence and a run's: measure every condition on the same items, judge, and write the round's folder.

Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

from steer_heal.config import RunConfig
from steer_heal.evaluation import Metrics, compare, evaluate
from steer_heal.evaluation.measuring import Scorer
from steer_heal.evaluation.shift import summary
from steer_heal.evaluation.verdict import Floors, Rules, Verdict, best_round, cost, gather, judge_round, judge_run
from steer_heal.evaluation.verdict import Round as JudgedRound
from steer_heal.healing import Healed
from steer_heal.healing.bake import AdapterStack
from steer_heal.ledger import write_json, write_text
from steer_heal.loop.kinds import METRICS
from steer_heal.loop.steps.state import Round, Run, Setting
from steer_heal.model import LM, completion_logprobs
from steer_heal.steering import SteeringVector
from steer_heal.texts.completion import Completion, save_completions
from steer_heal.texts.dose import Walk
from steer_heal.trait import Trait

STARVED_UNDER = 30
"""Fewer kept completions than this (or than n_min, if smaller) train nothing: the round is starved."""


def measure(run: Setting, name: str, *labels: object, **condition) -> Metrics:
    """Evaluate one condition, kept under the labels; all of a run are measured on the same items with the same seed."""
    config = run.config
    compute = partial(
        evaluate,
        run.lm,
        run.trait,
        n_items=config.eval_items,
        n_free=config.eval_replies,
        seed=run.seed("evaluate"),
        scorer=original_nll(run.lm, run.stack),
        vignettes=(config.vignettes() or run.trait.vignettes)[: 2 if config.fast_dev_run else None],
        think_tokens=config.eval_think_tokens,
        think_closing=config.eval_think_closing,
        **{**run.sampled(f"evaluate {name}", *labels, "evaluate", name), **condition},
    )
    return run.keep(*labels, "evaluate").once(name, compute, METRICS)


def original_nll(lm: LM, stack: AdapterStack) -> Scorer:
    """Scores completions by their nll under the model without the stack's adapters, in nats per token."""

    def score(completions: list[Completion]) -> list[float]:
        with stack.unfolded():
            rows = completion_logprobs(lm, [c.prompt_ids for c in completions], [c.token_ids for c in completions])
        return [-float(row.mean()) for row in rows]

    return score


def measure_steered(run: Run, number: int, vector: SteeringVector, walk: Walk) -> Metrics:
    """The student before its heal, steered at the highest dose its training texts were kept from, unfiltered."""
    dose = max(c.dose for c in walk.banked)
    return measure(run, "steered", number, **({"vector": vector, "dose": dose} if dose else {}))


def measure_student(run: Run, number: int, steered: Metrics) -> Metrics:
    """The healed student, on the same items as base, prompted and steered."""
    student = measure(run, "healed", number)
    states = {"base": run.base, "prompted": run.prompted, "steered": steered, "healed": student}
    run.ledger.record(
        "evaluate",
        number,
        **{name: summary(state, run.base) for name, state in states.items()},
        steered_dose=steered.dose,
        shift=asdict(compare(run.base, student)),
        step=asdict(compare(run.previous, student)),
        steered_shift=asdict(compare(run.base, steered)),
    )
    return student


def free_trait(trait: Trait, completions: Sequence[Completion]) -> float | None:
    """Mean trait of completions by the checker, 0..1; None without a checker or a stance."""
    found = [trait.judge(c.prompt, c.text, c.finished) for c in completions]
    stances = [j.trait for j in found if j is not None and j.trait is not None]
    return sum(stances) / len(stances) if stances else None


def needed(config: RunConfig) -> int:
    """Kept completions below which a round trains nothing."""
    return min(STARVED_UNDER, config.n_min)


def judge(run: Run, number: int, walk: Walk, steered: Metrics, healed: Healed, student: Metrics) -> Verdict:
    """The round's verdict: what became of trait and text, and whether a barrier had any part in it."""
    steered_texts = [c for c in walk.banked if c.origin != "own"]  # under a teacher it is that which carries the trait
    trait, least = free_trait(run.trait, steered_texts), needed(run.config)
    texts = {"training_trait": trait, "kept": len(walk.banked), "needed": least}
    evidence = gather(run.base, steered, student, prompted=run.prompted, **texts)
    verdict = judge_round(evidence, Rules(floors=Floors(coherence=run.config.coherence_floor)))
    verdict = replace(verdict, text=f"{verdict.text} {healed.plain}".rstrip())
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


def save_round(run: Run, done: Round) -> None:
    """Write `rounds/NN/`: vector, completions, adapter, metrics, decision, and the filter's report with full texts.

    Training rows that are not of the walk (the original model's own, earlier rounds') are in `mixed_in.jsonl`.
    """
    metrics = {"steered": done.steered, "healed": done.healed, "verdict": done.verdict}
    with run.ledger.round_folder(done.number) as folder:
        done.vector.save(folder / "vector.safetensors")
        save_completions(done.walk.completions, folder / "completions.jsonl")
        save_completions(done.rows[len(done.walk.banked) :], folder / "mixed_in.jsonl")
        done.adapter.save(folder / "adapter")
        write_json(folder / "metrics.json", {name: asdict(found) for name, found in metrics.items()})
        write_json(folder / "decision.json", {"stands": done.stands, **asdict(done.decision)})
        write_text(folder / "filter.txt", f"{run.filter.report(done.walk.completions)}\n")


def trait_figure(metrics: Metrics) -> float:
    """The trait as rounds are ranked by it: log-odds in nats, which have no ceiling; free text soon is at its own."""
    return metrics.log_odds


def judge_rounds(run: Run, ended: Verdict | None) -> tuple[Verdict, int | None]:
    """The verdict of the whole run, and the number of its best round; `ended` is why it stopped before its time."""
    judged = [
        JudgedRound(r.number, r.verdict, trait_figure(r.healed), r.stands, cost(run.base, r.healed, run.prompted))
        for r in run.rounds
    ]
    if ended is not None and ended.name in ("starved", "diverged"):
        judged.append(JudgedRound(len(judged), ended, None))
    best = best_round(judged)
    told = (best or judged[-1]).number if judged else None  # its text is part of the run's
    plain = [str(r.number) for r in run.rounds if r.training.plain and r.number != told]
    verdict = judge_run(judged)
    if plain:
        verdict = replace(verdict, text=f"{verdict.text} No barrier acted in: {', '.join(plain)}.")
    return verdict, None if best is None else best.number
