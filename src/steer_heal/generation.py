"""Batched sampling, steered or not: many prompts x many doses x samples, a dose per row, seeds per batch.

Knows nothing of filters and rounds.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from steer_heal.completion import Completion
from steer_heal.errors import InputError
from steer_heal.lm import LM, text_config
from steer_heal.steering import SteeringVector


@dataclass(frozen=True)
class Request:
    """One reply to sample: the prompt, the dose to sample it at, and its place in the caller's list."""

    prompt: str
    dose: float
    row: int


@dataclass(frozen=True)
class Progress:
    """How far a call of `generate` has come."""

    done: int
    total: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any labels (run seed, round, attempt, batch ...); equal labels give equal seeds."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def generate(
    lm: LM,
    prompts: Sequence[str],
    vector: SteeringVector | None = None,
    doses: Sequence[float] = (0.0,),
    samples: int = 1,
    system: str | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    greedy: bool = False,
    batch_rows: int | None = None,
    origin: str = "steered",
    on_batch: Callable[[list[Completion], Progress], None] | None = None,
) -> list[Completion]:
    """Sample `samples` replies to every prompt at every dose.

    Returns them ordered by prompt, then dose, then sample. See `generate_requests` for sampling and errors.
    """
    requests = [Request(p, float(d), i) for i, p in enumerate(prompts) for d in doses for _ in range(samples)]
    return generate_requests(
        lm, requests, vector, system, max_new_tokens, seed, greedy, batch_rows, origin=origin, on_batch=on_batch
    )


@torch.no_grad()
def generate_requests(
    lm: LM,
    requests: Sequence[Request],
    vector: SteeringVector | None = None,
    system: str | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    greedy: bool = False,
    batch_rows: int | None = None,
    origin: str = "steered",
    on_batch: Callable[[list[Completion], Progress], None] | None = None,
) -> list[Completion]:
    """Sample one reply per request, in left-padded batches sorted by length, with a dose per row.

    Temperature, top-p and top-k are the model's own (its generation config); a repetition penalty is never applied,
    it would hide over-steering from the filter. The same arguments give the same replies on the same machine; a batch
    halved for lack of memory changes the replies after it.

    Args:
        vector: direction to steer with, scope `all`; needed when a dose is not 0.
        system: system prompt; a neutral one, so that the vector carries the trait.
        max_new_tokens: length at which a reply is cut, in tokens.
        seed: every batch draws from its own seed derived from this one and the batch's number.
        greedy: take the most probable token instead of sampling.
        batch_rows: rows per batch; None picks it from the memory that is free.
        on_batch: called after each batch with its completions and the progress, so that an interruption loses little.

    Raises:
        InputError: no prompts, a dose without a vector, a prompt that leaves no room for `max_new_tokens`.
    """
    if not requests:
        raise InputError("no prompts were given: pass at least one")
    if vector is None and any(r.dose for r in requests):
        raise InputError("a dose other than 0 needs a steering vector")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
    ids = {prompt: lm.chat_ids(prompt, system) for prompt in dict.fromkeys(r.prompt for r in requests)}
    longest = max(map(len, ids.values()))
    if longest + max_new_tokens > lm.context_length:
        raise InputError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the context of {lm.name} "
            f"({lm.context_length}): shorten the prompts or lower --max-new-tokens"
        )
    order = sorted(range(len(requests)), key=lambda i: (len(ids[requests[i].prompt]), i))
    rows = batch_rows or auto_batch_rows(lm, longest + max_new_tokens)
    out: list[Completion | None] = [None] * len(requests)
    started, tokens, start, number = time.perf_counter(), 0, 0, 0
    while start < len(order):
        batch = [requests[i] for i in order[start : start + rows]]
        batch_seed = derive_seed("batch", seed, number)
        try:
            sampled = _sample(lm, [ids[r.prompt] for r in batch], [r.dose for r in batch], vector, max_new_tokens,
                              batch_seed, greedy)  # fmt: skip
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            rows = len(batch) // 2
            torch.cuda.empty_cache()
            continue
        for i, r, reply in zip(order[start:], batch, sampled, strict=False):
            out[i] = Completion(
                prompt=r.prompt, system=system, prompt_ids=ids[r.prompt], token_ids=reply, text=lm.decode(reply),
                finished=reply[-1] in lm.eos_ids, dose=r.dose, seed=batch_seed, row=r.row, origin=origin,
            )  # fmt: skip
        tokens += sum(map(len, sampled))
        start, number = start + len(batch), number + 1
        if on_batch:
            done = [out[i] for i in order[start - len(batch) : start]]
            on_batch(done, Progress(start, len(requests), tokens, time.perf_counter() - started))
    return out


def _sample(lm, prompt_ids, doses, vector, max_new_tokens, seed, greedy) -> list[tuple[int, ...]]:
    steered = vector is not None and any(doses)
    steering = vector.applied(lm.model, doses) if steered else contextlib.nullcontext()
    batch = lm.pad_left(prompt_ids)
    devices = [lm.device] if lm.device.type == "cuda" else []
    with steering, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        ids = lm.model.generate(
            **batch,
            do_sample=not greedy,
            max_new_tokens=max_new_tokens,
            repetition_penalty=1.0,
            pad_token_id=lm.pad_id,
            eos_token_id=sorted(lm.eos_ids) or None,
            **({"temperature": None, "top_p": None, "top_k": None} if greedy else {}),
        )
    new = ids[:, batch["input_ids"].shape[1] :].tolist()
    return [_until_end(row, lm.eos_ids) for row in new]


def _until_end(row: list[int], eos_ids: frozenset[int]) -> tuple[int, ...]:
    """The reply up to and including its first end token; what follows is padding."""
    end = next((i + 1 for i, token in enumerate(row) if token in eos_ids), len(row))
    return tuple(row[:end])


def auto_batch_rows(lm: LM, tokens_per_row: int, limit: int = 128) -> int:
    """Rows whose key-value cache and logits fit half of the free memory, at most `limit`."""
    if lm.device.type != "cuda":
        return limit
    config = text_config(lm.base)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    item = torch.finfo(lm.dtype).bits // 8
    per_row = 2 * config.num_hidden_layers * heads * head_dim * item * tokens_per_row + 8 * config.vocab_size
    free, _ = torch.cuda.mem_get_info(lm.device)
    return max(1, min(limit, int(free * 0.5 / per_row)))
