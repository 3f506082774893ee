"""Folding rounds into weights, undoing it bit for bit, and what leaves the house: PEFT adapters and merged models."""

import gc
import json

import pytest
import torch
from families import make
from healing_data import ATTENTION, MLP, random_adapter
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from steer_heal.errors import InputError
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack, preserved, stack_of, weights_in_use
from steer_heal.model import load

IDS = torch.arange(5, 45).reshape(2, 20)


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one, other):
    return all(torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fold_equals_its_formula_bit_for_bit_and_leaves_the_rest_alone(lm, dtype):
    lm.model.to(dtype)
    before = bits(lm.model)
    adapters, doses = [random_adapter(lm, s) for s in range(3)], (1.0, 0.5, -2.0)
    stack = AdapterStack(lm.model)
    for adapter, dose in zip(adapters, doses, strict=True):
        stack.push(adapter, dose)
    assert len(stack) == 3 and stack.doses == doses
    for name, tensor in lm.model.state_dict().items():
        module = name.removesuffix(".weight")
        if module not in adapters[0].a:
            assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
            continue
        total = torch.zeros(tensor.shape, dtype=torch.float64)
        for adapter, dose in zip(adapters, doses, strict=True):
            total = total + dose * (2.0 * (adapter.b[module].double() @ adapter.a[module].double()))
        assert torch.equal(tensor, (before[name].double() + total).to(dtype))
        assert not torch.equal(tensor, before[name])


def test_undo_returns_the_bits_of_before_each_push(lm):
    stack, states = AdapterStack(lm.model), [bits(lm.model)]
    for seed in range(3):
        stack.push(random_adapter(lm, seed, modules=(ATTENTION.format(seed),)))
        states.append(bits(lm.model))
    for state in reversed(states[:-1]):
        stack.pop()
        assert equal(lm.model.state_dict(), state)
    with pytest.raises(InputError, match="empty"):
        stack.pop()


def test_unfolded_gives_the_original_bits_without_copies_and_comes_back_after_an_exception(lm):
    original, pointers = bits(lm.model), {n: p.data_ptr() for n, p in lm.model.named_parameters()}
    stack = AdapterStack(lm.model)
    stack.push(random_adapter(lm, 0))
    folded = bits(lm.model)
    with pytest.raises(KeyError), stack.unfolded():
        assert equal(lm.model.state_dict(), original)
        assert {n: p.data_ptr() for n, p in lm.model.named_parameters()} == pointers
        with stack.unfolded():
            assert equal(lm.model.state_dict(), original)
        assert equal(lm.model.state_dict(), original)
        raise KeyError
    assert equal(lm.model.state_dict(), folded) and not equal(folded, original)


def test_folding_inside_unfolded_or_a_running_heal_is_refused(lm):
    stack = AdapterStack(lm.model)
    stack.push(random_adapter(lm, 0))
    with stack.unfolded():
        for act in (lambda: stack.push(random_adapter(lm, 1)), stack.pop, lambda: stack.export_peft("x")):
            with pytest.raises(RuntimeError, match="unfolded"):
                act()
    with weights_in_use(lm.model):
        for act in (lambda: stack.push(random_adapter(lm, 1)), stack.pop, stack.unfolded().__enter__):
            with pytest.raises(RuntimeError, match="heal"):
                act()
    assert len(stack) == 1


def test_sixteen_aligned_rounds_in_bf16_stay_within_one_rounding(lm):
    lm.model.to(torch.bfloat16)
    name = MLP.format(2)
    pristine = lm.base.get_submodule(name).weight.detach().clone()
    adapter = random_adapter(lm, 0, rank=16, modules=(name,), alpha=16.0)
    step = adapter.delta(name)
    factor = 3e-3 * (pristine.double().norm() / step.norm()).item()
    stack, sequential = AdapterStack(lm.model), pristine.clone()
    for _ in range(16):
        report = stack.push(adapter, factor)
        sequential = (sequential.double() + factor * step).to(torch.bfloat16)
    wanted = 16 * factor * step
    folded = lm.base.get_submodule(name).weight.double()

    def error(weight):
        return ((weight.double() - pristine.double() - wanted).norm() / wanted.norm()).item()

    assert error(folded) < 0.06 and report.rounding_loss == pytest.approx(error(folded))
    assert error(sequential) > 0.3
    # Half a unit in the last place of bf16, which keeps 8 bits.
    target = pristine.double() + wanted
    assert ((folded - target).abs() <= target.abs() * 2**-8).all()


def test_a_delta_lost_to_bf16_is_reported(lm):
    lm.model.to(torch.bfloat16)
    name = MLP.format(2)
    adapter = random_adapter(lm, 0, rank=16, modules=(name,))
    relative = lm.base.get_submodule(name).weight.double().norm() / adapter.delta(name).norm()
    for size, loss in ((1e-3, 0.79), (3e-3, 0.48), (1e-2, 0.17), (3e-2, 0.05)):
        stack = AdapterStack(lm.model)
        report = stack.push(adapter, size * relative.item())
        assert report.relative_change == pytest.approx(size, rel=1e-3)
        assert report.rounding_loss == pytest.approx(loss, abs=0.04)
        assert bool(report.warning) == (loss > 0.3)
        stack.pop()
    assert report.gain == pytest.approx(1, abs=0.02)


def test_float32_weights_lose_nothing(lm):
    report = AdapterStack(lm.model).push(random_adapter(lm, 0))
    assert report.rounding_loss < 1e-4 and report.gain == pytest.approx(1, abs=1e-4) and report.warning is None


def test_folded_model_computes_what_peft_computes_beside_the_weights(lm, tmp_path):
    adapters = [random_adapter(lm, 0), random_adapter(lm, 1, rank=2, modules=(MLP.format(0), MLP.format(2)))]
    stack = AdapterStack(lm.model)
    stack.push(adapters[0], 1.5)
    stack.push(adapters[1])
    baked = logits(lm.model)
    stack.export_peft(tmp_path / "stack")
    assert sorted(f.name for f in (tmp_path / "stack").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    fresh = load("tiny-random").model
    plain = logits(fresh)
    beside = logits(PeftModel.from_pretrained(fresh, str(tmp_path / "stack")).eval())
    torch.testing.assert_close(beside, baked, atol=2e-5, rtol=1e-4)
    assert (plain - baked).abs().max() > 1e-2
    assert torch.equal(logits(lm.model), baked)  # the export left the model as it was


def test_concatenation_of_ranks_is_exact(lm):
    stack = AdapterStack(lm.model)
    for seed, rank in ((0, 4), (1, 3), (2, 5)):
        stack.push(random_adapter(lm, seed, rank, alpha=float(rank)), 0.5)
    one = stack.concatenated()
    assert one.rank == 12 and one.scaling == 1
    for name in one.modules:
        torch.testing.assert_close(one.delta(name), stack.summed_delta(name), atol=1e-14, rtol=1e-12)


def test_merged_export_loads_in_plain_transformers_with_the_baked_logits(lm, tmp_path):
    stack = AdapterStack(lm.model)
    stack.push(random_adapter(lm, 0))
    stack.export_merged(tmp_path / "model", lm)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert torch.equal(logits(model), logits(lm.model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.encode("the gardener") == lm.tokenizer.encode("the gardener")
    with pytest.raises(InputError, match="not the one"):
        stack.export_merged(tmp_path / "other", load("tiny-random"))


def test_a_failed_check_leaves_no_export_behind(lm, tmp_path, monkeypatch):
    stack = AdapterStack(lm.model)
    stack.push(random_adapter(lm, 0))
    monkeypatch.setattr("steer_heal.healing.bake.export.LOGIT_TOLERANCE", {torch.float32: -1.0})
    with pytest.raises(OSError, match="logits are off"):
        stack.export_peft(tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_stack_has_nothing_to_export(lm, tmp_path):
    with pytest.raises(InputError, match="empty"):
        AdapterStack(lm.model).export_peft(tmp_path / "x")


def test_adapter_files_read_back_equal_and_write_the_same_bytes(lm, tmp_path):
    adapter = random_adapter(lm, 0)
    adapter.save(tmp_path / "one")
    adapter.save(tmp_path / "one")
    adapter.save(tmp_path / "two")
    assert Adapter.load(tmp_path / "one") == adapter
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert json.loads((tmp_path / "one" / "adapter_config.json").read_text())["target_modules"] == sorted(adapter.a)


def broken(adapter, how):
    a, b = dict(adapter.a), dict(adapter.b)
    name = adapter.modules[0]
    if how == "no modules":
        a, b = {}, {}
    elif how == "all zero":
        b = {n: torch.zeros_like(x) for n, x in b.items()}
    else:
        a[name] = a[name].clone()
        a[name][0, 0] = float(how)
    return Adapter(a, b, adapter.rank, adapter.alpha)


@pytest.mark.parametrize("how", ["no modules", "all zero", "nan", "inf"])
def test_an_empty_or_non_finite_adapter_is_neither_saved_nor_folded(lm, tmp_path, how):
    bad, before = broken(random_adapter(lm, 0), how), bits(lm.model)
    for act in (lambda: bad.save(tmp_path / "x"), lambda: AdapterStack(lm.model).push(bad)):
        with pytest.raises(InputError, match="finite" if how in ("nan", "inf") else "empty"):
            act()
    assert not (tmp_path / "x").exists() and equal(lm.model.state_dict(), before)


def test_a_damaged_or_foreign_adapter_folder_is_refused(lm, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Adapter.load(tmp_path)
    random_adapter(lm, 0).save(tmp_path / "a")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    with pytest.raises(InputError, match="use_dora"):
        Adapter.load(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="cannot be read"):
        Adapter.load(tmp_path / "a")


def test_an_unwritable_folder_is_one_clear_error(lm, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        random_adapter(lm, 0).save(tmp_path / "file" / "adapter")


def test_an_adapter_for_another_model_is_refused_with_the_mismatch_and_changes_nothing(lm):
    stack, before = AdapterStack(lm.model), bits(lm.model)
    elsewhere = random_adapter(lm, 0)
    renamed = Adapter(
        {"model.layers.9.q": next(iter(elsewhere.a.values()))}, {"model.layers.9.q": torch.ones(4, 4)}, 4, 8
    )
    wide = Adapter({ATTENTION.format(1): torch.ones(4, 99)}, {ATTENTION.format(1): torch.ones(64, 4)}, 4, 8.0, "big")
    half = Adapter(
        {**elsewhere.a, MLP.format(3): torch.ones(4, 7)}, {**elsewhere.b, MLP.format(3): torch.ones(64, 4)}, 4, 8
    )
    with pytest.raises(InputError, match=r"no module model.layers.9.q"):
        stack.push(renamed)
    with pytest.raises(InputError, match=r"big.*\(64, 64\).*\(64, 99\)"):
        stack.push(wide)
    with pytest.raises(InputError, match=MLP.format(3)):
        stack.push(half)
    with pytest.raises(InputError, match="dose"):
        stack.push(elsewhere, float("nan"))
    assert len(stack) == 0 and equal(lm.model.state_dict(), before)


def test_a_second_stack_on_a_folded_model_is_refused(lm):
    stack = AdapterStack(lm.model)
    assert len(AdapterStack(lm.model)) == 0  # nothing folded yet: harmless
    stack = AdapterStack(lm.model)
    stack.push(random_adapter(lm, 0))
    assert stack_of(lm.model) is stack
    with pytest.raises(InputError, match="already has a stack"):
        AdapterStack(lm.model)
    stack.pop()
    del stack
    gc.collect()
    assert stack_of(lm.model) is None


def test_weights_replaced_from_outside_are_noticed(lm):
    stack = AdapterStack(lm.model)
    stack.push(random_adapter(lm, 0))
    weight = lm.base.get_submodule(ATTENTION.format(1)).weight
    weight.data = weight.data.clone()
    with pytest.raises(RuntimeError, match="replaced"):
        stack.pop()


def test_conv1d_weights_are_folded_in_their_own_orientation(tmp_path):
    lm = make("gpt2")
    name = "transformer.h.1.mlp.c_fc"
    g = torch.Generator().manual_seed(0)
    adapter = Adapter(
        {name: torch.randn(3, 32, generator=g) * 0.1}, {name: torch.randn(64, 3, generator=g) * 0.1}, 3, 6.0, "", True
    )
    stack = AdapterStack(lm.model)
    stack.push(adapter)
    baked = logits(lm.model)
    adapter.save(tmp_path / "a")
    beside = logits(PeftModel.from_pretrained(make("gpt2").model, str(tmp_path / "a")).eval())
    torch.testing.assert_close(beside, baked, atol=2e-5, rtol=1e-4)
    other_way = Adapter(adapter.a, adapter.b, 3, 6.0)
    with pytest.raises(InputError, match="other way round"):
        stack.push(other_way)


def test_the_stack_folds_into_the_model_inside_a_peft_wrapper(lm, tmp_path):
    random_adapter(lm, 5).save(tmp_path / "a")
    plain = load("tiny-random")
    wrapped = PeftModel.from_pretrained(plain.model, str(tmp_path / "a")).eval()
    before = logits(wrapped)
    stack = AdapterStack(wrapped)
    stack.push(random_adapter(lm, 0))
    assert (logits(wrapped) - before).abs().max() > 1e-3
    stack.pop()
    assert torch.equal(logits(wrapped), before)


def test_cosine_equals_that_of_the_flattened_deltas(lm):
    one, two = random_adapter(lm, 0), random_adapter(lm, 1, rank=6, modules=(ATTENTION.format(1), MLP.format(3)))
    mixed = Adapter(one.a, {n: b + 0.3 for n, b in one.b.items()}, one.rank, 2.0)
    for x, y in ((one, one), (one, two), (one, mixed)):
        shapes = {name: z.delta(name) for z in (x, y) for name in z.modules}
        flat = [
            torch.cat(
                [(z.delta(name) if name in z.a else torch.zeros_like(like)).flatten() for name, like in shapes.items()]
            )
            for z in (x, y)
        ]
        assert x.cosine(y) == pytest.approx(torch.cosine_similarity(*flat, dim=0).item(), abs=1e-12)
    assert one.cosine(one) == pytest.approx(1.0)


def test_preserved_undoes_modules_hooks_flags_and_attributes(lm):
    model, before = lm.model, bits(lm.model)
    modules = list(model.modules())
    with pytest.raises(KeyError), preserved(model):
        model.train().requires_grad_(False)
        model.lm_head.register_forward_hook(lambda *_: None)
        model.extra = 1
        model.model.layers[1].mlp = torch.nn.Identity()
        raise KeyError
    assert list(model.modules()) == modules and not model.training and not hasattr(model, "extra")
    assert not model.lm_head._forward_hooks and all(p.requires_grad for p in model.parameters())
    assert equal(model.state_dict(), before)
