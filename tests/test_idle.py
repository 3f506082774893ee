"""Options that were given and cannot act: each entry of the table speaks where it should, and nowhere else."""

import io
from dataclasses import replace

import pytest
from healing_data import QUICK
from resume_runs import config as small
from resume_runs import undrawn
from rich.console import Console

from steer_heal.commands.run import main
from steer_heal.config import RunConfig, idle_options
from steer_heal.config.idle import IDLE
from steer_heal.config.presets import PRESETS
from steer_heal.errors import InputError
from steer_heal.healing import heal
from steer_heal.loop.rounds import run_rounds
from steer_heal.loop.steps import judge_rounds
from steer_heal.report.console import Reporter

OTHER = {
    "tau": 0.9, "tau_rel": 0.4, "tau_base": 0.8, "kl_agg": "mean", "kl_top_k": 5, "reference": "prev",
    "barrier_rows": "replay", "replay_weight": 4.0, "lam_power": -0.5, "lam": 0.7, "lam_base": 0.6,
    "lam_mode": "budget", "lam_rate": 0.5, "lam_max": 5.0, "target_divergence": "forward", "target_strength": 1.5,
    "target_plausibility": 0.1, "target_top_k": 5, "token_weight": 0.3, "keep_epoch": "last", "temperature": 0.7,
    "top_p": 0.9, "target_kl": 1.0, "trust_remote_code": True, "attn_implementation": "eager",
    "filter_model": "student", "false_drop": 0.1, "match_lengths": "sampled", "walk_mode": "grid",
    "survival_target": 0.5, "eval_think_closing": "</thought>", "max_reverts": 6, "on_inconclusive": "keep",
    "target_temperature": 1.7, "prompted_teacher": 0.2, "teacher_reach": 3.0, "context_share": 0.4, "context_dose": 1.5,
    "trait_teacher": "student",
    "accumulate": 8, "diversity_gain": 0.5, "early_stop": True, "vector_from": "first",
}  # fmt: skip
"""A value beside the default's for every option of the table."""
TOKENS = {"targets": "tokens"}
NO_REPLAY = {"replay": 0.0, "replay_anchors": 0.0}
PLACES = [
    ({"reg": "nll"}, {"replay": 0.2, "lam_mode": "budget"}),
    ({"lam": 0.0, "replay": 0.2}, {"replay": 0.2}),
    ({}, {"lam_mode": "budget"}),
    ({"reference": "prev"}, {"reference": "both"}),
    ({"tau_base": 0.3}, {"tau_base": 0.3, "reference": "both"}),
    ({"lam_base": 0.2}, {"lam_base": 0.2, "reference": "both"}),
    ({"tau_rel": 0.5}, {}),
    (NO_REPLAY, {"replay_anchors": 0.1}),
    (TOKENS, {}),
    ({"token_weight": 1.0}, {"token_weight": 0.5}),
    ({"texts": "steered"}, {}),
    ({"text_prompts": "trait"}, {}),
    ({"text_prompts": "contexts"}, {}),
    ({"text_prompts": "trait"}, {}),
    ({}, {"texts": "mixed"}),
    ({"heldout": 0.0}, {}),
    ({}, {"text_temperature": 0.9}),
    ({}, {"text_top_p": 0.8}),
    ({"vector": "none"}, {}),
    ({}, {"model": "some/model"}),
    ({"model": "tiny-random"}, {}),
    ({"filter": "repetition"}, {}),
    ({"filter": "none"}, {"filter": "repetition"}),
    ({"filter": "none", "texts": "mixed"}, {"texts": "mixed"}),
    ({"kappa_floor": 1.0}, {}),
    ({"walk_batches": 1}, {"walk_batches": 2}),
    ({}, {"eval_think_tokens": 10}),
    ({"gate": "watch"}, {"n_rounds": 9}),
    ({}, {"n_rounds": 9}),
    ({"n_rounds": 1}, {}),
]
"""For each entry of the table: other options with which it speaks, and such with which it is silent."""
CASES = [(name, idle, *place) for idle, place in zip(IDLE, PLACES, strict=True) for name in idle.options]


def lines(name, **options):
    return [line for line in idle_options(RunConfig(**options)) if line.startswith(f"--{name.replace('_', '-')} ")]


@pytest.mark.parametrize(("name", "idle", "speaks", "silent"), CASES, ids=[f"{n}-{s}" for n, _, s, _ in CASES])
def test_every_entry_speaks_where_the_option_cannot_act_and_is_silent_otherwise(name, idle, speaks, silent):
    given = {name: OTHER[name]}
    (line,) = lines(name, **{**speaks, **given})
    config = RunConfig(**{**speaks, **given})
    assert idle.why.format_map(vars(config)) in line and "\n" not in line
    assert str(OTHER[name]) in line or OTHER[name] is True
    assert not lines(name, **{**silent, **given})
    assert name in speaks or not lines(name, **speaks)  # a default is not an option that was given


def test_sampling_that_reaches_the_training_texts_is_no_matter():
    assert not lines("temperature", model="tiny-random", temperature=0.7)
    assert not lines("temperature", temperature=RunConfig().text_temperature)


def test_one_epoch_leaves_no_choice():
    assert lines("keep_epoch", keep_epoch="last", epochs=1)


@pytest.mark.parametrize("options", [{}, {"model": "tiny-random"}, {"model": "some/model"}, {"fast_dev_run": True},
                                     *(preset.options for preset in PRESETS.values())], ids=str)  # fmt: skip
def test_defaults_and_presets_are_not_spoken_of(options):
    assert idle_options(RunConfig(**options)) == []


def test_a_barrier_on_rows_that_there_are_none_of_is_refused_before_anything_is_sampled():
    with pytest.raises(InputError, match="give --replay"):
        RunConfig(barrier_rows="replay", **NO_REPLAY)
    assert RunConfig(barrier_rows="replay", replay_anchors=0.1).barrier_rows == "replay"


@pytest.fixture(scope="module")
def silent_run(tmp_path_factory):
    """A run whose barrier never fires, with an option that cannot act; and what it printed, in short and in full."""
    printed = io.StringIO()
    config = small(tmp_path_factory.mktemp("out"), tau=99.0, lam_rate=2.0)
    with undrawn():
        result = run_rounds(config, Reporter(Console(file=printed, width=120)))
    full = io.StringIO()
    reporter = Reporter(Console(file=full, width=120), verbose=True)
    reporter.on_event(result.run.ledger.events("start")[0])
    return result, printed.getvalue(), full.getvalue()


def test_a_run_says_so_at_its_start_in_its_ledger_and_on_its_pages(silent_run):
    result, short, full = silent_run
    (line,) = result.run.ledger.events("start")[0]["idle"]
    assert line == "--lam-rate 2.0 does nothing: --lam-mode constant keeps lam as it is"
    for text in (short, full, *((result.folder / page).read_text() for page in ("summary.md", "report.html"))):
        assert text.count(line) == 1


def test_a_plan_says_so_too(capsys):
    assert main(["--dry-run", "--lam-rate", "2"]) == 0
    assert "! --lam-rate 2.0 does nothing" in capsys.readouterr().out


def test_verdicts_say_where_the_barrier_never_fired(silent_run):
    result, _, _ = silent_run
    clause = "The barrier never fired: this was plain distillation."
    for done, event in zip(result.rounds, result.run.ledger.events("verdict"), strict=True):
        assert done.verdict.text == event["text"] and event["text"].endswith(f" {clause}")
    best = result.best_round if result.best_round is not None else 1
    assert result.verdict.text.count(clause) == 1
    assert result.verdict.text.endswith(f"No barrier acted in: {1 - best}.")
    assert result.run.ledger.events("end")[0]["text"] == result.verdict.text


def test_a_verdict_is_silent_of_a_barrier_that_fired(silent_run, monkeypatch):
    run = silent_run[0].run
    fired = [
        replace(done, training=replace(done.training, figures={**done.training.figures, "base_fired": 0.1}))
        for done in run.rounds
    ]
    verdict, _ = judge_rounds(replace(run, rounds=fired), None)
    assert "No barrier" not in verdict.text


def test_a_heal_says_what_it_was_without_a_barrier(lm, data, prev):
    silent = heal(lm, data, replace(QUICK, tau=99.0, epochs=1), prev)
    none = heal(lm, data, replace(QUICK, reg="nll", epochs=1), prev)
    fired = {**silent.figures, "prev_fired": 0.5}
    assert silent.plain == "The barrier never fired: this was plain fine-tuning."
    assert none.plain == "There was no barrier: this was plain fine-tuning."
    assert replace(silent, config=replace(silent.config, targets="teacher")).plain.endswith("plain distillation.")
    assert replace(silent, figures=fired).plain == ""
    assert replace(silent, figures=fired, lam={"prev": 0.0}).plain.startswith("There was no barrier")
    assert replace(silent, config=replace(silent.config, lam_mode="budget")).plain == ""
