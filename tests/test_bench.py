"""The benches: the naive loop computes what `heal` computes, copies are counted, misses are called misses."""

import importlib.util
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from steer_heal.bake import AdapterStack
from steer_heal.healing import heal, reference_states

spec = importlib.util.spec_from_file_location("bench", Path(__file__).parents[1] / "scripts" / "bench.py")
bench = importlib.util.module_from_spec(spec)
sys.modules["bench"] = bench  # dataclasses look their module up by name
spec.loader.exec_module(bench)

SMALL = bench.Sizes(
    layers=3, width=32, vocab=600, rows=6, prompt=5, reply=12, rounds=2, epochs=2, repeats=2, threads=1
)  # fmt: skip


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_naive_loop_trains_the_same_adapter_as_heal_on_baked_rounds(family):
    sizes = replace(SMALL, family=family)
    config = replace(bench.config_of(sizes), lr=1e-3)
    lm, rows, adapters = bench.make(sizes)
    history = bench.history_of(lm, adapters)
    before = {name: p.detach().clone() for name, p in lm.base.named_parameters()}
    naive = bench.naive_heal(lm, rows, config, history)
    assert all(torch.equal(before[name], p) for name, p in lm.base.named_parameters())
    stack = AdapterStack(lm.model)
    for adapter in adapters:
        stack.push(adapter)
    lean = heal(lm, rows, config, {"prev": reference_states(lm, rows)}).adapter
    assert naive.cosine(lean) > 1 - 1e-4
    for name in lean.modules:
        torch.testing.assert_close(naive.b[name], lean.b[name], atol=2e-5, rtol=2e-2)
    while len(stack):
        stack.pop()
    assert heal(lm, rows, config, {"prev": reference_states(lm, rows)}).adapter.cosine(naive) < 1 - 1e-4


def test_a_heal_copies_no_weight_and_the_naive_loop_all_adapted_ones():
    copies = bench.copies_per_step(SMALL)
    # Four completions in the first step and two in the second, each with two passes that copy aside, in and back.
    modules = len(bench.make(SMALL)[2][0].modules)
    assert copies == {"kl_rev": 0, "naive": modules * 3 * 2 * 5 / 2}


@pytest.mark.parametrize("cap", [None, 5.0])
def test_every_loss_of_the_memory_bench_has_the_same_gradient(cap):
    names = ["chunked", "naive", "naive, all positions"]
    arms = bench.loss_arms(20, 300, 16, cap, names)
    chunked, naive, everywhere = (arms[name]() for name in names)
    torch.testing.assert_close(chunked, naive, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(everywhere[:20], naive, atol=1e-7, rtol=1e-4)
    assert not everywhere[20:].any()


def test_arms_take_turns_and_ratios_are_those_of_neighbours():
    seen = []
    for seconds in bench.take_turns({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 3):
        assert [len(s) for s in seconds.values()] == [3, 3]
    assert seen == list("ababab")
    assert bench.ratio({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 4.0]}, "a", "b") == [2, 3, 1]


def test_a_missed_target_is_said_to_be_missed():
    assert bench.against("x", [1.3, 1.2, 1.9], 1.4, True).endswith("1.30 (1.20 to 1.90); target at most 1.4: reached")
    assert bench.against("x", [1.5, 1.5, 1.2], 1.4, True).endswith("MISSED")
    assert bench.against("x", [1.5, 1.4, 1.4], 1.5, False).endswith("MISSED")


def test_peak_memory_sees_what_a_fresh_process_holds_at_once():
    options = {"positions": 64, "vocab": 40_000, "width": 8, "cap": None, "threads": 1}
    unit = 64 * 40_000 * 4 / 2**20
    chunked, naive = (bench.peak_fresh("loss", name, options)["mib"] for name in ("chunked", "naive"))
    assert naive > 4 * unit and chunked > 0.2 * unit


def test_heal_and_bake_print_ratios_targets_and_memory(monkeypatch, capsys):
    monkeypatch.setattr(bench, "peak_fresh", lambda kind, name, options: {"mib": 1.0, "seconds": 1.0})
    flags = [f"--{key}={value}" for key, value in asdict(SMALL).items()]
    bench.main(["heal", *flags])
    shown = capsys.readouterr().out
    assert shown.count("target") == 3 and "nll 1 MiB" in shown and "load average" in shown
    bench.main(["bake", *flags])
    shown = capsys.readouterr().out
    assert "baked / plain" in shown and "bit for bit: yes" in shown
