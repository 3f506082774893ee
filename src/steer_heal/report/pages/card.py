"""The model card of an export: a README.md with the hub's metadata, every figure from the run's records.

Knows nothing of models; what was measured at other strengths is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from steer_heal.ledger import Ledger
from steer_heal.report.headline import event, headline
from steer_heal.report.pages.facts import SHIFT_COLUMNS, Table, options, shift_rows, tables
from steer_heal.report.pages.folder import base_of, environment_of
from steer_heal.report.pages.summary import TEMPLATES
from steer_heal.report.tables import STATE, legend, state_legend, state_table

ADAPTER, MERGED, BAKED = "adapter", "merged model", "model with the vector in its biases"
"""Kinds of folders that have a card."""
OF_DOSE = ("trait", "log-odds", "sentence ok", "coherent", "4-grams", "words")
"""Columns of the table of strengths."""
LIBRARIES = {ADAPTER: "peft", MERGED: "transformers", BAKED: "transformers"}


@dataclass(frozen=True)
class Made:
    """What was exported.

    Attributes:
        base: hub id of the base, or how else it is called. licence: the base's, where it is known.
        number, folded: the round, and all whose adapters are in it. c: factor on them, or on the vector.
        doses: by c, the summary of what was measured there. unmeasured: why there are none.
        notes: what a reader must know beside.
    """

    kind: str
    base: str
    number: int
    folded: Sequence[int] = ()
    c: float = 1.0
    licence: str | None = None
    doses: Mapping[float, Mapping] | None = None
    unmeasured: str = ""
    notes: Sequence[str] = ()


def card(ledger: Ledger, made: Made) -> str:
    """The text of README.md. Raises ValueError when the run has no `end` event, InputError for a damaged file."""
    end = event(ledger, "end")
    judged = {e["round"]: e for e in ledger.events("verdict")}
    is_pick = made.number == end["best_round"]
    named = {f"{made.number} steered", f"{made.number} healed", f"{made.number} healed (reverted)", "base", "prompted"}
    of_run = [(t["name"], t["state"]) for t in end["trajectory"]]
    states = [one for one in of_run if one[0] in named or (is_pick and one[0].startswith("control"))]
    shifts = [row for row in shift_rows(ledger) if row[0] == str(made.number)]
    changed, _ = options(ledger)
    versions = environment_of(ledger).get("versions", {})  # of all that was recorded, what tells no folders and users
    made_with = [(name, version or "none") for name, version in versions.items()]
    return TEMPLATES.get_template("card.md").render(
        metadata=Markup(metadata(ledger, made, end["verdict"] if is_pick else judged[made.number]["verdict"])),
        start=event(ledger, "start"),
        end=end,
        made=made,
        is_pick=is_pick,
        verdict=end if is_pick else judged[made.number],
        system=base_of(ledger).system,
        state=Table(*state_table(states), state_legend(states)),
        shift=Table(SHIFT_COLUMNS, shifts),
        against=tables(ledger)["against"] if is_pick else None,
        doses=dose_table(made.doses or {}, made.c),
        headline=headline(ledger) if is_pick else [],
        options=Table(["option that is not the default", "value", "default"], changed),
        environment=Table(["made with", ""], made_with),
    )


def dose_table(doses: Mapping[float, Mapping], here: float) -> Table:
    """Trait and coherence by strength; `here` is the strength of what was exported."""
    states = [doses[c] for c in sorted(doses)]
    columns = [column for column in STATE if column.head in OF_DOSE and column.shown(states)]
    named = {c: f"{c:g} (this folder)" if c == here != 1 else f"{c:g}" for c in sorted(doses)}
    rows = [[name, *(column.told(doses[c]) for column in columns)] for c, name in named.items()]
    return Table(["c", *(column.head for column in columns)], rows, f"c: factor on what was trained; {legend(columns)}")


def metadata(ledger: Ledger, made: Made, verdict: str) -> str:
    """The block that the hub reads, in YAML; a base that is on no hub stands under `steer_heal` alone."""
    from huggingface_hub import ModelCardData

    on_hub = "/" in made.base and not made.base.startswith(("/", ".", "~"))
    ours = {"base": made.base, "trait": event(ledger, "start")["trait"], "verdict": verdict, "c": made.c}
    return ModelCardData(
        base_model=made.base if on_hub else None,
        library_name=LIBRARIES[made.kind],
        license=made.licence,
        tags=["steer_heal", "activation-steering", *(["lora"] if made.kind == ADAPTER else [])],
        pipeline_tag="text-generation",
        steer_heal=ours,
    ).to_yaml()
