"""Figures of ledger events as rows of tables, the same for the console, `summary.md` and the HTML page.

Knows nothing of models and of printing; every row is a list of strings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import itemgetter, methodcaller


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A figure for a table; a dash for one that does not exist."""
    if value is None:
        return "-"
    return f"{value:{'+' if signed else ''}.{digits}f}"


def interval(shift: dict | None, digits: int = 2) -> str:
    """`+0.52 [+0.40, +0.63]`, or a dash; `+0.52 [too few]` where under four clusters leave the interval infinite."""
    if not shift:
        return "-"
    if shift["low"] is None and shift["high"] is None:
        return f"{number(shift['value'], digits, signed=True)} [too few]"
    mean, low, high = (number(shift[k], digits, signed=True) for k in ("value", "low", "high"))
    return f"{mean} [{low}, {high}]"


def rises(shift: Mapping | None) -> bool:
    """The whole 95 % interval is above 0."""
    return shift is not None and (shift["low"] or 0) > 0


def sure(shift: Mapping, more: str, less: str) -> str:
    """`surely more`, `surely less` or `not surely different`, by the interval."""
    if rises(shift):
        return f"surely {more}"
    return f"surely {less}" if (shift["high"] or 0) < 0 else "not surely different"


WORDS = {"distinct4": "4-grams", "token_entropy": "entropy", "pair_fit": "fit"}
"""Figures whose name in events is not the one that readers see everywhere."""


def in_words(text: str) -> str:
    """A text of an event in the words that tables use."""
    for name, word in WORDS.items():
        text = text.replace(name, word)
    return text


def counted(n: int, thing: str) -> str:
    """`1 round`, `2 rounds`."""
    return f"{n} {thing}{'' if n == 1 else 's'}"


TONES = dict.fromkeys(("unhealed", "broad", "throttled", "undone", "moved against", "no-op", "inconclusive"), "fair")
TONES |= dict.fromkeys(("healed", "moved"), "good")
TONES |= dict.fromkeys(("collapsed", "unfit", "shorter", "starved", "diverged", "reverted"), "bad")
"""How a verdict is coloured."""

Figure = Callable[[Mapping], float | None]


@dataclass(frozen=True)
class Column:
    """A column of the table of measured models: its head, its figure of a state's summary, and what it means.

    It is in the table only where some state has the figure; one that is `of_trouble` only where it is not 0 for some.
    """

    head: str
    figure: Figure
    meaning: str
    digits: int = 2
    signed: bool = False
    of_trouble: bool = False

    @property
    def width(self) -> int:
        """Of the column where it is printed with others in a line."""
        return max(len(self.head), self.digits + 2)

    def told(self, state: Mapping | None) -> str:
        """The figure of a state, a dash where there is none."""
        return number(state and self.figure(state), self.digits, self.signed)

    def shown(self, states: Sequence[Mapping]) -> bool:
        if self.of_trouble:
            return any(map(self.figure, states))
        return any(self.figure(state) is not None for state in states)


def _of_vignettes(*path: str) -> Figure:
    """A figure of the vignettes of a state, None where there are none."""
    return lambda state: reduce(lambda found, name: found and found[name], path, state["vignettes"])


STATE = (
    Column("trait", itemgetter("free_trait"), "share on the trait's side, of held-out free-text replies with a stance"),
    Column("stance", itemgetter("decided"), "share of those replies that take a stance at all"),
    Column("log-odds", itemgetter("log_odds"), "of the trait's answer in forced choice, nats, all orders", signed=True),
    Column(
        "unseen formats",
        lambda state: state.get("held_out_log_odds"),
        "log-odds of a quarter of the items, asked in formats that no training text has, nats",
        signed=True,
    ),
    Column("sentence ok", itemgetter("sentence_ok"), "share of sound sentences", digits=3),
    Column(
        "coherent",
        lambda state: state.get("coherence") if state["sentence_ok"] is None else None,
        "share of replies that neither loop nor surprise the original model; without a checker the gate goes by it",
        digits=3,
    ),
    Column("finished", itemgetter("finished_rate"), "share of replies that ended by themselves"),
    Column("loops", itemgetter("loop_rate"), "share of replies that repeat themselves"),
    Column("empty", itemgetter("empty_rate"), "share of replies without a word", of_trouble=True),
    Column("4-grams", itemgetter("distinct4"), "distinct ones over all replies"),
    Column("words", itemgetter("words"), "per reply", digits=1),
    Column("entropy", itemgetter("token_entropy"), "of the tokens used, nats"),
    Column("nll", itemgetter("nll"), "of the replies under the original model, nats per token"),
    Column("fit", methodcaller("get", "pair_fit"), "to their own prompts over others, nats per token"),
    Column("mass", itemgetter("answer_mass"), "probability of the allowed answers (a floor, no measure)", digits=3),
    Column("anchors", itemgetter("anchors_right"), "share of exact questions right"),
    Column("closed", itemgetter("think_closed"), "share of questions whose thinking was closed in time"),
    Column("vignettes", _of_vignettes("contrast"), "the trait's foundations against each other, nats", signed=True),
    Column("wrong", _of_vignettes("wrong"), 'log-odds of "yes" to the agreement question, nats', signed=True),
    Column("human KL", _of_vignettes("human", "kl"), "of the model's answers from the raters', nats; 0: they agree"),
    Column("human top", _of_vignettes("human", "top"), "share of vignettes where raters and model agree on the first"),
)
"""What is shown of a measured model; see `docs/evaluation.md`."""


def state_table(named: Sequence[tuple[str, Mapping]]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of measured models, from their names and summaries."""
    columns = _shown(named)
    rows = [[name, *(c.told(state) for c in columns)] for name, state in named]
    return ["model", *(c.head for c in columns)], rows


def state_legend(named: Sequence[tuple[str, Mapping]]) -> str:
    """What the columns of `state_table` mean."""
    return legend(_shown(named))


def legend(columns: Sequence[Column]) -> str:
    """What columns mean."""
    return "; ".join(f"{c.head}: {c.meaning}" for c in columns) + "."


def _shown(named: Sequence[tuple[str, Mapping]]) -> list[Column]:
    return [column for column in STATE if column.shown([state for _, state in named])]


VIGNETTE_LEGEND = (
    "Which moral foundation a scene goes against most: shifts of the log-odds of its being named, over ALL scenes, "
    'nats; contrast: the trait\'s foundations against each other; wrong: log-odds of "yes" to the agreement question. '
    "A foundation in the trait is a target, every other is off-target."
)


def vignette_table(events: Sequence[Mapping]) -> tuple[list[str], list[list[str]]] | None:
    """(columns, rows) of the vignettes' shifts against base, from `evaluate` events; None without vignettes."""
    shifts = [(e["round"], e["shift"]) for e in events if e["shift"]["vignettes"]]
    if not shifts:
        return None
    _, first = shifts[0]
    heads = {"contrast": "vignette_contrast", "wrong": "vignette_wrong"}
    heads = {head: key for head, key in heads.items() if first[key]}
    target = first["vignette_target"]
    names = sorted(first["vignettes"], key=lambda name: name not in target)
    columns = ["round", *heads, *(f"{name} (trait)" if name in target else name for name in names)]
    rows = [
        [str(r), *(interval(s[key]) for key in heads.values()), *(interval(s["vignettes"][name]) for name in names)]
        for r, s in shifts
    ]
    return columns, rows


ROUND_LEGEND = (
    "doses: times the vector, lowest to highest of the kept texts; survival: share of sampled texts that the filter "
    "kept; trait and sound of kept: by the checker; tokens: per training row, as they are -> as weighted; nll "
    "held-out: of kept texts not trained on, before -> after, nats per token; fired: share of the rows over the "
    "barrier's budget, per reference (none: plain fine-tuning); KL: mean over the kept texts of each one's mean per "
    "token (on replay: over the original model's own), KL(student || reference), nats; cosines: this round's vector "
    "and adapter with round 0's, and the shift of the student's mean states with the vector; shift as dose: the "
    "dose of steering that moves the mean states as far along the vector; rounding loss: share of the intended "
    "change lost to the weights' dtype; gate: what was decided, and what followed where that differs."
)


def filled(rows: Sequence[Mapping[str, str]]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of rows by column; a column in which none has a figure is left out."""
    columns = [name for name in (rows[0] if rows else ()) if any(row[name] != "-" for row in rows)]
    return columns, [[row[name] for name in columns] for row in rows]


def round_table(events: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): what each trained round did, from the events of a run; columns without a figure are left out."""
    rows, rounds = [], {}
    for one in events:
        rounds.setdefault(one["round"], {})[one["stage"]] = one
    for r, e in rounds.items():
        if "gate" not in e:
            continue
        walk, figures, bake = e["walk"], e["heal"]["figures"], e["bake"]
        nll = [number(figures.get(f"heldout_nll_{when}")) for when in ("before", "after")]
        row = {
            "round": str(r),
            "doses": kept_doses(walk),
            "survival": number(walk["survival"], 2),
            "kept": f"{walk['kept']}/{walk['sampled']}",
            "trait of kept": number(walk["trait_kept"], 2),
            "sound of kept": number(walk.get("sentence_ok_kept"), 2),
            "tokens": lengths(e["heal"]),
            "nll held-out": " -> ".join(nll),
            "fired": fired(e["heal"]),
            "KL to previous": number(figures.get("kl_prev_after")),
            "KL to base": number(figures.get("kl_base_after")),
            "KL to base on replay": number(figures.get("kl_base_replay_after")),
            "cos vector, round 0": number(e["extract"]["cosine_first"], 2),
            "cos delta, round 0": number(bake["cosine_first"], 2),
            "cos shift, vector": number(bake["cosine_vector"], 2),
            "shift as dose": number(bake["shift_dose"], 2),
            "rounding loss": f"{bake['rounding_loss']:.1g}",
            "gate": decided(e["gate"]),
        }
        rows.append(row)
    return filled(rows)


def kept_doses(walk: Mapping) -> str:
    """`0.50-1.00`: the lowest and the highest dose that texts were kept from, or else of all."""
    doses = [d["dose"] for d in walk["per_dose"] if d["kept"]] or [d["dose"] for d in walk["per_dose"]]
    return "-".join(f"{dose:.2f}" for dose in dict.fromkeys((min(doses), max(doses))))


def lengths(heal: Mapping) -> str:
    """`28.1 -> 33.0`: tokens of a training row, as they are and as they are weighted."""
    return " -> ".join(number(heal["lengths"][key], 1) for key in ("mean", "weighted"))


def share(value: float) -> str:
    """A share in percent; one that is small, but not 0, never reads as 0%."""
    return f"{value:.2%}" if 0 < value < 0.01 else f"{value:.0%}"


def fired(heal: Mapping) -> str:
    """`0.16%`, or by reference `prev 3%, base 0.16%`: the share of the rows over a barrier's budget; a dash without."""
    found = {name: share(heal["figures"][f"{name}_fired"]) for name in heal["tau"]}
    return ", ".join(found.values() if len(found) == 1 else (f"{name} {one}" for name, one in found.items())) or "-"


def decided(gate: Mapping) -> str:
    """`keep`, `revert`, `inconclusive: reverted`, or what would have been decided where the gate only watches."""
    outcome = gate["outcome"]
    if gate["mode"] == "watch":
        return f"{outcome} (watched only)"
    follows = "keep" if gate["stands"] else "revert"
    return outcome if outcome == follows else f"{outcome}: {'kept' if gate['stands'] else 'reverted'}"


def gate_reasons(gate: Mapping) -> list[str]:
    """The reasons that decided, in words: all of them for a keep, else those that spoke against it."""
    harmless = ("surely within", "stands on", "not surely under")
    against = [r for r in gate["reasons"] if not any(words in r for words in harmless)]
    return [in_words(reason) for reason in against or gate["reasons"]]


def anchors_lost(gate: Mapping) -> str:
    """`2 of 94`, or a dash where the model had none to lose."""
    return f"{len(gate['regressed'].get('anchors', ()))} of {gate['anchors']}" if gate["anchors"] else "-"


def result_line(end: Mapping) -> str:
    """Which rounds are in the weights that the run hands over."""
    if end["best_round"] is None:
        return "Result: the original model, no round stands."
    folded = end["folded"]
    adapters = (
        f"adapter of round {folded[0]}" if len(folded) == 1 else f"adapters of rounds {', '.join(map(str, folded))}"
    )
    return f"Result: the student of round {end['best_round']} ({adapters} folded in)."


NO_CHECKER = (
    "The trait has no checker: forced choice alone does not show what the trait means in text. See in the report which "
    "words changed, and read the replies."
)


def without_checker(state: Mapping) -> bool:
    """Whether nobody judged a measured model's replies."""
    return state["decided"] is None


AGAINST_LEGEND = (
    "Each row: paired differences with 95 % intervals on the same items. trait: in free text, share of replies; "
    "log-odds: in forced choice, nats; coherence: sound sentences, or coherent replies without a checker."
)
WITH_CONTROLS = (
    "A control runs with the same budget and seed and is compared after as many rounds as the result has; the gate "
    "only watches it. Shuffled pairs may carry the trait, in their words."
)
NO_CONTROLS = (
    "No controls were run: what the same training does without a vector, with a random one, or with shuffled pairs is "
    "unknown here, so this run alone does not show that the method moved the trait. --controls all runs them."
)


def against_legend(end: Mapping) -> str:
    """What the table of `against_table` shows, and of controls what it SHOULD, or that there are none."""
    return f"{AGAINST_LEGEND} {WITH_CONTROLS if end['controls'] == 'all' else NO_CONTROLS}"


def against_table(against: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows), a row per comparison of the run's result; columns without a figure are left out."""
    rows = []
    for row in against:
        shift, difference = row["shift"] or {}, row["difference"] or {}
        told = {"compared with": row["name"], "rounds": "-" if row["rounds"] is None else str(row["rounds"])}
        told["its verdict"] = row["verdict"] or "-"
        told["its trait - base"] = interval(shift.get("free_trait"))
        told["its log-odds - base"] = interval(shift.get("log_odds"))
        told["healed - it: trait"] = interval(difference.get("free_trait"))
        told["healed - it: log-odds"] = interval(difference.get("log_odds"))
        told["healed - it: coherence"] = interval(difference.get("coherence"), 3)
        rows.append(told)
    return filled(rows)
