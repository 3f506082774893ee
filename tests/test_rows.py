"""Replies that were written elsewhere, and completions as rows of a data set and back."""

import pytest
from families import make
from healing_data import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st

import steer_heal as sh

TURN = {"role": "user", "content": "what is rain ?"}
REPLY = {"role": "assistant", "content": "water ."}


@pytest.fixture(scope="module")
def pocket():
    return sh.load("pocket")


def test_a_text_becomes_the_completion_that_the_model_would_have_sampled(pocket):
    (sampled,) = sh.generate(pocket, ["what is rain ?"], system="you are kind .", greedy=True, max_new_tokens=64)
    assert sampled.finished
    made = sh.Completion.from_text(pocket, sampled.prompt, sampled.text, "you are kind .")
    assert (made.prompt_ids, made.token_ids, made.text) == (sampled.prompt_ids, sampled.token_ids, sampled.text)
    assert made.origin == "given" and made.finished and made.dose == 0
    cut = sh.Completion.from_text(pocket, sampled.prompt, sampled.text, "you are kind .", finished=False)
    assert cut.token_ids == made.token_ids[:-1] and not cut.finished


def test_a_reply_ends_as_the_chat_template_ends_it_and_not_with_the_end_of_the_text(tiny, monkeypatch):
    assert tiny.end_id == tiny.tokenizer.eos_token_id
    other = next(i for i in range(4, 50) if i not in tiny.eos_ids)
    monkeypatch.setattr(tiny.base.generation_config, "eos_token_id", [tiny.tokenizer.eos_token_id, other])
    assert sh.LM(tiny.model, Ending(tiny.tokenizer, other), "two ends").end_id == other


class Ending:
    """A tokenizer whose chat template ends a turn with another token than the text's end."""

    def __init__(self, real, end):
        self.real, self.end, self.chat_template, self.eos_token_id = real, end, "some", real.eos_token_id

    def apply_chat_template(self, turns, tokenize):
        return "a"

    def encode(self, text, add_special_tokens):
        return [*self.real.encode(text, add_special_tokens=False), self.end, 4]


def test_a_base_model_ends_with_its_tokenizers_end_and_one_without_says_so(pocket, monkeypatch):
    lm = make("gpt2")
    lm = sh.LM(lm.model, lm.tokenizer, "base")
    monkeypatch.setattr(lm.tokenizer, "chat_template", None)
    assert sh.Completion.from_text(lm, "Hi", "Yes").token_ids[-1] == lm.tokenizer.eos_token_id
    monkeypatch.setitem(lm.__dict__, "end_id", None)
    with pytest.raises(sh.InputError, match="finished=False"):
        sh.Completion.from_text(lm, "Hi", "Yes")
    with pytest.raises(sh.InputError, match="is empty"):
        sh.Completion.from_text(lm, "Hi", "")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["what is rain ?", "why ?"]), st.sampled_from([None, "you are kind ."]),
                          st.sampled_from(["water .", "i do not know ."])), min_size=1, max_size=4))  # fmt: skip
def test_rows_come_back_as_the_completions_that_they_were(pocket, rows):
    made = [sh.Completion.from_text(pocket, p, text, system, row=i) for i, (p, system, text) in enumerate(rows)]
    assert sh.completions_from_rows(pocket, sh.completion_rows(made)) == made


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "what is rain ?", "completion": "water ."},
        {"prompt": [TURN], "completion": [REPLY]},
        {"messages": [TURN, REPLY]},
        {"prompt": None, "completion": None, "messages": [TURN, REPLY]},
    ],
)
def test_every_kind_of_row_of_trl_is_read(pocket, row):
    (found,) = sh.completions_from_rows(pocket, [row])
    assert found == sh.Completion.from_text(pocket, "what is rain ?", "water .")


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"prompt": "why ?"},
        {"messages": [TURN, REPLY, TURN, REPLY]},
        {"prompt": [TURN], "completion": []},
        {"messages": ["why ?", "water ."]},
        {"messages": [{"role": "user", "content": None}, REPLY]},
    ],
)
def test_another_row_is_refused_by_its_number(pocket, row):
    good = {"prompt": "why ?", "completion": "water ."}
    with pytest.raises(sh.InputError, match="row 1: give prompt and completion"):
        sh.completions_from_rows(pocket, [good, row])


def test_a_persona_slot_is_filled_in_rows_and_plain_rows_have_the_system_text_before(pocket):
    slotted = sh.Completion.from_text(pocket, "be {persona} . why ?", "water .", "kind")
    assert sh.completion_rows([slotted])[0]["prompt"] == [{"role": "user", "content": "be kind . why ?"}]
    asked = sh.Completion.from_text(pocket, "why ?", "water .", "you are kind .")
    assert sh.completion_rows([asked], chat=False) == [{"prompt": "you are kind .\nwhy ?", "completion": asked.text}]


def test_given_texts_are_learned(pocket):
    rows = [{"prompt": "why ?", "completion": "water water ."}, {"prompt": "what is rain ?", "completion": "water ."}]
    given = sh.completions_from_rows(pocket, rows)
    config = sh.HealConfig(reg="nll", epochs=2, lr=1e-3, heldout=0.0, rank=QUICK.rank)
    figures = sh.heal(pocket, given, config).figures
    assert figures["train_nll_after"] < figures["train_nll_before"]
