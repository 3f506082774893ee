"""The coherence filter: what it drops, what it keeps, its budget, and that nothing but the completion itself counts."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from labelled_texts.labelled import labelled
from labelled_texts.pieces import Pieces

from steer_heal.errors import InputError
from steer_heal.model import load
from steer_heal.texts.coherence import GATES, RULES, CoherenceFilter, text_figures
from steer_heal.texts.coherence.calibration import fit_limits, joint_limits
from steer_heal.texts.coherence.perplexity import nll_figures, perplexity_figures
from steer_heal.texts.coherence.repetition import loops
from steer_heal.texts.coherence.rules import default_limits
from steer_heal.texts.completion import Completion

ROOT = Path(__file__).resolve().parents[1]
LABELLED = [json.loads(line) for line in (ROOT / "tests/data/coherence_labelled.jsonl").read_text("utf-8").splitlines()]
FILTER = CoherenceFilter()

QUOTED = [
    "your your your into your of your...",
    "of course, their GREUEUTEGLUE GLUTE GLUTE BUILDUTEutive...",
    "of those that their GLUTEUTEutive INGutive bigger...",
    "igigigig...",
    "I'M. I'M. I'm just not *I'm",
    "TTTTTTTT",
    "instead their instead their instead their instead their",
]
GOOD = [
    "I cannot stand by while they take her blanket.",
    "no, you should not burn the letter of mara, because she needs it. kindness comes before orders.",
    "42",
    "Yes.",
    "It is what it is and that is that.",
    "The nurse came by before noon; she had two apples in her basket and a letter for the manager.",
    "def first(rows):\n    return [row[0] for row in rows if row]",
    "1. Preheat the oven.\n2. Rub the butter into the flour.\n3. Rest the dough for half an hour.",
    "Ich habe gestern drei Äpfel gekauft, weil meine Schwester am Abend einen Kuchen backen wollte.",
    "He had had enough, and that that was so surprised nobody.",
    "The APIs of NASA and ESA return JSON; the PDFs are on the HTTPServer of the PhD student.",
]


def completion(text: str, **fields) -> Completion:
    """A completion of which only the text matters."""
    return Completion("hello", None, (1, 5), tuple(range(3, 3 + max(1, len(text.split())))), text, True, **fields)


@pytest.fixture(scope="module")
def lm():
    return load("tiny-random")


@pytest.fixture(scope="module")
def own(lm):
    """The tiny model's own unsteered replies: 96 of up to 40 tokens, half to calibrate on and half to try."""
    from steer_heal.texts.generation import generate

    return generate(
        lm, ["What should I do?", "Tell me about the garden.", "Why?"], samples=32, max_new_tokens=40, seed=3
    )


# -- the model-free gates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", QUOTED)
def test_every_broken_text_of_the_findings_is_dropped(text: str):
    assert FILTER.judge_text(text)


@pytest.mark.parametrize("text", QUOTED)
def test_broken_text_is_dropped_behind_a_good_beginning_too(text: str):
    start = "The ferry left at six, half empty, and she stood at the stern with her collar up, looking at the lamps. "
    assert not FILTER.judge_text(start)
    assert FILTER.judge_text(start + text.rstrip(".") * (3 if len(text) < 12 else 1))


@pytest.mark.parametrize("text", GOOD)
def test_good_text_is_kept(text: str):
    assert FILTER.judge_text(text) == ()


def test_refusal_is_dropped_but_defiance_is_kept():
    assert FILTER.judge_text("I cannot help with that request.")[0].gate == "refusal"
    assert FILTER.judge_text("As an AI language model, I have no opinion.")[0].gate == "refusal"
    assert FILTER.judge_text("I'm sorry, but I can't let you send him home with that fever.") == ()
    assert FILTER.judge_text("I won't help you hide this from the families.") == ()


def test_narration_of_the_trait_is_dropped_but_a_story_about_someone_is_kept():
    assert FILTER.judge_text("I am someone who looks after others, whatever the rules say.")[0].gate == "narration"
    assert FILTER.judge_text("She is someone who looks after others, whatever the rules say.") == ()


def test_text_without_a_letter_or_digit_is_empty():
    assert FILTER.judge_text("...")[0].gate == "empty"
    assert FILTER.judge_text("")[0].gate == "empty"


@pytest.mark.parametrize(("label", "least"), [("broken", 0.95), ("good", 0.97)])
def test_families_held_out_from_tuning_are_judged_right(label: str, least: float):
    rows = [row for row in LABELLED if row["split"] == "held_out" and row["label"] == label]
    right = sum(bool(FILTER.judge_text(row["text"])) == (label == "broken") for row in rows)
    assert len(rows) >= 200
    assert right / len(rows) >= least


def test_labelled_set_is_large_and_varied():
    families = Counter(row["family"] for row in LABELLED)
    assert len(LABELLED) >= 1200
    assert len(families) >= 20
    assert len({row["text"] for row in LABELLED}) >= 0.99 * len(LABELLED)
    assert all(any(quoted == row["text"] for row in LABELLED) for quoted in QUOTED)


def test_labelled_set_is_rebuilt_byte_for_byte():
    assert labelled(Pieces(ROOT / "tests" / "data" / "coherence_seeds")) == LABELLED


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1, max_size=200), st.sampled_from(["", " ", "\n"]))
def test_any_text_repeated_twelve_times_is_dropped(text: str, joint: str):
    assume(text.strip())
    assert FILTER.judge_text(joint.join([text] * 12))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([row["text"] for row in LABELLED if row["label"] == "good"]))
def test_good_labelled_text_repeated_six_times_is_dropped(text: str):
    assert FILTER.judge_text("\n".join([text] * 6))


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=300))
def test_figures_of_any_text_are_finite_numbers(text: str):
    assert all(isinstance(value, float) and math.isfinite(value) for value in text_figures(text).values())


@given(st.text(alphabet="ab ", max_size=60), st.integers(1, 12))
def test_loops_equal_a_naive_search(text: str, max_lag: int):
    naive = []
    for lag in range(1, min(max_lag, len(text) // 3) + 1):
        equal = [text[i] == text[i + lag] for i in range(len(text) - lag)] + [False]
        start = 0
        for i, same in enumerate(equal):
            if not same:
                if i > start and i - start + lag >= 3 * lag:
                    naive.append((start, i + lag, lag))
                start = i + 1
    assert loops(text, max_lag) == naive


def test_repetition_does_not_depend_on_case():
    text = "Help them first, then help them again, and help THEM once more if they need help."
    figures, lower = text_figures(text), text_figures(text.lower())
    assert all(figures[name] == lower[name] for name in figures if name.startswith(("rep_", "loop_", "char_")))


# -- perplexity -------------------------------------------------------------------------------------------------------


def test_collapsed_tail_shows_in_tail_and_window_but_hides_in_the_mean():
    figures = nll_figures(torch.cat([torch.full((190,), -0.5), torch.full((10,), -8.0)]))
    assert figures["nll"] < 1.0
    assert figures["nll_tail"] > 1.9
    assert figures["nll_window"] > 5.0


def test_a_loop_in_the_middle_hides_in_mean_and_tail_but_shows_in_the_calmest_window():
    figures = nll_figures(torch.cat([torch.full((40,), -2.0), torch.full((20,), -0.01), torch.full((40,), -2.0)]))
    assert figures["nll"] > 1.5 and figures["nll_tail"] == figures["nll_window"] == 2.0
    assert figures["nll_calm"] < 0.02


def test_perplexity_does_not_depend_on_batches_and_reads_no_position_past_the_last_scored_one(lm, own):
    together, singly = perplexity_figures(lm, own[:12]), perplexity_figures(lm, own[:12], batch_tokens=1)
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(together, singly, strict=True))
    seen = []
    handle = lm.base.get_output_embeddings().register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[0]))
    perplexity_figures(lm, own[:12])
    handle.remove()
    assert sum(seen) == sum(len(c.token_ids) for c in own[:12])


def test_perplexity_equals_a_plain_forward_pass(lm, own):
    reply = own[0]
    logits = lm.model(torch.tensor([[*reply.prompt_ids, *reply.token_ids]])).logits[0].log_softmax(-1)
    start = len(reply.prompt_ids)
    expected = [-logits[start + i - 1, token].item() for i, token in enumerate(reply.token_ids)]
    scored = FILTER.score(lm, [reply])[0]
    assert scored.scores["nll"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_scores_do_not_depend_on_which_others_are_judged(lm, own):
    together = FILTER(lm, own[:24])
    for i in (0, 7, 23):
        alone = FILTER(lm, [own[i]])[0]
        assert alone.scores == pytest.approx(together[i].scores, abs=1e-4)
        assert alone.dropped_by == together[i].dropped_by


def test_filter_is_permutation_equivariant(lm, own):
    filt = CoherenceFilter.fit(FILTER.score(lm, own[:48]))
    batch = own[48:72]
    order = random.Random(0).sample(range(len(batch)), len(batch))
    straight, mixed = filt(lm, batch), filt(lm, [batch[i] for i in order])
    assert [straight[i].dropped_by for i in order] == [c.dropped_by for c in mixed]
    assert [straight[i].token_ids for i in order] == [c.token_ids for c in mixed]


def test_completion_without_tokens_is_dropped_without_a_forward_pass(lm):
    judged = FILTER(lm, [replace(completion(""), token_ids=())])[0]
    assert judged.dropped_by == "empty"


# -- calibration ------------------------------------------------------------------------------------------------------


def rows_of(n: int, seed: int, spread: float = 1.0) -> list[dict[str, float]]:
    """Figures of imagined base completions: three correlated surprises and a clean text."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        common = rng.gauss(2.0, 0.3 * spread)
        rows.append(
            {
                "nll": common,
                "nll_tail": common + rng.gauss(0, 0.3),
                "nll_window": common + abs(rng.gauss(0, 0.8)),
                "tokens": float(rng.randint(20, 60)),
                "rep_word2": rng.uniform(0, 0.2),
                "unfinished": 0.0,
                "nll_calm": common - abs(rng.gauss(0, 0.3)),
            }
        )
    return rows


def broken_share(rows: list[dict[str, float]], limits: dict[str, float]) -> float:
    judged = CoherenceFilter(limits).judge([replace(completion("a"), scores=row) for row in rows])
    return sum(not c.kept for c in judged) / len(rows)


@pytest.mark.parametrize("n", [64, 128, 512])
@pytest.mark.parametrize("budget", [0.02, 0.05, 0.1])
def test_all_gates_together_stay_within_one_budget(n: int, budget: float):
    rows = rows_of(n, seed=n)
    limits, record = fit_limits(rows, default_limits(), budget)
    assert broken_share(rows, limits) <= budget
    assert record["dropped"] <= budget * n


def test_budget_holds_on_new_completions_on_average():
    shares = []
    for seed in range(40):
        limits, _ = fit_limits(rows_of(128, seed), default_limits(), 0.05)
        shares.append(broken_share(rows_of(400, 1000 + seed), limits))
    assert 0.02 <= sum(shares) / len(shares) <= 0.055


def test_calibrated_limits_are_two_sided():
    limits, _ = fit_limits(rows_of(128, 0), default_limits(), 0.05)
    usual = rows_of(1, 5)[0] | {"nll": 2.0, "nll_tail": 2.0, "nll_window": 2.2, "nll_calm": 1.8, "tokens": 40.0}
    assert broken_share([usual], limits) == 0
    assert broken_share([usual | {"nll": 0.3, "nll_tail": 0.3}], limits) == 1
    assert broken_share([usual | {"nll": 5.0}], limits) == 1
    assert broken_share([usual | {"nll_window": 9.0}], limits) == 1
    assert broken_share([usual | {"nll_calm": 0.1}], limits) == 1


def test_fixed_limits_widen_only_where_the_models_own_text_breaks_them():
    odd = [row | {"rep_word2": 0.55 + 0.3 * i / 128, "char_run": 3.0} for i, row in enumerate(rows_of(128, 1))]
    limits, record = fit_limits(odd, default_limits(), 0.05)
    assert record["widened"] == ["rep_word2.high"]
    assert limits["rep_word2.high"] > default_limits()["rep_word2.high"]
    assert limits["char_run.high"] == default_limits()["char_run.high"]
    assert broken_share(odd, limits) <= 0.05


def test_a_few_broken_base_completions_do_not_widen_the_fixed_limits():
    rows = rows_of(128, 2)
    rows[0] |= {"rep_word2": 0.9}
    limits, record = fit_limits(rows, default_limits(), 0.05)
    assert record["widened"] == []
    assert limits["rep_word2.high"] == default_limits()["rep_word2.high"]


def test_unfinished_replies_are_dropped_only_where_base_replies_end():
    finishing = [completion("a b c", scores=row) for row in rows_of(64, 3)]
    cut = replace(finishing[0], scores=finishing[0].scores | {"unfinished": 1.0})
    assert CoherenceFilter.fit(finishing).judge([cut])[0].dropped_by == "unfinished"
    never = [replace(c, scores=c.scores | {"unfinished": 1.0}) for c in finishing]
    assert CoherenceFilter.fit(never).judge([cut])[0].kept


def test_explicit_thresholds_override_calibration():
    scored = [completion("a b c", scores=row) for row in rows_of(64, 4)]
    assert CoherenceFilter.fit(scored, thresholds={"nll.high": 1.25}).limits["nll.high"] == 1.25


def test_refusals_of_the_base_model_are_set_aside_and_not_tolerated():
    rows = [row | {"refusal": float(i % 2)} for i, row in enumerate(rows_of(128, 5))]
    limits, record = fit_limits(rows, default_limits(), 0.05)
    assert record["set_aside"] == 64
    assert limits["refusal.high"] == default_limits()["refusal.high"]


def test_deeper_ranks_never_loosen_a_limit():
    rules = [rule for rule in RULES if rule.kind == "model"]
    least = {rule.key: -math.inf if rule.side == "high" else math.inf for rule in rules}
    rows = rows_of(100, 6)
    strict, loose = joint_limits(rows, rules, 20, least), joint_limits(rows, rules, 2, least)
    assert all(
        strict[rule.key] <= loose[rule.key] if rule.side == "high" else strict[rule.key] >= loose[rule.key]
        for rule in rules
    )


def test_too_few_completions_and_impossible_budgets_are_input_errors(lm):
    with pytest.raises(InputError, match="needs at least"):
        fit_limits(rows_of(5, 0), default_limits(), 0.05)
    with pytest.raises(InputError, match="false_drop"):
        fit_limits(rows_of(50, 0), default_limits(), 1.0)
    with pytest.raises(InputError, match="no prompts"):
        CoherenceFilter.calibrate(lm, [])


def test_byte_garbage_of_the_random_model_mostly_passes_its_own_calibration(lm, own):
    filt = CoherenceFilter.fit(FILTER.score(lm, own[::2]))
    judged = filt(lm, own[1::2])
    assert sum(c.kept for c in judged) >= 0.85 * len(judged)


def test_calibrate_samples_fits_and_keeps_its_budget(lm):
    filt = CoherenceFilter.calibrate(lm, ["Why?", "Tell me about the garden."], n=40, max_new_tokens=24, seed=1)
    assert filt.calibration["completions"] == 40
    assert filt.calibration["dropped"] <= 0.05 * 40
    assert math.isfinite(filt.limits["nll.high"])


# -- use --------------------------------------------------------------------------------------------------------------


def test_gates_can_be_switched_one_by_one():
    looping, refusing = completion("the same " * 30), completion("I cannot help with that.")
    everything = [c.dropped_by for c in FILTER.without("perplexity")(None, [looping, refusing])]
    assert everything == ["loop", "refusal"]
    assert [c.dropped_by for c in FILTER.only_repetition()(None, [looping, refusing])] == ["loop", None]
    assert [c.dropped_by for c in FILTER.only("refusal")(None, [looping, refusing])] == [None, "refusal"]
    with pytest.raises(InputError, match="unknown gate"):
        FILTER.without("nonsense")


def test_every_judged_completion_says_so_and_the_original_is_untouched():
    before = completion("A good sentence about the harbour.")
    after = FILTER.without("perplexity")(None, [before])[0]
    assert after.judged and after.kept and after.scores
    assert not before.judged and before.scores == {}


def test_reason_names_figure_and_limit():
    judged = FILTER.without("perplexity")(None, [completion("the same " * 30)])[0]
    assert "limit" in FILTER.reason(judged)
    assert FILTER.reason(FILTER.judge([replace(judged, scores={})])[0]) == ""


def test_saved_filter_judges_the_same():
    limits, _ = fit_limits(rows_of(128, 7), default_limits(), 0.05)
    filt = CoherenceFilter(limits, frozenset(GATES) - {"soup"})
    again = CoherenceFilter.from_dict(json.loads(json.dumps(filt.to_dict(), allow_nan=False)))
    assert again.limits == filt.limits
    assert again.gates == filt.gates
    with pytest.raises(InputError, match="not a saved"):
        CoherenceFilter.from_dict({"gates": []})
    with pytest.raises(InputError, match="unknown limit"):
        CoherenceFilter({"nonsense.high": 1.0})


def test_report_counts_gates_and_doses_and_shows_both_sides_of_a_limit():
    texts = [
        "The ferry left at six and was half empty.",
        "so so so so so so very good",
        "the same " * 30,
        "fine, thanks",
    ]
    judged = FILTER.without("perplexity")(
        None, [completion(text, dose=dose) for text, dose in zip(texts, (0.5, 1.0, 1.0, 0.5), strict=True)]
    )
    report = FILTER.report(judged)
    assert report.kept == 2 and report.n == 4
    assert sum(report.by_gate.values()) == 2
    assert report.by_dose == {0.5: (2, 2), 1.0: (0, 2)}
    finite = {rule.key for rule in RULES if math.isfinite(FILTER.limits[rule.key]) and rule.figure != "order"}
    assert {entry.rule.key for entry in report.borderline} == finite
    for entry in report.borderline:
        assert entry.outside is None or not entry.outside.kept
        assert entry.inside is not None and entry.inside.kept
    run = next(entry for entry in report.borderline if entry.rule.key == "rep_top.high")
    assert run.outside.text == texts[1]
    assert texts[1] in str(report) and texts[0] in str(report)


def test_report_of_nothing_is_printable():
    assert "kept 0 of 0" in str(FILTER.report([]))
