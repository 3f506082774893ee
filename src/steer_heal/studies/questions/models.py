"""Questions about vectors, distances and anchors, measured on the original model and on students of finished runs.

Knows nothing of training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import torch
from jaxtyping import Float

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation import evaluate, judge
from steer_heal.evaluation.anchors import answer
from steer_heal.evaluation.probes.moments import ShiftMoments
from steer_heal.healing import HealConfig, reference_states
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.barriers import AGGREGATES
from steer_heal.healing.references import divergences
from steer_heal.ledger import Ledger
from steer_heal.statistics import Estimate, bootstrap_mean, resamples, tail
from steer_heal.steering import SteeringVector, extract
from steer_heal.studies.arms.comparing import compare_states
from steer_heal.studies.arms.reading import ArmRun, State, figures
from steer_heal.studies.material import Material, config_of, folded, load_material
from steer_heal.studies.questions.answers import Part, beside
from steer_heal.studies.questions.over_rounds import TEXT, Runs, Seeds, contrast
from steer_heal.studies.writing import say
from steer_heal.texts.generation import generate

TARGET, NEAR = 2.0, 0.05
"""Nats at which vectors are compared, and how near to it a dose has to come."""
SIZES = {"n_items": 24, "n_free": 40, "max_new_tokens": 72}


def steered(material: Material, pos: str, neg: str, contexts: Sequence[str], seed: int) -> State:
    """The original model under a vector, at the dose that moves forced choice by `TARGET` nats."""
    lm, trait = material.lm, replace(material.trait, anchors=())
    vector = extract(lm, pos, neg, contexts)

    def at(dose: float, n_free: int = 0):
        return evaluate(lm, trait, vector=vector, dose=dose, seed=seed, **{**SIZES, "n_free": n_free})

    zero, low, high = at(0.0).log_odds, 0.0, 4.0
    for _ in range(12):
        dose = (low + high) / 2
        moved = at(dose).log_odds - zero
        low, high = (dose, high) if moved < TARGET else (low, dose)
        if abs(moved - TARGET) < NEAR:
            break
    found = at(dose, SIZES["n_free"])
    say(f"{pos!r} against {neg!r}, {len(contexts)} contexts: dose {dose:.2f}, {found.log_odds - zero:+.2f} nats")
    return State(found, None)


def contexts(seeds: Seeds) -> list[Part]:
    """30 contexts of the domain overfit the vector to its format, diverse ones do not.

    Compared at equal trait, in other formats and in text.
    """
    material = load_material(RunConfig().resolved())
    trait, pairs = material.trait, []
    for seed in seeds:
        domain = random.Random(seed).sample(trait.prompts, 30)
        pairs.append(tuple(steered(material, trait.pos, trait.neg, some, seed) for some in (domain, trait.contexts)))
    what = f"288 diverse - 30 domain contexts at {TARGET:+g} nats"
    return [contrast(what, "held_out_log_odds", pairs), contrast(what, TEXT, pairs)]


IMPROPER = {
    "two axes": ("you put care before authority and courage before caution.",
                 "you put authority before care and caution before courage."),
    "unequal": ("you put care before authority.", "you are a helpful assistant."),
}  # fmt: skip
"""Pairs that break a rule of a proper one: both of `pocket`'s own words."""


def personas(seeds: Seeds) -> list[Part]:
    """A persona pair on two axes, or of unequal length, moves what it should not.

    Compared at equal trait, by the off-target category that moves furthest.
    """
    material = load_material(RunConfig().resolved())
    trait, parts = material.trait, []
    base = [State(evaluate(material.lm, replace(trait, anchors=()), seed=seed, **SIZES), None) for seed in seeds]
    proper = [steered(material, trait.pos, trait.neg, trait.contexts, seed) for seed in seeds]
    for name, pair in IMPROPER.items():
        improper = [steered(material, *pair, trait.contexts, seed) for seed in seeds]
        moved = {k: found.value for k, found in compare_states(base, improper).off_target.items()}
        most = max(moved, key=lambda category: abs(moved[category]))
        what, pairs = f"{name} - proper pair at {TARGET:+g} nats", list(zip(proper, improper, strict=True))
        parts.append(contrast(f"{most} (from base {moved[most]:+.2f}), {what}", most, pairs, above=moved[most] > 0))
        parts.append(beside(contrast(what, TEXT, pairs)))
    return parts


DOSES = (0.5, 0.75, 1.0, 1.5)


def distance(runs: Runs, seeds: Seeds) -> list[Part]:
    """Broken text lies farther from base than sound text, so a tau exists (AUC over .9).

    The student is one of plain training. The texts are new, on 40 prompts at each of `DOSES` of the vector that its
    rows were sampled under; broken is one at least half of whose sentences are wrong, sound one that has none.
    """
    scores, broken, prompts, by_seed = {name: [] for name in AGGREGATES}, [], [], []
    for seed in seeds:
        material, first = of(runs["open-nll"][seed]), runs["open-nll"][seed].folder / "rounds" / "00"
        lm, trait, vector = material.lm, material.trait, SteeringVector.load(first / "vector.safetensors")
        options = {"system": trait.neutral, "max_new_tokens": SIZES["max_new_tokens"], "seed": seed}
        sampled = generate(lm, trait.prompts[: SIZES["n_free"]], vector, DOSES, **options)
        wrong = [1 - row.sentence_ok for row in judge(trait, sampled)]
        rows = [c for c, share in zip(sampled, wrong, strict=True) if c.token_ids and (share == 0 or share >= 0.5)]
        broken += (kind := [share > 0 for share in wrong if share == 0 or share >= 0.5])
        prompts += [row.prompt for row in rows]
        base = reference_states(lm, rows)
        material.stack.push(Adapter.load(first / "adapter"))
        student = reference_states(lm, rows)
        found = {agg: divergences(lm, student, base, rows, HealConfig(reg="kl_rev", kl_agg=agg)) for agg in AGGREGATES}
        for name, values in found.items():
            scores[name] += values
        by_seed.append(auc(found["rmse"], kind))
    of_all = {name: auc_estimate(values, broken, prompts) for name, values in scores.items()}
    what = f"AUC of the student's distance (rmse KL), {sum(broken)} broken, {len(broken) - sum(broken)} sound"
    decides = Part(what, of_all.pop("rmse"), tuple(by_seed), limit=0.9)
    return [decides, *(beside(Part(f"of {name}", found)) for name, found in of_all.items())]


def of(run: ArmRun) -> Material:
    """The original model of a run."""
    return load_material(config_of(Ledger.open(run.folder)))


def auc(scores: Sequence[float], broken: Sequence[bool]) -> float:
    """Share of (broken, sound) pairs in which the broken one scores higher, ties half."""
    return float(_wins(scores, broken).mean())


def _wins(scores: Sequence[float], broken: Sequence[bool]) -> Float[np.ndarray, "broken sound"]:
    values, is_broken = np.asarray(scores), np.asarray(broken, dtype=bool)
    if is_broken.all() or not is_broken.any():
        raise InputError("all texts are broken, or none is: no distance can tell them apart; sample at other doses")
    difference = values[is_broken][:, None] - values[~is_broken][None, :]
    return (difference > 0) + 0.5 * (difference == 0)


def auc_estimate(scores: Sequence[float], broken: Sequence[bool], prompts: Sequence[str]) -> Estimate:
    """`auc` with a percentile interval over resampled prompts."""
    wins, is_broken = _wins(scores, broken), np.asarray(broken, dtype=bool)
    names = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    place = np.array([names[prompt] for prompt in prompts])
    weights = resamples(len(names), 2000, 0)[:, place]
    over, under = weights[:, is_broken], weights[:, ~is_broken]
    pairs = over.sum(1) * under.sum(1)
    values = (np.einsum("rb,bs,rs->r", over, wins, under, optimize=True) / np.maximum(pairs, 1))[pairs > 0]
    return percentiles(wins.mean(), values, len(names))


def percentiles(found: float, values: Float[np.ndarray, " resample"], n: int) -> Estimate:
    """What was found, with the expanded percentile interval of what resamples of `n` clusters give."""
    low, high = np.quantile(values, [tail(n), 1 - tail(n)])
    return Estimate(float(found), float(low), float(high), n)


DRAWS = 10
"""Times that the anchors are sampled, per seed; the intervals are over draws, of these anchors."""


def anchors(seeds: Seeds) -> list[Part]:
    """Sampled anchors are fewer than greedy ones, and not the same each time."""
    material = load_material(RunConfig().resolved())
    lm, tasks, system = material.lm, material.trait.anchors, material.trait.neutral

    def asked(**how) -> Float[np.ndarray, " anchor"]:
        return np.array([float(t.passes(c.text)) for t, c in zip(tasks, answer(lm, tasks, system, **how), strict=True)])

    greedy = asked()
    draws = [asked(greedy=False, seed=1000 * seed + i) for seed in seeds for i in range(DRAWS)]
    fewer = [float(draw.mean() - greedy.mean()) for draw in draws]
    flipped = [float((one * (1 - two)).mean()) for one, two in pairwise(draws)]
    counts = [int(draw.sum()) for draw in draws]
    what = f"share right, sampled ({min(counts)} to {max(counts)}) - greedy ({greedy.sum():.0f} of {len(tasks)})"
    return [
        Part(what, bootstrap_mean(fewer, range(len(fewer))), above=False),
        Part("share right in one draw, wrong in the next", bootstrap_mean(flipped, range(len(flipped)))),
    ]


def cosines(runs: Runs, seeds: Seeds) -> list[Part]:
    """Independent runs make the same change at equal trait (cosine over .5).

    Of each pair of seeds, after the rounds that make their traits most equal.
    """
    if len(seeds) < 2:
        raise InputError("question 13 compares runs of two seeds: give at least two")
    parts = []
    for pair in combinations([runs["tokens"][seed] for seed in seeds], 2):
        shifts = [[figures(run.standing(r.number), run.base)["shift"] for r in run.rounds] for run in pair]
        at = min(np.ndindex(*map(len, shifts)), key=lambda at: (abs(shifts[0][at[0]] - shifts[1][at[1]]), -sum(at)))
        found, weights = cosine_of(*zip(pair, at, strict=True))
        nats = ", ".join(f"seed {run.seed} {of[i]:+.2f}" for run, of, i in zip(pair, shifts, at, strict=True))
        parts.append(Part(f"cosine of logit shifts, {nats} nats (of weights {weights:.2f})", found, limit=0.5))
    return parts


def cosine_of(*students: tuple[ArmRun, int]) -> tuple[Estimate, float]:
    """Cosine of two students' logit shifts on the original's own replies, interval over prompts; and of the weights.

    A student is a run and a round: what stood after it.
    """
    material = of(students[0][0])
    lm, trait, stack = material.lm, material.trait, material.stack
    said = generate(lm, trait.eval_prompts[:40], system=trait.neutral, max_new_tokens=72, seed=0)
    states, sums = [reference_states(lm, said)], []
    for run, number in students:
        stands = [r.number for r in run.rounds if r.stands and r.number <= number]
        with folded(stack, [Adapter.load(run.folder / "rounds" / f"{r:02d}" / "adapter") for r in stands]):
            states.append(reference_states(lm, said))
            sums.append(stack.concatenated())
    products = []
    for row in said:
        logits = [lm.head(one.of(row)) for one in states]
        moments = ShiftMoments(2, logits[0].shape[-1])
        moments.add(torch.stack([logits[1] - logits[0], logits[2] - logits[0]]))
        products.append([moments.products[k].item() for k in ((0, 1), (0, 0), (1, 1))])
    return cosine_estimate(np.array(products)), sums[0].cosine(sums[1])


def cosine_estimate(products: Float[np.ndarray, "prompt 3"]) -> Estimate:
    """sum ab / sqrt(sum aa sum bb) over prompts' (ab, aa, bb), with an interval over resampled prompts."""
    totals, all_ = resamples(len(products), 2000, 0) @ products, products.sum(0)
    values = totals[:, 0] / np.sqrt(totals[:, 1] * totals[:, 2])
    return percentiles(all_[0] / np.sqrt(all_[1] * all_[2]), values, len(products))
