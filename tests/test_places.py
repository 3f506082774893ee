"""Every place keeps the same promises: here and inside the suite, on Ray and on submitit's local executor by recipe."""

import csv
import os
import shutil
import sys
import time
from functools import partial

import pytest
from arm_folders import write_run
from script_modules import script

from steer_heal.errors import InputError
from steer_heal.studies.arms import command, places, running
from steer_heal.studies.arms.definitions import Arm
from steer_heal.studies.arms.jobs import finished, make_jobs
from steer_heal.studies.arms.places import LOST, Local, Ray, Slurm, Task, attend
from steer_heal.studies.arms.running import run_jobs


class Node:
    """A place that attends a task at once, as the worker of a cluster does."""

    at_once = None

    class Done:
        def __init__(self, code):
            self.code = lambda: code

        def end(self):
            raise AssertionError("it has ended")

    def submit(self, task):
        return self.Done(attend(task))


@pytest.fixture(
    scope="module", params=["local", "node", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ray", "slurm"))]
)
def where(request, tmp_path_factory):
    """A place of each kind, two tasks at a time."""
    if request.param == "ray":
        yield (ray := Ray(workers=2))
        ray.ray.shutdown()
    elif request.param == "slurm":
        yield Slurm(tmp_path_factory.mktemp("slurm"), workers=2, cluster="local")
    else:
        yield Local(2) if request.param == "local" else Node()


@pytest.fixture(autouse=True)
def at_once(monkeypatch, request):
    """Inside the suite nobody waits for the hash of the package or between two looks."""
    for module in (places, running):
        monkeypatch.setattr(module, "POLL", 0.05)
        if not request.node.get_closest_marker("slow"):
            monkeypatch.setattr(module, "source_hash", lambda: "this")


def jobs_in(out, *names):
    return make_jobs([Arm(name, ("--n-rounds", "1", "--fast-dev-run")) for name in names], (0,), out)


def python(code, *words):
    return [sys.executable, "-S", "-c", code, *map(str, words)]


COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)"
TRY = "import sys; open(sys.argv[1], 'a').write('tried '); sys.exit(int(sys.argv[2]))"
KILL = "import os, sys; open(sys.argv[1], 'x'); os.kill(os.getppid() if sys.argv[2] == 'worker' else os.getpid(), 9)"


def made(place, job):
    """A process that leaves a finished run, as `write_run` makes it."""
    run = write_run(place / job.name, job.config, [{"shift": 1.0 + len(job.name)}])
    return python(COPY, run.folder.parent, job.folder)


def test_finished_runs_stay_and_failing_ones_are_tried_twice_and_those_that_refuse_their_input_once(where, tmp_path):
    jobs, said = jobs_in(tmp_path / "out", "there", "good", "bad", "refused"), []
    write_run(jobs[0].folder, jobs[0].config, [{"shift": 1.0}])
    (jobs[0].folder / "arm.json").write_text(f'{{"source": "{running.source_hash()}"}}')

    def command(job):
        assert job is not jobs[0]
        codes = {"bad_s0": 1, "refused_s0": 2}
        return python(TRY, tmp_path / job.name, codes[job.name]) if job.name in codes else made(tmp_path / "made", job)

    failures = run_jobs(jobs, where, say=said.append, command=command)
    assert sorted((failure.name, failure.code) for failure in failures) == [("bad_s0", 1), ("refused_s0", 2)]
    assert (tmp_path / "bad_s0").read_text() == "tried tried " and (tmp_path / "refused_s0").read_text() == "tried "
    assert finished(jobs[1].folder) and not finished(jobs[2].folder)


def test_a_run_whose_worker_was_killed_is_run_again(where, tmp_path):
    (job,), said, marker = jobs_in(tmp_path / "out", "one"), [], tmp_path / "killed"
    victim = "worker" if isinstance(where, Ray | Slurm) else "itself"

    def command(job):
        return made(tmp_path / "made", job) if marker.exists() else python(KILL, marker, victim)

    assert run_jobs([job], where, say=said.append, command=command) == []
    assert finished(job.folder) and any("one_s0 failed with exit code -" in line for line in said)
    if victim == "worker":
        assert any(f"exit code {LOST}" in line for line in said)


def test_a_task_that_is_ended_leaves_no_process(where, tmp_path):
    if isinstance(where, Node):
        return
    pid, sleep = (
        tmp_path / "pid",
        "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(90)",
    )
    handle = where.submit(Task(python(sleep, pid), {}, tmp_path / "log.txt", places.source_hash()))
    until(lambda: pid.exists() and pid.read_text())
    assert handle.code() is None
    handle.end()
    until(lambda: not os.path.exists(f"/proc/{pid.read_text()}") or handle.code() is not None)
    until(lambda: not os.path.exists(f"/proc/{pid.read_text()}"))


def until(true, seconds=60):
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds
        time.sleep(0.1)


def test_a_node_with_another_version_of_the_package_refuses_the_run(tmp_path):
    task = Task(python("open('never', 'w')"), {}, tmp_path / "log.txt", "another", str(tmp_path))
    assert attend(task) == 2 and "another version" in task.log.read_text() and not (tmp_path / "never").exists()


def tables(folder):
    """arms.csv, and arms.md without the lines that tell a machine and its seconds."""
    page = (folder / "arms.md").read_text().splitlines()
    with open(folder / "arms.csv", newline="") as file:
        rows = list(csv.reader(file))
    return rows, [line for line in page if not line.startswith("Source ") and "python -m" not in line]


def test_tables_do_not_depend_on_where_an_arm_ran(tmp_path, monkeypatch):
    stand_in = partial(run_jobs, command=lambda job: made(tmp_path / "made", job))
    monkeypatch.setattr(command, "run_jobs", stand_in)
    monkeypatch.setattr(command, "write_plots", lambda out, runs: [])
    found = {}
    for name, where in {"here": Local(2), "there": Node()}.items():
        monkeypatch.setattr(command, "place", lambda *options, where=where: where)
        chosen = command.Arguments(arms=("default", "nll"), seeds=(0,), n_rounds=1, out=tmp_path / name)
        assert command.arms(chosen)[0] == []
        found[name] = tables(tmp_path / name)
        shutil.rmtree(tmp_path / "made")
    assert found["here"] == found["there"] and len(found["here"][0]) > 3


@pytest.mark.parametrize(
    ("options", "said"),
    [({"on": "ray"}, r"steer-heal\[ray\]"), ({"on": "slurm"}, r"steer-heal\[slurm\]"), ({"gpus": 0.5}, "--on ray"),
     ({"slurm": ("time=5",)}, "--on slurm"), ({"on": "slurm", "address": "auto"}, "--on ray")],
)  # fmt: skip
def test_a_missing_extra_and_options_of_another_place_are_refused(options, said, tmp_path, monkeypatch):
    for name in ("ray", "submitit"):
        monkeypatch.setitem(sys.modules, name, None)
    given = {"on": "local", "workers": 0, "address": None, "gpus": 0, "slurm": ()} | options
    with pytest.raises(InputError, match=said):
        places.place(out=tmp_path, **given)


def test_the_command_says_it_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert script("arms").main(["--arms", "default", "--seeds", "0", "--on", "ray", "--out", str(tmp_path)]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("steer_heal: 'steer-heal[ray]' is needed") and "\n" not in line


@pytest.mark.slow
def test_real_runs_on_ray_have_the_tables_of_local_ones_to_the_digit(tmp_path):
    words = ["--arms", "default", "--seeds", "0", "--n-rounds", "1", "--options=--fast-dev-run"]
    for on in ("local", "ray"):
        assert script("arms").main([*words, "--on", on, "--out", str(tmp_path / on)]) == 0
    sys.modules["ray"].shutdown()
    assert tables(tmp_path / "local") == tables(tmp_path / "ray")


@pytest.mark.slow
def test_what_slurm_and_a_cluster_do_not_have_is_refused(tmp_path):
    with pytest.raises(InputError, match="no srun"):
        Slurm(tmp_path)
    with pytest.raises(InputError, match="key=value"):
        Slurm(tmp_path, options=("gpu",), cluster="local")
    with pytest.raises(InputError, match="--gpus 100"):
        Ray(gpus=100)
