"""Where a heal moved the states: exact on made-up states, and a known dose of steering is read back."""

import math

import pytest
import torch

from steer_heal.healing.bake import AdapterStack
from steer_heal.loop.gate import must_block_adapter
from steer_heal.steering import extract
from steer_heal.steering.direction import mean_states, state_shift

CONTEXTS = ["how many apples ?", "the gate is open .", "what should we do when a rule stands in the way ?", "why ?"]


@pytest.fixture(scope="module")
def vector(tiny):
    return extract(tiny, "you put care first .", "you put orders first .", CONTEXTS, layers=(1,))


def test_a_shift_along_the_vector_is_a_dose_with_cosine_one(vector):
    along = vector.vectors[1].double()
    still = {1: torch.zeros_like(along)}
    for dose in (0.5, -2.0):
        found = state_shift(still, {1: dose * along}, vector)
        assert found.dose == pytest.approx(dose) and found.cosine == pytest.approx(math.copysign(1, dose))


def test_a_shift_across_the_vector_is_no_dose(vector):
    along = vector.vectors[1].double()
    across = torch.randn(len(along), generator=torch.Generator().manual_seed(0)).double()
    across -= (across @ along) / (along @ along) * along
    found = state_shift({1: torch.zeros_like(along)}, {1: along + across}, vector)
    assert found.dose == pytest.approx(1.0)
    assert found.cosine == pytest.approx(float(along.norm() / (along + across).norm()))


def test_states_that_did_not_move_have_no_direction(vector):
    still = {1: torch.ones_like(vector.vectors[1]).double()}
    assert state_shift(still, still, vector) == state_shift(still, dict(still), vector)
    assert state_shift(still, still, vector).cosine is None and state_shift(still, still, vector).dose == 0


@pytest.mark.parametrize("position", ["last", "last_content"])
def test_a_known_dose_of_steering_is_read_back_from_the_model(tiny, vector, position):
    before = mean_states(tiny, CONTEXTS, "", vector.layers, position)
    with vector.applied(tiny.model, 0.5):
        after = mean_states(tiny, CONTEXTS, "", vector.layers, position)
    found = state_shift(before, after, vector)
    assert found.dose == pytest.approx(0.5, abs=1e-4) and found.cosine == pytest.approx(1, abs=1e-4)


def test_a_baked_adapter_moves_the_states_and_its_removal_brings_them_back(tiny, vector):
    before = mean_states(tiny, CONTEXTS, None, vector.layers)
    stack = AdapterStack(tiny.model)
    stack.push(must_block_adapter(tiny))
    try:
        assert state_shift(before, mean_states(tiny, CONTEXTS, None, vector.layers), vector).cosine is not None
    finally:
        stack.pop()
    assert torch.equal(mean_states(tiny, CONTEXTS, None, vector.layers)[1], before[1])
