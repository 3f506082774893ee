"""What a reader asks of a finished run first, answered in sentences from its ledger.

Knows nothing of models and of pages.
"""

from __future__ import annotations

from collections.abc import Mapping

from steer_heal.evaluation.verdict import OF_BASE
from steer_heal.ledger import Ledger
from steer_heal.report.tables import (
    NO_CHECKER,
    NO_CONTROLS,
    anchors_lost,
    counted,
    in_words,
    interval,
    number,
    result_line,
    sure,
    without_checker,
)

UNCERTAINTY = (
    "All intervals are 95 %, over the items or prompts of this run; they do not cover the spread over seeds: for that, "
    "run other seeds."
)


def event(ledger: Ledger, stage: str) -> dict:
    """The last event of a stage. Raises ValueError when there is none."""
    found = ledger.events(stage)
    if not found:
        raise ValueError(f"{ledger.folder}: no {stage!r} event; the run did not get that far")
    return found[-1]


def headline(ledger: Ledger) -> list[tuple[str, str]]:
    """(question, answer): what came out, did the trait move, it alone, at what cost, was it the method, how sure."""
    end = event(ledger, "end")
    result = ("What came out?", result_line(end))
    best = next((e for e in ledger.events("evaluate") if e["round"] == end["best_round"]), None)
    if best is None:
        tried = len(ledger.events("evaluate"))
        told = f" What was tried, {counted(tried, 'round')}, is in the tables below." if tried else ""
        return [result, ("Did the trait move?", f"Nothing is changed, so nothing moved and nothing was lost.{told}")]
    gate = next(e for e in ledger.events("gate") if e["round"] == end["best_round"])
    replayed = event(ledger, "capture").get("replayed", 0)
    return [
        result,
        ("Did the trait move?", trait_line(best)),
        ("Did anything else?", off_target_line(best["shift"])),
        ("At what cost?", cost_line(best, gate, replayed)),
        *((f"Is it more than {named(row)}?", against_line(row)) for row in end["against"] if row["difference"]),
        *([] if end["controls"] == "all" else [("Was it the method?", NO_CONTROLS)]),
        *([("What does it mean in text?", NO_CHECKER)] if without_checker(best["base"]) else []),
        ("How sure is this?", UNCERTAINTY),
    ]


def trait_line(best: Mapping) -> str:
    """The trait of the result against base, in every instrument, in figures and in words."""
    shift, base, healed = best["shift"], best["base"], best["healed"]
    told = []
    if found := shift["free_trait"]:
        levels = f"{number(base['free_trait'], 2)} -> {number(healed['free_trait'], 2)}"
        told.append((found, f"of free-text replies ({levels})"))
    levels = f"{number(base['log_odds'], 2, signed=True)} -> {number(healed['log_odds'], 2, signed=True)}"
    told.append((shift["log_odds"], f"nats of log-odds in forced choice ({levels})"))
    if found := shift.get("held_out_log_odds"):
        before, after = (number(state["held_out_log_odds"], 2, signed=True) for state in (base, healed))
        told.append((found, f"nats on formats not seen in training ({before} -> {after})"))
    if found := shift["vignette_contrast"]:
        told.append((found, f"nats on the vignettes (contrast of {' and '.join(shift['vignette_target'])})"))
    words = [sure(found, "up", "down") for found, _ in told]
    short = words[0].capitalize() if len(set(words)) == 1 else "Not the same in every instrument"
    parts = [f"{interval(found)} {unit}, {word}" for (found, unit), word in zip(told, words, strict=True)]
    return f"{short}. Trait against base: {'; '.join(parts)}."


def off_target_line(shift: Mapping) -> str:
    """Shifts off the target, and the largest of them as a share of the target's."""
    off = shift["off_target"]
    told = ", ".join(f"{name} {interval(found)}" for name, found in off.items()) or "not measured"
    parts = [f"Off-target categories against base, nats of log-odds: {told}"]
    target = shift["log_odds"]
    if off and sure(target, "up", "down").startswith("surely"):
        most = max(off, key=lambda name: abs(off[name]["value"]))
        parts[0] += f" (the largest, {most}, is {abs(off[most]['value'] / target['value']):.0%} of the target's)"
    others = {name: found for name, found in shift["vignettes"].items() if name not in shift["vignette_target"]}
    if others:
        parts.append("on the vignettes: " + ", ".join(f"{name} {interval(found)}" for name, found in others.items()))
    return f"{'; '.join(parts)}."


def cost_line(best: Mapping, gate: Mapping, replayed: int = 0) -> str:
    """Coherence, length, diversity and known answers of the result against base, and what else suffered.

    `replayed`: anchors that were trained on and so are not counted.
    """
    shift, base, healed = best["shift"], best["base"], best["healed"]
    parts = [
        f"Cost: coherence {interval(shift['coherence'], 3)}, {sure(shift['coherence'], 'better', 'worse')}",
        f"of base: {shape_words(healed, base)} (the prompted model: {shape_words(best['prompted'], base)})",
        f"anchors lost: {anchors_lost(gate) if gate['anchors'] else 'there were none to lose'}"
        + (f" that are counted ({replayed} others were replayed)" if replayed else ""),
    ]
    for key, label in (("empty_rate", "empty replies"), ("think_closed", "thinking closed in time")):
        shown = healed[key] or base[key] if key == "empty_rate" else healed[key] is not None
        if shown:
            parts.append(f"{label}: {number(base[key], 2)} -> {number(healed[key], 2)}")
    if healed["vignettes"] and (human := healed["vignettes"]["human"]):
        before = base["vignettes"]["human"]
        parts.append(
            f"agreement with the raters of {human['n']} vignettes: same first {before['top']:.2f} -> "
            f"{human['top']:.2f}, KL {before['kl']:.2f} -> {human['kl']:.2f} nats"
        )
    if shift["vignette_wrong"]:
        parts.append(f'log-odds of "wrong" on the vignettes {interval(shift["vignette_wrong"])} nats')
    return f"{'; '.join(parts)}."


def shape_words(state: Mapping, base: Mapping) -> str:
    """Length, diversity and pair fit of a state as shares of base's."""
    known = [name for name in OF_BASE if state.get(name) and base.get(name)]
    return ", ".join(f"{in_words(name)} {state[name] / base[name]:.2f}" for name in known)


def against_line(row: Mapping) -> str:
    """One comparison in words, with how sure it is."""
    parts = []
    labels = {"free_trait": "trait of replies", "log_odds": "log-odds in nats", "coherence": "coherence"}
    for key, label in labels.items():
        digits = 3 if key == "coherence" else 2
        if found := row["difference"][key]:
            own = interval(row["shift"][key], digits)
            parts.append(f"{label} {interval(found, digits)}, {sure(found, 'more', 'less')} (its own shift: {own})")
    return f"Healed - it: {'; '.join(parts)}."


def named(row: Mapping) -> str:
    """What a row of comparisons compares with, in words."""
    return "simply asking (the persona as system prompt)" if row["name"] == "prompted" else f"control {row['name']!r}"
