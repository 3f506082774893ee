"""Heal: the loss and its gradient, what is trained and what is left alone, budgets, bad input, reproducibility."""

import contextlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steer_heal.bake import AdapterStack
from steer_heal.barriers import kl_rev
from steer_heal.completion import Completion
from steer_heal.errors import InputError
from steer_heal.healing import (
    DivergedError,
    HealConfig,
    heal,
    mean_divergence,
    overfit_check,
    reference_states,
)
from steer_heal.healing.lora import injected, linear_names, seeded
from steer_heal.healing.loss import Task, Term, backward_step, completion_losses
from steer_heal.healing.plan import lr_factor, row_shares, split_rows, step_rows
from steer_heal.healing.references import completion_hidden
from steer_heal.lm import completion_logprobs, load
from tests.families import make

QUICK = HealConfig(lr=2e-3, tau=0.01, epochs=2, batch_size=4, rank=4, alpha=8.0)


def completion(lm, i, tokens, origin="steered", seed=0):
    """A completion of random tokens that ends with the end-of-turn token."""
    g = torch.Generator().manual_seed(1000 * seed + i)
    ids = (*torch.randint(4, 400, (tokens - 1,), generator=g).tolist(), 3)
    prompt = f"question number {i}"
    return Completion(prompt, None, lm.chat_ids(prompt), ids, lm.decode(ids), True, origin=origin)


@pytest.fixture
def lm():
    return load("tiny-random")


@pytest.fixture
def data(lm):
    return [completion(lm, i, 5 + 3 * (i % 4)) for i in range(12)]


@pytest.fixture
def prev(lm, data):
    return {"prev": reference_states(lm, data)}


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[n].view(torch.uint8), other[n].view(torch.uint8)) for n in one
    )


def task_of(lm, data, config, references, weights=None):
    terms = tuple(Term(name, states, config.tau) for name, states in references.items())
    return Task(lm, data, config, terms, tuple(weights or [1.0] * len(data)))


def with_b(lora, size=0.05):
    """Give B random values, so that the student differs from its reference."""
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for b in lora.b.values():
            b.copy_(torch.randn(b.shape, generator=g) * size)


def gradients(lm, data, config, references, lam=0.3, weights=None):
    """(loss by row, gradient by factor) of one step over all rows, at a fixed B that is not zero."""
    with injected(lm, config, 0) as lora:
        with_b(lora)
        task = task_of(lm, data, config, references, weights)
        stats = backward_step(task, lora, range(len(data)), dict.fromkeys(references, lam))
        return stats, [p.grad.clone() for p in lora.parameters]


# ---------------------------------------------------------------- reference states and losses


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2", "gemma3"])
def test_reference_states_and_nll_equal_each_row_alone_without_padding(family):
    lm = make(family)
    rows = [completion(lm, i, n) for i, n in enumerate((4, 17, 9, 1, 30))]
    states = reference_states(lm, rows, batch_tokens=200)
    hidden, targets, lengths = completion_hidden(lm, rows)
    for row, hidden_row, target in zip(rows, hidden.split(lengths), targets.split(lengths), strict=True):
        ids = torch.tensor([[*row.prompt_ids, *row.token_ids]])
        mask = torch.ones_like(ids)
        with torch.no_grad():
            alone = lm.hidden_states({"input_ids": ids, "attention_mask": mask})[0, len(row.prompt_ids) - 1 : -1]
        torch.testing.assert_close(states.of(row), alone, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(hidden_row, alone, atol=2e-5, rtol=1e-4)
        assert target.tolist() == list(row.token_ids)  # the sampled ids, end of turn kept


def test_nll_is_the_token_mean_of_the_completion(lm, data, prev):
    with injected(lm, QUICK, 0):
        losses, lengths = completion_losses(task_of(lm, data, QUICK, prev), range(len(data)))
    logps = completion_logprobs(lm, [c.prompt_ids for c in data], [c.token_ids for c in data])
    for row, logp in zip(losses.nll.split(lengths), logps, strict=True):
        torch.testing.assert_close(row.detach(), -logp, atol=1e-5, rtol=1e-5)
    healed = heal(lm, data, replace(QUICK, heldout=0), prev)
    assert healed.figures["train_nll_before"] == pytest.approx(
        sum(-x.mean().item() for x in logps) / len(data), abs=1e-5
    )


def test_divergence_from_the_cache_vanishes_at_b_zero_in_any_batch_layout(lm, data):
    cached = {"prev": reference_states(lm, data, batch_tokens=60)}
    for rows in (range(12), [11], [3, 7, 0]):
        with injected(lm, QUICK, 0):
            losses, _ = completion_losses(task_of(lm, data, QUICK, cached), rows)
        assert losses.divergence.abs().max() < 1e-6


def test_dropout_sleeps_in_reference_and_student_whatever_mode_the_model_is_in():
    lm = make("gpt2")
    data = [completion(lm, i, 9) for i in range(6)]
    lm.model.train()
    states = {"prev": reference_states(lm, data)}
    with injected(lm, QUICK, 0):
        losses, _ = completion_losses(task_of(lm, data, QUICK, states), range(6))
    assert losses.divergence.abs().max() < 1e-6 and lm.model.transformer.drop.training
    _, want = gradients(lm, data, QUICK, states)
    _, got = gradients(lm, data, replace(QUICK, gradient_checkpointing=True), states)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_mean_divergence_is_the_mean_over_rows_of_the_aggregate(lm, data):
    stack = AdapterStack(lm.model)
    before = reference_states(lm, data)
    stack.push(heal(lm, data, QUICK, {"prev": before}).adapter)
    after = reference_states(lm, data)
    rows = []
    for c in data:
        p, q = (lm.head(states.of(c)).log_softmax(-1) for states in (after, before))
        rows.append(kl_rev(p, q).square().mean().sqrt().item())
    assert mean_divergence(lm, after, before, data, QUICK) == pytest.approx(sum(rows) / len(rows), rel=1e-4)
    assert mean_divergence(lm, before, before, data, QUICK) < 1e-6


def test_reference_states_run_each_batch_inside_its_own_context(lm, data):
    seen = []

    @contextlib.contextmanager
    def around(batch):
        seen.extend(c.prompt for c in batch)
        yield

    states = reference_states(lm, data, around=around, batch_tokens=60)
    assert sorted(seen) == sorted(c.prompt for c in data)
    with pytest.raises(InputError, match="steered"):
        heal(lm, data, QUICK, {"prev": states})


# ---------------------------------------------------------------- the gradient


@pytest.mark.parametrize("row_weights", ["none", "inv_sqrt"])
@pytest.mark.parametrize("reg", ["kl_rev", "nll"])
def test_loss_and_gradient_do_not_depend_on_packing(lm, data, prev, row_weights, reg):
    base = replace(QUICK, reg=reg, row_weights=row_weights)
    references = prev if reg != "nll" else {}
    weights = [1.0, 4.0] * 6
    stats, want = gradients(lm, data, replace(base, batch_size=12, grad_accum=1), references, weights=weights)
    for size in (1, 5):
        again, got = gradients(lm, data, replace(base, batch_size=size, grad_accum=12), references, weights=weights)
        torch.testing.assert_close(again["loss"], stats["loss"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(again["squares"], stats["squares"], rtol=1e-3, atol=1e-9)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_batch_one_times_eight_trains_the_adapter_of_eight_times_one(lm, data, prev):
    config = replace(QUICK, row_weights="inv_sqrt", heldout=0)
    one = heal(lm, data, replace(config, batch_size=1, grad_accum=8), prev).adapter
    eight = heal(lm, data, replace(config, batch_size=8, grad_accum=1), prev).adapter
    assert one.cosine(eight) > 0.999
    other = heal(lm, data, replace(config, batch_size=8, grad_accum=1, row_weights="none"), prev).adapter
    assert one.cosine(other) < one.cosine(eight)


@pytest.mark.parametrize("reg", ["kl_rev", "kl_fwd"])
def test_gradient_of_the_whole_loss_matches_finite_differences_with_history_folded(lm, data, reg):
    stack = AdapterStack(lm.model)
    original = reference_states(lm, data)
    stack.push(heal(lm, data, replace(QUICK, epochs=1), {"prev": original}, seed=5).adapter)
    references = {"prev": reference_states(lm, data), "base": original}
    config = replace(QUICK, reg=reg, spectral=0.1, row_weights="inv_sqrt", tau=0.02)
    with injected(lm, config, 0) as lora:
        with_b(lora)
        task, lam = task_of(lm, data, config, references), {"prev": 0.7, "base": 0.4}

        def loss():
            for p in lora.parameters:
                p.grad = None
            stats = backward_step(task, lora, range(len(data)), lam)
            assert (stats["d"] > config.tau).any() and (stats["squares"] > 0).all()
            return (stats["loss"].double().sum() / len(data) + 0.1 * lora.spectral().detach()).item()

        loss()
        grads = [p.grad.clone() for p in lora.parameters]
        norm = torch.sqrt(sum(g.square().sum() for g in grads))
        for direction in (grads, [torch.randn(g.shape, generator=torch.Generator().manual_seed(1)) for g in grads]):
            length = torch.sqrt(sum(d.square().sum() for d in direction))
            slope = (sum((g * d).sum() for g, d in zip(grads, direction, strict=True)) / length).item()
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    for p, d in zip(lora.parameters, direction, strict=True):
                        p += sign * 2e-3 * d / length
                values.append(loss())
                with torch.no_grad():
                    for p, d in zip(lora.parameters, direction, strict=True):
                        p -= sign * 2e-3 * d / length
            assert (values[0] - values[1]) / 4e-3 == pytest.approx(slope, rel=5e-3, abs=2e-3 * norm.item())


def test_barrier_weights_and_replay_rows_choose_where_the_barrier_acts(lm, data, prev):
    mixed = [replace(c, origin="base") if i % 3 == 0 else c for i, c in enumerate(data)]
    _, plain = gradients(lm, mixed, QUICK, prev, lam=0.0)
    _, everywhere = gradients(lm, mixed, QUICK, prev)
    _, nowhere = gradients(lm, mixed, QUICK, prev, weights=[0.0] * 12)
    assert all(torch.equal(a, b) for a, b in zip(plain, nowhere, strict=True))
    assert not all(torch.allclose(a, b) for a, b in zip(plain, everywhere, strict=True))
    _, parts = gradients(lm, mixed, QUICK, prev, weights=[float(i % 3 == 0) for i in range(12)])
    _, rest = gradients(lm, mixed, QUICK, prev, weights=[float(i % 3 != 0) for i in range(12)])
    for a, b, c, d in zip(parts, rest, everywhere, plain, strict=True):
        torch.testing.assert_close(a + b - d, c, atol=1e-6, rtol=1e-4)
    replay = heal(lm, mixed, replace(QUICK, barrier_rows="replay"), prev).adapter
    same = heal(lm, mixed, QUICK, prev, barrier_weights=[float(c.origin == "base") for c in mixed]).adapter
    assert replay == same and replay != heal(lm, mixed, QUICK, prev).adapter
    with pytest.raises(InputError, match="replay"):
        heal(lm, data, replace(QUICK, barrier_rows="replay"), prev)


def test_gradient_checkpointing_changes_no_gradient_and_really_recomputes(lm, data, prev):
    _, want = gradients(lm, data, QUICK, prev)
    calls = []
    lm.blocks[2].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    _, got = gradients(lm, data, replace(QUICK, gradient_checkpointing=True), prev)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    assert len(calls) == 6  # three batches, forward and once more in backward


def test_references_run_no_forward_pass_during_training(lm, data, prev):
    calls = []
    lm.blocks[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    base = {**prev, "base": prev["prev"]}
    healed = heal(lm, data, replace(QUICK, reference="both", heldout=0), base)
    assert calls.count(True) == healed.figures["steps"] == 6


# ---------------------------------------------------------------- LoRA


def test_every_b_moves_in_the_first_step(lm, data, prev):
    # One step in all; its learning rate must not start at 0.
    healed = heal(lm, data, replace(QUICK, epochs=1, batch_size=16), prev)
    assert healed.figures["steps"] == 1
    assert len(healed.adapter.b) == 28 and all(b.any() for b in healed.adapter.b.values())


def test_a_block_that_no_gradient_reaches_stops_the_heal(lm, data, prev):
    lm.blocks[2].register_forward_hook(lambda module, inputs, output: output.detach())
    with pytest.raises(RuntimeError, match=r"no gradient reached model.layers.0"):
        heal(lm, data, QUICK, prev)


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "gpt_neox", "gemma2"])
def test_adapters_sit_on_the_picked_text_blocks_of_every_family_and_fold_to_what_was_trained(family):
    lm = make(family)
    data = [completion(lm, i, 8) for i in range(8)]
    states = {"prev": reference_states(lm, data)}
    healed = heal(lm, data, replace(QUICK, lora_layers=(0.5, 0.6)), states)
    inside = [f"{lm.blocks_path}.{i}." for i in (1, 2)]
    assert all(name.startswith(tuple(inside)) and "vision" not in name for name in healed.adapter.modules)
    assert {name.rsplit(".", 1)[0].split(".")[-1] for name in healed.adapter.modules} >= {"mlp"}
    AdapterStack(lm.model).push(healed.adapter)
    logps = completion_logprobs(lm, [c.prompt_ids for c in data], [c.token_ids for c in data])
    train, _ = split_rows(data, healed.config)
    after = sum(-logps[i].mean().item() for i in train) / len(train)
    assert after == pytest.approx(healed.figures["train_nll_after"], abs=1e-4)
    assert after < healed.figures["train_nll_before"]


def test_adapters_and_optimiser_are_float32_in_a_bf16_model(lm, data):
    lm.model.to(torch.bfloat16)
    states = {"prev": reference_states(lm, data)}
    with injected(lm, QUICK, 0) as lora:
        assert all(p.dtype == torch.float32 for p in lora.parameters)
    healed = heal(lm, data, QUICK, states)
    assert all(b.dtype == torch.float32 and b.any() for b in healed.adapter.b.values())
    # A step of 2e-3 on entries near 0.1 would be rounded to multiples of 2^-11 in bf16.
    a = next(iter(healed.adapter.a.values()))
    assert not torch.equal(a, a.bfloat16().float())
    assert abs(healed.figures["kl_prev_before"]) < 0.01 / 10


def test_weight_decay_of_one_shrinks_the_adapter_also_in_a_bf16_model(lm, data):
    lm.model.to(torch.bfloat16)
    states = {"prev": reference_states(lm, data)}

    def size(decay):
        adapter = heal(lm, data, replace(QUICK, reg="nll", lr=1e-3, weight_decay=decay, epochs=6), states).adapter
        return sum(a.square().sum().item() for a in adapter.a.values())

    # Shrinks by (1 - lr * decay) per step: about a percent over these 18 steps; bf16 factors would not move at all.
    assert size(1.0) / size(0.0) == pytest.approx(math.exp(-2 * 1e-3 * 18 * 0.5), abs=5e-3)


def test_spectral_penalty_is_the_largest_singular_value_squared_with_its_gradient(lm):
    with injected(lm, QUICK, 0) as lora:
        lora.spectral().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and not p.grad.any() for p in lora.parameters)
        with_b(lora)
        for p in lora.parameters:
            p.grad = None
        value = lora.spectral()
        value.backward()
        a, b = ({n: p.detach().double().requires_grad_() for n, p in f.items()} for f in (lora.a, lora.b))
        squares = [torch.linalg.svdvals(2.0 * b[n] @ a[n])[0].square() for n in a]
        want = sum(squares) / len(squares)
        want.backward()
        assert value.item() == pytest.approx(want.item(), rel=1e-5)
        for exact, ours in ((a, lora.a), (b, lora.b)):
            for name in exact:
                torch.testing.assert_close(ours[name].grad.double(), exact[name].grad, rtol=1e-3, atol=1e-6)


def test_spectral_penalty_lowers_the_spectral_norm(lm, data):
    def norm(weight):
        adapter = heal(lm, data, replace(QUICK, reg="nll", spectral=weight, lr=1e-2)).adapter
        return max(torch.linalg.matrix_norm(adapter.delta(n), 2).item() for n in adapter.modules)

    assert norm(30.0) < 0.8 * norm(0.0)


# ---------------------------------------------------------------- the user's model


def test_the_model_is_bit_for_bit_as_before_after_a_heal(lm, data, prev):
    lm.model.train()
    next(lm.model.parameters()).requires_grad_(False)
    flags = [(m.training, dict(m.__dict__).keys()) for m in lm.model.modules()]
    wanted = [p.requires_grad for p in lm.model.parameters()]
    parameters, before, rng = list(lm.model.parameters()), bits(lm.model), torch.get_rng_state()
    heal(lm, data, replace(QUICK, gradient_checkpointing=True), prev)
    assert equal(bits(lm.model), before)
    assert [(m.training, dict(m.__dict__).keys()) for m in lm.model.modules()] == flags
    assert all(a is b for a, b in zip(lm.model.parameters(), parameters, strict=True))
    assert [p.requires_grad for p in lm.model.parameters()] == wanted
    assert all(p.grad is None for p in lm.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_model_is_as_before_after_an_exception_in_mid_heal(lm, data, prev):
    before, modules = bits(lm.model), list(lm.model.modules())

    def stop(row):
        if row["step"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(lm, data, QUICK, prev, on_step=stop)
    assert equal(bits(lm.model), before) and list(lm.model.modules()) == modules
    assert all(p.requires_grad for p in lm.model.parameters())
    heal(lm, data, QUICK, prev)  # and can be healed again


def test_history_stays_folded_through_a_heal_and_cannot_be_taken_out(lm, data, prev):
    stack = AdapterStack(lm.model)
    stack.push(heal(lm, data, QUICK, prev).adapter)
    folded = bits(lm.model)
    now = {"prev": reference_states(lm, data)}

    def enter(row):
        with stack.unfolded():
            pass

    with pytest.raises(RuntimeError, match="gradients"):
        heal(lm, data, QUICK, now, on_step=enter)
    assert equal(bits(lm.model), folded)


def test_a_model_that_carries_peft_layers_is_refused(lm, data, prev):
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(lm.model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match="PEFT"):
        linear_names(replace(lm, model=wrapped), (0.0, 1.0))


# ---------------------------------------------------------------- what barriers and budgets do


def test_a_heavier_barrier_ends_closer_to_the_reference(lm, data, prev):
    ends = [
        heal(lm, data, replace(QUICK, lam=lam, epochs=4), prev).figures["kl_prev_after"] for lam in (0.0, 1.0, 10.0)
    ]
    assert ends[0] > 1.2 * ends[1] > 1.2 * ends[2] > 0


def test_budget_mode_settles_at_tau_where_it_binds_and_drops_lam_where_not(lm):
    data = [completion(lm, i, 8 + i % 5) for i in range(16)]
    prev = {"prev": reference_states(lm, data)}
    config = HealConfig(lr=3e-3, lam=1.0, lam_mode="budget", epochs=30, batch_size=8, heldout=0, rank=8, alpha=16.0)
    binding = heal(lm, data, replace(config, tau=0.4), prev)
    last = [row["prev_agg"] for row in binding.steps[-15:]]
    assert sum(last) / len(last) == pytest.approx(0.4, rel=0.2) and binding.lam["prev"] > 0.1
    slack = heal(lm, data, replace(config, tau=50.0, epochs=2), prev)
    assert slack.lam["prev"] == 0.0
    carried = heal(lm, data, replace(config, tau=0.4, epochs=1), prev, round=3, lam0=binding.lam)
    assert carried.steps[0]["prev_lam"] == binding.lam["prev"]


def test_lam_is_scheduled_over_rounds_and_each_reference_has_its_own_budget(lm, data, prev):
    config = replace(QUICK, reference="both", lam=0.4, lam_power=-0.5, lam_base=0.8, tau_base=0.7, epochs=1)
    healed = heal(lm, data, config, {**prev, "base": prev["prev"]}, round=3)
    assert healed.lam == {"prev": 0.2, "base": 0.4} and healed.tau == {"prev": 0.01, "base": 0.7}


def test_relative_tau_is_a_share_of_what_the_steering_caused(lm, data, prev):
    config = replace(QUICK, tau_rel=0.5, epochs=1)
    assert heal(lm, data, config, prev, steering_divergence=0.6).tau == {"prev": 0.3}
    for bad in (None, 0.0, math.nan):
        with pytest.raises(InputError, match="steering_divergence"):
            heal(lm, data, config, prev, steering_divergence=bad)


def test_base_reference_sees_the_history_and_prev_does_not(lm, data, prev):
    stack = AdapterStack(lm.model)
    stack.push(heal(lm, data, QUICK, prev).adapter)
    with stack.unfolded():
        base = reference_states(lm, data)
    now = {"prev": reference_states(lm, data), "base": base}
    healed = heal(lm, data, replace(QUICK, reference="base"), now)
    assert healed.figures["kl_base_before"] > 1e-3 and abs(healed.figures["kl_prev_before"]) < 1e-6
    assert set(healed.lam) == {"base"} and healed.figures["kl_prev_after"] > 1e-4


def test_a_users_own_divergence_trains(lm, data, prev):
    def squared(logp, logq):
        return (logp.exp() - logq.exp()).square().sum(-1)

    free = heal(lm, data, replace(QUICK, reg="nll"), prev)
    held = heal(lm, data, replace(QUICK, reg=squared, tau=0.0, lam=300.0), prev)
    assert held.figures["kl_prev_after"] < free.figures["kl_prev_after"]
    assert held.figures["prev_fired"] > 0.5


# ---------------------------------------------------------------- figures and reproducibility


def test_same_seed_same_bits_and_another_seed_or_round_another_adapter(lm, data, prev):
    one, two = (heal(lm, data, QUICK, prev, seed=3) for _ in range(2))
    assert one.adapter == two.adapter and one.steps == two.steps and one.figures == two.figures
    assert heal(lm, data, QUICK, prev, seed=4).adapter != one.adapter
    assert heal(lm, data, QUICK, prev, seed=3, round=1).adapter != one.adapter
    starts = []
    for round in (0, 1):
        with injected(lm, QUICK, 3, round) as lora:
            starts.append(lora.adapter())
    # A new A in each round: a shared one would tie the rounds' deltas to one another.
    assert not any(torch.equal(starts[0].a[name], starts[1].a[name]) for name in starts[0].a)


def test_history_is_complete_json_and_passed_to_the_callback(lm, data, prev):
    seen = []
    healed = heal(lm, data, QUICK, prev, on_step=seen.append)
    assert [r for r in seen if r["kind"] == "step"] == list(healed.steps)
    assert [r for r in seen if r["kind"] == "epoch"] == list(healed.epochs) and len(healed.epochs) == 2
    keys = {
        "loss",
        "nll",
        "lr",
        "grad_norm",
        "prev_mean",
        "prev_agg",
        "prev_max",
        "prev_fired",
        "prev_ratio",
        "prev_lam",
    }
    assert keys <= healed.steps[0].keys()
    json.dumps([healed.steps, healed.epochs, healed.figures], allow_nan=False)
    figures = healed.figures
    assert figures["rows_heldout"] == 1 and figures["train_nll_after"] < figures["train_nll_before"]
    assert healed.epochs[-1]["heldout_nll"] == pytest.approx(figures["heldout_nll_after"], abs=1e-6)
    last = healed.steps[-1]
    assert last["loss"] == pytest.approx(last["nll"] + 0.3 * max(0, last["prev_agg"] - 0.01), abs=0.01)
    assert 0 < figures["prev_fired"] <= 1 and 0 < last["prev_ratio"] < 1


def test_replay_rows_have_figures_of_their_own(lm, data):
    mixed = [replace(c, origin="base") if i < 4 else c for i, c in enumerate(data)]
    figures = heal(lm, mixed, QUICK, {"prev": reference_states(lm, mixed)}).figures
    assert {"kl_prev_after", "kl_prev_replay_after", "kl_prev_replay_before"} <= figures.keys()
    assert figures["kl_prev_replay_after"] != figures["kl_prev_after"]
    unsteered = [replace(c, origin="base") for c in data]
    figures = heal(lm, unsteered, QUICK, {"prev": reference_states(lm, unsteered)}).figures
    assert "kl_prev_after" in figures and "kl_prev_replay_after" not in figures


def test_notes_name_a_silent_barrier_overfitting_and_nothing_to_learn(lm, data, prev):
    silent = heal(lm, data, replace(QUICK, tau=99.0), prev)
    assert [note for note in silent.notes() if "never fired" in note]
    nll = {"train_nll_before": 2.0, "train_nll_after": 1.5, "heldout_nll_before": 2.0, "heldout_nll_after": 1.9}

    def notes(**changed):
        return replace(silent, figures={**silent.figures, **nll, "prev_fired": 0.4, **changed}).notes()

    assert notes() == ()
    assert "overfitted" in notes(heldout_nll_after=2.1)[0]
    assert "nothing to learn" in notes(train_nll_after=2.0)[0]


def test_held_out_rows_do_not_influence_the_adapter(lm, data, prev):
    train, heldout = split_rows(data, QUICK)
    assert sorted(train + heldout) == list(range(12)) and len(heldout) == 1
    changed = [replace(c, token_ids=c.token_ids[::-1]) if i in heldout else c for i, c in enumerate(data)]
    one = heal(lm, data, QUICK, prev).adapter
    assert one == heal(lm, changed, QUICK, {"prev": reference_states(lm, changed)}).adapter


def test_held_out_rows_are_whole_prompts(lm):
    rows = [completion(lm, i // 4, 5 + i) for i in range(32)]
    _, heldout = split_rows(rows, replace(QUICK, heldout=0.25))
    assert len(heldout) == 8 and len({rows[i].prompt for i in heldout}) == 2


def test_every_epoch_visits_every_row_once_in_groups_of_similar_length(lm):
    rows = [completion(lm, i, 2 + (37 * i) % 60) for i in range(64)]
    config, generator = replace(QUICK, batch_size=4, grad_accum=2), seeded(0, 0, "order")
    epochs = [list(step_rows(range(64), rows, config, generator)) for _ in range(2)]
    assert all(sorted(i for g in groups for i in g) == list(range(64)) for groups in epochs)
    assert epochs[0] != epochs[1] and all(len(g) == 8 for g in epochs[0])
    spread = [max(len(rows[i].token_ids) for i in g) - min(len(rows[i].token_ids) for i in g) for g in epochs[0]]
    assert sum(spread) / len(spread) < 30


def test_learning_rate_rises_linearly_then_falls_as_a_cosine():
    factors = [lr_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10] == 1 and factors[55] == pytest.approx(0.5) and 0 < factors[-1] < 1e-3
    assert lr_factor(0, 1, 0.1) == 1 and lr_factor(0, 1, 0.0) == 1


def test_row_shares_weight_token_sums_by_inverse_roots_and_sum_to_one():
    assert row_shares([4, 16, 100], "none") == [1 / 3] * 3
    shares = row_shares([4, 16, 100], "inv_sqrt")
    # Weight of one token: share / n, in the ratio 1/2 : 1/4 : 1/10.
    per_token = [s / n for s, n in zip(shares, (4, 16, 100), strict=True)]
    assert sum(shares) == pytest.approx(1) and per_token[0] / per_token[2] == pytest.approx(5)


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "heal.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    names: dict = {}
    exec(code, names)
    assert len(names["stack"]) == 1 and names["healed"].figures["prev_fired"] > 0


def test_one_known_completion_can_be_learnt_by_heart(lm, data):
    assert overfit_check(lm, data[0], replace(QUICK, lr=1e-2), passes=30) > 2


# ---------------------------------------------------------------- trouble


def test_a_loss_that_is_not_finite_names_step_and_row_and_keeps_the_last_good_adapter(lm, data, prev):
    calls, first = [], []

    def bursts(logp, logq):
        calls.append(1)
        value = kl_rev(logp, logq)
        return value * math.nan if len(calls) == 3 else value

    config = replace(QUICK, reg=bursts, heldout=0)
    before = bits(lm.model)
    with pytest.raises(DivergedError, match=r"step 2: the loss .* completion") as caught:
        heal(lm, data, config, prev, on_step=first.append)
    assert caught.value.step == 2 and len(caught.value.rows) == 4 and len(first) == 2
    caught.value.adapter.check()
    assert equal(bits(lm.model), before)


def test_a_gradient_that_is_not_finite_stops_before_the_adapter_takes_it(lm, data, prev):
    def spike(logp, logq):
        return kl_rev(logp, logq) + (logp - logp.detach()).abs().sqrt().sum(-1) * 1e-9

    with pytest.raises(DivergedError, match="step 0: the gradient") as caught:
        heal(lm, data, replace(QUICK, reg=spike, tau=0.0, kl_agg="mean"), prev)
    assert caught.value.adapter is None


def test_reference_states_that_are_missing_stale_or_of_other_data_are_refused(lm, data, prev):
    with pytest.raises(InputError, match="'prev'"):
        heal(lm, data, QUICK, {})
    with pytest.raises(InputError, match="'base'"):
        heal(lm, data, replace(QUICK, reference="both"), prev)
    with pytest.raises(InputError, match="other data"):
        heal(lm, [*data, completion(lm, 99, 5)], QUICK, prev)
    stack = AdapterStack(lm.model)
    stack.push(heal(lm, data, QUICK, prev).adapter)
    with pytest.raises(InputError, match="stale"):
        heal(lm, data, QUICK, prev)
    now = reference_states(lm, data)
    with pytest.raises(InputError, match="unfolded"):
        heal(lm, data, QUICK, {"prev": now, "base": now})
    with pytest.raises(InputError, match="'someone'"):
        heal(replace(lm, name="someone"), data, QUICK, {"prev": now})


def test_a_head_that_the_chunked_loss_cannot_follow_is_refused_before_training(lm, data, prev, monkeypatch):
    own = lm.model.forward

    def forward(*args, **kwargs):
        out = own(*args, **kwargs)
        out.logits = out.logits + torch.arange(out.logits.shape[-1])
        return out

    monkeypatch.setattr(lm.model, "forward", forward)
    with pytest.raises(InputError, match="output head"):
        heal(lm, data, QUICK, prev)


def test_unusable_completions_are_refused_by_index(lm, data, prev):
    with pytest.raises(InputError, match="no completions"):
        heal(lm, [], QUICK, prev)
    with pytest.raises(InputError, match="too few"):
        heal(lm, data[:3], QUICK, prev)
    with pytest.raises(InputError, match="completion 1 has no tokens"):
        reference_states(lm, [data[0], replace(data[1], token_ids=())])
    with pytest.raises(InputError, match="completion 0 has no prompt"):
        reference_states(lm, [replace(data[0], prompt_ids=())])
    with pytest.raises(InputError, match=r"completion 0 has .* context"):
        reference_states(lm, [replace(data[0], token_ids=(5,) * 1100)])
    with pytest.raises(InputError, match="barrier_weights"):
        heal(lm, data, QUICK, prev, barrier_weights=[1.0])


def test_a_broken_models_states_are_refused(lm, data):
    with torch.no_grad():
        lm.blocks[1].mlp.down_proj.weight[0, 0] = math.inf
    with pytest.raises(InputError, match="non-finite"):
        reference_states(lm, data)


@pytest.mark.parametrize(
    "bad",
    [
        {"reg": "kl"}, {"lam": -1}, {"tau": math.nan}, {"tau_rel": -0.5}, {"kl_agg": "median"}, {"reference": "old"},
        {"tau_base": -1}, {"lam_base": math.inf}, {"kl_top_k": -3}, {"kl_top_k": 2.5}, {"lam_mode": "dual"},
        {"lam_power": math.inf}, {"lam_rate": -1}, {"lam_mode": "budget", "lam_rate": 0}, {"lam_max": 0}, {"rank": 0},
        {"rank": 1.5}, {"alpha": 0}, {"lora_layers": (0.9, 0.1)}, {"lr": 0}, {"lr": "fast"}, {"betas": (0.9, 1.0)},
        {"weight_decay": -1}, {"spectral": -1}, {"epochs": 0}, {"batch_size": 0}, {"grad_accum": 0}, {"warmup": 1.0},
        {"clip": -1}, {"heldout": 0.9}, {"row_weights": "sqrt"}, {"barrier_rows": "some"}, {"lam": True},
    ],
)  # fmt: skip
def test_an_impossible_value_is_one_line_that_names_the_knob(bad):
    with pytest.raises(InputError) as caught:
        HealConfig(**bad)
    message = str(caught.value)
    assert "\n" not in message
    assert any(name in message for name in bad) or "layer" in message
