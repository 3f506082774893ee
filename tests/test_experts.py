"""Experts whose weights lie in one parameter: trained, folded, compressed and exported as a matrix for each expert."""

from dataclasses import replace

import pytest
import torch
from families import make
from healing_data import bits, completion, equal, with_b
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

import steer_heal as sh
from steer_heal.errors import InputError
from steer_heal.healing.lora import injected, target_names
from steer_heal.loop.kinds import healed_kind
from steer_heal.trait import default_trait

FAMILIES = {"mixtral": ("gate_up_proj", "down_proj"), "gpt_oss": ("gate_up_proj", "down_proj"), "jetmoe": ("weight",)}
"""Weights stored [expert, out, in], [expert, in, out], and alone in modules of their own; their parameters' names."""
CONFIG = sh.HealConfig(reg="nll", epochs=2, lr=1e-2, batch_size=3, rank=2, alpha=6.0, heldout=0.0, experts=True)
IDS = torch.arange(5, 45).reshape(2, 20)


def logits(lm):
    with torch.no_grad():
        return getattr(lm, "model", lm)(input_ids=IDS, use_cache=False).logits


@pytest.fixture(scope="module", params=FAMILIES)
def healed(request):
    """A mixture, its heal, and the logits that it had with PEFT's wrappers in it."""
    lm = make(request.param)
    found = sh.heal(lm, [completion(lm, i, 5 + i) for i in range(3)], CONFIG)
    before = bits(lm.model)
    with injected(lm, CONFIG, 0) as lora:
        lora.load(found.adapter)
        assert lora.adapter() == found.adapter
        trained = logits(lm)
    assert equal(bits(lm.model), before)
    return lm, found, trained


def test_a_heal_reaches_the_experts_and_folds_to_what_was_trained(healed):
    lm, found, trained = healed
    adapter, before, plain = found.adapter, bits(lm.model), logits(lm)
    assert found.figures["reach"] > 0.9 and not any("reach" in line for line in found.notes())
    assert {name.rpartition(".")[2] for name in adapter.experts} == set(FAMILIES[lm.name])
    assert found.figures["train_nll_after"] < found.figures["train_nll_before"]
    stack = sh.AdapterStack(lm)
    stack.push(adapter, 0.5)
    for name in adapter.experts:
        weight = lm.base.get_parameter(name)
        assert adapter.b[name].any() and adapter.shape_of(name) == tuple(weight.shape)
        for expert in range(4):
            delta = 3.0 * adapter.b[name][expert].double() @ adapter.a[name][expert].double()
            delta = delta.T if lm.name == "gpt_oss" else delta
            assert torch.equal(weight[expert], (before[name][expert].double() + 0.5 * delta).float())
    stack.pop()
    report = stack.push(adapter)
    assert report.rounding_loss < 1e-4
    torch.testing.assert_close(logits(lm), trained, atol=2e-5, rtol=1e-4)
    stack.pop()
    sh.AdapterStack(lm).push(replace(adapter, b={n: b * (n not in adapter.experts) for n, b in adapter.b.items()}))
    assert (logits(lm) - trained).abs().max() > 1e-2 < (trained - plain).abs().max()
    lm.model.load_state_dict(before)


def test_peft_and_load_give_the_exports_logits_on_the_base_as_it_was_saved(healed, tmp_path):
    lm, found, _ = healed
    base, before = tmp_path / "base", bits(lm.model)
    lm.base.save_pretrained(base)
    lm.tokenizer.save_pretrained(base)
    stack = sh.AdapterStack(lm)
    stack.push(found.adapter)
    second = {name: factor.flip(-1) for name, factor in found.adapter.b.items()}
    stack.push(replace(found.adapter, b=second))
    baked = logits(lm)
    stack.export_peft(tmp_path / "adapter", lm, base=str(base))
    stack.export_merged(tmp_path / "merged", lm)
    again = sh.Adapter.load(tmp_path / "adapter")
    assert again.experts == found.adapter.experts and again.rank == 4
    lm.model.load_state_dict(before)
    for theirs in (
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"),
        sh.load(tmp_path / "adapter"),
        sh.load(tmp_path / "merged"),
    ):
        torch.testing.assert_close(logits(theirs), baked, atol=1e-4, rtol=1e-3)


def test_factors_of_a_foreign_file_that_does_not_say_whose_they_are_are_refused(healed, tmp_path):
    adapter = healed[1].adapter
    adapter.save(tmp_path / "ours")
    assert sh.Adapter.load(tmp_path / "ours") == adapter
    with pytest.raises(InputError, match="damaged"):
        replace(adapter, experts=()).save(tmp_path / "flat")
    file = tmp_path / "ours" / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="merge it with peft") as caught:
        sh.Adapter.load(tmp_path / "ours")
    assert "\n" not in str(caught.value)


def test_a_sum_of_rounds_its_cosine_and_its_compression_are_those_of_every_experts_delta(healed):
    lm, found, _ = healed
    first, before = found.adapter, bits(lm.model)
    # A round of another rank, on the parameter that PEFT wraps last.
    last = first.experts[-1]
    a, b = first.a[last][:, :1].clone(), torch.ones_like(first.b[last][..., :1])
    second = replace(first, a={last: a}, b={last: b}, rank=1, alpha=0.1, experts=(last,))
    every = torch.cat([first.delta(name).flatten() for name in first.modules])
    ours, theirs = first.delta(last), second.delta(last)
    assert first.cosine(second) == pytest.approx(((ours * theirs).sum() / every.norm() / theirs.norm()).item())
    stack = sh.AdapterStack(lm)
    stack.push(second)
    stack.push(first)
    whole = stack.concatenated()
    assert whole.experts == first.experts and whole.rank == 3
    torch.testing.assert_close(whole.delta(last), ours + theirs)
    stack.compress(1)
    for name in whole.modules:
        left, values, right = torch.linalg.svd(whole.delta(name), full_matrices=False)
        best = left[..., :1] * values[..., None, :1] @ right[..., :1, :]
        torch.testing.assert_close(stack.summed_delta(name), best, atol=1e-6, rtol=1e-4)
    stack.pop()
    assert equal(bits(lm.model), before)


def test_the_spectral_penalty_takes_every_expert_for_a_matrix(healed):
    with injected(healed[0], CONFIG, 0) as lora:
        with_b(lora)
        adapter = lora.adapter()
        squares = [torch.linalg.matrix_norm(adapter.delta(name), 2).square().flatten() for name in adapter.modules]
        penalty = lora.spectral()
        assert penalty.item() == pytest.approx(torch.cat(squares).mean().item(), rel=1e-4)
        penalty.backward()
        assert all(factor.grad.any() for factor in lora.parameters)


def test_a_heal_of_checkpointed_blocks_is_the_same(healed):
    lm, found, _ = healed
    rows = [completion(lm, i, 5 + i) for i in range(3)]
    again = sh.heal(lm, rows, replace(CONFIG, gradient_checkpointing="on")).adapter
    assert again.experts == found.adapter.experts
    assert again.cosine(found.adapter) == pytest.approx(1, abs=1e-3)


def test_experts_are_left_as_they_are_where_that_is_asked_for(healed):
    lm, found, _ = healed
    dense = {name for name in found.adapter.modules if name not in found.adapter.experts}
    off = sh.heal(lm, [completion(lm, i, 5 + i) for i in range(3)], replace(CONFIG, experts=False, epochs=1))
    assert set(off.adapter.modules) == dense and not off.adapter.experts
    assert off.figures["reach"] < 0.5 and "experts (but for --experts)" in " ".join(off.notes())
    leaf = FAMILIES[lm.name][-1]
    assert target_names(lm, replace(CONFIG, target_modules=(leaf,))) == (
        [], [name for name in found.adapter.experts if name.endswith(f".{leaf}")],
    )  # fmt: skip
    assert not target_names(lm, replace(CONFIG, exclude_modules=FAMILIES[lm.name]))[1]


def test_a_heal_of_experts_is_taken_up_again_from_its_file(healed):
    kind = healed_kind(CONFIG)
    again, _ = kind.load(kind.dump((healed[1], {})))
    assert again.adapter == healed[1].adapter


def test_an_adapter_for_weights_that_lie_the_other_way_round_is_refused(healed):
    lm, found, _ = healed
    wrong = replace(found.adapter, experts_transposed=not found.adapter.experts_transposed)
    with pytest.raises(InputError, match="other way round"):
        sh.AdapterStack(lm).push(wrong)
    missing = replace(found.adapter, experts=())
    with pytest.raises(InputError, match="damaged"):
        sh.AdapterStack(lm).push(missing)


def pocket_as_mixture():
    """`pocket` with each MLP as four equal experts and a random router, of which two are weighted to sum to one."""
    lm = sh.load("pocket")
    own = lm.base.config.to_dict()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    names += ("head_dim", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "vocab_size", "bos_token_id")
    names += ("eos_token_id", "pad_token_id", "max_position_embeddings")
    torch.manual_seed(0)
    config = MixtralConfig(**{name: own[name] for name in names}, num_local_experts=4, num_experts_per_tok=2)
    model = MixtralForCausalLM(config).eval()
    state = lm.base.state_dict()
    model.load_state_dict({k: state.get(k, v) for k, v in model.state_dict().items()})
    with torch.no_grad():
        for mixture, dense in zip(model.model.layers, lm.blocks, strict=True):
            mlp, experts = dense.mlp, mixture.mlp.experts
            experts.gate_up_proj.copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).expand(4, -1, -1))
            experts.down_proj.copy_(mlp.down_proj.weight.expand(4, -1, -1))
            mixture.mlp.gate.weight.normal_(0, 0.2)
    return sh.wrap(model, lm.tokenizer, "pocket"), lm


@pytest.mark.slow
def test_a_heal_without_the_experts_comes_as_near_to_its_teacher_with_far_fewer_factors():
    lm, plain = pocket_as_mixture()
    torch.testing.assert_close(logits(lm), logits(plain), atol=1e-3, rtol=1e-3)
    trait = sh.Trait.load(default_trait("pocket"))
    vector = sh.extract(plain, trait.pos, trait.neg, trait.contexts[:200])
    rows = [r for r in sh.generate(plain, trait.contexts[:96], max_new_tokens=40, seed=1) if len(r.token_ids) > 4]
    teacher = sh.reference_states(lm, rows, around=lambda some: vector.applied(lm, [1.0] * len(some)))
    config = sh.HealConfig(reg="nll", targets="teacher", lr=2.5e-3, epochs=3, heldout=0.25, keep_epoch="last")
    found = {}
    for experts in (True, False):
        healed = sh.heal(lm, rows, replace(config, experts=experts), {}, teacher=teacher)
        count = sum(f.numel() for side in (healed.adapter.a, healed.adapter.b) for f in side.values())
        found[experts] = (healed.figures["heldout_target_after"], healed.figures["heldout_target_before"], count)
        print(f"experts {experts}: {found[experts]}")
    assert found[False][0] < found[True][0] < 0.5 * found[True][1] and 5 * found[False][2] < found[True][2]
