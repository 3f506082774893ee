"""Figures of ledger events as rows of tables, the same for the console, `summary.md` and the HTML page.

Knows nothing of models and of printing; every row is a list of strings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A figure for a table; a dash for one that does not exist."""
    if value is None:
        return "-"
    return f"{value:{'+' if signed else ''}.{digits}f}"


def interval(shift: dict | None, digits: int = 2) -> str:
    """`+0.52 [+0.40, +0.63]`, or a dash."""
    if not shift:
        return "-"
    mean, low, high = (number(shift[k], digits, signed=True) for k in ("value", "low", "high"))
    return f"{mean} [{low}, {high}]"


STATE_COLUMNS = [
    "model", "trait", "log-odds", "sentence ok", "finished", "loops", "4-grams", "words", "entropy", "nll", "mass",
    "anchors",
]  # fmt: skip
STATE_LEGEND = (
    "trait: share of held-out free-text replies on the trait's side; log-odds: of the trait's answer in forced choice, "
    "nats, both orders; sentence ok: share of sound sentences; finished, loops: shares of replies; 4-grams: distinct "
    "ones over all replies; words: per reply; entropy: of the tokens used, nats; nll: of the replies under the "
    "original model, nats per token; mass: probability of the allowed answers (a floor, no measure); anchors: share of "
    "exact questions right."
)


def state_row(name: str, state: dict) -> list[str]:
    """One measured model as a table row (see `STATE_COLUMNS`)."""
    return [
        name, number(state["free_trait"], 2), number(state["log_odds"], 2, signed=True), number(state["sentence_ok"]),
        number(state["finished_rate"], 2), number(state["loop_rate"], 2), number(state["distinct4"], 2),
        number(state["words"], 1), number(state["token_entropy"], 2), number(state["nll"], 2),
        number(state["answer_mass"], 3), number(state["anchors_right"], 2),
    ]  # fmt: skip


ROUND_COLUMNS = [
    "round", "doses", "survival", "kept", "trait of kept", "nll held-out", "KL to previous", "KL to base",
    "cos vector, round 0", "cos delta, round 0", "cos shift, vector", "shift as dose", "rounding loss", "gate",
]  # fmt: skip
ROUND_LEGEND = (
    "doses: times the vector, lowest to highest of the kept texts; survival: share of sampled texts that the filter "
    "kept; trait of kept: by the checker; nll held-out: of kept texts not trained on, before -> after, nats per token; "
    "KL: mean over the kept texts' tokens, KL(student || reference), nats; cosines: this round's vector and adapter "
    "with round 0's, and the shift of the student's mean states with the vector; shift as dose: the dose of steering "
    "that moves the mean states as far along the vector; rounding loss: share of the intended change lost to the "
    "weights' dtype; gate: what was decided, and what followed where that differs."
)


def round_rows(events: Sequence[Mapping]) -> list[list[str]]:
    """What each trained round did, one row each (see `ROUND_COLUMNS`), from the events of a run."""
    rounds: dict[int, dict[str, Mapping]] = {}
    for e in events:
        if e["round"] is not None:
            rounds.setdefault(e["round"], {})[e["stage"]] = e
    rows = []
    for r, e in rounds.items():
        if "gate" not in e:
            continue
        walk, figures, bake = e["walk"], e["heal"]["figures"], e["bake"]
        doses = [d["dose"] for d in walk["per_dose"] if d["kept"]]
        nll = [number(figures.get(f"heldout_nll_{when}")) for when in ("before", "after")]
        rows.append([
            str(r), f"{min(doses):.2f} to {max(doses):.2f}", number(walk["survival"], 2),
            f"{walk['kept']}/{walk['sampled']}", number(walk["trait_kept"], 2), " -> ".join(nll),
            number(figures.get("kl_prev_after")), number(figures.get("kl_base_after")),
            number(e["extract"]["cosine_first"], 2), number(bake["cosine_first"], 2),
            number(bake["cosine_vector"], 2), number(bake["shift_dose"], 2), f"{bake['rounding_loss']:.1g}",
            decided(e["gate"]),
        ])  # fmt: skip
    return rows


def decided(gate: Mapping) -> str:
    """`keep`, `revert`, `inconclusive: reverted`, or what would have been decided where the gate only watches."""
    outcome = gate["outcome"]
    if gate["mode"] == "watch":
        return f"{outcome} (watched only)"
    follows = "keep" if gate["stands"] else "revert"
    return outcome if outcome == follows else f"{outcome}: {'kept' if gate['stands'] else 'reverted'}"


def result_line(end: Mapping) -> str:
    """Which rounds are in the weights that the run hands over."""
    if end["best_round"] is None:
        return "Result: the original model, no round stands."
    folded = ", ".join(map(str, end["folded"]))
    return f"Result: the student of round {end['best_round']} (adapters of rounds {folded} folded in)."


AGAINST_COLUMNS = [
    "compared with", "rounds", "its verdict", "its trait - base", "its log-odds - base", "healed - it: trait",
    "healed - it: log-odds", "healed - it: coherence",
]  # fmt: skip
AGAINST_LEGEND = (
    "Each row: paired differences with 95 % intervals on the same items. trait: in free text, share of replies; "
    "log-odds: in forced choice, nats; coherence: sound sentences, or coherent replies without a checker. A control "
    "runs with the same budget and seed and is compared after as many rounds as the result has; the gate only watches "
    "it. SHOULD: unsteered and random vector move nothing, or away from the trait, and healed is surely above both; "
    "else it was not the vector's content that moved it. Shuffled pairs may carry the trait, in their words, but "
    "lose coherence; if they lose none, the prompts did not matter."
)
NO_CONTROLS = (
    "No controls were run: what the same training does without a vector, with a random one, or with shuffled pairs is "
    "unknown here, so this run alone does not show that the method moved the trait. `--controls all` runs them."
)


def against_rows(against: Sequence[Mapping]) -> list[list[str]]:
    """One row per comparison of the run's result (see `AGAINST_COLUMNS`)."""
    rows = []
    for row in against:
        shift, difference = row["shift"] or {}, row["difference"] or {}
        rows.append([
            row["name"], "-" if row["rounds"] is None else str(row["rounds"]), row["verdict"] or "-",
            interval(shift.get("free_trait")), interval(shift.get("log_odds")),
            interval(difference.get("free_trait")), interval(difference.get("log_odds")),
            interval(difference.get("coherence"), 3),
        ])  # fmt: skip
    return rows
