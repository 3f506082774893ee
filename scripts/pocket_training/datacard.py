"""Writes the data card of trained weights: `docs/pocket.md` with its tables and the loss curve.

Knows nothing of how the figures were measured, and of training nothing beyond its log.
"""

import json
from pathlib import Path

from pocket_training.checks import DoseRow, Row
from pocket_training.corpus import AXES
from pocket_training.measure import FreeText
from pocket_training.targets import Results

CARD = Path(__file__).parent / "data" / "card.md"


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _short(value: float) -> str:
    return f"{value:.2f}"


def persona_table(rows: list[Row]) -> str:
    """System prompts against what they do to every axis."""
    body = []
    for row in rows:
        text = row.texts["care"]
        traits = [f"{t.mean:.2f} ± {t.se:.2f}" if (t := row.texts[axis].trait) else "-" for axis in AXES]
        picks = [_short(row.choices[axis].rate.mean) for axis in AXES]
        body.append([row.name, str(text.sentence_ok), _short(text.reply_ok.mean), *traits, *picks, f"{text.words:.0f}"])
    head = [
        "system prompt",
        "sentences right",
        "replies right",
        *[f"{axis}, replies" for axis in AXES],
        *[f"{axis}, choice" for axis in AXES],
        "words",
    ]
    return _table(head, body)


def question_table(questions: dict[str, FreeText]) -> str:
    """Coherence by kind of question."""
    body = [
        [name, str(text.sentence_ok), _short(text.reply_ok.mean), str(text.sentence_ok.n), f"{text.words:.0f}"]
        for name, text in questions.items()
    ]
    return _table(["question", "sentences right", "replies right", "n", "words"], body)


def dose_table(sweep: list[DoseRow]) -> str:
    """One steering sweep."""
    body = []
    for row in sweep:
        trait = f"{row.text.trait.mean:.2f} ± {row.text.trait.se:.2f}" if row.text.trait else "-"
        odds = [f"{row.choices[axis].log_odds.mean:+.2f}" for axis in AXES]
        body.append(
            [
                f"{row.dose:g}",
                trait,
                _short(row.text.stance_shown),
                _short(row.choices["care"].rate.mean),
                *odds,
                str(row.text.sentence_ok),
                _short(row.text.finished),
                str(row.nll),
                _short(row.anchors),
                f"{row.text.words:.0f}",
            ]
        )
    head = [
        "dose",
        "trait in replies",
        "stance readable",
        "care, choice",
        *[f"log-odds {axis}" for axis in AXES],
        "sentences right",
        "ended",
        "nll under the original",
        "anchors",
        "words",
    ]
    return _table(head, body)


def stage_starts(records: list[dict[str, float]]) -> list[float]:
    """The step at which each stage of a training log begins, counted over all stages."""
    ends = {record["stage"]: record["step"] for record in records}
    return [sum(list(ends.values())[:stage]) for stage in range(len(ends))]


def plot_loss(log: Path, picture: Path) -> None:
    """The loss curve of a training log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    starts = stage_starts(records)
    steps = [starts[record["stage"]] + record["step"] for record in records]
    for start in starts[1:]:
        axes.axvline(start, color="0.7", linewidth=0.8, label="second stage")
    axes.plot(steps, [record["loss"] for record in records], label="training loss (weighted, see the recipe)")
    axes.plot(steps, [record["reply_loss"] for record in records], label="reply tokens")
    axes.set(
        xlabel="step (mean of the last 100)",
        ylabel="nats per token",
        yscale="log",
        title="pocket: training loss, seed 0",
    )
    axes.legend()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def write_card(results: Results, log: Path, docs: Path, parameters: int, size: int) -> None:
    """Fill the card's template with the measurements and write it with its picture."""
    plot_loss(log, docs / "pocket_loss.png")
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    ends = {record["stage"]: record for record in records}.values()
    targets = _table(
        ["check", "measured", "wanted", "met"],
        [[t.name, t.measured, t.bound, "yes" if t.met else "**no**"] for t in results.targets],
    )
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
        "targets": targets,
        "questions": question_table(results.questions),
        "anchors": ", ".join(f"{kind} {right} of {count}" for kind, (right, count) in results.anchors.items()),
        "personas": persona_table(results.rows),
        "sweeps": sweeps,
    }
    text = CARD.read_text(encoding="utf-8")
    for name, value in fields.items():
        text = text.replace("{{" + name + "}}", value)
    (docs / "pocket.md").write_text(text, encoding="utf-8")
