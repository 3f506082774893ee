"""What an extraction runs and leaves out: common beginnings, blocks behind the band, contexts that do not fit."""

import numpy as np
import pytest
import torch
from families import FAMILIES, make

from steer_heal.errors import InputError
from steer_heal.steering import extract
from steer_heal.steering.extraction import _auc, _snug
from steer_heal.steering.recording import read_prefix, record

POS, NEG = "You are kind.", "You are cruel."
CONTEXTS = ["What is rain?", "Tell me about the nurse and the old basket in the shed.", "List three things.", "Hi"]


def run_tokens(lm, call):
    """Tokens that enter each block during a call."""
    seen = [0] * len(lm.blocks)

    def count(i):
        def hook(module, args, kwargs):
            seen[i] += (args[0] if args else kwargs["hidden_states"]).shape[:2].numel()

        return lm.blocks[i].register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [count(i) for i in range(len(lm.blocks))]
    call()
    for hook in hooks:
        hook.remove()
    return seen


def test_blocks_behind_the_band_and_the_head_never_run(tiny, monkeypatch):
    monkeypatch.setattr(tiny.model.lm_head, "forward", lambda *args: pytest.fail("the head ran"))
    seen = run_tokens(tiny, lambda: extract(tiny, POS, NEG, CONTEXTS, layers=[1]))
    assert seen[0] == seen[1] > 0 and seen[2:] == [0, 0]


def test_what_a_persona_s_prompts_begin_with_is_run_once(tiny):
    contexts = [f"What is {i} plus {i + 3}?" for i in range(40)]
    long = "You are someone who looks after the wellbeing of others even when it means defying authority."
    other = "You are someone who defers to authority even when the wellbeing of others suffers for it."
    tokens = sum(len(tiny.chat_ids(c, p)) for c in contexts for p in (long, other))
    assert run_tokens(tiny, lambda: extract(tiny, long, other, contexts))[0] < 0.5 * tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_states_behind_a_prefix_equal_those_of_whole_rows(family):
    lm = make(family)
    rows = [lm.chat_ids(c, POS) for c in CONTEXTS]
    spans = [(1, 0), (3, 1), (2, 1), (1, 0)]
    prefix = read_prefix(lm, rows, spans, 2)
    assert len(prefix) > 5 and all(row[: len(prefix)] == prefix.ids for row in rows)
    whole, short = record(lm, rows, spans, [0, 2]), record(lm, rows, spans, [0, 2], prefix)
    again = record(lm, rows[1:2], spans[1:2], [0, 2], prefix)  # the prefix is not written to
    for block in (0, 2):
        torch.testing.assert_close(short[block], whole[block], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(again[block], whole[block][1:2], atol=2e-6, rtol=1e-5)


def test_a_prefix_ends_before_every_span(tiny):
    rows = [(5, 6, 7, 8, 9), (5, 6, 7, 8, 9, 10)]
    assert read_prefix(tiny, rows, [(1, 0), (1, 0)], 1).ids == (5, 6, 7, 8)
    assert read_prefix(tiny, rows, [(4, 3), (1, 0)], 1).ids == (5,)
    assert len(read_prefix(tiny, [(5, 6), (6, 5)], [(1, 0), (1, 0)], 1)) == 0


def test_pads_are_never_read_whatever_they_hold(tiny, monkeypatch):
    plain = extract(tiny, POS, NEG, CONTEXTS)
    poisoned = tiny.model.get_input_embeddings().weight.detach().clone()
    poisoned[tiny.pad_id] = 1e6
    monkeypatch.setattr(tiny.model.get_input_embeddings().weight, "data", poisoned)
    assert torch.equal(extract(tiny, POS, NEG, CONTEXTS).flat(), plain.flat())


def test_bf16_states_are_averaged_in_float64():
    lm = make("llama")
    lm.model.to(torch.bfloat16)
    vec = extract(lm, POS, NEG, CONTEXTS, layers=[1], batch_tokens=1)
    spans = [(1, 0)] * len(CONTEXTS)
    states = [record(lm, [lm.chat_ids(c, p) for c in CONTEXTS], spans, [1])[1].numpy() for p in (POS, NEG)]
    assert states[0].dtype == np.float64
    np.testing.assert_allclose(vec.vectors[1].numpy(), (states[0] - states[1]).mean(0), atol=0.02)


def test_a_context_that_does_not_fit_is_an_error_that_names_it_or_is_skipped_and_counted(tiny):
    contexts = [*CONTEXTS[:2], "word " * 3000, *CONTEXTS[2:]]
    with pytest.raises(InputError, match=r"context 2: .*does not fit.*skip"):
        extract(tiny, POS, NEG, contexts)
    skipped = extract(tiny, POS, NEG, contexts, too_long="skip")
    assert skipped.provenance.n_skipped == 1 and skipped.provenance.n_contexts == 4
    assert torch.equal(skipped.flat(), extract(tiny, POS, NEG, CONTEXTS).flat())


def test_too_few_contexts_that_fit_are_one_clear_error(tiny):
    with pytest.raises(InputError, match="1 of 3 extraction contexts fit") as caught:
        extract(tiny, POS, NEG, ["Hi", "word " * 3000, "word " * 3001], too_long="skip")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="too_long"):
        extract(tiny, POS, NEG, CONTEXTS, too_long="truncate")


def test_a_reply_that_does_not_fit_or_is_empty_is_an_error(tiny):
    replies = ["Yes.", "No.", "word " * 3000, "Ask."]
    with pytest.raises(InputError, match=r"context 2.*with its reply"):
        extract(tiny, POS, NEG, CONTEXTS, position="reply", replies=replies)
    kept = extract(tiny, POS, NEG, CONTEXTS, position="reply", replies=replies, too_long="skip")
    assert kept.provenance.n_skipped == 1
    with pytest.raises(InputError, match="no tokens"):
        extract(tiny, POS, NEG, CONTEXTS, position="reply", replies=["Yes.", "", "No.", "Ask."])


def test_rows_of_very_different_length_do_not_share_a_batch():
    lengths = [10] * 40 + [11] * 3 + [20] * 30 + [90, 100]
    parts = list(_snug(range(len(lengths)), lengths))
    assert [i for part in parts for i in part] == list(range(len(lengths)))
    assert [len(part) for part in parts] == [43, 30, 2]
    assert list(_snug([0, 1], [5, 100])) == [[0, 1]]  # too little for a batch of its own


def test_auc_is_the_share_of_pairs_ranked_rightly():
    torch.manual_seed(0)
    scores = torch.randint(0, 6, (2, 50)).double()  # with ties
    pos, neg = scores[0][:, None], scores[1][None]
    naive = ((pos > neg).double() + 0.5 * (pos == neg).double()).mean()
    assert _auc(scores) == pytest.approx(float(naive), abs=1e-12)


def test_progress_counts_pairs(tiny):
    seen = []
    extract(tiny, POS, NEG, CONTEXTS, batch_tokens=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 4) for i in range(1, 5)]
