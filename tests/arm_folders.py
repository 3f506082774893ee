"""Run folders as `steer_heal.run` leaves them, with figures that are chosen instead of measured."""

import json

from steer_heal.evaluation import AnchorRow, ChoiceRow, Metrics, ReplyRow
from steer_heal.ledger import Ledger, plain

ITEMS, REPLIES, ANCHORS = 20, 20, 10


def metrics(shift=0.0, trait=0.4, ok=1.0, words=20, warmth=0.0, entropy=4.0, right=ANCHORS, key="k") -> Metrics:
    """Every item has a level of its own, so that only pairing makes shifts exact; `trait` and `ok` are shares."""
    items = tuple(choice(f"i{n}", "care", 0.1 * n - 1 + shift) for n in range(ITEMS))
    off = tuple(choice(f"w{n}", "warmth", 0.1 * n - 1 + warmth) for n in range(ITEMS))
    replies = tuple(
        ReplyRow(f"p{n}", " ".join(f"w{n}x{i}" for i in range(words)), words, True, False, float(n < trait * REPLIES),
                 ok, True)
        for n in range(REPLIES)
    )  # fmt: skip
    anchors = tuple(AnchorRow(f"a{n}", "", n < right) for n in range(ANCHORS))
    return Metrics("t", "", 0.0, key, items, off, replies, anchors, entropy)


def choice(name, category, log_odds):
    return ChoiceRow(name, category, ("a", "b"), ("a",), (-0.5, -1.0), (log_odds, log_odds), log_odds, 1.0)


def write_run(folder, config, rounds, stands=None, gate=True, prompted=None, starved=False, key="k"):
    """A finished run; `rounds` are keyword arguments of `metrics` per round, `stands` the gate's decisions."""
    ledger = Ledger.create(folder, "run", plain(config))
    metrics(key=key).save(ledger.folder / "base.json")
    metrics(**(prompted or {"shift": 4.0, "trait": 1.0}), key=key).save(ledger.folder / "prompted.json")
    stands = stands or [True] * len(rounds)
    for n, (figures, stand) in enumerate(zip(rounds, stands, strict=True)):
        student = metrics(**figures, key=key)
        ledger.record("extract", n, cosine_first=1.0)
        ledger.record("walk", n, kept=30, sampled=40 + 20 * n, kappa=0.7**n, trait_kept=0.9)
        ledger.record("heal", n, figures={"kl_base_after": 0.1 * (n + 1), "kl_prev_after": 0.05})
        ledger.record("bake", n, cosine_first=0.5, cosine_vector=0.3)
        ledger.record("evaluate", n)
        ledger.record("verdict", n, verdict="healed")
        with ledger.round_folder(n) as place:
            rows = {"steered": student.__dict__, "healed": student.__dict__}
            (place / "metrics.json").write_text(json.dumps(rows, default=lambda row: row.__dict__))
        if gate:
            kept = sum(row.right for row in student.anchors) / ANCHORS
            ledger.record("gate", n, stands=stand, outcome="keep" if stand else "revert", figures={"anchors": kept})
    if starved:
        ledger.record("extract", len(rounds), cosine_first=1.0)
        ledger.record("walk", len(rounds), kept=3, sampled=96, kappa=0.2)
        ledger.record("verdict", len(rounds), verdict="starved")
    ledger.record("end", verdict="healed", text="", best_round=0, ended_by=None, seconds=12.0)
    return ledger
