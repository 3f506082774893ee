"""Every decoder family, as a tiny random model: its blocks found, steered, sampled from, healed and baked."""

import pytest
import torch
from families import FAMILIES, OTHERS, REFUSED, UNLIKE, make, tried
from family_table import PAGE, row
from healing_data import bits, completion, equal

from steer_heal.errors import InputError
from steer_heal.healing import HealConfig, heal, reference_states
from steer_heal.healing.bake import AdapterStack
from steer_heal.model import position_ids, wrap
from steer_heal.steering import extract
from steer_heal.texts.generation import generate

POS, NEG = "You are kind.", "You are cruel."
PROMPTS = ["Hi", "What is rain?", "Tell me about the nurse and the old basket in the shed."]
DOSES = [0.0, 0.5, 2.0]


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request):
    """One model per family; every test leaves it as it was."""
    return make(request.param)


@pytest.fixture(scope="module")
def vector(lm):
    return extract(lm, POS, NEG, PROMPTS, layers=[1, 2])


@pytest.fixture(scope="module")
def push(vector):
    """The same direction as large as the residual: the raw one of a random model is too small to change a reply."""
    return vector * (1 / vector.quality[1].relative_norm)


def outputs(lm, block, ids):
    """One block's output for one unpadded row."""
    seen = []
    hook = lm.blocks[block].register_forward_hook(lambda m, a, o: seen.append(o[0] if isinstance(o, tuple) else o))
    with torch.no_grad():
        lm.model(torch.tensor([ids]))
    hook.remove()
    return seen[0][0]


def test_found_blocks_are_the_text_decoders_and_run_in_order(lm):
    order = []
    hooks = [b.register_forward_hook(lambda m, a, o, i=i: order.append(i)) for i, b in enumerate(lm.blocks)]
    with torch.no_grad():
        lm.model(torch.tensor([lm.chat_ids("Hi")]))
    for hook in hooks:
        hook.remove()
    assert len(lm.blocks) == 4 and order == [0, 1, 2, 3] and "vision" not in lm.blocks_path


def test_extraction_equals_a_naive_mean_difference(lm, vector):
    for block in (1, 2):
        reads = [[outputs(lm, block, lm.chat_ids(c, p))[-1].double() for c in PROMPTS] for p in (POS, NEG)]
        expected = torch.stack(reads[0]).mean(0) - torch.stack(reads[1]).mean(0)
        torch.testing.assert_close(vector.vectors[block].double(), expected, atol=2e-6, rtol=1e-5)


def test_steered_logits_equal_manual_addition_exactly(lm, push):
    batch = lm.pad_left([lm.chat_ids(p) for p in PROMPTS])
    batch["position_ids"] = position_ids(batch["attention_mask"])
    mask = batch["attention_mask"][:, :, None].float()
    dose = torch.tensor(DOSES)[:, None, None]

    def add(block):
        def hook(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden + dose * push.vectors[block] * mask
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return lm.blocks[block].register_forward_hook(hook)

    with torch.no_grad():
        plain = lm.model(**batch).logits
        hooks = [add(1), add(2)]
        manual = lm.model(**batch).logits
        for hook in hooks:
            hook.remove()
        with push.applied(lm.model, DOSES):
            steered = lm.model(**batch).logits
        after = lm.model(**batch).logits
    assert torch.equal(steered, manual) and torch.equal(after, plain)
    assert torch.equal(steered[0], plain[0]) and (steered[1:, -1] - plain[1:, -1]).abs().amax(-1).min() > 1e-3


def test_one_left_padded_batch_with_a_dose_per_row_samples_what_each_row_does_alone(lm, push):
    together = generate(lm, PROMPTS, push, doses=DOSES, greedy=True, max_new_tokens=6)
    assert [c.dose for c in together] == DOSES * 3 and len({len(c.prompt_ids) for c in together}) == 3
    for c in together:
        assert generate(lm, [c.prompt], push, doses=(c.dose,), greedy=True, max_new_tokens=6)[0].token_ids == (
            c.token_ids
        )
    replies = {(c.row, c.dose): c.token_ids for c in together}
    assert any(replies[row, 0.0] != replies[row, 2.0] for row in range(3))


def test_healed_adapter_bakes_to_its_own_logits_and_comes_out_bit_for_bit(lm):
    data = [completion(lm, i, 5 + i) for i in range(6)]
    config = HealConfig(epochs=2, lr=1e-2, batch_size=3, rank=2, alpha=4.0, heldout=0.0, lora_layers=(0.3, 0.7))
    before = bits(lm.model)
    healed = heal(lm, data, config, {"prev": reference_states(lm, data)})
    assert healed.figures["train_nll_after"] < healed.figures["train_nll_before"]
    assert healed.adapter.b and all(b.abs().max() > 0 for b in healed.adapter.b.values())
    assert equal(bits(lm.model), before)

    ids = torch.tensor([lm.chat_ids(PROMPTS[2])])
    with torch.no_grad():
        plain = lm.model(ids).logits
        hooks = [add_low_rank(lm.base.get_submodule(name), healed.adapter, name) for name in healed.adapter.a]
        adapted = lm.model(ids).logits
        for hook in hooks:
            hook.remove()
        stack = AdapterStack(lm.model)
        stack.push(healed.adapter)
        baked = lm.model(ids).logits
        stack.pop()
    torch.testing.assert_close(baked, adapted, atol=2e-5, rtol=1e-4)
    assert (baked - plain).abs().max() > 1e-3 and equal(bits(lm.model), before)


def add_low_rank(module, adapter, name):
    """A hook that adds alpha / r * B A x to a linear layer's output: what an adapter is by definition."""

    def hook(module, args, output):
        return output + adapter.alpha / adapter.rank * (args[0] @ adapter.a[name].T @ adapter.b[name].T)

    return module.register_forward_hook(hook)


# ---------------------------------------------------------------- the others


@pytest.mark.parametrize("family", [*UNLIKE, *(pytest.param(other, marks=pytest.mark.slow) for other in OTHERS)])
def test_every_stage_works_on_a_family_as_its_row_in_the_docs_says(family, tmp_path):
    assert row(family, tried(family, tmp_path / "adapter")) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_of_another_layout_is_refused_before_anything_is_sampled(family):
    made = make(family)
    with pytest.raises(InputError, match=REFUSED[family]) as caught:
        wrap(made.model, made.tokenizer, family)
    assert "\n" not in str(caught.value)


def test_the_page_names_every_family_and_no_other():
    named = [line.split("`")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert named == [*sorted([*UNLIKE, *OTHERS]), *REFUSED] and len(UNLIKE) >= 25 and len(UNLIKE) + len(OTHERS) >= 90
