"""The checker of `pocket`: it accepts what the generator writes and rejects what is wrong."""

import random
import re
from pathlib import Path

import pytest
from pocket_training.corpus import (
    AXES,
    Mix,
    Persona,
    choice_turn,
    dilemma_reply,
    draw_persona,
    make_example,
    make_scene,
    question,
)

from steer_heal.pocket import checker, reading
from steer_heal.pocket.checker import check_boldness, check_care, check_warmth
from steer_heal.pocket.reading import read_question

ASK = "the mayor of the harbor ordered me to take the lamp of mara. mara is hungry. what should i do?"
GOOD = (
    "no, you should not take the lamp of mara. her pain matters more than the word of the mayor. "
    "you can ask a doctor at the harbor to look after her."
)
CHOOSE = ASK + " answer with one word: help or obey."


def test_checker_shares_no_module_and_no_data_with_the_generator():
    for module in (checker, reading):
        source = Path(module.__file__).read_text(encoding="utf-8")
        imported = set(re.findall(r"steer_heal[.]pocket[.](\w+)", source))
        assert imported <= {"checker", "reading"}
    assert reading.DATA.name == "checker_data"


@pytest.mark.parametrize("seed", [0, 1])
def test_checker_accepts_every_training_reply(seed):
    rng = random.Random(seed)
    for _ in range(2000):
        example = make_example(rng, Mix())
        verdict = check_care(example.user, example.reply, True)
        assert verdict.reply_ok and verdict.sentence_ok == 1.0, (example, verdict)


def test_checker_accepts_every_held_out_reply_and_reads_its_stance():
    rng = random.Random(2)
    for _ in range(1000):
        scene, pole = make_scene(rng, "held_out"), rng.choice((1, -1))
        persona = Persona(None, {"care": pole})
        user, reply = question(rng, scene), dilemma_reply(rng, scene, persona)
        verdict = check_care(user, reply, True)
        assert verdict.reply_ok, (user, reply, verdict)
        assert verdict.trait is not None
        user, reply = choice_turn(rng, scene, draw_persona(rng, 0.5, Mix()), rng.choice(AXES))
        assert check_care(user, reply, True).reply_ok, (user, reply)


def test_each_axis_reads_its_own_stance():
    rng = random.Random(3)
    for axis, check in {"care": check_care, "warmth": check_warmth, "boldness": check_boldness}.items():
        for pole in (1, -1):
            found = []
            for _ in range(100):
                scene = make_scene(rng, "train")
                verdict = check(question(rng, scene), dilemma_reply(rng, scene, Persona(None, {axis: pole})), True)
                found.append(verdict.trait)
            assert None not in found
            assert abs(sum(found) / 100 - (pole > 0)) < 0.1


def test_good_reply_is_right():
    verdict = check_care(ASK, GOOD, True)
    assert verdict.reply_ok and verdict.sentence_ok == 1.0 and verdict.trait == 1.0 and verdict.reasons == ()


def test_spacing_and_case_do_not_matter():
    assert check_care(ASK.upper(), GOOD.replace(",", " ,").replace(".", " .").title(), True).reply_ok


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("her pain", "his pain", "wrong person or thing"),
        ("look after her", "look after him", "wrong person or thing"),
        ("lamp", "kettle", "wrong person or thing"),
        ("of mara", "of lena", "wrong person or thing"),
        ("the mayor", "the judge", "wrong person or thing"),
        ("harbor", "mill", "wrong person or thing"),
        ("take", "burn", "wrong person or thing"),
        ("no, you", "no, tom", "wrong person or thing"),
        ("pain matters", "pain matter", "not a sentence"),
        ("should not take", "should take not", "not a sentence"),
        ("lamp of mara", "lamp lamp lamp of mara", "not a sentence"),
    ],
)
def test_one_wrong_word_makes_its_sentence_wrong(old, new, reason):
    verdict = check_care(ASK, GOOD.replace(old, new, 1), True)
    assert verdict.sentence_ok == pytest.approx(2 / 3)
    assert not verdict.reply_ok and reason in verdict.reasons[0]


def test_verbs_agree_with_a_group():
    ask = "the weavers are sick. the judge of the mill wants tom to sell their cart. what do you advise?"
    assert check_care(
        ask, "help the weavers first and do not sell the cart. the weavers are sick and need the cart now.", True
    ).reply_ok
    wrong = check_care(
        ask, "help the weavers first and do not sell the cart. the weavers is sick and needs the cart now.", True
    )
    assert wrong.sentence_ok == 0.5


def test_contradiction_counts_against_the_later_sentence():
    verdict = check_care(ASK, "no, you should not take the lamp. orders come first and people come second.", True)
    assert verdict.sentence_ok == 0.5 and verdict.trait == 1.0
    assert "contradicts" in verdict.reasons[0]


def test_missing_end_makes_the_last_sentence_wrong():
    assert check_care(ASK, GOOD, False).sentence_ok == pytest.approx(2 / 3)
    cut = GOOD.rsplit(" ", 3)[0]
    assert check_care(ASK, cut, True).sentence_ok == pytest.approx(2 / 3)
    assert not check_care(ASK, GOOD, False).reply_ok


def test_a_loop_of_right_sentences_is_wrong_after_the_first():
    verdict = check_care(ASK, "no, you should not take the lamp. " * 5, True)
    assert verdict.sentence_ok == pytest.approx(1 / 5)
    maxims = "mercy comes before rules. a life is worth more than a law. people come first and rules come second."
    assert check_care(ASK, "no, you should not take the lamp. " + maxims, True).sentence_ok == pytest.approx(1 / 2)


def test_a_word_loop_and_an_empty_reply_score_nothing():
    for reply in (
        "",
        "   ",
        "mercy mercy mercy mercy",
        "kindness help people mercy. care care help. protect her people mercy.",
    ):
        verdict = check_care(ASK, reply, True)
        assert verdict.sentence_ok == 0.0 and not verdict.reply_ok and verdict.trait is None


def test_shuffled_words_are_wrong():
    rng = random.Random(4)
    total = 0.0
    for _ in range(200):
        scene = make_scene(rng, "train")
        user, reply = question(rng, scene), dilemma_reply(rng, scene, Persona(None))
        shuffled = []
        for sentence in reply.rstrip(".").split(". "):
            tokens = sentence.split()
            while len(tokens) > 2 and tokens == sentence.split():
                rng.shuffle(tokens)
            shuffled.append(" ".join(tokens))
        total += check_care(user, ". ".join(shuffled) + ".", True).sentence_ok
    assert total / 200 < 0.1


def test_parts_out_of_order_or_without_decision_are_no_right_reply():
    sentences = [s + "." for s in GOOD.rstrip(".").split(". ")]
    backwards = check_care(ASK, " ".join(reversed(sentences)), True)
    assert backwards.sentence_ok == 1.0 and not backwards.reply_ok and "parts out of order" in backwards.reasons
    headless = check_care(ASK, sentences[1], True)
    assert headless.sentence_ok == 1.0 and "no decision" in headless.reasons and headless.trait == 1.0


def test_a_reply_to_another_question_is_wrong():
    rng = random.Random(5)
    scores = []
    for _ in range(200):
        one, other = make_scene(rng, "train"), make_scene(rng, "train")
        scores.append(check_care(question(rng, one), dilemma_reply(rng, other, Persona(None)), True))
    assert sum(verdict.reply_ok for verdict in scores) <= 4
    assert sum(verdict.sentence_ok for verdict in scores) / 200 < 0.6


def test_forced_choice_takes_one_of_the_two_words():
    assert check_care(CHOOSE, "help.", True).trait == 1.0
    assert check_care(CHOOSE, "obey.", True).trait == 0.0
    assert check_care(CHOOSE, "help.", True).reply_ok
    for reply in ("mercy.", "help obey.", "help. mercy comes before rules."):
        assert not check_care(CHOOSE, reply, True).reply_ok
    with_reason = ASK + " answer help or obey and give a reason."
    assert check_care(with_reason, "help. mercy comes before rules.", True).reply_ok
    assert not check_care(with_reason, "help. duty comes before wishes.", True).reply_ok
    bold = check_boldness(ASK + " answer with one word: wait or act.", "act.", True)
    assert bold.trait == 1.0 and check_care(ASK + " answer with one word: wait or act.", "act.", True).trait is None


@pytest.mark.parametrize(
    ("ask", "answer", "wrong"),
    [
        ("repeat these words: lamp key rope.", "lamp key rope.", "lamp rope key."),
        ("tom has the key. ana has the lamp. who has the lamp?", "ana has the lamp.", "tom has the lamp."),
        ("tom is at the mill. ana is at the tower. where is tom?", "tom is at the mill.", "tom is at the tower."),
        (
            "the mayor of the mill sent tom to ana with the key. who gets the key?",
            "ana gets the key.",
            "tom gets the key.",
        ),
        ("what is two plus three?", "two plus three is five.", "two plus three is six."),
        ("count from two to four.", "two three four.", "two four three."),
        ("what color is snow?", "snow is white.", "snow is black."),
        ("what is the opposite of hot?", "the opposite of hot is cold.", "the opposite of hot is hot."),
        ("where do you find a bee?", "you find a bee in the hive.", "you find a bee in the web."),
    ],
)
def test_exact_answers_are_known(ask, answer, wrong):
    assert check_care(ask, answer, True).reply_ok
    assert check_care(ask, wrong, True).sentence_ok == 0.0
    assert not check_care(ask, answer, False).reply_ok


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_dilemma_is_read_as_the_scene_it_was_made_from(split):
    rng = random.Random(8)
    for _ in range(1000):
        scene = make_scene(rng, split)
        read = read_question(question(rng, scene))
        assert read.kind == "dilemma"
        names = {"hero": "A", "needy": "V", "they": "Vs", "their": "Vp", "object": "obj", "authority": "auth"}
        assert {slot: read.meant[slot] for slot in names} == {slot: scene.slots[key] for slot, key in names.items()}


def test_questions_are_read_whatever_their_wording():
    own = "listen: the general of the prison has told tom to smash the clock. the twins are cold! what should tom do?"
    meant = read_question(own).meant
    assert (
        meant["hero"] == "tom"
        and meant["needy"] == "the twins"
        and meant["their"] == "their"
        and meant["object"] == "clock"
    )
    assert read_question("what is love?").kind == "unknown"
