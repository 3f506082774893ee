"""Chat rendering, padding, block discovery and log-probabilities."""

import pytest
import torch
from families import FAMILIES, make

from steer_heal.errors import InputError
from steer_heal.model import completion_logprobs, length_batches, load, position_ids, takes_system
from steer_heal.model.depth import pick_layers
from steer_heal.model.soundness import check_model


def test_rendered_prompt_has_exactly_one_bos(tiny):
    ids = tiny.chat_ids("Hello there", "You are kind.")
    assert ids.count(tiny.tokenizer.bos_token_id) == 1 and ids[0] == tiny.tokenizer.bos_token_id


def test_template_without_system_role_gets_the_text_before_the_user_turn(tiny):
    tokenizer = tiny.tokenizer.__class__(tokenizer_object=tiny.tokenizer.backend_tokenizer, bos_token="<|bos|>")
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ bos_token }}{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    )
    assert not takes_system(tokenizer) and takes_system(tiny.tokenizer)
    lm = tiny.__class__(tiny.model, tokenizer, "no-system")
    assert lm.tokenizer.decode(lm.chat_ids("Why?", "Be kind.")) == "<|bos|><Be kind.\n\nWhy?>"


def test_model_without_template_gets_bos_and_plain_text(tiny):
    tokenizer = tiny.tokenizer.__class__(tokenizer_object=tiny.tokenizer.backend_tokenizer, bos_token="<|bos|>")
    lm = tiny.__class__(tiny.model, tokenizer, "base")
    assert lm.tokenizer.decode(lm.chat_ids("Once upon a time")) == "<|bos|>Once upon a time"


def test_a_prompt_is_rendered_once_and_anew_under_another_template(tiny):
    tokenizer = tiny.tokenizer.__class__(tokenizer_object=tiny.tokenizer.backend_tokenizer, bos_token="<|bos|>")
    lm, asked = tiny.__class__(tiny.model, tokenizer, "counted"), []
    encode = tokenizer.encode
    tokenizer.encode = lambda text, **options: asked.append(text) or encode(text, **options)
    plain = lm.chat_ids("Why?", "Be kind.")
    times = len(asked)
    assert lm.chat_ids("Why?", "Be kind.") == plain and len(asked) == times > 0
    assert lm.chat_ids("Why?", "Be bold.") != plain
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    assert lm.chat_ids("Why?", "Be kind.") != plain


def test_a_template_that_asks_for_the_day_gets_the_same_one_and_a_random_one_is_refused(lm):
    lm.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    assert lm.tokenizer.decode(lm.chat_ids("Why?")) == "26 Jul 2024<Why?>"
    lm.tokenizer.chat_template = "{{ range(90000) | random }}<{{ messages[0]['content'] }}>"
    with pytest.raises(InputError, match="writes another prompt each time"):
        check_model(lm.base, lm.tokenizer, "x")


def test_a_configuration_that_does_not_hold_together_is_refused(lm):
    vars(lm.base.config)["_output_attentions"] = True
    with pytest.raises(InputError, match=r"its config\.json does not hold together .*output_attentions"):
        check_model(lm.base, lm.tokenizer, "x")


def test_left_padding_aligns_rows_at_the_right(tiny):
    batch = tiny.pad_left([[5, 6, 7], [8]])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert position_ids(batch["attention_mask"]).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_using_a_model_leaves_its_tokenizer_as_it_was(tiny):
    before = (tiny.tokenizer.padding_side, tiny.tokenizer.pad_token, tiny.tokenizer.chat_template)
    tiny.encode_chat(["One", "Two words"])
    assert (tiny.tokenizer.padding_side, tiny.tokenizer.pad_token, tiny.tokenizer.chat_template) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_every_family_are_the_text_decoders(family):
    lm = make(family)
    assert len(lm.blocks) == 4 and "vision" not in lm.blocks_path


@pytest.mark.parametrize("family", FAMILIES)
def test_head_over_hidden_states_equals_the_models_own_logits(family):
    lm = make(family)
    batch = lm.pad_left([[1, 9, 12, 13, 14], [1, 8]])
    with torch.no_grad():
        own = lm.model(**batch, position_ids=position_ids(batch["attention_mask"])).logits
        ours = lm.head(lm.hidden_states(batch))
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(ours[real], own[real].float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_logprobs_do_not_depend_on_batch_composition(family):
    lm = make(family)
    prompts, replies = [(1, 9, 10), (1, 7, 8, 9, 11, 12), (1, 4)], [(5, 6), (20, 21, 22), (30,)]
    together = completion_logprobs(lm, prompts, replies)
    for alone, row in zip(zip(prompts, replies, strict=True), together, strict=True):
        solo = completion_logprobs(lm, [alone[0]], [alone[1]])[0]
        torch.testing.assert_close(solo, row, atol=2e-5, rtol=1e-5)
        ids = torch.tensor([[*alone[0], *alone[1]]])
        with torch.no_grad():
            logp = lm.model(ids).logits[0].log_softmax(-1)
        naive = [float(logp[len(alone[0]) + k - 1, t]) for k, t in enumerate(alone[1])]
        assert row.tolist() == pytest.approx(naive, abs=2e-5)


@pytest.mark.parametrize(
    ("layers", "n", "expected"),
    [
        ((0.45, 0.55), 4, (1, 2)),
        ((0.0, 1.0), 4, (0, 1, 2, 3)),
        ((0.5, 0.5), 5, (2,)),
        ((0.2, 0.8), 12, (2, 3, 4, 5, 6, 7, 8, 9)),
        ([1, -1], 4, (1, 3)),
    ],
)
def test_layer_band_is_rounded_outwards(layers, n, expected):
    assert pick_layers(layers, n) == expected


@pytest.mark.parametrize("layers", [(0.6, 0.4), (0.1, 1.2), [4], [], [0.5]])
def test_impossible_layers_are_refused(layers):
    with pytest.raises(InputError):
        pick_layers(layers, 4)


def test_length_batches_cover_every_row_once_within_the_budget(tiny):
    lengths = [5, 60, 7, 7, 31, 2, 90]
    batches = list(length_batches(tiny, lengths, 64))
    assert sorted(i for b in batches for i in b) == list(range(7))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 64 for b in batches)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda lm: lm.chat_ids("  "), "empty"),
        (lambda lm: lm.encode_chat([]), "no prompts"),
        (lambda lm: lm.encode_chat("one string"), "users .*: give a list of texts"),
        (lambda lm: lm.chat_ids("word " * 3000), "does not fit"),
        (lambda lm: completion_logprobs(lm, [(1, 2)], [()]), "no tokens"),
    ],
)
def test_unusable_prompts_are_one_clear_error(tiny, call, words):
    with pytest.raises(InputError, match=words) as caught:
        call(tiny)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("pockett", {}, "neither embedded"),
        ("./nowhere", {}, "neither embedded"),
        ("tiny-random", {"device": "tpu"}, "unknown"),
        ("tiny-random", {"dtype": "float8"}, "unknown"),
    ],
)
def test_unloadable_models_are_one_clear_error(name, options, words):
    with pytest.raises(InputError, match=words) as caught:
        load(name, **options)
    assert "\n" not in str(caught.value)


def test_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        load(str(tmp_path))


def test_hub_id_that_cannot_be_reached_names_the_offline_models(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="pocket, tiny-random"):
        load("nobody/nothing-at-all")


def test_encoder_only_model_is_refused(tmp_path, tiny):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=480, **sizes)).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="decoder"):
        load(str(tmp_path))


def test_tiny_random_is_the_same_model_every_time(tiny):
    again = load("tiny-random")
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), tiny.model.parameters(), strict=True))
    assert again.tokenizer.get_vocab() == tiny.tokenizer.get_vocab()
