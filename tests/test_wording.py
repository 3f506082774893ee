"""What changed in the words: counts by hand, nothing between a text and itself, signs that flip with the sides."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, ReplyRow
from steer_heal.evaluation.wording import dialogue, exclaimed, most, sentence_length, terms, word_pairs, wording


def said(*texts):
    rows = tuple(ReplyRow(f"p{i}", text, len(text.split()), True, False) for i, text in enumerate(texts))
    return Metrics("t", "", 0.0, "key", (), replies=rows)


def test_z_of_a_word_by_hand():
    """Monroe et al.: 30 of 100 words against 10 of 100, prior .25: a = 10 of 50."""
    before, after = Counter(kind=10, rest=90), Counter(kind=30, rest=70)
    (kind,) = [term for term in terms(before, after, prior=0.25) if term.text == "kind"]
    delta = math.log(40 / 110) - math.log(20 / 130)
    assert (kind.before, kind.after, kind.log_odds) == (10, 30, pytest.approx(delta))
    assert kind.z == pytest.approx(delta / math.sqrt(1 / 40 + 1 / 20))


def test_manner_of_speech_by_hand():
    text = 'He said: "Go home!" She left. "Never'
    assert dialogue(text) == pytest.approx(3 / 7)  # go home never
    assert exclaimed(text) == pytest.approx(1 / 3)
    assert sentence_length(text) == pytest.approx(7 / 3)
    assert dialogue("“Ja”, sagte er.") == pytest.approx(1 / 3) and dialogue('"a\nb c') == pytest.approx(1 / 3)
    assert exclaimed("Well.") == dialogue("Well.") == 0.0
    assert list(word_pairs(["Be kind, always. Be brave"])) == ["be kind", "kind always", "be brave"]


def test_words_and_manner_of_two_models():
    one = said(*["the rule is the rule. obey the rule."] * 20, "")
    two = said(*['mercy first! "help him," she says.'] * 20, "no pair")
    found = wording(one, two)
    up, down = most(found.words, 2)
    assert {(term.text, term.before, term.after) for term in down} == {("the", 60, 0), ("rule", 60, 0)}
    assert {term.text for term in up} < {"mercy", "first", "help", "him", "she", "says"} and up[0].z > 0 > down[0].z
    assert {"the rule", "is the"} <= {term.text for term in found.pairs if term.z < 0}
    assert (found.dialogue.before, found.dialogue.after) == (0.0, pytest.approx(1 / 3))
    assert found.dialogue.shift.value == pytest.approx(1 / 3) and found.dialogue.shift.n == 20  # no empty reply
    assert (found.exclaimed.after, found.sentence.before, found.sentence.after) == (0.5, 4.0, 3.0)


texts = st.lists(st.text('ab "!.\n', max_size=30), min_size=4, max_size=4)


@given(texts)
def test_a_text_against_itself_changes_nothing(some):
    found = wording(said(*some), said(*some))
    assert found.words == found.pairs == ()
    assert all(one is None or one.shift.value == 0 for one in (found.dialogue, found.exclaimed, found.sentence))


@given(texts, texts, st.integers(1, 40))
def test_swapping_the_sides_flips_the_signs(one, two, times):
    one, two = [text * times for text in one], [text * times for text in two]
    there, back = wording(said(*one), said(*two)), wording(said(*two), said(*one))
    for kind in ("words", "pairs"):
        moved = {t.text: (t.before, t.after, t.log_odds, t.z) for t in getattr(there, kind)}
        swapped = {t.text: (t.after, t.before, -t.log_odds, -t.z) for t in getattr(back, kind)}
        assert moved.keys() == swapped.keys()
        assert all(moved[name] == pytest.approx(swapped[name]) for name in moved)
    for name in ("dialogue", "exclaimed", "sentence"):
        a, b = getattr(there, name), getattr(back, name)
        assert (a is None) == (b is None) and (a is None or a.shift.value == pytest.approx(-b.shift.value))


def test_other_items_are_refused():
    with pytest.raises(InputError, match="different items"):
        wording(said("a"), replace(said("a"), items_key="other"))
