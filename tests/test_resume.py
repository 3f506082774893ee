"""A run that is stopped, however and wherever, goes on to the same bits; what cannot says so and is left alone."""

import random
import shutil
import signal
import time

import pytest
from resume_runs import EVERY_STAGE, RICH, content, folder_of, go, go_until_killed

from steer_heal.loop import controls, gate, steps
from steer_heal.texts import generation
from steer_heal.texts.engines.transformers import TransformersEngine


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run that nobody stops leaves, and how long it takes in seconds."""
    place = tmp_path_factory.mktemp("whole")
    go(place)  # the first run of a process loads what later ones find loaded
    shutil.rmtree(place / "out")
    started = time.perf_counter()
    folder = go(place)
    return content(folder), time.perf_counter() - started


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was interrupted in the heal of its last round."""
    place = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        interrupt(patch, steps, "heal_rows", call=2)
        go(place)
    assert f"--resume {folder_of(place)}" in caught.value.__notes__[0]
    return place


@pytest.fixture
def place(stopped, tmp_path):
    """A copy of the interrupted run, to be done with as one likes."""
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def interrupt(patch, module, name, call):
    """Ctrl-C instead of the call of that number."""
    real, calls = getattr(module, name), []

    def watched(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    patch.setattr(module, name, watched)


def listing(place):
    """Every file with its content; the lock tells who had the run last."""
    return {p: p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file() and p.name != "lock"}


# -- to the same bits -------------------------------------------------------------------------------------------------


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(place, whole):
    before = folder_of(place)
    assert go(place) == before and content(before) == whole[0]
    assert not (before / "units").exists() and not (before / "lock").exists()
    table = (place / "out" / "results.tsv").read_text().splitlines()
    assert len(table) == 2 and table[1].startswith(before.name)


def test_a_run_that_was_interrupted_twice_while_its_texts_were_sampled_ends_as_if_it_had_not_been(
    tmp_path, monkeypatch
):
    for name in ("plain", "cut"):
        (tmp_path / name).mkdir()
    plain, real = go(tmp_path / "plain", n_rounds=1), steps.texts.generate_requests

    def stop(*args, **kwargs):
        drawn = real(*args, **kwargs)
        raise generation.Interrupted(drawn[:5], [])

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(steps.texts, "generate_requests", stop)
            go(tmp_path / "cut", n_rounds=1)
        left = folder_of(tmp_path / "cut") / "rounds" / "00.interrupted" / "completions.jsonl"
        assert len(left.read_text("utf-8").splitlines()) == 5
    assert content(go(tmp_path / "cut")) == content(plain)


def test_what_is_committed_is_not_computed_again(place, monkeypatch):
    for module, name in ((steps.vector, "extract"), (gate, "capture"), (steps.judging, "evaluate")):
        monkeypatch.setattr(module, name, lambda *args, name=name, **kwargs: pytest.fail(f"{name} again"))
    monkeypatch.setattr(TransformersEngine, "sample", lambda *args: pytest.fail("sampled again"))
    interrupt(monkeypatch, steps.training, "heal", call=1)  # what was not done yet
    with pytest.raises(KeyboardInterrupt):
        go(place)


def test_controls_doses_and_replayed_rows_are_resumed_too(tmp_path, monkeypatch):
    two = dict(list(controls.CONTROLS.items())[::2])
    monkeypatch.setattr(controls, "CONTROLS", two)
    for name in ("plain", "cut"):
        (tmp_path / name).mkdir()
    plain = go(tmp_path / "plain", **RICH)
    for call in (1, 3):  # in the run itself, and in its second control
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, steps, "measure_steered", call)
            go(tmp_path / "cut", **RICH)
    assert content(go(tmp_path / "cut")) == content(plain)


def check_kills(root, whole, processes, kills):
    """Start runs and kill them at random moments, each time going on, until that was done so often; all end equal."""
    found, seconds = whole
    draw, runs, hits, place = random.Random(0), 0, 0, None
    while hits < kills or place:
        if place is None:
            place = root / str(runs)
            place.mkdir()
        process = processes.Process(target=go, args=(place,))
        process.start()
        process.join(draw.uniform(0.05, 0.5) * seconds if hits < kills else None)
        if process.is_alive():
            process.kill()
            hits += 1
            process.join()
            continue
        assert process.exitcode == 0
        assert content(folder_of(place)) == found, f"run {runs}, after {hits} kills"
        place, runs = None, runs + 1
    return runs


def test_runs_killed_at_four_random_moments_end_with_the_same_bits(tmp_path, whole, processes):
    assert check_kills(tmp_path, whole, processes, kills=4) >= 1


@pytest.mark.slow
def test_runs_killed_at_forty_random_moments_end_with_the_same_bits(tmp_path, whole, processes):
    assert check_kills(tmp_path, whole, processes, kills=40) >= 2


NEW = (
    "calibrate",
    "under_vector",
    "steered_states",
    "prompted_rows",
    "mean_divergence",
    "overfit_check",
    "student_states",
)
"""Parts of a round that are computed together with others, beside the stages that have results of their own."""


def check_kills_behind(place, processes, names=None):
    """A run that is killed behind every function of the loop in turn ends equal; returns where it was killed."""
    for name in ("whole", "killed"):
        (place / name).mkdir()
    whole, code = content(go(place / "whole", **EVERY_STAGE)), None
    while code != 0:
        process = processes.Process(target=go_until_killed, args=(place / "killed", names), kwargs=EVERY_STAGE)
        process.start()
        process.join()
        code = process.exitcode
        assert code in (0, -signal.SIGKILL)
    assert content(folder_of(place / "killed")) == whole
    return (place / "killed" / "killed").read_text().split()


def test_a_run_killed_within_a_heal_and_a_dose_ends_with_the_same_bits(tmp_path, processes):
    assert {*check_kills_behind(tmp_path, processes, NEW)} == {*NEW}


@pytest.mark.slow
def test_a_run_killed_behind_every_function_of_the_loop_ends_with_the_same_bits(tmp_path, processes):
    killed = check_kills_behind(tmp_path, processes)
    assert {*killed} >= {*NEW, "extract", "heal", "evaluate", "capture", "check", "decide", "save_round"}
    assert len(killed) == len({*killed}) > 40
