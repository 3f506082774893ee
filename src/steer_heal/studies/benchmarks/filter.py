"""`bench.py filter`: scoring a batch for the filter against scoring its completions one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from steer_heal.model import LM, text_config
from steer_heal.studies.benchmarks.measuring import Arm, Race, load_at_end, spread, surroundings
from steer_heal.studies.benchmarks.models import ModelOptions, random_rows, sentences
from steer_heal.texts.coherence import CoherenceFilter, text_figures
from steer_heal.texts.coherence.perplexity import nll_figures
from steer_heal.texts.completion import Completion

TARGET = 0.8
"""Largest share of the time of scoring one by one."""


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
    lines += race.against("scoring in batches / one by one", "batched", "one by one", TARGET, at_most=True)
    lines.append(f"  against the same scoring called one by one: {race.ratio('batched', 'batched, alone')}")
    lines.append(f"largest difference of an nll between the two: {worst:.1e} nats per token")
    return "\n".join([*lines, load_at_end()])
