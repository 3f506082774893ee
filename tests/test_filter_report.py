"""The filter's proofs: what perplexity adds at one budget, and the tables over labelled families."""

import math
import random

import pytest
from script_modules import script

from steer_heal.studies.filter_report import (
    ALL,
    FREE,
    SURPRISE,
    TIGHT,
    filters,
    label_of,
    pocket_proof,
    proof_lines,
    prove,
)
from steer_heal.texts.coherence.rules import RULES
from steer_heal.texts.completion import Completion


def scored(nll: float, pairs: float, dose: float = 0.0, prompt: str = "p", rng=None) -> Completion:
    """A completion of given surprise and repetition; all other figures are the same for all."""
    wobble = rng.gauss(0, 0.02) if rng else 0.0
    figures = {rule.figure: 0.0 for rule in RULES if rule.kind != "model"} | {"order": 0.0, "tokens": 30.0}
    figures |= {
        "nll": nll,
        "nll_tail": nll + wobble,
        "nll_window": nll + 0.2,
        "nll_calm": nll - 0.2,
        "rep_word2": pairs,
    }
    return Completion(prompt, None, (1,), (2,) * 30, f"{nll} {pairs}", True, dose=dose, scores=figures)


@pytest.fixture(scope="module")
def own():
    rng = random.Random(0)
    return [scored(rng.gauss(1, 0.1), rng.uniform(0, 0.2), rng=rng) for _ in range(200)]


def test_all_four_filters_keep_the_same_budget_on_the_models_own_text(own):
    fitted = filters(own, 0.05)
    assert list(fitted) == [FREE, TIGHT, SURPRISE, ALL]
    for name, filt in fitted.items():
        dropped = sum(not c.kept for c in filt.judge(own))
        assert dropped <= 10, name
    assert sum(not c.kept for c in fitted[FREE].judge(own)) == 0  # the fixed limits leave the budget unused
    assert sum(not c.kept for c in fitted[TIGHT].judge(own)) >= 5


def test_tightened_gates_use_no_perplexity_and_lie_inside_the_fixed_ones(own):
    fitted = filters(own, 0.05)
    assert all(not math.isfinite(v) for k, v in fitted[TIGHT].limits.items() if k.startswith("nll"))
    assert fitted[TIGHT].limits["rep_word2.high"] < 0.2 < fitted[FREE].limits["rep_word2.high"]
    assert "perplexity" not in fitted[TIGHT].gates and fitted[SURPRISE].gates == {"perplexity"}


def test_proof_credits_perplexity_with_what_only_it_sees(own):
    odd = [scored(5.0, 0.1, 1.0, f"p{i}") for i in range(20)]  # surprising, not repetitive
    loops = [scored(1.0, 0.9, 1.0, f"p{i}") for i in range(10)]  # repetitive, not surprising
    fine = [scored(1.0, 0.1, dose, f"p{i}") for i in range(20) for dose in (0.0, 1.0)]
    labels = ["broken"] * 30 + ["good"] * 40
    proof = prove(filters(own), [*odd, *loops, *fine], labels)
    shares = {name: proof.outcomes[name].dropped("broken").value for name in proof.outcomes}
    assert shares == {FREE: pytest.approx(1 / 3), TIGHT: pytest.approx(1 / 3), SURPRISE: pytest.approx(2 / 3), ALL: 1}
    gain = proof.gain[TIGHT]["broken"]
    assert gain.value == pytest.approx(2 / 3) and gain.excludes_zero
    assert proof.gain[TIGHT]["good"].value == 0 and "flawed" not in proof.gain[TIGHT]
    assert proof.outcomes[ALL].dropped("good", 0.0).n == 20 and proof.held_out[ALL].n == 20
    assert proof.texts(FREE, "broken", kept=True) and not proof.texts(ALL, "broken", kept=True)
    table = proof.table()
    assert all(name in table for name in proof.outcomes) and "100%" in table


def test_labels_follow_the_checker():
    assert label_of(1.0, True) == "good"
    assert label_of(0.5, False) == "broken" and label_of(0.0, False) == "broken"
    assert label_of(0.75, False) == "flawed" and label_of(1.0, False) == "flawed"


def test_perplexity_gates_catch_broken_pocket_texts_that_the_others_keep():
    proof = pocket_proof(n_own=64, n_each=24)
    broken = proof.outcomes[ALL].dropped("broken")
    assert broken.n >= 30 and broken.value >= 0.9
    assert proof.gain[TIGHT]["broken"].low > 0
    assert proof.outcomes[ALL].dropped("good").value <= 0.25
    shown = "\n".join(proof_lines(proof, 2))
    assert "BROKEN, caught by perplexity alone" in shown and "GOOD BUT DROPPED" in shown


def test_held_out_families_are_printed_with_intervals_and_misses(capsys):
    script("filter_report").main(["--split", "held_out"])
    shown = capsys.readouterr().out
    assert "good   ALL" in shown and "broken ALL" in shown and "MISS " in shown and "[" in shown
