"""Ledger events as a reader sees them: one table per stage, its columns explained, and what it SHOULD show.

Knows nothing of models; it prints what the events say, so a finished run can be printed again.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from steer_heal.report.heal_table import LEGEND, hardly_fired
from steer_heal.report.tables import (
    AGAINST_COLUMNS,
    against_legend,
    against_rows,
    counted,
    decided,
    interval,
    number,
    result_line,
    share,
    state_legend,
    state_table,
    vignette_table,
)
from steer_heal.texts.coherence.rules import from_text

NAMED = 6
"""Anchors that are named where a list of them would fill the screen; the event has all."""


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A plain table: first column left, figures right."""
    out = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        out.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
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
    own = [rule for rule in from_text(e["limits"]) if rule.gate in e["gates"]]
    console.print(f"[bold]filter[/bold]: gates {', '.join(e['gates']) or 'none'}")
    if own:
        bounds = [f"{'at most' if rule.side == 'high' else 'at least'} {e['limits'][rule.key]:.3g}" for rule in own]
        rows = [[rule.words, rule.gate, bound] for rule, bound in zip(own, bounds, strict=True)]
        console.print(table("limits from the model's own text", ["dropped for", "gate", "limit"], rows))
    console.print("All other limits are fixed; each round's filter.txt has every one, with the texts nearest to it.")
    console.print(
        f"A completion beyond any limit is dropped. SHOULD: at most {c['false_drop']:.0%} of the model's own unsteered "
        f"text dropped in all; here {c['dropped']} of {c['completions']}."
    )


def _capture(console: Console, e: dict) -> None:
    if not e["tasks"]:
        console.print("[bold]anchors[/bold]: none; the gate cannot see whether known answers are lost (--anchors)")
        return
    more = f" and {len(e['failed']) - NAMED} more" if len(e["failed"]) > NAMED else ""
    missed = f" (not held against it: {', '.join(e['failed'][:NAMED])}{more})" if e["failed"] else ""
    console.print(f"[bold]anchors[/bold]: {e['right']} of {e['tasks']} answered right before training{missed}")
    console.print("SHOULD: most of them right; only these can be seen to be lost.")


def _baseline(console: Console, e: dict) -> None:
    states = [("base", e["base"]), ("prompted", e["prompted"])]
    title = "baseline on held-out items; prompted: the persona as system prompt"
    console.print(table(title, *state_table(states)))
    console.print(state_legend(states), markup=False)
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
        "norm: length of the vector; norm / residual: as a share of the block's mean state; split-half cosine: between "
        "the vectors of two halves of the contexts; held-out AUC: how well it tells the personas apart on contexts "
        "that it was not made from (0.5 = not at all)."
    )
    console.print("SHOULD: split-half cosine and AUC near 1 (a reliable direction that separates the personas).")
    if e["round"]:
        cosine = number(e["cosine_first"], 2)
        console.print(f"Cosine with round 0's vector: {cosine}. SHOULD: near 1; low means the direction drifts.")


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
    heat = "the model's own" if e["temperature"] is None else f"{e['temperature']:.2f}"
    console.print(
        "kappa multiplies every dose; share: of the sampled that passed the filter; banked: kept so far; decision: "
        "shrink lowers kappa, enough ends the walk; trait and sentence ok: shares by the trait's checker, of all and "
        "of the kept.\n"
        f"Sampling temperature: {heat}. Dropped by gate: {dropped}.\n"
        f"SHOULD: trait of kept well above base ({number(e['trait_base'], 2)}); equal means that steering did not bite "
        "and there is nothing to learn."
    )
    console.print("A few of them in full; read them:")
    for x in e["examples"]:
        console.print(
            f"  [{x['why']}, dose {x['dose']:.2f}] {x['prompt']}\n    -> {x['text'] or '(empty)'}", markup=False
        )


def _heal(console: Console, e: dict) -> None:
    console.print(LEGEND, markup=False)
    f, n = e["figures"], e["lengths"]
    keys = {
        "nll train": "train_nll", "nll held-out": "heldout_nll", "KL to prev": "kl_prev", "KL to base": "kl_base",
        "KL to prev, replay": "kl_prev_replay", "KL to base, replay": "kl_base_replay",
    }  # fmt: skip
    keys = {head: key for head, key in keys.items() if f"{key}_after" in f}
    rows = [[when, *(number(f[f"{key}_{when}"]) for key in keys.values())] for when in ("before", "after")]
    title = f"heal: {e['rows']} rows ({e['tokens_cut']} cut by length), {f['steps']} steps, {e['seconds']:.1f} s"
    console.print(table(_round(e) + title, ["", *keys], rows))
    console.print(
        "nats per token; KL(student || reference), mean over kept rows"
        + ("; replay: over the original model's own" if any("replay" in head for head in keys) else "")
        + f". Mean length of a row {n['mean']:.1f} tokens, {n['weighted']:.1f} as weighted (--match-lengths)."
    )
    barriers = [
        f"against {name}: budget {number(tau)} nats, fired on {share(f[f'{name}_fired'])} of rows, "
        f"gradient barrier / nll {f[f'{name}_ratio']:.2f}, lam {number(e['lam'][name], 2)}"
        for name, tau in e["tau"].items()
    ]
    console.print(f"Barrier {e['reg']} {'; '.join(barriers) or '(none)'}.", markup=False)
    remarks = "; ".join([*e["notes"], *hardly_fired(e)]) or "as it should be"
    console.print(
        "SHOULD: both nll fall and the barrier fires on some rows. It never fired = plain nll; held-out rises = "
        f"overfit; neither falls = nothing to learn. Here: {remarks}.",
        markup=False,
    )
    if e["overfit"] is not None:
        console.print(
            f"Overfit check: plain training on the one most trait-laden completion took {e['overfit']:.2f} nats per "
            "token off it. Near 0 = the adapter cannot express it (rank, blocks, lr); large = it can, and where the "
            "trait does not move, training set or evaluation are what to look at."
        )


def _diverged(console: Console, e: dict) -> None:
    left = "the rows and the last good adapter" if e["adapter"] else "the rows (no step had been taken)"
    console.print(f"{_round(e)}heal stopped; {left} are in {e['folder']}", markup=False, soft_wrap=True)


def _bake(console: Console, e: dict) -> None:
    warned = f" {e['warning']}" if e["warning"] else ""
    console.print(
        f"{_round(e)}bake: {counted(e['depth'], 'adapter')} folded: the adapted weights change by "
        f"{e['relative_change']:.1%}, and {e['rounding_loss']:.1g} of that change is lost to rounding. SHOULD: a loss "
        f"under .3.{warned}"
    )
    console.print(
        f"The student's mean states moved as far along the vector as a dose of {number(e['shift_dose'], 2)}; cosine of "
        f"their shift with the vector {number(e['cosine_vector'], 2)}. SHOULD: above 0 where the trait moved."
    )
    if e["round"]:
        console.print(
            f"Cosine of this round's change of the weights with round 0's: {number(e['cosine_first'], 2)}. Adapters "
            "start from random factors of their own, so near 0 is usual; near 1 = the same change was learnt again."
        )


def _evaluate(console: Console, e: dict) -> None:
    states = [(name, e[name]) for name in ("base", "steered", "healed", "prompted") if name in e]
    title = f"evaluate: same items, same run; steered at dose {e['steered_dose']:.2f}, unfiltered"
    console.print(table(_round(e) + title, *state_table(states)))
    first = e["step"] == e["shift"]  # the round before is the original model
    compared = [("shift", "healed - base"), ("step", "healed - previous round")]
    for name, label in compared[:1] if first else compared:
        s = e[name]
        console.print(
            f"{label}, paired, 95 % interval: trait {interval(s['free_trait'])}, log-odds {interval(s['log_odds'])} "
            f"nats, sentence ok {interval(s['sentence_ok'], 3)}; off-target log-odds "
            + (", ".join(f"{name} {interval(found)}".rstrip() for name, found in s["off_target"].items()) or "-")
        )
    if shifts := vignette_table([e]):
        console.print(table("vignettes: healed - base, nats, 95 % intervals", *shifts))
    console.print(
        "Columns as under the baseline; shifts are paired item by item. SHOULD: healed near steered on the trait and "
        "near base on sentence ok, 4-grams, words and entropy; off-target shifts small beside that of the trait."
    )


def _verdict(console: Console, e: dict) -> None:
    console.print(f"[bold]{_round(e)}verdict: {e['verdict']}[/bold]. {e['text']}")
    if "retain" in e["text"]:
        console.print("retain: the student's shift as a share of the steered model's; a cluster: one prompt or item.")


def _gate(console: Console, e: dict) -> None:
    console.print(
        f"[bold]{_round(e)}gate: {decided(e)}[/bold]. SHOULD: kept; each line is one check, with what it allows."
    )
    for reason in e["reasons"]:
        console.print(f"  {reason}", markup=False)
    if lost := e["regressed"].get("anchors"):
        console.print(f"  anchors lost: {', '.join(lost)}", markup=False)
    if e["outcome"] == "inconclusive":
        console.print(
            f"  An interval crosses an allowed drop; --on-inconclusive {e['on_inconclusive']}: "
            f"{'kept' if e['stands'] else 'reverted'}. More held-out prompts or anchors make it narrower."
        )
    if e["stands"] and e["ended"]:
        console.print(f"  The run ends: {e['ended']}", markup=False)
    if not e["stands"]:
        weights = counted(e["depth"], "earlier round") if e["depth"] else "the original model"
        follows = e["ended"] or f"The next walk starts at kappa {e['kappa_next']:.2f}."
        console.print(f"  The weights are those of {weights} again, bit for bit. {follows}", markup=False)
    console.print()


def _memory(console: Console, e: dict) -> None:
    console.print(
        f"memory ran out in {e['unit']}: on with {counted(e['rows'], 'row')} per batch; a run without this has other "
        "bits.",
        markup=False,
    )


def _end(console: Console, e: dict) -> None:
    states = [(t["name"], t["state"]) for t in e["trajectory"]]
    console.print(table("base -> steered -> healed", *state_table(states)))
    console.print(state_legend(states), markup=False)
    compared = against_rows(e["against"])
    used = [i for i in range(len(AGAINST_COLUMNS)) if any(row[i] != "-" for row in compared)]
    narrow = [[row[i].replace(" [", "\n[") for i in used] for row in compared]
    heads = [AGAINST_COLUMNS[i] for i in used]
    console.print(table("the result against the prompted model and controls", heads, narrow))
    console.print(against_legend(e), markup=False)
    console.print(f"[bold]verdict: {e['verdict']}[/bold]. {e['text']}")
    if e["ended_by"]:
        console.print(f"ended early: {e['ended_by']}", markup=False)
    console.print(f"{result_line(e)}  time {e['seconds']:.0f} s")
    console.print(f"written: {e['folder']}; open report.html there", markup=False, soft_wrap=True)


SHOW: dict[str, Callable[[Console, dict], None]] = {
    "start": _start,
    "calibrate": _calibrate,
    "capture": _capture,
    "baseline": _baseline,
    "extract": _extract,
    "walk": _walk,
    "heal": _heal,
    "diverged": _diverged,
    "bake": _bake,
    "evaluate": _evaluate,
    "verdict": _verdict,
    "gate": _gate,
    "end": _end,
    "memory": _memory,
}
