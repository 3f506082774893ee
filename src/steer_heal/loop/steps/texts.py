"""A round's vector and texts: extract, walk the dose, and put the training rows together.

Knows nothing of training and evaluation.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from itertools import islice

from steer_heal.evaluation import free_prompts
from steer_heal.evaluation.anchors import replayed_rows
from steer_heal.ledger.files import whole_folder
from steer_heal.loop.calibration import Calibration, calibrate
from steer_heal.loop.kinds import CALIBRATION, FILTER, VECTOR
from steer_heal.loop.steps.state import Run, Setting, contexts
from steer_heal.steering import SteeringVector, extract
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.texts.completion import COMPLETIONS, Completion, save_completions
from steer_heal.texts.dose import Plan, Walk, walk_c
from steer_heal.texts.generation import (
    Interrupted,
    MemoryShortError,
    Request,
    generate,
    generate_requests,
)
from steer_heal.texts.sampling import Sampling
from steer_heal.texts.selection import held_temperature


def calibrate_filter(run: Setting) -> CoherenceFilter:
    """Thresholds from the original model's own unsteered completions."""
    config = run.config
    compute = partial(
        CoherenceFilter.calibrate,
        run.lm,
        run.trait.prompts,
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


def extract_vector(run: Run, number: int) -> SteeringVector:
    """The round's steering vector, from the student as it is now."""
    config, trait = run.config, run.trait
    if run.rounds and config.vector_from == "first":
        vector = run.rounds[0].vector
    else:
        # `auto` chooses once: vectors of different blocks could not be compared between rounds.
        layers = run.rounds[0].vector.layers if run.rounds and config.layers == "auto" else config.layers
        progress = partial(run.reporter.progress, "extract")
        personas = (trait.pos, trait.neg, contexts(run))
        compute = partial(
            extract, run.lm, *personas, layers, config.position, too_long=config.too_long, progress=progress
        )
        vector = run.keep(number).once("vector", compute, VECTOR)
        if run.rounds and config.vector_from == "mixed":
            first = run.rounds[0].vector.scaled_like(vector)
            vector = replace(0.5 * (vector + first), quality=vector.quality)
        if config.vector == "random":
            vector = replace(vector.random_like(run.seed(number, "vector")), quality=vector.quality)
    unit = dose_unit(run, number, vector) if config.target_kl and config.vector != "none" else None
    if unit:
        vector = replace(vector * unit.dose, quality=vector.quality)
    run.ledger.record(
        "extract",
        number,
        kind=config.vector,
        n_contexts=vector.provenance.n_contexts,
        norm=vector.norm(),
        n_skipped=vector.provenance.n_skipped,
        layers=list(vector.layers),
        reason=vector.provenance.reason,
        unit=unit and asdict(unit),
        quality={i: asdict(q) for i, q in vector.quality.items()},
        cosine_first=vector.cosine(run.rounds[0].vector) if run.rounds else 1.0,
    )
    return vector


def dose_unit(run: Run, number: int, vector: SteeringVector) -> Calibration:
    """The multiple of the vector that causes `target_kl` nats on the student as it is now."""
    config, seed = run.config, run.seed(number, "unit")
    prompts = free_prompts(run.trait.prompts, 8 if config.fast_dev_run else 32, 0)
    place = run.sampled("find the dose", number, "dose")
    compute = partial(calibrate, run.lm, vector, prompts, config.target_kl, seed=seed, **place)
    return run.keep(number).once("dose", compute, CALIBRATION)


def walk_dose(run: Run, number: int, vector: SteeringVector) -> Walk:
    """Sample steered completions, judge them, and adapt the dose until enough survive.

    When Ctrl-C or a lack of memory ends it, what was sampled is in `rounds/NN.interrupted/`.
    """
    config, own = run.config, run.config.texts == "own"
    prompts = text_prompts(run, number)
    sampling = text_sampling(run)
    asked, drawn, judged = 0, [], []

    def sample_together(plan: Plan) -> list[list[Completion]]:
        nonlocal asked
        requests, doses = [], []
        for kappa, n in plan:
            for i in range(asked, asked + n):
                at = i // len(config.doses) % len(prompts)  # every prompt gets every dose in turn
                doses.append(config.doses[i % len(config.doses)] * kappa)
                requests.append(Request(prompts[at], 0.0 if own else doses[-1], at))
            asked += n
        kappas = ", ".join(f"{kappa:.2f}" for kappa, _ in plan)
        place = run.sampled(f"generate at kappa {kappas}", number, "walk", asked)
        seed = run.seed(number, "walk", asked)
        replies = generate_requests(run.lm, requests, vector, seed=seed, sampling=sampling, **place)
        if own:  # sampled without steering; the dose is that of the teacher
            replies = [replace(reply, dose=dose) for reply, dose in zip(replies, doses, strict=True)]
        drawn.extend(replies)
        rest = iter(replies)
        return [list(islice(rest, n)) for _, n in plan]

    def sample(kappa: float, n: int) -> list[Completion]:
        return sample_together([(kappa, n)])[0]

    def survive(completions: Sequence[Completion]) -> list[Completion]:
        def compute() -> list[Completion]:
            with run.stack.unfolded() if config.filter_model == "original" else nullcontext():
                return run.filter(run.lm, completions)

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
    start = {"kappa_start": run.kappa, "temperature": sampling.temperature, **({"texts": "own"} if own else {})}
    run.ledger.record("walk", number, **start, **_walk_figures(run, walk))
    return walk


def text_prompts(run: Run, number: int) -> list[str]:
    """User turns of this round's texts in their order: the trait's, the extraction contexts, or both in turn."""
    shuffle = random.Random(run.seed(number, "prompts")).shuffle
    named = {"trait": ["prompts"], "contexts": ["contexts"], "both": ["prompts", "contexts"]}[run.config.text_prompts]
    pools = [list(getattr(run.trait, name)) for name in named]
    for pool in pools:
        shuffle(pool)
    return [prompt for several in zip(*pools, strict=False) for prompt in several]


def text_sampling(run: Run) -> Sampling:
    """How this round's texts are sampled: the hotter, the less diverse the student (`held_temperature`)."""
    start, gain = run.config.text_sampling(), run.config.diversity_gain
    own = getattr(run.lm.base.generation_config, "temperature", None) or 1.0
    left, reference = run.previous.distinct4 or 0.0, run.base.distinct4 or 0.0
    heat = held_temperature(start.temperature or own, gain, left, reference) if gain else start.temperature
    return replace(start, temperature=heat)


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
    return [{"why": why, "dose": c.dose, "prompt": c.prompt, "text": c.text} for why, c in picked]


def training_rows(run: Run, number: int, walk: Walk) -> list[Completion]:
    """Kept completions, with earlier rounds', the original model's own and its anchors mixed in as configured."""
    config = run.config
    rows = [c for c in walk.completions if c.kept]
    if config.pairs == "shuffled":
        rows = shuffled_pairs(rows, run.seed(number, "pairs"))
    earlier = [c for past in run.standing for c in past.walk.banked]
    if config.accumulate and earlier:
        rows += random.Random(run.seed(number, "accumulate")).sample(earlier, min(config.accumulate, len(earlier)))
    n_replay = round(config.replay / (1 - config.replay - config.replay_anchors) * len(rows))
    if n_replay:
        pool = run.trait.replay_prompts or run.trait.prompts
        prompts = random.Random(run.seed(number, "replay")).choices(pool, k=n_replay)
        with run.stack.unfolded():
            sampling, place = config.text_sampling(), run.sampled("generate replay rows", number, "replay")
            seed = run.seed(number, "replay")
            rows += generate(run.lm, prompts, seed=seed, origin="base", sampling=sampling, **place)
    return rows + replayed_rows(run.replayable, len(rows), config.replay_anchors, run.seed(number, "anchors"))


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
