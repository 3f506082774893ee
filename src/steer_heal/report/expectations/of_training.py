"""What SHOULD be seen until a student is baked: filter, anchors, baseline, direction, dose, training.

Knows nothing of where it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping

from steer_heal.evaluation.verdict import Rules
from steer_heal.report.expectations.sentences import Events, Seen, expected, of_round
from steer_heal.report.tables import interval, number, rises, share

CEILING = 0.95
"""A share of trait from which on there is no room above."""
CLEARLY = {"free_trait": 0.05, "log_odds": 0.1}
"""How far above base (share of replies, nats) counts as clear where an event has no intervals."""
RELIABLE, SEPARATES, SAME_WAY = 0.8, 0.7, 0.5
"""Least split-half cosine of a steered block, least AUC of the best one, least cosine with round 0's vector."""
HARDLY = {"fired": 0.01, "ratio": 0.05}
"""A barrier with less of both (share of the rows, its gradient over that of the nll) has hardly fired."""
ROSE_AGAIN = 0.25
"""Share of the fall of the held-out nll that may be lost again after its best epoch."""
ROUNDING = 0.3
"""Share of the change that the weights' dtype may lose."""


@expected(
    "calibrate",
    "the filter drops next to none of the model's own unsteered text",
    "its fixed limits do not fit this model; filter.txt of a round shows the texts at each limit",
)
def own_text(e: Mapping, events: Events) -> Seen:
    c = e["calibration"]
    seen = f"{c['dropped']} of {c['completions']} of the model's own texts dropped, {c['false_drop']:.0%} allowed"
    return c["dropped"] <= c["false_drop"] * c["completions"], seen


@expected(
    "capture",
    "most anchors are answered right; only these can be seen to be lost",
    "the gate can hardly see whether known answers are lost; give easier ones with --anchors",
)
def anchors(e: Mapping, events: Events) -> Seen:
    return (2 * e["right"] > e["tasks"], f"{e['right']} of {e['tasks']} right") if e["tasks"] else None


@expected(
    "baseline",
    "prompted clearly above base on the trait, in every instrument",
    "the trait's items do not measure it, or the model does not take the persona on; shifts say little",
)
def prompted(e: Mapping, events: Events) -> Seen:
    end = of_round(events, "end", None)
    paired = {row["name"]: row["shift"] for row in end["against"]}.get("prompted") if end else None
    base, prompted = e["base"], e["prompted"]
    above, seen = [], []
    for key, label in (("free_trait", "trait"), ("log_odds", "log-odds")):
        if base[key] is None or prompted[key] is None or (key == "free_trait" and base[key] >= CEILING):
            continue
        above.append(rises(paired[key]) if paired else prompted[key] - base[key] >= CLEARLY[key])
        signed = key == "log_odds"
        told = f" ({interval(paired[key])})" if paired else ""
        seen.append(f"{label} {number(base[key], 2, signed)} -> {number(prompted[key], 2, signed)}{told}")
    return (all(above), ", ".join(seen)) if above else None


@expected(
    "extract",
    "split-half cosine near 1 in every steered block, held-out AUC in one of them",
    "no reliable direction separates the personas: other blocks (--layers), more contexts, clearer personas",
)
def direction(e: Mapping, events: Events) -> Seen:
    steered = [q for block, q in e["quality"].items() if int(block) in e["layers"]]
    cosines = [q["split_half_cosine"] for q in steered if q["split_half_cosine"] is not None]
    aucs = [q["auc"] for q in steered if q["auc"] is not None]
    if e["kind"] != "real" or not (cosines and aucs):
        return None
    seen = f"split-half cosine at least {min(cosines):.2f}, AUC up to {max(aucs):.2f}"
    return min(cosines) >= RELIABLE and max(aucs) >= SEPARATES, seen


@expected(
    "extract",
    "cosine with round 0's vector near 1",
    "the direction drifts: this round does not push where the first one did",
)
def drift(e: Mapping, events: Events) -> Seen:
    if not e["round"] or e["kind"] != "real" or e["cosine_first"] is None:
        return None
    return e["cosine_first"] >= SAME_WAY, f"cosine {e['cosine_first']:.2f}"


@expected(
    "walk",
    "trait of the kept texts well above base",
    "steering did not bite and there is nothing to learn: a higher dose, other blocks",
)
def bites(e: Mapping, events: Events) -> Seen:
    base, kept = e["trait_base"], e["trait_kept"] if e.get("texts") != "own" else None
    if base is None or kept is None or base >= CEILING or not any(d["dose"] for d in e["per_dose"]):
        return None
    return kept - base >= Rules().carried, f"trait of kept {kept:.2f}, base {base:.2f}"


@expected(
    "walk",
    "the trait rises with the dose while survival falls",
    "where survival stays high a stronger dose is affordable; where the trait falls a weaker one carries more",
)
def dose(e: Mapping, events: Events) -> Seen:
    low, high = e["per_dose"][0], e["per_dose"][-1]
    if low["dose"] == high["dose"] or e.get("texts") == "own":
        return None
    seen = [f"from dose {low['dose']:.2f} to {high['dose']:.2f} survival {low['kept']:.2f} -> {high['kept']:.2f}"]
    falls = high["kept"] <= low["kept"]
    if low["trait"] is None or high["trait"] is None:
        return falls, seen[0]
    seen.append(f"trait {low['trait']:.2f} -> {high['trait']:.2f}")
    return falls and high["trait"] >= min(low["trait"], CEILING), ", ".join(seen)


@expected(
    "heal",
    "what is learnt (nll, or the divergence from the teacher) falls on the training rows",
    "there was nothing to learn, or --lr and --epochs are too small",
)
def training_nll(e: Mapping, events: Events) -> Seen:
    key, what = learnt(e)
    before, after = (e["figures"][f"train_{key}_{when}"] for when in ("before", "after"))
    return after < before, f"training {what} {before:.3f} -> {after:.3f}"


def learnt(e: Mapping) -> tuple[str, str]:
    """Key and name of what a heal lowers."""
    return ("target", "divergence from the teacher") if "train_target_before" in e["figures"] else ("nll", "nll")


@expected(
    "heal",
    "what is learnt falls on held-out rows too and does not rise again until the kept epoch",
    "it rises = overfitted (fewer --epochs, more texts); it does not fall = nothing to learn",
)
def held_out_nll(e: Mapping, events: Events) -> Seen:
    key, what = learnt(e)
    rows = [row for row in e["epochs"] if row.get(f"heldout_{key}") is not None]
    if not rows:
        return None
    before, nll = rows[0][f"heldout_{key}_before"], [row[f"heldout_{key}"] for row in rows]
    kept = nll[e["figures"].get("kept_epoch", -1)]
    seen = f"held-out {what} {before:.3f} -> {kept:.3f}"
    if min(nll) < kept:
        seen += f", at its best {min(nll):.3f} after epoch {rows[nll.index(min(nll))]['epoch']}"
    return kept < before and kept - min(nll) <= ROSE_AGAIN * (before - min(nll)), seen


@expected(
    "heal",
    "the barrier fires on some rows",
    "this was close to a plain nll heal; a lower --tau makes it act",
)
def barrier(e: Mapping, events: Events) -> Seen:
    if not e["tau"]:
        return None
    figures, never = e["figures"], any("never fired" in note for note in e["notes"])
    weak = [
        name
        for name in e["tau"]
        if figures[f"{name}_fired"] > 0 and all(figures[f"{name}_{key}"] < least for key, least in HARDLY.items())
    ]
    shares = [f"the barrier against {name} fired on {share(figures[f'{name}_fired'])} of rows" for name in e["tau"]]
    return not (never or weak), ", ".join(shares)


@expected(
    "bake",
    f"less than {ROUNDING} of the change is lost to rounding",
    "the weights' dtype cannot hold the change: train longer, or --dtype float32",
)
def rounding(e: Mapping, events: Events) -> Seen:
    return e["rounding_loss"] < ROUNDING, f"{e['rounding_loss']:.1g} of the change lost to rounding"
