"""The method on the embedded model, where the truth is known: the trait moves, the text stays; unsteered, not."""

from dataclasses import replace

import pytest
from resume_runs import undrawn

from steer_heal.config import RunConfig
from steer_heal.ledger import Ledger
from steer_heal.loop import controls
from steer_heal.loop.rounds import complete, run_rounds


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    """Two rounds of the default job, measured on fewer items and replies."""
    sizes = {"n_rounds": 2, "eval_items": 32, "eval_replies": 64}
    with undrawn():
        return run_rounds(RunConfig(reg="kl_rev", **sizes, out=str(tmp_path_factory.mktemp("steered"))))


@pytest.fixture(scope="module")
def unsteered(steered):
    """One round at its budget on half as many of the model's own unsteered texts: a control of the run."""
    with pytest.MonkeyPatch.context() as patch, undrawn():
        patch.setattr(controls, "CONTROLS", {"unsteered": controls.CONTROLS["unsteered"]})
        found = controls.run_controls(
            steered.run, lambda part: complete(replace(part, config=replace(part.config, n_rounds=1, n_min=96)))
        )
    return found["unsteered"]


def last(result):
    """The last round's evaluation event."""
    return Ledger.open(result.folder).events("evaluate")[-1]


def test_trait_moves_by_at_least_three_tenths_in_free_text(steered):
    shift = last(steered)["shift"]["free_trait"]
    assert shift["value"] >= 0.3 and shift["low"] > 0


def test_coherence_stays_within_three_hundredths_of_base(steered):
    assert last(steered)["shift"]["sentence_ok"]["value"] >= -0.03


def test_steered_texts_had_lost_what_the_student_has(steered):
    e = last(steered)
    assert e["steered"]["sentence_ok"] <= e["base"]["sentence_ok"] - 0.05
    assert e["healed"]["sentence_ok"] >= e["steered"]["sentence_ok"] + 0.03
    assert steered.verdict.name == "healed"


def test_off_target_categories_move_less_than_a_third_of_the_target(steered):
    shift = last(steered)["shift"]
    assert all(abs(s["value"]) < shift["log_odds"]["value"] / 3 for s in shift["off_target"].values())


def test_unsteered_texts_do_not_move_the_trait(unsteered, steered):
    shift, moved = last(unsteered)["shift"], Ledger.open(steered.folder).events("evaluate")[0]["shift"]
    assert shift["free_trait"]["low"] <= 0
    assert shift["log_odds"]["value"] < 0.25 * moved["log_odds"]["value"]


def test_two_rounds_reach_three_nats_and_lose_next_to_no_anchor_that_was_not_replayed(steered):
    first, second = (e["shift"]["log_odds"] for e in Ledger.open(steered.folder).events("evaluate"))
    assert first["low"] > 1.5 and second["low"] > 3.0
    (captured,) = Ledger.open(steered.folder).events("capture")
    assert captured["to_replay"] == captured["tasks"] == 48
    assert all(e["figures"]["anchors"] >= 0.9 for e in Ledger.open(steered.folder).events("gate"))


def test_the_gain_is_there_in_formats_that_no_training_text_had(steered):
    shift = last(steered)["shift"]
    assert shift["held_out_log_odds"]["low"] > 0.6 * shift["log_odds"]["value"]


def test_baked_weights_are_the_originals_again_after_the_last_pop(steered):
    import torch

    import steer_heal

    fresh = steer_heal.load("pocket").model.state_dict()
    run = steered.run
    assert len(run.stack)
    while len(run.stack):
        run.stack.pop()
    assert all(torch.equal(fresh[name], weight) for name, weight in run.lm.model.state_dict().items())
