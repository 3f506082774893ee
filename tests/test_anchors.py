"""Anchors: what is captured, what counts as a regression, and the gate's decision at every edge."""

import json
import math
import re
from dataclasses import replace

import pytest

from steer_heal.errors import InputError
from steer_heal.evaluation import AnchorRow, Metrics, ReplyRow
from steer_heal.evaluation.anchors import Before, Check, Checked, capture, check, decide, figures, halves, load_tasks
from steer_heal.trait import Anchor, Trait, builtin_traits


def flat(value, n=20):
    return {str(i): value for i in range(n)}


def gate(now, previous, original, **limits):
    figure = {"coherence": now}
    return decide(Before({"coherence": previous}, {"coherence": original}), figure, [Check("coherence", **limits)])


def test_a_change_that_changes_nothing_is_kept_even_with_no_drop_allowed():
    found = gate(flat(0.9), flat(0.9), flat(0.9), max_drop=0.0, total_drop=0.0, share=1.0, floor=0.9)
    assert found.outcome == "keep" and found.regressed == {}
    assert len(found.reasons) == 4


@pytest.mark.parametrize(
    ("limits", "value", "outcome"),
    [
        ({"floor": 0.5}, 0.5, "keep"),
        ({"floor": 0.5}, 0.499, "revert"),
        ({"share": 0.8}, 0.8, "keep"),
        ({"share": 0.8}, 0.799, "revert"),
        ({"max_drop": 0.1}, 0.9, "keep"),
        ({"max_drop": 0.1}, 0.899, "revert"),
        ({"total_drop": 0.1}, 0.9, "keep"),
        ({"total_drop": 0.1}, 0.899, "revert"),
        ({"floor": 0.1}, math.nan, "revert"),
        ({"share": 0.1}, math.nan, "revert"),
        ({"max_drop": 0.5}, math.nan, "revert"),
    ],
)
def test_floors_and_allowed_drops_are_exact_at_their_edge(limits, value, outcome):
    assert gate(flat(value), flat(1.0), flat(1.0), **limits).outcome == outcome


def test_an_interval_across_the_allowed_drop_is_inconclusive():
    noisy = {str(i): 1.0 - (i % 4 == 0) for i in range(20)}  # a quarter lost, 20 items
    assert gate(noisy, flat(1.0), flat(1.0), max_drop=0.20).outcome == "inconclusive"
    assert gate(noisy, flat(1.0), flat(1.0), max_drop=0.02).outcome == "revert"
    assert gate(noisy, flat(1.0), flat(1.0), max_drop=0.60).outcome == "keep"


def test_a_floor_that_must_be_surely_broken_lets_an_interval_across_it_pass():
    """The known case: 91.05 words on average, floor 94.77, lengths that differ from prompt to prompt."""
    original = {str(i): 118.46 for i in range(48)}
    noisy = {str(i): 91.05 + (40 if i % 2 else -40) for i in range(48)}
    for limits in ({"floor": 94.77}, {"share": 0.8}):
        assert gate(noisy, original, original, **limits).outcome == "revert"
        found = gate(noisy, original, original, **limits, surely=True)
        assert found.outcome == "keep" and "91.050 is not surely under the floor 94.7" in found.reasons[0]
        short = {str(i): 91.05 + i % 2 for i in range(48)}
        assert gate(short, original, original, **limits, surely=True).outcome == "revert"
    assert gate(flat(math.nan), flat(1.0), flat(1.0), floor=0.1, surely=True).outcome == "revert"


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_one_item_is_inconclusive_whatever_it_says(value):
    assert gate({"a": value}, {"a": 1.0}, {"a": 1.0}, max_drop=0.1).outcome == "inconclusive"


def test_small_drops_add_up_to_more_than_the_total_budget():
    found = gate(flat(0.80), flat(0.85), flat(1.0), max_drop=0.1, total_drop=0.15)
    assert found.outcome == "revert" and "the original" in found.reasons[0]
    assert gate(flat(0.80), flat(0.85), flat(1.0), max_drop=0.1).outcome == "keep"


def test_one_failed_check_outweighs_all_that_pass_and_stands_first_in_the_reasons():
    good, bad = flat(1.0), flat(0.3)
    before = Before({"a": good, "b": good}, {"a": good, "b": good})
    found = decide(before, {"a": good, "b": bad}, [Check("a", max_drop=0.1), Check("b", max_drop=0.1)])
    assert found.outcome == "revert" and found.reasons[0].startswith("b ") and len(found.reasons) == 2


def test_revert_outweighs_inconclusive_and_inconclusive_outweighs_keep():
    one, many = {"x": 1.0}, flat(1.0)
    before = Before({"a": one, "b": many}, {"a": one, "b": many})
    checks = [Check("a", max_drop=0.1), Check("b", max_drop=0.1)]
    assert decide(before, {"a": one, "b": many}, checks).outcome == "inconclusive"
    assert decide(before, {"a": one, "b": flat(0.0)}, checks).outcome == "revert"


def test_items_that_fell_are_listed_by_id_even_when_the_change_is_kept():
    now = {**flat(1.0, 100), "17": 0.0}
    found = gate(now, flat(1.0, 100), flat(1.0, 100), max_drop=0.2)
    assert found.outcome == "keep" and found.regressed == {"coherence": ("17",)}


@pytest.mark.parametrize(
    ("lost", "previous_lost", "outcome", "within"),
    [
        (0, 0, "keep", True),
        (4, 0, "inconclusive", True),  # .10 lost of .10 allowed, the interval goes beyond
        (5, 0, "inconclusive", False),
        (40, 0, "revert", False),
        (7, 4, "inconclusive", False),  # .075 against the previous round, .175 of .15 against the original
    ],
)
def test_the_best_guess_is_whether_the_drops_found_are_allowed(lost, previous_lost, outcome, within):
    def student(n):
        return {str(i): float(i >= n) for i in range(40)}

    found = gate(student(lost), student(previous_lost), student(0), max_drop=0.1, total_drop=0.15)
    assert (found.outcome, found.within) == (outcome, within)


def test_a_drop_of_what_is_not_a_number_is_never_within():
    assert not gate(flat(math.nan), flat(1.0), flat(1.0), max_drop=1.0).within


def test_a_student_that_says_nothing_has_no_diversity_rather_than_an_unknown_one():
    def metrics(text, entropy):
        reply = ReplyRow("p", text, len(text.split()), True, False, 1.0, 1.0)
        return Metrics("t", "", 0.0, "key", (), (), (reply,), (), entropy)

    original, silent = metrics("a b c d e", 1.0), metrics("", None)
    found = figures(silent, original)
    assert found["distinct4"] == {"all": 0.0} and found["token_entropy"] == {"all": 0.0}
    before = Before(figures(original, original), figures(original, original))
    assert decide(before, found, [Check("distinct4", share=0.8)]).outcome == "revert"


def test_different_items_missing_figures_and_no_checks_are_refused():
    with pytest.raises(InputError, match="different items"):
        gate(flat(1.0, 20), flat(1.0, 21), flat(1.0, 20), max_drop=0.1)
    with pytest.raises(InputError, match="not measured"):
        decide(Before({}, {}), {}, [Check("coherence", floor=0.1)])
    with pytest.raises(InputError, match="no checks"):
        decide(Before({}, {}), {}, [])


def test_a_decision_is_saved_with_its_reasons(tmp_path):
    found = gate(flat(0.1), flat(1.0), flat(1.0), share=0.8)
    found.save(tmp_path / "decision.json")
    saved = json.loads((tmp_path / "decision.json").read_text())
    assert saved["outcome"] == "revert" and saved["reasons"] == list(found.reasons)
    assert saved["regressed"]["coherence"] == list(flat(0))


def first_words(lm, prompt):
    from steer_heal.texts.generation import generate

    return generate(lm, [prompt], max_new_tokens=6, greedy=True)[0].text


def test_capture_freezes_what_the_model_gets_right_and_check_finds_it_unchanged(tiny):
    tasks = [
        Anchor("right", "how many apples ?", first_words(tiny, "how many apples ?")),
        Anchor("wrong", "how many gates ?", "seven"),
    ]
    captured = capture(tiny, tasks, max_new_tokens=6)
    assert [task.id for task in captured.tasks] == ["right"] and captured.failed == ("wrong",)
    assert captured.replies[0].token_ids and captured.replies[0].text == tasks[0].answer
    found = check(tiny, captured, max_new_tokens=6)
    assert (found.passed, found.regressed) == (("right",), ())


def test_check_lists_a_regression_by_id_when_the_weights_change(tiny):
    from copy import deepcopy

    import torch

    from steer_heal.model import LM

    answer = first_words(tiny, "how many apples ?")
    captured = capture(tiny, [Anchor("right", "how many apples ?", answer)], max_new_tokens=6)
    broken = LM(deepcopy(tiny.model), tiny.tokenizer, "broken")
    with torch.no_grad():
        broken.blocks[0].mlp.down_proj.weight.add_(1.0)
    found = check(broken, captured, max_new_tokens=6)
    assert found.regressed == ("right",) and found.right == {"right": 0.0}


@pytest.mark.parametrize(
    ("kind", "answer", "right", "wrong"),
    [
        ("choice", "B", "(b) because it is kind", "a or b"),
        (
            "code",
            "def f():\n    return 1",
            "Sure:\n```python\ndef f():\n\n    return 1  \n```\nbye",
            "```\nreturn 1\n```",
        ),
        ("contains", "four", "it is Four .", "it is five"),
        ("exact", "four", " Four.", "four apples"),
    ],
)
def test_each_kind_of_check_accepts_and_refuses(kind, answer, right, wrong):
    task = Anchor("a", "p", answer, kind)
    assert task.passes(right) and not task.passes(wrong)


def test_tasks_come_from_a_file_with_a_function_beside_it(tmp_path):
    (tmp_path / "my_checks_zq.py").write_text("def short(prompt, reply): return len(reply) < 5\n")
    rows = [{"id": "a", "prompt": "p", "answer": "my_checks_zq:short", "check": "function"}]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (task,) = load_tasks(tmp_path / "tasks.jsonl")
    assert task.passes("ok") and not task.passes("much too long")
    for content, words in (("", "empty"), ('{"id": "a"}', "line 1: 'prompt' is missing")):
        (tmp_path / "bad.jsonl").write_text(content)
        with pytest.raises(InputError, match=words):
            load_tasks(tmp_path / "bad.jsonl")
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read"):
        load_tasks(tmp_path / "none.jsonl")


def test_figures_of_metrics_are_per_item_and_anchors_the_original_missed_do_not_count():
    def metrics(ok, right):
        replies = (
            ReplyRow("p", "a b c d", 4, True, False, 1.0, ok),
            ReplyRow("p", "a b c e", 4, True, False, 1.0, 1.0),
        )
        anchors = (AnchorRow("x", "", right), AnchorRow("never", "", False))
        return Metrics("t", "", 0.0, "key", (), (), replies, anchors, 1.0)

    original = metrics(1.0, True)
    found = figures(metrics(0.5, False), original)
    assert found["coherence"] == {"p": 0.75} and found["anchors"] == {"x": 0.0} and found["words"] == {"p": 4.0}
    assert figures(original, original, Checked(("x",), ("y",), ()))["anchors"] == {"x": 1.0, "y": 0.0}
    found = decide(Before(figures(original, original), figures(original, original)), found)
    assert found.outcome == "revert" and found.regressed["anchors"] == ("x",)


@pytest.mark.parametrize("name", builtin_traits())
def test_the_halves_of_anchors_are_disjoint_follow_from_the_ids_alone_and_have_every_kind(name):
    tasks = Trait.load(name).anchors
    parted = halves(tasks)
    assert abs(len(parted.counted) - len(parted.replayed)) <= 1
    assert {*parted.counted, *parted.replayed} == set(tasks)
    assert not {task.prompt for task in parted.counted} & {task.prompt for task in parted.replayed}
    other = halves([replace(task, prompt=f"{task.id} ?", answer="x") for task in reversed(tasks)])
    assert {task.id for task in other.counted} == {task.id for task in parted.counted}
    kinds = [{re.sub(r"\d+$", "", task.id) for task in half} for half in (parted.counted, parted.replayed)]
    assert kinds[0] == kinds[1]
    assert parted.not_replayed(tasks) == parted.counted
