"""The whole job through the command line on `tiny-random`, and what a user gets for wrong input."""

import json

import pytest
from resume_runs import config as small
from resume_runs import content, go, mini_trait

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.ledger import Ledger
from steer_heal.loop.rounds import run_rounds
from steer_heal.run import main
from steer_heal.steering import SteeringVector


def test_fast_run_passes_every_stage_in_order(fast_run):
    stages = [(e["stage"], e["round"]) for e in Ledger.open(fast_run).events()]
    per_round = ["extract", "walk", "heal", "bake", "evaluate", "verdict", "gate"]
    expected = [("start", None), ("calibrate", None), ("capture", None), ("baseline", None)]
    expected += [(stage, r) for r in (0, 1) for stage in per_round] + [("end", None)]
    assert stages == expected


def test_run_folder_holds_what_the_contract_names(fast_run):
    for name in ("config.json", "environment.json", "events.jsonl", "report.html", "trajectory.png", "summary.md"):
        assert (fast_run / name).stat().st_size > 0, name
    for r in ("00", "01"):
        round_folder = fast_run / "rounds" / r
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
    assert len((fast_run.parent / "results.tsv").read_text().splitlines()) == 2


def test_every_round_is_measured_on_the_same_items(fast_run):
    keys = {json.loads((fast_run / name).read_text())["items_key"] for name in ("base.json", "prompted.json")}
    for r in ("00", "01"):
        metrics = json.loads((fast_run / "rounds" / r / "metrics.json").read_text())
        keys |= {metrics["steered"]["items_key"], metrics["healed"]["items_key"]}
    assert len(keys) == 1


def test_report_opens_without_network_and_names_the_verdict_first(fast_run):
    page = (fast_run / "report.html").read_text()
    end = Ledger.open(fast_run).events("end")[-1]
    assert "http://" not in page and "https://" not in page and 'src="http' not in page
    assert page.index(f"<b>{end['verdict']}</b>") < page.index("Trajectory")
    assert (fast_run / "summary.md").read_text().startswith(f"# {end['verdict']}\n")


def test_each_round_records_all_that_a_reader_of_the_loop_needs(fast_run):
    """Dose, survival, kept, its trait, nll, divergences, nats with intervals, diversity, cosines, loss, decision."""
    ledger = Ledger.open(fast_run)
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
        decision = json.loads((fast_run / "rounds" / f"{r:02d}" / "decision.json").read_text())
        assert (decision["outcome"], decision["stands"]) == (e["gate"]["outcome"], e["gate"]["stands"])


def test_summary_says_whether_what_cost_against_what_and_how_sure(fast_run):
    text = (fast_run / "summary.md").read_text()
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
    def found(seed, name):
        (tmp_path / name).mkdir()
        return content(go(tmp_path / name, n_rounds=1, filter="repetition", seed=seed))

    first, again, other = found(0, "a"), found(0, "b"), found(1, "c")
    assert first == again
    assert first["rounds/00/completions.jsonl"] != other["rounds/00/completions.jsonl"]


def test_adapters_of_the_rounds_load_in_plain_peft_to_the_students_logits(fast_run, lm):
    import torch
    from peft import PeftModel

    import steer_heal.model

    place, ids = fast_run / "rounds" / "00" / "adapter", torch.arange(4, 40)[None]
    with torch.no_grad():
        plain = lm.model(ids).logits
        AdapterStack(lm.model).push(Adapter.load(place))  # what the loop bakes
        baked = lm.model(ids).logits
        loaded = PeftModel.from_pretrained(steer_heal.model.load("tiny-random").model, str(place)).eval()(ids).logits
    torch.testing.assert_close(loaded, baked, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, baked, atol=1e-3)


def test_a_starved_round_ends_with_a_verdict_and_keeps_what_it_sampled(tmp_path, undrawn):
    starving = "--fast-dev-run --targets tokens --doses 400 --kappa-floor 0.9 --walk-batches 1 --quiet --trait"
    code = main([*starving.split(), str(mini_trait(tmp_path)), "--out", str(tmp_path)])
    folder = next(p for p in tmp_path.iterdir() if p.is_dir())
    assert code == 3 and Ledger.open(folder).events("end")[0]["verdict"] == "starved"
    assert (folder / "rounds" / "00" / "completions.jsonl").read_text().count("\n") == 16
    assert (folder / "summary.md").is_file() and (folder / "report.html").is_file()


def test_options_can_be_combined(tmp_path, undrawn):
    result = run_rounds(
        small(
            tmp_path,
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
    )
    heal = Ledger.open(result.folder).events("heal")[1]
    assert set(heal["tau"]) == {"prev", "base"} and heal["steering_divergence"] > 0
    assert "kl_base_replay_after" in heal["figures"]


def test_impossible_configuration_in_a_notebook_is_the_same_error():
    with pytest.raises(InputError, match="n_rounds"):
        RunConfig(n_rounds=0)
