"""The sweep of one round: same student, same items, same initial adapter; what stands in its table and files."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch
from script_modules import script

from steer_heal.errors import InputError
from steer_heal.healing import HealConfig
from steer_heal.healing.adapter import Adapter
from steer_heal.statistics import Estimate
from steer_heal.studies.material import read_round
from steer_heal.studies.reheal import Arguments, sweep
from steer_heal.studies.reheal.again import heal_once, heal_seed, load_setting, parse
from steer_heal.studies.reheal.sweep import DEFAULT_GRID, Row, as_shown, ranked


@pytest.fixture(scope="module")
def setting(fast_run):
    return load_setting(fast_run, 1)


def test_own_regulariser_at_own_seed_gives_the_rounds_adapter_and_measurements(fast_run, setting):
    own = setting.config.heal_config(heal_seed(setting.config.seed, 1))
    healed, metrics = heal_once(setting, own)
    stored = Adapter.load(fast_run / "rounds" / "01" / "adapter")
    for name in stored.modules:
        torch.testing.assert_close(healed.adapter.b[name], stored.b[name], atol=1e-6, rtol=1e-4)
    then = read_round(fast_run / "rounds" / "01")[1]
    assert metrics.items_key == then.items_key
    assert metrics.log_odds == pytest.approx(then.log_odds, abs=1e-4)
    assert len(setting.stack) == 1  # the round before it, and nothing of the sweep


def test_a_budget_relative_to_the_steering_is_measured_with_the_rounds_vector(setting):
    config = replace(setting.config.heal_config(0), tau_rel=0.5, epochs=1)
    healed, _ = heal_once(setting, config)
    assert 0 < healed.tau[config.reference] != config.tau


def test_files_and_table_hold_every_regulariser_and_the_references(fast_run, tmp_path, capsys):
    grid = ("nll", "kl_rev,lam=3")
    rows, _ = sweep(Arguments(fast_run, 1, grid, (0, 1), tmp_path))
    assert [row.name for row in rows[:3]] == ["base", "steered", "previous student"]
    assert {row.name for row in rows[3:]} == set(grid)
    base = rows[0]
    assert base.trait.value == 0 and base.per_nat is None
    fired = {row.name: row.fired for row in rows[3:]}
    assert fired["nll"] is None and 0 <= fired["kl_rev,lam=3"] <= 1  # whichever reference the run used
    for row in rows[3:]:
        assert row.seed == "all" and row.spread[0] <= row.trait.value <= row.spread[1]
        assert row.trait.n == 8  # items, not items x seeds: two seeds are no more items than one
    text = (tmp_path / "sweep.md").read_text()
    assert all(name.replace(",", " ") in text for name in grid) and "| steered |" in text
    with open(tmp_path / "sweep.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 + 2 + 4 and {line["seed"] for line in lines} == {"", "all", "0", "1"}
    pooled = next(line for line in lines if line["row"] == "nll" and line["seed"] == "all")
    seeds = [float(line["trait_nats"]) for line in lines if line["row"] == "nll" and line["seed"] in "01"]
    assert float(pooled["trait_nats"]) == pytest.approx(sum(seeds) / 2)
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def row(name, trait, noise=0.1, coherence=-0.02, under=()):
    still = Estimate(coherence, coherence - 0.01, coherence + 0.01, 9)
    return Row(name, "all", Estimate(trait, trait - noise, trait + noise, 9), None, still, 0.9, under)


def test_rows_are_ranked_by_trait_above_the_floors_and_never_by_the_ratio():
    rows = [row("a", 0.5, coherence=-0.001), row("b", 1.5), row("broken", 9.0, under=("words at .3",)), row("c", 1.0)]
    assert [r.name for r in ranked(rows)] == ["b", "c", "a", "broken"]


def test_coherence_per_nat_is_left_out_where_the_trait_moved_less_than_its_noise():
    assert row("a", 0.05).per_nat is None and as_shown(row("a", 0.05))["per nat"] == "-"
    assert row("a", 0.5).per_nat == pytest.approx(-0.04)
    assert row("a", -0.5).per_nat == pytest.approx(-0.04)  # the sign is that of coherence


def test_grid_entries_change_what_they_name_and_nothing_else():
    config = HealConfig(lr=2e-3, rank=8)
    assert parse("kl_fwd,lam=0.3,rank=4", config) == replace(config, reg="kl_fwd", lam=0.3, rank=4)
    assert parse("kl_rev,lam_mode=budget", config).lam_mode == "budget"
    configs = [parse(entry, config) for entry in DEFAULT_GRID]
    assert len({str(c) for c in configs}) == len(configs)
    for wrong in ("kl", "nll,lam", "nll,seed=3", "nll,lamm=3", "nll,lam=-1"):
        with pytest.raises(InputError):
            parse(wrong, config)


def test_unusable_input_is_one_line_and_exit_code_2(fast_run, tmp_path, capsys):
    changed = tmp_path / "changed"
    shutil.copytree(fast_run, changed)
    base = json.loads((changed / "base.json").read_text())
    for item in base["items"]:
        item["log_odds"] += 1
    (changed / "base.json").write_text(json.dumps(base))
    cases = [
        ([str(tmp_path)], "no run folder"),
        ([str(fast_run), "--round", "7"], "no healed round 7"),
        ([str(fast_run), "--grid", "kl"], "unknown"),
        ([str(changed)], "have changed"),
        ([str(fast_run), "--rond", "1"], "did you mean --round"),
        ([str(fast_run), "--round", "one"], "a whole number"),
    ]
    for arguments, words in cases:
        assert script("heal_sweep").main(arguments) == 2
        shown = capsys.readouterr().err
        assert words in shown and shown.count("\n") == 1
