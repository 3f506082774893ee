"""The benches: baselines compute what the package computes, copies and tokens are counted, misses are called misses."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import resume_runs
import torch
from script_modules import script

from steer_heal.errors import InputError
from steer_heal.healing import heal, reference_states
from steer_heal.healing.bake import AdapterStack
from steer_heal.loop.rounds import run_rounds
from steer_heal.studies.benchmarks import gpu, measuring
from steer_heal.studies.benchmarks import heal as heal_bench
from steer_heal.studies.benchmarks.generate import GenerateBench, bandwidth_limit, bench_generate, generate_arms
from steer_heal.studies.benchmarks.loss import loss_arms
from steer_heal.studies.benchmarks.measuring import against, peak_fresh, ratio, take_turns
from steer_heal.studies.benchmarks.models import PRESETS, Sizes, config_of, make
from steer_heal.studies.benchmarks.naive import history_of, naive_heal
from steer_heal.studies.benchmarks.passes import ExtractBench, FilterBench, bench_extract, bench_filter, filter_arms
from steer_heal.texts.engines import compiled

bench = script("bench")

SMALL = Sizes(
    layers=3, width=32, vocab=600, rows=6, prompt=5, reply=12, rounds=2, epochs=2, repeats=2, threads=1
)  # fmt: skip
TINY = {"preset": "tiny", "threads": 1, "repeats": 2}


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_naive_loop_trains_the_same_adapter_as_heal_on_baked_rounds(family):
    sizes = replace(SMALL, family=family)
    config = replace(config_of(sizes), lr=1e-3)
    lm, rows, adapters = make(sizes)
    history = history_of(lm, adapters)
    before = {name: p.detach().clone() for name, p in lm.base.named_parameters()}
    naive = naive_heal(lm, rows, config, history)
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
    copies = heal_bench.copies_per_step(SMALL)
    # Four completions in the first step and two in the second, each with two passes that copy aside, in and back.
    modules = len(make(SMALL)[2][0].modules)
    assert copies == {"kl_rev": 0, "naive": modules * 3 * 2 * 5 / 2}


@pytest.mark.parametrize("cap", [None, 5.0])
def test_every_loss_of_the_memory_bench_has_the_same_gradient(cap):
    names = ["chunked", "naive", "naive, all positions"]
    arms = loss_arms(20, 300, 16, cap, names)
    chunked, naive, everywhere = (arms[name]() for name in names)
    torch.testing.assert_close(chunked, naive, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(everywhere[:20], naive, atol=1e-7, rtol=1e-4)
    assert not everywhere[20:].any()


def test_arms_take_turns_and_ratios_are_those_of_neighbours():
    seen = []
    for seconds in take_turns({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 3):
        assert [len(s) for s in seconds.values()] == [3, 3]
    assert seen == list("ababab")
    assert ratio({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 4.0]}, "a", "b") == [2, 3, 1]


def test_a_missed_target_is_said_to_be_missed():
    assert against("x", [1.3, 1.2, 1.9], 1.4, True).endswith("1.30 (1.20 to 1.90); target at most 1.4: reached")
    assert against("x", [1.5, 1.5, 1.2], 1.4, True).endswith("MISSED")
    assert against("x", [1.5, 1.4, 1.4], 1.5, False).endswith("MISSED")


def test_peak_memory_sees_what_a_fresh_process_holds_at_once():
    options = {"positions": 64, "vocab": 40_000, "width": 8, "cap": None, "threads": 1}
    unit = 64 * 40_000 * 4 / 2**20
    assert peak_fresh("loss", "naive", options)["mib"] > 4 * unit


def test_heal_and_bake_print_ratios_targets_and_memory(monkeypatch, capsys):
    monkeypatch.setattr(measuring, "peak_fresh", lambda kind, name, options: {"mib": 1.0, "seconds": 1.0})
    flags = [f"--{key}={value}" for key, value in asdict(SMALL).items()]
    assert bench.main(["heal", *flags]) == 0
    shown = capsys.readouterr().out
    assert shown.count("target") == 5 and "nll 1 MiB" in shown and "load average" in shown
    bench.main(["bake", *flags])
    shown = capsys.readouterr().out
    assert "baked / plain" in shown and "bit for bit: yes" in shown


# ---------------------------------------------------------------- generate, extract, filter


def test_every_arm_of_generate_samples_exactly_the_tokens_asked_for(monkeypatch):
    monkeypatch.setattr(compiled, "compiled_forward", lambda kind: kind.forward)
    sizes = GenerateBench(**TINY, rows=5, tokens=7, single_rows=2, engines=("compiled",))
    counts = {name: arm() for name, arm in generate_arms(sizes.load(endless=True), sizes).items()}
    assert counts == {"steered": 35, "plain": 35, "one at a time": 14, "compiled": 35}


def test_the_bench_of_a_gpu_runs_its_parts_on_a_cpu_too_and_leaves_the_model_as_it_was(monkeypatch):
    monkeypatch.setattr(compiled, "compiled_forward", lambda kind: kind.forward)
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    sizes = gpu.GpuBench(**TINY | {"repeats": 1}, device="cpu", rows=3, tokens=4, single_rows=1, texts=12, reply=8)
    made = sizes.load(endless=True)
    before = {name: p.clone() for name, p in made.base.named_parameters()}
    monkeypatch.setattr(gpu.GpuBench, "load", lambda self, endless=False: made)
    asked = []

    def rounds(config, lm):
        asked.append(config)
        small = resume_runs.mini_trait(Path(config.out))
        return run_rounds(replace(config, **resume_runs.SETTINGS, out=config.out), lm=lm, trait=str(small))

    monkeypatch.setattr(gpu, "run_rounds", rounds)
    shown = gpu.bench_gpu(sizes)
    assert "engine compiled / steered" in shown and "gradient of one step, kl_rev / nll" in shown
    assert "a round of 12 texts of 8 tokens" in shown and "  heal " in shown
    (config,) = asked
    assert (config.n_min, config.max_new_tokens, config.engine) == (12, 8, "compiled")
    assert all(torch.equal(before[name], p) for name, p in made.base.named_parameters())


def test_generate_refuses_to_compare_replies_that_end_by_themselves(monkeypatch):
    sizes = GenerateBench(**TINY, rows=8, tokens=200)
    ending = sizes.load(endless=False)
    with torch.no_grad():  # the end token is the likeliest everywhere
        ending.base.get_output_embeddings().weight.zero_()
    monkeypatch.setattr(GenerateBench, "load", lambda self, endless=False: ending)
    with pytest.raises(RuntimeError, match="cannot be compared"):
        bench_generate(sizes)


def test_replies_that_end_by_chance_are_counted_to_their_ends_and_cost_no_rows_after_them():
    sizes = GenerateBench(**TINY, rows=12, tokens=30, mean_tokens=6, single_rows=1)
    lm = sizes.model()
    arms, passes = generate_arms(lm, sizes), []
    hook = lm.blocks[0].register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    assert arms["plain"]() == arms["plain"]() < 12 * 30 / 2 and set(passes) == {12}
    passes.clear()
    assert arms["steered"]() <= sum(passes) < 12 * 30 / 2
    hook.remove()
    with pytest.raises(InputError, match="mean_tokens 31"):
        replace(sizes, mean_tokens=31).model()


def test_generate_states_both_targets_and_refuses_a_missing_gpu(capsys):
    flags = ["--preset=tiny", "--threads=1", "--rows=4", "--tokens=4", "--repeats=1"]
    assert bench.main(["generate", *flags]) == 0
    shown = capsys.readouterr().out
    assert shown.count("target at least") == 2 and "steered / plain batched" in shown
    if not torch.cuda.is_available():
        assert bench.main(["generate", *flags, "--device=cuda"]) == 2
        assert "not available" in capsys.readouterr().err
    with pytest.raises(InputError, match="single_rows"):
        bench_generate(GenerateBench(**TINY, rows=4, single_rows=9))


def test_bandwidth_limit_counts_weights_and_cache_once_per_step():
    sizes = GenerateBench(**TINY, rows=4, tokens=10)
    lm = sizes.load(endless=True)
    weights = sum(p.numel() for p in lm.base.parameters()) - 600 * 32  # the input embedding is not read as a whole
    fast, slow = bandwidth_limit(lm, sizes, 2e9), bandwidth_limit(lm, sizes, 1e9)
    assert fast == pytest.approx(2 * slow)
    assert fast < 4 * 2e9 / (4 * weights)
    assert fast > 4 * 2e9 / (4 * (weights + 2 * 3 * 8 * 4 * 4 * 200))


def test_the_large_preset_has_four_billion_parameters():
    shape = PRESETS["4b"]
    heads = 2 * shape.num_attention_heads + 2 * shape.num_key_value_heads
    block = shape.hidden_size * (shape.head_dim * heads + 3 * shape.intermediate_size)
    total = shape.num_hidden_layers * block + shape.vocab_size * shape.hidden_size
    assert shape.tie_word_embeddings and 3.9e9 < total < 4.2e9


def test_extract_prints_its_share_of_full_forward_passes():
    shown = bench_extract(ExtractBench(**TINY, contexts=6, layers=(0.0, 0.4)))
    assert "blocks run: 2 of 3" in shown and "target at most 0.28" in shown


def test_scoring_one_by_one_gives_the_figures_of_scoring_in_batches():
    sizes = FilterBench(**TINY, rows=6, reply=30)
    arms = filter_arms(sizes.load(), sizes)
    batched, naive, alone = (arms[name]() for name in ("batched", "one by one", "batched, alone"))
    for a, b, c in zip(batched, naive, alone, strict=True):
        assert b == pytest.approx({key: a[key] for key in b}, abs=1e-4)
        assert c == pytest.approx(a, abs=1e-4)
    assert len({row["nll"] for row in batched}) == 6
    assert "target at most 0.8" in bench_filter(sizes)
