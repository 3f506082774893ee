"""A run on one screen: a header, a line per round and per control, what SHOULD have been seen and was not, the end.

Knows nothing of models; it prints what the events say, so a finished run can be printed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from steer_heal.evaluation.verdict import VERDICTS
from steer_heal.ledger.clock import duration
from steer_heal.report.expectations import Found
from steer_heal.report.tables import (
    NO_CHECKER,
    STATE,
    TONES,
    counted,
    in_words,
    interval,
    kept_doses,
    legend,
    result_line,
    without_checker,
)

COLOURS = {"good": "green", "fair": "yellow", "bad": "red"}
LEFT, KEPT, VERDICT, GATE = 14, 7, 13, 9
"""Widths of what stands in a row beside the figures; with these it fits 80 columns."""
FIGURES = {
    "trait": "trait",
    "log-odds": "log-odds",
    "sentence ok": "sound",
    "coherent": "coherent",
    "4-grams": "4-grams",
    "fit": "fit",
}
"""Columns of the table of measured models that a row has, and their heads here, where the line is short."""
DECODE = (
    "round: with the lowest and highest dose (kappa x --doses) of its kept texts; kept: of the sampled texts; "
    "then the healed student's figures on held-out items. {figures} gate: ? its interval crosses what is "
    "allowed; (brackets): only watched."
)


class Screen:
    """Prints the events of a run, one after the other."""

    def __init__(self, console: Console):
        self.console = console
        self.columns = [replace(column, head=FIGURES[column.head]) for column in STATE if column.head in FIGURES]
        self.told: set[str] = set()  # expectations whose failure has been explained

    def show(self, event: Mapping, events: Sequence[Mapping], found: Sequence[Found]) -> None:
        """Print what an event adds to the screen, then what it SHOULD have shown and did not.

        Args:
            events: the run's events up to this one.
        """
        stage, number = event["stage"], event["round"]
        if stage == "start":
            self._header(event)
        elif stage == "baseline":
            self._baseline(event)
        elif line := asides(event):
            self._line(line)
        elif stage == "gate" or (stage == "verdict" and event["verdict"] in ("starved", "diverged")):
            self._round(number, {e["stage"]: e for e in events if e["round"] == number})
        self._failures(found)
        if stage == "gate" and event["ended"]:
            self._line(f"The run ends: {in_words(event['ended'])}")
        if stage == "end":
            self.end(event, events)

    def control(self, name: str, events: Sequence[Mapping]) -> None:
        """The line of a control that came to its end: its last round, and its verdict."""
        rounds = {e["stage"]: e for e in events if e["round"] is not None}
        told = counted(sum(e["stage"] == "verdict" for e in events), "round")
        self._row(name, rounds.get("walk"), rounds.get("evaluate"), events[-1]["verdict"], told)

    def _header(self, e: Mapping) -> None:
        self.console.print(
            f"[bold]steer_heal[/bold]  model {escape(e['model'])}  trait {escape(e['trait'])}  reg {escape(e['reg'])}  "
            f"rounds {e['n_rounds']}  seed {e['seed']}  {e['device']}",
            markup=True,
        )
        self._line(f"run folder: {e['folder']}")
        if e.get("note"):
            self._line(e["note"], "bold")
        for line in e.get("idle", ()):
            self._line(f"! {line}", "yellow")

    def _baseline(self, e: Mapping) -> None:
        self.columns = [column for column in self.columns if column.shown([e["base"]])]
        self.console.print(DECODE.format(figures=legend(self.columns)), markup=False, style="dim")
        heads = [f"{column.head:>{column.width}}" for column in self.columns]
        head = [f"{'round, doses':<{LEFT}}", f"{'kept':>{KEPT}}", *heads, f"{'verdict':<{VERDICT}}", "gate"]
        self._line(" ".join(head), "bold")
        for name in ("base", "prompted"):
            self._row(name, None, {"healed": e[name]}, "", "")

    def _round(self, number: int, of_round: Mapping[str, Mapping]) -> None:
        walk, gate = of_round.get("walk"), of_round.get("gate")
        left = f"{number} {kept_doses(walk)}" if walk else str(number)
        told = gate_mark(gate) if gate else "-"
        self._row(left, walk, of_round.get("evaluate"), of_round["verdict"]["verdict"], told)

    def _row(self, left: str, walk: Mapping | None, evaluated: Mapping | None, verdict: str, gate: str) -> None:
        kept = f"{walk['kept']}/{walk['sampled']}" if walk else ""
        figures = [column.told(evaluated["healed"] if evaluated else None) for column in self.columns]
        cells = [f"{left:<{LEFT}}", f"{kept:>{KEPT}}"]
        cells += [f"{figure:>{column.width}}" for figure, column in zip(figures, self.columns, strict=True)]
        colour = COLOURS[TONES.get(verdict, "fair")]
        end = [f"[{colour}]{verdict:<{VERDICT}}[/]" if verdict else "", escape(gate)]
        self.console.print(" ".join([*map(escape, cells), *end]).rstrip(), soft_wrap=True, markup=True)

    def _failures(self, found: Sequence[Found]) -> None:
        """What SHOULD have been seen and was not: with its meaning the first time, then with the figures alone."""
        for one in found:
            if one.holds:
                continue
            where = one.of.stage if one.round is None else f"{one.of.stage} of round {one.round}"
            if one.of.name in self.told:
                self._line(f"! {where}, again: {one.seen}.", "yellow", wrapped=True)
                continue
            self.told.add(one.of.name)
            text = f"! {where}: {one.seen}. SHOULD: {one.of.should}. It means: {one.of.meaning}."
            self._line(text, "yellow", wrapped=True)

    def end(self, e: Mapping, events: Sequence[Mapping]) -> None:
        """The result against base, the prompted model and the controls, and the verdict."""
        self.console.print()
        best = next((x for x in events if x["stage"] == "evaluate" and x["round"] == e["best_round"]), None)
        if best is not None:
            self._result(e, best)
        colour = COLOURS[TONES.get(e["verdict"], "fair")]
        said = Text.assemble((f"verdict: {e['verdict']}", f"bold {colour}"), f": {VERDICTS.get(e['verdict'], '')}.")
        self.console.print(said)
        self._line(f"{result_line(e)} Time {duration(e['seconds'])}.")
        if e["ended_by"]:
            self._line(f"Ended early: {in_words(e['ended_by'])}")

    def _result(self, e: Mapping, best: Mapping) -> None:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        keys = {"trait": "free_trait", "log-odds, nats": "log_odds", "coherence": "coherence"}
        keys = {head: key for head, key in keys.items() if best["shift"][key]}
        for head in (f"round {e['best_round']} minus", *keys):
            table.add_column(head, no_wrap=False)
        compared = [("base", best["shift"]), *((row["name"], row["difference"]) for row in e["against"])]
        for name, shift in compared:
            if shift:
                figures = (interval(shift[key], 3 if key == "coherence" else 2) for key in keys.values())
                table.add_row(*map(Text, (name, *figures)))
        self.console.print(table)
        told = ["Paired, with 95 % intervals over items, not over seeds."]
        if unseen := best["shift"].get("held_out_log_odds"):
            told.append(f"On formats not seen in training: log-odds {interval(unseen)} nats.")
        if off := {name: s for name, s in best["shift"]["off_target"].items() if s["value"] is not None}:
            most = max(off, key=lambda name: abs(off[name]["value"]))
            told.append(f"Off target the most: {most} {interval(off[most])} nats.")
        if e["controls"] != "all":
            told.append("No controls (--controls all): this run alone does not show that the method moved the trait.")
        self.console.print(" ".join(told), markup=False)
        if without_checker(best["base"]):
            self._line(NO_CHECKER, "yellow", wrapped=True)

    def _line(self, text: str, style: str | None = None, wrapped: bool = False) -> None:
        self.console.print(text, markup=False, style=style, soft_wrap=not wrapped)


def gate_mark(gate: Mapping) -> str:
    """What the gate did, in at most nine letters: `kept`, `reverted?`, `(revert)`."""
    if gate["mode"] == "watch":
        return {"inconclusive": "(unsure)"}.get(gate["outcome"], f"({gate['outcome']})")
    return ("kept" if gate["stands"] else "reverted") + ("?" if gate["outcome"] == "inconclusive" else "")


def asides(event: Mapping) -> str:
    """What is told in one line wherever a run is shown: batches that were halved, a heal that broke off."""
    if event["stage"] == "memory":
        rows = counted(event["rows"], "row")
        return f"memory ran out in {event['unit']}: on with {rows} per batch; a run without this has other bits."
    if event["stage"] != "diverged":
        return ""
    left = "the rows and the last good adapter" if event["adapter"] else "the rows (no step had been taken)"
    return f"round {event['round']} heal stopped; {left} are in {event['folder']}"
