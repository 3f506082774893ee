"""Arms: what is run and what is refused; figures of states that stand; comparisons and the bar on chosen figures."""

import csv
import os
import sys
from dataclasses import replace

import pytest
from arm_folders import metrics, write_run
from resume_runs import mini_trait
from script_modules import script

from steer_heal.errors import InputError
from steer_heal.loop.rounds import run_rounds
from steer_heal.studies.arms import places
from steer_heal.studies.arms import running as r
from steer_heal.studies.arms.bar import bar_lines, rows_of
from steer_heal.studies.arms.comparing import matched, paired, spread
from steer_heal.studies.arms.definitions import BUILT_IN, DEFAULT_ARMS, Arm, parse_arm, select
from steer_heal.studies.arms.jobs import make_jobs
from steer_heal.studies.arms.places import Local
from steer_heal.studies.arms.reading import State, figures, read_run
from steer_heal.studies.arms.running import run_jobs
from steer_heal.studies.arms.tables import bar_summary, combined_rows, matched_rows, paired_rows

command_line = script("arms")


# Definitions


def test_an_arms_options_are_those_of_the_run_and_win_over_common_ones():
    config = parse_arm('tight=--reg nll --tau .3 --doses 0.5 "0.75"').config(7, ("--tau", "0.9", "--n-rounds", "3"))
    assert (config.reg, config.tau, config.doses, config.seed, config.n_rounds) == ("nll", 0.3, (0.5, 0.75), 7, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [("x=--nope 3", "'x'.*--nope"), ("x=--tau -1", "'x'"), ("x=--seed 3", "--seed is set by"), ("x=--out=y", "--out"),
     ("x=--help", "'x'"), ("x='--reg", "close the quotes"), ("no options", "NAME="), ("../up=", "NAME=")],
)  # fmt: skip
def test_unusable_arms_are_refused_in_one_line_that_names_them(text, said):
    with pytest.raises(InputError, match=said) as problem:
        parse_arm(text).config(0)
    assert "\n" not in str(problem.value)


def test_selection_keeps_the_order_and_a_users_arm_replaces_a_built_in_one():
    chosen = select(("nll", "default"), ("mine=--tau .1", "nll=--reg nll --lr 2e-3"))
    assert [arm.name for arm in chosen] == ["nll", "default", "mine"]
    assert "2e-3" in chosen[0].options
    for names, own in ((("nowhere",), ()), (("nll", "nll"), ()), ((), ()), ((), ("a=", "a="))):
        with pytest.raises(InputError):
            select(names, own)


def test_every_built_in_arm_is_a_usable_command_and_the_default_ones_exist():
    for arm in BUILT_IN.values():
        arm.config(0)
    assert set(DEFAULT_ARMS) <= set(BUILT_IN)
    assert BUILT_IN["mean-kl"].config(0).kl_agg == "mean" and BUILT_IN["unsteered"].config(0).vector == "none"


# Running

COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)"
FAIL = "import sys; print('first line'); sys.exit('the reason')"


def jobs_in(out, arms=("one", "two"), seeds=(0,), options=("--n-rounds", "1", "--fast-dev-run")):
    return make_jobs([Arm(name, options) for name in arms], seeds, out)


def done(job, source=None):
    """The job's run as if it had been made, without a process."""
    job.folder.mkdir(parents=True, exist_ok=True)
    r.write_json(job.folder / "arm.json", {"source": source or r.source_hash()})
    return write_run(job.folder, job.config, [{"shift": 1.0}])


def never(job):
    raise AssertionError(f"{job.name} was started")


def stand_in(place, fails=()):
    """Instead of the run: a process that leaves a finished folder, or fails."""

    def command(job):
        if job.name in fails:
            return [sys.executable, "-S", "-c", FAIL]
        made = write_run(place / job.name, job.config, [{"shift": 1.0}])
        return [sys.executable, "-S", "-c", COPY, str(made.folder.parent), str(job.folder)]

    return command


def test_a_failure_is_reported_and_the_others_are_finished_and_only_it_is_run_again(tmp_path):
    jobs, said = jobs_in(tmp_path / "out"), []
    command = stand_in(tmp_path / "made", fails=("one_s0",))
    failures = run_jobs(jobs, Local(2), say=said.append, command=command)
    assert [(f.name, f.code, f.tail) for f in failures] == [("one_s0", 1, "the reason")]
    assert r.finished(jobs[1].folder) and not r.finished(jobs[0].folder)
    assert "first line" in failures[0].log.read_text()
    assert any("0 of 2 rounds" in line for line in said)
    assert [job.name for job in r.missing(jobs, r.source_hash())] == ["one_s0"]


def test_finished_runs_are_not_run_again_and_an_unfinished_one_is_started_anew(tmp_path):
    jobs = jobs_in(tmp_path)
    for job in jobs:
        ledger = done(job)
    assert run_jobs(jobs, Local(1), command=never) == []
    events = ledger.folder / "events.jsonl"
    events.write_text("\n".join(line for line in events.read_text().splitlines() if '"end"' not in line) + "\n")
    assert [job.name for job in r.missing(jobs, r.source_hash())] == [jobs[1].name]
    r.clear(jobs[1].folder)
    assert not ledger.folder.exists()


def test_runs_of_other_options_or_another_source_are_refused_and_made_again_on_redo(tmp_path):
    (job,) = jobs_in(tmp_path, ("one",))
    done(job)
    (other,) = jobs_in(tmp_path, ("one",), options=("--n-rounds", "1", "--fast-dev-run", "--tau", "0.7"))
    with pytest.raises(InputError, match=r"one_s0 was made with tau .* 0\.7.*--redo"):
        run_jobs([other], Local(1), command=never)
    assert r.missing([other], r.source_hash(), redo=True) == [other]
    done(job, source="older")
    r.clear(job.folder)
    done(job, source="older")
    with pytest.raises(InputError, match="another version of the source"):
        run_jobs([job], Local(1), command=never)
    assert r.missing([job], r.source_hash(), redo=True) == [job]


def test_the_source_hash_follows_code_and_data_but_not_comments_docstrings_and_tables(tmp_path):
    (tmp_path / "steps.py").write_text('"""Doc."""\nx = 1\n')
    (tmp_path / "data.toml").write_text("a = 1\n")
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "plots.py").write_text("y = 1\n")
    before = r.source_hash(tmp_path)
    (tmp_path / "steps.py").write_text('"""Other words."""\n\n# a comment\nx = 1  # another\n')
    (tmp_path / "studies" / "plots.py").write_text("y = 2\n")
    assert r.source_hash(tmp_path) == before
    (tmp_path / "steps.py").write_text("x = 2\n")
    changed = r.source_hash(tmp_path)
    (tmp_path / "data.toml").write_text("a = 2\n")
    assert len({before, changed, r.source_hash(tmp_path)}) == 3


def test_an_interrupt_ends_the_running_processes_and_leaves_the_runs_missing(tmp_path, monkeypatch):
    jobs, started, popen = jobs_in(tmp_path), [], places.subprocess.Popen

    def remember(*args, **options):
        started.append(popen(*args, **options))
        return started[-1]

    def interrupt(line):
        if "; now " in line:
            raise KeyboardInterrupt

    monkeypatch.setattr(places.subprocess, "Popen", remember)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(
            jobs,
            Local(2),
            say=interrupt,
            command=lambda job: [sys.executable, "-S", "-c", "import time; time.sleep(90)"],
        )
    assert len(started) == 2 and all(process.returncode is not None for process in started)
    assert r.missing(jobs, r.source_hash()) == jobs


def test_nothing_is_started_on_a_source_that_changed_meanwhile(tmp_path, monkeypatch):
    jobs, states = jobs_in(tmp_path / "out"), ["before", "before", "after"]
    monkeypatch.setattr(r, "source_hash", lambda: states.pop(0))
    with pytest.raises(InputError, match="1 runs were not started"):
        run_jobs(jobs, Local(1), say=lambda line: None, command=stand_in(tmp_path / "made"))
    assert r.finished(jobs[0].folder) and not jobs[1].folder.exists()


def test_every_process_has_one_thread(tmp_path):
    (job,) = jobs_in(tmp_path, ("one",))
    show = "import os; print(os.environ['OMP_NUM_THREADS'])"
    (failure,) = run_jobs(
        [job], Local(1), say=lambda line: None, command=lambda job: [sys.executable, "-S", "-c", show]
    )
    assert failure.tail == "1"  # it ended well and left no run: that is a failure too


def test_only_one_command_runs_arms_in_a_folder(tmp_path):
    with r.alone(tmp_path), pytest.raises(InputError, match=str(os.getpid())), r.alone(tmp_path):
        pass
    (tmp_path / "lock").write_text("999999999")  # left by a process that is gone
    with r.alone(tmp_path):
        pass


def test_remaining_time_is_the_pace_of_the_rounds_so_far(tmp_path, monkeypatch):
    monkeypatch.setattr(r.time, "monotonic", lambda: 100.0)
    clock = r.Clock(8)
    (job,) = jobs_in(tmp_path, ("one",))
    (job.folder / "run" / "rounds" / "00").mkdir(parents=True)
    (job.folder / "run" / "rounds" / "01.partial").mkdir()
    clock.settled = 1
    monkeypatch.setattr(r.time, "monotonic", lambda: 160.0)
    assert clock.line(1, 3, [job]) == "1 of 3 runs, 2 of 8 rounds; now one_s0 (round 1); 1:00 gone, about 3:00 left"


# Comparisons

CONFIG = {"n_rounds": 3, "vector": "real", "pairs": "real", "total_drop": 0.1, "model": None}


def arm_run(tmp_path, arm, rounds, seed=0, config=None, **more):
    return read_run(arm, seed, write_run(tmp_path / f"{arm}_s{seed}", {**CONFIG, **(config or {})}, rounds, **more))


GOOD = [
    {"shift": 1.0, "trait": 0.8, "ok": 0.99, "words": 19, "warmth": 0.1},
    {"shift": 2.0, "trait": 1.0, "ok": 0.98, "words": 18, "warmth": 0.3},
    {"shift": 3.0, "trait": 1.0, "ok": 0.97, "words": 17, "warmth": -0.6, "right": 9},
]


def test_a_run_that_the_loop_wrote_is_finished_for_its_job_and_read_with_all_its_rounds(tmp_path, undrawn):
    small = ("--fast-dev-run", "--n-rounds", "1", "--tau", "0.3", "--trait", str(mini_trait(tmp_path)))
    (job,) = make_jobs([Arm("fast", small)], (3,), tmp_path)
    config = job.arm.config(3)
    result = run_rounds(replace(config, out=str(job.folder)))
    r.write_json(job.folder / "arm.json", {"source": r.source_hash()})
    assert r.missing([job], r.source_hash()) == []
    run = read_run("fast", 3, r.finished(job.folder))
    assert [one.number for one in run.rounds] == [one.number for one in result.rounds]
    assert [one.stands for one in run.rounds] == [one.stands for one in result.rounds]
    for read, made in zip(run.rounds, result.rounds, strict=True):
        assert read.student.metrics == made.healed and read.steered == made.steered
        assert 0 < read.kept <= 1 and read.kl_base is not None
    assert run.n_rounds == 1 and run.verdict == result.verdict.name


def test_figures_are_shares_of_base_and_the_largest_off_target_shift():
    base = State(metrics(), 1.0)
    found = figures(State(metrics(shift=1.5, trait=0.8, ok=0.9, words=15, warmth=-0.3, entropy=3.0), 0.9), base)
    assert found["shift"] == pytest.approx(1.5) and found["trait"] == 0.8 and found["anchors"] == 0.9
    assert found["sentence_share"] == pytest.approx(0.9) and found["words_share"] == 0.75
    assert found["entropy_share"] == 0.75 and found["distinct4_share"] == pytest.approx(1.0)
    assert found["off_target"] == pytest.approx(0.3) and found["off_ratio"] == pytest.approx(0.2)
    assert figures(State(metrics(shift=0.05, warmth=0.3), 1.0), base)["off_ratio"] is None


def test_the_state_after_a_reverted_round_is_the_last_one_that_stands(tmp_path):
    run = arm_run(tmp_path, "a", GOOD, stands=[True, False, True])
    assert [figures(run.standing(n), run.base)["shift"] for n in range(3)] == pytest.approx([1, 1, 3])
    none = arm_run(tmp_path, "b", GOOD, stands=[False] * 3)
    assert none.standing(2) is none.base and none.last is none.base
    rows = {row["after round"]: row for row in combined_rows([run])}
    shifts = {after: row["log-odds shift"] for after, row in rows.items()}
    assert rows["1"]["gate"] == "1 reverted" and shifts["1"] == "+1.00" and shifts["1 as trained"] == "+2.00"
    assert shifts["end"] == "+3.00" and "0 as trained" not in rows


def test_a_run_without_gate_stands_throughout_and_a_starved_round_has_no_student(tmp_path):
    run = arm_run(tmp_path, "a", GOOD[:1], gate=False, starved=True)
    assert run.rounds[0].stands and run.rounds[1].student is None and not run.rounds[1].stands
    assert run.ended_by == "starved in round 1" and run.last is run.rounds[0].student
    assert run.rounds[0].student.anchors == 1.0
    assert combined_rows([run])[3]["gate"] == "1 starved"


def test_pairs_are_arm_minus_first_over_common_seeds_with_items_as_clusters(tmp_path):
    firsts = [arm_run(tmp_path, "first", GOOD, seed=seed) for seed in (0, 1)]
    moved = [{**GOOD[0], "shift": 1.2}, {**GOOD[1], "shift": 2.4, "ok": 0.9}]
    others = [arm_run(tmp_path, "other", moved, seed=seed) for seed in (1, 2)]
    found = paired([*firsts, *others])
    assert [(one.arm, one.round, one.seeds) for one in found] == [
        ("other", 0, (1,)), ("other", 1, (1,)), ("other", None, (1,)),
    ]  # fmt: skip
    assert found[0].shift.log_odds.value == pytest.approx(0.2) and found[0].shift.log_odds.n == 20
    assert found[1].shift.sentence_ok.value == pytest.approx(-0.08)
    assert found[2].shift.log_odds.value == pytest.approx(-0.6)  # two rounds against three
    assert len(paired_rows(found)) == 3


def test_two_seeds_of_the_same_items_are_no_more_clusters_than_one(tmp_path):
    runs = [arm_run(tmp_path, "first", GOOD, seed=seed) for seed in (0, 1)]
    runs += [arm_run(tmp_path, "other", [{"shift": 1.0 + up}], seed=seed) for seed, up in ((0, 0.1), (1, 0.3))]
    one = paired(runs)[0]
    assert one.shift.log_odds.value == pytest.approx(0.2) and one.shift.log_odds.n == 20
    assert one.ranges["log_odds"] == pytest.approx((0.1, 0.3))


def test_arms_measured_on_other_items_are_not_compared(tmp_path):
    runs = [arm_run(tmp_path, "first", GOOD), arm_run(tmp_path, "other", GOOD, key="another")]
    with pytest.raises(InputError, match="different items"):
        paired(runs)


def test_equal_trait_interpolates_between_standing_states_and_says_who_never_got_there(tmp_path):
    runs = [arm_run(tmp_path, "a", GOOD, stands=[True, False, True]), arm_run(tmp_path, "slow", GOOD[:1])]
    low, never_low, high, never = matched(runs, (0.5, 2.0))
    assert low.round == 0 and low.figures["trait"] == pytest.approx(0.6)  # half way from base
    assert high.round == 2 and high.figures["words_share"] == pytest.approx((19 + 17) / 40)  # round 1 does not stand
    assert high.figures["off_ratio"] == pytest.approx((0.1 + 0.6) / 2 / 2)
    assert never_low.round == 0 and never.round is None
    rows = matched_rows([low, never_low, high, never])
    assert list(rows[-1].values())[:4] == ["2", "slow", "0 of 1", "-"]


def lines(runs):
    return {key: found[0] for key, found in rows_of(bar_lines(runs)).items()}


def test_the_bar_says_by_how_much_each_line_is_met_or_missed(tmp_path):
    found = {name: line for (_, name), line in lines([arm_run(tmp_path, "a", GOOD)]).items()}
    margin = {name: line.margin for name, line in found.items()}
    assert margin["round 0 moves at least 2 nats"] == pytest.approx(-1.0)
    assert margin["end at least 4.3 nats"] == pytest.approx(-1.3)
    assert margin["sentence ok of base, every round"] == pytest.approx(0.0, abs=1e-9)
    assert found["sentence ok of base, every round"].met and found["sentence ok of base, every round"].note == "round 2"
    assert margin["words of base, every round"] == pytest.approx(17 / 20 - 0.9)
    assert margin["off-target under 0.15 of the target, end"] == pytest.approx(0.15 - 0.2)
    assert margin["counted anchors kept, every round"] == pytest.approx(-0.05)
    assert found["free text not below prompted, end"].met
    gap = found["log-odds against prompted, end"]
    assert gap.value == pytest.approx(-1.0) and gap.met is None


def test_the_bar_is_missed_where_it_should_be(tmp_path):
    bad = [{"shift": 0.4, "ok": 0.9, "words": 10}, {"shift": 0.4, "warmth": 0.2, "entropy": 3.0, "right": 8}]
    found = {name: line for (_, name), line in lines([arm_run(tmp_path, "a", bad)]).items()}
    missed = {name for name, line in found.items() if line.met is False}
    fourgrams = "distinct 4-grams of base, every round, at least prompted's"
    assert missed == set(found) - {fourgrams, "log-odds against prompted, end"}
    assert found["rounds run"].margin == -1


def test_reverted_rounds_count_only_in_the_lines_that_say_so(tmp_path):
    broken = {**GOOD[1], "ok": 0.5}
    run = arm_run(tmp_path, "a", [GOOD[0], broken, GOOD[2]], stands=[True, False, True])
    found = lines([run])
    assert found["a", "sentence ok of base, every round"].met
    other = found["a", "sentence ok of base, every round, reverted ones too"]
    assert other.value == 0.5 and not other.met and other.note == "round 1"
    assert other.beside and "reverted" not in bar_summary(list(found.values()))


def test_a_run_without_a_standing_round_misses_the_lines_of_movement(tmp_path):
    found = lines([arm_run(tmp_path, "a", GOOD, stands=[False] * 3)])
    for name in ("round 0 moves at least 2 nats", "end at least 4.3 nats",
                 "off-target under 0.15 of the target, end"):  # fmt: skip
        assert found["a", name].met is False


@pytest.mark.parametrize(("shift", "trait", "met"), [(0.0, 0.4, True), (-2.0, 0.0, True), (1.0, 0.8, False)])
def test_a_control_may_drift_away_from_the_trait_but_not_toward_it(tmp_path, shift, trait, met):
    steered = [arm_run(tmp_path, "a", GOOD, seed=seed) for seed in (0, 1)]
    drifted = [{"shift": shift, "trait": trait}] * 3
    controls = [arm_run(tmp_path, "none", drifted, seed=s, config={"vector": "none"}) for s in (0, 1)]
    found = rows_of(bar_lines([*steered, *controls]))
    assert not [name for arm, name in found if arm == "none" and "control" not in name]
    for key in ("log-odds: control under a quarter of a", "free text: control under a quarter of a"):
        assert set(found["none", key]) == {0, 1, None}  # and all seeds together
        assert all(line.met is met for line in found["none", key].values())


def test_spread_is_median_and_range_of_what_was_measured():
    found = spread([3.0, None, 1.0, 2.0])
    assert (found.middle, found.low, found.high, found.n) == (2.0, 1.0, 3.0, 3) and spread([None]) is None


# The command


def test_the_command_writes_tables_plots_and_every_state_unrounded(tmp_path, capsys):
    common = ("--n-rounds", "3")
    for arm in (BUILT_IN["default"], BUILT_IN["unsteered"], BUILT_IN["shuffled"]):
        for job in make_jobs([arm], (0, 1), tmp_path, common):
            rounds = {"default": GOOD, "unsteered": [{}] * 3, "shuffled": [{"ok": 0.3, "shift": 1.0}]}[arm.name]
            done_run = write_run(job.folder, job.config, rounds, stands=[True, False, True][: len(rounds)])
            assert done_run.events("end")
    names = ["--arms", "default", "unsteered", "shuffled", "nll", "--seeds", "0", "1", "--n-rounds", "3"]
    assert command_line.main([*names, "--tables", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "arms.md").read_text()
    assert text in capsys.readouterr().out
    for title in ("## The bar", "## Every arm, round by round", "## Against default, paired", "## At equal trait"):
        assert title in text
    assert "Not run: nll_s0, nll_s1." in text and "default_s0 was made by another version of the source" in text
    with open(tmp_path / "arms.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    shifts = {(row["arm"], row["round"], row["state"]): row["shift"] for row in rows if row["seed"] == "0"}
    assert float(shifts["default", "1", "trained"]) == pytest.approx(2.0)
    assert float(shifts["default", "1", "standing"]) == pytest.approx(1.0)
    for name in ("trait_coherence", "trajectory", "dose"):
        assert (tmp_path / f"arms_{name}.png").stat().st_size > 10_000


def test_the_command_refuses_what_it_cannot_use_with_one_line(tmp_path, capsys):
    for wrong in (["--arms", "nowhere"], ["--seeds", "1", "1"], ["--levels", "0"], ["--tables"]):
        assert command_line.main([*wrong, "--out", str(tmp_path / "none")]) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("steer_heal: ") and "\n" not in said
