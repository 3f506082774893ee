"""What a finished run leaves for readers: trajectory plot, summary, HTML page. Reads a ledger only.

Knows nothing of models; every figure comes from the run folder's events and completions.
"""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, select_autoescape

from steer_heal.completion import Completion, load_completions
from steer_heal.headline import anchors_lost, event, headline
from steer_heal.ledger import Ledger
from steer_heal.tables import (
    AGAINST_COLUMNS,
    AGAINST_LEGEND,
    NO_CONTROLS,
    ROUND_LEGEND,
    VIGNETTE_LEGEND,
    against_rows,
    decided,
    interval,
    round_table,
    state_legend,
    state_table,
    vignette_table,
)
from steer_heal.trajectory_plot import plot_trajectory
from steer_heal.verdict import SHAPE

RESULT_COLUMNS = (
    "run", "model", "trait", "reg", "seed", "rounds", "verdict", "best_round", "trait_base", "trait_best",
    "log_odds_base", "log_odds_best", "sentence_ok_base", "sentence_ok_best", "reverted", "controls", "seconds",
)  # fmt: skip


def write_report(ledger: Ledger) -> None:
    """Write the pages, and add the run's line to `results.tsv`. Raises ValueError when the run has no `end` event."""
    write_pages(ledger)
    ledger.append_result(result_row(ledger))


def write_pages(ledger: Ledger) -> None:
    """Write `trajectory.png`, `summary.md` and `report.html`. Raises ValueError when the run has no `end` event."""
    plot_trajectory(ledger, ledger.folder / "trajectory.png")
    ledger.write_text("summary.md", summary(ledger))
    ledger.write_text("report.html", html(ledger))


def result_row(ledger: Ledger) -> dict[str, object]:
    """The run as one line of `results.tsv`."""
    start, end, base = event(ledger, "start"), event(ledger, "end"), event(ledger, "baseline")["base"]
    rounds = {e["round"]: e["healed"] for e in ledger.events("evaluate")}
    best = rounds.get(end["best_round"], {})
    values = (
        ledger.folder.name, start["model"], start["trait"], start["reg"], start["seed"], len(rounds), end["verdict"],
        end["best_round"], base["free_trait"], best.get("free_trait"), base["log_odds"], best.get("log_odds"),
        base["sentence_ok"], best.get("sentence_ok"), sum(not e["stands"] for e in ledger.events("gate")),
        end["controls"], end["seconds"],
    )  # fmt: skip
    return dict(zip(RESULT_COLUMNS, values, strict=True))


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(lines)


def trajectory(ledger: Ledger) -> list[tuple[str, dict]]:
    """(name, summary): base, then steered and healed of every round, the prompted model, the controls."""
    return [(t["name"], t["state"]) for t in event(ledger, "end")["trajectory"]]


def shift_rows(ledger: Ledger) -> list[list[str]]:
    """Per round: paired shifts of the healed student against base, its diversity, its anchors and its verdict."""
    verdicts = {e["round"]: e["verdict"] for e in ledger.events("verdict")}
    gates = {e["round"]: e for e in ledger.events("gate")}
    rows = []
    for e in ledger.events("evaluate"):
        r, s = e["round"], e["shift"]
        ratios = [e["healed"][name] / e["base"][name] for name in SHAPE if e["healed"][name] and e["base"][name]]
        rows.append([
            str(r), verdicts[r], interval(s["free_trait"]), interval(s["log_odds"]),
            interval(s["coherence"], 3),
            "; ".join(f"{name} {interval(found)}" for name, found in s["off_target"].items()) or "-",
            " ".join(f"{ratio:.2f}" for ratio in ratios) or "-", anchors_lost(gates[r]),
        ])  # fmt: skip
    return rows


SHIFT_COLUMNS = [
    "round", "verdict", "free-text trait", "log-odds (nats)", "coherence", "off-target (nats)",
    "words, 4-grams, entropy / base", "anchors lost",
]  # fmt: skip


def borderline(ledger: Ledger, each: int = 2) -> list[tuple[str, Completion]]:
    """A few full completions of the last round: kept, dropped, and those nearest to the filter's perplexity limit."""
    whole = (p for p in (ledger.folder / "rounds").iterdir() if p.name.isdigit())
    folders = sorted(p for p in whole if (p / "completions.jsonl").is_file())
    if not folders:
        return []
    rows = load_completions(folders[-1] / "completions.jsonl")
    limit = event(ledger, "calibrate")["limits"].get("nll.high")
    kept, dropped = [c for c in rows if c.kept], [c for c in rows if not c.kept]
    out = [("kept", c) for c in kept[:each]] + [(f"dropped: {c.dropped_by}", c) for c in dropped[:each]]
    if limit is not None:
        near = [c for c in rows if "nll" in c.scores]
        for name, side in (("borderline, kept", kept), ("borderline, dropped", dropped)):
            nearest = sorted((c for c in side if c in near), key=lambda c: abs(c.scores["nll"] - limit))
            out += [(f"{name} (nll {c.scores['nll']:.2f}, limit {limit:.2f})", c) for c in nearest[:each]]
    return out


def summary(ledger: Ledger) -> str:
    """`summary.md`: verdict first, then what a reader asks first, the tables and a few full completions."""
    start, end = event(ledger, "start"), event(ledger, "end")
    texts = [
        f"**{name}**, dose {c.dose:.2f}\n> {c.prompt}\n>\n> {c.text or '(empty)'}\n" for name, c in borderline(ledger)
    ]
    shifts = vignette_table(ledger.events("evaluate"))
    vignettes = ["## Vignettes, healed against base", markdown_table(*shifts), VIGNETTE_LEGEND] if shifts else []
    parts = [
        f"# {end['verdict']}",
        end["text"],
        f"Model {start['model']}, trait {start['trait']}, reg {start['reg']}, seed {start['seed']}, "
        f"{end['seconds']:.0f} s.{f' Ended early: {ended}' if (ended := end['ended_by']) else ''}",
        start.get("note") or "",
        "## In short",
        "\n".join(f"- **{question}** {answer}" for question, answer in headline(ledger)),
        "## Base -> steered -> healed",
        markdown_table(*state_table(trajectory(ledger))),
        state_legend(trajectory(ledger)),
        "## Healed against base, paired, 95 % intervals",
        markdown_table(SHIFT_COLUMNS, shift_rows(ledger)),
        *vignettes,
        "## What each round did",
        markdown_table(*round_table(ledger.events())),
        ROUND_LEGEND,
        "## Against the prompted model and controls",
        markdown_table(AGAINST_COLUMNS, against_rows(end["against"])),
        AGAINST_LEGEND if end["controls"] == "all" else NO_CONTROLS,
        "## Verdict and gate, round by round",
        *round_stories(ledger),
        "![trajectory](trajectory.png)",
        "## Completions of the last round, in full",
        *texts,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def round_stories(ledger: Ledger) -> list[str]:
    """Per round one line: the verdict in words, and what the gate decided and why."""
    gates = gate_stories(ledger)
    return [
        f"- round {e['round']}: **{e['verdict']}**. {e['text']}"
        + (f" Gate: {gates[e['round']]}." if e["round"] in gates else "")
        for e in ledger.events("verdict")
    ]


def gate_stories(ledger: Ledger) -> dict[int, str]:
    """By round: what the gate decided, and why."""
    return {e["round"]: f"{decided(e)}: {'; '.join(gate_reasons(e))}" for e in ledger.events("gate")}


def gate_reasons(gate: dict) -> list[str]:
    """The reasons that decided: all of them for a keep, else those that spoke against it."""
    against = [r for r in gate["reasons"] if not ("surely within" in r or "stands on" in r)]
    return against or gate["reasons"]


def html(ledger: Ledger) -> str:
    """`report.html`: the same in one self-contained page."""
    environment = Environment(loader=PackageLoader("steer_heal", "templates"), autoescape=select_autoescape())
    picture = base64.b64encode((ledger.folder / "trajectory.png").read_bytes()).decode()
    end = event(ledger, "end")
    tables = {
        "state": state_table(trajectory(ledger)),
        "shift": (SHIFT_COLUMNS, shift_rows(ledger)),
        "vignettes": vignette_table(ledger.events("evaluate")),
        "rounds": round_table(ledger.events()),
        "against": (AGAINST_COLUMNS, against_rows(end["against"])),
    }
    return environment.get_template("report.html").render(
        start=event(ledger, "start"), end=end, picture=picture, tables=tables, headline=headline(ledger),
        legend=state_legend(trajectory(ledger)), round_legend=ROUND_LEGEND, vignette_legend=VIGNETTE_LEGEND,
        against_legend=AGAINST_LEGEND if end["controls"] == "all" else NO_CONTROLS,
        verdicts=ledger.events("verdict"), gates=gate_stories(ledger), texts=borderline(ledger, each=4),
        config=ledger.config,
    )  # fmt: skip
