"""A round's texts: the filter's limits, and the walk that samples and judges while it adapts the dose.

Knows nothing of training and evaluation.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice

from steer_heal.healing import HealConfig, reference_states
from steer_heal.healing.references import divergences
from steer_heal.ledger.files import whole_folder
from steer_heal.loop.kinds import FILTER
from steer_heal.loop.steps.state import Run, Setting
from steer_heal.loop.steps.training import steered_states
from steer_heal.steering import SteeringVector
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.texts.completion import COMPLETIONS, Completion, flagged, save_completions
from steer_heal.texts.dose import Plan, Walk, walk_c
from steer_heal.texts.generation import (
    Interrupted,
    MemoryShortError,
    Request,
    generate_requests,
)
from steer_heal.texts.sampling import Sampling


def calibrate_filter(run: Setting) -> CoherenceFilter:
    """Thresholds from the original model's own unsteered completions."""
    config = run.config
    compute = partial(
        CoherenceFilter.calibrate,
        run.lm,
        run.trait.prompts if config.text_prompts == "trait" else text_prompts(run),
        n=24 if config.fast_dev_run else 192,
        seed=run.seed("filter"),
        false_drop=config.false_drop,
        sampling=config.text_sampling(),
        **run.sampled("calibrate the filter", "filter"),
    )
    fitted = run.keep().once("filter", compute, FILTER)
    fitted = {"coherence": fitted, "repetition": fitted.only_repetition(), "none": fitted.only()}[config.filter]
    run.ledger.record("calibrate", **fitted.to_dict())
    return fitted


def walk_dose(run: Run, number: int, vector: SteeringVector) -> Walk:
    """Sample a round's texts, judge them, and adapt the dose until enough survive.

    What survives: of steered texts what the filter lets through; of the student's own texts, which the filter only
    reports on, those on which the teacher at this dose is within `teacher_reach` of the student.
    When Ctrl-C or a lack of memory ends it, what was sampled is in `rounds/NN.interrupted/`.
    """
    config = run.config
    prompts, contexts = text_prompts(run, number), frozenset(run.trait.contexts)
    sampling = text_sampling(run)
    asked, drawn, judged = 0, [], []

    def sample_together(plan: Plan) -> list[list[Completion]]:
        nonlocal asked
        requests, doses = [], []
        for kappa, n in plan:
            for i in range(asked, asked + n):
                at = i // len(config.doses) % len(prompts)  # every prompt gets every dose in turn
                factor = config.context_dose if prompts[at] in contexts else 1.0
                doses.append(config.doses[i % len(config.doses)] * kappa * factor)
                requests.append(Request(prompts[at], 0.0 if _is_own(config.texts, i) else doses[-1], at))
            asked += n
        kappas = ", ".join(f"{kappa:.2f}" for kappa, _ in plan)
        place = run.sampled(f"generate at kappa {kappas}", number, "walk", asked)
        seed = run.seed(number, "walk", asked)
        replies = generate_requests(run.lm, requests, vector, seed=seed, sampling=sampling, **place)
        # The dose of an own text, sampled without steering, is that of its teacher.
        own = [_is_own(config.texts, i) for i in range(asked - len(replies), asked)]
        marked = zip(replies, doses, own, strict=True)
        replies = [replace(c, dose=dose, origin="own") if unsteered else c for c, dose, unsteered in marked]
        drawn.extend(replies)
        rest = iter(replies)
        return [list(islice(rest, n)) for _, n in plan]

    def sample(kappa: float, n: int) -> list[Completion]:
        return sample_together([(kappa, n)])[0]

    def survive(completions: Sequence[Completion]) -> list[Completion]:
        def compute() -> list[Completion]:
            with run.stack.unfolded() if config.filter_model == "original" else nullcontext():
                found = run.filter(run.lm, completions)
            found = [flagged(c) if c.origin == "own" else c for c in found]
            return within_reach(run, vector, found) if config.teacher_reach else found

        found = run.keep(number, "walk", asked).once("judged", compute, COMPLETIONS)
        judged.extend(found)
        return found

    try:
        walk = walk_c(sample, survive, replace(config.dose_config(), kappa_start=run.kappa), sample_together)
    except (KeyboardInterrupt, MemoryShortError) as stop:
        finished = stop.finished if isinstance(stop, (Interrupted, MemoryShortError)) else []
        save_interrupted(run, number, [*judged, *drawn[len(judged) :], *finished])
        raise
    if run.reporter.verbose:
        run.reporter.note(f"{run.filter.report(walk.completions)}\n")
    start = {"kappa_start": run.kappa, "temperature": sampling.temperature, "texts": config.texts}
    run.ledger.record("walk", number, **start, **_walk_figures(run, walk))
    return walk


def _is_own(texts: str, place: int) -> bool:
    """Whether the text at this place of the walk is sampled without steering: with `mixed` every other one."""
    return texts == "own" or (texts == "mixed" and place % 2 == 1)


def within_reach(run: Run, vector: SteeringVector, completions: Sequence[Completion]) -> list[Completion]:
    """The same texts; an own one whose teacher is further from the student than `teacher_reach` nats is dropped.

    The distance, KL(teacher || student) aggregated over the reply as the barrier's, is in its scores as
    `teacher_nats`. It costs forward passes over given tokens, not sampling, and rises with the dose, so that the walk
    can find a dose by it. (What samples of the teacher look like does not tell: a dose at which they are soup taught
    most, see the results.)
    """
    own = [c for c in completions if c.origin == "own" and c.kept and c.dose]
    if not own:
        return list(completions)
    plain = reference_states(run.lm, own)
    steered = steered_states(run.lm, vector, own)
    config = HealConfig(reg="kl_rev", kl_agg=run.config.kl_agg)
    nats = iter(divergences(run.lm, steered, plain, own, config))

    def judged(completion: Completion) -> Completion:
        found = next(nats)
        far = "reach" if found > run.config.teacher_reach else None
        return replace(completion, scores={**completion.scores, "teacher_nats": found}, dropped_by=far)

    taught = set(map(id, own))
    return [judged(c) if id(c) in taught else c for c in completions]


def text_prompts(run: Setting, *labels: object) -> list[str]:
    """User turns of a round's texts in their order: the trait's, the extraction contexts, or both by their share."""
    shuffle = random.Random(run.seed(*labels, "prompts")).shuffle
    share = {"trait": 0.0, "both": run.config.context_share, "contexts": 1.0}[run.config.text_prompts]
    pools = [list(run.trait.prompts), list(run.trait.contexts)]
    for pool in pools:
        shuffle(pool)
    # Contexts spread evenly, so that every batch has its share of them.
    named = [int((i + 1) * share) > int(i * share) for i in range(sum(map(len, pools)))]
    rest = [iter(pool) for pool in pools]
    return [prompt for context in named if (prompt := next(rest[context], None)) is not None]


def text_sampling(run: Run) -> Sampling:
    """How this round's texts are sampled: the hotter, the less diverse the student (`Run.heat`).

    Not where a teacher teaches: how texts are sampled does not sharpen a student that learns its distribution, and the
    heat goes into the target (`heal_rows`).
    """
    start = run.config.text_sampling()
    if not run.config.diversity_gain or run.config.targets == "teacher":
        return start
    own = getattr(run.lm.base.generation_config, "temperature", None) or 1.0
    return replace(start, temperature=run.heat(start.temperature or own))


def save_interrupted(run: Run, number: int, completions: Sequence[Completion]) -> None:
    """Write the completions of a walk's finished batches, judged or not yet, to `rounds/NN.interrupted/`.

    No event: a run that goes on records what one that was not stopped does.
    """
    with whole_folder(run.ledger.folder / "rounds" / f"{number:02d}.interrupted") as folder:
        save_completions(completions, folder / "completions.jsonl")


def _walk_figures(run: Run, walk: Walk) -> dict:
    """Figures of a walk: decision curve, counts per gate, and per dose what was sampled and what was kept."""
    completions = walk.completions
    judged = [(c, run.trait.judge(c.prompt, c.text, c.finished)) for c in completions]

    def means(pairs: Sequence[tuple], figure: str, sampled: str) -> dict[str, float | None]:
        """A figure of the checker's over all pairs, under the name `sampled`, and over the kept ones."""
        found = [(c.kept, getattr(j, figure)) for c, j in pairs if j is not None and getattr(j, figure) is not None]
        kept = [value for stays, value in found if stays]
        return {sampled: _mean([value for _, value in found]), f"{figure}_kept": _mean(kept)}

    per_dose = []
    for dose in sorted({c.dose for c in completions}):
        pairs = [pair for pair in judged if pair[0].dose == dose]
        row = {"dose": dose, "n": len(pairs), "kept": sum(c.kept for c, _ in pairs) / len(pairs)}
        per_dose.append(row | means(pairs, "trait", "trait") | means(pairs, "sentence_ok", "sentence_ok"))
    return {
        "curve": walk.curve(),
        "kappa": walk.kappa,
        "starved": walk.starved,
        "kept": len(walk.banked),
        "sampled": len(completions),
        "survival": walk.survival,
        "per_dose": per_dose,
        "dropped": dict(Counter(c.dropped_by for c in completions if c.dropped_by)),
        "flagged": dict(Counter(c.flagged_by for c in completions if c.flagged_by)),
        "trait_base": run.base.free_trait,
        **means(judged, "trait", "trait_sampled"),
        **means(judged, "sentence_ok", "sentence_ok_sampled"),
        "examples": examples(run.filter, completions),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def examples(fitted: CoherenceFilter, completions: Sequence[Completion]) -> list[dict]:
    """A few full completions: one kept, one dropped, and those just inside and just outside the perplexity limit."""
    picked = [("kept", c) for c in completions if c.kept][:1]
    picked += [(f"dropped: {fitted.reason(c)}", c) for c in completions if not c.kept][:1]
    for border in fitted.report(completions).borderline:
        if border.rule.key == "nll.high":
            sides = (("just inside the perplexity limit", border.inside), ("just outside it", border.outside))
            picked += [(why, c) for why, c in sides if c is not None]
    return [{"why": why, "dose": c.dose, "prompt": c.asked, "text": c.text} for why, c in picked]
