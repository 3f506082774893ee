"""Extraction against a ten-line reference; the hook against manual addition; every position and row it should reach."""

import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from families import FAMILIES, make
from hypothesis import given, settings
from hypothesis import strategies as st

import steer_heal as sh
import steer_heal.model
from steer_heal.errors import InputError
from steer_heal.model import position_ids
from steer_heal.steering import SteeringVector, extract

POS, NEG = "You are kind.", "You are cruel."
CONTEXTS = ["What is rain?", "Tell me about the nurse and the old basket in the shed.", "List three things.", "Hi"]


@pytest.fixture(scope="module")
def vector(tiny):
    return extract(tiny, POS, NEG, CONTEXTS)


def block_outputs(lm, ids, block):
    """Outputs of one block for one unpadded row, read by a hook of this file."""
    out = []
    handle = lm.blocks[block].register_forward_hook(lambda m, a, o: out.append(o[0] if isinstance(o, tuple) else o))
    with torch.no_grad():
        lm.model(torch.tensor([ids]))
    handle.remove()
    return out[0][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_extraction_equals_a_naive_reference(family):
    lm = make(family)
    vec = extract(lm, POS, NEG, CONTEXTS, layers=[1, 2])
    for block in (1, 2):
        differences = []
        for context in CONTEXTS:
            pos = block_outputs(lm, lm.chat_ids(context, POS), block)[-1].double().numpy()
            neg = block_outputs(lm, lm.chat_ids(context, NEG), block)[-1].double().numpy()
            differences.append(pos - neg)
        np.testing.assert_allclose(vec.vectors[block].numpy(), np.mean(differences, axis=0), atol=2e-6)


@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
def test_extraction_does_not_depend_on_batch_size_or_padding(tiny, vector, batch_tokens):
    other = extract(tiny, POS, NEG, CONTEXTS, batch_tokens=batch_tokens)
    torch.testing.assert_close(other.flat(), vector.flat(), atol=2e-6, rtol=1e-5)


def test_last_content_reads_the_users_last_token(tiny):
    vec = extract(tiny, POS, NEG, CONTEXTS, layers=[1], position="last_content")
    differences = []
    for context in CONTEXTS:
        ids = [tiny.chat_ids(context, persona) for persona in (POS, NEG)]
        at = [max(i for i, t in enumerate(row) if t == 3) - 1 for row in ids]  # before the user's <|im_end|>
        differences.append(block_outputs(tiny, ids[0], 1)[at[0]] - block_outputs(tiny, ids[1], 1)[at[1]])
    torch.testing.assert_close(vec.vectors[1], torch.stack(differences).mean(0), atol=2e-6, rtol=1e-5)


def test_reply_position_averages_over_the_reply(tiny):
    replies = ["Yes, I am.", "No.", "Ask the nurse first.", "Hello there"]
    vec = extract(tiny, POS, NEG, CONTEXTS, layers=[1], position="reply", replies=replies)
    differences = []
    for context, reply in zip(CONTEXTS, replies, strict=True):
        tail = tiny.tokenizer.encode(reply, add_special_tokens=False)
        rows = [block_outputs(tiny, [*tiny.chat_ids(context, p), *tail], 1)[-len(tail) :].mean(0) for p in (POS, NEG)]
        differences.append(rows[0] - rows[1])
    torch.testing.assert_close(vec.vectors[1], torch.stack(differences).mean(0), atol=2e-6, rtol=1e-5)


def test_quality_tells_a_real_direction_from_noise(tiny):
    real = extract(tiny, POS, NEG, [f"What is {i} plus {i + 3}?" for i in range(40)]).quality[1]
    assert real.auc > 0.95 and real.split_half_cosine > 0.8 and real.norm > 0
    assert 0 < real.relative_norm < 2


@pytest.mark.parametrize("family", FAMILIES)
def test_hook_equals_manual_addition(family):
    lm = make(family)
    vec = extract(lm, POS, NEG, CONTEXTS, layers=[1, 2])
    batch = lm.pad_left([lm.chat_ids("Hello there")])

    def add(block):
        def hook(module, args, output):
            if isinstance(output, tuple):
                return (output[0] + 0.7 * vec.vectors[block], *output[1:])
            return output + 0.7 * vec.vectors[block]

        return lm.blocks[block].register_forward_hook(hook)

    with torch.no_grad():
        plain = lm.model(**batch).logits
        handles = [add(1), add(2)]
        manual = lm.model(**batch).logits
        for handle in handles:
            handle.remove()
        with vec.applied(lm.model, dose=0.7):
            steered = lm.model(**batch).logits
    assert torch.equal(steered, manual) and not torch.allclose(steered, plain)


def test_dose_per_row_equals_solo_runs(tiny, vector):
    rows, doses = [tiny.chat_ids(c) for c in CONTEXTS], [0.0, 0.5, 1.5, -2.0]
    batch = tiny.pad_left(rows)
    with torch.no_grad(), vector.applied(tiny.model, doses):
        together = tiny.hidden_states(batch)[:, -1]
    for row, dose, state in zip(rows, doses, together, strict=True):
        with torch.no_grad(), vector.applied(tiny.model, dose):
            solo = tiny.hidden_states(tiny.pad_left([row]))[0, -1]
        torch.testing.assert_close(state, solo, atol=1e-5, rtol=1e-5)


def test_dose_zero_is_bit_identical_to_plain(tiny, vector):
    batch = tiny.pad_left([tiny.chat_ids(c) for c in CONTEXTS])
    with torch.no_grad():
        plain = tiny.hidden_states(batch)
        with vector.applied(tiny.model, 0.0):
            zero = tiny.hidden_states(batch)
        with vector.applied(tiny.model, [0.0, 3.0, 0.0, 3.0]):
            mixed = tiny.hidden_states(batch)
    assert torch.equal(zero, plain)
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]]) and not torch.allclose(mixed[[1, 3]], plain[[1, 3]])


def test_what_another_thread_steers_is_not_read_and_not_sampled(tiny, vector):
    prompts = ["say something", "and more"]

    def asked():
        with ThreadPoolExecutor(1) as other:
            for stage in (lambda: tiny.hidden_states(tiny.encode_chat(prompts)), lambda: sh.generate(tiny, prompts)):
                yield other.submit(torch.no_grad()(stage)).exception()

    with vector.applied(tiny.model, dose=1.0):
        assert all("another thread is steering" in str(found) for found in asked())
    assert list(asked()) == [None, None]


def test_pads_are_never_steered(tiny, vector):
    poison = SteeringVector({i: v * 1e6 for i, v in vector.vectors.items()}, vector.provenance)
    batch = tiny.pad_left([tiny.chat_ids("Hi"), tiny.chat_ids("A much longer question about the nurse?")])
    seen = []
    handle = tiny.blocks[vector.layers[-1]].register_forward_hook(lambda m, a, o: None)
    with torch.no_grad(), poison.applied(tiny.model, 1.0):
        late = tiny.blocks[vector.layers[-1]].register_forward_hook(lambda m, a, o: seen.append(o))
        tiny.hidden_states(batch)
        late.remove()
    handle.remove()
    pads = batch["attention_mask"] == 0
    assert pads.any() and seen[0][pads].abs().max() < 1e3 and seen[0][~pads].abs().min(0).values.max() > 1e3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("scope", ["all", "generated", "prompt"])
def test_poisoned_pads_change_no_real_position_on_either_side(vector, side, scope):
    lm = steer_heal.model.load("tiny-random")
    rows = [lm.chat_ids("Hi"), lm.chat_ids("A much longer question about the nurse?")]
    batch = lm.pad_left(rows)
    if side == "right":
        for name, left in batch.items():
            batch[name] = torch.stack([row.roll(len(ids)) for row, ids in zip(left, rows, strict=True)])
    real = batch["attention_mask"].bool()
    states = []
    for poison in (0.0, 1e6):
        with torch.no_grad():
            lm.model.get_input_embeddings().weight[lm.pad_id] = poison
            with vector.applied(lm.model, [1.0, 2.0], scope=scope):
                states.append(lm.hidden_states(batch)[real])
    assert torch.equal(*states)


@pytest.mark.parametrize("scope", ["all", "generated", "prompt"])
def test_static_cache_steers_the_same_positions_as_a_dynamic_one(tiny, vector, scope):
    """With a static cache transformers passes masks of four dimensions, from which the pads have to be read."""
    batch = tiny.pad_left([tiny.chat_ids("Hi"), tiny.chat_ids("A much longer question about the nurse?")])
    block, changed = vector.layers[0], []
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    for kind in (None, "static"):
        before, after = [], []
        first = tiny.blocks[block].register_forward_hook(lambda m, a, o, seen=before: seen.append(o.clone()))
        with torch.no_grad(), vector.applied(tiny.model, [5.0, 9.0], scope=scope):
            last = tiny.blocks[block].register_forward_hook(lambda m, a, o, seen=after: seen.append(o.clone()))
            ids = tiny.model.generate(**batch, **options, cache_implementation=kind)
            last.remove()
        first.remove()
        where = [((a - b).abs().amax(-1) > 1e-6) for a, b in zip(before, after, strict=True)]
        changed.append((ids.tolist(), [w.tolist() for w in where]))
    assert changed[0] == changed[1]
    pads = batch["attention_mask"] == 0
    assert not (torch.tensor(changed[0][1][0]) & pads).any()


def test_a_model_compiled_before_is_steered_all_the_same(vector):
    """torch's compiler does not notice hooks that come later, so steering runs such models uncompiled."""
    lm = steer_heal.model.load("tiny-random")
    batch = lm.pad_left([lm.chat_ids("Hello")])
    compiled = torch.compile(lm.backbone, backend="eager")
    with torch.no_grad():
        plain = compiled(**batch, use_cache=False).last_hidden_state
        with vector.applied(lm.model, 5.0):
            steered = compiled(**batch, use_cache=False).last_hidden_state
            expected = lm.backbone(**batch, use_cache=False).last_hidden_state
        again = compiled(**batch, use_cache=False).last_hidden_state
    torch.testing.assert_close(steered, expected)
    assert not torch.allclose(steered, plain, atol=0.1) and torch.equal(again, plain)


def test_steering_is_seen_whichever_hook_came_first(tiny, vector):
    batch = tiny.pad_left([tiny.chat_ids("Hello")])
    with torch.no_grad():
        tiny.model(**batch, output_hidden_states=True)  # leaves transformers' own capture hooks behind
        plain = tiny.model(**batch, output_hidden_states=True).logits
        with vector.applied(tiny.model, 1.0):
            steered = tiny.model(**batch, output_hidden_states=True).logits
        again = tiny.model(**batch, output_hidden_states=True).logits
    assert torch.equal(plain, again) and not torch.allclose(plain, steered)


def count_steered(lm, vector, scope, **options):
    """Positions per forward call at which a block's output was changed, during generation of 5 tokens."""
    block = vector.layers[0]
    plain, changed = [], []
    with torch.no_grad(), vector.applied(lm.model, 1.0, scope=scope):
        first = lm.blocks[block].register_forward_hook(lambda m, a, o: plain.append(o.clone()), prepend=True)
        last = lm.blocks[block].register_forward_hook(lambda m, a, o: changed.append(o.clone()))
        lm.model.generate(
            **lm.pad_left([lm.chat_ids("Hello there")]), max_new_tokens=5, min_new_tokens=5, do_sample=False
        )
        last.remove()
    first.remove()
    return [int(((a - b).abs().amax(-1) > 1e-6).sum()) for a, b in zip(plain, changed, strict=True)]


def test_scope_decides_which_passes_are_steered(tiny, vector):
    n = len(tiny.chat_ids("Hello there"))
    assert count_steered(tiny, vector, "all") == [n, 1, 1, 1, 1]
    assert count_steered(tiny, vector, "generated") == [1, 1, 1, 1, 1]
    assert count_steered(tiny, vector, "prompt") == [n, 0, 0, 0, 0]


@pytest.mark.parametrize("scope", ["all", "generated", "prompt"])
def test_teacher_forced_pass_steers_exactly_what_sampling_steered(tiny, vector, scope):
    prompts = [tiny.chat_ids("Hello there"), tiny.chat_ids("A longer question about the nurse?")]
    batch = tiny.pad_left(prompts)
    with torch.no_grad(), vector.applied(tiny.model, [0.8, 1.3], scope=scope):
        out = tiny.model.generate(
            **batch,
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    sampled = torch.stack(out.logits, dim=1)
    full = {
        "input_ids": out.sequences,
        "attention_mask": torch.cat([batch["attention_mask"], torch.ones(2, 6).long()], 1),
    }
    lengths = [len(p) for p in prompts]
    with torch.no_grad(), vector.applied(tiny.model, [0.8, 1.3], scope=scope, prompt_lengths=lengths):
        forced = tiny.model(**full, position_ids=position_ids(full["attention_mask"])).logits[:, -7:-1]
    torch.testing.assert_close(forced, sampled, atol=2e-4, rtol=1e-4)


def test_doses_follow_rows_repeated_by_num_return_sequences(tiny, vector):
    batch = tiny.pad_left([tiny.chat_ids("Hello"), tiny.chat_ids("Goodbye")])
    with torch.no_grad(), vector.applied(tiny.model, [0.0, 4.0]):
        ids = tiny.model.generate(**batch, num_return_sequences=2, do_sample=False, num_beams=2, max_new_tokens=4)
    with torch.no_grad():
        plain = tiny.model.generate(**batch, num_return_sequences=2, do_sample=False, num_beams=2, max_new_tokens=4)
    assert torch.equal(ids[:2], plain[:2]) and not torch.equal(ids[2:], plain[2:])


def test_works_on_a_peft_wrapped_model(vector):
    import peft

    lm = steer_heal.model.load("tiny-random")
    batch = lm.pad_left([lm.chat_ids("Hello")])
    with torch.no_grad(), vector.applied(lm.model, 1.0):
        expected = lm.model(**batch).logits
    wrapped = peft.get_peft_model(lm.model, peft.LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad(), vector.applied(wrapped, 1.0):
        torch.testing.assert_close(wrapped(**batch).logits, expected, atol=1e-6, rtol=1e-6)


def test_nested_use_is_refused_and_everything_restored(tiny, vector):
    batch = tiny.pad_left([tiny.chat_ids("Hello")])
    with torch.no_grad():
        plain = tiny.model(**batch).logits
        with contextlib.suppress(InputError), vector.applied(tiny.model, 1.0):
            with pytest.raises(InputError, match="steered already"), vector.applied(tiny.model, 1.0):
                pass
            raise InputError("from the body")
        assert torch.equal(tiny.model(**batch).logits, plain)
    assert not tiny.backbone._forward_pre_hooks


def test_an_exception_in_the_middle_of_a_pass_leaves_nothing_behind(tiny, vector):
    def hooks():
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.model.modules()]

    batch, before = tiny.pad_left([tiny.chat_ids("Hello")]), hooks()
    for doses, scope, lengths in (
        ([1.0, 2.0, 3.0], "all", None),
        ([1.0], "generated", [1, 2, 3]),
        ([1.0], "some", None),
    ):
        with torch.no_grad(), contextlib.suppress(InputError), vector.applied(tiny.model, doses, scope, lengths):
            tiny.model.generate(**{k: v.repeat(2, 1) for k, v in batch.items()}, max_new_tokens=3)
            pytest.fail("a wrong number of doses or lengths went through")
        assert hooks() == before
    with vector.applied(tiny.model, 1.0):  # and steering is possible again
        assert hooks() != before


def test_rows_repeated_by_sampling_take_their_prompts_dose(tiny, vector):
    batch = tiny.pad_left([tiny.chat_ids("Hello"), tiny.chat_ids("Goodbye")])
    seen = []
    with torch.no_grad(), vector.applied(tiny.model, [0.0, 3.0]):
        hook = tiny.blocks[vector.layers[0]].register_forward_hook(lambda m, a, o: seen.append(o))
        tiny.model.generate(**batch, num_return_sequences=3, do_sample=True, max_new_tokens=1)
        hook.remove()
    with torch.no_grad():
        hook = tiny.blocks[vector.layers[0]].register_forward_hook(lambda m, a, o: seen.append(o))
        tiny.model.generate(**batch, num_return_sequences=3, do_sample=True, max_new_tokens=1)
        hook.remove()
    moved = (seen[0] - seen[1])[:, -1] / vector.vectors[vector.layers[0]]
    expected = torch.tensor([0.0] * 3 + [3.0] * 3)[:, None].expand_as(moved)
    torch.testing.assert_close(moved, expected, atol=1e-2, rtol=1e-2)


def test_a_decode_pass_reads_no_tensor_value_and_asks_the_cache_nothing(tiny, vector):
    """Each such read would make an accelerator wait for the device at every token."""
    from transformers import DynamicCache

    asked = []

    class Watched(DynamicCache):
        def get_seq_length(self, layer_idx=0):
            asked.append(sys._getframe(1).f_code.co_filename)
            return super().get_seq_length(layer_idx)

    batch = tiny.pad_left([tiny.chat_ids("Hello there")])
    with torch.no_grad(), vector.applied(tiny.model, [1.0]):
        cache = Watched(config=tiny.model.config)
        tiny.model.generate(**batch, past_key_values=cache, min_new_tokens=6, max_new_tokens=6)
    assert asked and sum("injector" in name for name in asked) <= 1


def test_saved_vector_comes_back_with_its_provenance(tmp_path, vector):
    vector.save(tmp_path / "v.safetensors")
    back = SteeringVector.load(tmp_path / "v.safetensors")
    assert torch.equal(back.flat(), vector.flat())
    assert back.provenance == vector.provenance and back.quality == vector.quality


@given(a=st.floats(-3, 3), b=st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_arithmetic_is_linear(vector, a, b):
    torch.testing.assert_close((vector * a + vector * b).flat(), vector.flat() * (a + b), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((vector - vector * a).flat(), vector.flat() * (1 - a), atol=1e-4, rtol=1e-4)


def test_unit_norm_and_random_control(vector):
    other = vector.random_like(1)
    assert torch.cosine_similarity(vector.unit().vectors[1], vector.vectors[1], dim=0) == pytest.approx(1, abs=1e-5)
    assert all(v.norm() == pytest.approx(1, abs=1e-5) for v in vector.unit().vectors.values())
    assert other.norm() == pytest.approx(vector.norm(), rel=1e-5) and abs(other.cosine(vector)) < 0.5
    assert torch.equal(other.flat(), vector.random_like(1).flat()) and other.cosine(vector.random_like(2)) < 0.9


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda lm, v: extract(lm, POS, NEG, ["one"]), "at least 2"),
        (lambda lm, v: extract(lm, POS, POS, CONTEXTS), "same text"),
        (lambda lm, v: extract(lm, POS, NEG, CONTEXTS, position="first"), "unknown"),
        (lambda lm, v: extract(lm, POS, NEG, CONTEXTS, position="reply"), "reply"),
        (lambda lm, v: extract(lm, POS, NEG, ["word " * 3000, "b"]), "does not fit"),
        (lambda lm, v: v.applied(lm.model, 1.0, scope="some").__enter__(), "unknown"),
        (lambda lm, v: v.applied(lm.model, float("nan")).__enter__(), "finite"),
        (lambda lm, v: v.applied(make("llama").model).__enter__(), "does not fit"),
        (lambda lm, v: SteeringVector.load("nowhere.safetensors"), "no such file"),
        (lambda lm, v: SteeringVector({}, v.provenance), "at least one block"),
        (lambda lm, v: SteeringVector({1: torch.tensor([float("nan")])}, v.provenance), "not finite"),
    ],
)
def test_misuse_is_one_clear_error(tiny, vector, call, words):
    with pytest.raises(InputError, match=words) as caught:
        call(tiny, vector)
    assert "\n" not in str(caught.value)


def test_wrong_number_of_doses_is_refused(tiny, vector):
    batch = tiny.pad_left([tiny.chat_ids("Hello")] * 3)
    with pytest.raises(InputError, match="one per row"), vector.applied(tiny.model, [1.0, 2.0]):
        tiny.model(**batch)
