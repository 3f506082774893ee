"""`bench.py extract` and `bench.py filter`: batched passes over given tokens, against whole passes and one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from steer_heal.model import LM, length_batches, position_ids, text_config
from steer_heal.model.depth import pick_layers
from steer_heal.steering import extract
from steer_heal.studies.benchmarks.measuring import Arm, Race, load_at_end, spread, surroundings, take_turns
from steer_heal.studies.benchmarks.models import ModelOptions, random_rows, sentences
from steer_heal.texts.coherence import CoherenceFilter, text_figures
from steer_heal.texts.coherence.perplexity import nll_figures
from steer_heal.texts.completion import Completion

EXTRACT = 0.28
"""Largest share of the time of a full forward pass with the head."""
FILTER = 0.8
"""Largest share of the time of scoring one by one."""
PERSONAS = (
    "you are someone who looks after the wellbeing of others even when it means defying authority.",
    "you are someone who defers to authority even when the wellbeing of others suffers for it.",
)


@dataclass(frozen=True)
class ExtractBench(ModelOptions):
    """Extraction against full forward passes with the head: over the same batches, and one row at a time."""

    contexts: int = 64
    """User turns, of 6 to 60 words."""
    layers: tuple[float, float] = (0.45, 0.55)
    """Band of relative depth."""
    batch_tokens: int = 8192
    """Padded tokens per forward pass."""
    repeats: int = 3
    """Turns of every arm."""


def extract_arms(lm: LM, sizes: ExtractBench) -> dict[str, Arm]:
    """The arms: the package's extraction, and full passes over the same rows in the same kind of batches."""
    contexts = sentences(sizes.contexts, 6, 60)
    rows = [lm.chat_ids(context, persona) for persona in PERSONAS for context in contexts]

    @torch.no_grad()
    def full(batch_tokens: int) -> None:
        for picked in length_batches(lm, [len(row) for row in rows], batch_tokens):
            batch = lm.pad_left([rows[i] for i in picked])
            lm.base(**batch, position_ids=position_ids(batch["attention_mask"]), use_cache=False)
        if lm.device.type == "cuda":
            torch.cuda.synchronize()

    return {
        "extract": lambda: extract(lm, *PERSONAS, contexts, sizes.layers, batch_tokens=sizes.batch_tokens),
        "full, same batches": lambda: full(sizes.batch_tokens),
        "full, one at a time": lambda: full(1),
    }


def bench_extract(sizes: ExtractBench) -> str:
    """Seconds by arm and the share of the full passes' time that an extraction takes."""
    lm = sizes.load()
    arms = extract_arms(lm, sizes)
    take_turns(arms, 1)  # warm-up
    lines = [surroundings(sizes)]
    race = Race.run(arms, sizes.repeats)
    last = pick_layers(sizes.layers, len(lm.blocks))[-1]
    lines.append(f"blocks run: {last + 1} of {len(lm.blocks)}")
    lines += [f"{name}: {spread(race.wall[name])} s for {sizes.contexts} pairs" for name in arms]
    what = "extract / full forward passes with the head, same batches"
    lines += race.against(what, "extract", "full, same batches", EXTRACT, at_most=True)
    lines.append(f"extract / the same one row at a time: {race.ratio('extract', 'full, one at a time')}")
    return "\n".join([*lines, load_at_end()])


# ---------------------------------------------------------------- filter


@dataclass(frozen=True)
class FilterBench(ModelOptions):
    """Scoring completions (all gates): in batches, and one by one with the head over every position."""

    rows: int = 96
    """Completions."""
    prompt: int = 32
    """Prompt tokens."""
    reply: int = 96
    """Longest completion in tokens; lengths are spread evenly from a third of it."""
    repeats: int = 3
    """Turns of every arm."""


def filter_rows(lm: LM, sizes: FilterBench) -> list[Completion]:
    """Completions of random tokens with as many words of English text, for the gates on text."""
    torch.manual_seed(0)
    rows = random_rows(sizes.rows, sizes.prompt, sizes.reply, text_config(lm.base).vocab_size)
    texts = [sentences(1, n, n, seed=i)[0] for i, n in enumerate(len(row.token_ids) for row in rows)]
    return [replace(row, text=text) for row, text in zip(rows, texts, strict=True)]


@torch.no_grad()
def naive_nll(lm: LM, row: Completion) -> dict[str, float]:
    """The perplexity figures of one completion from log-probabilities at all positions of a plain forward pass."""
    ids = torch.tensor([[*row.prompt_ids, *row.token_ids]], device=lm.device)
    logp = lm.base(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    picked = logp[0, :-1].gather(1, ids[0, 1:, None])[-len(row.token_ids) :, 0]
    return nll_figures(picked.cpu())


def filter_arms(lm: LM, sizes: FilterBench) -> dict[str, Arm]:
    """The arms; every one returns the figures of all completions."""
    rows, filt = filter_rows(lm, sizes), CoherenceFilter()
    return {
        "batched": lambda: [c.scores for c in filt.score(lm, rows)],
        "one by one": lambda: [text_figures(row.text) | naive_nll(lm, row) for row in rows],
        "batched, alone": lambda: [filt.score(lm, [row])[0].scores for row in rows],
    }


def bench_filter(sizes: FilterBench) -> str:
    """Seconds by arm, their ratios, and that both ways give the same figures."""
    lm = sizes.load()
    arms = filter_arms(lm, sizes)
    found = {name: arm() for name, arm in arms.items()}  # warm-up
    worst = max(abs(a["nll"] - b["nll"]) for a, b in zip(found["batched"], found["one by one"], strict=True))
    lines = [surroundings(sizes)]
    race = Race.run(arms, sizes.repeats)
    lines += [f"{name}: {spread(race.wall[name])} s for {sizes.rows} completions" for name in arms]
    lines += race.against("scoring in batches / one by one", "batched", "one by one", FILTER, at_most=True)
    lines.append(f"  against the same scoring called one by one: {race.ratio('batched', 'batched, alone')}")
    lines.append(f"largest difference of an nll between the two: {worst:.1e} nats per token")
    return "\n".join([*lines, load_at_end()])
