"""The gate in the loop: what it asks, what it lets through; what it takes out leaves no trace in the weights."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import resume_runs
import torch
from resume_runs import config as small
from resume_runs import mini_trait
from rich.console import Console

import steer_heal.model
from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation import AnchorRow, ChoiceRow, Metrics, ReplyRow
from steer_heal.evaluation import verdict as verdicts
from steer_heal.evaluation.anchors import Captured, Check, Decision
from steer_heal.healing import HealConfig, Healed, heal
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.ledger import Ledger
from steer_heal.loop import gate, rounds, steps
from steer_heal.loop.rounds import run_rounds
from steer_heal.loop.steps import judging
from steer_heal.model import memory
from steer_heal.report import printing
from steer_heal.report.console import Reporter
from steer_heal.run import main
from steer_heal.statistics import Estimate
from steer_heal.texts.completion import Completion
from steer_heal.trait import Anchor, Trait

pytestmark = pytest.mark.usefixtures("undrawn")

TINY = {"fast_dev_run": True, "eval_items": 8, "eval_replies": 8, "max_new_tokens": 16, "n_min": 12, "walk_batch": 16,
        "targets": "tokens"}  # fmt: skip
"""Sizes of a run that passes every stage in a second or two; its numbers mean nothing."""
UNCUT = {"gate": "on", "targets": "tokens", "eval_replies": 8, "replay": 0.0, "replay_anchors": 0.0}
"""What a small run of more than two rounds is told, which are as many as `resolved` leaves a fast one."""
POCKET = {"n_rounds": 1, "max_reverts": 1, "eval_items": 8, "eval_replies": 16, "n_min": 32, "walk_batch": 40,
          "targets": "tokens"}  # fmt: skip


def weights(lm):
    return {name: weight.clone() for name, weight in lm.model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def scripted(monkeypatch):
    """Replaces the gate's conclusion by given ones, round by round; records the weights before each round."""

    def script(*conclusions):
        left, before, extract = list(conclusions), [], steps.extract_vector

        def watched(run, number):
            before.append(weights(run.lm))
            return extract(run, number)

        monkeypatch.setattr(steps, "extract_vector", watched)
        monkeypatch.setattr(gate, "passes", lambda decision, config: left.pop(0))
        return before

    return script


def test_a_reverted_round_leaves_no_bit_and_the_result_is_exactly_the_best_that_stands(tmp_path, scripted, monkeypatch):
    before = scripted(True, False, True)
    figures = iter([0.5, 0.9, 0.1])  # the reverted round has the most trait, the last round the least
    real = verdicts.judge_round
    monkeypatch.setattr(judging, "trait_figure", lambda metrics: next(figures))
    monkeypatch.setattr(judging, "judge_round", lambda *given: replace(real(*given), name="moved", above_floors=True))
    monkeypatch.setattr(RunConfig, "resolved", lambda self, trait=None: self)
    result = run_rounds(small(tmp_path, n_rounds=3, **UNCUT))
    ledger = Ledger.open(result.folder)
    assert same(before[2], before[1]) and not same(before[1], before[0])
    assert [e["stands"] for e in ledger.events("gate")] == [True, False, True]
    assert [e["depth"] for e in ledger.events("gate")] == [1, 1, 2]
    # On at a lower dose, with a vector read from the student that was gone back to.
    assert [e["kappa_start"] for e in ledger.events("walk")] == pytest.approx([1.0, 1.0, 0.7])
    assert torch.equal(result.rounds[2].vector.flat(), result.rounds[1].vector.flat())

    archived = json.loads((result.folder / "rounds" / "01" / "decision.json").read_text())
    assert not archived["stands"] and archived["reasons"]
    assert Adapter.load(result.folder / "rounds" / "01" / "adapter") == result.rounds[1].adapter
    assert "1 moved (reverted)" in result.verdict.text
    assert "1 healed (reverted)" in (result.folder / "summary.md").read_text()

    assert result.best_round == 0 and ledger.events("end")[0]["folded"] == [0] and len(result.run.stack) == 1
    fresh = steer_heal.model.load("tiny-random")
    stack = AdapterStack(fresh.model)
    stack.push(Adapter.load(result.folder / "rounds" / "00" / "adapter"))
    assert same(weights(fresh), weights(result.run.lm))


def test_after_a_reverted_first_round_nothing_is_compared_with_itself(tmp_path, scripted):
    scripted(False, True)
    ledger = Ledger.open(run_rounds(resume_runs.config(tmp_path)).folder)
    assert [e["stands"] for e in ledger.events("gate")] == [False, True]
    assert ledger.events("extract")[1]["cosine_first"] is None  # the original's vector again
    assert abs(ledger.events("bake")[1]["cosine_first"]) < 0.99 and ledger.events("bake")[0]["cosine_first"] > 0.99


@pytest.mark.parametrize(("asked", "limit", "chosen"), [(0, 10**9, [1]), (0, 1, []), (3, 10**9, [3]), (3, 1, [3])])
def test_a_small_model_gets_one_thread_unless_told_otherwise(asked, limit, chosen, tiny, monkeypatch):
    found = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(memory, "ONE_THREAD", limit)
    memory.choose_threads(tiny.model, asked)
    assert found == chosen


def test_a_run_whose_every_round_is_reverted_ends_early_with_exit_code_3(tmp_path, scripted):
    scripted(False)
    words = ["--fast-dev-run", "--trait", str(mini_trait(tmp_path)), "--n-rounds", "2", "--max-reverts", "1", "--quiet"]
    code = main([*words, "--out", str(tmp_path)])
    ledger = Ledger.open(next(p for p in tmp_path.iterdir() if p.is_dir()))
    end = ledger.events("end")[0]
    assert code == 3 and end["verdict"] == "reverted" and end["best_round"] is None and end["folded"] == []
    assert len(ledger.events("gate")) == 1 and "--max-reverts 1" in end["ended_by"]
    assert (ledger.folder / "summary.md").read_text().startswith("# reverted\n")


@pytest.mark.parametrize(
    ("stands", "kappa", "words"),
    [
        ([False], 0.7, None),
        ([False, False], 0.49, "2 rounds in a row"),
        ([False, True, False], 0.49, None),
        ([False], 0.19, "lowest kappa"),
    ],
)
def test_reverts_end_the_run_when_too_many_in_a_row_or_at_the_lowest_dose(stands, kappa, words):
    done = [SimpleNamespace(stands=one) for one in stands]
    found = gate.enough(SimpleNamespace(config=RunConfig(max_reverts=2, kappa_floor=0.2), rounds=done, kappa=kappa))
    assert (found is None) == (words is None) and (words is None or words in found.text)


@pytest.fixture
def settled(monkeypatch):
    """A function that settles rounds, each given by whether it stands, in a run that does nothing else.

    It returns their `gate` events, and how the last one ended the run.
    """
    monkeypatch.setattr(steps, "save_round", lambda *given: None)
    monkeypatch.setattr(gate, "original_figures", lambda run: {})

    def settle(*stands, **options):
        events, ended = [], None
        ledger = SimpleNamespace(record=lambda *stage, **figures: events.append(figures))
        run = SimpleNamespace(
            config=RunConfig(**options), rounds=[], kappa=1.0, stack=[0] * 5, captured=Captured((), (), ()),
            ledger=ledger,
        )  # fmt: skip
        for number, one in enumerate(stands):
            decision = Decision("keep" if one else "revert", ("reason",), {}, True)
            done = SimpleNamespace(number=number, stands=one, figures={}, decision=decision)
            ended = gate.settle(run, done)
        return events, ended

    return settle


def test_the_dose_falls_with_a_reverted_round_and_rises_again_with_a_kept_one_up_to_its_start(settled):
    events, _ = settled(False, False, True, True, True)
    assert [e["kappa_next"] for e in events] == pytest.approx([0.7, 0.49, 0.7, 1.0, 1.0])
    assert [e["depth"] for e in events] == [4, 3, 3, 3, 3]


def moved(*shifts):
    """Estimates from (value, half width)."""
    return [Estimate(value, value - half, value + half, 64) for value, half in shifts]


@pytest.mark.parametrize(
    ("shifts", "stops"),
    [
        ([], False),
        ([(0.01, 0.1)], False),
        ([(0.01, 0.1), (0.02, 0.1)], True),
        ([(0.5, 0.1), (0.01, 0.1)], False),
        ([(0.01, 0.1), (0.5, 0.1)], False),
        ([(0.01, 0.1), (0.5, 0.1), (0.01, 0.1)], False),
        ([(0.5, 0.1), (0.01, 0.1), (-0.02, 0.1)], True),
        ([(0.01, 0.1), (-0.5, 0.1)], False),  # surely moved, if backwards
        ([(0.1, 0.1), (0.0, 0.0)], True),  # an interval that touches zero includes it
    ],
)
def test_a_run_stalls_when_two_rounds_in_a_row_moved_within_their_noise(shifts, stops):
    found = gate.stalled(moved(*shifts))
    assert (found is not None) == stops and (found is None or "--early-stop" in found.text)


@pytest.mark.parametrize(("asked", "stands"), [(True, True), (False, True), (True, False)])
def test_early_stop_ends_the_run_only_when_asked_for_and_after_a_round_that_stands(settled, monkeypatch, asked, stands):
    monkeypatch.setattr(gate, "movements", lambda run: moved((0.0, 0.1), (0.0, 0.1)))
    events, ended = settled(stands, early_stop=asked)
    assert (ended is not None) == (asked and stands) == (events[0]["ended"] is not None)
    assert ended is None or "within their noise" in ended.text


def test_movements_go_from_one_standing_student_to_the_next():
    def student(log_odds):
        rows = tuple(
            ChoiceRow(str(i), "c", ("a", "b"), ("a",), (-0.69, -0.69), (x, x), x, 1.0)
            for i, x in enumerate([log_odds, log_odds + 0.1] * 4)
        )
        return Metrics("t", "", 0.0, "key", rows)

    standing = [SimpleNamespace(healed=student(x)) for x in (1.0, 1.5)]
    found = gate.movements(SimpleNamespace(base=student(0.0), standing=standing))
    assert [shift.value for shift in found] == pytest.approx([1.0, 0.5])


@pytest.fixture(scope="module")
def pocket_run(tmp_path_factory):
    """A prepared run on pocket with one round's vector and steered texts."""
    run = rounds.prepare(RunConfig(out=str(tmp_path_factory.mktemp("out")), **POCKET), Reporter(quiet=True))
    vector = steps.extract_vector(run, 0)
    return run, vector, steps.walk_dose(run, 0, vector)


def test_the_filter_keeps_better_text_than_it_gets(pocket_run):
    (walk,) = pocket_run[0].ledger.events("walk")
    assert walk["sentence_ok_kept"] > walk["sentence_ok_sampled"] + 0.02
    assert walk["trait_kept"] > walk["trait_base"] + 0.3


@pytest.fixture
def heal_by(pocket_run, monkeypatch, tmp_path):
    """One round on pocket whose adapter comes from a function (run, rows) -> Adapter; the rest is the loop's own."""

    def go(make, **settings):
        prepared, vector, walk = pocket_run
        while len(prepared.stack):  # of the test before
            prepared.stack.pop()
        config = replace(prepared.config, **settings)
        ledger = Ledger.create(tmp_path, "run", config.to_dict())
        for event in prepared.ledger.events():
            ledger.record(event["stage"], **{k: v for k, v in event.items() if k not in ("stage", "time")})
        names = ("train_nll", "heldout_nll", "kl_prev", "kl_base")
        figures = {f"{name}_{when}": 0.0 for name in names for when in ("before", "after")}
        told = {"tau": {}, "epochs": [], "notes": [], "lengths": {"mean": 30.0, "weighted": 32.0}}

        def heal_rows(run, number, vector, walk, rows):
            ledger.record("heal", number, figures=figures, **told)
            return Healed(make(run, rows), HealConfig(), (), (), figures, {}, {})

        monkeypatch.setattr(steps, "extract_vector", lambda run, number: vector)
        monkeypatch.setattr(steps, "walk_dose", lambda run, number, vector: walk)
        monkeypatch.setattr(steps, "heal_rows", heal_rows)
        ledger.write_once("base.json", prepared.base.to_json())
        return rounds.complete(replace(prepared, config=config, ledger=ledger, rounds=[]))

    return go


def test_the_shipped_bad_adapter_is_blocked_end_to_end_and_leaves_the_original_bits(heal_by):
    result = heal_by(lambda run, rows: gate.must_block_adapter(run.lm))
    (event,) = Ledger.open(result.folder).events("gate")
    assert event["outcome"] == "revert" and not event["stands"] and event["depth"] == 0
    assert len(event["regressed"]["anchors"]) == event["anchors"] > 80 and event["figures"]["coherence"] < 0.2
    assert result.verdict.name == "reverted" and len(result.run.stack) == 0
    assert same(weights(steer_heal.model.load("pocket")), weights(result.run.lm))


def test_a_watching_gate_decides_the_same_and_takes_nothing_out(heal_by):
    result = heal_by(lambda run, rows: gate.must_block_adapter(run.lm), gate="watch")
    (event,) = Ledger.open(result.folder).events("gate")
    assert event["outcome"] == "revert" and event["stands"] and event["depth"] == 1
    assert result.verdict.name == "collapsed" and result.best_round is None and len(result.run.stack) == 0


def test_a_harmless_adapter_passes(heal_by):
    result = heal_by(lambda run, rows: gate.must_block_adapter(run.lm, size=0.01))
    (event,) = Ledger.open(result.folder).events("gate")
    assert event["stands"] and event["within"] and len(result.run.stack) == 1


@pytest.mark.parametrize("name", ["unfit", "shorter"])
def test_a_round_whose_verdict_is_under_a_floor_is_taken_out_whatever_the_checks_say(heal_by, monkeypatch, name):
    monkeypatch.setattr(judging, "judge_round", lambda *given: verdicts.Verdict(name, "told."))
    result = heal_by(lambda run, rows: gate.must_block_adapter(run.lm, size=0.01))
    (event,) = Ledger.open(result.folder).events("gate")
    assert event["outcome"] == "revert" and event["reasons"][0].startswith(f"{name}: told.") and not event["stands"]
    assert result.best_round is None and len(result.run.stack) == 0


def test_an_adapter_that_only_forgets_is_blocked_by_its_anchors(heal_by):
    """Trained to give each anchor another one's answer: its text stays sound, its knowledge is gone."""

    def forget(run, rows):
        replies = run.captured.replies
        swapped = [
            replace(row, token_ids=other.token_ids, text=other.text)
            for row, other in zip(replies, [*replies[40:], *replies[:40]], strict=True)
        ]
        own = [row for row in rows if row.dose <= 0.5]
        return heal(run.lm, [*swapped, *own], HealConfig(reg="nll", lr=3e-3, epochs=2, heldout=0.0)).adapter

    result = heal_by(forget)
    (event,) = Ledger.open(result.folder).events("gate")
    assert not event["stands"] and event["reasons"][0].startswith("anchors against")
    assert len(event["regressed"]["anchors"]) > 20
    assert result.rounds[0].healed.sentence_ok > 0.85 and result.rounds[0].verdict.name != "collapsed"


def test_the_bad_adapter_is_the_same_for_the_same_model_and_as_large_as_asked(tiny):
    adapter = gate.must_block_adapter(tiny, size=0.5)
    assert adapter == gate.must_block_adapter(tiny, size=0.5) != gate.must_block_adapter(tiny, size=0.5, seed=1)
    name = adapter.modules[0]
    weight = tiny.model.get_submodule(name).weight
    assert float(adapter.delta(name).norm() / weight.detach().double().norm()) == pytest.approx(0.5, rel=1e-5)


def test_the_doctors_check_tells_a_gate_that_blocks_a_ruined_model_from_one_that_does_not(monkeypatch):
    good, reason = gate.blocks_a_ruined_model()
    assert good and "under the floor" in reason
    real = gate.must_block_adapter
    monkeypatch.setattr(gate, "must_block_adapter", lambda lm: real(lm, size=1e-4))
    assert not gate.blocks_a_ruined_model()[0]


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_the_bad_adapter_fits_other_layouts(family):
    from families import make

    lm = make(family)
    before = weights(lm)
    stack = AdapterStack(lm.model)
    stack.push(gate.must_block_adapter(lm))
    assert not same(before, weights(lm))
    stack.pop()
    assert same(before, weights(lm))


CONCLUSIONS = [
    ("keep", True, "revert", True),
    ("revert", False, "keep", False),
    ("revert", True, "estimate", False),  # a floor, not a drop
    ("inconclusive", True, "estimate", True),
    ("inconclusive", False, "estimate", False),
    ("inconclusive", False, "keep", True),
    ("inconclusive", True, "revert", False),
]


@pytest.mark.parametrize(("outcome", "within", "setting", "stands"), CONCLUSIONS)
def test_what_an_outcome_leads_to(outcome, within, setting, stands):
    decision = Decision(outcome, ("why",), within=within)
    assert gate.passes(decision, RunConfig(on_inconclusive=setting)) == stands
    assert gate.passes(decision, RunConfig(on_inconclusive=setting, gate="watch"))


def metrics(words, anchors=()):
    replies = tuple(ReplyRow(f"p{i}", "a b c d e " * 2, words, True, False, 1.0, 1.0) for i in range(8))
    rows = tuple(AnchorRow(name, "", True) for name in anchors)
    return Metrics("t", "", 0.0, "key", (), (), replies, rows, 2.0)


def test_what_is_asked_follows_the_configuration_and_what_was_captured():
    config = RunConfig(max_drop=0.03, total_drop=0.07, coherence_drop=0.02, coherence_floor=0.9)
    task = Anchor("a", "p", "b")
    asked = {one.figure: one for one in gate.checks_of(config, metrics(40), metrics(30), Captured((task,), (), ()))}
    assert asked["coherence"] == Check("coherence", share=0.9, max_drop=0.03, total_drop=0.02)
    assert asked["anchors"] == Check("anchors", max_drop=0.03, total_drop=0.07)
    assert (
        asked["words"].floor == 30 and "prompted" in asked["words"].floor_words
    )  # asking alone costs more than a fifth
    assert {"distinct4", "token_entropy"} <= asked.keys()
    assert [one.figure for one in asked.values() if one.surely] == ["words"]
    asked = {one.figure: one for one in gate.checks_of(config, metrics(40), metrics(36), Captured((), (), ()))}
    assert asked["words"].floor == pytest.approx(0.8 * 40) and "base" in asked["words"].floor_words
    none = gate.checks_of(config, metrics(40), metrics(30), Captured((), (), ()))
    assert "anchors" not in {one.figure for one in none}


def any_answer(number):
    """Tasks that every reply passes."""
    rows = [
        {"id": f"t{i}", "prompt": f"how many apples, {i} ?", "answer": ".", "check": "regex"} for i in range(number)
    ]
    return "\n".join(map(json.dumps, rows))


@pytest.fixture
def trained_on(monkeypatch):
    """The training rows of each heal."""
    seen = []
    real = steps.heal_rows
    monkeypatch.setattr(
        steps, "heal_rows", lambda run, number, *rest: seen.append(rest[-1]) or real(run, number, *rest)
    )
    return seen


@pytest.mark.parametrize("source", ["file", "trait"])
def test_what_is_counted_is_never_trained_on_and_the_rest_is_replayed_in_the_asked_share(
    tmp_path, trained_on, capsys, source
):
    """The trait's own anchors are measured too: those whose prompts the file has are out of training like its own."""
    (tmp_path / "tasks.jsonl").write_text(any_answer(6))
    (tmp_path / "asked.jsonl").write_text(any_answer(3))
    text = mini_trait(tmp_path).read_text("utf-8").split("[[anchors]]")[0]
    named = "asked" if source == "file" else "tasks"
    (tmp_path / "mini.toml").write_text(f'anchors = "{named}.jsonl"\n{text}', "utf-8")
    given = {"anchors": str(tmp_path / "tasks.jsonl")} if source == "file" else {}
    settings = {**TINY, "n_rounds": 1, "text_prompts": "both", "gate": "watch", "replay": 0.2}
    config = RunConfig(**settings, **given, trait=str(tmp_path / "mini.toml"), out=str(tmp_path), replay_anchors=0.5)
    result = run_rounds(config)
    (rows,) = trained_on
    replayed = [row for row in rows if row.prompt.startswith("how many apples")]
    assert {row.prompt for row in replayed} == {f"how many apples, {i} ?" for i in (1, 3, 5)}
    assert len(replayed) == pytest.approx(len(rows) / 2, abs=1) and isinstance(replayed[0], Completion)
    assert {row.origin for row in replayed} == {"base"} and all(row in result.run.replayable for row in replayed)
    counted = {"t0", "t2", "t4"} if source == "trait" else {"t0", "t2"}
    measured = [result.run.base, result.run.prompted, result.rounds[0].steered, result.rounds[0].healed]
    assert all({row.id for row in metrics.anchors} == counted for metrics in measured)
    assert {task.id for task in result.run.captured.tasks} == set(result.rounds[0].figures["anchors"])
    assert not {task.prompt for task in result.run.captured.tasks} & {row.prompt for row in rows}
    ledger = Ledger.open(result.folder)
    (event,) = ledger.events("capture")
    assert (event["tasks"], event["right"], event["to_replay"], event["replayed"]) == (3, 3, 3, 3)
    assert ledger.events("gate")[0]["anchors"] == 3
    printing.show(Console(width=200), event, [])
    assert "3 of 3 others were too: these are replayed" in capsys.readouterr().out


def test_without_replay_every_anchor_is_counted():
    trait = Trait.load("pocket-care")
    tasks = gate.anchors_of(RunConfig(), trait)
    assert tasks.counted == tasks.not_replayed(trait.anchors) == trait.anchors and tasks.replayed == ()


@pytest.mark.parametrize(
    ("anchors", "words"),
    [
        ((), "no anchors"),
        ((Anchor("a", "one ?", "1"),), "1 anchors cannot be parted"),
        ((Anchor("a", "one ?", "1"), Anchor("b", "one ?", "1")), "prompts of their own"),
        ((Anchor("a", "a context", "1"), Anchor("b", "two ?", "1")), "'a' is to be counted and stands among"),
    ],
)
def test_anchors_that_cannot_be_replayed_and_counted_are_one_clear_error(anchors, words):
    trait = replace(Trait.load("pocket-care"), anchors=anchors, contexts=("a context",))
    with pytest.raises(InputError, match=words):
        gate.anchors_of(RunConfig(replay_anchors=0.5), trait)


def test_a_model_that_gets_none_of_the_anchors_to_replay_right_is_one_clear_error(tmp_path):
    (tmp_path / "tasks.jsonl").write_text(any_answer(2).replace('"answer": "."', '"answer": "^never$"'))
    config = RunConfig(**TINY, n_rounds=1, out=str(tmp_path), anchors=str(tmp_path / "tasks.jsonl"), replay_anchors=0.5)
    with pytest.raises(InputError, match="none of 1 anchors right that are to be replayed"):
        run_rounds(config)
