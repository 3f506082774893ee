"""The whole job through the command line on `tiny-random`, and what a user gets for wrong input."""

import json
import os
import subprocess
import sys

import pytest

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.ledger import Ledger
from steer_heal.loop.rounds import run_rounds
from steer_heal.run import main
from steer_heal.steering import SteeringVector


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One fast run through the command line; its exit code and folder."""
    out = tmp_path_factory.mktemp("out")
    code = main(["--reg", "kl_rev", "--fast-dev-run", "--out", str(out), "--quiet"])
    return code, next(p for p in out.iterdir() if p.is_dir())


def strip_times(events):
    """Events without what may differ between two runs of the same seed."""
    return [{k: v for k, v in e.items() if k not in ("time", "seconds", "folder")} for e in events]


def test_fast_run_passes_every_stage_in_order(finished):
    code, folder = finished
    stages = [(e["stage"], e["round"]) for e in Ledger.open(folder).events()]
    per_round = ["extract", "walk", "heal", "bake", "evaluate", "verdict", "gate"]
    expected = [("start", None), ("calibrate", None), ("capture", None), ("baseline", None)]
    expected += [(stage, r) for r in (0, 1) for stage in per_round] + [("end", None)]
    assert stages == expected and code in (0, 3)


def test_run_folder_holds_what_the_contract_names(finished):
    _, folder = finished
    for name in ("config.json", "environment.json", "events.jsonl", "report.html", "trajectory.png", "summary.md"):
        assert (folder / name).stat().st_size > 0, name
    for r in ("00", "01"):
        round_folder = folder / "rounds" / r
        names = {p.name for p in round_folder.iterdir()}
        assert names == {
            "vector.safetensors",
            "mixed_in.jsonl",
            "completions.jsonl",
            "adapter",
            "metrics.json",
            "decision.json",
            "filter.txt",
        }
        assert SteeringVector.load(round_folder / "vector.safetensors").layers == (1, 2)
        assert json.loads((round_folder / "metrics.json").read_text())["verdict"]["name"]
    assert len((folder.parent / "results.tsv").read_text().splitlines()) == 2


def test_every_round_is_measured_on_the_same_items(finished):
    _, folder = finished
    keys = {json.loads((folder / name).read_text())["items_key"] for name in ("base.json", "prompted.json")}
    for r in ("00", "01"):
        metrics = json.loads((folder / "rounds" / r / "metrics.json").read_text())
        keys |= {metrics["steered"]["items_key"], metrics["healed"]["items_key"]}
    assert len(keys) == 1


def test_report_opens_without_network_and_names_the_verdict_first(finished):
    _, folder = finished
    page = (folder / "report.html").read_text()
    end = Ledger.open(folder).events("end")[-1]
    assert "http://" not in page and "https://" not in page and 'src="http' not in page
    assert page.index(f"<b>{end['verdict']}</b>") < page.index("Trajectory")
    assert (folder / "summary.md").read_text().startswith(f"# {end['verdict']}\n")


def test_each_round_records_all_that_a_reader_of_the_loop_needs(finished):
    """Dose, survival, kept, its trait, nll, divergences, nats with intervals, diversity, cosines, loss, decision."""
    ledger = Ledger.open(finished[1])
    stages = ("extract", "walk", "heal", "bake", "evaluate", "gate")
    for r in (0, 1):
        e = {stage: ledger.events(stage)[r] for stage in stages}
        assert e["walk"].keys() >= {"kappa", "kappa_start", "survival", "kept", "trait_kept", "per_dose"}
        figures = e["heal"]["figures"].keys()
        assert figures >= {"heldout_nll_after", "train_nll_after", "kl_prev_after", "kl_base_after"}
        for shift in (e["evaluate"]["shift"], e["evaluate"]["step"]):
            assert shift["log_odds"].keys() >= {"value", "low", "high"} and shift["off_target"]
        state = e["evaluate"]["healed"].keys()
        assert state >= {"sentence_ok", "loop_rate", "distinct4", "words", "token_entropy", "target", "off_target"}
        assert e["extract"]["cosine_first"] is not None and e["bake"]["cosine_first"] is not None
        assert -1 <= e["bake"]["cosine_vector"] <= 1 and e["bake"]["rounding_loss"] >= 0
        decision = json.loads((finished[1] / "rounds" / f"{r:02d}" / "decision.json").read_text())
        assert (decision["outcome"], decision["stands"]) == (e["gate"]["outcome"], e["gate"]["stands"])


def test_summary_says_whether_what_cost_against_what_and_how_sure(finished):
    text = (finished[1] / "summary.md").read_text()
    short = text.split("## In short")[1].split("## Base")[0]
    asked = (
        "What came out?",
        "Did the trait move?",
        "Did anything else?",
        "At what cost?",
        "simply asking",
        "Was it the method?",
        "How sure is this?",
    )
    assert [words in short for words in asked] == [True] * len(asked)
    for words in (
        "Result:",
        "Trait against base:",
        "Off-target",
        "Cost: coherence",
        "anchors lost",
        "Healed - it:",
        "the prompted model: words",
        "No controls were run",
        "95 %",
        "do not cover the spread over seeds",
        "on the vignettes",
        "contrast of Care and Authority",
    ):
        assert words in short, words
    assert "surely" in short.split("**Did the trait move?**")[1].split("\n")[0].split(".")[0].lower()
    assert "## Vignettes, healed against base" in text and "| Care (trait) |" in text
    assert "Gate: " in text and "KL to base" in text


def test_same_seed_same_run_and_another_seed_another(tmp_path):
    def events(seed, out):
        config = RunConfig(fast_dev_run=True, n_rounds=1, seed=seed, out=str(tmp_path / out))
        return strip_times(Ledger.open(run_rounds(config).folder).events())

    first, again, other = events(0, "a"), events(0, "b"), events(1, "c")
    assert first == again
    assert [e for e in first if e["stage"] == "walk"] != [e for e in other if e["stage"] == "walk"]


def test_adapters_of_the_rounds_load_in_plain_peft_to_the_students_logits(tmp_path):
    import torch
    from peft import PeftModel

    import steer_heal.model

    result = run_rounds(RunConfig(fast_dev_run=True, n_rounds=1, out=str(tmp_path)))
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        baked = result.run.lm.model(ids).logits
        fresh = steer_heal.model.load("tiny-random").model
        plain = fresh(ids).logits.clone()
        loaded = PeftModel.from_pretrained(fresh, str(result.folder / "rounds" / "00" / "adapter")).eval()(ids).logits
    torch.testing.assert_close(loaded, baked, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, baked, atol=1e-3)


def test_a_starved_round_ends_with_a_verdict_and_keeps_what_it_sampled(tmp_path, capsys):
    starving = "--fast-dev-run --targets tokens --doses 400 --kappa-floor 0.9 --walk-batches 1 --quiet --out"
    code = main([*starving.split(), str(tmp_path)])
    folder = next(p for p in tmp_path.iterdir() if p.is_dir())
    assert code == 3 and Ledger.open(folder).events("end")[0]["verdict"] == "starved"
    assert (folder / "rounds" / "00" / "completions.jsonl").read_text().count("\n") == 16
    assert (folder / "summary.md").is_file() and (folder / "report.html").is_file()


def test_controls_are_settings_of_the_same_loop(tmp_path):
    for i, options in enumerate(({"vector": "none"}, {"vector": "random"}, {"pairs": "shuffled"})):
        config = RunConfig(fast_dev_run=True, n_rounds=1, out=str(tmp_path / str(i)), **options)
        result = run_rounds(config)
        walk = Ledger.open(result.folder).events("walk")[0]
        doses = {d["dose"] for d in walk["per_dose"]}
        assert (doses == {0.0}) == (options.get("vector") == "none")


def test_options_can_be_combined(tmp_path):
    config = RunConfig(
        fast_dev_run=True,
        n_rounds=2,
        out=str(tmp_path),
        reg="kl_fwd",
        kl_agg="cvar",
        reference="both",
        tau_rel=0.5,
        replay=0.25,
        accumulate=8,
        spectral=0.01,
        weight_decay=0.1,
        vector_from="first",
        walk_mode="bisect",
    )
    result = run_rounds(config)
    heal = Ledger.open(result.folder).events("heal")[1]
    assert set(heal["tau"]) == {"prev", "base"} and heal["steering_divergence"] > 0
    assert "kl_base_replay_after" in heal["figures"]


def test_ctrl_c_exits_with_130_and_complete_rounds_stay(tmp_path):
    script = (
        "import sys, steer_heal.loop.steps as s; real = s.heal_rows\n"
        "def heal_rows(run, number, *rest):\n"
        "    if number == 1: raise KeyboardInterrupt\n"
        "    return real(run, number, *rest)\n"
        "s.heal_rows = heal_rows\n"
        f"from steer_heal.run import main; sys.exit(main(['--fast-dev-run', '--quiet', '--out', {str(tmp_path)!r}]))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 130 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert "interrupted" in done.stderr and f"--resume {tmp_path}" in done.stderr
    folder = next(p for p in tmp_path.iterdir() if p.is_dir())
    assert [p.name for p in (folder / "rounds").iterdir()] == ["00"]


def test_impossible_configuration_in_a_notebook_is_the_same_error():
    with pytest.raises(InputError, match="n_rounds"):
        RunConfig(n_rounds=0)
