"""A run that is stopped, however and wherever, goes on to the same bits; what cannot says so and is left alone."""

import errno
import multiprocessing
import os
import random
import shutil
import time
from contextlib import contextmanager

import pytest
from resume_runs import RICH, content, folder_of, go

from steer_heal.errors import InputError, NotWrittenError
from steer_heal.ledger import Ledger, files
from steer_heal.loop import gate, steps
from steer_heal.texts import generation


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
    monkeypatch.setattr(generation._Batch, "sample", lambda *args: pytest.fail("sampled again"))
    interrupt(monkeypatch, steps.training, "heal", call=1)  # what was not done yet
    with pytest.raises(KeyboardInterrupt):
        go(place)


def test_controls_doses_and_replayed_rows_are_resumed_too(tmp_path, monkeypatch):
    for name in ("plain", "cut"):
        (tmp_path / name).mkdir()
    plain = go(tmp_path / "plain", **RICH)
    for call in (1, 3):  # in the run itself, and in its second control
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, steps, "measure_steered", call)
            go(tmp_path / "cut", **RICH)
    assert content(go(tmp_path / "cut")) == content(plain)


@pytest.fixture(scope="module")
def processes():
    """A process that has everything imported and forks others quickly, so that one can be killed for real."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["resume_runs", "steer_heal.loop.rounds", "steer_heal.loop.resume", "peft", "matplotlib.pyplot"]
    )
    return context


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


def test_runs_killed_at_twelve_random_moments_end_with_the_same_bits(tmp_path, whole, processes):
    assert check_kills(tmp_path, whole, processes, kills=12) >= 1


@pytest.mark.slow
def test_runs_killed_at_forty_random_moments_end_with_the_same_bits(tmp_path, whole, processes):
    assert check_kills(tmp_path, whole, processes, kills=40) >= 2


class Disk:
    """A disk that fails at one operation: a write (after half of it), a flush, or a new name.

    What a resumed run fills in only to compare it with a round that is there is not counted.
    """

    def __init__(self, patch):
        self.left, self.counts, self.failed = 0, True, []
        fill = Ledger.round_folder

        @contextmanager
        def round_folder(ledger, number):
            self.counts = not (ledger.folder / "rounds" / f"{number:02d}").exists()
            try:
                with fill(ledger, number) as folder:
                    yield folder
            finally:
                self.counts = True

        patch.setattr(Ledger, "round_folder", round_folder)
        real = {name: getattr(os, name) for name in ("fsync", "replace")}
        for name in real:
            patch.setattr(os, name, lambda *args, name=name: (self.operate(name), real[name](*args))[1])
        patch.setattr(files, "open", self.open, raising=False)

    def operate(self, name, half=lambda: None):
        self.left -= self.counts
        if self.left == 0 and self.counts:
            half()
            self.failed.append(name)
            raise OSError(errno.ENOSPC, "No space left on device")

    def open(self, path, mode):
        file = open(path, mode)  # noqa: SIM115
        if "r" not in mode:
            real = file.write

            def write(content):
                self.operate("write", lambda: real(content[: len(content) // 2]))
                return real(content)

            file = Slow(file, write)
        return file


class Slow:
    """A file whose `write` is another one."""

    def __init__(self, file, write):
        self.file, self.write = file, write
        self.flush, self.fileno = file.flush, file.fileno

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self.file.close()


def fail_on(place, whole, monkeypatch, **settings):
    """Go on again and again; the disk fails at the first operation, then the next, until something more is committed.

    So every operation fails once. Returns the names of those that did.
    """
    monkeypatch.setattr("steer_heal.report.write_report", lambda ledger: None)
    place.mkdir(exist_ok=True)
    disk, attempts, seen, offset = Disk(monkeypatch), 0, None, 0
    while True:
        there = [p for p in place.rglob("*") if p.suffix == ".unit" or p.name.isdigit() or p.name.endswith("d.json")]
        begun = list(place.glob("out/*/config.json"))
        now = len(there), len(begun), sum(p.read_bytes().count(b"\n") for p in place.rglob("events.jsonl"))
        seen, offset = now, offset + 1 if now == seen else 0
        disk.left = 1 + offset
        attempts += 1
        try:
            folder = go(place, **settings)
            break
        except InputError as problem:
            assert "No space left" in str(problem) and "\n" not in str(problem)
            if isinstance(problem, NotWrittenError) and hasattr(problem, "__notes__"):
                assert "--resume" in problem.__notes__[0]
            for made in (place / "out").iterdir():  # not yet a run folder: nothing was lost with it
                if not (made / "config.json").exists():
                    shutil.rmtree(made)
        assert attempts < 2000
    assert content(folder) == {k: v for k, v in whole.items() if not k.endswith(".png")}
    return disk.failed


def test_a_disk_that_fails_at_every_write_flush_and_rename_loses_nothing(tmp_path, monkeypatch):
    for name in ("whole", "failing"):
        (tmp_path / name).mkdir()
    whole = content(go(tmp_path / "whole", n_rounds=1))
    failed = fail_on(tmp_path / "failing", whole, monkeypatch, n_rounds=1)
    assert len(failed) > 200 and set(failed) == {"write", "fsync", "replace"}


@pytest.mark.slow
def test_a_disk_that_fails_at_every_operation_of_two_rounds_loses_nothing(tmp_path, whole, monkeypatch):
    assert len(fail_on(tmp_path, whole[0], monkeypatch)) > 250
