"""The dose sweep: dose 0 is the plain model, the knee follows its definition, files and command line."""

import csv
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from script_modules import script

from steer_heal.errors import InputError
from steer_heal.evaluation import evaluate
from steer_heal.model import load
from steer_heal.statistics import Estimate
from steer_heal.steering import extract
from steer_heal.studies.dose_sweep.drawing import plot_sweep
from steer_heal.studies.dose_sweep.found import DosePoint, Sweep
from steer_heal.studies.dose_sweep.measuring import automatic_doses, doses_of, layers_of, sweep
from steer_heal.studies.writing import write_csv
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.trait import Trait

SMALL = {"n_items": 8, "n_free": 12, "max_new_tokens": 48}


@pytest.fixture(scope="module")
def setting():
    lm, trait = load("pocket"), Trait.load("pocket-care")
    vector = extract(lm, trait.pos, trait.neg, trait.contexts[:64])
    filt = CoherenceFilter.calibrate(lm, trait.prompts, system=trait.neutral, n=40, max_new_tokens=48)
    return lm, trait, vector, filt


@pytest.fixture(scope="module")
def found(setting):
    lm, trait, vector, filt = setting
    return sweep(lm, trait, vector, (0.5, 2.5), filt=filt, **SMALL)


@dataclass(frozen=True)
class Point:
    """A point of which only dose and coherence matter."""

    dose: float
    coherence: Estimate


def knee(values, floor=0.9):
    points = tuple(Point(i / 2, Estimate(v, v, v, 9)) for i, v in enumerate(values))
    return Sweep(points, floor, "m", "t", (1,), 0).knee.dose


def test_knee_is_the_last_dose_before_coherence_first_falls_under_the_floor():
    assert knee([1, 0.95, 0.9, 0.89, 0.2]) == 1.0
    assert knee([1, 0.95, 0.5, 0.99]) == 0.5  # a later recovery does not count
    assert knee([1, 0.2, 0.1]) == 0.0
    assert knee([0.8, 0.75, 0.73]) == 1.0  # relative to dose 0; never reached
    assert knee([1, 0.95, 0.5], floor=0.5) == 1.0


def test_dose_zero_is_added_and_equals_the_plain_evaluation(setting, found):
    lm, trait, _, _ = setting
    assert [p.dose for p in found.points] == [0.0, 0.5, 2.5]
    plain = evaluate(lm, trait, **SMALL)
    first = found.points[0].metrics
    assert first.items == plain.items and [r.text for r in first.replies] == [r.text for r in plain.replies]
    assert first.nll == pytest.approx(sum(c.scores["nll"] for c in found.points[0].judged) / 12)


def test_steering_moves_the_trait_and_a_large_dose_breaks_the_text(found):
    base, steered, broken = found.points
    assert steered.log_odds.value > base.log_odds.value + 0.5
    assert steered.coherence.value > 0.8 > 0.4 > broken.coherence.value
    assert broken.metrics.perplexity > 20 * base.metrics.perplexity
    assert broken.kept.value < 0.2 and base.kept.value > 0.6
    assert found.knee is steered


def test_surprise_is_measured_without_steering(setting, found):
    lm, _, _, filt = setting
    again = filt(lm, list(found.points[2].judged))
    assert [c.scores["nll"] for c in again] == pytest.approx([c.scores["nll"] for c in found.points[2].judged])


def test_coherence_is_the_filters_share_where_a_trait_has_no_checker(found):
    bare = replace(found.points[0].metrics, replies=tuple(
        replace(r, sentence_ok=None, trait=None, reply_ok=None) for r in found.points[0].metrics.replies
    ))  # fmt: skip
    point = DosePoint(0.0, bare, found.points[0].judged)
    assert point.sentence_ok is None and point.trait is None and point.coherence == point.kept
    assert "share kept by the filter" in replace(found, points=(point,)).knee_text()


def test_table_texts_csv_and_picture_hold_every_dose(found, tmp_path):
    assert found.table().count("<- knee") == 1 and "0.9 of those at dose 0" in found.table()
    texts = found.texts()
    assert all(p.judged[0].text in texts for p in found.points) and texts.count("[dose") == 3
    assert len({p.judged[0].prompt for p in found.points}) == 1
    write_csv(tmp_path / "a.csv", found.rows())
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [float(r["dose"]) for r in rows] == [0.0, 0.5, 2.5] and [r["knee"] for r in rows] == [
        "False",
        "True",
        "False",
    ]
    assert float(rows[1]["log_odds_low"]) <= float(rows[1]["log_odds"]) <= float(rows[1]["log_odds_high"])
    plot_sweep(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_automatic_doses_surround_the_dose_of_the_target_and_say_when_it_is_out_of_reach(setting, monkeypatch):
    lm, trait, vector, _ = setting
    doses, said = automatic_doses(lm, vector, trait, target_kl=0.3, n=4)
    assert doses[0] == 0 and sorted(doses) == list(doses) and len(doses) == 7
    assert "target 0.3)" in said and f"dose {doses[4]:.3g}" in said
    failed = SimpleNamespace(dose=2.0, divergence=0.1, reached=False)
    monkeypatch.setattr("steer_heal.studies.dose_sweep.measuring.calibrate", lambda *a, **k: failed)
    assert "NOT reached" in automatic_doses(lm, vector, trait)[1]


def test_impossible_input_is_one_clear_line(setting, capsys):
    lm, trait, vector, filt = setting
    for options, word in (
        ({"doses": ()}, "doses"), ({"doses": (-1.0,)}, "doses"), ({"doses": (1.0,), "floor": 0.0}, "floor"),
        ({"doses": (1.0,), "n_free": 1}, "n_free"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=word):
            sweep(lm, trait, vector, filt=filt, **options)
    for flags in (["--layers", "x"], ["--doses", "1", "auto"], ["--model", "./nowhere"]):
        assert script("csweep").main(flags) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("steer_heal: ") and shown.count("\n") == 1


def test_layers_are_fractions_indices_or_auto():
    assert layers_of(("0.45", "0.55")) == (0.45, 0.55)
    assert layers_of(("1", "2")) == (1, 2) and isinstance(layers_of(("1",))[0], int)
    assert layers_of(("auto",)) == "auto" and doses_of(("auto",)) is None


def test_command_writes_three_files_on_tiny_random(tmp_path, capsys):
    flags = ["--model=tiny-random", "--n-free=4", "--n-items=4", "--max-new-tokens=8", f"--out={tmp_path}"]
    assert script("csweep").main([*flags, "--doses", "0", "1"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"csweep.txt", "csweep.csv", "csweep.png"}
    assert "knee" in capsys.readouterr().out
