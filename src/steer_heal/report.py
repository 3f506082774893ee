"""What a finished run leaves for readers: trajectory plot, summary, HTML page. Reads a ledger only.

Knows nothing of models; every figure comes from the run folder's events and completions.
"""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from steer_heal.completion import Completion, load_completions
from steer_heal.ledger import Ledger
from steer_heal.tables import (
    AGAINST_COLUMNS,
    AGAINST_LEGEND,
    NO_CONTROLS,
    ROUND_COLUMNS,
    ROUND_LEGEND,
    STATE_COLUMNS,
    STATE_LEGEND,
    against_rows,
    decided,
    interval,
    result_line,
    round_rows,
    state_row,
)
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


def event(ledger: Ledger, stage: str) -> dict:
    """The last event of a stage. Raises ValueError when there is none."""
    found = ledger.events(stage)
    if not found:
        raise ValueError(f"{ledger.folder}: no {stage!r} event; the run did not get that far")
    return found[-1]


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


def plot_trajectory(ledger: Ledger, path: Path) -> None:
    """Trait and coherence by round: steered and healed, base and prompted as lines; one question per panel."""
    from matplotlib.figure import Figure

    start, base, prompted = (event(ledger, "start"), *(event(ledger, "baseline")[k] for k in ("base", "prompted")))
    rounds = ledger.events("evaluate")
    panels = [
        ("log_odds", "trait: forced choice, log-odds (nats)", None),
        ("free_trait", "trait: free text (share of replies)", (0, 1)),
        ("sentence_ok", "coherence: sound sentences (share)", (0, 1)),
        ("distinct4", "diversity: distinct 4-grams (share)", (0, 1)),
    ]
    panels = [panel for panel in panels if base[panel[0]] is not None]
    figure = Figure(figsize=(4.2 * len(panels), 4.3), layout="constrained")
    for axis, (key, label, limits) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        x = [e["round"] for e in rounds]
        axis.plot(x, [e["steered"][key] for e in rounds], "^--", color="#d1495b", label="steered (unfiltered)")
        healed = [e["healed"][key] for e in rounds]
        axis.plot([-1, *x], [base[key], *healed], "o-", color="#00798c", label="healed")
        shift = {"free_trait": "free_trait", "log_odds": "log_odds", "sentence_ok": "sentence_ok"}.get(key)
        if shift and rounds and rounds[0]["shift"][shift]:
            bands = [e["shift"][shift] for e in rounds]
            low, high = ([base[key] + b[end] for b in bands] for end in ("low", "high"))
            if limits:
                low, high = ([min(max(v, limits[0]), limits[1]) for v in side] for side in (low, high))
            axis.fill_between(x, low, high, color="#00798c", alpha=0.15, linewidth=0, label="95 % of healed - base")
        axis.axhline(base[key], color="#555555", linewidth=1, label="base")
        axis.axhline(prompted[key], color="#edae49", linewidth=1.5, linestyle=":", label="persona as system prompt")
        axis.set_xlabel("round (-1: base)")
        axis.set_ylabel(label)
        axis.set_xticks([-1, *x])
        if limits:
            axis.set_ylim(limits[0], limits[1] + 0.03)
        axis.grid(alpha=0.25)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    n_items = base["target"]["n"]
    figure.supxlabel(
        f"{start['model']}, trait {start['trait']}, reg {start['reg']}, seed {start['seed']}; "
        f"{n_items} held-out items in both orders, the same held-out prompts for every point",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(lines)


def trajectory_rows(ledger: Ledger) -> list[list[str]]:
    """Base, then steered and healed of every round, then the prompted model."""
    return [state_row(t["name"], t["state"]) for t in event(ledger, "end")["trajectory"]]


def shift_rows(ledger: Ledger) -> list[list[str]]:
    """Per round: paired shifts of the healed student against base, its diversity, its anchors, verdict and gate."""
    verdicts = {e["round"]: e["verdict"] for e in ledger.events("verdict")}
    gates = {e["round"]: e for e in ledger.events("gate")}
    rows = []
    for e in ledger.events("evaluate"):
        r, s = e["round"], e["shift"]
        ratios = [e["healed"][name] / e["base"][name] for name in SHAPE if e["healed"][name] and e["base"][name]]
        rows.append([
            str(r), interval(s["free_trait"]), interval(s["log_odds"]), interval(s["coherence"], 3),
            " ".join(f"{name} {interval(found)}" for name, found in s["off_target"].items()) or "-",
            " ".join(f"{ratio:.2f}" for ratio in ratios) or "-", anchors_lost(gates[r]), verdicts[r],
            decided(gates[r]),
        ])  # fmt: skip
    return rows


def anchors_lost(gate: dict) -> str:
    """`2 of 94`, or a dash where the model had none to lose."""
    return f"{len(gate['regressed'].get('anchors', ()))} of {gate['anchors']}" if gate["anchors"] else "-"


SHIFT_COLUMNS = [
    "round", "free-text trait", "log-odds (nats)", "coherence", "off-target (nats)", "words, 4-grams, entropy / base",
    "anchors lost", "verdict", "gate",
]  # fmt: skip


def headline(ledger: Ledger) -> list[str]:
    """Did the trait move, by how much, at what cost, against which controls, how sure: one sentence each."""
    end = event(ledger, "end")
    best = next((e for e in ledger.events("evaluate") if e["round"] == end["best_round"]), None)
    if best is None:
        return [result_line(end), "Nothing is changed, so nothing moved and nothing was lost."]
    s, base, healed = best["shift"], best["base"], best["healed"]
    gate = next(e for e in ledger.events("gate") if e["round"] == end["best_round"])
    free = f"{interval(s['free_trait'])} of free-text replies, " if s["free_trait"] else ""
    off = ", ".join(f"{name} {interval(found)}" for name, found in s["off_target"].items()) or "not measured"
    shape = ", ".join(
        f"{label} {healed[name] / base[name]:.2f}"
        for name, label in zip(SHAPE, ("words", "distinct 4-grams", "token entropy"), strict=True)
        if healed[name] and base[name]
    )
    return [
        result_line(end),
        f"Trait against base: {free}{interval(s['log_odds'])} nats of log-odds in forced choice.",
        f"Off-target categories against base, nats: {off}.",
        f"Cost: coherence {interval(s['coherence'], 3)}; of base: {shape}; anchors lost: {anchors_lost(gate)}.",
        *[_against_line(row) for row in end["against"] if row["difference"]],
        *([] if end["controls"] == "all" else [NO_CONTROLS]),
    ]


def _against_line(row: dict) -> str:
    """One comparison in words, with how sure it is."""
    name = "simply asking (the persona as system prompt)" if row["name"] == "prompted" else f"control {row['name']!r}"
    parts = []
    for key, label, digits in (
        ("free_trait", "trait of replies", 2), ("log_odds", "log-odds in nats", 2), ("coherence", "coherence", 3),
    ):  # fmt: skip
        if found := row["difference"][key]:
            own = interval(row["shift"][key], digits)
            parts.append(f"{label} {interval(found, digits)}, {_sure(found)} (its own shift: {own})")
    return f"Healed - {name}: {'; '.join(parts)}."


def _sure(difference: dict) -> str:
    if (difference["low"] or 0) > 0:
        return "surely more"
    return "surely less" if (difference["high"] or 0) < 0 else "not surely different"


def borderline(ledger: Ledger, each: int = 2) -> list[tuple[str, Completion]]:
    """A few full completions of the last round: kept, dropped, and those nearest to the filter's perplexity limit."""
    folders = sorted(p for p in (ledger.folder / "rounds").iterdir() if (p / "completions.jsonl").is_file())
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
    """`summary.md`: verdict first, then the tables and a few full completions."""
    start, end = event(ledger, "start"), event(ledger, "end")
    texts = [
        f"**{name}**, dose {c.dose:.2f}\n> {c.prompt}\n>\n> {c.text or '(empty)'}\n" for name, c in borderline(ledger)
    ]
    parts = [
        f"# {end['verdict']}",
        end["text"],
        f"Model {start['model']}, trait {start['trait']}, reg {start['reg']}, seed {start['seed']}, "
        f"{end['seconds']:.0f} s.{f' Ended early: {ended}' if (ended := end['ended_by']) else ''}",
        start.get("note") or "",
        "## In short",
        "\n".join(f"- {line}" for line in headline(ledger)),
        "All intervals are 95 %, over the items or prompts of this run; they do not cover the spread over seeds.",
        "## Base -> steered -> healed",
        markdown_table(STATE_COLUMNS, trajectory_rows(ledger)),
        STATE_LEGEND,
        "## Healed against base, paired, 95 % intervals",
        markdown_table(SHIFT_COLUMNS, shift_rows(ledger)),
        "## What each round did",
        markdown_table(ROUND_COLUMNS, round_rows(ledger.events())),
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
    return environment.get_template("report.html").render(
        start=event(ledger, "start"), end=event(ledger, "end"), picture=picture, state_columns=STATE_COLUMNS,
        state_rows=trajectory_rows(ledger), legend=STATE_LEGEND, shift_columns=SHIFT_COLUMNS,
        shift_rows=shift_rows(ledger), round_columns=ROUND_COLUMNS, round_rows=round_rows(ledger.events()),
        round_legend=ROUND_LEGEND, against_columns=AGAINST_COLUMNS,
        against_rows=against_rows(event(ledger, "end")["against"]),
        against_legend=AGAINST_LEGEND if event(ledger, "end")["controls"] == "all" else NO_CONTROLS,
        headline=headline(ledger), verdicts=ledger.events("verdict"), gates=gate_stories(ledger),
        texts=borderline(ledger, each=4), config=ledger.config,
    )  # fmt: skip
