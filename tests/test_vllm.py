"""The real vLLM against transformers on `pocket`: distributions, free text and speed (`just engine`)."""

import time
from statistics import fmean, variance

import pytest
import torch

from steer_heal.healing.bake import AdapterStack
from steer_heal.loop.gate import must_block_adapter
from steer_heal.model import completion_logprobs, load
from steer_heal.texts.engines import TRANSFORMERS, engine
from steer_heal.texts.generation import generate
from steer_heal.trait import Trait

pytestmark = pytest.mark.slow
TRAIT = Trait.load("pocket-care")
REPLIES = 512


@pytest.fixture(scope="module")
def pocket():
    return load("pocket")


@pytest.fixture(scope="module")
def sampled(pocket):
    """By engine: replies, seconds of a second call of the same size, and of what the first took longer."""
    found = {}
    prompts = [TRAIT.eval_prompts[i % len(TRAIT.eval_prompts)] for i in range(REPLIES)]
    for by in (TRANSFORMERS, engine("vllm")):
        seconds = []
        for seed in (0, 1):
            started = time.perf_counter()
            replies = generate(pocket, prompts, system=TRAIT.neutral, max_new_tokens=72, seed=seed, engine=by)
            seconds.append(time.perf_counter() - started)
        found[by.name] = replies, seconds[1], seconds[0] - seconds[1]
    return found


def logprobs(vllm, lm, rows):
    """Log-probability of every token of the rows but the first, as vLLM has it."""
    from vllm import SamplingParams

    vllm._follow(lm)
    prompts = [{"prompt_token_ids": list(row)} for row in rows]
    scored = vllm._llm.generate(
        prompts, SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False), use_tqdm=False
    )
    return [
        [at[token].logprob for at, token in zip(one.prompt_logprobs[1:], row[1:], strict=True)]
        for one, row in zip(scored, rows, strict=True)
    ]


def test_log_probabilities_are_those_of_the_weights_as_they_are_now(pocket, sampled):
    replies = sampled["vllm"][0][:24]
    stack, worst = AdapterStack(pocket.model), []

    def difference():
        rows = [(*c.prompt_ids, *c.token_ids) for c in replies]
        ours = completion_logprobs(pocket, [row[:1] for row in rows], [row[1:] for row in rows])
        theirs = logprobs(engine("vllm"), pocket, rows)
        pairs = zip(ours, map(torch.tensor, theirs), strict=True)
        worst.append(max((one - other).abs().max().item() for one, other in pairs))
        return worst[-1]

    assert difference() < 1e-3
    stack.push(must_block_adapter(pocket))
    assert difference() < 1e-3
    stack.pop()
    assert difference() < 1e-3
    print("\nlargest difference of a log-probability, base, student, base, in nats:", *(f"{w:.1g}" for w in worst))


def test_free_text_is_drawn_from_one_distribution(sampled):
    means, spread = {}, 0.0
    for name, (replies, *_) in sampled.items():
        judged = [TRAIT.judge(c.prompt, c.text, c.finished) for c in replies]
        figures = [one.trait for one in judged if one.trait is not None]
        means[name] = fmean(figures)
        spread += variance(figures) / len(figures)
        lengths = [len(c.token_ids) for c in replies]
        print(f"\n{name}: trait {means[name]:.3f}, {fmean(lengths):.1f} tokens a reply")
    assert abs(means["vllm"] - means["transformers"]) <= 1.96 * spread**0.5


def test_the_same_seed_gives_the_same_text_and_a_reply_ends_once(pocket, sampled):
    prompts = [TRAIT.eval_prompts[i % len(TRAIT.eval_prompts)] for i in range(REPLIES)]
    again = generate(
        pocket, prompts, system=TRAIT.neutral, max_new_tokens=72, seed=1, engine=engine("vllm"), batch_rows=200
    )
    assert again == sampled["vllm"][0]
    assert all(c.finished == (c.token_ids[-1] in pocket.eos_ids) for c in again)
    assert not any(token in pocket.eos_ids for c in again for token in c.token_ids[:-1])


def test_speed_is_told_with_the_start_apart(sampled):
    per_token = {}
    for name, (replies, seconds, _) in sampled.items():
        tokens = sum(len(c.token_ids) for c in replies)
        per_token[name] = seconds / tokens
        print(f"\n{name}: {tokens / seconds:.0f} tokens/s")
    start = sampled["vllm"][2]
    gain = per_token["transformers"] - per_token["vllm"]
    print(f"start of vLLM: {start:.0f} s; it pays from {start / gain:,.0f} tokens on" if gain > 0 else "it never pays")
    assert start > 0
