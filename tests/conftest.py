"""Shared fixtures: one thread for torch (tiny models are faster so, and other processes disturb them less)."""

import contextlib
import fcntl
import io
import multiprocessing
import os
from dataclasses import replace

import pytest
import resume_runs
import torch
from healing_data import completion

import steer_heal.model
from steer_heal.commands.main import main
from steer_heal.healing import reference_states
from steer_heal.ledger import Ledger

torch.set_num_threads(1)

LONGEST = ("test_pocket_run", "test_control_rows", "test_resume", "test_gate", "test_quickstart", "test_types")


def pytest_collection_modifyitems(items):
    """Files that take longest come first, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def tiny():
    """`tiny-random`, shared by tests that leave it as it was."""
    return steer_heal.model.load("tiny-random")


@pytest.fixture(scope="session")
def fast_run(tmp_path_factory):
    """Folder of a finished fast run of two rounds, made through the command line, beside what it printed.

    All workers share it: who changes it takes a copy.
    """
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    out = place / "fast"
    with open(place / "fast.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "printed.txt").is_file():
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                options = ["--reg", "kl_rev", "--fast-dev-run", "--gate", "watch", "--out", str(out)]
                assert main(["run", *options]) in (0, 3)
            (out / "printed.txt").write_text(printed.getvalue())
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    (folder / "sha256.json").unlink(missing_ok=True)  # copies are changed and read again
    return folder


@pytest.fixture(scope="session")
def processes():
    """A process that has everything imported and forks others quickly, so that one can be killed for real."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["resume_runs", "steer_heal.loop.rounds", "steer_heal.loop.resume", "peft", "matplotlib.pyplot"]
    )
    return context


@pytest.fixture
def undrawn():
    """Runs write their pages with empty pictures, for tests of something else."""
    with resume_runs.undrawn():
        yield


@pytest.fixture
def lm():
    """`tiny-random` of a test's own, to be changed."""
    return steer_heal.model.load("tiny-random")


@pytest.fixture
def data(lm):
    """A dozen completions of 5 to 14 random tokens."""
    return [completion(lm, i, 5 + 3 * (i % 4)) for i in range(12)]


@pytest.fixture
def prev(lm, data):
    """Reference states of the model as it is before a heal."""
    return {"prev": reference_states(lm, data)}


@pytest.fixture
def run(prepared, tmp_path):
    """A module's prepared run, with a ledger and a configuration of its own: `run(match_lengths="none")`."""

    def of(**options):
        config = replace(prepared[0].config, **options)
        return replace(prepared[0], config=config, ledger=Ledger.create(tmp_path, "run", {}), rounds=[])

    return of
