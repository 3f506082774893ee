"""The experiment on budgets: what its cases mean, what stands in its table, and a whole one on `tiny-random`."""

import csv

import pytest
from script_modules import script

from steer_heal.studies.carry_over import Cell, means, parse, spread


def cell(arm, **changes):
    figures = {
        "case": "m t", "dose": 1.0, "seed": 0, "arm": arm, "rows": 20, "caused": 0.4, "tau": 0.2, "fired": 0.5,
        "reached": 0.3, "log_odds": 1.0, "free": 0.2, "coherence": 0.9,
    }  # fmt: skip
    return Cell(**{**figures, **changes})


def test_a_case_is_a_model_and_options_of_a_run():
    config = parse("pocket,trait=pocket-warmth,doses=0.5/1,lr=2e-3,epochs=2,layers=0.3/0.6")
    assert (config.model, config.trait, config.doses, config.lr, config.epochs, config.layers) == (
        "pocket", "pocket-warmth", (0.5, 1), 2e-3, 2, (0.3, 0.6),
    )  # fmt: skip
    assert parse("a/folder,trait=b/c.toml,doses=1").trait == "b/c.toml"


@pytest.mark.parametrize("case", ["pocket,dose=1", "pocket,doses", "pocket,lr=-1"])
def test_a_wrong_case_is_one_line_and_exit_code_2(case, capsys):
    assert script("carry_over").main([case]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "Traceback" not in shown.err


def test_ranges_are_over_cases_and_the_trait_is_a_share_of_nlls():
    cells = [
        cell("nll", tau=None, fired=None, log_odds=2.0), cell("tau", log_odds=1.0), cell("tau_rel", log_odds=1.5),
        cell("nll", case="other", tau=None, fired=None, log_odds=0.05), cell("tau", case="other", fired=0.1),
        cell("tau_rel", case="other", caused=0.6),
    ]  # fmt: skip
    fixed, relative = spread(cells)
    assert "fired 0.10 to 0.50 (range 0.40)" in fixed and "trait / nll 0.50 to 0.50" in fixed
    assert "D / caused 0.50 to 0.75 (range 0.25)" in relative


def test_means_are_over_seeds_only():
    cells = [cell("tau", fired=0.2), cell("tau", seed=1, fired=0.4), cell("tau", dose=2.0, free=None)]
    first, second = means(cells)
    assert first.fired == pytest.approx(0.3) and (second.dose, second.free) == (2.0, None)


SMALL = """name = "small"
pos = "You are kind."
neg = "You are cruel."
neutral = ""
contexts = ["Hello there", "Why is the sky blue?", "List three things", "Write a letter", "What now?", "Explain it"]
prompts = ["What should we do?", "Tell me of the gate.", "Is it so?", "Who came by?", "Where was she?", "And then?"]
eval_prompts = ["a", "b", "c", "d", "e", "f", "g", "h"]
[[items]]
id = "one"
prompt = "Well?"
choices = ["yes", "no"]
trait = "yes"
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("carry")
    trait = out / "small.toml"
    trait.write_text(SMALL, "utf-8")
    case = f"tiny-random,trait={trait},doses=0.1/0.4/400,max_new_tokens=16,epochs=2,lr=3e-3"
    code = script("carry_over").main([case, "--rows", "16", "--replies", "8", "--tau", "0.002", "--out", str(out)])
    with open(out / "carry_over.csv", encoding="utf-8", newline="") as file:
        return code, list(csv.DictReader(file)), (out / "carry_over.md").read_text("utf-8")


def test_every_dose_is_healed_under_every_budget_on_the_same_rows(finished):
    code, rows, text = finished
    assert code == 0 and [(r["dose"], r["arm"]) for r in rows] == [
        (dose, arm) for dose in ("0.1", "0.4") for arm in ("nll", "tau", "tau_rel")
    ]
    for dose in ("0.1", "0.4"):
        same = [r for r in rows if r["dose"] == dose]
        assert len({(r["caused"], r["rows"]) for r in same}) == 1
    assert text.count("tiny-random") >= 6 and "- tau_rel:" in text


def test_a_dose_at_which_hardly_a_text_is_coherent_is_left_out_and_noted(finished):
    assert "dose 400, seed 0: left out, " in finished[2] and "400" not in {row["dose"] for row in finished[1]}


def test_the_relative_budget_is_its_share_of_what_the_steering_caused(finished):
    _, rows, _ = finished
    for row in rows:
        expected = {"nll": None, "tau": 0.002, "tau_rel": 0.5 * float(row["caused"])}[row["arm"]]
        assert (row["tau"] == "") if expected is None else float(row["tau"]) == pytest.approx(expected)
    assert float(rows[3]["caused"]) > float(rows[0]["caused"]) > 0


def test_a_budget_that_binds_holds_the_student_nearer(finished):
    _, rows, _ = finished
    for dose in ("0.1", "0.4"):
        reached = {r["arm"]: float(r["reached"]) for r in rows if r["dose"] == dose}
        fired = {r["arm"]: float(r["fired"] or 0) for r in rows if r["dose"] == dose}
        assert fired["tau"] > 0 and reached["tau"] < reached["nll"]
