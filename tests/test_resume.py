"""A run that is stopped, however and wherever, goes on to the same bits; what cannot go on says so and is left alone."""

import errno
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from resume_runs import RICH, content, folder_of, go, mini_trait

from steer_heal import files, gate, generation, steps
from steer_heal.errors import InputError, NotWrittenError


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


def test_what_is_committed_is_not_computed_again(place, monkeypatch):
    for module, name in ((steps.texts, "extract"), (steps.texts, "generate_requests"), (gate, "capture")):
        real = getattr(module, name)

        def watched(*args, real=real, name=name, **kwargs):
            if name == "generate_requests":  # it is asked, and finds its batches
                return real(*args, **kwargs)
            raise AssertionError(f"{name} is computed again")

        monkeypatch.setattr(module, name, watched)
    monkeypatch.setattr(generation._Batch, "sample", lambda *args: pytest.fail("sampled again"))
    monkeypatch.setattr(steps.training, "heal", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        go(place)


def test_controls_doses_and_replayed_rows_are_resumed_too(tmp_path, monkeypatch):
    plain = go(tmp_path / "plain", **RICH) if (tmp_path / "plain").mkdir() is None else None
    (tmp_path / "cut").mkdir()
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
        ["resume_runs", "steer_heal.rounds", "steer_heal.resume", "peft", "matplotlib.pyplot"]
    )
    return context


def killed_runs(place: Path, chain: int, kills: int, seconds: float, processes) -> int:
    """Start a run and kill it at random moments, each time going on; then let it end. Returns how often it was hit."""
    place.mkdir()
    mini_trait(place)
    draw, hit = random.Random(chain), 0
    for _ in range(kills):
        process = processes.Process(target=go, args=(place,))
        process.start()
        process.join(draw.uniform(0.2, 1.0) * seconds)
        hit += process.is_alive()
        process.kill()
        process.join()
        if not list((place / "out").glob("*/units")) and list((place / "out").glob("*/summary.md")):
            return hit
    process = processes.Process(target=go, args=(place,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return hit


def check_kills(tmp_path, whole, processes, chains, kills):
    found, seconds = whole
    hits = sum(killed_runs(tmp_path / str(i), i, kills, seconds, processes) for i in range(chains))
    for i in range(chains):
        folders = [f for f in (tmp_path / str(i) / "out").iterdir() if (f / "summary.md").is_file()]
        assert len(folders) == 1 and content(folders[0]) == found, f"chain {i}"
    return hits


def test_runs_killed_at_random_moments_end_with_the_same_bits(tmp_path, whole, processes):
    assert check_kills(tmp_path, whole, processes, chains=4, kills=3) >= 8


@pytest.mark.slow
def test_runs_killed_at_forty_random_moments_end_with_the_same_bits(tmp_path, whole, processes):
    assert check_kills(tmp_path, whole, processes, chains=10, kills=4) >= 28


class Disk:
    """A disk that fails at one operation: a write (after half of it), a flush, or a new name."""

    def __init__(self, patch):
        self.left = self.done = 0
        self.failed = []
        real = {name: getattr(os, name) for name in ("fsync", "replace")}
        for name in real:
            patch.setattr(os, name, lambda *args, name=name: (self.operate(name), real[name](*args))[1])
        patch.setattr(files, "open", self.open, raising=False)

    def operate(self, name, half=lambda: None):
        self.left -= 1
        self.done += 1
        if self.left == 0:
            half()
            self.failed.append(name)
            raise OSError(errno.ENOSPC, "No space left on device")

    def open(self, path, mode):
        file = open(path, mode)
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


def fail_on(place, whole, monkeypatch, steps_between):
    """Go on again and again, each time until the disk fails after so many operations more; returns what failed."""
    monkeypatch.setattr("steer_heal.report.write_report", lambda ledger: None)
    disk, attempts = Disk(monkeypatch), 0
    while True:
        disk.left = 1 + steps_between[attempts % len(steps_between)]
        attempts += 1
        try:
            folder = go(place)
            break
        except InputError as problem:
            assert "No space left" in str(problem) and "\n" not in str(problem)
            if isinstance(problem, NotWrittenError) and hasattr(problem, "__notes__"):
                assert "--resume" in problem.__notes__[0]
            for made in (place / "out").iterdir():  # not yet a run folder: nothing was lost with it
                if not (made / "config.json").exists():
                    shutil.rmtree(made)
        assert attempts < 2000
    assert content(folder) == {k: v for k, v in whole[0].items() if k != "trajectory.png"}
    return disk.failed


def test_a_disk_that_fails_at_any_write_flush_or_rename_loses_nothing(tmp_path, whole, monkeypatch):
    failed = fail_on(tmp_path, whole, monkeypatch, steps_between=(5, 2, 7, 4, 9))
    assert len(failed) > 20 and set(failed) == {"write", "fsync", "replace"}


@pytest.mark.slow
def test_a_disk_that_fails_at_every_write_flush_and_rename_loses_nothing(tmp_path, whole, monkeypatch):
    failed = fail_on(tmp_path, whole, monkeypatch, steps_between=(0, 1, 2, 3))
    assert len(failed) > 100 and set(failed) == {"write", "fsync", "replace"}
