"""A heal's steps are fitted to the memory that is free: what is kept is known beforehand, what is chosen is the same
adapter.
"""

from dataclasses import replace

import pytest
import torch
from healing_data import QUICK, completion, gradients, task_of, with_b
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from steer_heal.commands.main import main
from steer_heal.healing import HealConfig, heal, reference_states
from steer_heal.healing.barriers.chunked import default_chunk, loss_bytes
from steer_heal.healing.lora import checkpoint_blocks, injected
from steer_heal.healing.loss import fitted
from steer_heal.healing.plan import ROOM, Fit, fit

MIB = 2.0**20
CONFIG = HealConfig(batch_size=4)


@pytest.mark.parametrize(("asked", "free", "chosen"), [
    ("auto", 1000, Fit(False, 4, 262)),  # 4 rows of 100 MiB and 160 of loss
    ("auto", 500 / ROOM, Fit(True, 4, 262)),
    ("off", 500 / ROOM, Fit(False, 4, 131)),  # 100 MiB are left for the loss, which takes half
    ("off", 250 / ROOM, Fit(False, 2, 65)),
    ("auto", 60 / ROOM, Fit(True, 2, 32)),  # two rows of 20 MiB and 20 of loss
    ("auto", 1, Fit(True, 1, 16)),  # nothing fits: the least is tried
    ("on", float("inf"), Fit(True, 4, 262)),
    ("off", float("inf"), Fit(False, 4, 262)),
])  # fmt: skip
def test_the_choice(asked, free, chosen):
    config = replace(CONFIG, gradient_checkpointing=asked)
    assert fit(config, 100 * MIB, 20 * MIB, free * MIB, 32_000) == chosen


@given(st.floats(1e3, 1e12), st.floats(1e3, 1e11), st.sampled_from(["auto", "on", "off"]), st.integers(10, 300_000))
def test_what_is_chosen_fits_wherever_the_least_does(free, kept, asked, vocabulary):
    found = fit(replace(CONFIG, gradient_checkpointing=asked), kept, kept / 5, free, vocabulary)
    needed = found.rows * (kept / 5 if found.checkpointing else kept) + loss_bytes(found.chunk, vocabulary)
    least = found.rows == 1 and found.chunk == 16
    assert needed <= ROOM * free * (1 + 1e-9) or least
    assert found.chunk <= default_chunk(vocabulary) and 1 <= found.rows <= 4


def peak(lm, rows) -> int:
    """Most bytes that a forward and backward pass allocate."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        lm.hidden_states(lm.pad_left(rows)).sum().backward()
    changes = [e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(torch.tensor(changes).cumsum(0).tolist())


def test_the_estimate_is_what_a_pass_takes_and_checkpointing_takes_about_a_third(lm, monkeypatch):
    known, rows = [], [completion(lm, i, 14) for i in range(4)]
    monkeypatch.setattr("steer_heal.healing.loss.fit", lambda *given: known.extend(given[1:3]))
    with injected(lm, QUICK, 0) as lora:
        with_b(lora)
        fitted(task_of(lm, rows, QUICK, {}), lora, 0.0)
        ids = [(*c.prompt_ids, *c.token_ids) for c in rows]
        whole = peak(lm, ids)
        checkpoint_blocks(lm)
        less = peak(lm, ids)
    for estimated, taken in zip(known, (whole, less), strict=True):
        assert ROOM * taken < 4 * estimated < 1.05 * taken
    assert less < 0.4 * whole


def test_a_heal_with_little_memory_is_the_heal_with_much(lm, data, prev):
    config = replace(QUICK, epochs=1)
    plenty, tight = (heal(lm, data, config, prev, memory=free) for free in (1e12, 1e6))
    assert (plenty.figures["checkpointing"], plenty.figures["rows"], plenty.figures["chunk"]) == (False, 4, 1024)
    assert not any("memory" in note for note in plenty.notes())
    assert tight.figures["checkpointing"] and tight.figures["rows"] < 4 and tight.figures["chunk"] < 1024
    assert any("the blocks were recomputed" in note for note in tight.notes())
    for name, factor in plenty.adapter.b.items():
        torch.testing.assert_close(tight.adapter.b[name], factor, atol=1e-5, rtol=1e-4)


def test_a_hook_on_a_block_acts_in_the_recomputed_pass_too(lm, data, prev):
    direction = torch.linspace(-1, 1, lm.width)
    lm.blocks[1].register_forward_hook(lambda module, given, output: output + direction)
    lm.blocks[2].mlp.register_forward_hook(lambda module, given, output: output * 1.5)
    prev = {"prev": reference_states(lm, data)}
    (_, want), (_, got) = (
        gradients(lm, data, replace(QUICK, gradient_checkpointing=how), prev) for how in ("off", "on")
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_plan_says_what_will_be_chosen(monkeypatch, capsys):
    for free, words in (
        (1e12, "off, 4 rows in a pass"),
        (8e9, "on, 4 rows in a pass"),
        (1e9, "on, 1 rows in a pass"),
    ):
        monkeypatch.setattr("steer_heal.commands.dry_run.free_memory", lambda device, free=free: free)
        assert main(["run", "--dry-run", "--preset", "gemma-3-4b", "--load-in", "4bit"]) == 0
        assert f"A heal will have gradient checkpointing {words}" in " ".join(capsys.readouterr().out.split())
