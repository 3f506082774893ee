"""Bases with packed weights: adapters stay beside them, exactly; the real library is tried by `just quantised`."""

import json
import shutil
import sys

import pytest
import torch
from healing_data import completion
from torch import nn

import steer_heal.model
from steer_heal.commands.main import main
from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.healing import HealConfig, heal, reference_states
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.healing.lora import linear_names
from steer_heal.model import LM, verified
from steer_heal.model.structure import fingerprint, is_quantised


class Packed(nn.Linear):
    """A linear layer of 8-bit whole numbers with a scale per row, read as HQQ's are; needs no library."""

    def __init__(self, linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.register_buffer("scale", linear.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    @property
    def W_q(self):
        return self.weight

    def dequantize(self):
        return self.weight * self.scale

    def forward(self, x):
        return nn.functional.linear(x, self.dequantize(), self.bias)


@pytest.fixture
def packed(lm):
    """`tiny-random` with the linear layers of its blocks packed."""
    for block in lm.blocks:
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.Linear):
                block.set_submodule(name, Packed(module))
    return verified(LM(lm.model, lm.tokenizer, lm.name))


def adapter_for(lm, seed=0, rank=3):
    generator, a, b = torch.Generator().manual_seed(seed), {}, {}
    for name in linear_names(lm, (0.0, 1.0)):
        module = lm.base.get_submodule(name)
        a[name] = torch.randn(rank, module.in_features, generator=generator)
        b[name] = 0.03 * torch.randn(module.out_features, rank, generator=generator)
    return Adapter(a, b, rank, float(rank), lm.name)


@torch.no_grad()
def logits(lm):
    return lm.base(**lm.pad_left([[3, 5, 7, 11, 13]]), use_cache=False).logits


def test_rounds_stay_beside_packed_weights_and_leave_them_bit_for_bit(packed, tmp_path):
    bits = {name: p.clone() for name, p in packed.base.named_parameters()}
    plain, print_of_base, stack = logits(packed), fingerprint(packed.base), AdapterStack(packed.model)
    report = stack.push(adapter_for(packed, 0))
    assert report.rounding_loss == 0 and report.gain == pytest.approx(1) and 0 < report.relative_change < 10
    once, print_of_once = logits(packed), fingerprint(packed.base)
    stack.push(adapter_for(packed, 1), dose=0.5)
    twice = logits(packed)
    assert not torch.allclose(once, plain) and not torch.allclose(twice, once)
    assert len({print_of_base, print_of_once, fingerprint(packed.base)}) == 3
    with stack.unfolded():
        assert torch.equal(logits(packed), plain) and fingerprint(packed.base) == print_of_base
    with stack.scaled(0.0):
        assert torch.allclose(logits(packed), plain, atol=1e-5)
    assert torch.equal(logits(packed), twice)
    whole = stack.export_peft(tmp_path / "adapter", packed)  # raises unless peft beside the base has these logits
    assert whole.rank == 6 and Adapter.load(tmp_path / "adapter") == whole
    stack.pop()
    assert torch.equal(logits(packed), once)
    stack.pop()
    assert torch.equal(logits(packed), plain)
    assert {name: p.dtype for name, p in packed.base.named_parameters()} == {n: p.dtype for n, p in bits.items()}
    assert all(torch.equal(bits[name], p) for name, p in packed.base.named_parameters())


def test_the_delta_beside_is_the_one_that_would_be_folded(packed, tmp_path):
    adapter, full = adapter_for(packed), steer_heal.model.load("tiny-random")
    for name, module in list(full.base.named_modules()):
        if is_quantised(there := packed.base.get_submodule(name)):
            module.weight.data = there.dequantize()
    assert torch.equal(logits(full), logits(packed))
    for lm in (full, packed):
        AdapterStack(lm.model).push(adapter, 0.7)  # nobody keeps the stack
    torch.testing.assert_close(logits(full), logits(packed), atol=1e-5, rtol=1e-4)


def test_a_packed_model_is_healed_and_heals_again_on_its_own_adapter(packed):
    rows = [completion(packed, i, 6) for i in range(8)]
    stack, config = AdapterStack(packed.model), HealConfig(rank=2, lr=1e-2, epochs=1, lora_layers=(0.0, 1.0))
    for _ in range(2):
        before = packed.base.training, {id(m) for m in packed.base.modules()}
        healed = heal(packed, rows, config, {"prev": reference_states(packed, rows)})
        assert before == (packed.base.training, {id(m) for m in packed.base.modules()})
        assert all(is_quantised(packed.base.get_submodule(name)) for name in healed.adapter.modules)
        stack.push(healed.adapter)
    assert len(stack) == 2


def test_packed_numbers_are_sound_by_their_scales(packed):
    next(m for m in packed.base.modules() if is_quantised(m)).scale[0] = torch.nan
    with pytest.raises(InputError, match=r"weight .*q_proj.* is not finite"):
        verified(packed)


def test_a_missing_library_and_a_base_that_is_packed_already_are_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="one of 4bit, 8bit"):
        steer_heal.model.load("tiny-random", load_in="3bit")
    assert main(["run", "--fast-dev-run", "--load-in", "8bit", "--out", str(tmp_path / "runs")]) == 2
    line = capsys.readouterr().err.strip()
    assert "pip install 'steer-heal[quantized]'" in line and "\n" not in line
    monkeypatch.setitem(sys.modules, "bitsandbytes", nn)
    lm = steer_heal.model.load("tiny-random")
    lm.base.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    found = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    config.write_text(json.dumps(found))
    with pytest.raises(InputError, match="quantised already"):
        steer_heal.model.load(tmp_path / "model", load_in="8bit")


def test_an_engine_of_full_weights_and_a_packed_base_are_refused():
    with pytest.raises(InputError, match="leave one out"):
        RunConfig(engine="vllm", load_in="8bit").resolved()


def test_the_plan_says_what_the_weights_take_by_load_in(capsys):
    assert main(["run", "--dry-run", "--model", "tiny-random", "--load-in", "4bit"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Weights by --load-in: as it is" in said and "4bit" in said and "are free here" in said
    assert main(["run", "--dry-run", "--preset", "llama-3.1-8b"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "as it is 16 GB, 4bit 4.8 GB, 8bit 8.6 GB" in said


def test_a_whole_model_of_a_run_on_packed_weights_is_written_from_the_full_ones(
    fast_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # the full weights need none
    run = shutil.copytree(fast_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text()) | {"load_in": "8bit"}
    (run / "config.json").write_text(json.dumps(config))
    words = ["export", str(run), "--round", "0", "--scales", "1", "--to"]
    assert main([*words, str(tmp_path / "adapter")]) == 2  # the adapter is checked beside the packed base
    assert "steer-heal[quantized]" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "whole"), "--merged"]) == 0
    assert "base was in 8bit" in capsys.readouterr().out
    assert "base was in 8bit" in (tmp_path / "whole" / "README.md").read_text()


# The real library: `just quantised`


@pytest.mark.slow
@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
@pytest.mark.parametrize("model", ["tiny-random", "pocket"])
def test_a_run_on_a_packed_base_and_its_exports(model, load_in, tmp_path):
    words = [
        "run",
        "--fast-dev-run",
        "--model",
        model,
        "--load-in",
        load_in,
        "--gate",
        "watch",
        "--quiet",
        "--out",
        "runs",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(words) in (0, 3)
        (run,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
        for kind in ([], ["--merged"]):
            target = f"{model}{len(kind)}"
            assert main(["export", str(run), "--round", "0", "--scales", "1", "--to", target, *kind]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_a_row_is_alone_what_it_is_in_a_batch(load_in):
    lm = steer_heal.model.load("pocket", load_in=load_in)
    rows = torch.randint(600, (6, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone, batch = lm.base(rows[:1]).logits, lm.base(rows).logits[:1]
    assert (alone - batch).abs().max() < 1e-4
    assert any(map(is_quantised, lm.base.modules()))
