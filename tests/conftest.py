"""Shared fixtures; what needs torch is imported within them, as the process that shares out the tests does without."""

import contextlib
import fcntl
import gc
import io
import multiprocessing
import os
from dataclasses import replace

import pytest

LONGEST = (
    "bad_input",
    "control_rows",
    "docs",
    "gate",
    "pocket_run",
    "pocket_weights",
    "quickstart",
    "resume",
    "types",
    "wheel",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Modules and tests are no garbage: none is looked for while they come, and later never among them."""
    gc.disable()
    yielded = yield
    gc.freeze()
    gc.set_threshold(10_000)  # small runs make little garbage; to look for it every 700 objects costs 7 % of them
    gc.enable()
    return yielded


def pytest_unconfigure():
    """Libraries count at the end what was not let go."""
    gc.unfreeze()


def pytest_collection_modifyitems(items):
    """Files that take longest come first, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def quick():
    """One thread, as tiny models are faster so; and no waiting for the disk, as no test takes the power away."""
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def tiny():
    """`tiny-random`, shared by tests that leave it as it was."""
    import steer_heal.model

    return steer_heal.model.load("tiny-random")


@pytest.fixture(scope="session")
def fast_run(tmp_path_factory):
    """Folder of a finished fast run of two rounds, made through the command line, beside what it printed.

    All workers share it: who changes it takes a copy.
    """
    from steer_heal.commands.main import main

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
    import resume_runs

    with resume_runs.undrawn():
        yield


@pytest.fixture
def lm():
    """`tiny-random` of a test's own, to be changed."""
    import steer_heal.model

    return steer_heal.model.load("tiny-random")


@pytest.fixture
def data(lm):
    """A dozen completions of 5 to 14 random tokens."""
    from healing_data import completion

    return [completion(lm, i, 5 + 3 * (i % 4)) for i in range(12)]


@pytest.fixture
def prev(lm, data):
    """Reference states of the model as it is before a heal."""
    from steer_heal.healing import reference_states

    return {"prev": reference_states(lm, data)}


@pytest.fixture
def run(prepared, tmp_path):
    """A module's prepared run, with a ledger and a configuration of its own: `run(match_lengths="none")`."""
    from steer_heal.ledger import Ledger

    def of(**options):
        config = replace(prepared[0].config, **options)
        return replace(prepared[0], config=config, ledger=Ledger.create(tmp_path, "run", {}), rounds=[])

    return of
