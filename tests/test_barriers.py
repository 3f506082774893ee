"""The barrier family: values and gradients against naive float64, directions, budgets, memory of the chunked loss."""

import math

import pytest
import torch
from families import make
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from steer_heal.errors import InputError
from steer_heal.healing.barriers import (
    AGGREGATES,
    aggregate_rows,
    default_chunk,
    kl_fwd,
    kl_rev,
    penalty,
    position_losses,
    resolve_reg,
    scheduled_lam,
    top_k,
    update_lam,
)
from steer_heal.model import LM, Head, check_head

N, WIDTH, VOCAB = 23, 12, 61
LENGTHS = [9, 3, 11]


def jensen_shannon(logp, logq):
    """A user's own divergence."""
    middle = torch.logaddexp(logp, logq) - math.log(2)
    return 0.5 * (kl_rev(logp, middle) + kl_rev(logq, middle))


REGS = {
    "kl_rev": ("kl_rev", 0),
    "kl_fwd": ("kl_fwd", 0),
    "kl_rev_top5": ("kl_rev", 5),
    "kl_fwd_top5": ("kl_fwd", 5),
    "kl_rev_top_all": ("kl_rev", 999),
    "user": (jensen_shannon, 0),
}


def naive_divergence(name, p, q):
    """From probabilities, term by term, in float64."""
    if "top" in name:
        k = min(999 if "all" in name else 5, p.shape[-1])
        top = q.topk(k, dim=-1).indices
        p_top, q_top = p.gather(-1, top), q.gather(-1, top)
        if k < p.shape[-1]:
            p_top = torch.cat([p_top, 1 - p_top.sum(-1, keepdim=True)], -1)
            q_top = torch.cat([q_top, 1 - q_top.sum(-1, keepdim=True)], -1)
        p, q = p_top, q_top
    if name == "user":
        middle = (p + q) / 2
        return 0.5 * (p * (p / middle).log() + q * (q / middle).log()).sum(-1)
    return (p * (p / q).log()).sum(-1) if name.startswith("kl_rev") else (q * (q / p).log()).sum(-1)


def naive_aggregate(name, values):
    if name == "mean":
        return values.mean()
    if name == "rmse":
        return values.square().mean().sqrt()
    if name == "p95":
        ordered, place = values.sort().values, 0.95 * (len(values) - 1)
        low = int(place)
        high = min(low + 1, len(values) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])
    if name == "max":
        return values.sort().values[-1]
    return values.sort().values[-min(len(values), max(4, math.ceil(len(values) / 20))) :].mean()


@pytest.fixture(scope="module")
def problem():
    """(head weight, student states, states of two references, targets), small and far from symmetric."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCAB, WIDTH, generator=g) * 0.5
    hidden = torch.randn(N, WIDTH, generator=g)
    references = [hidden + 0.4 * torch.randn(N, WIDTH, generator=g) for _ in range(2)]
    return weight, hidden, references, torch.randint(VOCAB, (N,), generator=g)


def linear_head(weight, scale=1.0, cap=None):
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return Head(linear, scale, cap)


def naive_logits(weight, hidden, scale, cap):
    logits = scale * (hidden @ weight.double().T)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("reg", REGS)
@pytest.mark.parametrize("kl_agg", AGGREGATES)
def test_value_and_gradient_equal_naive_float64(problem, reg, kl_agg):
    weight, hidden, references, targets = problem
    divergence = resolve_reg(*REGS[reg])
    for scale, cap in ((1.0, None), (0.7, None), (1.0, 2.0)):
        exact = hidden.double().requires_grad_()
        p = naive_logits(weight, exact, scale, cap).softmax(-1)
        qs = [naive_logits(weight, r.double(), scale, cap).softmax(-1) for r in references]
        nll = sum(-row.mean() / 3 for row in p.gather(-1, targets[:, None])[:, 0].log().split(LENGTHS))
        d = [
            torch.stack([naive_aggregate(kl_agg, row) for row in naive_divergence(reg, p, q).split(LENGTHS)])
            for q in qs
        ]
        between = d[0].detach().sort().values[:2].mean().item()  # one completion within budget, two over it
        for tau in (0.0, between, 99.0):
            want = nll + 0.3 * torch.relu(d[0] - tau).mean() + 0.7 * torch.relu(d[1] - tau).mean()
            (want_grad,) = torch.autograd.grad(want, exact, retain_graph=True)
            for chunk in (1, 7, 64):
                ours = hidden.clone().requires_grad_()
                losses = position_losses(linear_head(weight, scale, cap), ours, targets, references, divergence, chunk)
                rows = [aggregate_rows(values, LENGTHS, kl_agg) for values in losses.divergence]
                got = aggregate_rows(losses.nll, LENGTHS, "mean").mean()
                got = got + penalty(rows[0], 0.3, tau).mean() + penalty(rows[1], 0.7, tau).mean()
                got.backward()
                torch.testing.assert_close(got.double(), want.detach(), atol=3e-6, rtol=3e-6)
                torch.testing.assert_close(ours.grad.double(), want_grad, atol=3e-6, rtol=1e-4)


def test_hinge_acts_on_the_completions_over_budget_only(problem):
    weight, hidden, references, targets = problem
    ours = hidden.clone().requires_grad_()
    losses = position_losses(linear_head(weight), ours, targets, references[:1], resolve_reg("kl_rev"))
    rows = aggregate_rows(losses.divergence[0], LENGTHS, "rmse")
    order = rows.argsort()
    tau = (rows[order[1]] + rows[order[2]]).item() / 2
    penalty(rows, 1.0, tau).sum().backward()
    moved = [bool(g.any()) for g in ours.grad.split(LENGTHS)]
    assert moved == [i == order[2] for i in range(3)]


def test_one_looping_completion_of_four_fires_the_barrier():
    quiet, loop = torch.full((10,), 0.01), torch.full((10,), 0.6)
    values = torch.cat([quiet, quiet, quiet, loop])
    assert penalty(aggregate_rows(values, [10] * 4, "mean"), 0.3, 0.5).mean() > 0
    assert values.mean() < 0.5  # pooled over the batch it would have stayed silent


def test_names_of_the_two_directions_match_torch_distributions():
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.1, 0.8]])
    rev, fwd = kl_divergence(Categorical(p), Categorical(q)), kl_divergence(Categorical(q), Categorical(p))
    torch.testing.assert_close(kl_rev(p.log(), q.log()), rev)
    torch.testing.assert_close(kl_fwd(p.log(), q.log()), fwd)
    assert abs(rev - fwd) > 0.1


@pytest.mark.parametrize("name", ["kl_rev", "kl_fwd"])
def test_closed_form_gradient_equals_autograd(name):
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 17, generator=g, dtype=torch.float64, requires_grad=True)
    logq = torch.randn(5, 17, generator=g, dtype=torch.float64).log_softmax(-1)
    for k in (0, 4, 17):
        divergence = resolve_reg(name, k)
        logp = logits.log_softmax(-1)
        value = divergence.value(logp, logq)
        (want,) = torch.autograd.grad(value.sum(), logits)
        got_value, got = divergence.gradient(logp.detach(), logp.detach().exp(), logq.clone())
        torch.testing.assert_close(got_value, value.detach())
        torch.testing.assert_close(got, want)


@settings(max_examples=30, deadline=None)
@given(k=st.integers(1, 40), seed=st.integers(0, 10_000))
def test_truncation_never_raises_a_kl_and_is_exact_with_the_whole_vocabulary(k, seed):
    g = torch.Generator().manual_seed(seed)
    logp, logq = (torch.randn(3, 31, generator=g).mul(2).log_softmax(-1) for _ in range(2))
    for kl in (kl_rev, kl_fwd):
        whole, cut = kl(logp, logq), top_k(kl, k)(logp, logq)
        assert (cut <= whole + 1e-5).all() and (cut >= -1e-5).all()
        if k >= 31:
            torch.testing.assert_close(cut, whole)


@pytest.mark.parametrize("reg", ["kl_rev", "kl_fwd", "kl_rev_top5", "kl_fwd_top5"])
def test_tokens_masked_by_both_models_do_no_harm(problem, reg):
    weight, hidden, references, _ = problem

    class Masked(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).index_fill(-1, torch.tensor([0, 7]), -math.inf)

    linear = Masked(WIDTH, VOCAB, bias=False)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    ours = hidden.clone().requires_grad_()
    targets = torch.full((N,), 3)
    losses = position_losses(Head(linear), ours, targets, references[:1], resolve_reg(*REGS[reg]))
    (losses.nll.sum() + losses.divergence.sum()).backward()
    assert losses.divergence.isfinite().all() and ours.grad.isfinite().all() and ours.grad.any()
    kept = [i for i in range(VOCAB) if i not in (0, 7)]
    same = position_losses(
        linear_head(weight[kept]), hidden, torch.full((N,), 2), references[:1], resolve_reg(*REGS[reg])
    )
    torch.testing.assert_close(losses.divergence.detach(), same.divergence)


def test_a_token_that_only_the_student_uses_is_infinitely_dear_not_nan():
    logp = torch.tensor([[0.5, 0.5, 0.0]]).log()
    logq = torch.tensor([[0.5, 0.0, 0.5]]).log()
    assert kl_rev(logp, logq).item() == math.inf and kl_fwd(logp, logq).item() == math.inf


@pytest.mark.parametrize("kl_agg", AGGREGATES)
def test_gradient_of_every_aggregate_is_finite_at_zero_divergence(problem, kl_agg):
    weight, hidden, _, targets = problem
    ours = hidden.clone().requires_grad_()
    losses = position_losses(linear_head(weight), ours, targets, [hidden], resolve_reg("kl_rev"))
    penalty(aggregate_rows(losses.divergence[0], LENGTHS, kl_agg), 1.0, 0.5).sum().backward()
    assert ours.grad.isfinite().all()
    zero = torch.zeros(10, requires_grad=True)
    AGGREGATES[kl_agg](zero).backward()
    assert zero.grad.isfinite().all()


def test_aggregates_of_a_loop_of_24_positions_in_512():
    values = torch.full((512,), 0.03)
    values[100:124] = 8.0
    got = {name: aggregate(values).item() for name, aggregate in AGGREGATES.items()}
    assert got["p95"] == pytest.approx(0.03)  # blind: that is why it is not the default
    assert got["rmse"] == pytest.approx(1.73, abs=0.01) and got["mean"] == pytest.approx(0.40, abs=0.01)
    assert got["cvar"] > 7 and got["max"] == 8


def test_aggregates_accept_bf16_and_a_single_position():
    for aggregate in AGGREGATES.values():
        assert aggregate(torch.tensor([0.25], dtype=torch.bfloat16)).item() == 0.25
        assert aggregate(torch.tensor([0.25] * 9, dtype=torch.bfloat16)).dtype == torch.float32


def test_losses_stay_in_float32_for_a_bf16_head(problem):
    weight, hidden, references, targets = problem
    half = [x.bfloat16() for x in (weight, hidden, references[0])]
    ours = half[1].clone().requires_grad_()
    losses = position_losses(linear_head(half[0]), ours, targets, [half[2]], resolve_reg("kl_rev"))
    assert losses.nll.dtype == losses.divergence.dtype == torch.float32
    losses.divergence.sum().backward()
    assert ours.grad.dtype == torch.bfloat16
    p, q = (linear_head(half[0])(x).double().log_softmax(-1) for x in half[1:])
    torch.testing.assert_close(losses.divergence[0].double(), (p.exp() * (p - q)).sum(-1), atol=1e-6, rtol=1e-5)
    same = position_losses(linear_head(half[0]), half[1], targets, [half[1]], resolve_reg("kl_rev"))
    assert same.divergence.abs().max() < 1e-6


def test_row_norms_are_those_of_the_gradients(problem):
    weight, hidden, references, targets = problem
    ours = hidden.clone().requires_grad_()
    losses = position_losses(linear_head(weight), ours, targets, references[:1], resolve_reg("kl_rev"))
    (g_nll,) = torch.autograd.grad(losses.nll.sum(), ours, retain_graph=True)
    (g_kl,) = torch.autograd.grad(losses.divergence.sum(), ours)
    torch.testing.assert_close(losses.row_norms, torch.stack([g_nll.norm(dim=-1), g_kl.norm(dim=-1)]))


@pytest.mark.parametrize("late", [{0}, {1}, {2}, {1, 2}, {0, 1, 2}])
def test_late_rows_are_the_same_bits_and_cost_nothing_where_no_position_asks_for_one(problem, late):
    weight, hidden, references, targets = problem
    factors = torch.rand(3, len(hidden), generator=torch.Generator().manual_seed(1))
    factors[:, 3:] = 0  # the chunks behind the first two ask for nothing

    def gradient(late, factors):
        ours, passes, linear = hidden.clone().requires_grad_(), [], linear_head(weight)
        head = lambda states: (passes.append(len(states)), linear(states))[1]  # noqa: E731
        losses = position_losses(head, ours, targets, references[:2], resolve_reg("kl_rev"), chunk=2, late=late)
        torch.cat([losses.nll[None], losses.divergence]).backward(factors)
        return ours.grad, losses.row_norms * (factors > 0), len(passes)

    (grad, norms, passes), (same, as_long, more) = gradient((), factors), gradient(late, factors)
    assert torch.equal(grad, same) and torch.equal(norms * (factors > 0), as_long * (factors > 0))
    assert more == passes + 2 * (1 + len(late - {0}))
    assert gradient(late, 0 * factors)[2] == passes


def test_no_tensor_over_positions_and_vocabulary_outlives_its_chunk():
    n, width, vocab, chunk = 128, 8, 20_000, 8
    g = torch.Generator().manual_seed(0)
    head = linear_head(torch.randn(vocab, width, generator=g))
    hidden, reference = (torch.randn(n, width, generator=g) for _ in range(2))
    targets = torch.randint(vocab, (n,), generator=g)
    with torch.profiler.profile(profile_memory=True) as profile:
        ours = hidden.clone().requires_grad_()
        losses = position_losses(head, ours, targets, [reference], resolve_reg("kl_rev"), chunk)
        (losses.nll.sum() + losses.divergence.sum()).backward()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert 0 < peak < 8 * chunk * vocab * 4
    assert default_chunk(262_144) == 32 and default_chunk(480) == 1024 and default_chunk(10**7) == 16


def test_the_head_gets_no_gradient(problem):
    weight, hidden, references, targets = problem
    head = linear_head(weight)
    head.linear.weight.requires_grad_(True)
    ours = hidden.clone().requires_grad_()
    position_losses(head, ours, targets, references[:1], resolve_reg("kl_fwd")).nll.sum().backward()
    assert head.linear.weight.grad is None


def test_a_users_own_divergence_is_imported_by_name(tmp_path, monkeypatch, problem):
    (tmp_path / "my_divergence.py").write_text(
        "def overlap(logp, logq):\n    return 1 - (0.5 * (logp + logq)).exp().sum(-1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    weight, hidden, references, targets = problem
    ours = hidden.clone().requires_grad_()
    losses = position_losses(linear_head(weight), ours, targets, references[:1], resolve_reg("my_divergence:overlap"))
    losses.divergence.sum().backward()
    exact = hidden.double().requires_grad_()
    p, q = ((x @ weight.double().T).softmax(-1) for x in (exact, references[0].double()))
    (1 - (p * q).sqrt().sum(-1)).sum().backward()
    torch.testing.assert_close(ours.grad.double(), exact.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda logp, logq: logp - logq, "one value per position"),
        (lambda logp, logq: 1.0, "one value per position"),
        (lambda logp, logq: logq.sum(-1), "does not depend on the student"),
    ],
)
def test_a_users_divergence_of_the_wrong_kind_is_refused(problem, function, words):
    weight, hidden, references, targets = problem
    with pytest.raises(InputError, match=words):
        position_losses(
            linear_head(weight), hidden.clone().requires_grad_(), targets, references[:1], resolve_reg(function)
        )


@pytest.mark.parametrize("reg", ["kl", "nope:f", "math:nope", "f:", "math:pi", 3])
def test_an_unknown_divergence_is_refused_by_name(reg):
    with pytest.raises(InputError, match=str(reg).split(":")[0]):
        resolve_reg(reg)


def test_top_k_of_a_users_divergence_is_refused():
    with pytest.raises(InputError, match="kl_top_k"):
        resolve_reg(jensen_shannon, 5)


def test_lam_follows_its_schedule_over_rounds():
    assert [scheduled_lam(0.4, r, -0.5) for r in (0, 3)] == [0.4, 0.2]
    assert scheduled_lam(0.4, 5, 0.0) == 0.4


def test_dual_ascent_raises_lam_over_budget_lowers_it_below_and_clips():
    assert update_lam(1.0, 0.8, 0.5, 0.1, 10) == pytest.approx(1.03)
    assert update_lam(1.0, 0.2, 0.5, 0.1, 10) == pytest.approx(0.97)
    assert update_lam(0.01, 0.0, 0.5, 1.0, 10) == 0 and update_lam(9.9, 9.0, 0.5, 1.0, 10) == 10


def test_budget_mode_has_a_gradient_below_budget_too():
    d = torch.tensor([0.2], requires_grad=True)
    penalty(d, 2.0, 0.5, "budget").sum().backward()
    assert d.grad.item() == 2.0
    d.grad = None
    penalty(d, 2.0, 0.5).sum().backward()
    assert d.grad.item() == 0.0


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2", "gemma3", "cohere", "granite"])
def test_chunked_logits_equal_the_models_own(family):
    lm = scaled(family) if family in ("cohere", "granite") else make(family)
    assert check_head(lm) < 1e-4


def scaled(family):
    """A family whose configuration multiplies or divides the logits."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    more = {"logit_scale": 0.25} if family == "cohere" else {"logits_scaling": 8.0}
    config = CONFIG_MAPPING[family](
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )
    torch.manual_seed(0)
    return LM(AutoModelForCausalLM.from_config(config).eval(), None, family)


def test_a_head_that_does_more_than_scale_and_cap_is_refused():
    lm = make("qwen3")
    wrapped = lm.model.forward

    def forward(*args, **kwargs):
        out = wrapped(*args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    lm.model.forward = forward
    with pytest.raises(InputError, match="output head"):
        check_head(lm)
