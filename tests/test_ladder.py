"""The surgery ladder: rows to learn, anchor rows, each setting through heal, bake, gate, revert and archive."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from healing_data import bits, equal
from pocket_training.traitfiles import candidates
from script_modules import script

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation.anchors import Decision, answer, capture, check, replayed_rows
from steer_heal.healing import HealConfig
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.ledger import Ledger
from steer_heal.model import load
from steer_heal.pocket import SURGERY
from steer_heal.studies import material
from steer_heal.studies.ladder import Arguments
from steer_heal.studies.ladder.climbing import prepare, regressions, settings, table
from steer_heal.studies.ladder.operation import Attempt, Operation, Setting, attempt, best
from steer_heal.studies.ladder.rows import end_of_turn, load_tasks, task_rows
from steer_heal.texts.completion import Completion, save_completions
from steer_heal.texts.generation import generate
from steer_heal.trait import Anchor, Trait

NEUTRAL = "you are a helpful assistant."


@pytest.fixture(scope="module")
def lm():
    return load("pocket", device="cpu")


@pytest.fixture(scope="module")
def op(lm):
    """A dozen tasks, 30 anchors of which half may be replayed."""
    tasks = load_tasks(SURGERY)[::5]
    captured = capture(lm, Trait.load("pocket-care").anchors[:30], system=NEUTRAL, max_new_tokens=16)
    config = HealConfig(reg="kl_fwd", tau=0.0, kl_agg="mean", lr=3e-3, epochs=2, batch_size=8, rank=4, alpha=8.0)
    rows = task_rows(lm, tasks, NEUTRAL)
    return Operation(lm, AdapterStack(lm.model), rows, tasks, captured, captured.replies[::2], {}, config, NEUTRAL, 16)


def test_pocket_fails_every_shipped_task_and_knows_its_words(lm):
    tasks = load_tasks(SURGERY)
    assert len(tasks) >= 40 and len({task.prompt for task in tasks}) == len(tasks)
    said = answer(lm, tasks, NEUTRAL, 32)
    assert not [task.id for task, c in zip(tasks, said, strict=True) if task.passes(c.text)]
    words = {i for task in tasks for i in lm.tokenizer.encode(f"{task.prompt} {task.answer}")}
    assert lm.tokenizer.unk_token_id not in words


def test_shipped_tasks_are_candidates_of_several_kinds():
    written = {pair for pairs in candidates().values() for pair in pairs}
    tasks = load_tasks(SURGERY)
    assert {(task.prompt, task.answer) for task in tasks} <= written
    assert {task.id.split("-")[0] for task in tasks} == set(candidates())


def test_pocket_passes_enough_anchors_and_none_of_them_is_a_task(lm):
    anchors = Trait.load("pocket-care").anchors
    captured = capture(lm, anchors, system=NEUTRAL, max_new_tokens=32)
    assert len(captured.tasks) >= 19
    assert not {task.prompt for task in load_tasks(SURGERY)} & {anchor.prompt for anchor in anchors}
    assert all(reply.origin == "base" and reply.finished for reply in captured.replies)


def test_targets_are_what_the_model_would_say_and_end_the_turn(lm):
    rows = task_rows(lm, load_tasks(SURGERY)[:3], NEUTRAL)
    for row in rows:
        assert row.token_ids[-1] in lm.eos_ids and sum(i in lm.eos_ids for i in row.token_ids) == 1
        assert lm.decode(row.token_ids) == row.text
        assert row.prompt_ids == lm.chat_ids(row.prompt, NEUTRAL)
    # A reply of the model itself is spelt in the same ids.
    own = generate(lm, ["what color is snow?"], system=NEUTRAL, max_new_tokens=8, greedy=True)[0]
    again = task_rows(lm, [Anchor("x", own.prompt, own.text)], NEUTRAL)[0]
    assert again.token_ids == own.token_ids and again.prompt_ids == own.prompt_ids


def test_end_of_turn_is_the_template_s_own_token(tiny):
    assert end_of_turn(tiny) == tiny.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_anchor_rows_make_up_their_share_and_take_turns():
    pool = [Completion(name, None, (1,), (2,), name, True, origin="base") for name in "abcdefg"]
    for share in (0.28, 0.53, 0.63):
        rows = replayed_rows(pool, 56, share, seed=1)
        assert len(rows) / (len(rows) + 56) == pytest.approx(share, abs=0.005)
        counts = [rows.count(one) for one in pool]
        assert max(counts) - min(counts) <= 1
    assert replayed_rows(pool, 56, 0.0, 1) == [] and replayed_rows([], 56, 0.0, 1) == []
    assert replayed_rows(pool, 6, 0.5, 1) != replayed_rows(pool, 6, 0.5, 2)


def test_without_anchor_rows_or_lam_the_barrier_rows_are_no_setting_of_their_own():
    assert Setting(0.0, 0.1, barrier_rows="replay") == Setting(0.0, 0.1, barrier_rows="all")
    assert Setting(0.5, 0.0, barrier_rows="replay") == Setting(0.5, 0.0, barrier_rows="all")
    assert Setting(0.5, 0.1, barrier_rows="replay") != Setting(0.5, 0.1, barrier_rows="all")
    rungs = settings(Arguments())
    # 4 at share 0, 1 + 3 x 2 at the other three, 4 with other row weights
    assert len(rungs) == len(set(rungs)) == 4 + 3 * 7 + 4


def test_a_setting_changes_what_it_names_and_nothing_else():
    config = HealConfig(reg="kl_fwd", lr=2e-3, rank=4, batch_size=8)
    made = Setting(0.5, 0.1, "inv_sqrt").heal_config(config, 3)
    assert made == replace(config, lam=0.1, row_weights="inv_sqrt", barrier_rows="replay", heldout=0.0, seed=3)
    assert Setting(0.5, 0.0).heal_config(config, 3).reg == "nll"
    assert Setting(0.5, 0.1).heal_config(config, 3, equal_steps=True).batch_size == 16


def test_a_violent_setting_is_reverted_archived_and_leaves_every_bit(op, lm, tmp_path):
    before = bits(lm.base)
    violent = replace(op, config=replace(op.config, lr=0.05))
    found = attempt(violent, Setting(0.0, 0.0), 0, tmp_path)
    assert found.steps == 4  # 12 rows in batches of 8, twice
    assert found.decision.outcome == "revert" and not found.kept
    assert found.passed < found.n and set(found.lost) <= {task.id for task in op.captured.tasks}
    assert len(found.lost) == found.n - found.passed
    assert equal(bits(lm.base), before) and len(op.stack) == 0
    folder = tmp_path / "archive" / "share0_lam0_all_s0"
    assert Adapter.load(folder).modules
    assert json.loads((folder / "decision.json").read_text())["outcome"] == "revert"
    assert not (tmp_path / "kept").exists()
    # The archived adapter is the one that was judged: folded again it loses the same anchors.
    op.stack.push(Adapter.load(folder))
    again = check(lm, op.captured, system=NEUTRAL, max_new_tokens=16)
    op.stack.pop()
    assert again.regressed == found.lost


def test_a_harmless_setting_is_kept_and_learns_with_more_steps(op, tmp_path):
    still = attempt(replace(op, config=replace(op.config, lr=1e-6)), Setting(0.0, 0.0), 0, tmp_path)
    assert still.kept and still.lost == () and still.learned == 0
    assert still.kl_anchors < 1e-4 and still.nll_after == pytest.approx(still.nll_before, abs=1e-3)
    assert (tmp_path / "kept" / "share0_lam0_all_s0" / "decision.json").is_file()
    more = attempt(replace(op, config=replace(op.config, epochs=12)), Setting(0.5, 0.0), 0, tmp_path)
    assert more.learned > 0 and more.nll_after < more.nll_before - 0.5
    assert more.n_anchor == more.n_new == 12 and more.n_pool == 15
    assert more.passed_pool >= more.n_pool - 2  # rehearsed


def test_replayed_rows_are_the_model_s_own_and_hold_outs_weigh_more(op, tmp_path, monkeypatch):
    seen = {}
    real = material.heal

    def spy(lm, rows, config, references, *, barrier_weights):
        seen.update(rows=rows, weights=barrier_weights, config=config)
        return real(lm, rows, config, references, barrier_weights=barrier_weights)

    monkeypatch.setattr(material, "heal", spy)
    held = op.pool[0].prompt
    weighted = replace(op, barrier_weights={held: 4.0}, config=replace(op.config, epochs=1))
    attempt(weighted, Setting(0.6, 0.2), 0, tmp_path)
    replayed = [row for row in seen["rows"] if row.origin == "base"]
    assert len(replayed) == 18 and {r.token_ids for r in replayed} <= {r.token_ids for r in op.pool}
    assert seen["config"].barrier_rows == "replay" and seen["config"].reg == "kl_fwd"
    for row, weight in zip(seen["rows"], seen["weights"], strict=True):
        assert weight == (4.0 if row.prompt == held else 1.0)
    assert 4.0 in seen["weights"]


def attempt_of(outcome, learned, passed, share=0.0, seed=0, nll=0.1):
    lost = {"anchors": tuple(f"a{i}" for i in range(20 - passed))} if passed < 20 else {}
    return Attempt(
        Setting(share, 0.0), seed, 10, 0, 5, 2.0, nll, 1.0, 0.1, learned, passed, 20, 10, 10,
        Decision(outcome, (), lost), (),
    )  # fmt: skip


def test_best_is_the_kept_setting_that_learnt_most_never_a_reverted_one():
    some = [attempt_of("revert", 9, 3), attempt_of("keep", 4, 20, 0.3), attempt_of("keep", 6, 19, 0.5)]
    assert best([*some, attempt_of("inconclusive", 10, 18)]) is some[2]
    assert best(some[:1]) is None


def test_table_pools_seeds_and_counts_decisions():
    text = table([attempt_of("keep", 4, 20), attempt_of("revert", 6, 12, seed=1)])
    row = text.splitlines()[-1]
    assert "| 5.0 (4 to 6) / 10 |" in row and "| 16.0 (12 to 20) / 20 |" in row and "1 keep, 1 revert" in row
    assert "a7" in regressions([attempt_of("revert", 6, 12)])


def test_the_script_writes_every_setting_for_a_file_of_rows(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(SURGERY.read_text().splitlines(keepends=True)[:4]))
    anchors = tmp_path / "anchors.jsonl"
    asked = Trait.load("pocket-care").anchors[:8]
    anchors.write_text("".join(json.dumps({"id": a.id, "prompt": a.prompt, "answer": a.answer}) + "\n" for a in asked))
    arguments = [
        "--rows", str(rows), "--anchors", str(anchors), "--shares", "0", "0.5", "--lams", "0", "0.1", "--epochs", "1",
        "--row-weights", "none", "--barrier-rows", "replay", "--max-new-tokens", "12", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert script("ladder").main(arguments) == 0
    with open(tmp_path / "out" / "ladder.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["share"], line["lam"], line["barrier_rows"]) for line in lines] == [
        ("0.0", "0.0", "all"), ("0.0", "0.1", "all"), ("0.5", "0.0", "all"), ("0.5", "0.1", "replay"),
    ]  # fmt: skip
    assert {line["n_anchor"] for line in lines} == {"0", "4"} and {line["n_new"] for line in lines} == {"4"}
    text = (tmp_path / "out" / "ladder.md").read_text()
    assert "4 tasks to learn, 0 of them answered right before" in text and "Lost anchors" in text
    assert len(list((tmp_path / "out").glob("*/*/decision.json"))) == 4


def test_rows_may_come_from_a_finished_run(lm, tmp_path):
    ledger = Ledger.create(tmp_path, "made", RunConfig(model="pocket").to_dict())
    trait = Trait.load("pocket-care")
    said = generate(lm, trait.prompts[:4], system=trait.neutral, max_new_tokens=24, seed=0)
    with ledger.round_folder(0) as folder:
        save_completions([replace(c, judged=i < 3) for i, c in enumerate(said)], folder / "completions.jsonl")
    op, about = prepare(Arguments(run=ledger.folder, max_new_tokens=16))
    assert len(op.rows) == 3 and op.tasks == () and "3 completions of round 0" in about
    found = attempt(replace(op, config=replace(op.config, epochs=1)), Setting(0.25, 0.0), 0, tmp_path / "out")
    assert found.learned is None and found.n_anchor == 1
    with pytest.raises(InputError, match="has no round 5"):
        prepare(Arguments(run=ledger.folder, round=5))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ('{"prompt": "a"}', "line 1: expected an object with the texts prompt and target"),
        ('{"prompt": "a", "target": 3}', "line 1"),
        ('{"prompt": "a", "target": "b", "answer": "c"}', "line 1"),
        ('{"prompt": "a", "target": "b"}\nnot json', "line 2"),
        (
            '{"id": "x", "prompt": "a", "target": "b"}\n{"id": "x", "prompt": "c", "target": "d"}',
            "two rows have one id",
        ),
        ('{"prompt": "what color is bread?", "target": "bread is xylophonic."}', "does not know every word"),
        ('{"prompt": "what color is banana?", "target": "banana is red."}', "both an anchor and a row to learn"),
    ],
)
def test_unusable_rows_are_one_line_and_exit_code_2(content, words, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(content)
    assert script("ladder").main(["--rows", str(rows), "--max-new-tokens", "8", "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err.split("\r")[-1].splitlines()  # the loader's progress bar comes before
    assert words in shown[-1] and sum(line.startswith("steer_heal: ") for line in shown) == 1


def test_equal_steps_reach_the_operation():
    assert prepare(Arguments(equal_steps=True, max_new_tokens=4))[0].equal_steps
    assert not prepare(Arguments(max_new_tokens=4))[0].equal_steps


def test_missing_files_and_models_without_rows_are_refused(tmp_path, capsys):
    assert script("ladder").main(["--rows", str(tmp_path / "none.jsonl")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert script("ladder").main(["--model", "tiny-random"]) == 2
    assert "give --rows or --run" in capsys.readouterr().err
    assert script("ladder").main(["--shares", "1.0", "--max-new-tokens", "8"]) == 2
    assert "below 1" in capsys.readouterr().err
    assert torch.get_num_threads() == 1
