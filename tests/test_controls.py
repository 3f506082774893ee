"""Controls in one command: the same loop with one setting changed, compared item by item, the result left alone."""

import json
import math
from dataclasses import replace

import pytest
import torch
from resume_runs import config as small
from resume_runs import undrawn

import steer_heal.model
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.ledger import Ledger
from steer_heal.loop.controls import CONTROLS
from steer_heal.loop.rounds import run_rounds
from steer_heal.loop.steps import judging

ONE_ROUND = {"n_rounds": 1, "tau_rel": 0.5}
NAMES = ["unsteered", "random vector", "shuffled pairs"]


@pytest.fixture(scope="module", autouse=True)
def sound():
    """Every round counts as sound: there is a result that controls are compared with, which noise need not give."""
    real = judging.judge_round
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "judge_round", lambda *given: replace(real(*given), name="moved", above_floors=True))
        yield


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    """A fast run with all controls."""
    with undrawn():
        return run_rounds(small(tmp_path_factory.mktemp("out"), **ONE_ROUND, controls="all"))


def test_every_control_is_a_run_of_its_own_with_one_setting_changed(controlled):
    assert list(controlled.controls) == list(CONTROLS) == NAMES
    whole = Ledger.open(controlled.folder).config
    for name, settings in CONTROLS.items():
        folder = controlled.folder / "controls" / name.replace(" ", "-")
        ledger = Ledger.open(folder)
        own = {"controls", "gate", "doses"} | settings.keys()
        own |= {"tau", "tau_rel"} if name == "unsteered" else set()  # nothing steered, nothing to take a share of
        assert {key for key in whole if whole[key] != ledger.config[key]} <= own
        assert all(ledger.config[key] == value for key, value in settings.items())
        assert ledger.events("end") and (folder / "report.html").is_file() and (folder / "rounds" / "00").is_dir()
        doses = {d["dose"] for d in ledger.events("walk")[0]["per_dose"]}
        assert (doses == {0.0}) == (name == "unsteered")
    budget = Ledger.open(controlled.folder / "controls" / "unsteered").events("heal")[0]["tau"]
    assert budget == Ledger.open(controlled.folder).events("heal")[0]["tau"]


def test_controls_have_the_budget_and_the_items_of_the_run(controlled):
    key = controlled.run.base.items_key
    walk = Ledger.open(controlled.folder).events("walk")
    for result in controlled.controls.values():
        assert all(done.healed.items_key == key for done in result.rounds)
        mine = Ledger.open(result.folder).events("walk")
        assert len(mine) == len(walk) and mine[0]["curve"][0]["n"] == walk[0]["curve"][0]["n"]


def test_differences_are_paired_with_the_result_and_have_intervals(controlled):
    rows = {row["name"]: row for row in Ledger.open(controlled.folder).events("end")[0]["against"]}
    assert list(rows) == ["prompted", *NAMES]
    student = controlled.rounds[0].healed
    for name, result in controlled.controls.items():
        row, control = rows[name], result.rounds[0].healed
        found = row["difference"]["log_odds"]
        assert math.isclose(found["value"], student.log_odds - control.log_odds, abs_tol=1e-9)
        assert found["low"] < found["value"] < found["high"] and row["rounds"] == 1
        assert math.isclose(
            row["shift"]["log_odds"]["value"], control.log_odds - controlled.run.base.log_odds, abs_tol=1e-9
        )
        assert row["state"]["log_odds"] == pytest.approx(control.log_odds)


def test_the_result_is_the_same_with_and_without_controls(controlled, tmp_path, undrawn):
    alone = run_rounds(small(tmp_path, **ONE_ROUND))
    fresh = steer_heal.model.load("tiny-random")
    stack = AdapterStack(fresh.model)
    for number in Ledger.open(controlled.folder).events("end")[0]["folded"]:
        stack.push(Adapter.load(controlled.folder / "rounds" / f"{number:02d}" / "adapter"))
    assert len(stack) == len(controlled.run.stack) == 1
    weights, again = controlled.run.lm.model.state_dict(), alone.run.lm.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in fresh.model.state_dict().items())
    assert all(torch.equal(weights[name], weight) for name, weight in again.items())
    assert [e for e in alone.rounds[0].healed.items] == list(controlled.rounds[0].healed.items)


def test_readers_see_every_control_and_how_sure_the_comparison_is(controlled):
    text = (controlled.folder / "summary.md").read_text()
    short = text.split("## In short")[1].split("## Base")[0]
    for name in NAMES:
        assert f"control '{name}'" in short and f"| {name} |" in text and f"control: {name}" in text
    assert "surely" in short and "No controls were run" not in text
    page = (controlled.folder / "report.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in NAMES)
    assert json.loads((controlled.folder / "config.json").read_text())["controls"] == "all"
