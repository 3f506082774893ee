"""A run of many rounds costs as much per round as one of few: its report, its memory, its files, going on with it."""

import builtins
import io
import json
import os
import shutil
import sys
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from resume_runs import config, content, go
from rich.console import Console

from steer_heal import report
from steer_heal.ledger import Ledger, event_log
from steer_heal.loop import rounds
from steer_heal.loop.rounds import run_rounds
from steer_heal.report import write_pages
from steer_heal.report.console import Reporter

MANY = {
    "n_rounds": 100,
    "model": "tiny-random",
    "fast_dev_run": False,
    "eval_items": 8,
    "eval_replies": 8,
    "on_inconclusive": "keep",
}


def grown(run, place, n_rounds):
    """A copy of a finished run of two rounds as if its second one had been done again, up to so many."""
    folder = shutil.copytree(run, place)
    *events, end = (json.loads(line) for line in (run / "events.jsonl").read_text("utf-8").splitlines())
    again = [(number, e) for number in range(2, n_rounds) for e in events if e["round"] == 1]
    states = {t["name"]: t["state"] for t in end["trajectory"]}
    states |= {f"{number} {kind}": states[f"1 {kind}"] for number, _ in again for kind in ("steered", "healed")}
    end["trajectory"] = [{"name": name, "state": state} for name, state in states.items()]
    lines = [*events, *({**e, "round": number} for number, e in again), end]
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines), "utf-8")
    for number in range(2, n_rounds):
        shutil.copytree(run / "rounds" / "01", folder / "rounds" / f"{number:02d}")
    return folder


@contextmanager
def counted(folder):
    """Counts of what is done inside the block: files of a folder opened, its events read, JSON parsed, own calls."""
    counts, parse, opens = dict.fromkeys(("opened", "events", "parsed", "calls"), 0), json.loads, open

    def opened(path, *args, **options):
        counts["opened"] += str(path).startswith(str(folder))
        counts["events"] += str(path).endswith("events.jsonl")
        return opens(path, *args, **options)

    def parsed(*args, **options):
        counts["parsed"] += 1
        return parse(*args, **options)

    def called(frame, event, arg):
        counts["calls"] += event == "call" and "steer_heal" in frame.f_code.co_filename

    with pytest.MonkeyPatch.context() as patch:
        for module in (builtins, io):
            patch.setattr(module, "open", opened)
        patch.setattr(json, "loads", parsed)
        sys.setprofile(called)
        try:
            yield counts
        finally:
            sys.setprofile(None)


def test_pages_read_events_once_and_cost_the_same_for_every_further_round(fast_run, tmp_path, undrawn):
    write_pages(Ledger.open(grown(fast_run, tmp_path / "warm", 2)))
    found = []
    for n_rounds in (4, 8, 12):
        folder = grown(fast_run, tmp_path / str(n_rounds), n_rounds)
        with counted(folder) as counts:
            write_pages(Ledger.open(folder))
        found.append(counts)
    first, second = ({key: two[key] - one[key] for key in one} for one, two in pairwise(found))
    assert found[-1]["events"] == 1
    assert first["opened"] == second["opened"] > 0 and first["parsed"] == second["parsed"] > 0
    assert second["calls"] == pytest.approx(first["calls"], rel=0.05)


def test_what_to_open_is_said_when_it_is_there(tmp_path, monkeypatch):
    said = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(report, "write_report", lambda ledger: said.print("pages are written"))
    folder = run_rounds(config(tmp_path, n_rounds=1), Reporter(said)).folder
    *_, last_but_one, last = said.file.getvalue().splitlines()
    assert last_but_one == "pages are written" and last.startswith(f"Open {folder}/report.html: ")


@pytest.mark.slow
def test_a_hundred_rounds_keep_memory_and_files_per_round_and_read_events_twice(tmp_path, monkeypatch):
    real, found, read = rounds.one_round, [], []
    whole_lines = event_log.whole_lines

    def one_round(run, number):
        ended = real(run, number)
        found.append((resident_memory(), sum(path.is_file() for path in run.ledger.folder.rglob("*"))))
        return ended

    monkeypatch.setattr(rounds, "one_round", one_round)
    monkeypatch.setattr(event_log, "whole_lines", lambda path: read.append(path) or whole_lines(path))
    result = run_rounds(config(tmp_path, **MANY))
    assert len(result.rounds) == len(found) == MANY["n_rounds"] and len(read) <= 2
    memory, files = zip(*found, strict=True)
    assert len({after - before for before, after in pairwise(files)}) == 1
    assert memory[-1] < 1.05 * memory[1]


@pytest.mark.slow
def test_a_run_that_is_stopped_after_each_of_a_hundred_rounds_ends_with_the_same_bits(tmp_path, monkeypatch, undrawn):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, real = content(go(tmp_path / "whole", **MANY)), rounds.one_round
    for stop in range(MANY["n_rounds"]):

        def one_round(run, number, stop=stop):
            ended = real(run, number)
            if number == stop:
                raise KeyboardInterrupt
            return ended

        monkeypatch.setattr(rounds, "one_round", one_round)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "cut", **MANY)
    monkeypatch.setattr(rounds, "one_round", real)
    assert content(go(tmp_path / "cut", **MANY)) == whole


def resident_memory():
    """Memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
