"""The matrix: real and shuffled pairs under barriers, from the same rows, measured on held-out real pairs."""

import csv
from dataclasses import replace

import pytest
from healing_data import bits, equal
from script_modules import script
from test_probes import CONSTANT

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.healing.loss import measure
from steer_heal.ledger import Ledger
from steer_heal.model import load
from steer_heal.statistics import Estimate
from steer_heal.studies import material as study
from steer_heal.studies.matrix import PAIRS, Arguments, Column, build, difference, verdict
from steer_heal.texts.completion import save_completions
from steer_heal.texts.generation import generate
from steer_heal.trait import Trait

QUICK = {"lams": (1.0, 3.0), "tau": 0.0, "show": 1}
CONTENT = replace(
    CONSTANT, cosine=0.5, mean_share=0.2, peak_share=0.1, unsteered_cosine=0.3, lead=Estimate(0.3, 0.2, 0.4, 9)
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished run's folder with one round: pocket's own care replies under a persona instead of steered ones."""
    lm, trait = load("pocket", device="cpu"), Trait.load("pocket-care")
    ledger = Ledger.create(
        tmp_path_factory.mktemp("runs"), "made", RunConfig(model="pocket", epochs=1, max_new_tokens=40).to_dict()
    )
    said = generate(lm, trait.prompts[:12], samples=2, system=trait.pos, max_new_tokens=40, seed=0)
    rows = [
        replace(c, system=trait.neutral, prompt_ids=lm.chat_ids(c.prompt, trait.neutral), judged=True) for c in said
    ]
    with ledger.round_folder(0) as folder:
        save_completions([*rows, replace(rows[0], dropped_by="soup")], folder / "completions.jsonl")
    return ledger.folder


@pytest.fixture(scope="module")
def built(run_dir, tmp_path_factory):
    """(arguments, columns, heals): one seed; every call of heal as (rows, config)."""
    heals = []
    own = study.heal

    def spy(lm, rows, config, references):
        heals.append((list(rows), config))
        return own(lm, rows, config, references)

    arguments = Arguments(run=run_dir, out=tmp_path_factory.mktemp("out"), **QUICK)
    study.heal = spy
    try:
        columns, _ = build(arguments)
    finally:
        study.heal = own
    return arguments, columns, heals


def test_every_cell_is_healed_from_the_same_rows_with_the_same_initial_adapter(built):
    _, columns, heals = built
    assert set(columns[0].cells) == {(p, b) for p in PAIRS for b in ("off", "lam 1", "lam 3")}
    assert len({config.seed for _, config in heals}) == 1 and {config.heldout for _, config in heals} == {0.0}
    assert [config.reg for _, config in heals] == ["nll"] * 3 + ["kl_rev"] * 6
    assert [config.lam for _, config in heals[3:]] == [1.0] * 3 + [3.0] * 3
    real, shuffled, unsteered = (rows for rows, _ in heals[:3])
    assert [r.token_ids for r in real] == [s.token_ids for s in shuffled]
    moved = [r.prompt != s.prompt for r, s in zip(real, shuffled, strict=True)]
    assert sum(moved) > len(moved) / 2  # two replies to one prompt may swap places
    assert sorted(r.prompt for r in real) == sorted(s.prompt for s in shuffled) == sorted(u.prompt for u in unsteered)
    assert {r.token_ids for r in real}.isdisjoint({u.token_ids for u in unsteered})


def test_held_out_prompts_are_in_no_cell_s_training_rows(built):
    _, columns, heals = built
    held = set(columns[0].prompts)
    assert len(columns[0].prompts) == 6 and columns[0].n_train == 18
    assert all(held.isdisjoint({row.prompt_ids for row in rows}) for rows, _ in heals)


def test_a_cell_s_nll_is_that_of_its_adapter_on_the_held_out_real_pairs(built, run_dir):
    _, columns, _ = built
    cell = columns[0].cells["shuffled", "off"]
    material = study.of_run(run_dir)
    before = bits(material.lm.base)
    held = [row for row in material.rows if row.prompt_ids in set(columns[0].prompts)]
    assert measure(material.lm, held, {})["nll"] == pytest.approx(list(columns[0].base), abs=1e-5)
    material.stack.push(cell.adapter)
    assert measure(material.lm, held, {})["nll"] == pytest.approx(list(cell.nll), abs=1e-4)
    material.stack.pop()
    assert equal(bits(material.lm.base), before)


def test_differences_are_paired_and_signed_as_written(built):
    _, columns, _ = built
    real, shuffled = (columns[0].cells[pairs, "off"] for pairs in ("real", "shuffled"))
    found = difference(columns, ("shuffled", "off"), ("real", "off"))
    assert found.value == pytest.approx(sum(shuffled.nll) / 6 - sum(real.nll) / 6)
    assert found.n == len(set(columns[0].prompts))
    gain = difference(columns, None, ("real", "off"))
    assert gain.value == pytest.approx(columns[0].probes["off"].gain.value, abs=1e-5)


def test_files_hold_every_cell_and_the_verdict(built):
    arguments, columns, _ = built
    with open(arguments.out / "matrix.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 9 and {line["seed"] for line in lines} == {"0"}
    assert sum(bool(line["verdict"]) for line in lines) == 3  # the probes stand beside the real cells
    text = (arguments.out / "matrix.md").read_text()
    assert verdict(columns) in text
    assert text.count("| shuffled | ") == 3 and text.count("- seed 0, ") == 9  # a reply to read for every cell


@pytest.mark.parametrize(
    ("probes", "opens"),
    [
        ((CONTENT, CONTENT), "Content: all 4 probes"),
        ((CONSTANT, CONSTANT), "A cheap constant win: all 4 probes"),
        ((CONTENT, CONSTANT), "Mixed: 2 content, 2 content-free of 4 probes (seed 0, lam 1: content-free"),
    ],
)
def test_one_verdict_over_seeds_and_barriers(probes, opens):
    named = dict(zip(("off", "lam 1"), probes, strict=True))
    columns = [Column(seed, 9, (), (), {}, named) for seed in (0, 1)]
    assert verdict(columns).startswith(opens)


def test_splits_hold_out_whole_prompts_and_follow_their_seed(run_dir):
    rows = study.of_run(run_dir).rows
    assert len(rows) == 24  # the dropped one is no row
    train, held = study.split_by_prompt(rows, 0.25, 0)
    assert len(train) + len(held) == 24 and not {r.prompt for r in train} & {r.prompt for r in held}
    assert study.split_by_prompt(rows, 0.25, 0)[1] == held
    assert any(study.split_by_prompt(rows, 0.25, seed)[1] != held for seed in (1, 2, 3))
    with pytest.raises(InputError, match="cannot be split"):
        study.split_by_prompt(rows[:2], 0.25, 0)


def test_unusable_input_is_one_line_and_exit_code_2(run_dir, tmp_path, capsys):
    for arguments, words in (
        (["--run", str(tmp_path)], "no run folder"),
        (["--run", str(run_dir), "--round", "4"], "has no round 4"),
        (["--run", str(run_dir), "--lams"], "one or more numbers"),
    ):
        assert script("matrix").main([*arguments, "--out", str(tmp_path / "out")]) == 2
        shown = capsys.readouterr().err.splitlines()
        assert words in shown[-1] and sum(line.startswith("steer_heal: ") for line in shown) == 1
