"""Sampling: order, seeds, doses, ends, batches."""

import pytest
import torch

from steer_heal.completion import load_completions, save_completions
from steer_heal.errors import InputError
from steer_heal.generation import derive_seed, generate
from steer_heal.steering import extract

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
    assert len({c.seed for c in out}) == 2


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


@pytest.mark.parametrize(("options", "words"), [
    ({"prompts": []}, "no prompts"),
    ({"prompts": ["Hi"], "doses": (1.0,)}, "needs a steering vector"),
    ({"prompts": ["Hi"], "max_new_tokens": 0}, "at least 1"),
    ({"prompts": ["Hi"], "max_new_tokens": 5000}, "exceed the context"),
])  # fmt: skip
def test_impossible_requests_are_one_clear_error(tiny, options, words):
    with pytest.raises(InputError, match=words):
        generate(tiny, **options)
