"""Batched sampling, steered or not: many prompts x many doses x samples, a dose and a seed per row.

Knows nothing of filters and rounds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from steer_heal.arguments import checked
from steer_heal.errors import InputError
from steer_heal.ledger.units import FORGET, PLAIN, Keep
from steer_heal.model import GivenLM, as_lm
from steer_heal.processes import count, rank, spread, told
from steer_heal.steering import SteeringVector
from steer_heal.texts.completion import COMPLETIONS, Completion
from steer_heal.texts.engines import TRANSFORMERS, Cut, Engine, Row
from steer_heal.texts.sampling import MODELS_OWN, Sampling


@dataclass(frozen=True)
class Request:
    """One reply to sample: the prompt, the dose to sample it at, and its place in the caller's list."""

    prompt: str
    dose: float
    row: int


@dataclass(frozen=True)
class Progress:
    """How far a call of `generate` has come: replies that have ended and tokens, those of the running batch as well.

    `rows` is the number of replies in a batch as planned. Tokens are those sampled now, not what is read back.
    """

    done: int
    total: int
    rows: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


OnBatch = Callable[[list[Completion], Progress], None]
"""Hears of the completions of each batch, and about once a second in between of none, and how far the call is."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during sampling; what was sampled is not lost.

    Attributes:
        finished: the completions of all finished batches, in the caller's order.
        ended: those replies of the interrupted batch that had already ended. Short ones are over-represented among
            them: fit to look at, not to train on or to measure with.
    """

    def __init__(self, finished: list[Completion], ended: list[Completion]):
        super().__init__(f"interrupted; {len(finished)} completions of finished batches are kept")
        self.finished, self.ended = finished, ended


class MemoryShortError(InputError):
    """Not even one reply fits the memory; `finished` holds the completions of all finished batches."""

    def __init__(self, message: str, finished: list[Completion]):
        super().__init__(message)
        self.finished = finished


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any labels (run seed, round, attempt, batch ...); equal labels give equal seeds."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


@checked
def generate(
    lm: GivenLM,
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
    on_batch: OnBatch | None = None,
    sampling: Sampling = MODELS_OWN,
    keep: Keep = FORGET,
    engine: Engine = TRANSFORMERS,
) -> list[Completion]:
    """Sample `samples` replies to every prompt at every dose.

    Returns them ordered by prompt, then dose, then sample. See `generate_requests` for sampling and errors.
    """
    lm = as_lm(lm)
    if samples < 1:
        raise InputError(f"samples {samples}: give at least 1")
    if not len(doses):
        raise InputError("no doses were given: pass at least one, 0 for the plain model")
    requests = [Request(p, float(d), i) for i, p in enumerate(prompts) for d in doses for _ in range(samples)]
    return generate_requests(
        lm, requests, vector, system, max_new_tokens, seed, greedy, batch_rows, origin, on_batch, sampling, keep, engine
    )


@checked
@torch.no_grad()
def generate_requests(
    lm: GivenLM,
    requests: Sequence[Request],
    vector: SteeringVector | None = None,
    system: str | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    greedy: bool = False,
    batch_rows: int | None = None,
    origin: str = "steered",
    on_batch: OnBatch | None = None,
    sampling: Sampling = MODELS_OWN,
    keep: Keep = FORGET,
    engine: Engine = TRANSFORMERS,
) -> list[Completion]:
    """Sample one reply per request, in left-padded batches sorted by length, with a dose and a seed per row.

    A row that has ended leaves its batch. A repetition penalty is never applied, it would hide over-steering from the
    filter. The same arguments give the same replies on the same machine; which rows share a batch changes the last
    bits of the logits, so a draw only where it falls within rounding of the edge between two tokens.

    Args:
        vector: direction to steer with, scope `all`; needed when a dose is not 0.
        system: system prompt; a neutral one, so that the vector carries the trait.
        max_new_tokens: length at which a reply is cut, in tokens.
        seed: every row draws from its own seed, derived from this one and the request's number.
        greedy: take the most probable token instead of sampling.
        batch_rows: rows per batch and process; None picks it from the memory that is free.
        on_batch: called after each batch with its completions and the progress, and about once a second in between
            with no completions.
        sampling: temperature, top-p and top-k, where they are not to be the model's own.
        keep: where the plan of the batches and each finished batch are committed and looked up.
        engine: what samples; transformers where a request has a dose and the engine cannot steer. Hooks that a
            caller put on the model act in this process alone, so not under vllm.

    Raises:
        InputError: no prompts, a dose without a vector, a prompt that leaves no room for `max_new_tokens`.
        MemoryShortError: one reply alone does not fit the memory; it carries what is finished.
        Interrupted: Ctrl-C; it carries what is finished.
    """
    lm = as_lm(lm)
    if not requests:
        raise InputError("no prompts were given: pass at least one")
    if vector is None and any(r.dose for r in requests):
        raise InputError("a dose other than 0 needs a steering vector")
    if batch_rows is not None and batch_rows < 1:
        raise InputError(f"batch_rows {batch_rows}: give at least 1, or None for what the memory takes")
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
    engine = engine if engine.steers or not any(r.dose for r in requests) else TRANSFORMERS
    # A batch is shared out: it has as many rows as fit all processes.
    fitting = partial(told, lambda: (batch_rows or engine.rows(lm, longest + max_new_tokens)) * count())
    rows = full = keep.once("rows", fitting, PLAIN)
    out: dict[int, Completion] = {}
    started, tokens, number, fresh = time.perf_counter(), 0, 0, -1

    def report(ended: int = 0, running: int = 0, done: Sequence[Completion] = ()) -> None:
        if on_batch:
            replies, seconds = len(out) + ended, time.perf_counter() - started
            on_batch(list(done), Progress(replies, len(requests), rows, tokens + running, seconds))

    def completion(i: int, reply: tuple[int, ...]) -> Completion:
        r = requests[i]
        ended = reply[-1] in lm.eos_ids
        return Completion(
            r.prompt, system, ids[r.prompt], reply, lm.decode(reply), ended, r.dose, row_seed(i), r.row, origin
        )

    def row_seed(i: int) -> int:
        return derive_seed("row", seed, i)

    def sampled(picked: Sequence[int]) -> list[Completion]:
        nonlocal fresh
        fresh = number
        asked = [Row(ids[requests[i].prompt], requests[i].dose, None if greedy else row_seed(i)) for i in picked]
        replies = engine.sample(lm, asked, vector, max_new_tokens, sampling, report)
        return [completion(i, reply) for i, reply in zip(picked, replies, strict=True)]

    while len(out) < len(order):
        picked = order[len(out) : len(out) + rows]
        if rows < full:
            torch.cuda.empty_cache()  # here, not where memory ran out: the exception still held what was allocated
        try:
            done = keep.once(f"batch-{number:04d}", partial(spread, picked, sampled), COMPLETIONS)
            if len(done) < len(picked):  # committed after memory ran out: the plan goes on as it did then
                rows = len(done)
            out |= zip(picked[: len(done)], done, strict=True)
            tokens += sum(len(c.token_ids) for c in done) if fresh == number else 0
            number += 1
            report(done=done)
        except torch.OutOfMemoryError as problem:
            if len(picked) == 1:
                long = len(ids[requests[picked[0]].prompt])
                raise MemoryShortError(
                    f"one reply of {max_new_tokens} tokens to a prompt of {long} does not fit the memory: "
                    "lower max_new_tokens or use a smaller model or dtype",
                    [out[i] for i in sorted(out)],
                ) from problem
            rows = len(picked) // 2
            keep.halved(rows)
        except KeyboardInterrupt as stop:
            mine = picked[rank() % count() :: count()]
            replies = zip(mine, stop.replies if isinstance(stop, Cut) else (), strict=False)
            ended = [completion(i, reply) for i, reply in replies if reply and reply[-1] in lm.eos_ids]
            raise Interrupted([out[i] for i in sorted(out)], ended) from stop
    return [out[i] for i in range(len(requests))]
