"""The steps of a round as the loop calls them: each calls one stage, and records in the ledger what came of it.

Knows nothing of the command line and of printing. Maths is in the stages, not here.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from steer_heal.adapter import Adapter
from steer_heal.bake import AdapterStack
from steer_heal.coherence import CoherenceFilter
from steer_heal.completion import Completion, save_completions
from steer_heal.config import RunConfig
from steer_heal.console import Reporter
from steer_heal.dose import Walk, walk_c
from steer_heal.evaluation import Metrics, compare, evaluate
from steer_heal.generation import Progress, Request, derive_seed, generate, generate_requests
from steer_heal.healing import Healed, heal, mean_divergence, reference_states
from steer_heal.ledger import Ledger, write_json
from steer_heal.lm import LM, completion_logprobs
from steer_heal.steering import SteeringVector, extract
from steer_heal.trait import Trait
from steer_heal.verdict import Floors, Rules, Verdict, gather, judge_round

STARVED_UNDER = 30
"""Fewer kept completions than this (or than n_min, if smaller) train nothing: the round is starved."""


@dataclass
class Run:
    """What the steps of one run share. `stack` holds the rounds so far; `lm` is the student, their sum folded in."""

    config: RunConfig
    lm: LM
    trait: Trait
    ledger: Ledger
    reporter: Reporter
    stack: AdapterStack
    filter: CoherenceFilter
    base: Metrics
    prompted: Metrics
    rounds: list[Round] = field(default_factory=list)

    @property
    def previous(self) -> Metrics:
        """The student before this round; base in the first."""
        return self.rounds[-1].healed if self.rounds else self.base

    def seed(self, *labels: object) -> int:
        """A seed of its own for every use of randomness."""
        return derive_seed(self.config.seed, *labels)

    def on_batch(self, stage: str):
        """A progress callback for `generate`."""

        def report(done: list[Completion], p: Progress) -> None:
            self.reporter.progress(stage, p.done, p.total, f"{p.tokens_per_second:.0f} tokens/s")

        return report


@dataclass(frozen=True)
class Round:
    """What one round left: its vector, adapter and measurements."""

    number: int
    vector: SteeringVector
    adapter: Adapter
    kept: tuple[Completion, ...]
    steered: Metrics
    healed: Metrics
    lam: dict[str, float]
    verdict: Verdict


def calibrate_filter(lm: LM, trait: Trait, config: RunConfig, ledger: Ledger, reporter: Reporter) -> CoherenceFilter:
    """Thresholds from the original model's own unsteered completions."""
    reporter.progress("calibrate the filter", 0, 1)
    n = 24 if config.fast_dev_run else 192
    fitted = CoherenceFilter.calibrate(
        lm, trait.prompts, system=trait.neutral, n=n, seed=derive_seed(config.seed, "filter"),
        false_drop=config.false_drop, max_new_tokens=config.max_new_tokens,
    )  # fmt: skip
    fitted = {"coherence": fitted, "repetition": fitted.only_repetition(), "none": fitted.only()}[config.filter]
    ledger.record("calibrate", **fitted.to_dict())
    return fitted


def measure(
    lm: LM, stack: AdapterStack, trait: Trait, config: RunConfig, reporter: Reporter, name: str, **condition
) -> Metrics:
    """Evaluate one condition; every condition of a run is measured on the same items with the same seed."""
    reporter.progress(f"evaluate {name}", 0, 1)

    def original_nll(completions: list[Completion]) -> list[float]:
        with stack.unfolded():
            rows = completion_logprobs(lm, [c.prompt_ids for c in completions], [c.token_ids for c in completions])
        return [-float(row.mean()) for row in rows]

    return evaluate(
        lm, trait, n_items=config.eval_items, n_free=config.eval_replies, max_new_tokens=config.max_new_tokens,
        seed=derive_seed(config.seed, "evaluate"), scorer=original_nll, **condition,
    )  # fmt: skip


def extract_vector(run: Run, number: int) -> SteeringVector:
    """The round's steering vector, from the student as it is now."""
    config, trait = run.config, run.trait
    if run.rounds and config.vector_from == "first":
        vector = run.rounds[0].vector
    else:
        contexts = trait.contexts[:32] if config.fast_dev_run else trait.contexts
        vector = extract(
            run.lm, trait.pos, trait.neg, contexts, config.layers, config.position,
            progress=lambda done, total: run.reporter.progress("extract", done, total),
        )  # fmt: skip
        if config.vector == "random":
            vector = replace(vector.random_like(run.seed(number, "vector")), quality=vector.quality)
    run.ledger.record(
        "extract", number, kind=config.vector, n_contexts=vector.provenance.n_contexts, norm=vector.norm(),
        quality={i: asdict(q) for i, q in vector.quality.items()},
        cosine_first=vector.cosine(run.rounds[0].vector) if run.rounds else 1.0,
    )  # fmt: skip
    return vector


def walk_dose(run: Run, number: int, vector: SteeringVector) -> Walk:
    """Sample steered completions, judge them, and adapt the dose until enough survive."""
    config, trait, stack = run.config, run.trait, run.stack
    prompts = list(trait.prompts)
    random.Random(run.seed(number, "prompts")).shuffle(prompts)
    asked = 0

    def sample(kappa: float, n: int) -> list[Completion]:
        nonlocal asked
        requests = []
        for i in range(asked, asked + n):
            at = i // len(config.doses) % len(prompts)  # every prompt gets every dose in turn
            requests.append(Request(prompts[at], config.doses[i % len(config.doses)] * kappa, at))
        asked += n
        return generate_requests(
            run.lm, requests, vector, trait.neutral, config.max_new_tokens, run.seed(number, "walk", asked),
            on_batch=run.on_batch(f"generate at kappa {kappa:.2f}"),
        )  # fmt: skip

    def survive(completions: Sequence[Completion]) -> list[Completion]:
        if config.filter_model == "student":
            return run.filter(run.lm, completions)
        with stack.unfolded():
            return run.filter(run.lm, completions)

    walk = walk_c(sample, survive, config.dose_config())
    run.ledger.record("walk", number, **_walk_figures(run, walk))
    return walk


def _walk_figures(run: Run, walk: Walk) -> dict:
    """Figures of a walk: decision curve, counts per gate, and per dose what was sampled and what was kept."""
    trait, completions = run.trait, walk.completions
    judged = [(c, trait.judge(c.prompt, c.text, c.finished)) for c in completions]

    def mean(pairs, name: str) -> float | None:
        values = [getattr(j, name) for _, j in pairs if j is not None and getattr(j, name) is not None]
        return sum(values) / len(values) if values else None

    per_dose = []
    for dose in sorted({c.dose for c in completions}):
        all_of = [pair for pair in judged if pair[0].dose == dose]
        kept = [pair for pair in all_of if pair[0].kept]
        per_dose.append({
            "dose": dose, "n": len(all_of), "kept": len(kept) / len(all_of),
            "trait": mean(all_of, "trait"), "trait_kept": mean(kept, "trait"),
            "sentence_ok": mean(all_of, "sentence_ok"), "sentence_ok_kept": mean(kept, "sentence_ok"),
        })  # fmt: skip
    everything_kept = [pair for pair in judged if pair[0].kept]
    return {
        "curve": walk.curve(), "kappa": walk.kappa, "starved": walk.starved, "kept": len(walk.banked),
        "sampled": len(completions), "survival": walk.survival, "per_dose": per_dose,
        "dropped": dict(Counter(c.dropped_by for c in completions if c.dropped_by)),
        "trait_base": run.base.free_trait, "trait_sampled": mean(judged, "trait"),
        "trait_kept": mean(everything_kept, "trait"), "sentence_ok_sampled": mean(judged, "sentence_ok"),
        "sentence_ok_kept": mean(everything_kept, "sentence_ok"), "examples": examples(run.filter, completions),
    }  # fmt: skip


def free_trait(trait: Trait, completions: Sequence[Completion]) -> float | None:
    """Mean trait of completions by the checker, 0..1; None without a checker or a stance."""
    found = [trait.judge(c.prompt, c.text, c.finished) for c in completions]
    stances = [j.trait for j in found if j is not None and j.trait is not None]
    return sum(stances) / len(stances) if stances else None


def examples(fitted: CoherenceFilter, completions: Sequence[Completion]) -> list[dict]:
    """A few full completions: one kept, one dropped, and those just inside and just outside the perplexity limit."""
    picked = [("kept", c) for c in completions if c.kept][:1]
    picked += [(f"dropped: {fitted.reason(c)}", c) for c in completions if not c.kept][:1]
    for border in fitted.report(completions).borderline:
        if border.rule.key == "nll.high":
            sides = (("just inside the perplexity limit", border.inside), ("just outside it", border.outside))
            picked += [(why, c) for why, c in sides if c is not None]
    return [{"why": why, "dose": c.dose, "prompt": c.prompt, "text": c.text} for why, c in picked]


def training_rows(run: Run, number: int, walk: Walk) -> list[Completion]:
    """Kept completions, with earlier rounds' and the original model's own ones mixed in as configured."""
    config = run.config
    rows = [c for c in walk.completions if c.kept]
    if config.pairs == "shuffled":
        rows = shuffled_pairs(rows, run.seed(number, "pairs"))
    earlier = [c for past in run.rounds for c in past.kept]
    if config.accumulate and earlier:
        rows += random.Random(run.seed(number, "accumulate")).sample(earlier, min(config.accumulate, len(earlier)))
    n_replay = round(config.replay / (1 - config.replay) * len(rows))
    if n_replay:
        pool = run.trait.replay_prompts or run.trait.prompts
        prompts = random.Random(run.seed(number, "replay")).choices(pool, k=n_replay)
        with run.stack.unfolded():
            rows += generate(
                run.lm, prompts, system=run.trait.neutral, max_new_tokens=config.max_new_tokens,
                seed=run.seed(number, "replay"), origin="base", on_batch=run.on_batch("generate replay rows"),
            )  # fmt: skip
    return rows


def shuffled_pairs(rows: Sequence[Completion], seed: int) -> list[Completion]:
    """The same replies, each behind another row's prompt: the control for "any text of this kind does it"."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    # A cycle along a random order: no reply keeps its own place.
    other = {a: b for a, b in zip(order, [*order[1:], order[0]], strict=True)} if order else {}
    return [
        replace(row, prompt=rows[other[i]].prompt, prompt_ids=rows[other[i]].prompt_ids, origin="control")
        for i, row in enumerate(rows)
    ]


def heal_rows(run: Run, number: int, vector: SteeringVector, rows: list[Completion]) -> Healed:
    """Train this round's adapter on the rows, under the barrier."""
    config = run.config.heal_config(run.seed(number, "heal") % 2**31)
    started = time.perf_counter()
    prev = reference_states(run.lm, rows)
    with run.stack.unfolded():
        base = reference_states(run.lm, rows) if len(run.stack) else prev
    caused = None
    if config.tau_rel is not None:
        steered_rows = [c for c in rows if c.dose]
        steered = reference_states(
            run.lm, steered_rows, around=lambda batch: vector.applied(run.lm.model, [c.dose for c in batch])
        )
        caused = mean_divergence(run.lm, steered, prev, steered_rows, config)
    n_train = len(rows) - int(len(rows) * config.heldout)
    total = -(-n_train // (config.batch_size * config.grad_accum)) * config.epochs

    barrier = config.barrier_names()[0] if config.barrier_names() else None
    of_epoch: list[dict] = []

    def on_step(row: dict) -> None:
        if row["kind"] == "step":
            of_epoch.append(row)
            run.reporter.progress("heal", min(row["step"] + 1, total), total, f"nll {row['nll']:.3f}")
            return
        keys = {"grad_norm": "grad_norm"} | {k: f"{barrier}_{k}" for k in ("agg", "fired", "lam") if barrier}
        means = {name: sum(step[key] for step in of_epoch) / len(of_epoch) for name, key in keys.items()}
        run.reporter.epoch({**row, **means})
        of_epoch.clear()

    healed = heal(
        run.lm, rows, config, {"prev": prev, "base": base}, round=number, steering_divergence=caused, on_step=on_step,
        lam0=run.rounds[-1].lam if run.rounds else None,
    )  # fmt: skip
    run.ledger.record(
        "heal", number, rows=len(rows), seconds=time.perf_counter() - started, figures=dict(healed.figures),
        reg=run.config.reg_name, tau=dict(healed.tau), lam=dict(healed.lam), steering_divergence=caused,
        epochs=[dict(e) for e in healed.epochs], notes=list(healed.notes()),
        tokens_cut=sum(not c.finished for c in rows),
    )  # fmt: skip
    return healed


def bake(run: Run, number: int, healed: Healed) -> None:
    """Fold the adapter into the weights."""
    report = run.stack.push(healed.adapter)
    first = run.rounds[0].adapter if run.rounds else healed.adapter
    run.ledger.record(
        "bake", number, depth=len(run.stack), rounding_loss=report.rounding_loss, gain=report.gain,
        relative_change=report.relative_change, cosine_first=healed.adapter.cosine(first), warning=report.warning,
    )  # fmt: skip


def measure_steered(run: Run, vector: SteeringVector, walk: Walk) -> Metrics:
    """The student before its heal, steered at the highest dose its training texts were kept from, unfiltered."""
    dose = max(c.dose for c in walk.completions if c.kept)
    condition = {"vector": vector, "dose": dose} if dose else {}
    return measure(run.lm, run.stack, run.trait, run.config, run.reporter, "steered", **condition)


def measure_student(run: Run, number: int, steered: Metrics) -> Metrics:
    """The healed student, on the same items as base, prompted and steered."""
    student = measure(run.lm, run.stack, run.trait, run.config, run.reporter, "healed")
    run.ledger.record(
        "evaluate", number, base=run.base.summary(), prompted=run.prompted.summary(), steered=steered.summary(),
        healed=student.summary(), steered_dose=steered.dose, shift=asdict(compare(run.base, student)),
        step=asdict(compare(run.previous, student)), steered_shift=asdict(compare(run.base, steered)),
    )  # fmt: skip
    return student


def needed(config: RunConfig) -> int:
    """Kept completions below which a round trains nothing."""
    return min(STARVED_UNDER, config.n_min)


def judge(
    run: Run, number: int, vector: SteeringVector, walk: Walk, healed: Healed, steered: Metrics, student: Metrics
) -> Verdict:
    """The round's verdict; writes the round's folder and adds the round to the run."""
    kept = walk.banked
    evidence = gather(
        run.base, steered, student, prompted=run.prompted, training_trait=free_trait(run.trait, kept), kept=len(kept),
        needed=needed(run.config),
    )  # fmt: skip
    verdict = judge_round(evidence, Rules(floors=Floors(coherence=run.config.coherence_floor)))
    retain = evidence.retained
    done = Round(number, vector, healed.adapter, tuple(kept), steered, student, dict(healed.lam), verdict)
    save_round(run, done, walk)
    run.rounds.append(done)
    run.ledger.record("verdict", number, verdict=verdict.name, text=verdict.text, retain=retain)
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
    """Write `rounds/NN/`: vector, completions, adapter, metrics."""
    with run.ledger.round_folder(done.number) as folder:
        done.vector.save(folder / "vector.safetensors")
        save_completions(walk.completions, folder / "completions.jsonl")
        done.adapter.save(folder / "adapter")
        write_json(folder / "metrics.json", {
            "steered": asdict(done.steered), "healed": asdict(done.healed), "verdict": asdict(done.verdict),
        })  # fmt: skip
