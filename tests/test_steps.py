"""The steps of a round: what they hand to the stages, what they record, and what is left where one breaks off."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from healing_data import completion
from resume_runs import config as small
from resume_runs import mini_trait

from steer_heal.config import RunConfig
from steer_heal.healing import DivergedError, HealInterrupted, heal
from steer_heal.healing.adapter import Adapter
from steer_heal.ledger import Ledger
from steer_heal.loop import rounds, steps
from steer_heal.loop.gate import must_block_adapter
from steer_heal.loop.steps import training
from steer_heal.loop.steps.texts import text_sampling
from steer_heal.report.console import Reporter
from steer_heal.run import main
from steer_heal.steering.direction import state_shift
from steer_heal.texts.completion import load_completions
from steer_heal.texts.dose import Walk
from steer_heal.texts.engines.transformers import TransformersEngine
from steer_heal.texts.generation import Interrupted

pytestmark = pytest.mark.usefixtures("undrawn")

FAST = {"fast_dev_run": True, "n_rounds": 1}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared fast run and its first vector."""
    run = rounds.prepare(RunConfig(**FAST, out=str(tmp_path_factory.mktemp("out"))).resolved(), Reporter(quiet=True))
    return run, steps.extract_vector(run, 0)


def walk_of(completions, run):
    return Walk(tuple(completions), (), 1.0, False, run.config.dose_config())


# what a bake measures


def test_a_round_begins_with_the_states_that_the_student_it_began_on_was_left_with(prepared, run, monkeypatch):
    now, vector, measured = replace(run(), states={}), prepared[1], []
    of_student = training.student_states

    def counted(*given):
        measured.append(of_student(*given))
        return measured[-1]

    monkeypatch.setattr(training, "student_states", counted)
    adapters = [must_block_adapter(now.lm, size=0.05, seed=seed) for seed in range(3)]
    for number, adapter in enumerate(adapters):
        steps.bake(now, number, vector, SimpleNamespace(adapter=adapter))
        stands = number != 1
        now.rounds.append(SimpleNamespace(number=number, adapter=adapter, stands=stands))
        if not stands:
            now.stack.pop()
    while len(now.stack):
        now.stack.pop()
    assert len(measured) == 4  # before round 0, and after each
    moved = [event["cosine_vector"] for event in now.ledger.events("bake")]
    pairs = ((0, 1), (1, 2), (1, 3))
    assert moved == [state_shift(measured[a], measured[b], vector).cosine for a, b in pairs]


# a heal that diverges


def diverging(at, monkeypatch):
    """Let the heal of round `at` diverge at step 3, with an adapter."""

    def broken(lm, rows, config, references, *, round, **given):
        if round == at:
            raise DivergedError("step 3: the loss is not finite on completion 1", 3, (1,), must_block_adapter(lm))
        return heal(lm, rows, config, references, round=round, **given)

    monkeypatch.setattr(training, "heal", broken)


def only_run(folder):
    return Ledger.open(next(p for p in folder.iterdir() if p.is_dir()))


def test_a_heal_that_diverges_ends_the_run_with_its_verdict_and_leaves_its_adapter_and_rows(
    tmp_path, monkeypatch, capsys
):
    diverging(0, monkeypatch)
    assert main(["--fast-dev-run", "--trait", str(mini_trait(tmp_path)), "--out", str(tmp_path)]) == 3
    ledger = only_run(tmp_path)
    (event,), (verdict,), (end,) = (ledger.events(stage) for stage in ("diverged", "verdict", "end"))
    assert (event["round"], event["step"], event["rows"], event["adapter"]) == (0, 3, [1], True)
    assert verdict["verdict"] == end["verdict"] == "diverged" and "0 diverged" in end["text"]
    assert "step 3" in end["ended_by"] and "completion 1" in end["ended_by"]
    left = ledger.folder / "rounds" / "00.diverged"
    assert len(Adapter.load(left).modules) > 0 and len(load_completions(left / "rows.jsonl")) >= 12
    assert str(left) in capsys.readouterr().out.replace("\n", "")
    assert (ledger.folder / "summary.md").read_text().startswith("# diverged\n")
    assert "round 0: **diverged**" in (ledger.folder / "summary.md").read_text()
    assert (ledger.folder / "report.html").is_file()


def test_ctrl_c_during_a_heal_leaves_its_rows_and_its_factors(run, prepared, tmp_path, monkeypatch):
    now = run()
    rows = [completion(now.lm, i, 6) for i in range(4)]
    walk = SimpleNamespace(completions=rows)

    def stopped(lm, rows, *given, **named):
        raise HealInterrupted(must_block_adapter(lm))

    monkeypatch.setattr(training, "heal", stopped)
    with pytest.raises(KeyboardInterrupt):
        training.heal_rows(now, 0, prepared[1], walk, rows)
    left = now.ledger.folder / "rounds" / "00.interrupted"
    assert Adapter.load(left) == must_block_adapter(now.lm) and load_completions(left / "rows.jsonl") == rows
    assert now.ledger.events() == []


def test_rounds_before_a_diverged_one_stay_and_the_course_of_the_run_names_both(tmp_path, monkeypatch):
    diverging(1, monkeypatch)
    result = rounds.run_rounds(small(tmp_path))
    assert [done.number for done in result.rounds] == [0]
    assert sorted(p.name for p in (result.folder / "rounds").iterdir()) == ["00", "01.diverged"]
    assert "1 diverged" in result.verdict.text and f"0 {result.rounds[0].verdict.name}" in result.verdict.text
    assert "not finite" in Ledger.open(result.folder).events("end")[0]["ended_by"]


def test_a_heal_that_diverges_before_its_first_step_leaves_its_rows_and_no_adapter(prepared, run, tiny, monkeypatch):
    def broken(*given, **named):
        raise DivergedError("step 0: the gradient is not finite", 0, (0,), None)

    monkeypatch.setattr(training, "heal", broken)
    now, rows = run(), [completion(tiny, i, 10) for i in range(8)]
    with pytest.raises(DivergedError):
        steps.heal_rows(now, 0, prepared[1], walk_of(rows, now), rows)
    left = now.ledger.folder / "rounds" / "00.diverged"
    assert [p.name for p in left.iterdir()] == ["rows.jsonl"] and not now.ledger.events("diverged")[0]["adapter"]


# a heal: overfit check, lengths, live table


def test_the_overfit_check_puts_nats_into_the_event_and_the_console_says_what_they_mean(
    prepared, run, tiny, monkeypatch, capsys
):
    checked = []
    monkeypatch.setattr(training, "overfit_check", lambda lm, row, config: checked.append(row) or 1.25)
    now, rows = run(overfit_check=True), [replace(completion(tiny, i, 10), dose=float(i == 5)) for i in range(8)]
    steps.heal_rows(now, 0, prepared[1], walk_of(rows, now), rows)
    (event,) = now.ledger.events("heal")
    assert event["overfit"] == 1.25 and checked == [rows[5]]  # a steered one, of the original's own texts none
    Reporter(verbose=True).on_event(event)
    shown = " ".join(capsys.readouterr().out.split())
    assert "took 1.25 nats per token off it" in shown and "the adapter cannot express it" in shown
    Reporter(verbose=True).on_event({**event, "overfit": None})
    assert "Overfit check" not in capsys.readouterr().out


def test_what_is_free_is_committed_so_that_a_heal_that_is_resumed_is_fitted_to_the_same(
    prepared, run, tiny, monkeypatch
):
    now, rows = run(), [completion(tiny, i, 10) for i in range(4)]
    for free in (1e6, 1e12):
        monkeypatch.setattr(training, "free_for", lambda model, free=free: free)
        steps.heal_rows(now, 0, prepared[1], walk_of(rows, now), rows)
        (now.ledger.units.folder / "0.heal.unit").unlink()  # stopped in the midst of it
        now.ledger.units.used.clear()
    first, again = now.ledger.events("heal")
    assert first["figures"]["checkpointing"] and first["figures"] == again["figures"]
    assert any("little memory" in note for note in first["notes"]) and first["steps"] == again["steps"]


def test_without_being_asked_for_there_is_no_overfit_check(prepared, run, tiny, monkeypatch):
    monkeypatch.setattr(training, "overfit_check", lambda *given: pytest.fail("not asked for"))
    now, rows = run(), [completion(tiny, i, 10) for i in range(8)]
    steps.heal_rows(now, 0, prepared[1], walk_of(rows, now), rows)
    assert now.ledger.events("heal")[0]["overfit"] is None


SHORT, LONG = (6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 20, 20, 20, 20), (6, 20)
"""Lengths of survivors, of which three in four are short, and of a reference that has as many long ones."""


@pytest.mark.parametrize(("match", "wanted"), [("base", 13.0), ("sampled", 16.5), ("none", 9.5)])
def test_length_weights_bring_the_mean_length_of_the_rows_to_the_wanted_one(prepared, run, tiny, match, wanted):
    now = run(match_lengths=match)
    now = replace(now, filter=replace(now.filter, calibration={**now.filter.calibration, "tokens": LONG * 20}))
    rows = [completion(tiny, i, n) for i, n in enumerate(SHORT)]
    dropped = [replace(completion(tiny, 100 + i, 20), dropped_by="perplexity", judged=True) for i in range(32)]
    cut = [replace(completion(tiny, 200 + i, 40), finished=False) for i in range(30)]  # lengths that say nothing
    steps.heal_rows(now, 0, prepared[1], walk_of([*rows, *dropped, *cut], now), rows)
    lengths = now.ledger.events("heal")[0]["lengths"]
    assert lengths["mean"] == 9.5
    assert lengths["weighted"] == pytest.approx(wanted, abs=0.6)


def test_the_original_models_own_rows_keep_their_weight(run, tiny):
    now = run(match_lengths="base")
    now = replace(now, filter=replace(now.filter, calibration={"tokens": LONG * 20}))
    rows = [completion(tiny, i, n, origin="base" if i % 4 == 1 else "steered") for i, n in enumerate(SHORT)]
    weights = training.row_weights(now.config.match_lengths, rows, now.filter.calibration["tokens"], rows)
    assert [w for w, row in zip(weights, rows, strict=True) if row.origin == "base"] == [1.0] * 4
    assert len({w for w, row in zip(weights, rows, strict=True) if row.origin != "base"}) == 2


@pytest.mark.parametrize(("reference", "shown"), [("base", ["D base"]), ("both", ["D prev", "D base"])])
def test_the_live_table_shows_loss_divergence_gradient_and_rate_and_every_epoch(
    prepared, run, tiny, capsys, reference, shown
):
    now, rows = run(reference=reference, epochs=2), [completion(tiny, i, 10) for i in range(16)]
    steps.heal_rows(replace(now, reporter=Reporter(verbose=True)), 0, prepared[1], walk_of(rows, now), rows)
    lines = capsys.readouterr().out.splitlines()
    (head,) = [line for line in lines if line.lstrip().startswith("step")]
    assert all(name in head for name in (*shown, "nll", "mean", "agg", "max", "fired", "ratio", "lam", "grad", "lr"))
    figures = [line for line in lines if line.strip()[:1].isdigit()]
    history = now.ledger.events("heal")[0]["steps"]
    assert len(figures) == len(history) == 8 and int(figures[-1].split()[0]) == 8
    assert figures[3].split()[1] == f"{history[3]['nll']:.3f}" and f"{history[3]['lr']:.1e}" in figures[3]
    epochs = [line for line in lines if line.startswith("epoch")]
    assert len(epochs) == 2 and all("before training" in line and "held-out" in line for line in epochs)


# sampling of the training texts


def test_text_sampling_reaches_filter_walk_and_replay_and_not_the_evaluation(tmp_path, monkeypatch):
    seen, stage = {}, ["another"]
    real = TransformersEngine.sample

    def watched(self, lm, rows, vector, max_new_tokens, sampling, tick):
        sampled = rows[0].seed is not None
        seen.setdefault(stage[-1], set()).add((sampled, sampling.temperature, sampling.top_p))
        return real(self, lm, rows, vector, max_new_tokens, sampling, tick)

    def within(name):
        called = getattr(steps, name)

        def wrapped(*given, **named):
            stage.append(name)
            try:
                return called(*given, **named)
            finally:
                stage.pop()

        monkeypatch.setattr(steps, name, wrapped)

    monkeypatch.setattr(TransformersEngine, "sample", watched)
    for name in ("calibrate_filter", "measure", "measure_steered", "measure_student", "walk_dose", "training_rows"):
        within(name)
    filtered = {"filter": "coherence", "replay": 0.3}
    rounds.run_rounds(small(tmp_path, n_rounds=1, text_temperature=0.7, text_top_p=0.9, **filtered))
    for name in ("calibrate_filter", "walk_dose", "training_rows"):
        assert seen[name] == {(True, 0.7, 0.9)}, name
    for name in ("measure", "measure_steered", "measure_student"):
        assert (True, None, None) in seen[name] and (True, 0.7, 0.9) not in seen[name], name


# a walk that is interrupted


def test_an_interrupted_walk_saves_the_completions_of_finished_batches(prepared, run, monkeypatch):
    now, calls = run(n_min=1000, survival_target=1.0, walk_batches=3), []
    real = steps.texts.generate_requests

    def interrupted(lm, requests, *given, **named):
        calls.append(len(requests))
        drawn = real(lm, requests, *given, **named)
        if len(calls) == 2:
            raise Interrupted(drawn[:5], drawn[5:7])
        return drawn

    monkeypatch.setattr(steps.texts, "generate_requests", interrupted)
    with pytest.raises(KeyboardInterrupt):
        steps.walk_dose(now, 0, prepared[1])
    folder = now.ledger.folder / "rounds" / "00.interrupted"
    saved = load_completions(folder / "completions.jsonl")
    assert len(saved) == calls[0] + 5
    assert all(c.judged for c in saved[: calls[0]]) and not any(c.judged for c in saved[calls[0] :])
    assert not now.ledger.events("walk") and not now.ledger.events("interrupted")


def test_ctrl_c_while_the_filter_judges_saves_what_was_sampled(prepared, run, monkeypatch):
    now = run()

    def stop(self, lm, completions):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(now.filter), "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        steps.walk_dose(now, 0, prepared[1])
    path = now.ledger.folder / "rounds" / "00.interrupted" / "completions.jsonl"
    assert len(path.read_text().splitlines()) == now.config.walk_batch
    assert not json.loads(path.read_text().splitlines()[0])["judged"]


def test_a_rounds_vector_is_the_students_own_the_first_ones_or_the_mean_of_both(prepared, run):
    now, other = prepared[1], prepared[1].random_like(1)
    first = replace(other, vectors={i: 3.0 * v for i, v in other.vectors.items()})
    after = [SimpleNamespace(vector=first, stands=True)]
    found = {}
    for name in ("each", "first", "mixed"):
        found[name] = steps.extract_vector(replace(run(vector_from=name), rounds=after), 1).flat()
    assert torch.equal(found["each"], now.flat()) and torch.equal(found["first"], first.flat())
    torch.testing.assert_close(found["mixed"], 0.5 * (now.flat() + other.flat()))  # the first one at the new one's norm
    alone = steps.extract_vector(run(vector_from="mixed"), 0)
    assert torch.equal(alone.flat(), now.flat())


def test_the_text_temperature_follows_the_students_lost_diversity(run):
    left = SimpleNamespace(distinct4=0.5)
    fresh = run(targets="tokens", texts="steered", text_temperature=0.9, diversity_gain=2.0, text_min_p=0.02)
    assert text_sampling(replace(fresh, base=left, rounds=[])).temperature == pytest.approx(0.9)
    healed = SimpleNamespace(stands=True, healed=SimpleNamespace(distinct4=0.4))
    held = replace(fresh, base=left, rounds=[healed])
    assert text_sampling(held).min_p == 0.02
    assert text_sampling(held).temperature == pytest.approx(0.9 * (1 + 2 * 0.2))
    off = replace(held, config=replace(held.config, text_temperature=None, diversity_gain=0.0))
    assert text_sampling(off).temperature is None  # the model's own
    own = replace(held, config=replace(held.config, text_temperature=None))
    assert text_sampling(own).temperature == pytest.approx(held.lm.base.generation_config.temperature * 1.4)


def test_the_heat_follows_a_reverted_student_too_and_goes_into_the_target_where_a_teacher_teaches(run):
    left, reverted = (
        SimpleNamespace(distinct4=0.5),
        SimpleNamespace(stands=False, healed=SimpleNamespace(distinct4=0.4)),
    )
    now = replace(run(text_temperature=0.9, diversity_gain=2.0), base=left, rounds=[reverted])
    assert now.heat(1.1) == pytest.approx(1.1 * 1.4) and text_sampling(now).temperature == 0.9
