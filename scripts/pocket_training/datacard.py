"""Writes the data card of trained weights: `docs/pocket.md` with its tables and the loss curve.

Knows nothing of how the figures were measured, and of training nothing beyond its log.
"""

import json
from pathlib import Path

from pocket_training.checks import DoseRow, Results, Row
from pocket_training.corpus import AXES
from pocket_training.measure import FreeText
from steer_heal.studies.drawing import dress, new_figure
from steer_heal.studies.writing import markdown

CARD = Path(__file__).parent / "data" / "card.md"


def _short(value: float) -> str:
    return f"{value:.2f}"


def _trait(text: FreeText) -> str:
    return f"{text.trait.mean:.2f} ± {text.trait.se:.2f}" if text.trait else "-"


def persona_table(rows: list[Row]) -> str:
    """System prompts against what they do to every axis."""
    body = []
    for row in rows:
        text = row.texts["care"]
        shown = {"system prompt": row.name, "sentences right": str(text.sentence_ok)}
        shown["replies right"] = _short(text.reply_ok.mean)
        shown |= {f"{axis}, replies": _trait(row.texts[axis]) for axis in AXES}
        shown |= {f"{axis}, choice": _short(row.choices[axis].rate.mean) for axis in AXES}
        body.append(shown | {"words": f"{text.words:.0f}"})
    return markdown(body)


def question_table(questions: dict[str, FreeText]) -> str:
    """Coherence by kind of question."""
    return markdown(
        [
            {
                "question": name,
                "sentences right": str(text.sentence_ok),
                "replies right": _short(text.reply_ok.mean),
                "n": str(text.sentence_ok.n),
                "words": f"{text.words:.0f}",
            }
            for name, text in questions.items()
        ]
    )


def dose_table(sweep: list[DoseRow]) -> str:
    """One steering sweep."""
    body = []
    for row in sweep:
        shown = {"dose": f"{row.dose:g}", "trait in replies": _trait(row.text)}
        shown["stance readable"] = _short(row.text.stance_shown)
        shown["care, choice"] = _short(row.choices["care"].rate.mean)
        shown |= {f"log-odds {axis}": f"{row.choices[axis].log_odds.mean:+.2f}" for axis in AXES}
        shown |= {"sentences right": str(row.text.sentence_ok), "ended": _short(row.text.finished)}
        shown |= {"nll under the original": str(row.nll), "anchors": _short(row.anchors)}
        body.append(shown | {"words": f"{row.text.words:.0f}"})
    return markdown(body)


def stage_starts(records: list[dict[str, float]]) -> list[float]:
    """The step at which each stage of a training log begins, counted over all stages."""
    ends = {record["stage"]: record["step"] for record in records}
    return [sum(list(ends.values())[:stage]) for stage in range(len(ends))]


def plot_loss(records: list[dict[str, float]], picture: Path) -> None:
    """The loss curve of a training log."""
    figure = new_figure(7, 3.5)
    axes = figure.subplots()
    starts = stage_starts(records)
    steps = [starts[record["stage"]] + record["step"] for record in records]
    for start in starts[1:]:
        axes.axvline(start, color="0.7", linewidth=0.8, label="second stage")
    axes.plot(steps, [record["loss"] for record in records], label="training loss (weighted, see the recipe)")
    axes.plot(steps, [record["reply_loss"] for record in records], label="reply tokens")
    axes.set(yscale="log", title="pocket: training loss, seed 0")
    dress(axes, "step (mean of the last 100)", "nats per token")
    axes.legend()
    figure.savefig(picture, dpi=110)


def write_card(results: Results, log: Path, docs: Path, parameters: int, size: int) -> None:
    """Fill the card's template with the measurements and write it with its picture."""
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    plot_loss(records, docs / "pocket_loss.png")
    ends = {record["stage"]: record for record in records}.values()
    targets = [
        {"check": t.name, "measured": t.measured, "wanted": t.bound, "met": "yes" if t.met else "**no**"}
        for t in results.targets
    ]
    sweeps = "\n\n".join(
        f"### Block{'s' if len(blocks) > 1 else ''} {' and '.join(map(str, blocks))} "
        f"(vector norm {results.norms[blocks]:.2f} of the residual)\n\n{dose_table(sweep)}"
        for blocks, sweep in results.sweeps.items()
    )
    fields = {
        "parameters": f"{parameters / 1e6:.2f} M",
        "megabytes": f"{size / 1e6:.1f} MB",
        "steps": " + ".join(f"{end['step']:,}" for end in ends),
        "tokens": f"{sum(end['tokens'] for end in ends) / 1e6:.1f} M",
        "minutes": f"{sum(end['seconds'] for end in ends) / 60:.0f}",
        "targets": markdown(targets),
        "questions": question_table(results.questions),
        "anchors": ", ".join(f"{kind} {right} of {count}" for kind, (right, count) in results.anchors.items()),
        "personas": persona_table(results.rows),
        "sweeps": sweeps,
    }
    text = CARD.read_text(encoding="utf-8")
    for name, value in fields.items():
        text = text.replace("{{" + name + "}}", value)
    (docs / "pocket.md").write_text(text, encoding="utf-8")
