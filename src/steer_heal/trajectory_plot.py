"""The picture of a run: trait, coherence and diversity by round, from a ledger.

Knows nothing of models.
"""

from __future__ import annotations

from pathlib import Path

from steer_heal.headline import event
from steer_heal.ledger import Ledger


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
    n_items, gap = base["target"]["n"], "; " if len(panels) > 2 else "\n"
    figure.supxlabel(
        f"{start['model']}, trait {start['trait']}, reg {start['reg']}, seed {start['seed']}{gap}"
        f"{n_items} held-out items in every order, the same held-out prompts for every point",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
