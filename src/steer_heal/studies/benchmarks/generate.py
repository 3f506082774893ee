"""`bench.py generate`: steered batched sampling against plain `generate` of transformers, batched and one at a time.

Every reply has exactly the length asked for, or with --mean-tokens ends by chance. All arms sample alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch

from steer_heal.errors import InputError
from steer_heal.model import LM, text_config
from steer_heal.steering import extract
from steer_heal.studies.benchmarks.measuring import Race, load_at_end, spread, surroundings
from steer_heal.studies.benchmarks.models import ModelOptions, sentences
from steer_heal.texts.engines import engine
from steer_heal.texts.generation import Request, generate_requests

ONE_AT_A_TIME = {"cpu": 3.6, "cuda": 20.0}
"""Least gain over one completion at a time."""
PLAIN = 0.97
"""Least share of the tokens per second of plain batched sampling."""
BANDWIDTH = 0.5
"""Least share of the memory-bandwidth limit on a GPU, compiled."""
UNEQUAL = 1.4
"""The same where replies end by chance: rows that have ended leave the batch."""


@dataclass(frozen=True)
class GenerateBench(ModelOptions):
    """Tokens per second: steered batched sampling, plain batched sampling, plain sampling of one reply at a time."""

    rows: int = 48
    """Completions in the batch."""
    tokens: int = 64
    """Tokens of every completion."""
    mean_tokens: int | None = None
    """About this mean length instead, by chance, cut at --tokens: one token id in as many ends a reply."""
    single_rows: int | None = None
    """Completions sampled one at a time; default all of them, 4 with --preset 4b."""
    engines: tuple[str, ...] = ()
    """Further engines: compiled samples the steered batch, vllm a plain one."""
    repeats: int = 3
    """Turns of every arm."""

    def model(self) -> LM:
        """Without an end token, or with many. Raises InputError for an impossible mean."""
        lm = self.load(endless=True)
        if self.mean_tokens is not None:
            if not 1 <= self.mean_tokens <= self.tokens:
                raise InputError(f"mean_tokens {self.mean_tokens}: give 1 to {self.tokens} (--tokens)")
            vocabulary = text_config(lm.base).vocab_size
            lm.base.generation_config.eos_token_id = list(range(3, vocabulary, self.mean_tokens))
        return lm

    def singles(self) -> int:
        """Completions of the arm that samples one at a time. Raises InputError for an impossible number."""
        count = self.single_rows or (4 if self.preset == "4b" else self.rows)
        if not 1 <= count <= self.rows:
            raise InputError(f"single_rows {count}: give 1 to {self.rows} (--rows)")
        return count


def generate_arms(lm: LM, sizes: GenerateBench) -> dict[str, Callable[[], int]]:
    """The arms; each returns the number of tokens it sampled."""
    prompts = sentences(sizes.rows, 12, 18)
    ids = [lm.chat_ids(prompt) for prompt in prompts]
    vector = extract(lm, "you help people.", "you obey rules.", sentences(8, 6, 9, seed=1))
    # A dose that is felt ends replies elsewhere: where they may end, all arms are to sample from one distribution.
    doses = (0.5, 1.0) if sizes.mean_tokens is None else (1e-6, 2e-6)
    requests = [Request(prompt, doses[i % 2], i) for i, prompt in enumerate(prompts)]

    def steered() -> int:
        done = generate_requests(lm, requests, vector, max_new_tokens=sizes.tokens, batch_rows=sizes.rows)
        return sum(len(c.token_ids) for c in done)

    def plain() -> int:
        return _sampled(lm, ids, sizes.tokens)

    def single() -> int:
        return sum(_sampled(lm, [row], sizes.tokens) for row in ids[: sizes.singles()])

    def by(name: str) -> int:
        sampler = engine(name)
        asked = requests if sampler.steers else [replace(r, dose=0.0) for r in requests]
        done = generate_requests(lm, asked, vector, max_new_tokens=sizes.tokens, batch_rows=sizes.rows, engine=sampler)
        return sum(len(c.token_ids) for c in done)

    arms = {"steered": steered, "plain": plain, "one at a time": single}
    return arms | {name: partial(by, name) for name in sizes.engines}


@torch.no_grad()
def _sampled(lm: LM, ids: list[tuple[int, ...]], tokens: int, **options) -> int:
    """Tokens up to the ends that plain transformers sampled after these prompts, as one left-padded batch."""
    batch = lm.pad_left(ids)
    ends = sorted(lm.eos_ids)
    options |= {"max_new_tokens": tokens, "pad_token_id": lm.pad_id, "eos_token_id": ends or None}
    torch.manual_seed(0)  # the same ends at every turn
    new = lm.model.generate(**batch, do_sample=True, **options)[:, batch["input_ids"].shape[1] :].cpu()
    ended = torch.isin(new, torch.tensor(ends, dtype=new.dtype))
    return int((ended.cumsum(1) - ended.long() == 0).sum())  # up to and with the first end


def bench_generate(sizes: GenerateBench) -> str:
    """Tokens per second by arm, their ratios, and on a GPU the share of the memory-bandwidth limit."""
    lm = sizes.model()
    arms = generate_arms(lm, sizes)
    counts = {name: arm() for name, arm in arms.items()}  # warm-up
    wanted = {name: (sizes.singles() if name == "one at a time" else sizes.rows) * sizes.tokens for name in arms}
    if sizes.mean_tokens is None and counts != wanted:
        raise RuntimeError(f"the arms sampled {counts} tokens instead of {wanted}: their rates cannot be compared")
    lines = [surroundings(sizes)]
    race = Race.run(arms, sizes.repeats).rates(counts)
    gain, share = ONE_AT_A_TIME[lm.device.type], PLAIN if sizes.mean_tokens is None else UNEQUAL
    lines += [f"{name}: {spread(rate, '.0f')} tokens/s" for name, rate in race.wall.items()]
    lines += race.against("steered / plain batched, tokens/s", "steered", "plain", share, at_most=False)
    what = "steered batched / plain one at a time, tokens/s"
    lines += race.against(what, "steered", "one at a time", gain, at_most=False)
    lines.append(f"plain batched / plain one at a time: {race.ratio('plain', 'one at a time')}")
    lines += [f"engine {name} / steered: {race.ratio(name, 'steered')}" for name in sizes.engines]
    if lm.device.type == "cuda":
        limit = bandwidth_limit(lm, sizes, bandwidth(lm.device))
        batched = {name: median(rate) / limit for name, rate in race.wall.items() if name != "one at a time"}
        shares = ", ".join(f"{name} {share:.0%}" for name, share in batched.items())
        lines.append(f"memory-bandwidth limit of decoding: {limit:.0f} tokens/s; share reached: {shares}")
        if (share := batched.get("compiled")) is not None:
            reached = "reached" if share >= BANDWIDTH else "MISSED"
            lines.append(f"compiled, steered / that limit: {share:.2f}; target at least {BANDWIDTH}: {reached}")
    return "\n".join([*lines, load_at_end()])


def bandwidth(device: torch.device, gib: float = 1.0) -> float:
    """Bytes per second that the GPU's memory moves, read and written, by copying a large tensor; best of 5."""
    source = torch.empty(int(gib * 2**30), dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), 0.0
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        best = max(best, 2 * source.numel() / (start.elapsed_time(end) / 1000))
    return best


def bandwidth_limit(lm: LM, sizes: GenerateBench, bytes_per_second: float) -> float:
    """Tokens per second at which decoding reads weights and key-value cache once per step and does nothing else.

    The cache counts at its mean length; an input embedding that is not the head counts as nothing.
    """
    config, item = text_config(lm.base), torch.finfo(lm.dtype).bits // 8
    head = lm.base.get_output_embeddings().weight
    embedding = lm.base.get_input_embeddings().weight
    weights = sum(p.numel() for p in lm.base.parameters() if p is not embedding or p is head)
    prompt = max(len(lm.chat_ids(p)) for p in sentences(sizes.rows, 12, 18))
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * sizes.rows
    per_step = item * (weights + cached * (prompt + sizes.tokens / 2))
    return sizes.rows * bytes_per_second / per_step
