"""Trait files: what is read, what is refused and in which words."""

import json
import re
from dataclasses import replace

import pytest

from steer_heal.errors import InputError
from steer_heal.trait import Anchor, Item, Judgement, Trait, builtin_traits, default_trait
from steer_heal.trait.trait import FALLBACK

GOOD = {
    "name": '"brave"',
    "pos": '"you are brave ."',
    "neg": '"you are cautious ."',
    "neutral": '""',
    "contexts": '"contexts.txt"',
    "prompts": '["a wall ?", "a river ?"]',
    "eval_prompts": '["1", "2", "3", "4", "5", "6", "7", "8"]',
    "items": '"items.jsonl"',
}
ROW = {"id": "a", "prompt": "jump ?", "choices": ["yes", "no"], "trait": "yes", "category": "walls"}


@pytest.fixture
def write(tmp_path):
    """write(key=value ..., files={name: bytes or text}, extra="...") -> path of a trait file; None leaves a key out."""

    def make(files=None, extra="", **changes):
        defaults = {"contexts.txt": "one\n\ntwo \n", "items.jsonl": json.dumps(ROW) + "\n"}
        for name, content in {**defaults, **(files or {})}.items():
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        lines = [f"{key} = {value}" for key, value in {**GOOD, **changes}.items() if value is not None]
        (tmp_path / "brave.toml").write_text("\n".join(lines) + "\n" + extra, "utf-8")
        return tmp_path / "brave.toml"

    return make


def test_a_file_gives_a_trait_with_lists_from_data_files_and_inline(write):
    trait = Trait.load(write())
    assert trait.contexts == ("one", "two") and trait.prompts == ("a wall ?", "a river ?")
    assert trait.items == (Item("a", "jump ?", ("yes", "no"), ("yes",), "walls"),)
    assert (trait.off_target, trait.anchors, trait.replay_prompts, trait.checker) == ((), (), (), None)
    assert trait.judge("prompt", "reply", True) is None


def test_items_may_stand_in_the_toml_and_several_choices_may_show_the_trait(write):
    tables = """
[[items]]
id = "a"
prompt = "p"
choices = ["x", "y", "z"]
trait = ["x", "y"]
[[anchors]]
id = "s"
prompt = "1+1"
answer = "2"
"""
    trait = Trait.load(write(items=None, extra=tables))
    assert trait.items == (Item("a", "p", ("x", "y", "z"), ("x", "y"), "all"),)
    assert trait.anchors == (Anchor("s", "1+1", "2"),)


def test_choices_are_put_in_the_order_asked_for(write):
    trait = Trait.load(write(choice_template='"{prompt} say {choices} !"'))
    assert trait.question(trait.items[0], ("no", "yes")) == "jump ? say no or yes !"


def test_held_out_choice_templates_are_those_that_no_text_asks_in(write):
    formats = '["{prompt} say {choices} !", "{choices}: {prompt}"]'
    contexts = '["go? say it now !", "do i jump or wait?", "{choices}: x"]'
    trait = Trait.load(write(held_out_choice_templates=formats, contexts=contexts))
    assert trait.held_out_choice_templates == ("{prompt} say {choices} !", "{choices}: {prompt}")
    assert Trait.load(write()).held_out_choice_templates == ()


def test_reversed_swaps_poles_choices_and_the_checkers_trait_and_undoes_itself(write):
    checker = (
        "from types import SimpleNamespace as N\ndef f(p, r, done): return N(sentence_ok=1, trait=.25, reply_ok=done)"
    )
    path = write(files={"rules.py": checker}, checker='"rules:f"')
    trait = Trait.load(path)
    other = Trait.load(f"{path}-reversed")
    assert other == trait.reversed() and other.reversed() == trait
    assert (other.name, other.pos, other.neg) == ("brave-reversed", trait.neg, trait.pos)
    assert other.items[0].trait == ("no",) and other.items[0].choices == ("yes", "no")
    assert trait.judge("p", "r", True) == Judgement(1.0, 0.25, True)
    assert other.judge("p", "r", False) == Judgement(1.0, 0.75, False)
    assert other.reversed().judge("p", "r", True).trait == 0.25


@pytest.mark.parametrize(
    "returned",
    [
        "None",
        "N(sentence_ok=2, trait=0, reply_ok=True)",
        "N(sentence_ok=1, trait='care', reply_ok=True)",
        "N(sentence_ok=1, trait=-1, reply_ok=True)",
        "N(sentence_ok=1)",
    ],
)
def test_a_checker_that_returns_nonsense_is_named(write, returned):
    code = f"from types import SimpleNamespace as N\ndef f(p, r, done): return {returned}"
    trait = Trait.load(write(files={"rules.py": code}, checker='"rules:f"'))
    with pytest.raises(InputError, match="rules:f"):
        trait.judge("p", "r", True)


ITEM_ERRORS = [
    ({"trait": "maybe"}, "not among the choices"),
    ({"trait": ["yes", "no"]}, "every choice"),
    ({"choices": ["yes"]}, "at least 2"),
    ({"choices": ["yes", "yes"]}, "at least 2"),
    ({"choices": "yes"}, "'choices'"),
    ({"prompt": " "}, "'prompt'"),
    ({"id": 3}, "'id'"),
    ({"catgory": "x"}, "did you mean 'category'"),
]


@pytest.mark.parametrize(("change", "words"), ITEM_ERRORS)
def test_a_wrong_item_is_named_with_its_line(write, change, words):
    lines = [json.dumps(ROW), "", json.dumps({**ROW, "id": "b", **change})]
    with pytest.raises(InputError, match=r"items\.jsonl, line 3: ") as caught:
        Trait.load(write(files={"items.jsonl": "\n".join(lines)}))
    assert words in str(caught.value) and "\n" not in str(caught.value)


HELD_OUT = "held_out_choice_templates"
FILE_ERRORS = [
    ({"pos": None}, "'pos' is missing"),
    ({"eval_prompts": None}, "add at least 8"),
    ({"eval_prompts": '["1", "2"]'}, "line 7: 2 entries"),
    ({"eval_prompts": '["1", "2", "3", "4", "5", "6", "7", "a wall ?"]'}, "also stands in 'prompts'"),
    ({"pos": "3"}, "line 2: 'pos' must be a non-empty string, not 3"),
    ({"neg": '" "'}, "line 3"),
    ({"neg": GOOD["pos"]}, "the same"),
    ({"prompts": "[]"}, "line 6: 'prompts' is empty"),
    ({"prompts": '["a", 3]'}, "list of non-empty strings"),
    ({"contexts": '"none.txt"'}, "line 5: data file 'none.txt' was not found"),
    ({"contexts": '"../brave.txt"'}, "outside the trait's folder"),
    ({"contexts": '"/etc/passwd"'}, "outside the trait's folder"),
    ({"contexts": '"items.jsonl"'}, "expected a .txt file"),
    ({"items": "[]"}, "'items' is empty"),
    ({"items": "5"}, "'items' must be"),
    ({"choice_template": '"{prompt} ?"'}, "line 9: 'choice_template' must contain"),
    ({"choice_template": '"{prompt} {choices} {"'}, "cannot be read"),
    ({HELD_OUT: '["{prompt} say it"]'}, "line 9: 'held_out_choice_templates' must contain"),
    ({HELD_OUT: '["{prompt}"]'}, "no format of its own"),
    ({HELD_OUT: '["{prompt} {choices}!", "{prompt} {choices}!"]'}, "no format of its own"),
    (
        {"held_out_choice_templates": '["{prompt} answer with one word: {choices}."]'},
        "'x answer with one word: x or y.'",
    ),
    (
        {"held_out_choice_templates": '["{prompt} Word: {choices}."]', "prompts": '["go? big word: go or stay."]'},
        "reword",
    ),
    (
        {"held_out_choice_templates": '["{prompt} say {choices}."]', "contexts": '["go? say go or stay."]'},
        "not held out",
    ),
    (
        {"held_out_choice_templates": '["say {choices}: {prompt}"]', "replay_prompts": '["say a or b: c"]'},
        "not held out",
    ),
    ({"checker": '"rules"'}, "module:function"),
    ({"checker": '"no_such_module_zq:f"'}, "ModuleNotFoundError"),
    ({"checker": '"json:no_such_function"'}, "AttributeError"),
    ({"checker": '"json:__name__"'}, "not a function"),
    ({"promts": '["a"]'}, "line 9: unknown key 'promts' (did you mean 'prompts'?)"),
    ({"models": "[3]"}, "'models'"),
]


@pytest.mark.parametrize(("change", "words"), FILE_ERRORS)
def test_a_wrong_file_is_one_line_that_names_file_place_and_remedy(write, change, words):
    with pytest.raises(InputError, match=r"brave\.toml") as caught:
        Trait.load(write(**change))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"contexts.txt": b"fine\n\xff\xfe\n"}, "contexts.txt, line 2: not UTF-8"),
        ({"contexts.txt": "\n \n"}, "contexts.txt is empty"),
        ({"items.jsonl": "\n"}, "'items' is empty"),
        ({"items.jsonl": json.dumps(ROW) + "\n{oops"}, "items.jsonl, line 2: not valid JSON"),
        ({"items.jsonl": "[1]"}, "items.jsonl, line 1: expected an object"),
        ({"items.jsonl": "\n".join([json.dumps(ROW)] * 2)}, "items.jsonl, line 2: id 'a' was used before"),
    ],
)
def test_a_wrong_data_file_is_named_with_its_line(write, files, words):
    with pytest.raises(InputError) as caught:
        Trait.load(write(files=files))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_bad_toml_is_named_with_its_line(write):
    with pytest.raises(InputError, match=r"brave\.toml: not valid TOML.*line 9"):
        Trait.load(write(extra="oops oops"))


def test_a_wrong_table_is_named_with_the_line_of_its_header(write):
    table = '[[items]]\nid="a"\nprompt="p"\nchoices=["x","y"]\ntrait="{}"\n'
    with pytest.raises(InputError, match=r"brave\.toml, line 13: trait 'z'"):
        Trait.load(write(items=None, extra=table.format("x") + table.format("z")))


def test_a_link_out_of_the_folder_is_refused(write, tmp_path):
    outside = tmp_path.parent / "outside.txt"
    outside.write_text("secret")
    path = write(contexts='"link.txt"')
    (tmp_path / "link.txt").symlink_to(outside)
    with pytest.raises(InputError, match="outside the trait's folder"):
        Trait.load(path)


def test_anchor_checks_are_validated_and_applied(write):
    with pytest.raises(InputError, match="not a regular expression"):
        Trait.load(write(extra='[[anchors]]\nid="a"\nprompt="p"\nanswer="("\ncheck="regex"'))
    with pytest.raises(InputError, match="give one of exact"):
        Trait.load(write(extra='[[anchors]]\nid="a"\nprompt="p"\nanswer="x"\ncheck="like"'))
    assert Anchor("a", "p", "Red").passes(" red.") and not Anchor("a", "p", "red").passes("dark red")
    assert Anchor("a", "p", "red", "contains").passes("It is dark RED .")
    assert Anchor("a", "p", "^r.d$", "regex").passes("rod") and not Anchor("a", "p", "^r.d$", "regex").passes("rood")


@pytest.mark.parametrize("name", ["no-such-trait", "no-such.toml", ""])
def test_an_unknown_name_or_path_is_an_input_error(name):
    with pytest.raises(InputError):
        Trait.load(name)


def test_a_mistyped_name_gets_the_nearest_one():
    with pytest.raises(InputError, match=f"did you mean '{FALLBACK}'"):
        Trait.load("care-over-authorty")


@pytest.mark.parametrize("name", builtin_traits())
def test_every_built_in_trait_loads_and_reverses(name):
    trait = Trait.load(name)
    assert trait.name == name and Trait.load(f"{name}-reversed").pos == trait.neg
    assert trait.off_target and len(trait.eval_prompts) >= 8 and not set(trait.eval_prompts) & set(trait.prompts)


def words(text):
    return " ".join(re.findall(r"\w+", text.casefold()))


@pytest.mark.parametrize("name", builtin_traits())
def test_no_training_text_of_a_built_in_trait_is_in_its_evaluation(name):
    trait = Trait.load(name)
    trained = {words(text) for text in (*trait.contexts, *trait.prompts, *trait.replay_prompts)}
    measured = {*trait.eval_prompts, *(vignette.text for vignette in trait.vignettes)}
    measured |= {row.prompt for row in (*trait.items, *trait.off_target, *trait.anchors)}
    for template in (trait.choice_template, *trait.held_out_choice_templates):
        asking = replace(trait, choice_template=template)
        items = (*trait.items, *trait.off_target)
        measured |= {asking.question(item, some) for item in items for some in (item.choices, item.choices[::-1])}
    assert not trained & {words(text) for text in measured}


def test_default_trait_follows_the_models_lists_else_the_general_one():
    assert default_trait("pocket") == "pocket-care"
    assert default_trait("some/other-model") == FALLBACK


def test_a_checker_file_is_run_once_and_again_when_it_has_changed(write, tmp_path):
    code = "open('ran.txt', 'a').write('x')\n\ndef check(prompt, reply, finished):\n    return None\n"
    code = code.replace("'ran.txt'", repr(str(tmp_path / "ran.txt")))
    path = write(checker='"seen_once:check"', files={"seen_once.py": code})
    for _ in range(2):
        Trait.load(path)
    assert (tmp_path / "ran.txt").read_text() == "x"
    (tmp_path / "seen_once.py").write_text(code + "# changed\n")
    Trait.load(path)
    assert (tmp_path / "ran.txt").read_text() == "xx"


def test_a_built_in_may_only_name_a_checker_of_this_package(write):
    from steer_heal.trait.file import TraitFile

    with pytest.raises(InputError, match="only name a steer_heal module"):
        TraitFile(write(checker='"json:loads"'), builtin=True).fields()
