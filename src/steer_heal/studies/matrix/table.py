"""What the cells of a matrix came to: tables, one verdict, replies to read, and a CSV file.

Knows nothing of models.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from steer_heal.report import markdown_table
from steer_heal.statistics import Estimate, paired_difference
from steer_heal.studies.matrix.cells import PAIRS, Column


def difference(columns: Sequence[Column], one: tuple[str, str] | None, other: tuple[str, str]) -> Estimate:
    """nll of `one` (None: before any heal) minus nll of `other`, paired, all seeds side by side, by prompt."""
    mine = [x for c in columns for x in (c.base if one is None else c.cells[one].nll)]
    theirs = [x for c in columns for x in c.cells[other].nll]
    return paired_difference(theirs, mine, [prompt for c in columns for prompt in c.prompts])


def cell_table(columns: Sequence[Column]) -> str:
    """One line per cell, seeds pooled."""
    lines = []
    for key in columns[0].cells:
        cells = [c.cells[key] for c in columns]
        fired = [cell.fired for cell in cells if cell.fired is not None]
        lines.append([
            key[0], key[1], f"{fmean(x for cell in cells for x in cell.nll):.4f}",
            str(difference(columns, None, key)),
            ", ".join(f"{fmean(cell.nll):.4f}" for cell in cells),
            f"{fmean(x for cell in cells for x in cell.kl):.4f}", f"{fmean(fired):.2f}" if fired else "-",
        ])  # fmt: skip
    names = ["pairs", "barrier", "held-out nll", "gain over base [95 %]", "by seed", "KL to base", "fired"]
    return markdown_table(names, lines)


def difference_table(columns: Sequence[Column]) -> str:
    """What the pairs are worth at each barrier, and what the barrier costs at each kind of pairs."""
    names = list(columns[0].probes)
    lines = [
        [f"shuffled - real, barrier {name}", str(difference(columns, ("shuffled", name), ("real", name)))]
        for name in names
    ]
    lines += [
        [f"{name} - off, {pairs} pairs", str(difference(columns, (pairs, name), (pairs, "off")))]
        for pairs in PAIRS[:2] for name in names if name != "off"
    ]  # fmt: skip
    return markdown_table(["difference of held-out nll, nats", "[95 %]"], lines)


def probe_table(columns: Sequence[Column]) -> str:
    """The probes' figures, one line per seed and barrier."""
    lines = []
    for c in columns:
        for name, p in c.probes.items():
            lines.append([
                str(c.seed), name, f"{p.cosine:+.3f}", "-" if p.rest_cosine is None else f"{p.rest_cosine:+.3f}",
                f"{p.mean_share:.2f}", f"{p.entropy:.3f} / {p.log_vocab:.3f}", f"{p.peak_share:.2f}", str(p.gain),
                str(p.lead), f"{p.unsteered_cosine:+.3f}", f"{p.weight_cosines['shuffled']:+.3f}",
                f"{p.weight_cosines['unsteered']:+.3f}", f"{p.size:.3f}", p.verdict,
            ])  # fmt: skip
    names = [
        "seed", "barrier", "cosine to shuffled", "without means", "mean explains", "entropy / log V", "peak kept",
        "gain, nats", "lead over shuffled, nats", "cosine to unsteered", "weights: shuffled", "weights: unsteered",
        "size, logits", "verdict",
    ]  # fmt: skip
    return markdown_table(names, lines)


def verdict(columns: Sequence[Column]) -> str:
    """One sentence over all seeds and barriers."""
    found = {(c.seed, name): p.verdict for c in columns for name, p in c.probes.items()}
    words = set(found.values())
    if words == {"content"}:
        return f"Content: all {len(found)} probes (seeds x barriers) say that the effect depends on the text."
    if words == {"content-free"}:
        return f"A cheap constant win: all {len(found)} probes say that shuffled pairs teach the same constant shift."
    counts = ", ".join(f"{list(found.values()).count(word)} {word}" for word in sorted(words))
    where = "; ".join(f"seed {seed}, {name}: {word}" for (seed, name), word in found.items() if word != "content")
    return f"Mixed: {counts} of {len(found)} probes ({where})."


DECODED = """nll: mean over held-out real completions of their token-mean nll, nats per token; base is the model
before any heal. Intervals pair completions and resample prompts, not seeds. KL to base: token-mean KL(student||base) on
the same completions, nats. fired: share of training rows over the budget. cosine: between the logit shifts on the
held-out positions, all together; without means: after each shift's mean over positions is taken out. mean explains:
share of the real shift's energy. peak kept: of the single positions' log V - H(softmax(shift)), by the mean shift.
gain: base - real; lead: shuffled - real. weights: cosine of the adapters themselves. size: root mean square shift per
token. SHOULD: real pairs gain over base and lead over shuffled ones, with a cosine clearly under 1. Equal nll, cosine
near 1 and a mean that explains nearly all would be a constant shift that any text of the kind teaches."""


def replies_text(columns: Sequence[Column]) -> str:
    """Greedy replies of every cell to held-out prompts, for reading."""
    return "\n".join(
        f"- seed {c.seed}, {cell.pairs}, {cell.barrier}: [{prompt}] {text}"
        for c in columns for cell in c.cells.values() for prompt, text in cell.replies
    )  # fmt: skip


def write_csv(path: Path, columns: Sequence[Column]) -> None:
    """Every cell of every seed, with the probe of its barrier on the real cells, unrounded."""
    figures = ("cosine", "rest_cosine", "mean_share", "entropy", "peak_share", "unsteered_cosine", "size", "verdict")
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["seed", "pairs", "barrier", "nll_base", "nll", "kl_base", "fired", *figures])
        for c in columns:
            for (pairs, name), cell in c.cells.items():
                own = (
                    [getattr(c.probes[name], figure) for figure in figures] if pairs == "real" else [""] * len(figures)
                )
                fired = "" if cell.fired is None else cell.fired
                values = [c.seed, pairs, name, fmean(c.base), fmean(cell.nll), fmean(cell.kl), fired, *own]
                out.writerow(["" if value is None else value for value in values])
