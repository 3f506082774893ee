"""Vectors that come from elsewhere, sums over other blocks, equality; ablation, and who sees the steered block."""

import importlib
import sys

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


def marked(lm, vector, batch, **options):
    """1 where an application changed the output of the vector's first block, [row, position]."""
    seen = []
    block = lm.blocks[vector.layers[0]]
    hook = block.register_forward_hook(lambda m, a, out: seen.append(out if torch.is_tensor(out) else out[0]))
    with torch.no_grad():
        lm.model(**batch)
        with vector.applied(lm, 30.0, **options):
            lm.model(**batch)
    hook.remove()
    return (seen[0] != seen[1]).any(-1).long()


def test_a_mask_of_positions_and_a_first_token_narrow_what_is_steered(tiny, vector):
    batch = tiny.encode_chat(["Hi", "What is rain?"])
    real = batch["attention_mask"]
    assert torch.equal(marked(tiny, vector, batch), real)
    picked = torch.zeros_like(real)
    picked[0, 0] = picked[0, -2] = picked[1, 3] = 1
    assert torch.equal(marked(tiny, vector, batch, positions=picked.bool()), picked * real)
    late = marked(tiny, vector, batch, min_token=4)
    assert torch.equal(late, real * (real.cumsum(-1) > 4)) and 0 < late[0].sum() < late[1].sum()
    both = marked(tiny, vector, batch, min_token=4, scope="generated", positions=picked)
    assert both.sum() == 0 and marked(tiny, vector, batch, min_token=4, scope="generated").sum() == 2
    with pytest.raises(sh.InputError, match="positions"):
        marked(tiny, vector, batch, positions=picked[:, 1:])
    with pytest.raises(sh.InputError, match="min_token"):
        marked(tiny, vector, batch, min_token=-1)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
def test_a_first_token_behind_the_prompt_leaves_the_first_replied_tokens_as_they_were(tiny, vector, options):
    batch = tiny.encode_chat(["Hi", "What is rain?"])
    longest = batch["input_ids"].shape[1]

    def replies(**given):
        with vector.applied(tiny, 300.0, **given), torch.no_grad():
            out = tiny.model.generate(**batch, max_new_tokens=9, min_new_tokens=9, do_sample=False, **options)
        return out[:, longest:]

    with torch.no_grad():
        plain = tiny.model.generate(**batch, max_new_tokens=9, min_new_tokens=9, do_sample=False, **options)
    plain = plain[:, longest:]
    lengths, first = batch["attention_mask"].sum(-1).tolist(), longest + 4
    steered, late = replies(), replies(min_token=first)
    for row, length in enumerate(lengths):  # the token at index i gives the reply's token i - length + 1
        same = first - length + 1
        assert torch.equal(late[row, :same], plain[row, :same]) and not torch.equal(
            steered[row, :same], plain[row, :same]
        )
    assert not torch.equal(late[1], plain[1]) and lengths[0] < lengths[1]
    assert torch.equal(replies(min_token=longest + 8), plain)


THEIRS = {
    "steering_vectors": """
import dataclasses
@dataclasses.dataclass
class SteeringVector:
    layer_activations: dict
    layer_type: str = "decoder_block"
""",
    "repeng": """
import dataclasses
@dataclasses.dataclass
class ControlVector:
    model_type: str
    directions: dict
""",
}
"""What of other libraries' vectors is read and made; the real ones are tried with the slow tests."""


def test_vectors_of_other_libraries_come_and_go_by_their_layout(tiny, directions, vector, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, code in THEIRS.items():
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    one, other = vector.to_steering_vectors(), vector.to_repeng("qwen3")
    assert torch.equal(one.layer_activations[2], directions[2]) and one.layer_type == "decoder_block"
    assert other.model_type == "qwen3" and (other.directions[1] == directions[1].numpy()).all()
    assert sh.SteeringVector.from_tensors(one, tiny) == sh.SteeringVector.from_tensors(other, tiny) == vector
    for name in THEIRS:
        sys.modules.pop(name)


def test_a_library_that_is_not_there_is_one_line_that_says_how_to_get_it(tiny, vector, monkeypatch):
    monkeypatch.setitem(sys.modules, "steering_vectors", None)
    with pytest.raises(sh.InputError, match="pip install steering-vectors"):
        vector.to_steering_vectors()
    with pytest.raises(sh.InputError, match="tensors by block, not int"):
        sh.SteeringVector.from_tensors(3, tiny)


def test_text_pairs_give_the_mean_difference_at_their_last_tokens(tiny):
    vector = extract_pairs(tiny, PAIRS, layers=2)
    ends = [[states(tiny, torch.tensor([tiny.tokenizer.encode(t)]))[3][0, -1].double() for t in pair] for pair in PAIRS]
    expected = torch.stack([one - other for one, other in ends]).mean(0)
    torch.testing.assert_close(vector.vectors[2].double(), expected, atol=2e-6, rtol=1e-5)
    assert vector.provenance.n_contexts == 3 and 0 <= vector.quality[2].auc <= 1


@pytest.mark.parametrize("pairs", [PAIRS[:1], [("a", "b"), ("a", "")], [("a", "b"), ("a",)], ["ab", ("a", 1)]])
def test_pairs_that_are_none_are_refused(tiny, pairs):
    with pytest.raises(sh.InputError, match=r"at least 2 pairs|^pairs .*: give a list of 2 texts each"):
        extract_pairs(tiny, pairs)
