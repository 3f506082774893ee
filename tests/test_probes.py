"""The probes: each formula on hand-made shifts, and adapters built to be constant or not, told apart."""

import math
from dataclasses import replace

import pytest
import torch
from healing_data import bits, equal

from steer_heal.errors import InputError
from steer_heal.evaluation.probes import (
    Probe,
    ShiftMoments,
    entropy_deficit,
    intruder_directions,
    intruders,
    probe,
    probe_states,
)
from steer_heal.healing import reference_states
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.model import LM
from steer_heal.model.tiny import tiny_random
from steer_heal.statistics import Estimate
from steer_heal.texts.completion import Completion
from steer_heal.texts.generation import generate

LAST = "model.layers.3.mlp.down_proj"


def moments(*shifts, chunk=3):
    """Moments of [position, vocab] shifts, one per adapter, fed in chunks."""
    stacked = torch.stack([torch.as_tensor(shift, dtype=torch.float32) for shift in shifts])
    found = ShiftMoments(len(shifts), stacked.shape[-1])
    for part in stacked.split(chunk, dim=1):
        found.add(part)
    return found


# ------------------------------------------------------------------------------------------------------ known answers
def test_a_constant_shift_is_all_mean_whatever_is_added_to_all_tokens():
    bias = torch.tensor([2.0, 0.0, 0.0, -2.0])
    found = moments(bias + torch.arange(5.0)[:, None])  # another constant at every position: softmax ignores it
    assert found.mean(0).tolist() == pytest.approx(bias.tolist())
    assert found.mean_share(0) == pytest.approx(1)
    assert found.peak_share(0) == pytest.approx(1)
    p = bias.softmax(0)
    assert found.entropy(0) == pytest.approx(-(p * p.log()).sum().item())
    assert found.energy(0) == pytest.approx(8)
    assert found.rest_cosine(0, 0) is None  # nothing but mean


def test_opposite_shifts_have_no_mean_and_a_flat_entropy():
    found = moments(torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]))
    assert found.mean_share(0) == 0 and found.peak_share(0) == pytest.approx(0, abs=1e-7)
    assert found.entropy(0) == pytest.approx(math.log(3))


def test_share_of_the_mean_is_its_energy_over_all_energy():
    # mean (1, -1), deviations +-(2, -2): energies 2 and 8
    found = moments(torch.tensor([[3.0, -3.0], [-1.0, 1.0]]))
    assert found.mean_share(0) == pytest.approx(2 / 10)


def test_cosines_with_and_without_means():
    x = torch.tensor([[2.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    y = torch.tensor([[0.0, 0.0, 0.0], [2.0, -2.0, 0.0]])
    found = moments(x, y, 3 * x)
    assert found.cosine(0, 1) == pytest.approx(0)  # never at the same position
    assert found.rest_cosine(0, 1) == pytest.approx(-1)  # the same mean, opposite deviations
    assert found.cosine(0, 2) == pytest.approx(1) and found.rest_cosine(0, 2) == pytest.approx(1)


@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_streamed_moments_equal_those_of_the_whole_tensor(chunk):
    shifts = torch.randn(2, 50, 30, generator=torch.Generator().manual_seed(0)) + 0.3
    centred = (shifts - shifts.mean(-1, keepdim=True)).double()
    found = moments(*shifts, chunk=chunk)
    one, other = centred.flatten(1)
    assert found.cosine(0, 1) == pytest.approx((one @ other / one.norm() / other.norm()).item(), abs=1e-6)
    mean = centred[0].mean(0)
    assert found.mean_share(0) == pytest.approx((mean.square().sum() / centred[0].square().sum(-1).mean()).item())
    rest = (centred - centred.mean(1, keepdim=True)).flatten(1)
    assert found.rest_cosine(0, 1) == pytest.approx(
        (rest[0] @ rest[1] / rest[0].norm() / rest[1].norm()).item(), abs=1e-6
    )
    own = entropy_deficit(centred[0]).mean().item()
    assert found.peak_share(0) == pytest.approx(entropy_deficit(mean).item() / own, rel=1e-5)


def test_tokens_a_model_forbids_count_as_unshifted():
    shift = torch.tensor([[1.0, -1.0, math.nan], [1.0, -1.0, math.nan]])  # -inf minus -inf
    assert moments(shift).mean(0).tolist() == pytest.approx([1, -1, 0])


def test_entropy_deficit_of_a_flat_and_of_a_peaked_shift():
    assert entropy_deficit(torch.zeros(7)).item() == pytest.approx(0, abs=1e-6)
    peaked = torch.zeros(7)
    peaked[2] = 100.0
    assert entropy_deficit(peaked).item() == pytest.approx(math.log(7), abs=1e-5)


# ------------------------------------------------------------------------------------------------------------ verdict
CONSTANT = Probe(
    positions=100,
    vocab=50,
    cosine=0.999,
    rest_cosine=None,
    mean_share=0.97,
    entropy=3.0,
    peak_share=0.95,
    size=0.1,
    nll={"base": 2.0, "real": 1.5, "shuffled": 1.501},
    gain=Estimate(0.5, 0.4, 0.6, 9),
    lead=Estimate(0.001, -0.002, 0.003, 9),
    unsteered_cosine=0.99,
    weight_cosines={},
)


def test_content_free_only_when_every_figure_agrees():
    assert CONSTANT.verdict == "content-free" and {sign.says for sign in CONSTANT.signs} == {"constant"}
    assert len(CONSTANT.signs) == 5
    for change in (
        {"cosine": 0.97},
        {"mean_share": 0.8},
        {"peak_share": 0.8},
        {"unsteered_cosine": 0.95},
        {"lead": Estimate(0.02, 0.01, 0.03, 9)},
        {"gain": Estimate(0.5, -0.1, 1.1, 9)},
    ):
        assert replace(CONSTANT, **change).verdict == "mixed", change


def test_content_needs_a_lead_of_the_real_pairs_and_no_figure_that_says_constant():
    content = replace(
        CONSTANT, cosine=0.5, mean_share=0.2, peak_share=0.1, unsteered_cosine=0.3, lead=Estimate(0.3, 0.2, 0.4, 9)
    )
    assert content.verdict == "content"
    assert replace(content, cosine=0.95, mean_share=0.7).verdict == "content"  # open, not constant
    assert replace(content, mean_share=0.95).verdict == "mixed"
    # Shuffled pairs that do harm are no proof that the real ones taught anything.
    assert replace(content, gain=Estimate(0.01, -0.1, 0.1, 9)).verdict == "mixed"
    # A lead within a twentieth of the gain is no lead.
    assert replace(content, lead=Estimate(0.02, 0.015, 0.024, 9)).verdict == "mixed"


def test_the_text_names_figures_and_a_missing_unsteered_run():
    without = replace(CONSTANT, unsteered_cosine=None)
    assert without.verdict == "content-free" and "No unsteered run was compared" in without.text
    assert "+0.999 (constant)" in CONSTANT.text and "No unsteered" not in CONSTANT.text


# -------------------------------------------------------------------------------------------- adapters built for this
@pytest.fixture(scope="module")
def lm():
    return LM(*tiny_random(), "tiny-random")


FEW = (40, 41, 42, 43, 44)
"""The tokens of a text that one constant shift explains."""


def soup(lm, i, n=18, seed=0):
    """A completion of a few tokens drawn alike behind every prompt: one constant shift is all there is to learn."""
    generator = torch.Generator().manual_seed(100 * seed + i)
    ids = tuple(FEW[k] for k in torch.randint(len(FEW), (n,), generator=generator).tolist())
    prompt = f"question number {i}"
    return Completion(prompt, None, lm.chat_ids(prompt), ids, lm.decode(ids), True)


def inputs_of_last(lm, rows):
    """What the last block's `down_proj` reads where the rows' tokens are predicted, and the residual's rms there."""
    seen = {}
    module = lm.base.get_submodule(LAST)
    block = lm.blocks[-1]
    handles = [
        module.register_forward_pre_hook(lambda _, x: seen.__setitem__("x", x[0].detach())),
        block.register_forward_hook(lambda _, __, y: seen.__setitem__("h", y.detach())),
    ]
    parts = []
    try:
        for row in rows:
            lm.hidden_states(lm.pad_left([(*row.prompt_ids, *row.token_ids)]))
            n = len(row.token_ids)
            parts.append((seen["x"][0, -n - 1 : -1], seen["h"][0, -n - 1 : -1]))
    finally:
        for handle in handles:
            handle.remove()
    x, h = (torch.cat(some) for some in zip(*parts, strict=True))
    return x.double(), h.double().square().mean(-1).sqrt()


def constant_adapter(lm, rows, size, tilt=0.0):
    """A rank-1 LoRA on the last block that shifts the rows' logits alike: towards the few tokens, at every position.

    Its A is solved such that A x = rms(residual) on the rows (fewer positions than inputs), so that the final norm
    makes one shift of it; `tilt` turns the direction a little.
    """
    with torch.no_grad():
        x, rms = inputs_of_last(lm, rows)
        embedding = lm.head.linear.weight.double()
        direction = embedding[list(FEW)].mean(0) - embedding.mean(0) + tilt * embedding[7]
        a = torch.linalg.lstsq(x, size * rms[:, None], driver="gelsd").solution.T
    return Adapter({LAST: a.float()}, {LAST: direction[:, None].float()}, 1, 1.0, lm.name)


def random_adapter(lm, seed, size=0.5):
    """LoRA of rank 4 on all feed-forward outputs, random both ways: its shift depends on the text."""
    g = torch.Generator().manual_seed(seed)
    a, b = {}, {}
    for i in range(4):
        name = f"model.layers.{i}.mlp.down_proj"
        a[name] = torch.randn(4, 128, generator=g) / math.sqrt(128)
        b[name] = size * torch.randn(64, 4, generator=g)
    return Adapter(a, b, 4, 4.0, lm.name)


def test_a_constant_logit_bias_is_content_free(lm):
    rows = [soup(lm, i) for i in range(6)]
    stack, before = AdapterStack(lm.model), bits(lm.base)
    made = [constant_adapter(lm, rows, 0.5, tilt) for tilt in (0.0, 0.02, -0.02)]
    found = probe(lm, stack, rows, *made)
    assert found.verdict == "content-free", found.text
    assert found.positions == 6 * 18 and found.vocab == 480
    assert found.gain.low > 0  # it is a win, and a cheap one
    assert found.nll["real"] < found.nll["base"]
    assert found.weight_cosines["shuffled"] > 0.9
    assert len(stack) == 0 and equal(bits(lm.base), before)


def test_an_adapter_whose_effect_depends_on_the_text_is_content(lm):
    real, shuffled, unsteered = (random_adapter(lm, seed) for seed in (1, 2, 3))
    stack = AdapterStack(lm.model)
    stack.push(real)
    # Text that the real adapter's model says: it is what this adapter knows and another does not.
    rows = generate(lm, [f"question number {i}" for i in range(8)], max_new_tokens=16, seed=1)
    stack.pop()
    found = probe(lm, stack, rows, real, shuffled, unsteered)
    assert found.verdict == "content", found.text
    assert found.mean_share < 0.5 and abs(found.cosine) < 0.9 and found.lead.low > 0
    assert found.nll["real"] == pytest.approx(found.nll["base"] - found.gain.value, abs=1e-5)


def test_figures_do_not_depend_on_the_chunk_and_equal_full_logits(lm):
    rows = [soup(lm, i, 5 + i) for i in range(4)]
    stack = AdapterStack(lm.model)
    states = {"base": reference_states(lm, rows)}
    for name, seed in (("real", 1), ("shuffled", 2)):
        stack.push(random_adapter(lm, seed))
        states[name] = reference_states(lm, rows)
        stack.pop()
    small, whole = (probe_states(lm, rows, states, chunk=chunk) for chunk in (3, 1000))
    for field in ("cosine", "rest_cosine", "mean_share", "entropy", "peak_share", "size"):
        assert getattr(small, field) == pytest.approx(getattr(whole, field), rel=1e-4)
    logits = {name: lm.head(torch.cat([state.of(row) for row in rows])) for name, state in states.items()}
    one, other = (logits[name] - logits["base"] for name in ("real", "shuffled"))
    one, other = (s - s.mean(-1, keepdim=True) for s in (one, other))
    assert whole.cosine == pytest.approx(
        torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).item(), abs=1e-5
    )
    assert whole.size == pytest.approx(one.square().mean().sqrt().item(), rel=1e-4)
    logp, at = logits["real"].log_softmax(-1), 0
    means = []
    for row in rows:
        n = len(row.token_ids)
        means.append(-logp[at : at + n].gather(1, torch.tensor(row.token_ids)[:, None]).mean().item())
        at += n
    assert whole.nll["real"] == pytest.approx(sum(means) / len(means), rel=1e-5)


def test_no_tensor_of_all_positions_times_vocabulary_is_made(lm, monkeypatch):
    rows = [soup(lm, i) for i in range(6)]
    states = dict.fromkeys(("base", "shuffled"), reference_states(lm, rows))
    steered = {row: state + 0.1 * torch.randn(state.shape) for row, state in states["base"].rows.items()}
    states |= {name: replace(states["base"], rows=steered) for name in ("real", "shuffled")}
    sizes = []
    own = ShiftMoments.add
    monkeypatch.setattr(ShiftMoments, "add", lambda self, s: (sizes.append(s.shape[1]), own(self, s))[1])
    probe_states(lm, rows, states, chunk=10)
    assert max(sizes) == 10 and sum(sizes) == 6 * 18


def test_unusable_states_are_one_clear_error(lm):
    rows = [soup(lm, 0)]
    states = {"base": reference_states(lm, rows)}
    with pytest.raises(InputError, match="base, real and shuffled"):
        probe_states(lm, rows, states)
    with pytest.raises(InputError, match="changes no logit"):
        probe_states(lm, rows, dict.fromkeys(("base", "real", "shuffled"), states["base"]))


# --------------------------------------------------------------------------------------------------------- directions
def test_intruders_are_directions_that_the_weight_did_not_have():
    weight = torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.5]))
    corner = torch.ones(6, 1) / math.sqrt(6)
    assert intruder_directions(weight, torch.zeros(6, 6), top=3) == 0
    assert intruder_directions(weight, 0.5 * weight, top=3) == 0  # stronger, not new
    # A large new direction lies between all axes: its nearest is at 1 / sqrt(6) = .41.
    assert intruder_directions(weight, 100 * corner @ corner.T, top=1) == 1
    assert intruder_directions(weight, 100 * corner @ corner.T, top=1, limit=0.3) == 0
    experts = torch.stack([0.5 * weight, 100 * corner @ corner.T, 100 * corner @ corner.T])
    assert intruder_directions(weight.expand(3, 6, 6), experts, top=1) == 2


def test_intruders_are_counted_against_the_original_weights(lm):
    stack = AdapterStack(lm.model)
    adapter = random_adapter(lm, 1, size=3.0)
    alone = intruders(lm, stack, adapter)
    stack.push(random_adapter(lm, 2, size=3.0))
    assert intruders(lm, stack, adapter) == alone and set(alone) == set(adapter.modules)
    stack.pop()
    assert max(alone.values()) >= 1
