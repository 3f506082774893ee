"""The pages of a run: everything is there, nothing comes from outside, texts stay texts, and what they say works."""

import base64
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from resume_runs import config
from rich.console import Console

import steer_heal
from steer_heal.commands.finished import figures
from steer_heal.commands.main import main
from steer_heal.errors import InputError, NotWrittenError
from steer_heal.evaluation import compare
from steer_heal.evaluation.shift import coherence
from steer_heal.evaluation.verdict import VERDICTS
from steer_heal.evaluation.wording import most, wording
from steer_heal.ledger import Ledger
from steer_heal.loop import gate
from steer_heal.loop.rounds import run_rounds
from steer_heal.report import html, markdown_table, plots, summary, write_pages
from steer_heal.report.expectations import judged
from steer_heal.report.pages.facts import cards, options
from steer_heal.report.pages.filtering import borderline, filtered_rounds
from steer_heal.report.pages.folder import base_of, measured
from steer_heal.report.pages.handover import snippets
from steer_heal.report.pages.replies import diary, side_by_side
from steer_heal.report.pages.summary import quoted
from steer_heal.report.pages.writing import result_row
from steer_heal.report.plots.course import Course, Span, Step, levels, shifts
from steer_heal.report.plots.drawing import DARK, LIGHT, Panel, darkened, png, svg
from steer_heal.report.plots.maps import apart, numbered
from steer_heal.report.plots.trajectory import drawer
from steer_heal.report.screen import Screen
from steer_heal.report.tables import NO_CHECKER, TONES, state_table

SECTIONS = ("short", "trajectory", "trait_coherence", "off_target", "should", "rounds", "dose", "filter", "replies")
SECTIONS += ("diary", "made", "load")
PNGS = ("trajectory.png", "trait_coherence.png", "off_target.png", "dose.png")
NASTY = '</td></details><script>alert("x")</script> <img src=x onerror=alert(1)> & `$\\frac{1}{0}$` {{ 7*7 }} | **b**'


class Page(HTMLParser):
    """What a browser sees: tags with their attributes, texts, and the parts of the page by id."""

    EMPTY = ("meta", "img", "source", "input", "br", "line", "path", "circle", "rect")

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.open, self.ids, self.unclosed = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            if not self.open or self.open[-1] != tag:
                self.unclosed.append((tag, self.open[-3:]))
            else:
                self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def folder(fast_run):
    """A fast run of two rounds, with off-target categories and vignettes and without a checker."""
    return fast_run


@pytest.fixture
def copy(folder, tmp_path):
    """The run in a place of its own, to be changed."""
    return shutil.copytree(folder, tmp_path / "run")


def edited(path, change):
    """Change a JSON file in place."""
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


def test_every_part_is_on_the_page_in_order_and_no_tag_is_left_open(folder):
    page = Page((folder / "report.html").read_text("utf-8"))
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    assert page.open == [] and page.unclosed == []
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links and all(link.startswith("#") and link[1:] in page.ids for link in links)


def standing(copy):
    """The run as if its last round stood."""
    lines = (copy / "events.jsonl").read_text("utf-8").splitlines()
    end = json.loads(lines[-1]) | {"best_round": 1}
    (copy / "events.jsonl").write_text("\n".join([*lines[:-1], json.dumps(end)]) + "\n", "utf-8")
    return Ledger.open(copy)


def test_pages_say_what_changed_in_the_words(copy):
    ledger = standing(copy)
    brave = {"text": "Be brave_! She said: be brave_."}
    edited(copy / "rounds" / "01" / "metrics.json", lambda d: [row.update(brave) for row in d["healed"]["replies"]])
    found = wording(base_of(ledger), measured(ledger, 1).healed)
    page, text = html(ledger), summary(ledger)
    assert page.count("What changed in the words") == text.count("## What changed in the words") == 1
    rows = [f"{term.before} -> {term.after} | {term.z:+.1f}" for side in most(found.words, 6) for term in side]
    assert all(row in text for row in rows) and "| brave_ | 0 -> 16 |" in text and "<td>brave_</td>" in page
    assert f"| words per sentence | {found.sentence.before:.2f} | {found.sentence.after:.2f} |" in text


def test_without_a_checker_it_is_said_and_the_coherence_of_the_gate_is_in_every_table(copy):
    ledger = standing(copy)
    base, healed = base_of(ledger), measured(ledger, 1).healed
    columns, rows = state_table([("base", ledger.events("baseline")[0]["base"])])
    told = dict(zip(columns, rows[0], strict=True))
    assert told["coherent"] == f"{coherence(base, base):.3f}" and "sentence ok" not in told
    assert result_row(ledger)["coherence_best"] == coherence(healed, base)
    assert figures(ledger)["coherence - base"].startswith(f"{compare(base, healed).coherence.value:+.3f}")
    assert NO_CHECKER in html(ledger) and NO_CHECKER in summary(ledger)
    console = Console(file=io.StringIO(), width=80)
    screen = Screen(console)
    for event in ledger.events():
        screen.show(event, ledger.events(), [])
    shown = console.file.getvalue()
    assert " ".join(shown.split()).count(NO_CHECKER) == 1 and " coherent " in shown
    assert "said more" not in shown and all(len(line) <= 80 for line in shown.splitlines() if " coherent " in line)


def test_the_verdict_comes_before_everything_else(folder):
    page = Page((folder / "report.html").read_text("utf-8").split("<body>")[1])
    words = [text.strip() for text in page.texts if text.strip()]
    assert words[:2] == ["Verdict", Ledger.open(folder).events("end")[0]["verdict"]]


def test_nothing_is_loaded_from_anywhere(folder):
    page = (folder / "report.html").read_text("utf-8")
    for tag, attrs in Page(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "srcset", "href"):
            assert attrs.get(name, "#").startswith(("data:image/svg+xml;base64,", "#")), (tag, attrs[name][:60])
    assert "@import" not in page and "url(" not in page and not re.search(r"https?://", page)


def test_pictures_load_nothing_and_are_drawn_light_and_dark(folder):
    page = (folder / "report.html").read_text("utf-8")
    light, dark = ([a[name] for tag, a in Page(page).tags if tag == which] for which, name in
                   (("img", "src"), ("source", "srcset")))  # fmt: skip
    panels = [panel for plot in plots(Ledger.open(folder)) for panel in plot.panels]
    assert len(light) == len(dark) == len(panels) > 6
    for one, other in zip(light, dark, strict=True):
        one, other = (base64.b64decode(text.split(",")[1]).decode() for text in (one, other))
        assert LIGHT.text in one and LIGHT.text not in other and DARK.text in other
        assert "<script" not in one and not re.search(r'(?:href|src)="(?!#)', one)
    assert all(attrs["alt"] for tag, attrs in Page(page).tags if tag == "img")


def test_only_the_pages_own_script_may_run(folder):
    page = (folder / "report.html").read_text("utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for t, a in Page(page).tags if t == "meta" and "Security" in a.get("http-equiv", "")]
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_texts_of_models_stay_texts_wherever_they_are_shown(copy, undrawn):
    def reply(data):
        for state in ("steered", "healed"):
            for row in data[state]["replies"]:
                row["text"] = row["prompt"] = NASTY

    for path in (copy / "rounds").glob("*/metrics.json"):
        edited(path, reply)
    edited(copy / "base.json", lambda data: [row.update(text=NASTY, prompt=NASTY) for row in data["replies"]])
    for path in (copy / "rounds").glob("*/completions.jsonl"):
        rows = [json.loads(line) | {"text": NASTY, "prompt": NASTY} for line in path.read_text("utf-8").splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    ledger = Ledger.open(copy)
    write_pages(ledger)
    text = (copy / "report.html").read_text("utf-8")
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1 and page.open == [] and page.unclosed == []
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert NASTY in "".join(page.texts) and "{{ 7*7 }}" in text
    pasted = (copy / "summary.md").read_text("utf-8")
    assert "\\<script\\>" in pasted and not re.search(r"(?<!\\)<(?:script|img|/td)", pasted)


def test_a_name_with_signs_of_mathematics_or_markup_is_drawn_as_it_is():
    panel = Panel("a $\\frac$ <b>", "x", "y & z", "", lambda axis, theme: axis.plot([0, 1], [0, 1]))
    drawn = svg(panel)
    assert "$\\frac$ &lt;b&gt;" in drawn and "y &amp; z" in drawn
    assert drawn == svg(panel)
    assert darkened(LIGHT.healed) == DARK.healed and len(set(LIGHT.colours.values())) == len(LIGHT.colours)


def test_every_held_out_prompt_is_there_with_what_each_model_said_for_the_search(folder):
    ledger = Ledger.open(folder)
    base = json.loads((folder / "base.json").read_text())["replies"]
    best = ledger.events("end")[0]["best_round"]
    shown = side_by_side(ledger)
    rounds = measured(ledger, 1 if best is None else best)
    assert [p.prompt for p in shown.prompts] == [row["prompt"] for row in base] and len(base) == 8
    for i, prompt in enumerate(shown.prompts):
        said = [reply.row.text for reply in prompt.replies]
        assert said == [base[i]["text"], rounds.steered.replies[i].text, rounds.healed.replies[i].text]
        assert [reply.kind for reply in prompt.replies] == ["base", "steered", "healed"]
    page = Page((folder / "report.html").read_text("utf-8"))
    assert sum(tag == "details" and attrs.get("class") == "prompt" for tag, attrs in page.tags) == len(base)
    assert {"find", "found", "all"} <= set(page.ids)
    (tools,) = [attrs for _, attrs in page.tags if attrs.get("class") == "tools"]
    assert "hidden" in tools  # without its script the page shows no box that does nothing


def test_the_diary_asks_every_round_the_same_question(folder):
    ledger = Ledger.open(folder)
    found = diary(ledger)
    assert found.prompt == measured(ledger, 0).steered.replies[0].prompt
    assert [entry.number for entry in found.entries] == [0, 1]
    for entry in found.entries:
        shown = measured(ledger, entry.number)
        assert [r.row.text for r in entry.replies] == [shown.steered.replies[0].text, shown.healed.replies[0].text]
        assert [r.kind for r in entry.replies] == ["steered", "healed"]


def test_the_filters_counts_are_those_of_the_walk_and_thresholds_show_both_sides(folder):
    ledger = Ledger.open(folder)
    walks = {e["round"]: e for e in ledger.events("walk")}
    limits = ledger.events("calibrate")[0]["limits"]
    for found in filtered_rounds(ledger):
        walk = walks[found.number]
        assert (found.report.kept, found.report.n) == (walk["kept"], walk["sampled"])
        assert {g.name: g.count for g in found.gates if g.count} == walk["flagged"]
        assert [(dose, pytest.approx(kept / n)) for dose, (kept, n) in found.report.by_dose.items()] == [
            (d["dose"], d["kept"]) for d in walk["per_dose"]
        ]
        assert all(g.example.flagged_by == g.name and g.reason for g in found.gates if g.count)
        assert (found.drawn or not walk["flagged"]) and found.quiet
        for threshold in found.drawn:
            rule, outside = threshold.rule, threshold.outside.scores[threshold.rule.figure]
            assert threshold.limit == pytest.approx(limits[rule.key])
            assert rule.breach(outside, threshold.limit) and threshold.outside.flagged_by
            assert threshold.inside is None or not threshold.inside.flagged_by


def test_every_should_is_in_the_summary_and_on_the_page_with_what_was_seen(folder):
    founds = judged(Ledger.open(folder).events())
    told, page = (folder / "summary.md").read_text("utf-8"), Page((folder / "report.html").read_text("utf-8"))
    shown = "".join(page.texts)
    assert {found.holds for found in founds} == {True, False}
    for found in founds:
        assert found.of.should in told and found.of.should in shown
        if not found.holds:
            assert found.seen in told and f"It means: {found.of.meaning}" in told and found.seen in shown


def test_readers_see_the_words_of_the_tables_and_the_events_keep_their_own(folder):
    reasons = [reason for e in Ledger.open(folder).events("gate") for reason in e["reasons"]]
    assert any(reason.startswith("distinct4") for reason in reasons)
    for name in ("summary.md", "report.html"):
        text = (folder / name).read_text("utf-8")
        assert "distinct4" not in text and "token_entropy" not in text and "4-grams" in text


def test_figures_by_round_are_base_plus_the_recorded_shift_with_its_interval(folder):
    ledger = Ledger.open(folder)
    course = levels(ledger, "log_odds", lambda s: s["log_odds"])
    base = ledger.events("baseline")[0]["base"]["log_odds"]
    for step, e in zip(course.steps, ledger.events("evaluate"), strict=True):
        assert step.healed.value == pytest.approx(e["healed"]["log_odds"])
        assert step.steered.value == pytest.approx(e["steered"]["log_odds"])
        assert step.healed.low == pytest.approx(base + e["shift"]["log_odds"]["low"])
    assert course.other("prompted").value == pytest.approx(ledger.events("baseline")[0]["prompted"]["log_odds"])
    assert levels(ledger, "free_trait") is None  # no checker
    assert shifts(ledger, lambda s: s["coherence"]).known


def test_the_path_of_the_healed_model_leaves_out_rounds_that_were_reverted():
    steps = (Step(0, None, Span(1.0), True, False), Step(1, None, Span(9.0), False, False),
             Step(2, None, Span(2.0, 1.5, 2.5), True, True))  # fmt: skip
    course = Course(0.0, steps, ())
    assert [(n, s.value) for n, s in course.standing] == [(-1, 0.0), (0, 1.0), (2, 2.0)]
    assert Span(1.0).arms == (0.0, 0.0) and steps[2].healed.arms == (0.5, 0.5)


def test_plots_lie_beside_the_summary_that_names_them(folder):
    text = (folder / "summary.md").read_text("utf-8")
    assert sorted(path.name for path in folder.glob("*.png")) == sorted(PNGS)
    assert re.findall(r"!\[[^\]]*\]\((.*?)\)", text) == list(PNGS)
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in PNGS)
    assert text.startswith(f"# {Ledger.open(folder).events('end')[0]['verdict']}\n")


def test_the_same_folder_gives_the_same_pages(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    written = write_pages(Ledger.open(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert sorted(path.name for path in written) == sorted(("report.html", "summary.md", *PNGS))


@pytest.mark.parametrize("name", ["report.html", "summary.md", "trajectory.png"])
def test_a_page_that_cannot_be_renamed_into_place_leaves_the_old_one(copy, undrawn, monkeypatch, name):
    replace = os.replace

    def fails(source, target):
        if str(target).endswith(name):
            raise OSError(28, "No space left on device")
        replace(source, target)

    (copy / name).write_bytes(b"old")
    monkeypatch.setattr("steer_heal.ledger.files.os.replace", fails)
    with pytest.raises(NotWrittenError, match="No space left"):
        write_pages(Ledger.open(copy))
    assert (copy / name).read_bytes() == b"old"


def test_what_a_round_lacks_is_named_in_one_line(copy, capsys):
    (copy / "rounds" / "01" / "completions.jsonl").unlink()
    assert main(["report", str(copy)]) == 2
    assert "01/completions.jsonl" in capsys.readouterr().err
    (copy / "rounds" / "00" / "metrics.json").write_text('{"steered": {}}')
    with pytest.raises(InputError, match=r"metrics\.json: damaged"):
        measured(Ledger.open(copy), 0)
    shutil.rmtree(copy / "rounds" / "00")
    with pytest.raises(InputError, match=r"rounds/00 is missing"):
        html(Ledger.open(copy))


def run_lines(code):
    """Run lines as a reader would; returns the names they leave."""
    names = {}
    exec(compile(code, "snippet", "exec"), names)
    return names


def logits(model):
    return model(torch.arange(9)[None]).logits.detach()


@pytest.fixture
def kept(copy):
    """The run as if its first round were the result, which two rounds of noise need not come to."""
    log = copy / "events.jsonl"
    events = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    events[-1] |= {"best_round": 0, "folded": [0]}
    log.write_text("".join(json.dumps(event) + "\n" for event in events), "utf-8")
    return Ledger.open(copy)


def test_what_the_page_says_about_loading_works(kept, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    python, export, peft, chat = snippets(kept)
    page = html(kept)
    assert all(line in "".join(Page(page).texts) for s in (python, export, peft, chat) for line in s.code.split("\n"))
    command, *words = shlex.split(export.code)
    assert command == "steer-heal" and words[1] == str(kept.folder.resolve()) and main([*words, "--scales", "1"]) == 0
    capsys.readouterr()
    names = run_lines(python.code)
    assert capsys.readouterr().out.strip() == names["reply"].text.strip() != ""
    student, adapted = logits(names["lm"].model), logits(run_lines(peft.code)["model"])
    original = logits(steer_heal.load("tiny-random").model)
    assert torch.allclose(student, adapted, atol=1e-4) and not torch.allclose(student, original, atol=1e-2)
    command, *words = shlex.split(chat.code)
    assert command == "steer-heal" and main([*words, "--max-new-tokens", "2"]) == 0


def test_a_prompt_with_quotes_cannot_become_code(kept):
    prompt = "'); raise SystemExit('hit') #\n\"\"\" $(touch x) `y`"
    edited(kept.folder / "base.json", lambda data: [row.update(prompt=prompt) for row in data["replies"]])
    python, _, _, chat = snippets(kept)
    assert compile(python.code, "snippet", "exec") and repr(prompt) in python.code
    assert subprocess.run(["bash", "-c", f"printf %s {chat.code.split('--prompt ')[1]}"], capture_output=True,
                          text=True, check=True).stdout == prompt  # fmt: skip


def test_cards_show_what_moved_from_base_to_the_result(kept):
    found = {card.label: card for card in cards(kept)}
    e = kept.events("evaluate")[0]
    trait = found["Trait, log-odds (nats)"]
    assert (trait.before, trait.after) == tuple(f"{e[s]['log_odds']:+.2f}" for s in ("base", "healed"))
    off = e["shift"]["off_target"]
    most = max(off, key=lambda name: abs(off[name]["value"]))
    assert f"Off target: {most} (nats)" in found and found["Coherence"].shift != "-"


def test_what_should_not_have_moved_and_did_is_no_good_news(copy):
    ledger = Ledger.open(copy)
    event = ledger.events("evaluate")[0]
    end = ledger.events("end")[0] | {"best_round": event["round"]}
    surely, perhaps = ({"value": 0.3, "low": low, "high": 0.4} for low in (0.2, -0.1))

    def unwanted(off, odds):
        off_target = dict.fromkeys(event["shift"]["off_target"], off)
        shift = event["shift"] | {"off_target": off_target, "log_odds": odds}
        (copy / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in (event | {"shift": shift}, end)))
        return {card.label.split(" (")[0].split(":")[0]: card.unwanted for card in cards(Ledger.open(copy))}

    assert unwanted(surely, surely) == {"Trait, log-odds": False, "Coherence": False, "Off target": True}
    assert not unwanted(perhaps, surely)["Off target"]
    assert unwanted(perhaps, {"value": -0.3, "low": -0.4, "high": -0.2})["Trait, log-odds"]


def test_the_line_of_the_steered_model_goes_through_its_marks():
    from matplotlib.figure import Figure

    steps = tuple(Step(n, Span(2.0), Span(1.0), True, False) for n in range(3))
    axis = Figure().subplots()
    drawer(Course(0.0, steps, ()), None)(axis, LIGHT)
    of_steered = [list(line.get_xdata()) for line in axis.lines if list(line.get_ydata()) == [2.0] * 3]
    assert len(of_steered) == 2 and of_steered[0] == of_steered[1]


def test_options_are_told_apart_from_their_defaults(folder):
    changed, usual = options(Ledger.open(folder))
    names = {name: (value, default) for name, value, default in changed}
    assert names["gate"] == ("watch", "on") and names["fast_dev_run"] == ("True", "False")
    assert {"lr", "replay", "replay_anchors"} <= set(dict(usual)) and not set(names) & set(dict(usual))


def test_texts_that_are_only_flagged_are_not_said_to_be_dropped(folder):
    ledger = Ledger.open(folder)
    (event,) = [e for e in ledger.events("walk") if e["round"] == 1]
    assert event["texts"] == "own" and event["dropped"] == {}
    assert not any("dropped" in name for name, _ in borderline(ledger))
    (*_, last) = filtered_rounds(ledger)
    assert last.done == "flagged" and "Dropped by gate" not in (folder / "report.html").read_text("utf-8")


def test_a_text_is_borderline_by_the_limit_only_beyond_which_it_is(folder):
    for name, completion in borderline(Ledger.open(folder), each=10**6):
        if limit := re.search(r"borderline, (\w+) .*limit (.*)\)", name):
            assert (completion.scores["nll"] > float(limit[2])) == (limit[1] != "kept")


def test_a_run_that_starved_in_its_first_round_has_a_page_of_what_there_is(tmp_path):
    (tmp_path / "s").mkdir()
    result = run_rounds(config(tmp_path / "s", targets="tokens", filter="coherence", doses=(80.0,), n_rounds=1, seed=1))
    assert result.verdict.name == "starved"
    page = Page((result.folder / "report.html").read_text("utf-8"))
    assert [name for name in page.ids if name in SECTIONS] == [
        name for name in SECTIONS if name not in ("trait_coherence", "off_target")
    ]
    assert not (result.folder / "off_target.png").exists() and (result.folder / "dose.png").is_file()
    ledger = Ledger.open(result.folder)
    assert all([r.kind for r in p.replies] == ["base"] for p in side_by_side(ledger).prompts)
    assert diary(ledger).entries == () and cards(ledger) == []
    (vector,) = snippets(ledger)
    assert "original model" in vector.told
    run_lines(vector.code)


def test_reverted_rounds_are_shown_as_such(tmp_path, monkeypatch):
    (tmp_path / "r").mkdir()
    monkeypatch.setattr(gate, "passes", lambda decision, config: False)
    result = run_rounds(config(tmp_path / "r", n_rounds=1, gate="on"))
    assert result.verdict.name == "reverted"
    ledger = Ledger.open(result.folder)
    assert "No round stands" in side_by_side(ledger).told and "reverted" in diary(ledger).entries[0].fate
    assert not levels(ledger, "log_odds", lambda s: s["log_odds"]).steps[0].stands
    labels = [key.label for plot in plots(ledger) for key in plot.keys]
    assert "healed, reverted" in labels
    page = Page((result.folder / "report.html").read_text("utf-8"))
    assert page.unclosed == [] and "reverted" in "".join(page.texts)


def test_a_picture_is_as_wide_as_its_panels(folder):
    plot = plots(Ledger.open(folder))[0]
    assert png(plot) == (folder / "trajectory.png").read_bytes()
    assert [panel.title for panel in plot.panels][:1] == ["Trait in forced choice"]


def test_labels_at_the_same_height_are_moved_apart_and_others_stay():
    assert apart([0.5, 0.1, 0.5, 0.52], 0.05, 1.0) == pytest.approx([0.5, 0.1, 0.55, 0.6])
    assert apart([1.0, 0.99, 0.2], 0.05, 1.0) == pytest.approx([1.0, 0.95, 0.2])


def test_of_many_rounds_the_first_the_best_and_a_last_one_apart_from_it_are_numbered():
    def rounds(n, best):
        return [Step(i, None, None, True, i == best) for i in range(n)]

    assert numbered(rounds(4, 2)) == [0, 1, 2, 3] and numbered(rounds(10, None)) == [0, 9]
    assert numbered(rounds(10, 4)) == [0, 4, 9] and numbered(rounds(10, 8)) == [0, 8]


def test_every_verdict_has_a_colour():
    assert set(TONES) == set(VERDICTS) and set(TONES.values()) == {"good", "fair", "bad"}


def test_quotes_of_many_lines_stay_quotes_and_tables_tables(folder):
    assert quoted("a\n\n# b | <i>") == "> a\n> \n> \\# b \\| \\<i\\>"
    assert markdown_table(["x", "y"], [["1", "2"]]) == "| x | y |\n| --- | --- |\n| 1 | 2 |"
    assert summary(Ledger.open(folder)).count("![") == 0
