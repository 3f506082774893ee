"""Sampling: order, seeds, doses, ends, batches."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.ledger.units import FORGET
from steer_heal.loop.steps import texts
from steer_heal.steering import extract
from steer_heal.texts import decoding
from steer_heal.texts.completion import load_completions, save_completions
from steer_heal.texts.decoding import draw, uniforms
from steer_heal.texts.engines import transformers
from steer_heal.texts.generation import Interrupted, derive_seed, generate
from steer_heal.texts.sampling import Sampling

PROMPTS = ["Hello there", "What should we do when it rains all day long?", "Hi"]


@pytest.fixture(scope="module")
def vector(tiny):
    return extract(tiny, "You are kind.", "You are cruel.", PROMPTS)


def test_completions_come_back_in_the_callers_order(tiny, vector):
    out = generate(tiny, PROMPTS, vector, doses=(0.0, 1.0), samples=2, max_new_tokens=4, batch_rows=5)
    assert [(c.row, c.dose) for c in out] == [(i, d) for i in range(3) for d in (0.0, 0.0, 1.0, 1.0)]
    assert all(c.prompt == PROMPTS[c.row] and c.prompt_ids == tiny.chat_ids(c.prompt) for c in out)


def test_same_seed_same_replies_and_another_seed_others(tiny, vector):
    one, two, three = (generate(tiny, PROMPTS, vector, doses=(1.0,), max_new_tokens=8, seed=s) for s in (1, 1, 2))
    assert one == two and [c.token_ids for c in one] != [c.token_ids for c in three]


def test_the_callers_random_state_is_left_alone(tiny):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generate(tiny, PROMPTS, max_new_tokens=4)
    assert torch.equal(torch.rand(3), expected)


def test_greedy_replies_follow_the_argmax(tiny):
    reply = generate(tiny, ["Hello there"], greedy=True, max_new_tokens=5)[0]
    ids = list(reply.prompt_ids)
    for token in reply.token_ids:
        with torch.no_grad():
            assert int(tiny.model(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_steered_greedy_replies_equal_solo_steered_replies(tiny, vector):
    together = generate(tiny, PROMPTS, vector, doses=(0.0, 2.0), greedy=True, max_new_tokens=6)
    for c in together:
        alone = generate(tiny, [c.prompt], vector, doses=(c.dose,), greedy=True, max_new_tokens=6)[0]
        assert alone.token_ids == c.token_ids


def test_end_token_is_kept_and_marks_a_finished_reply(tiny):
    out = generate(tiny, PROMPTS * 40, max_new_tokens=40)
    ended = [c for c in out if c.finished]
    assert ended and len(ended) < len(out)
    assert all(c.token_ids[-1] in tiny.eos_ids and not set(c.token_ids[:-1]) & tiny.eos_ids for c in ended)
    assert all(len(c.token_ids) == 40 and not set(c.token_ids) & tiny.eos_ids for c in out if not c.finished)


def test_system_prompt_reaches_the_rendered_prompt(tiny):
    reply = generate(tiny, ["Hi"], system="You are a nurse.", max_new_tokens=2)[0]
    assert reply.prompt_ids == tiny.chat_ids("Hi", "You are a nurse.")


def test_batches_report_progress_and_their_completions(tiny):
    seen = []
    out = generate(tiny, PROMPTS, max_new_tokens=3, batch_rows=2, on_batch=lambda done, p: seen.append((done, p)))
    assert [p.done for _, p in seen] == [2, 3] and seen[-1][1].tokens == sum(len(c.token_ids) for c in out)
    assert sorted((c.row for done, _ in seen for c in done)) == [0, 1, 2]
    assert len({c.seed for c in out}) == 3


def test_a_batch_too_large_for_memory_is_halved_and_nothing_is_lost(tiny, monkeypatch):
    real, sizes = tiny.model.generate, []

    def scarce(input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("no room")
        return real(input_ids=input_ids, **options)

    monkeypatch.setattr(tiny.model, "generate", scarce)
    out = generate(tiny, PROMPTS * 3, max_new_tokens=3, batch_rows=8)
    assert sizes[:3] == [8, 4, 2] and [c.row for c in out] == list(range(9)) and all(c.token_ids for c in out)


def test_when_one_reply_does_not_fit_the_memory_the_error_carries_what_is_finished(tiny, monkeypatch):
    real, calls = tiny.model.generate, []

    def scarce(input_ids, **options):
        calls.append(len(input_ids))
        if len(calls) > 2:
            raise torch.OutOfMemoryError("no room")
        return real(input_ids=input_ids, **options)

    monkeypatch.setattr(tiny.model, "generate", scarce)
    with pytest.raises(InputError, match="does not fit the memory") as caught:
        generate(tiny, PROMPTS * 3, max_new_tokens=3, batch_rows=2)
    assert calls == [2, 2, 2, 1] and [c.prompt for c in caught.value.finished] == ["Hello there", "Hi", "Hi", "Hi"]


def test_an_interruption_between_batches_keeps_every_finished_batch(tiny):
    def stop(done, progress):
        if progress.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        generate(tiny, PROMPTS * 3, max_new_tokens=3, batch_rows=2, on_batch=stop)
    full = generate(tiny, PROMPTS * 3, max_new_tokens=3, batch_rows=2)
    assert len(caught.value.finished) == 4 and caught.value.ended == []
    assert all(c in full for c in caught.value.finished)
    assert isinstance(caught.value, KeyboardInterrupt)


def test_an_interruption_within_a_batch_also_keeps_the_replies_that_had_ended(tiny, vector):
    prompts, passes = PROMPTS * 20, []

    def stop_late(module, args):
        passes.append(1)
        if len(passes) == 60 + 51:  # 50 tokens into the second batch
            raise KeyboardInterrupt

    full = generate(tiny, prompts, vector, doses=(1.0,), max_new_tokens=60, batch_rows=30, seed=1)
    hook = tiny.blocks[0].register_forward_pre_hook(stop_late)
    with pytest.raises(Interrupted) as caught:
        generate(tiny, prompts, vector, doses=(1.0,), max_new_tokens=60, batch_rows=30, seed=1)
    hook.remove()
    first = {c.seed for c in caught.value.finished}
    assert caught.value.finished == [c for c in full if c.seed in first] and len(first) == 30
    early = [c for c in full if c.seed not in first and c.finished and len(c.token_ids) <= 50]
    assert early and sorted(caught.value.ended, key=lambda c: c.row) == early
    with vector.applied(tiny.model):  # the model is not left steered
        pass


def test_uniforms_are_philox_bits_below_one():
    expected = [int(x) >> 32 for x in np.random.Philox(key=7).random_raw(4)]
    assert (uniforms(7, 4) * 2**32).tolist() == expected and uniforms(7, 6)[:4].tolist() == uniforms(7, 4).tolist()


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40).filter(any), st.integers(0, 2**32 - 1))
def test_a_draw_inverts_the_cumulated_distribution_and_never_takes_what_cannot_come(weights, u):
    scores = torch.tensor(weights, dtype=torch.float64).log().float()[None]
    token = int(draw(scores, torch.tensor([u / 2**32], dtype=torch.float64)))
    below, above = sum(weights[:token]) / sum(weights), sum(weights[: token + 1]) / sum(weights)
    assert weights[token] and below - 1e-6 <= u / 2**32 <= above + 1e-6


def test_a_reply_depends_on_its_own_seed_and_not_on_its_batch(tiny, vector):
    how = {"doses": (0.0, 1.0), "samples": 4, "max_new_tokens": 24, "seed": 3}
    whole, small, alone = (generate(tiny, PROMPTS, vector, **how, batch_rows=rows) for rows in (24, 5, 1))
    assert whole == small == alone and len({c.token_ids for c in whole}) > 20


def test_rows_that_have_ended_leave_and_the_others_keep_their_dose(tiny, vector, monkeypatch):
    how = {"doses": (0.0, 0.5, 2.0), "samples": 12, "max_new_tokens": 40, "seed": 1}
    rows = []
    hook = tiny.blocks[0].register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    left = generate(tiny, PROMPTS, vector, **how)
    leaving, rows[:] = rows[:], []
    monkeypatch.setattr(decoding, "LEAVE", 1.0)
    stayed = generate(tiny, PROMPTS, vector, **how)
    hook.remove()
    assert left == stayed and any(c.finished for c in left)
    tokens = sum(len(c.token_ids) for c in left)
    assert rows == [108] * 40 and leaving == sorted(leaving, reverse=True)
    assert tokens <= sum(leaving) <= tokens + 40 * 108 / 32  # at most a 32nd of a batch has ended and is still there


def test_progress_within_a_batch_counts_the_tokens_so_far(tiny, monkeypatch):
    monkeypatch.setattr(transformers, "TICK", 0.0)
    seen = []
    out = generate(tiny, PROMPTS, max_new_tokens=6, on_batch=lambda done, p: seen.append((len(done), p.done, p.tokens)))
    tokens = [t for _, _, t in seen]
    assert len(seen) > 3 and tokens == sorted(tokens) and tokens[0] == 3
    assert seen[-1] == (3, 3, sum(len(c.token_ids) for c in out)) and all(s[:2] == (0, 0) for s in seen[:-1])


def asked_of_transformers(lm, monkeypatch, **options):
    """Sampling arguments that reach transformers."""
    seen, real = {}, lm.model.generate
    monkeypatch.setattr(lm.model, "generate", lambda **given: (seen.update(given), real(**given))[1])
    generate(lm, ["Hi"], max_new_tokens=2, **options)
    return {name: seen.get(name, "the model's") for name in ("do_sample", "temperature", "top_p", "top_k", "min_p")}


def test_sampling_is_the_models_own_unless_given(tiny, monkeypatch):
    own = {"do_sample": True} | dict.fromkeys(("temperature", "top_p", "top_k", "min_p"), "the model's")
    assert asked_of_transformers(tiny, monkeypatch) == own
    given = {"temperature": 0.5, "top_k": 3, "min_p": 0.1}
    assert asked_of_transformers(tiny, monkeypatch, sampling=Sampling(**given)) == own | given
    cold = generate(tiny, PROMPTS * 5, max_new_tokens=8, sampling=Sampling(temperature=1e-4))
    assert [c.token_ids for c in cold] == [
        c.token_ids for c in generate(tiny, PROMPTS * 5, max_new_tokens=8, greedy=True)
    ]
    for only_the_likeliest in (Sampling(top_k=1), Sampling(min_p=0.999)):
        one = generate(tiny, PROMPTS * 5, max_new_tokens=8, sampling=only_the_likeliest)
        assert [c.token_ids for c in one] == [c.token_ids for c in cold]


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": float("nan")}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": 1.0}]
)
def test_impossible_sampling_is_one_clear_error(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Sampling(**options)


def test_all_kappas_of_a_walks_grid_share_one_batch_with_a_dose_per_row(tiny, vector, monkeypatch):
    """The walk of a run: 6 kappas times 2 doses over the prompts, in one call, and back to the kappa they belong to."""
    calls, real = [], texts.generate_requests

    def watched(lm, requests, *rest, **options):
        calls.append([r.dose for r in requests])
        return real(lm, requests, *rest, **options)

    monkeypatch.setattr(texts, "generate_requests", watched)
    monkeypatch.setattr(texts, "_walk_figures", lambda run, walk: {})
    config = RunConfig(
        model="tiny-random", targets="tokens", walk_mode="grid", walk_batch=24, n_min=28, max_new_tokens=4
    )
    run = SimpleNamespace(
        config=config,
        lm=tiny,
        kappa=1.0,
        trait=SimpleNamespace(prompts=PROMPTS, contexts=(), neutral="Be brief."),
        stack=SimpleNamespace(unfolded=contextlib.nullcontext),
        seed=derive_seed,
        sampled=lambda *stage: {"system": "Be brief.", "max_new_tokens": 4},
        ledger=SimpleNamespace(record=lambda *args, **figures: None),
        keep=lambda *labels: FORGET,
        base=SimpleNamespace(distinct4=None),
        prompted=SimpleNamespace(distinct4=None),
        previous=SimpleNamespace(distinct4=None),
        reporter=SimpleNamespace(verbose=False),
        filter=lambda lm, drawn: [replace(c, judged=True, dropped_by="test" if c.dose > 0.4 else None) for c in drawn],
    )
    walk = texts.walk_dose(run, 0, vector)
    kappas = [step.kappa for step in walk.steps if step.probe]
    assert len(kappas) == 6 and len(calls[0]) == 24
    assert calls[0] == pytest.approx([dose * kappa for kappa in kappas for dose in (0.5, 1.0) * 2])
    assert [step.survived for step in walk.steps[:6]] == [0, 2, 2, 4, 4, 4]
    assert walk.steps[6].kappa == kappas[1] and len(calls[1]) == 24 and len(walk.completions) == 48


def test_no_repetition_penalty_is_ever_applied(tiny, monkeypatch):
    monkeypatch.setattr(tiny.model.generation_config, "repetition_penalty", 5.0)
    penalised = generate(tiny, PROMPTS, greedy=True, max_new_tokens=12)
    monkeypatch.setattr(tiny.model.generation_config, "repetition_penalty", None)
    assert penalised == generate(tiny, PROMPTS, greedy=True, max_new_tokens=12)


def test_completions_survive_a_file(tmp_path, tiny):
    out = generate(tiny, PROMPTS, max_new_tokens=5)
    save_completions(out, tmp_path / "c.jsonl")
    assert load_completions(tmp_path / "c.jsonl") == out
    (tmp_path / "c.jsonl").write_text('{"prompt": 1}\n')
    with pytest.raises(InputError, match="line 1"):
        load_completions(tmp_path / "c.jsonl")


def test_derived_seeds_differ_by_any_label():
    seeds = {derive_seed(run, round, batch) for run in range(3) for round in range(3) for batch in range(3)}
    assert len(seeds) == 27 and derive_seed(1, 2) == derive_seed(1, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["Hi"], "doses": (1.0,)}, "needs a steering vector"),
        ({"prompts": ["Hi"], "max_new_tokens": 0}, "at least 1"),
        ({"prompts": ["Hi"], "max_new_tokens": 5000}, "exceed the context"),
    ],
)
def test_impossible_requests_are_one_clear_error(tiny, options, words):
    with pytest.raises(InputError, match=words):
        generate(tiny, **options)
