"""The calibrated dose causes the divergence that was asked for."""

import pytest
import torch

from steer_heal.errors import InputError
from steer_heal.loop.calibration import calibrate
from steer_heal.model import position_ids
from steer_heal.steering import extract
from steer_heal.texts.generation import generate

PROMPTS = ["Hello there", "What is rain?", "Tell me about the nurse.", "Hi"]


@pytest.fixture(scope="module")
def vector(tiny):
    return extract(tiny, "You are kind.", "You are cruel.", PROMPTS)


def naive_kl(lm, vector, dose, replies):
    """Mean over replies of the mean per-position KL(steered || plain), from the model's own logits in float64."""
    out = []
    for r in replies:
        ids = torch.tensor([[*r.prompt_ids, *r.token_ids]])
        options = {"position_ids": position_ids(torch.ones_like(ids))}
        with torch.no_grad():
            plain = lm.model(ids, **options).logits.double().log_softmax(-1)
            with vector.applied(lm.model, dose):
                steered = lm.model(ids, **options).logits.double().log_softmax(-1)
        kl = (steered.exp() * (steered - plain)).sum(-1)[0]
        out.append(float(kl[len(r.prompt_ids) - 1 : -1].mean()))
    return sum(out) / len(out)


@pytest.mark.parametrize("target", [0.01, 0.3])
def test_calibrated_dose_causes_the_target_divergence(tiny, vector, target):
    found = calibrate(tiny, vector, PROMPTS, target_kl=target, stat="mean", max_new_tokens=12)
    replies = generate(tiny, PROMPTS, max_new_tokens=12)
    assert found.reached and found.divergence == pytest.approx(target, rel=0.02)
    assert naive_kl(tiny, vector, found.dose, replies) == pytest.approx(target, rel=0.03)


def test_dose_is_found_whatever_the_vectors_scale(tiny, vector):
    doses = [calibrate(tiny, vector * s, PROMPTS, 0.1, max_new_tokens=12).dose * s for s in (1e-3, 1.0, 50.0)]
    assert doses[0] == pytest.approx(doses[1], rel=0.05) and doses[2] == pytest.approx(doses[1], rel=0.05)


def test_unreachable_target_is_reported(tiny, vector):
    found = calibrate(tiny, vector, PROMPTS, target_kl=1e6, max_new_tokens=12)
    assert not found.reached and found.curve[-1][0] == pytest.approx(1000 / vector.norm())


def test_impossible_target_is_one_clear_error(tiny, vector):
    with pytest.raises(InputError, match="above 0"):
        calibrate(tiny, vector, PROMPTS, target_kl=0)
    with pytest.raises(InputError, match="kl_agg"):
        calibrate(tiny, vector, PROMPTS, stat="median")
