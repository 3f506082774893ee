"""Questions that need a heal no run made: over lam, over epochs, on the sound part of what the filter dropped.

Knows nothing of how runs are made; it reads their folders and heals their first round again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, judge
from steer_heal.healing import reference_states
from steer_heal.model import LM
from steer_heal.pocket import SURGERY
from steer_heal.statistics import bootstrap_mean, paired_difference
from steer_heal.studies import ladder
from steer_heal.studies.arms.reading import State
from steer_heal.studies.ladder.rows import load_tasks
from steer_heal.studies.questions.answers import Part, beside
from steer_heal.studies.questions.over_rounds import LOSS, TEXT, TRAIT, Runs, Seeds, contrast, ramp
from steer_heal.studies.reheal.again import Setting, heal_once, heal_seed, load_setting, parse
from steer_heal.studies.writing import say
from steer_heal.texts.completion import Completion, load_completions
from steer_heal.texts.generation import generate

LAMS = (0.1, 1.0, 10.0)


def lam(runs: Runs, seeds: Seeds) -> list[Part]:
    """A lam that falls by round goes further at the same coherence; coherence is unimodal in lam."""
    found = {}
    for seed in seeds:
        setting = load_setting(runs["open-nll"][seed].folder, 0)
        states = [runs[arm][seed].standing(0) for arm in ("open-nll", "open-kl")]
        for value in LAMS:
            config = parse(f"kl_rev,lam={value:g}", setting.config.heal_config(heal_seed(seed, 0)))
            states.append(healed(setting, config, f"seed {seed}, lam {value:g}"))
        found[seed] = dict(zip((0.0, 0.3, *LAMS), states, strict=True))
    means = {value: np.mean([found[seed][value].metrics.sentence_ok for seed in seeds]) for value in found[seeds[0]]}
    best, strongest = max(sorted(means), key=means.get), max(means)
    between = [
        contrast(f"lam {best:g} - {end:g}, round 0", figure, [(found[s][end], found[s][best]) for s in seeds])
        for figure in (TEXT, TRAIT)
        for end in (0.0, strongest)
    ]
    return [*ramp(runs, seeds), *between[:2], *map(beside, between[2:])]


def healed(setting: Setting, config, what: str) -> State:
    """One heal of the setting, measured on the run's items."""
    metrics: Metrics = heal_once(setting, config)[1]
    say(f"{what}: {metrics.log_odds - setting.base.log_odds:+.2f} nats, sentence ok {metrics.sentence_ok or 0:.2f}")
    return State(metrics, None)


EPOCHS = (3, 10, 30)


def epochs(seeds: Seeds, out: Path) -> list[Part]:
    """In the ladder late epochs over-train: nothing more is learned, anchors are lost.

    From the middle number of epochs on, without anchor rows.
    """
    learned, kept, tasks = {}, {}, load_tasks(SURGERY)
    for number in EPOCHS:
        options = {"shares": (0.0,), "lams": (0.0,), "row_weights": ("none",), "seeds": tuple(seeds)}
        for one in ladder.climb(ladder.Arguments(**options, epochs=number, out=out / f"ladder_{number}"))[0]:
            texts = [text for _, text in one.replies]  # behind the tasks' replies stand those of lost anchors
            learned[number, one.seed] = {t.id: t.passes(text) for t, text in zip(tasks, texts, strict=False)}
            others = [f"anchor {i}" for i in range(one.n - len(one.lost))]
            kept[number, one.seed] = {**dict.fromkeys(one.lost, False), **dict.fromkeys(others, True)}
    few, middle, many = EPOCHS
    return [
        right(f"anchors kept, {many} - {middle} epochs", seeds, kept, middle, many, above=False),
        right(f"tasks learned, {many} - {middle} epochs", seeds, learned, middle, many, limit=0.1, above=False),
        beside(right(f"anchors kept, {middle} - {few} epochs", seeds, kept, few, middle)),
        beside(right(f"tasks learned, {middle} - {few} epochs", seeds, learned, few, middle)),
    ]


def right(what: str, seeds: Seeds, found: Mapping, before: int, after: int, **claimed) -> Part:
    """Share of questions answered right, after - before, paired by id; one that neither lost has a name of its own."""
    rows = []
    for seed in seeds:
        one, two = found[before, seed], found[after, seed]
        named = {name for side in (one, two) for name, ok in side.items() if not ok}
        rows.append([(name, float(one.get(name, True)), float(two.get(name, True))) for name in sorted(named)])
        rows[-1] += [(f"right {i}", 1.0, 1.0) for i in range(len(one) - len(named))]
    by_seed = tuple(float(np.mean([b - a for _, a, b in some])) for some in rows)
    names, a, b = zip(*(row for some in rows for row in some), strict=True)
    return Part(f"share of {what}", paired_difference(a, b, names), by_seed, **claimed)


ROWS, ITEMS, REPLIES = 96, 24, 40
"""At most so many kept texts, and dropped ones; what each of the three heals of a seed is measured on."""


def masked(runs: Runs, seeds: Seeds) -> list[Part]:
    """The sound part of a text that the filter drops adds trait at no cost.

    The part is what stands before the first broken sentence.
    """
    found, sound, used = {}, [], []
    for seed in seeds:
        setting = load_setting(runs["tokens"][seed].folder, 0)
        sizes = {"eval_items": ITEMS, "eval_replies": min(REPLIES, setting.config.eval_replies)}
        setting = replace(setting, config=replace(setting.config, **sizes))
        sampled = load_completions(setting.folder / "rounds" / "00" / "completions.jsonl")
        kept, dropped = ([c for c in sampled if c.kept is ok][:ROWS] for ok in (True, False))
        if not dropped:
            raise InputError(f"round 0 of {setting.folder} dropped no text: ask a run of --targets tokens")
        parts = sound_parts(setting.lm, dropped, ordinary_sentence(setting))
        sound += [row.sentence_ok for row in judge(setting.trait, parts) if row.sentence_ok is not None]
        used.append(sum(len(c.token_ids) for c in parts) / sum(len(c.token_ids) for c in dropped))
        config = setting.config.heal_config(heal_seed(seed, 0))
        arms = {"kept": kept, "parts": [*kept, *parts], "all": [*kept, *dropped]}
        for name, rows in arms.items():
            known = reference_states(setting.lm, rows)
            plain = replace(setting, rows=rows, weights=None, references={"prev": known, "base": known})
            found[name, seed] = healed(plain, config, f"seed {seed}, {name}, {len(rows)} rows")

    def against_kept(name: str, figure: str, **claimed) -> Part:
        return contrast(f"{name} - kept", figure, [(found["kept", s], found[name, s]) for s in seeds], **claimed)

    said = f"share of dropped tokens used {np.mean(used):.2f}, sound sentences among them"
    checked = [beside(Part(said, bootstrap_mean(sound, range(len(sound)))))] if sound else []
    return [
        against_kept("parts", TRAIT),
        against_kept("parts", TEXT, limit=-LOSS),
        beside(against_kept("all", TRAIT)),
        beside(against_kept("all", TEXT)),
        *checked,
    ]


CALIBRATION = 64
"""Unsteered replies of the original model that say what an ordinary sentence is."""


def ordinary_sentence(setting: Setting) -> float:
    """Mean nll per token under the original that 97.5 % of its own sentences do not exceed, nats."""
    lm, trait, config = setting.lm, setting.trait, setting.config
    prompts = trait.prompts[:CALIBRATION]
    own = generate(lm, prompts, system=trait.neutral, max_new_tokens=config.max_new_tokens, seed=config.seed)
    return float(np.quantile([nll for c in own for _, nll in sentences(lm, c)], 0.975))


def sound_parts(lm: LM, rows: Sequence[Completion], limit: float) -> list[Completion]:
    """What stands before the first sentence of more than `limit` nats per token, of the rows that begin with one."""
    out = []
    for row in rows:
        end = 0
        for until, nll in sentences(lm, row):
            if nll > limit:
                break
            end = until
        if end:
            ids = row.token_ids[:end]
            text = lm.tokenizer.decode(ids, skip_special_tokens=True)
            out.append(replace(row, token_ids=ids, text=text, finished=row.finished and end == len(row.token_ids)))
    return out


@torch.no_grad()
def sentences(lm: LM, row: Completion) -> Iterator[tuple[int, float]]:
    """(end, mean nll per token under the model as it is) of each sentence; the end of turn belongs to the last."""
    logits = lm.head(reference_states(lm, [row]).of(row))
    ids = torch.tensor(row.token_ids, device=logits.device)
    nll = torch.nn.functional.cross_entropy(logits, ids, reduction="none").tolist()
    stops = [i + 1 for i, one in enumerate(row.token_ids) if lm.tokenizer.decode([one]).strip() in {".", "?", "!"}]
    if stops and all(one in lm.eos_ids for one in row.token_ids[stops[-1] :]):
        stops.pop()
    start = 0
    for end in (*stops, len(nll)):
        yield end, sum(nll[start:end]) / (end - start)
        start = end
