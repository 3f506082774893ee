"""The dose controller against simulated survival curves; no model anywhere."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_heal.errors import InputError
from steer_heal.texts.dose import MODES, Bisection, DoseConfig, Grid, Ladder, Walk, walk_c


@dataclass(frozen=True)
class Fake:
    """A completion of which only its dose and fate are known."""

    kappa: float
    fate: float
    kept: bool = False


def simulate(survival: Callable[[float], float], config: DoseConfig, seed: int | None = None) -> Walk:
    """A walk where a share survival(kappa) of completions survives: exactly without a seed, else at random."""
    rng = random.Random(seed)

    def sample(kappa: float, n: int) -> list[Fake]:
        return [Fake(kappa, (i + 0.5) / n if seed is None else rng.random()) for i in range(n)]

    def survive(drawn: list[Fake]) -> list[Fake]:
        return [replace(c, kept=c.fate < survival(c.kappa)) for c in drawn]

    return walk_c(sample, survive, config)


def cliff(kappa: float) -> float:
    return 1.0 if kappa <= 0.5 else 0.0


def slope(kappa: float) -> float:
    return max(0.0, 1.0 - kappa)


def hopeless(kappa: float) -> float:
    return 0.0


CURVES = {"cliff": cliff, "slope": slope, "hopeless": hopeless, "easy": lambda kappa: 0.9}


def test_ladder_walks_down_a_cliff_and_stops_below_it():
    walk = simulate(cliff, DoseConfig())
    assert [round(step.kappa, 3) for step in walk.steps] == [1.0, 0.7, 0.49]
    assert [step.decision for step in walk.steps] == ["shrink", "shrink", "enough"]
    assert not walk.starved


def test_ladder_stays_where_the_target_is_reached_and_tops_up():
    walk = simulate(slope, DoseConfig(n_min=60))
    assert [round(step.kappa, 3) for step in walk.steps] == [1.0, 0.7, 0.7, 0.7, 0.7, 0.7]
    assert [step.decision for step in walk.steps] == ["shrink", "stay", "stay", "stay", "stay", "enough"]


def test_survival_exactly_at_target_counts_as_reached():
    state = Ladder(DoseConfig(batch=8, target=0.25))
    assert state.observe(1.0, 8, 2).decision == "stay"
    assert Ladder(DoseConfig(batch=8, target=0.25)).observe(1.0, 8, 1).decision == "shrink"


def test_hopeless_walk_is_starved_and_keeps_everything_it_sampled():
    walk = simulate(hopeless, DoseConfig())
    assert walk.starved
    assert walk.banked == []
    assert len(walk.completions) == 6 * 48
    assert walk.steps[-1].decision == "starved"
    assert "starved: 0 of 288 kept" in str(walk)


def test_kappa_never_falls_below_the_floor():
    walk = simulate(hopeless, DoseConfig(max_batches=12))
    kappas = [step.kappa for step in walk.steps]
    assert min(kappas) == 0.2
    assert kappas == sorted(kappas, reverse=True)
    assert "floor" in {step.decision for step in walk.steps}


def test_survivors_of_failed_batches_are_banked_too():
    walk = simulate(lambda kappa: 0.2 if kappa > 0.9 else 0.5, DoseConfig())
    assert {c.kappa for c in walk.banked} == {1.0, 0.7}


def test_walk_starting_at_the_floor_needs_no_shrinking():
    walk = simulate(lambda kappa: 0.8, DoseConfig(kappa_start=0.2))
    assert [step.kappa for step in walk.steps] == [0.2]


def test_bisection_finds_the_cliff_within_its_resolution():
    config = DoseConfig(mode="bisect", n_min=60)
    walk = simulate(cliff, config)
    full = [step for step in walk.steps if not step.probe]
    assert full and all(0.5 / config.resolution <= step.kappa <= 0.5 for step in full)
    assert not walk.starved


def test_bisection_samples_less_than_the_ladder_above_the_cliff():
    def wasted(mode: str) -> int:
        return sum(c.kappa > 0.5 for c in simulate(cliff, DoseConfig(mode=mode)).completions)

    assert wasted("bisect") < wasted("ladder") / 3


def test_bisection_goes_straight_to_the_start_if_that_survives():
    walk = simulate(lambda kappa: 0.9, DoseConfig(mode="bisect"))
    assert {step.kappa for step in walk.steps} == {1.0}
    assert sum(step.probe for step in walk.steps) == 1


def test_lucky_probe_costs_one_batch_and_then_the_ladder_goes_on():
    state = Bisection(DoseConfig(mode="bisect"))
    state.observe(1.0, 8, 8)
    assert state.plan() == [(1.0, 48)]
    assert state.observe(1.0, 48, 0).decision == "shrink"
    assert state.plan() == [(0.7, 48)]


def test_grid_probes_several_kappas_in_one_batch_and_goes_on_at_the_largest_that_survives():
    walk = simulate(cliff, DoseConfig(mode="grid", n_min=60))
    grid = [step for step in walk.steps if step.probe]
    assert [step.n for step in grid] == [8] * 6 and (grid[0].kappa, grid[-1].kappa) == (1.0, 0.2)
    ratios = {round(b.kappa / a.kappa, 6) for a, b in pairwise(grid)}
    assert len(ratios) == 1  # even in log kappa
    assert [step.decision for step in grid] == ["missed"] * 3 + ["reached"] * 3
    best = max(step.kappa for step in grid if step.kappa <= 0.5)
    assert [(step.kappa, step.decision) for step in walk.steps if not step.probe] == [(best, "enough")]
    assert walk.kappa == best and walk.steps[-1].banked == 3 * 8 + 48


def test_a_grid_that_banks_enough_ends_there_at_its_best_kappa():
    walk = simulate(lambda kappa: 0.9, DoseConfig(mode="grid"))
    assert len(walk.completions) == 48 and walk.steps[-1].decision == "enough" and walk.kappa == 1.0


def test_a_lucky_share_of_the_grid_falls_back_to_the_ladder_below_it():
    state = Grid(DoseConfig(mode="grid"))
    for kappa, n in state.plan():
        state.observe(kappa, n, 2 if kappa == 1.0 else 0)
    assert state.plan() == [(1.0, 48)]
    assert state.observe(1.0, 48, 0).decision == "shrink" and state.plan() == [(0.7, 48)]


def test_a_hopeless_grid_goes_on_at_the_floor_and_starves():
    walk = simulate(hopeless, DoseConfig(mode="grid"))
    assert walk.starved and {step.kappa for step in walk.steps if not step.probe} == {0.2}
    one = simulate(hopeless, DoseConfig(mode="grid", max_batches=1))
    assert one.steps[-1].decision == "starved" and len(one.completions) == 48


def test_all_kappas_of_a_grid_are_sampled_and_judged_in_one_call():
    calls, judged = [], []

    def together(plan):
        calls.append(plan)
        return [[Fake(kappa, 0.0)] * n for kappa, n in plan]

    def survive(drawn):
        judged.append(len(drawn))
        return [replace(c, kept=c.kappa < 0.3) for c in drawn]

    walk = walk_c(None, survive, DoseConfig(mode="grid", n_min=60), together)
    assert len(calls[0]) == 6 and calls[1:] == [[(calls[0][4][0], 48)]] and judged == [48, 48]
    assert len(walk.banked) == 16 + 48 and {c.kappa for c in walk.banked} == {calls[0][4][0], 0.2}
    with pytest.raises(ValueError, match="came back"):
        walk_c(None, survive, DoseConfig(mode="grid"), lambda plan: together(plan)[1:])


@given(
    curve=st.sampled_from(sorted(CURVES)),
    seed=st.integers(0, 10_000),
    mode=st.sampled_from(MODES),
    noisy=st.booleans(),
    sizes=st.tuples(st.integers(1, 60), st.integers(1, 80), st.integers(1, 7)),
    start=st.floats(0.2, 2.0),
    grid=st.integers(2, 9),
)
def test_every_walk_ends_within_its_budget_and_banks_every_survivor(curve, seed, mode, noisy, sizes, start, grid):
    batch, n_min, max_batches = sizes
    config = DoseConfig(mode=mode, batch=batch, n_min=n_min, max_batches=max_batches, kappa_start=start, grid=grid)
    walk = simulate(CURVES[curve], config, seed if noisy else None)
    assert walk == simulate(CURVES[curve], config, seed if noisy else None)
    probes = sum(step.n for step in walk.steps if step.probe)
    full = sum(step.n for step in walk.steps if not step.probe)
    if mode == "grid":  # its probes share the first batch
        assert probes == batch and probes + full <= max_batches * batch
    else:
        assert full <= max_batches * batch and probes <= config.probe * config.max_probes * (mode == "bisect")
    assert all(config.kappa_floor <= step.kappa <= config.kappa_start for step in walk.steps)
    assert config.kappa_floor <= walk.kappa <= config.kappa_start
    assert walk.steps[-1].banked == len(walk.banked) == sum(step.survived for step in walk.steps)
    assert len(walk.completions) == sum(step.n for step in walk.steps)
    assert walk.starved == (len(walk.banked) < config.n_min)
    assert all(step.banked < config.n_min for step in walk.steps if not step.probe and step.decision != "enough")


@pytest.mark.parametrize("mode", MODES)
def test_a_cliff_within_reach_is_never_starved_in_any_mode(mode):
    walk = simulate(cliff, DoseConfig(mode=mode))
    assert not walk.starved and all(c.kappa <= 0.5 for c in walk.banked)


@pytest.mark.parametrize("mode", MODES)
def test_noisy_slope_rarely_starves(mode):
    starved = sum(simulate(slope, DoseConfig(mode=mode), seed).starved for seed in range(200))
    assert starved <= 2


def test_same_seed_gives_the_same_walk():
    assert simulate(slope, DoseConfig(), 3) == simulate(slope, DoseConfig(), 3)


def test_what_the_sampler_returned_is_what_counts():
    walk = walk_c(lambda kappa, n: [Fake(kappa, 0, kept=True)] * (n + 5), list, DoseConfig(batch=10, n_min=12))
    assert [step.n for step in walk.steps] == [15]


def test_an_empty_batch_is_survived_by_nobody_and_ends_in_starvation():
    walk = walk_c(lambda kappa, n: [], list, DoseConfig())
    assert walk.starved
    assert walk.survival == 0.0


def test_a_judge_that_loses_completions_is_an_error():
    with pytest.raises(ValueError, match="came back"):
        walk_c(lambda kappa, n: [Fake(kappa, 0)] * n, lambda drawn: drawn[1:], DoseConfig())


def test_curve_rows_hold_the_decisions_in_order():
    rows = simulate(cliff, DoseConfig()).curve()
    assert [row["decision"] for row in rows] == ["shrink", "shrink", "enough"]
    assert rows[-1]["survival"] == 1.0


@pytest.mark.parametrize(
    "setting",
    [
        {"kappa_floor": 0.0},
        {"kappa_start": 0.1},
        {"kappa_start": float("nan")},
        {"shrink": 1.0},
        {"target": 0.0},
        {"target": 1.5},
        {"n_min": 0},
        {"batch": 2.5},
        {"max_batches": 0},
        {"mode": "random"},
        {"resolution": 1.0},
        {"grid": 1},
    ],
)
def test_impossible_settings_are_one_line_input_errors(setting: dict):
    with pytest.raises(InputError) as caught:
        DoseConfig(**setting)
    assert "\n" not in str(caught.value)
