"""What SHOULD be seen of a student and of a run: trait, text, what else moved, the gate, the controls.

Knows nothing of where it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping

from steer_heal.evaluation.verdict import OF_BASE, Floors, Rules
from steer_heal.report.expectations.sentences import Events, Seen, expected, of_round
from steer_heal.report.tables import gate_reasons, in_words, interval, rises, sure

RULES, FLOORS = Rules(), Floors()


def _trait_of(shift: Mapping) -> Mapping:
    """The shift that the verdict reads: free text where a checker judges it, else forced choice."""
    return shift["free_trait"] or shift["log_odds"]


@expected(
    "evaluate",
    "healed near steered on the trait (at least half of its shift)",
    "the heal lost the trait: more texts or --epochs, a higher --tau",
)
def trait_kept(e: Mapping, events: Events) -> Seen:
    steered, healed = _trait_of(e["steered_shift"]), _trait_of(e["shift"])
    if not rises(steered) or healed["value"] is None:
        return None
    kept = healed["value"] / steered["value"]
    return kept >= RULES.kept, f"{kept:.2f} of the steered shift is left"


@expected(
    "evaluate",
    "healed near base on coherence, words, 4-grams, entropy and fit",
    "the trait was paid for with the text",
)
def text_kept(e: Mapping, events: Events) -> Seen:
    base, healed, off, seen = e["base"], e["healed"], False, []
    if (found := e["shift"]["coherence"]) and found["value"] is not None:
        off = found["value"] < -RULES.back
        seen.append(f"coherence {interval(found, 3)}")
    for name in OF_BASE:
        if healed.get(name) is None or not base.get(name):
            continue
        least = getattr(FLOORS, name) * base[name]
        if name == "pair_fit":  # noisy by reply: only surely
            high = e["shift"][name]["high"]
            off = off or (high is not None and base[name] + high < least)
        else:
            off = off or healed[name] < min(least, e["prompted"][name] or least)
        seen.append(f"{in_words(name)} {healed[name] / base[name]:.2f}")
    return not off, ", ".join(seen)


@expected(
    "evaluate",
    "off-target shifts small beside that of the trait (at most half)",
    "the model moved as a whole and not in the trait alone",
)
def on_target(e: Mapping, events: Events) -> Seen:
    target, off = e["shift"]["log_odds"], e["shift"]["off_target"]
    moved = {name: s for name, s in off.items() if sure(s, "up", "down").startswith("surely")}
    if not off or not sure(target, "up", "down").startswith("surely"):
        return None
    if not moved:
        return True, "nothing else surely moved"
    most = max(moved, key=lambda name: abs(moved[name]["value"]))
    part = abs(moved[most]["value"] / target["value"])
    return part <= RULES.kept, f"{most} moved by {part:.0%} of the target's shift"


@expected(
    "evaluate",
    "the student's mean states moved along the vector where the trait moved",
    "the trait was learnt in another way than steering shows it",
)
def along_the_vector(e: Mapping, events: Events) -> Seen:
    baked = of_round(events, "bake", e["round"])
    if not baked or baked["cosine_vector"] is None or not rises(_trait_of(e["shift"])):
        return None
    return baked["cosine_vector"] > 0, f"cosine {baked['cosine_vector']:.2f}"


@expected(
    "gate",
    "no check of the gate is failed",
    "the round is worse than is allowed (--gate watch only tells of it)",
)
def gate(e: Mapping, events: Events) -> Seen:
    return e["outcome"] != "revert", _first_reason(e) if e["outcome"] == "revert" else "none"


@expected(
    "gate",
    "every check of the gate is decided",
    "an interval crosses what is allowed; more held-out prompts or anchors make it narrower",
)
def gate_is_sure(e: Mapping, events: Events) -> Seen:
    if e["outcome"] == "revert":
        return None
    return e["outcome"] == "keep", "all" if e["outcome"] == "keep" else _first_reason(e)


def _first_reason(gate: Mapping) -> str:
    """The reason that decided, without the sentences behind it, how many more there are, and what followed."""
    first, *others = gate_reasons(gate)
    more = f" (and {len(others)} more)" if others else ""
    follows = "" if gate["stands"] else f"; taken out again, next kappa {gate['kappa_next']:.2f}"
    return f"{first.split('. ')[0]}{more}{follows}"


@expected(
    "end",
    "healed climbs in trait while its coherence stays on base's",
    "the rounds did not grow the trait, or paid for it with the text",
)
def trajectory(e: Mapping, events: Events) -> Seen:
    best = of_round(events, "evaluate", e["best_round"]) if e["best_round"] is not None else None
    if best is None:
        return False, "no round stands"
    trait, coherence = best["shift"]["log_odds"], best["shift"]["coherence"]
    seen = f"round {e['best_round']} log-odds {interval(trait)} nats, coherence {interval(coherence, 3)}"
    return rises(trait) and sure(coherence or {}, "up", "down") != "surely down", seen


def _controls(e: Mapping, *names: str) -> list[Mapping]:
    return [row for row in e["against"] if row["name"] in names and row["shift"]]


def _instruments(of: Mapping) -> list[Mapping]:
    return [of[key] for key in ("free_trait", "log_odds") if of[key]]


@expected(
    "end",
    "unsteered and random vector move nothing, or away from the trait",
    "training on the model's own filtered text moves it too; it was not the vector's content alone",
)
def content(e: Mapping, events: Events) -> Seen:
    rows = _controls(e, "unsteered", "random vector")
    told = "; ".join(f"{row['name']} {', '.join(map(interval, _instruments(row['shift'])))}" for row in rows)
    return (not any(rises(s) for row in rows for s in _instruments(row["shift"])), told) if rows else None


@expected(
    "end",
    "healed surely above unsteered and random vector",
    "it was not the vector's content that moved the trait",
)
def above_controls(e: Mapping, events: Events) -> Seen:
    rows = [row for row in _controls(e, "unsteered", "random vector") if row["difference"]]
    words = [[sure(s, "above", "below") for s in _instruments(row["difference"])] for row in rows]
    told = "; ".join(f"{row['name']}: {', '.join(one)}" for row, one in zip(rows, words, strict=True))
    return (all("surely above" in one and "surely below" not in one for one in words), told) if rows else None


@expected(
    "end",
    "shuffled pairs lose coherence, whatever trait they carry",
    "the prompts did not matter: the same replies behind any prompt teach as much",
)
def pairs(e: Mapping, events: Events) -> Seen:
    rows = [row for row in _controls(e, "shuffled pairs") if (row["difference"] or {}).get("coherence")]
    if not rows:
        return None
    found = rows[0]["difference"]["coherence"]
    return rises(found), f"healed - it {interval(found, 3)} in coherence"
