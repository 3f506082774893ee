"""A run that uses every kind of committed result and takes a second, and how to compare two of its folders."""

import contextlib
import functools
import inspect
import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from steer_heal.config import RunConfig
from steer_heal.ledger import TIMES
from steer_heal.report.pages import writing
from steer_heal.report.plots import drawing

TELL_TIMES = ("config.json", "environment.json", "sha256.json", "summary.md", "report.html", "results.tsv", "lock")
"""Files with folders, processes and seconds in them."""

WORDS = ("gate", "basket", "nurse", "rule", "letter", "garden", "rain", "door")
SETTINGS = {
    "fast_dev_run": True,
    "n_rounds": 2,
    "max_new_tokens": 8,
    "n_min": 8,
    "walk_batch": 8,
    "epochs": 1,
    "rank": 2,
    "filter": "none",
    "gate": "watch",
}
RICH = {
    "n_rounds": 1,
    "filter": "repetition",
    "target_kl": 0.5,
    "replay": 0.2,
    "replay_anchors": 0.2,
    "controls": "all",
    "walk_mode": "grid",
}
"""Settings that use what is left: a dose found, replayed rows and anchors, kappas in one batch, controls."""
EVERY_STAGE = RICH | {"n_rounds": 2, "controls": "none", "walk_mode": "ladder"}
EVERY_STAGE |= {"tau_rel": 0.5, "prompted_teacher": 0.3, "overfit_check": True, "accumulate": 8}
"""Settings under which every function of a round is called."""


def mini_trait(folder: Path) -> Path:
    """A trait of a few lines, so that a run on it takes a second."""
    asked = [f"what about the {word} ?" for word in WORDS]
    lines = [
        'name = "mini"',
        'pos = "you are kind ."',
        'neg = "you are strict ."',
        'neutral = "you are helpful ."',
        f"contexts = {json.dumps(asked)}",
        f"prompts = {json.dumps(asked)}",
        f"eval_prompts = {json.dumps([f'and the {word} ?' for word in WORDS])}",
    ]
    for word in WORDS:
        lines += ["[[items]]", f'id = "{word}"', f'prompt = "the {word} ?"', 'choices = ["yes", "no"]', 'trait = "yes"']
    for name in ("any", "other"):
        lines += ["[[anchors]]", f'id = "{name}"', f'prompt = "say {name}"', 'answer = ".*"', 'check = "regex"']
    path = folder / "mini.toml"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def config(folder: Path, **changes) -> RunConfig:
    """The run's configuration; its folder comes under `folder/out`."""
    return RunConfig(trait=str(mini_trait(folder)), out=str(folder / "out"), **{**SETTINGS, **changes})


def words(folder: Path, **changes) -> list[str]:
    """The same as options of a command line."""
    given = {"trait": mini_trait(folder), "out": folder / "out", **SETTINGS, **changes}
    named = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
    return [word for name, value in named.items() for word in ([name] if value is True else [name, str(value)])]


@contextlib.contextmanager
def undrawn():
    """Runs write their pages with empty pictures: drawing is a third of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "png", lambda plot: b"\x89PNG")
        patch.setattr(drawing, "svg", lambda panel: "<svg/>")
        yield


@undrawn()
def go(folder: Path, **changes) -> Path:
    """Start the run, or go on with the unfinished one, without pictures; returns its folder."""
    from steer_heal.loop.resume import reopen
    from steer_heal.loop.rounds import run_rounds

    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        out = folder / "out"
        if any((run / "config.json").is_file() for run in out.glob("*/units/..")):
            return run_rounds(resume=reopen("auto", out)).folder
        if done := list(out.glob("*/summary.md")):
            return done[0].parent
        return run_rounds(config(folder, **changes)).folder


def go_until_killed(folder: Path, names: tuple[str, ...] | None = None, **changes) -> None:
    """The same, killed for good behind the first function of the loop that no process was killed behind before.

    `names` are the functions it may be, all by default; `folder/killed` has those it was.
    """
    import steer_heal.loop.rounds  # noqa: F401

    killed = folder / "killed"
    done = killed.read_text().split() if killed.is_file() else []

    def deadly(name, function):
        @functools.wraps(function)
        def called(*args, **options):
            result = function(*args, **options)
            killed.write_text(" ".join([*done, name]))
            os.kill(os.getpid(), signal.SIGKILL)
            return result

        return called

    for module in [module for name, module in sys.modules.items() if name.startswith("steer_heal.loop.")]:
        for name, function in list(vars(module).items()):
            ours = inspect.isfunction(function) and function.__module__.startswith("steer_heal.")
            if ours and name not in done and (names is None or name in names):
                setattr(module, name, deadly(name, function))
    go(folder, **changes)


def content(folder: Path) -> dict[str, object]:
    """Every result in a finished run's folder by name: bytes; events without their times."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name == "events.jsonl":
            events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            found[name] = [{k: v for k, v in event.items() if k not in TIMES} for event in events]
        elif path.name not in TELL_TIMES and "units.partial" not in name:
            found[name] = path.read_bytes()
    return found


def folder_of(place: Path) -> Path:
    """The one run folder under `place/out`; a folder that was not furnished when its process was killed is none."""
    (found,) = [path.parent for path in (place / "out").glob("*/config.json")]
    return found
