"""A model that is in memory already: what every stage takes for one, in whatever mode and wrapping; what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import resume_runs
import torch
from families import make
from healing_data import QUICK, bits, completion, equal
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import steer_heal as sh
from steer_heal.errors import InputError
from steer_heal.healing.lora import linear_names
from steer_heal.loop import calibration, rounds
from steer_heal.loop.gate import must_block_adapter
from steer_heal.model import check_head, completion_logprobs
from steer_heal.model.names import check_name

POS, NEG = "You are kind.", "You are cruel."
PROMPTS = ["Hi", "What is rain?", "Tell me about the nurse and the old basket in the shed."]


def extracted(lm, layers=(1, 2)):
    return sh.extract(lm, POS, NEG, PROMPTS, layers=list(layers))


def one_line(call, *words):
    with pytest.raises(sh.InputError) as caught:
        call()
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("family", ["falcon_h1", "recurrent_gemma", "modernbert-decoder"])
def test_logprobs_of_a_head_that_is_more_than_a_linear_map_are_the_models_own(family):
    lm = make(family)
    ids = lm.chat_ids("What is rain?")
    with torch.no_grad():
        own = lm.model(torch.tensor([[*ids, 20, 21, 22]])).logits[0, -4:-1].float().log_softmax(-1)
    expected = own.gather(1, torch.tensor([[20], [21], [22]]))[:, 0]
    torch.testing.assert_close(completion_logprobs(lm, [ids], [(20, 21, 22)])[0], expected, atol=1e-4, rtol=1e-4)


def test_load_and_wrap_refuse_a_head_that_is_not_known(lm, monkeypatch):
    kind = type(lm.model)
    own = kind.forward

    def forward(self, *args, **kwargs):
        out = own(self, *args, **kwargs)
        out.logits = out.logits.square()
        return out

    monkeypatch.setattr(kind, "forward", forward)
    one_line(lambda: sh.load("tiny-random"), "tiny-random", "output head")
    one_line(lambda: sh.wrap(lm.model, lm.tokenizer, "mine"), "mine", "output head")


def test_load_refuses_weights_that_give_no_number(lm):
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(float("nan"))
    one_line(lambda: sh.wrap(lm.model, lm.tokenizer), "model.norm.weight is not finite")


def test_every_stage_measures_in_evaluation_mode_and_gives_the_mode_back():
    lm = make("gpt2")  # has dropout
    assert lm.base.config.resid_pdrop > 0
    data = [completion(lm, i, 6) for i in range(3)]

    def measured():
        return (
            extracted(lm).flat(),
            torch.cat(completion_logprobs(lm, [c.prompt_ids for c in data], [c.token_ids for c in data])),
            torch.cat(list(sh.reference_states(lm, data).rows.values())),
            torch.tensor([c.token_ids for c in sh.generate(lm, PROMPTS, max_new_tokens=4, seed=1)]),
            torch.tensor(check_head(lm)),
        )

    quiet = measured()
    lm.model.train()
    lm.model.transformer.h[1].eval()
    modes = [module.training for module in lm.model.modules()]
    for one, other in zip(quiet, measured(), strict=True):
        assert torch.equal(one, other)
    assert [module.training for module in lm.model.modules()] == modes


def test_a_vector_that_points_nowhere_is_an_error(lm):
    vector = extracted(lm)
    one_line(lambda: (vector * 0).applied(lm).__enter__(), "zero at all of its blocks (1, 2)")
    one_line(lambda: vector * float("inf"), "not finite")
    with torch.no_grad():  # nothing is added to the stream, so no block sees more than the last token
        for name, weight in lm.model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
    one_line(lambda: extracted(lm), "zero at all of its blocks (1, 2)")


# ---------------------------------------------------------------- doors


def test_every_stage_takes_a_model_and_its_tokenizer(lm, monkeypatch):
    monkeypatch.setattr(calibration, "MAX_PASSES", 1)
    pair, trait = (lm.model, lm.tokenizer), replace(sh.Trait.load("pocket-care"), anchors=())
    lm = sh.wrap(*pair)
    data = [completion(lm, i, 6) for i in range(6)]
    vector, states = extracted(lm), sh.reference_states(lm, data)
    assert torch.equal(extracted(pair).flat(), vector.flat())
    sizes = {"n_items": 2, "n_free": 0, "vignettes": []}
    assert sh.evaluate(pair, trait, **sizes).to_json() == sh.evaluate(lm, trait, **sizes).to_json()
    assert sh.reference_states(pair, data).weights == states.weights
    assert sh.mean_divergence(pair, states, states, data, QUICK) == pytest.approx(0, abs=1e-6)
    ours, theirs = (sh.heal(given, data, QUICK, {"prev": states}).adapter for given in (pair, lm))
    assert ours == theirs
    sampled = [sh.generate(given, PROMPTS, max_new_tokens=4) for given in (pair, lm)]
    assert sampled[0] == sampled[1] and sh.CoherenceFilter().score(pair, sampled[0]) == sh.CoherenceFilter().score(
        lm, sampled[1]
    )
    doses = [sh.calibrate(given, vector, PROMPTS, target_kl=0.01, max_new_tokens=4).dose for given in (pair, lm)]
    assert doses[0] == doses[1]


def test_wrapping_names_the_model_and_changes_nothing(lm):
    before = bits(lm.model)
    assert sh.wrap(lm.model, lm.tokenizer).name == "Qwen3ForCausalLM"
    wrapped = sh.wrap(lm.model, lm.tokenizer, "mine")
    assert wrapped.name == extracted(wrapped).provenance.model == "mine"
    assert wrapped.model is lm.model and equal(bits(lm.model), before)


def test_a_vector_is_applied_to_an_lm_as_to_its_model(lm):
    vector, ids = extracted(lm), torch.tensor([lm.chat_ids("Hi")])
    with torch.no_grad():
        plain = lm.model(ids).logits
        with vector.applied(lm, 30.0):
            one = lm.model(ids).logits
        with vector.applied(lm.model, 30.0):
            other = lm.model(ids).logits
    assert torch.equal(one, other) and not torch.allclose(one, plain)
    sh.AdapterStack(lm)


def test_a_compiled_model_has_the_names_of_the_plain_one(lm):
    compiled = sh.wrap(torch.compile(lm.model, backend="eager"), lm.tokenizer, lm.name)
    assert compiled.base is lm.base
    assert linear_names(compiled, (0.3, 0.7)) == linear_names(lm, (0.3, 0.7))
    assert torch.equal(extracted(compiled).flat(), extracted(lm).flat())
    lm.model.model.layers[0].mlp = torch.compile(lm.model.model.layers[0].mlp, backend="eager")
    one_line(lambda: sh.wrap(lm.model, lm.tokenizer), "compiled", "as a whole")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda lm: sh.load(lm.model), ("Qwen3ForCausalLM", "wrap(model, tokenizer)")),
        (lambda lm: sh.load(lm), ("LM", "wrap(model, tokenizer)")),
        (lambda lm: sh.wrap("pocket", lm.tokenizer), ("not str", "model")),
        (lambda lm: sh.wrap(torch.nn.Linear(2, 2), lm.tokenizer), ("transformers", "Linear")),
        (lambda lm: sh.wrap(lm.model, "gpt2"), ("tokenizer", "str")),
        (lambda lm: sh.wrap(lm.model, None), ("tokenizer", "NoneType")),
        (lambda lm: sh.extract(lm.model, POS, NEG, PROMPTS), ("Qwen3ForCausalLM", "(model, tokenizer)")),
        (lambda lm: sh.generate("pocket", PROMPTS), ("not str", "load()")),
        (lambda lm: extracted(lm).applied("pocket").__enter__(), ("not str", "LM")),
        (lambda lm: sh.AdapterStack(None), ("NoneType",)),
        (lambda lm: sh.run_rounds(lm="pocket"), ("not str", "load()")),
        (lambda lm: sh.run_rounds(sh.RunConfig(model="pocket"), lm=lm), ("pocket", "tiny-random", "leave one out")),
        (lambda lm: sh.run_rounds(sh.RunConfig(dtype="bfloat16"), lm=lm), ("dtype", "leave them out")),
        (lambda lm: sh.run_rounds(lm=lm, trait=3), ("trait 3", "give")),
        (lambda lm: sh.extract(lm, POS, NEG, PROMPTS, layers=9), ("blocks 0 to 3",)),
        (lambda lm: sh.extract(lm, POS, NEG, PROMPTS, layers=0.5), ("layers 0.5", "give")),
        (lambda lm: sh.extract(lm, POS, NEG, PROMPTS, layers={1: 2}), ("layers {1: 2}", "give")),
    ],
)
def test_another_type_is_one_clear_line(tiny, call, words):
    one_line(lambda: call(tiny), *words)


@pytest.mark.parametrize(
    ("layers", "found"), [(2, (2,)), (-1, (3,)), ([3, 1], (1, 3)), ((0.9, 1.0), (2, 3)), (None, (1, 2))]
)
def test_layers_are_a_block_several_a_band_or_the_default(tiny, layers, found):
    assert sh.extract(tiny, POS, NEG, PROMPTS, layers=layers).layers == found
    sh.RunConfig(layers=layers)


def test_an_id_may_lack_an_owner_but_a_mistyped_model_is_still_found_out():
    check_name("gpt2")
    one_line(lambda: check_name("pockett"), "did you mean 'pocket'")


def test_a_model_loaded_by_path_exports_as_one_loaded_by_string(lm, tmp_path):
    folder = tmp_path / "model"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    by_path, by_name = sh.load(Path(folder)), sh.load(str(folder))
    assert by_path.name == by_name.name == str(folder)
    data = [completion(by_path, i, 6) for i in range(6)]
    adapter = sh.heal(by_path, data, QUICK, {"prev": sh.reference_states(by_path, data)}).adapter
    stack = sh.AdapterStack(by_path)
    stack.push(adapter)
    stack.export_peft(tmp_path / "out")
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)


def test_a_checkpoint_that_reads_pictures_too_loads_and_exports_as_its_own_class(tiny, tmp_path):
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text, vision = LlamaConfig(**size, vocab_size=481), CLIPVisionConfig(**size, image_size=28, patch_size=14)
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_id=480))
    for part in (model, tiny.tokenizer):
        part.save_pretrained(tmp_path / "model")
    lm = sh.load(tmp_path / "model")
    assert type(lm.model) is LlavaForConditionalGeneration and "vision" not in lm.blocks_path
    stack = sh.AdapterStack(lm)
    stack.push(must_block_adapter(lm))
    stack.export_merged(tmp_path / "merged", lm)
    again, ids = sh.load(tmp_path / "merged"), torch.tensor([lm.chat_ids("Hi")])
    with torch.no_grad():
        torch.testing.assert_close(again.model(ids).logits, lm.model(ids).logits)


def test_options_that_follow_the_model_follow_the_one_given():
    plain, other = sh.RunConfig(epochs=9), sh.RunConfig(epochs=9, model="mine")
    assert plain.for_model("mine") == other and plain.max_new_tokens != other.max_new_tokens
    assert other.for_model("mine") is other


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_does_not_come_to_its_end_gives_the_model_back_as_it_was(lm, tmp_path, stop):
    before = {name: p.clone() for name, p in lm.base.named_parameters()}
    folded = []

    def on_event(event):
        if event["stage"] == "gate":
            folded.append(not all(torch.equal(before[name], p) for name, p in lm.base.named_parameters()))
            raise stop

    mine = resume_runs.config(tmp_path, model=None, n_rounds=1)
    with pytest.raises(stop):
        sh.run_rounds(mine, lm=lm, on_event=on_event)
    assert folded == [True] and all(torch.equal(before[name], p) for name, p in lm.base.named_parameters())


def test_a_model_with_adapters_folded_in_is_refused_before_there_is_a_folder(lm, tmp_path):
    stack = sh.AdapterStack(lm.model)
    stack.push(must_block_adapter(lm))
    with pytest.raises(InputError, match="already has a stack of 1"):
        sh.run_rounds(sh.RunConfig(fast_dev_run=True, out=tmp_path / "out"), lm=lm)
    assert not (tmp_path / "out").exists() and len(stack) == 1


def test_rounds_begin_with_the_model_and_the_trait_given(lm, tmp_path, monkeypatch):
    class Begun(Exception):
        pass

    def begin(*given):
        raise Begun(*given)

    monkeypatch.setattr(rounds, "begin", begin)
    trait = replace(sh.Trait.load("pocket-care"), name="own")
    config = sh.RunConfig(fast_dev_run=True, replay=0, out=str(tmp_path))
    with pytest.raises(Begun) as caught:
        sh.run_rounds(config, lm=(lm.model, lm.tokenizer), trait=trait)
    used, used_lm, used_trait, _, ledger, _ = caught.value.args
    assert used_lm.model is lm.model and used_trait.name == "own" and used_trait.contexts == trait.contexts
    recorded = json.loads((ledger.folder / "config.json").read_text())
    assert recorded["model"] == used.model == "Qwen3ForCausalLM" and recorded["trait"] == "own"
