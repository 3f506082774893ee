"""What a finished run leaves for readers: trajectory plot, summary, HTML page. Reads a ledger only.

Knows nothing of models; every figure comes from the run folder's events and completions.
"""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from steer_heal.completion import Completion, load_completions
from steer_heal.console import STATE_COLUMNS, STATE_LEGEND, interval, number, state_row
from steer_heal.ledger import Ledger

RESULT_COLUMNS = (
    "run", "model", "trait", "reg", "seed", "rounds", "verdict", "best_round", "trait_base", "trait_best",
    "log_odds_base", "log_odds_best", "sentence_ok_base", "sentence_ok_best", "seconds",
)  # fmt: skip


def write_report(ledger: Ledger) -> None:
    """Write `trajectory.png`, `summary.md` and `report.html`, and add the run's line to `results.tsv`.

    Raises ValueError when the run has no `end` event.
    """
    plot_trajectory(ledger, ledger.folder / "trajectory.png")
    ledger.write_text("summary.md", summary(ledger))
    ledger.write_text("report.html", html(ledger))
    ledger.append_result(result_row(ledger))


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
        base["sentence_ok"], best.get("sentence_ok"), end["seconds"],
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
    """Per round: paired shifts of the healed student against base, and what the heal saw."""
    heals = {e["round"]: e for e in ledger.events("heal")}
    walks = {e["round"]: e for e in ledger.events("walk")}
    verdicts = {e["round"]: e["verdict"] for e in ledger.events("verdict")}
    rows = []
    for e in ledger.events("evaluate"):
        r, s = e["round"], e["shift"]
        figures = heals[r]["figures"]
        rows.append([
            str(r), f"{walks[r]['kappa']:.2f}", f"{walks[r]['kept']}/{walks[r]['sampled']}",
            number(walks[r]["trait_kept"], 2), interval(s["free_trait"]), interval(s["log_odds"]),
            interval(s["sentence_ok"], 3),
            " ".join(f"{name} {interval(found)}" for name, found in s["off_target"].items()) or "-",
            number(figures.get("kl_base_after")), verdicts.get(r, "-"),
        ])  # fmt: skip
    return rows


SHIFT_COLUMNS = [
    "round", "kappa", "kept", "trait of kept", "free-text trait", "log-odds (nats)", "sentence ok", "off-target (nats)",
    "KL to base (nats)", "verdict",
]  # fmt: skip


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
        f"{end['seconds']:.0f} s. Best round: {end['best_round'] if end['best_round'] is not None else 'none'}.",
        start.get("note") or "",
        "## Base -> steered -> healed",
        markdown_table(STATE_COLUMNS, trajectory_rows(ledger)),
        STATE_LEGEND,
        "## Healed against base, paired, 95 % intervals",
        markdown_table(SHIFT_COLUMNS, shift_rows(ledger)),
        "Intervals: bootstrap over items or prompts; they do not cover the spread over seeds.",
        "## Per round",
        *[f"- round {e['round']}: **{e['verdict']}**. {e['text']}" for e in ledger.events("verdict")],
        "![trajectory](trajectory.png)",
        "## Completions of the last round, in full",
        *texts,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def html(ledger: Ledger) -> str:
    """`report.html`: the same in one self-contained page."""
    environment = Environment(loader=PackageLoader("steer_heal", "templates"), autoescape=select_autoescape())
    picture = base64.b64encode((ledger.folder / "trajectory.png").read_bytes()).decode()
    return environment.get_template("report.html").render(
        start=event(ledger, "start"), end=event(ledger, "end"), picture=picture, state_columns=STATE_COLUMNS,
        state_rows=trajectory_rows(ledger), legend=STATE_LEGEND, shift_columns=SHIFT_COLUMNS,
        shift_rows=shift_rows(ledger), verdicts=ledger.events("verdict"), texts=borderline(ledger, each=4),
        config=ledger.config,
    )  # fmt: skip
