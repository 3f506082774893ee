"""Several processes of a launcher are one run: what each one draws, measures and learns is that of one process."""

import json
import shlex

import pytest
import torch
from launched import command, healed, launch, run_sharded, sampled, save_heal, save_stages, states
from resume_runs import config, folder_of, undrawn, words

import steer_heal.model
from steer_heal.healing.adapter import Adapter
from steer_heal.loop import steps
from steer_heal.loop.resume import reopen
from steer_heal.loop.rounds import run_rounds
from steer_heal.texts.completion import load_completions


def read(folder, name, count):
    return [torch.load(folder / f"{name}-{number}", weights_only=False) for number in range(count)]


def apart(one, other):
    """Largest difference of two adapters' factors."""
    pairs = [(side[name], theirs[name]) for side, theirs in ((one.a, other.a), (one.b, other.b)) for name in side]
    return max(float((mine - their).abs().max()) for mine, their in pairs)


SMALL = {"model": "tiny-random", "n_rounds": 1}


@pytest.fixture(scope="module")
def two(processes, tmp_path_factory):
    """What two processes found, each its own."""
    folder = tmp_path_factory.mktemp("two")
    assert launch(processes, 2, folder, save_stages, folder) == [0, 0]
    return read(folder, "stages", 2)


@pytest.fixture(scope="module")
def alone(tiny):
    """The heal of one process."""
    return healed(steer_heal.model.load("tiny-random"))


def test_two_processes_draw_the_completions_of_one(two, tiny):
    assert two[0]["completions"] == two[1]["completions"] == sampled(tiny)


def test_two_processes_measure_the_states_of_one_bit_for_bit(two, tiny):
    expected = states(tiny)
    for found in two:
        assert found["states"].keys() == expected.keys()
        assert all(torch.equal(found["states"][key], expected[key]) for key in expected)


def test_a_heal_of_two_processes_is_that_of_one(two, alone):
    one, other = (found["heal"] for found in two)
    assert apart(one.adapter, other.adapter) == 0 and one.steps == other.steps and one.lam == other.lam
    assert apart(one.adapter, alone.adapter) < 1e-5 < float(max(b.abs().max() for b in alone.adapter.b.values()))
    for name in ("loss", "grad_norm", "prev_ratio", "prev_max", "prev_fired"):
        mine, theirs = ([step[name] for step in heal.steps] for heal in (one, alone))
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-6), name
    assert one.figures == pytest.approx(alone.figures, rel=1e-3, abs=1e-5)


def test_a_heal_of_three_processes_is_that_of_one_also_where_one_of_them_has_no_row(processes, tmp_path, alone):
    assert launch(processes, 3, tmp_path, save_heal, tmp_path) == [0, 0, 0]
    for found in read(tmp_path, "heal", 3):
        assert apart(found.adapter, alone.adapter) < 1e-5


def test_a_base_sharded_over_processes_heals_to_the_bits_of_a_whole_one(two, alone):
    for found in two:
        assert [apart(adapter, alone.adapter) for adapter in found["sharded"]] == [0, 0]


def test_a_run_of_processes_that_share_work_refuses_a_sharded_base_and_vllm(two):
    for found in two:
        base, engine = found["refused"]
        assert "sharded over processes" in base and "one process only, 2 were started" in engine


def test_what_one_process_raises_all_raise(two):
    assert [found["failure"] for found in two] == [("job 1 of ['1', '2']", 1)] * 2


def test_all_plan_with_the_least_memory_that_one_of_them_has_of_what_they_share(two):
    assert [found["free"] for found in two] == [45, 45]


def test_what_the_first_process_has_all_are_told(two):
    assert [found["told"] for found in two] == [0, 0]


@pytest.fixture(scope="module")
def run_alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    with undrawn():
        return run_rounds(config(folder, **SMALL))


def same_run(folder, result):
    """A folder holds the texts, the adapter and the verdict of a run of one process."""
    for name in ("completions.jsonl", "mixed_in.jsonl"):
        mine, theirs = (load_completions(place / "rounds" / "00" / name) for place in (folder, result.folder))
        assert [c.token_ids for c in mine] == [c.token_ids for c in theirs]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event["verdict"] for event in events if event["stage"] == "end"] == [result.verdict.name]
    assert (folder / "sha256.json").is_file() and not (folder / "units").exists()


def test_the_command_line_in_two_processes_is_one_run_which_the_first_writes_and_prints(processes, tmp_path, run_alone):
    asked = words(tmp_path, **SMALL)
    assert launch(processes, 2, tmp_path, command, [*asked, "--dry-run"]) == [0, 0]
    assert "rounds" in (tmp_path / "0.out").read_text() and not (tmp_path / "1.out").read_text()
    assert launch(processes, 2, tmp_path, command, asked) == [3, 3]
    same_run(folder_of(tmp_path), run_alone)
    assert "Result:" in (tmp_path / "0.out").read_text() and not (tmp_path / "1.out").read_text()
    assert not (tmp_path / "0.err").read_text() and not (tmp_path / "1.err").read_text()


def test_a_run_on_a_base_sharded_over_processes_is_that_of_one(processes, tmp_path, run_alone):
    assert launch(processes, 2, tmp_path, run_sharded, tmp_path) == [0, 0]
    same_run(folder_of(tmp_path), run_alone)
    for found in read(tmp_path, "sharded", 2):
        assert found == {"rounds": len(run_alone.run.stack), "same": True, "verdict": run_alone.verdict.name}
    mine, theirs = (
        Adapter.load(place / "rounds" / "00" / "adapter") for place in (folder_of(tmp_path), run_alone.folder)
    )
    assert apart(mine, theirs) < 1e-6


def one_line(folder):
    """What was said on stderr in all."""
    (line,) = ((folder / "0.err").read_text() + (folder / "1.err").read_text()).splitlines()
    return line


def test_what_only_one_process_finds_wrong_is_one_line_of_its_own(processes, tmp_path):
    codes = launch(processes, 2, tmp_path, command, words(tmp_path, **SMALL), "ill")
    assert codes == [2, 2]
    assert one_line(tmp_path) == "steer_heal: rank 1 of 2: the second process is ill: see a doctor"


def test_when_a_process_is_killed_another_says_so_and_one_goes_on_and_then_two_to_the_same_end(
    processes, tmp_path, monkeypatch, run_alone
):
    codes = launch(processes, 2, tmp_path, command, words(tmp_path, **SMALL), "killed")
    assert codes == [2, -9]
    line, folder = one_line(tmp_path), folder_of(tmp_path)
    assert line.startswith("steer_heal: rank 0 of 2: another of the 2 processes has ended")
    assert line.endswith(f"--resume {shlex.quote(str(folder))}")
    with monkeypatch.context() as patch, undrawn(), pytest.raises(KeyboardInterrupt):
        patch.setattr(steps, "heal_rows", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        run_rounds(resume=reopen(folder))
    assert list(folder.glob("units/*steered*")) and not list(folder.glob("units/*heal*"))
    assert launch(processes, 2, tmp_path, command, ["--resume", str(folder)]) == [3, 3]
    same_run(folder, run_alone)
