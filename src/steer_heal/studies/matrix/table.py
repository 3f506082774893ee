"""What the cells of a matrix came to: tables, one verdict, replies to read, and a CSV file.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from steer_heal.report.tables import number
from steer_heal.statistics import Estimate, paired_difference
from steer_heal.studies.matrix.cells import PAIRS, Column
from steer_heal.studies.writing import markdown, write_csv, write_page


def difference(columns: Sequence[Column], one: tuple[str, str] | None, other: tuple[str, str]) -> Estimate:
    """nll of `one` (None: before any heal) minus nll of `other`, paired, all seeds side by side, by prompt."""
    mine = [x for c in columns for x in (c.base if one is None else c.cells[one].nll)]
    theirs = [x for c in columns for x in c.cells[other].nll]
    return paired_difference(theirs, mine, [prompt for c in columns for prompt in c.prompts])


def cell_table(columns: Sequence[Column]) -> str:
    """One line per cell, seeds pooled."""
    rows = []
    for key in columns[0].cells:
        cells = [c.cells[key] for c in columns]
        fired = [cell.fired for cell in cells if cell.fired is not None]
        rows.append(
            {
                "pairs": key[0],
                "barrier": key[1],
                "held-out nll": f"{fmean(x for cell in cells for x in cell.nll):.4f}",
                "gain over base [95 %]": str(difference(columns, None, key)),
                "by seed": ", ".join(f"{fmean(cell.nll):.4f}" for cell in cells),
                "KL to base": f"{fmean(x for cell in cells for x in cell.kl):.4f}",
                "fired": f"{fmean(fired):.2f}" if fired else "-",
            }
        )
    return markdown(rows)


def difference_table(columns: Sequence[Column]) -> str:
    """What the pairs are worth at each barrier, and what the barrier costs at each kind of pairs."""
    names = list(columns[0].probes)
    compared = {f"shuffled - real, barrier {name}": (("shuffled", name), ("real", name)) for name in names}
    for pairs in PAIRS[:2]:
        on = [name for name in names if name != "off"]
        compared |= {f"{name} - off, {pairs} pairs": ((pairs, name), (pairs, "off")) for name in on}
    head = "difference of held-out nll, nats"
    return markdown([{head: what, "[95 %]": str(difference(columns, *two))} for what, two in compared.items()])


def probe_table(columns: Sequence[Column]) -> str:
    """The probes' figures, one line per seed and barrier."""
    return markdown(
        [
            {
                "seed": str(c.seed),
                "barrier": name,
                "cosine to shuffled": number(p.cosine, signed=True),
                "without means": number(p.rest_cosine, signed=True),
                "mean explains": number(p.mean_share, 2),
                "entropy / log V": f"{p.entropy:.3f} / {p.log_vocab:.3f}",
                "peak kept": number(p.peak_share, 2),
                "gain, nats": str(p.gain),
                "lead over shuffled, nats": str(p.lead),
                "cosine to unsteered": number(p.unsteered_cosine, signed=True),
                "weights: shuffled": number(p.weight_cosines["shuffled"], signed=True),
                "weights: unsteered": number(p.weight_cosines["unsteered"], signed=True),
                "size, logits": number(p.size),
                "verdict": p.verdict,
            }
            for c in columns
            for name, p in c.probes.items()
        ]
    )


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
    cells = [(c.seed, cell) for c in columns for cell in c.cells.values()]
    return "\n".join(
        f"- seed {seed}, {cell.pairs}, {cell.barrier}: [{prompt}] {text}"
        for seed, cell in cells
        for prompt, text in cell.replies
    )


PROBED = ("cosine", "rest_cosine", "mean_share", "entropy", "peak_share", "unsteered_cosine", "size", "verdict")


def as_written(columns: Sequence[Column]) -> list[dict[str, object]]:
    """Every cell of every seed as a line of the CSV file, unrounded, with the probe of its barrier on real pairs."""
    rows = []
    for c in columns:
        for (pairs, name), cell in c.cells.items():
            row = {"seed": c.seed, "pairs": pairs, "barrier": name, "nll_base": fmean(c.base), "nll": fmean(cell.nll)}
            row |= {"kl_base": fmean(cell.kl), "fired": cell.fired}
            rows.append(row | {figure: getattr(c.probes[name], figure) for figure in PROBED if pairs == "real"})
    return rows


def write(out: Path, about: str, columns: Sequence[Column]) -> str:
    """Write matrix.md and matrix.csv; returns the text without the replies."""
    tables = [cell_table(columns), difference_table(columns), probe_table(columns)]
    parts = [about, *tables, DECODED, verdict(columns)]
    out.mkdir(parents=True, exist_ok=True)
    write_page(out / "matrix.md", *parts, replies_text(columns))
    write_csv(out / "matrix.csv", as_written(columns))
    return "\n\n".join(parts)
