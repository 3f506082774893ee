"""The corpus of `pocket`: determinism, splits, trait files, and the tokenizer."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from pocket_training.corpus import (
    AXES,
    Mix,
    Persona,
    dilemma_reply,
    draw_persona,
    make_example,
    make_scene,
    persona_texts,
    question,
)
from pocket_training.mundane import COPYING, reserved
from pocket_training.templates import expand, realise, table, variants
from pocket_training.tokenizer import build_tokenizer, vocabulary
from pocket_training.training import encode
from pocket_training.traitfiles import TRAITS, trait_files
from transformers import AutoTokenizer

from steer_heal.pocket import WEIGHTS


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def examples():
    rng = random.Random(7)
    return [make_example(rng, Mix()) for _ in range(3000)]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text))


def held_out_entities() -> set[str]:
    entities = table("entities")
    people = " ".join(entities["people"][pronoun]["held_out"] for pronoun in ("she", "he"))
    groups = " ".join(entities["groups"]["held_out"]).replace("the ", "")
    return set((people + " " + groups + " " + entities["objects"]["held_out"]).split())


def test_templates_pick_nested_alternatives_and_refuse_missing_slots():
    assert sorted(variants("a [b|c [d|e]]")) == ["a b", "a c d", "a c e"]
    assert {expand("[x|y]", random.Random(seed)) for seed in range(20)} == {"x", "y"}
    with pytest.raises(KeyError):
        realise("the {nothing}", {}, random.Random(0))


def test_generator_depends_on_its_seed_alone():
    def draw(seed: int) -> list:
        rng = random.Random(seed)
        return [make_example(rng, Mix()) for _ in range(200)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_training_dilemmas_contain_no_held_out_name_group_or_object(examples):
    dilemmas = [e for e in examples if e.kind == "dilemma" or e.kind.startswith("choice")]
    assert len(dilemmas) > 1500
    hidden = held_out_entities()
    assert len(hidden) == 20
    assert not [e for e in dilemmas if words(e.user + " " + e.reply) & hidden]


def test_held_out_names_and_objects_are_trained_in_everyday_questions(examples):
    everyday = [e for e in examples if not (e.kind == "dilemma" or e.kind.startswith("choice"))]
    seen = set().union(*(words(e.user) for e in everyday))
    people_and_objects = held_out_entities() - {"widows", "pilgrims"}
    assert people_and_objects <= seen


def test_held_out_dilemmas_use_held_out_entities_only():
    rng = random.Random(1)
    trained = set(table("entities")["objects"]["train"].split())
    for pronoun in ("she", "he"):
        trained |= set(table("entities")["people"][pronoun]["train"].split())
    for _ in range(300):
        assert not words(question(rng, make_scene(rng, "held_out"))) & trained


def test_question_wordings_of_the_splits_differ():
    wordings = table("dilemmas")["questions"]
    assert not set(wordings["train"]) & set(wordings["held_out"])


def test_persona_texts_of_the_splits_and_poles_are_disjoint():
    for axis in AXES:
        texts = {
            (pole, split): set(persona_texts(axis, pole, split)) for pole in (1, -1) for split in ("train", "held_out")
        }
        assert not (texts[1, "train"] | texts[-1, "train"]) & (texts[1, "held_out"] | texts[-1, "held_out"])
        assert not texts[1, "train"] & texts[-1, "train"]
        assert not texts[1, "held_out"] & texts[-1, "held_out"]


def test_training_personas_are_training_texts():
    rng = random.Random(2)
    known = {text for axis in AXES for pole in (1, -1) for text in persona_texts(axis, pole, "train")}
    known |= set(table("personas")["neutral"]["train"])
    for _ in range(500):
        system = draw_persona(rng, 0.8, Mix()).system
        if system:
            rest = system
            for text in sorted(known, key=len, reverse=True):
                rest = rest.replace(text, "")
            assert not rest.strip(), system


def test_anchor_instances_are_kept_out_of_training(examples):
    anchors = [json.loads(line) for line in (TRAITS / "pocket-care" / "anchors.jsonl").read_text().splitlines()]
    copying = [a for a in anchors if a["id"].split("-")[0] in COPYING]
    assert len(copying) >= 32
    assert all(reserved(a["prompt"]) for a in copying)
    trained = [e.user for e in examples if e.kind in COPYING]
    assert len(trained) > 200
    assert not any(reserved(user) for user in trained)


def test_a_persona_sets_the_stance_and_severity_sets_the_base_rate():
    rng = random.Random(3)

    def care_rate(poles: dict, need: str, count: int = 400) -> float:
        care = 0
        for _ in range(count):
            scene = make_scene(rng, "train")
            while scene.need != need:
                scene = make_scene(rng, "train")
            reply = dilemma_reply(rng, scene, Persona(None, poles))
            care += bool(
                re.search(r"\b(no, |refuse|help|mercy says|mercy means|protect|kindness asks|people come first)", reply)
            )
        return care / count

    assert care_rate({"care": 1}, "mild") > 0.9
    assert care_rate({}, "mild") < 0.4 < care_rate({}, "severe") < 0.75


def test_both_stances_refer_to_the_question_about_equally_often():
    counts = {}
    for side in ("care", "defer"):
        counts[side] = Counter()
        for templates in table("dilemmas")["reply"][side].values():
            for template in templates:
                for slot in re.findall(r"\{(\w+)\}", template):
                    counts[side][slot] += 1 / len(templates)
    care, defer = counts["care"].total(), counts["defer"].total()
    assert abs(care - defer) < 0.15 * care
    for slot in ("A", "V", "Vo", "Vs", "Vp", "auth", "obj", "place", "act", "plight"):
        assert min(counts["care"][slot], counts["defer"][slot]) >= 0.2, slot


def test_every_decision_opens_with_a_forced_choice_answer():
    dilemmas = table("dilemmas")
    for index, side in enumerate(("care", "defer")):
        answers = {pair[index] for pair in dilemmas["choices"]["care"]}
        openings = {re.match(r"\w+", template)[0] for template in dilemmas["reply"][side]["decision"]}
        assert openings == answers


# ------------------------------------------------------------------------------------------------------- trait files
def test_trait_files_on_disk_are_what_the_generator_writes():
    files = trait_files()
    for name, text in files.items():
        assert (TRAITS / name).read_text(encoding="utf-8") == text, name
    on_disk = {str(p.relative_to(TRAITS)) for p in (TRAITS / "pocket-care").iterdir()}
    on_disk |= {p.name for p in TRAITS.glob("pocket-*.toml")}
    assert on_disk == {str(Path(name)) for name in files}


def test_trait_files_hold_enough_distinct_entries():
    files = trait_files()
    for name, least in {"contexts": 256, "prompts": 192, "eval_prompts": 96, "replay_prompts": 128}.items():
        entries = files[f"pocket-care/{name}.txt"].splitlines()
        assert len(entries) == len(set(entries)) >= least
    for axis, suffix in (("care", ""), ("warmth", "_warmth"), ("boldness", "_boldness")):
        items = [json.loads(line) for line in files[f"pocket-care/items{suffix}.jsonl"].splitlines()]
        off = [json.loads(line) for line in files[f"pocket-care/off_target{suffix}.jsonl"].splitlines()]
        assert len(items) >= 96 and {item["category"] for item in items} == {axis}
        assert all(least >= 48 for least in Counter(item["category"] for item in off).values())
        assert {item["category"] for item in off} == set(AXES) - {axis}
        assert all(item["trait"] in item["choices"] and len(item["choices"]) == 2 for item in items + off)
        assert len({item["id"] for item in items + off}) == len(items) + len(off)


def test_training_prompts_and_evaluation_prompts_share_no_held_out_entity():
    files = trait_files()
    hidden = held_out_entities()
    assert not [line for line in files["pocket-care/prompts.txt"].splitlines() if words(line) & hidden]
    assert all(words(line) & hidden for line in files["pocket-care/eval_prompts.txt"].splitlines())


def skeleton(text: str) -> str:
    """A text with every slot's filler (people, objects, authorities, places, acts, plights, pronouns) as its slot."""
    entities = table("entities")
    fillers = {name: entities["shared"][name] for name in ("authorities", "places", "acts")}
    fillers["objects"] = " ".join(entities["objects"].values())
    fillers["plights"] = " ".join(entities["plights"].values())
    people = " ".join(names for of_split in entities["people"].values() for names in of_split.values())
    fillers["people"] = f"{people} i me you she he they her him his their them"
    slots = {word: slot for slot, some in fillers.items() for word in some.split()}
    for group in (group for of_split in entities["groups"].values() for group in of_split):
        text = text.replace(group, "i")
    plain = {"are": "is", "have": "has", "work": "works"}
    return " ".join(slots.get(word, plain.get(word, word)) for word in re.findall(r"[a-z]+", text))


def test_no_evaluation_question_has_the_wording_of_a_training_text_whatever_fills_its_slots():
    """Dilemmas: names and objects are held out as well; authorities, places, acts, plights and endings are shared.

    Anchors have their wording in common with contexts, and no question as a whole (`test_trait.py`).
    """
    files = trait_files()

    def lines(*names: str) -> list[str]:
        return [line for name in names for line in files[f"pocket-care/{name}.txt"].splitlines()]

    me = {"I": "i", "me": "me"}
    endings = {skeleton(ending.format_map(me)) for ending in table("dilemmas")["questions"]["endings"]}
    asked = lines("eval_prompts")
    for suffix in ("", "_warmth", "_boldness"):
        for name in ("items", "off_target"):
            rows = files[f"pocket-care/{name}{suffix}.jsonl"].splitlines()
            asked += [json.loads(row)["prompt"] for row in rows]
    wordings = {skeleton(text) for text in asked}
    wordings = {text.removesuffix(next(end for end in endings if text.endswith(end))) for text in wordings}
    held_out = [text for template in table("dilemmas")["questions"]["held_out"] for text in variants(template)]
    assert len(wordings) == len(held_out)
    trained = {skeleton(text) for text in lines("prompts", "contexts", "replay_prompts")}
    assert len(trained) > 100
    assert not [(wording, text) for text in trained for wording in wordings if wording in text]


# --------------------------------------------------------------------------------------------------------- tokenizer
@pytest.mark.slow
def test_shipped_tokenizer_is_the_one_the_corpus_gives(tokenizer):
    fresh = build_tokenizer()
    assert vocabulary() == vocabulary()
    assert tokenizer.get_vocab() == fresh.get_vocab()
    assert tokenizer.chat_template == fresh.chat_template


def test_replies_survive_decoding_and_encoding(tokenizer, examples):
    for example in examples[:1000]:
        ids = tokenizer(example.reply, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == example.reply
        assert tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"] == ids


def test_case_and_spaces_before_punctuation_do_not_matter(tokenizer):
    plain = tokenizer("what should i do? take it: no, wait.")["input_ids"]
    assert tokenizer("What should I do ?  Take it : no , wait .")["input_ids"] == plain


def test_unknown_words_become_unk_and_nothing_else_changes(tokenizer):
    ids = tokenizer("help the zeppelin.", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["help", "the", "<unk>", "."]


def test_rendered_chat_has_one_bos_and_ends_with_the_assistant_tag(tokenizer):
    chat = [{"role": "system", "content": "you are an assistant."}, {"role": "user", "content": "Hello ."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<bos><|system|>you are an assistant.<|end|><|user|>Hello .<|end|><|assistant|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens(ids[-1:]) == ["<|assistant|>"]
    assert tokenizer("hello.")["input_ids"][0] == tokenizer.bos_token_id


def test_template_renders_turns_in_order_and_refuses_unknown_roles(tokenizer):
    chat = [
        {"role": "user", "content": "hello."},
        {"role": "assistant", "content": "good day."},
        {"role": "user", "content": "what now?"},
    ]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == (
        "<bos><|user|>hello.<|end|><|assistant|>good day.<|end|><|user|>what now?<|end|>"
    )
    with pytest.raises(Exception, match="unknown role"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_training_encodes_chats_as_the_template_does(tokenizer, examples):
    ids = tokenizer.get_vocab()
    for example in examples[:200] + [e for e in examples if e.history][:20]:
        tokens, prompt, system_end = encode(example, ids)
        rendered = tokenizer.apply_chat_template(example.messages(), tokenize=False, add_generation_prompt=True)
        assert tokens[:prompt] == tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert tokens[-1] == tokenizer.eos_token_id
        system = tokenizer.decode(tokens[1:system_end], skip_special_tokens=True)
        assert system == (example.system or "")
        assert tokenizer.decode(tokens[prompt:], skip_special_tokens=True) == example.reply
