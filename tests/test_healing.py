"""Heal: the loss and its gradient, what is trained and what is left alone."""

import contextlib
import math
from dataclasses import replace

import pytest
import torch
from families import make
from healing_data import QUICK, bits, completion, equal, gradients, task_of, with_b

from steer_heal.errors import InputError
from steer_heal.healing import (
    heal,
    mean_divergence,
    reference_states,
)
from steer_heal.healing.bake import AdapterStack
from steer_heal.healing.barriers import kl_rev
from steer_heal.healing.lora import injected, linear_names, target_names
from steer_heal.healing.loss import backward_step, completion_losses
from steer_heal.healing.plan import split_rows
from steer_heal.healing.references import completion_hidden
from steer_heal.model import completion_logprobs

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


@pytest.mark.parametrize("family", ["gpt2", "opt"])  # opt has dropout in the block itself, not in a module of it
def test_dropout_sleeps_in_reference_and_student_whatever_mode_the_model_is_in(family):
    lm = make(family)
    data = [completion(lm, i, 9) for i in range(6)]
    lm.model.train()
    states = {"prev": reference_states(lm, data)}
    with injected(lm, QUICK, 0):
        losses, _ = completion_losses(task_of(lm, data, QUICK, states), range(6))
    assert losses.divergence.abs().max() < 1e-6 and lm.blocks[0].training
    _, want = gradients(lm, data, QUICK, states)
    _, got = gradients(lm, data, replace(QUICK, gradient_checkpointing="on"), states)
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


@pytest.mark.parametrize("row_weights", ["none", "inv_sqrt", "tokens"])
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


def test_weights_scale_each_rows_nll_and_nothing_else(lm, data, prev):
    weights = [1.0 + i % 3 for i in range(12)]
    config = replace(QUICK, batch_size=12, grad_accum=1, lam=0.0)
    with injected(lm, config, 0) as lora:
        with_b(lora)
        parts = []
        for chosen in (None, weights):
            for p in lora.parameters:
                p.grad = None
            task = replace(task_of(lm, data, config, prev), nll_weights=tuple(chosen or [1.0] * 12))
            stats = backward_step(task, lora, range(12), {"prev": 0.0})
            parts.append(stats)
    plain, weighted = parts
    torch.testing.assert_close(weighted["nll"], plain["nll"])
    want = plain["nll"] * torch.tensor(weights) / (sum(weights) / 12)
    torch.testing.assert_close(weighted["loss"], want)
    for bad in ([1.0], [-1.0] * 12, [0.0] * 12, [float("nan")] * 12):
        with pytest.raises(InputError, match="weights"):
            heal(lm, data, QUICK, prev, weights=bad)


def test_replay_weight_multiplies_the_barrier_of_the_original_models_rows(lm, data, prev):
    mixed = [replace(c, origin="base") if i % 3 == 0 else c for i, c in enumerate(data)]
    got = heal(lm, mixed, replace(QUICK, replay_weight=4.0), prev).adapter
    want = heal(lm, mixed, QUICK, prev, barrier_weights=[4.0 if c.origin == "base" else 1.0 for c in mixed]).adapter
    assert got == want and got != heal(lm, mixed, QUICK, prev).adapter


def test_gradient_checkpointing_changes_no_gradient_and_really_recomputes(lm, data, prev):
    _, want = gradients(lm, data, QUICK, prev)
    calls = []
    lm.blocks[2].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    _, got = gradients(lm, data, replace(QUICK, gradient_checkpointing="on"), prev)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    assert len(calls) == 6  # three batches, forward and once more in backward


def test_references_run_no_forward_pass_during_training(lm, data, prev):
    calls = []
    lm.blocks[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    base = {**prev, "base": prev["prev"]}
    healed = heal(lm, data, replace(QUICK, reference="both", heldout=0), base)
    assert calls.count(True) - 1 == healed.figures["steps"] == 6  # and a pass before, of which nothing is kept


# ---------------------------------------------------------------- LoRA


def test_every_b_moves_in_the_first_step(lm, data, prev):
    # One step in all; its learning rate must not start at 0.
    healed = heal(lm, data, replace(QUICK, epochs=1, batch_size=16), prev)
    assert healed.figures["steps"] == 1
    assert len(healed.adapter.b) == 28 and all(b.any() for b in healed.adapter.b.values())


def test_a_block_that_no_gradient_reaches_stops_the_heal(lm, data, prev):
    lm.blocks[2].register_forward_hook(lambda module, inputs, output: output.detach())
    with pytest.raises(InputError, match=r"no gradient reached model.layers.0.*exclude_modules down_proj gate_proj"):
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
    heal(lm, data, replace(QUICK, gradient_checkpointing="on"), prev)
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


# ---------------------------------------------------------------- which modules


def test_named_modules_alone_get_adapters_and_excluded_ones_none(lm):
    def ends(**options):
        return {name.rpartition(".")[2] for name in linear_names(lm, (0.0, 1.0), **options)}

    every = ends()
    assert ends(wanted=("q_proj", "mlp.up_proj")) == {"q_proj", "up_proj"}
    assert ends(left_out=("q_proj", "self_attn.up_proj")) == every - {"q_proj"}
    with pytest.raises(InputError, match="nothing to adapt"):
        target_names(lm, replace(QUICK, target_modules=("proj",)))
    with injected(
        lm, replace(QUICK, target_modules=("v_proj",), exclude_modules=("layers.1.self_attn.v_proj",)), 0
    ) as lora:
        assert lora.a and all(name.endswith("v_proj") and "layers.1." not in name for name in lora.a)
    for wrong in ("q_proj", (1,), ("",)):
        with pytest.raises(InputError, match="target_modules"):
            replace(QUICK, target_modules=wrong)


def test_a_module_that_inherits_from_linear_is_adapted_only_if_it_maps_linearly(lm):
    class Same(torch.nn.Linear):
        def forward(self, x):
            return x @ self.weight.T + (0 if self.bias is None else self.bias)

    class Router(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    before = linear_names(lm, (0.0, 1.0))
    lm.blocks[1].mlp.up_proj.__class__, lm.blocks[2].mlp.up_proj.__class__ = Same, Router
    assert set(before) - set(linear_names(lm, (0.0, 1.0))) == {"model.layers.2.mlp.up_proj"}


def test_modules_that_share_a_weight_get_no_adapter(lm):
    before = linear_names(lm, (0.0, 1.0))
    lm.blocks[0].mlp.up_proj.weight = lm.blocks[3].mlp.up_proj.weight
    gone = {"model.layers.0.mlp.up_proj", "model.layers.3.mlp.up_proj"}
    assert set(before) - set(linear_names(lm, (0.0, 1.0))) == gone


def test_a_heal_says_what_share_of_the_weights_it_can_reach(lm, data, prev):
    whole = heal(lm, data, QUICK, prev)
    names = [n for n in dict(lm.base.named_modules()) if n in whole.adapter.a]
    weights = sum(lm.base.get_submodule(n).weight.numel() for n in names)
    assert whole.figures["reach"] == weights / sum(p.numel() for b in lm.blocks for p in b.parameters()) > 0.9
    part = heal(lm, data, replace(QUICK, target_modules=("q_proj",)), prev)
    assert part.figures["reach"] < 0.2 and f"reach {part.figures['reach']:.2f}" in " ".join(part.notes())
    assert "reach" not in " ".join(whole.notes())
