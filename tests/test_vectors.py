"""Vectors that come from elsewhere, sums over other blocks, equality; ablation, and who sees the steered block."""

import pytest
import torch

import steer_heal as sh
from steer_heal.steering import extract_pairs

PAIRS = [("I love rain", "I hate rain"), ("The nurse is kind to all", "The nurse is cruel"), ("Yes", "No")]


@pytest.fixture(scope="module")
def directions():
    generator = torch.Generator().manual_seed(0)
    return {i: torch.randn(64, generator=generator) for i in (1, 2)}


@pytest.fixture
def vector(tiny, directions):
    return sh.SteeringVector.from_tensors(directions, tiny)


def states(lm, ids):
    """Input of the first block and output of every block, as transformers hands them out."""
    with torch.no_grad():
        return lm.model(ids, output_hidden_states=True).hidden_states


def test_a_vector_from_tensors_or_arrays_steers_by_them(tiny, directions, vector, tmp_path):
    assert vector.layers == (1, 2) and torch.equal(vector.vectors[2], directions[2])
    assert vector == sh.SteeringVector.from_tensors({i: v.double().numpy() for i, v in directions.items()}, tiny)
    assert (vector.provenance.model, vector.provenance.width) == ("tiny-random", 64)
    vector.save(tmp_path / "v.safetensors")
    assert sh.SteeringVector.load(tmp_path / "v.safetensors") == vector
    assert vector != vector * 2 and vector != directions and vector + vector == vector * 2


@pytest.mark.parametrize(
    "wrong", [{4: torch.ones(64)}, {-1: torch.ones(64)}, {1: torch.ones(63)}, {1: torch.ones(1, 64)}]
)
def test_a_direction_of_another_block_or_width_is_refused_where_it_is_made(tiny, wrong):
    with pytest.raises(sh.InputError, match="blocks 0 to 3 of width 64"):
        sh.SteeringVector.from_tensors(wrong, tiny)


def test_a_sum_steers_at_the_blocks_of_both(tiny, directions, vector):
    other = sh.SteeringVector.from_tensors({2: directions[1], 3: directions[2]}, tiny)
    both = vector + other
    assert both.layers == (1, 2, 3) and torch.equal(both.vectors[2], directions[2] + directions[1])
    assert torch.equal(both.vectors[1], directions[1]) and torch.equal(both.vectors[3], directions[2])


def test_outputs_and_earlier_hooks_see_the_steered_block(tiny, vector):
    ids, seen = torch.tensor([tiny.chat_ids("Hi")]), []
    plain = states(tiny, ids)  # installs transformers' own hooks
    hook = tiny.blocks[1].register_forward_hook(lambda m, a, out: seen.append(out if torch.is_tensor(out) else out[0]))
    with vector.applied(tiny, 2.0):
        steered = states(tiny, ids)
    hook.remove()
    expected = plain[2] + 2 * vector.vectors[1]
    torch.testing.assert_close(steered[2], expected)
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("doses", [1.0, [0.0, 0.5, 1.0]])
def test_projecting_out_takes_the_direction_from_real_tokens_in_proportion_to_the_dose(tiny, vector, doses):
    batch = tiny.encode_chat(["Hi", "What is rain?", "Tell me about the nurse."])
    seen = {}

    def outputs():
        def note(module, given, output):
            seen[module] = output if torch.is_tensor(output) else output[0]

        hooks = [block.register_forward_hook(note) for block in tiny.blocks[:2]]
        with torch.no_grad():
            tiny.model(**batch)
        for hook in hooks:
            hook.remove()
        return [seen.pop(block) for block in tiny.blocks[:2]]

    plain = outputs()
    with vector.applied(tiny, doses, operator="project_out"):
        ablated = outputs()
    unit = vector.vectors[1] / vector.vectors[1].norm()
    dose = torch.as_tensor(doses).expand(3)[:, None] * batch["attention_mask"]
    assert torch.equal(plain[0], ablated[0])
    expected = plain[1] - (dose * (plain[1] @ unit))[..., None] * unit
    torch.testing.assert_close(ablated[1], expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(sh.InputError, match="add or project_out"):
        vector.applied(tiny, operator="minus").__enter__()


def test_text_pairs_give_the_mean_difference_at_their_last_tokens(tiny):
    vector = extract_pairs(tiny, PAIRS, layers=2)
    ends = [[states(tiny, torch.tensor([tiny.tokenizer.encode(t)]))[3][0, -1].double() for t in pair] for pair in PAIRS]
    expected = torch.stack([one - other for one, other in ends]).mean(0)
    torch.testing.assert_close(vector.vectors[2].double(), expected, atol=2e-6, rtol=1e-5)
    assert vector.provenance.n_contexts == 3 and 0 <= vector.quality[2].auc <= 1


@pytest.mark.parametrize("pairs", [PAIRS[:1], [("a", "b"), ("a", "")], [("a", "b"), ("a",)], ["ab", ("a", 1)]])
def test_pairs_that_are_none_are_refused(tiny, pairs):
    with pytest.raises(sh.InputError, match="at least 2 pairs"):
        extract_pairs(tiny, pairs)
