"""`layers="auto"` on quality profiles whose best band is known, and on models."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.ledger import Ledger
from steer_heal.loop.steps import extract_vector
from steer_heal.model.depth import pick_layers
from steer_heal.report.console import Reporter
from steer_heal.steering import Quality, SteeringVector, choose_band, extract

POS, NEG = "You are kind.", "You are cruel."
CONTEXTS = [f"What is {i} plus {i + 3}?" for i in range(24)]


def profile(cosines, aucs=None, norms=None):
    """Figures of blocks 0, 1, ...; equal AUCs and norms unless given."""
    n = len(cosines)
    aucs, norms = aucs or [0.95] * n, norms or [0.3] * n
    return {i: Quality(1.0, norms[i], cosines[i], aucs[i]) for i in range(n)}


@pytest.mark.parametrize("n", [1, 4, 12, 26, 34, 48])
def test_equal_figures_give_the_default_band(n):
    band, reason = choose_band(profile([0.9] * n))
    assert band == pick_layers((0.45, 0.55), n)
    assert reason.startswith("auto:") and "\n" not in reason


def test_a_middle_without_reliability_is_avoided_by_the_nearest_reliable_band():
    cosines = [0.9] * 20
    cosines[7:13] = [0.3] * 6
    assert choose_band(profile(cosines))[0] == (3, 4, 5, 6)  # 13-16 lies as near, but 16 is in the last fifth
    cosines[3:7] = [0.85] * 4
    cosines[16:] = [0.1] * 4
    assert choose_band(profile(cosines))[0] == (3, 4, 5, 6)


def test_held_out_separation_counts_as_much_as_reliability():
    aucs = [0.55] * 12
    aucs[2:5] = [0.98, 0.99, 0.98]
    band, reason = choose_band(profile([0.95] * 12, aucs))
    assert band == (2, 3, 4) and "a band of 4 blocks would be usual" in reason


def test_weak_early_blocks_are_left_out_although_they_separate():
    norms = [0.01] * 6 + [0.3] * 6
    assert choose_band(profile([0.99] * 6 + [0.97] * 6, norms=norms))[0] == (6, 7, 8)


def test_the_last_fifth_is_never_chosen_however_good_its_figures():
    cosines = [0.5] * 8 + [0.99, 0.99]
    assert max(choose_band(profile(cosines))[0]) < 8


def test_of_two_bands_as_near_the_middle_the_better_one_is_taken():
    low, high = [0.9] * 11, [0.9] * 11
    low[2:5], low[5] = [0.95] * 3, 0.2
    high[6:9], high[5] = [0.95] * 3, 0.2
    assert choose_band(profile(low))[0] == (2, 3, 4) and choose_band(profile(high))[0] == (6, 7, 8)


def test_no_direction_at_all_is_one_clear_error():
    with pytest.raises(InputError, match="no block has a reliable direction") as caught:
        choose_band(profile([0.05, -0.02, 0.1, 0.0]))
    assert "\n" not in str(caught.value)


@given(st.lists(st.tuples(st.floats(0.3, 1), st.floats(0.5, 1), st.floats(0.01, 2)), min_size=1, max_size=40))
def test_a_band_is_contiguous_early_enough_and_no_wider_than_the_default(figures):
    found = profile(*(list(column) for column in zip(*figures, strict=True)))
    band, reason = choose_band(found)
    n = len(found)
    assert band == tuple(range(band[0], band[-1] + 1)) and 1 <= len(band) <= len(pick_layers((0.45, 0.55), n))
    assert band[-1] <= 0.8 * max(1, n - 1) and str(band[0]) in reason
    assert choose_band(found) == (band, reason)


def test_auto_measures_every_block_in_one_pass_and_keeps_its_reason(tiny, tmp_path):
    vector = extract(tiny, POS, NEG, CONTEXTS, layers="auto")
    everywhere = extract(tiny, POS, NEG, CONTEXTS, layers=range(4))
    assert vector.quality == everywhere.quality and set(vector.quality) == {0, 1, 2, 3}
    band, reason = choose_band(everywhere.quality)
    assert vector.layers == band and vector.provenance.reason == reason
    assert all((vector.vectors[i] == everywhere.vectors[i]).all() for i in band)
    vector.save(tmp_path / "v.safetensors")
    assert SteeringVector.load(tmp_path / "v.safetensors").provenance == vector.provenance
    assert extract(tiny, POS, NEG, CONTEXTS).provenance.reason == "as asked: depth 0.45, 0.55"


def test_a_run_records_and_prints_why_and_keeps_its_blocks(tiny, tmp_path, capsys):
    config = RunConfig(model="tiny-random", layers="auto", target_kl=0.0)
    trait = SimpleNamespace(pos=POS, neg=NEG, contexts=[*CONTEXTS, "word " * 3000])
    ledger, reporter = Ledger.create(tmp_path, "auto", {}), Reporter(verbose=True)
    ledger.listeners.append(reporter.on_event)
    run = SimpleNamespace(
        config=replace(config, too_long="skip"),
        lm=tiny,
        trait=trait,
        ledger=ledger,
        reporter=reporter,
        rounds=[],
        standing=[],
        keep=ledger.units.part,
    )
    first = extract_vector(run, 0)
    run.rounds.append(SimpleNamespace(vector=first))
    second = extract_vector(run, 1)
    events = ledger.events("extract")
    assert events[0]["reason"].startswith("auto: of 4 blocks,") and events[0]["n_skipped"] == 1
    assert second.layers == first.layers == tuple(events[0]["layers"]) == tuple(events[1]["layers"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Blocks auto: of 4 blocks," in shown and f"{first.layers[0]} steered" in shown and "1 too long" in shown


@pytest.mark.parametrize("layers", ["middle", (0.9, 0.1), (0.5,), (-1.0, 0.5), {}])
def test_impossible_layers_are_one_clear_error(layers):
    with pytest.raises(InputError, match="layer"):
        RunConfig(layers=layers)


def test_an_unknown_word_for_layers_is_refused(tiny):
    with pytest.raises(InputError, match="auto"):
        extract(tiny, POS, NEG, CONTEXTS, layers="middle")
    with pytest.raises(InputError, match="for extract"):
        pick_layers("auto", 4)
