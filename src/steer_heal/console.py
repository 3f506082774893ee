"""Live output of a run: progress with the remaining time, one table per stage with its columns explained.

Knows nothing of models; it prints what the ledger's events say, so a finished run can be printed again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from steer_heal.tables import (
    AGAINST_COLUMNS,
    AGAINST_LEGEND,
    NO_CONTROLS,
    STATE_COLUMNS,
    STATE_LEGEND,
    against_rows,
    decided,
    interval,
    number,
    result_line,
    state_row,
)

PLAIN_INTERVAL = 10.0
"""Seconds between progress lines when the output is no terminal."""


class Reporter:
    """Prints events as they are recorded, and progress in between. `quiet` leaves the final table only."""

    def __init__(self, console: Console | None = None, quiet: bool = False):
        self.console = console or Console(highlight=False, width=None if Console().is_terminal else 120)
        self.quiet = quiet
        self.started = time.monotonic()
        self._bar: Progress | None = None
        self._task = None
        self._stage = ""
        self._last_line = 0.0
        self._marks: list[float] = []
        self._n_rounds = 0

    def on_event(self, event: dict) -> None:
        """Print one ledger event."""
        self._end_bar()
        show = SHOW.get(event["stage"])
        if show is None or (self.quiet and event["stage"] != "end"):
            return
        show(self.console, event)
        self._remaining(event)

    def of_control(self, name: str) -> Callable[[dict], None]:
        """A listener for a control's own ledger: one line per round, its tables are in its own report."""

        def on_event(event: dict) -> None:
            if event["stage"] == "verdict" and not self.quiet:
                self._end_bar()
                line = f"control {name}, round {event['round']}: {event['verdict']}. {event['text']}"
                self.console.print(line, markup=False)

        return on_event

    def epoch(self, row: dict) -> None:
        """One line of the live table of a heal: an epoch's training and held-out nll, the barrier's mean and firing."""
        if self.quiet:
            return
        self._end_bar()
        if row["epoch"] == 0:
            self.console.print(
                "epoch  nll train  held-out  D aggregated  fired  lam  gradient norm  (means over the epoch)"
            )
        d, fired, lam = (number(row.get(key), digits) for key, digits in (("agg", 3), ("fired", 2), ("lam", 2)))
        self.console.print(
            f"{row['epoch']:5d}  {number(row['train_nll']):>9}  {number(row.get('heldout_nll')):>8}  {d:>12}  "
            f"{fired:>5}  {lam:>3}  {number(row['grad_norm']):>13}",
            markup=False,
        )

    def _remaining(self, event: dict) -> None:
        """After each round, about how long the others will take if they take as long."""
        if event["stage"] == "start":
            self._n_rounds = event["n_rounds"]
        elif event["stage"] == "baseline":
            self._marks = [event["time"]]
        elif event["stage"] == "gate" and not event["ended"] and (left := self._n_rounds - event["round"] - 1):
            self._marks.append(event["time"])
            # The median: a run that was stopped and goes on has a round with the pause in it.
            each = statistics.median(b - a for a, b in pairwise(self._marks))
            self.console.print(f"{left} round(s) to go, about {left * each:.0f} s\n")

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show how far a stage has come; `note` is its rate or current figures."""
        if self.quiet:
            return
        if self.console.is_terminal:
            self._draw_bar(stage, done, total, note)
        elif stage != self._stage or time.monotonic() - self._last_line > PLAIN_INTERVAL:
            self._stage, self._last_line = stage, time.monotonic()
            seconds = time.monotonic() - self.started
            count = f": {done}/{total} {note}" if total > 1 else ""
            self.console.print(f"[{seconds:6.1f} s] {stage}{count}", markup=False)

    def _draw_bar(self, stage: str, done: int, total: int, note: str) -> None:
        if self._bar is None or self._stage != stage:
            self._end_bar()
            self._stage = stage
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(
                *columns, TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                console=self.console, transient=True,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(stage, total=total, note=note)
        self._bar.update(self._task, completed=done, total=total, note=note)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A plain table: first column left, figures right."""
    out = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        out.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        out.add_row(*row)
    return out


def _start(console: Console, e: dict) -> None:
    console.print(
        f"[bold]steer_heal[/bold]  model {e['model']}  trait {e['trait']}  reg {e['reg']}  rounds {e['n_rounds']}  "
        f"seed {e['seed']}  device {e['device']}"
    )
    console.print(f"run folder: {e['folder']}", markup=False, soft_wrap=True)
    if e.get("note"):
        console.print(f"[bold]{e['note']}[/bold]")


def _calibrate(console: Console, e: dict) -> None:
    c = e["calibration"]
    limits = ", ".join(f"{name} {number(value, 2)}" for name, value in e["limits"].items() if value is not None)
    console.print(f"[bold]filter[/bold]: gates {', '.join(e['gates']) or 'none'}")
    console.print(f"limits: {limits}", markup=False)
    console.print(
        f"A completion beyond any limit is dropped. SHOULD: at most {c['false_drop']:.0%} of the model's own unsteered "
        f"text dropped in all; here {c['dropped']} of {c['completions']}."
    )


def _capture(console: Console, e: dict) -> None:
    if not e["tasks"]:
        console.print("[bold]anchors[/bold]: none; the gate cannot see whether known answers are lost (--anchors)")
        return
    missed = f" (not held against it: {', '.join(e['failed'])})" if e["failed"] else ""
    console.print(f"[bold]anchors[/bold]: {e['right']} of {e['tasks']} answered right before training{missed}")


def _baseline(console: Console, e: dict) -> None:
    rows = [state_row("base", e["base"]), state_row("prompted", e["prompted"])]
    console.print(table("baseline on held-out items; prompted: the persona as system prompt", STATE_COLUMNS, rows))
    console.print(STATE_LEGEND)
    console.print("SHOULD: prompted clearly above base on the trait; else the trait's items do not measure it.")


def _round(e: dict) -> str:
    return f"round {e['round']} "


def _extract(console: Console, e: dict) -> None:
    rows = [
        [f"{block} steered" if int(block) in e["layers"] else str(block), number(q["norm"]), number(q["relative_norm"]),
         number(q["split_half_cosine"]), number(q["auc"])]
        for block, q in e["quality"].items()
    ]  # fmt: skip
    columns = ["block", "norm", "norm / residual", "split-half cosine", "held-out AUC"]
    skipped = f", {e['n_skipped']} too long and left out" if e["n_skipped"] else ""
    title = f"extract: vector from {e['n_contexts']} contexts ({e['kind']}{skipped})"
    console.print(table(_round(e) + title, columns, rows))
    console.print(f"Blocks {e['reason']}.", markup=False)
    if unit := e.get("unit"):
        reached = "" if unit["reached"] else " (the target is out of reach)"
        console.print(f"Dose 1 is {unit['dose']:.3g} times that vector: {unit['divergence']:.2f} nats{reached}.")
    console.print(
        f"Cosine with round 0's vector: {number(e['cosine_first'], 2)}. SHOULD: split-half cosine and AUC near 1 "
        "(a reliable direction that separates the personas); a low cosine with round 0 means the direction drifts."
    )


def _walk(console: Console, e: dict) -> None:
    rows = [
        [f"{s['kappa']:.2f}", str(s["n"]), str(s["survived"]), f"{s['survival']:.2f}", str(s["banked"]), s["decision"]]
        for s in e["curve"]
    ]
    console.print(table(_round(e) + "walk-C", ["kappa", "sampled", "kept", "share", "banked", "decision"], rows))
    rows = [
        [f"{d['dose']:.2f}", str(d["n"]), f"{d['kept']:.2f}", number(d["trait"], 2), number(d["trait_kept"], 2),
         number(d["sentence_ok"]), number(d["sentence_ok_kept"])]
        for d in e["per_dose"]
    ]  # fmt: skip
    columns = ["dose", "sampled", "kept share", "trait", "trait of kept", "sentence ok", "sentence ok of kept"]
    console.print(table("", columns, rows))
    dropped = ", ".join(f"{gate} {n}" for gate, n in e["dropped"].items()) or "none"
    console.print(
        f"kappa multiplies every dose. Dropped by gate: {dropped}. SHOULD: trait of kept well above base "
        f"({number(e['trait_base'], 2)}); equal means that steering did not bite and there is nothing to learn."
    )
    console.print("A few of them in full; read them:")
    for x in e["examples"]:
        console.print(
            f"  [{x['why']}, dose {x['dose']:.2f}] {x['prompt']}\n    -> {x['text'] or '(empty)'}", markup=False
        )


def _heal(console: Console, e: dict) -> None:
    f = e["figures"]
    columns = ["", "nll train", "nll held-out", "KL to prev", "KL to base"]
    keys = ("train_nll", "heldout_nll", "kl_prev", "kl_base")
    rows = [[when, *(number(f.get(f"{key}_{when}")) for key in keys)] for when in ("before", "after")]
    title = f"heal: {e['rows']} rows ({e['tokens_cut']} cut by length), {f['steps']} steps, {e['seconds']:.1f} s"
    console.print(table(_round(e) + title, columns, rows))
    barriers = "; ".join(
        f"against {name}: budget {number(tau)} nats, fired on {f[f'{name}_fired']:.0%} of rows, gradient barrier / nll "
        f"{f[f'{name}_ratio']:.2f}, lam {number(e['lam'][name], 2)}"
        for name, tau in e["tau"].items()
    )
    console.print(f"nats per token; KL(student || reference), mean over kept rows. {e['reg']} {barriers}")
    console.print("SHOULD: both nll fall, the barrier fires on some rows. " + ("; ".join(e["notes"]) or "It is so."))


def _bake(console: Console, e: dict) -> None:
    console.print(
        f"{_round(e)}bake: {e['depth']} adapter(s) folded, rounding loss {e['rounding_loss']:.2g}, relative change "
        f"{e['relative_change']:.2g}, cosine of this delta with round 0's {number(e['cosine_first'], 2)}. SHOULD: "
        f"rounding loss under .3, cosine over .5 (else the direction drifts). {e['warning'] or ''}"
    )
    console.print(
        f"The student's mean states moved as far along the vector as a dose of {number(e['shift_dose'], 2)}; cosine of "
        f"their shift with the vector {number(e['cosine_vector'], 2)}. SHOULD: above 0 where the trait moved."
    )


def _evaluate(console: Console, e: dict) -> None:
    rows = [state_row(name, e[name]) for name in ("base", "steered", "healed", "prompted") if name in e]
    console.print(table(_round(e) + "evaluate: same items, same run", STATE_COLUMNS, rows))
    for name, label in (("shift", "healed - base"), ("step", "healed - previous")):
        s = e[name]
        console.print(
            f"{label}, paired, 95 % interval: trait {interval(s['free_trait'])}, log-odds {interval(s['log_odds'])} "
            f"nats, sentence ok {interval(s['sentence_ok'], 3)}; off-target log-odds "
            + (", ".join(f"{name} {interval(found)}" for name, found in s["off_target"].items()) or "-")
        )
    console.print("SHOULD: healed near steered on the trait and near base on sentence ok, 4-grams, words and entropy.")


def _verdict(console: Console, e: dict) -> None:
    console.print(f"[bold]{_round(e)}verdict: {e['verdict']}[/bold]. {e['text']}")


def _memory(console: Console, e: dict) -> None:
    console.print(
        f"memory ran out in {e['unit']}: on with {e['rows']} row(s) per batch; a run without this has other bits.",
        markup=False,
    )


def _gate(console: Console, e: dict) -> None:
    console.print(f"[bold]{_round(e)}gate: {decided(e)}[/bold]")
    for reason in e["reasons"]:
        console.print(f"  {reason}", markup=False)
    if lost := e["regressed"].get("anchors"):
        console.print(f"  anchors lost: {', '.join(lost)}", markup=False)
    if e["outcome"] == "inconclusive":
        console.print(
            f"  An interval crosses an allowed drop; --on-inconclusive {e['on_inconclusive']}: "
            f"{'kept' if e['stands'] else 'reverted'}. More held-out prompts or anchors make it narrower."
        )
    if not e["stands"]:
        weights = f"{e['depth']} earlier round(s)" if e["depth"] else "the original model"
        follows = e["ended"] or f"The next walk starts at kappa {e['kappa_next']:.2f}."
        console.print(f"  The weights are those of {weights} again, bit for bit. {follows}", markup=False)
    console.print()


def _end(console: Console, e: dict) -> None:
    console.print(trajectory_table(e["trajectory"]))
    console.print(STATE_LEGEND)
    compared = against_rows(e["against"])
    console.print(table("the result against the prompted model and controls", AGAINST_COLUMNS, compared))
    console.print(AGAINST_LEGEND if e["controls"] == "all" else NO_CONTROLS)
    console.print(f"[bold]verdict: {e['verdict']}[/bold]. {e['text']}")
    if e["ended_by"]:
        console.print(f"ended early: {e['ended_by']}", markup=False)
    console.print(f"{result_line(e)}  time {e['seconds']:.0f} s")
    console.print(f"written: {e['folder']}", markup=False, soft_wrap=True)


def trajectory_table(trajectory: list[dict]) -> Table:
    """Base, then steered and healed of every round, then the prompted model."""
    return table("base -> steered -> healed", STATE_COLUMNS, [state_row(t["name"], t["state"]) for t in trajectory])


SHOW: dict[str, Callable[[Console, dict], None]] = {
    "start": _start,
    "calibrate": _calibrate,
    "capture": _capture,
    "baseline": _baseline,
    "extract": _extract,
    "walk": _walk,
    "heal": _heal,
    "bake": _bake,
    "evaluate": _evaluate,
    "verdict": _verdict,
    "gate": _gate,
    "end": _end,
    "memory": _memory,
}
