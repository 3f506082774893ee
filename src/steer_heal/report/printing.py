"""Ledger events in full, for `--verbose`: a table per stage, its columns explained, and what it SHOULD show, judged.

Knows nothing of models; it prints what the events say, so a finished run can be printed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steer_heal.ledger.clock import duration
from steer_heal.report.expectations import Found
from steer_heal.report.screen import asides
from steer_heal.report.tables import (
    NO_CHECKER,
    against_legend,
    against_table,
    counted,
    decided,
    in_words,
    interval,
    number,
    result_line,
    share,
    state_legend,
    state_table,
    vignette_table,
    without_checker,
)
from steer_heal.texts.coherence.rules import from_text

NAMED = 6
"""Anchors that are named where a list of them would fill the screen; the event has all."""
FIGURES = {"mean": 3, "agg": 3, "max": 2, "fired": 2, "ratio": 2, "lam": 2}
"""Figures of a barrier in a step's row (`NAME_mean` and so on), and their digits in the table."""
LEGEND = (
    "step: steps taken. nll: per token; D: divergence from the reference over a completion's tokens, as mean, "
    "aggregated (what the budget is about) and its largest, nats; fired: share of the rows over budget; ratio: "
    "gradient norm at the hidden states, barrier / nll; lam: weight of the barrier; grad: norm of the adapter's "
    "gradient; lr: learning rate."
)


def show(console: Console, event: dict, found: Sequence[Found]) -> None:
    """Print an event, then what it SHOULD show, each with whether it holds; a failure in colour."""
    if line := asides(event):
        console.print(line, markup=False, soft_wrap=True)
    if event["stage"] in SHOW:
        SHOW[event["stage"]](console, event)
        for one in found:
            console.print(str(one), markup=False, style=None if one.holds else "yellow")


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A plain table: first column left, figures right."""
    out = Table(title=title and Text(title), title_justify="left", show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        out.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        out.add_row(*map(Text, row))
    return out


def barriers(step: Mapping) -> list[str]:
    """The references whose barrier a step's row has figures of; none without one."""
    return [key.removesuffix("_agg") for key in step if key.endswith("_agg")]


def steps_header(step: Mapping) -> str:
    """Names of the columns of `steps_line`; a barrier's begin with its reference."""
    cells = [f"{'step':>5}", f"{'nll':>6}"]
    cells += [f"| D {name}:" + "".join(f"{label:>6}" for label in FIGURES) for name in barriers(step)]
    return " ".join([*cells, f"| {'grad':>6}", f"{'lr':>8}"])


def steps_line(step: Mapping) -> str:
    """One step of a heal as a row of its live table."""
    cells = [f"{step['step'] + 1:>5}", f"{step['nll']:>6.3f}"]
    for name in barriers(step):
        # + 0.0: a divergence of -1e-9 is rounding, and no negative zero.
        figures = (f"{round(step[f'{name}_{key}'], n) + 0.0:>6.{n}f}" for key, n in FIGURES.items())
        cells.append("| " + " " * len(f"D {name}:") + "".join(figures))
    return " ".join([*cells, f"| {step['grad_norm']:>6.2f}", f"{step['lr']:>8.1e}"])


def epoch_line(row: Mapping) -> str:
    """Training and held-out nll of an epoch, each against its value before the training."""
    train = f"nll train {number(row['train_nll'])} (before training {number(row['train_nll_before'])})"
    if "heldout_nll" not in row:
        return f"epoch {row['epoch']}: {train}, nothing held out"
    held_out = f"held-out {number(row['heldout_nll'])} (before {number(row['heldout_nll_before'])})"
    return f"epoch {row['epoch']}: {train}, {held_out}"


def batch_line(done: Sequence, now, tokens: int, seconds: float) -> str:
    """A batch of replies: its plan, doses, longest reply, and speed since so many tokens and seconds."""
    tokens, seconds = now.tokens - tokens, now.seconds - seconds
    speed = f"{tokens / max(seconds, 1e-9):.0f} tokens/s" if tokens else "read from the run folder"
    doses = ", ".join(f"{dose:.3g}" for dose in sorted({reply.dose for reply in done}))
    return (
        f"  batch of {len(done)} (planned: {now.total} replies, up to {now.rows} at once), doses {doses}, "
        f"longest {max(len(reply.token_ids) for reply in done)} tokens, {speed}"
    )


def _headed(console: Console, head: str, told: str = "") -> None:
    console.print(Text.assemble((head, "bold"), told))


def _start(console: Console, e: dict) -> None:
    _headed(
        console,
        "steer_heal",
        f"  model {e['model']}  trait {e['trait']}  reg {e['reg']}  rounds {e['n_rounds']}  "
        f"seed {e['seed']}  device {e['device']}",
    )
    console.print(f"run folder: {e['folder']}", markup=False, soft_wrap=True)
    if e.get("note"):
        _headed(console, f"{e['note']}")
    for line in e.get("idle", ()):
        console.print(f"! {line}", markup=False, style="yellow", soft_wrap=True)


def _calibrate(console: Console, e: dict) -> None:
    own = [rule for rule in from_text(e["limits"]) if rule.gate in e["gates"]]
    _headed(console, "filter", f": gates {', '.join(e['gates']) or 'none'}")
    if own:
        bounds = [f"{'at most' if rule.side == 'high' else 'at least'} {e['limits'][rule.key]:.3g}" for rule in own]
        rows = [[rule.words, rule.gate, bound] for rule, bound in zip(own, bounds, strict=True)]
        console.print(table("limits from the model's own text", ["dropped for", "gate", "limit"], rows))
    console.print(
        "A completion beyond any limit is dropped. All other limits are fixed; each round's filter.txt has every one, "
        "with the texts nearest to it."
    )


def _capture(console: Console, e: dict) -> None:
    if not e["tasks"]:
        _headed(console, "anchors", ": none; the gate cannot see whether known answers are lost (--anchors)")
        return
    more = f" and {len(e['failed']) - NAMED} more" if len(e["failed"]) > NAMED else ""
    missed = f" (not held against it: {', '.join(e['failed'][:NAMED])}{more})" if e["failed"] else ""
    _headed(console, "anchors", f": {e['right']} of {e['tasks']} answered right before training{missed}")
    if e.get("to_replay"):
        console.print(f"{e['replayed']} of {e['to_replay']} others were too: these are replayed, and never counted.")


def _baseline(console: Console, e: dict) -> None:
    states = [("base", e["base"]), ("prompted", e["prompted"])]
    title = "baseline on held-out items; prompted: the persona as system prompt"
    console.print(table(title, *state_table(states)))
    console.print(state_legend(states), markup=False)


def _round(e: dict) -> str:
    return f"round {e['round']} "


def _extract(console: Console, e: dict) -> None:
    keys = {"norm": "norm", "norm / residual": "relative_norm", "split-half cosine": "split_half_cosine"}
    keys["held-out AUC"] = "auc"
    names = {block: f"{block} steered" if int(block) in e["layers"] else block for block in e["quality"]}
    rows = [[names[block], *(number(q[key]) for key in keys.values())] for block, q in e["quality"].items()]
    skipped = f", {e['n_skipped']} too long and left out" if e["n_skipped"] else ""
    title = f"extract: vector from {e['n_contexts']} contexts ({e['kind']}{skipped})"
    console.print(table(_round(e) + title, ["block", *keys], rows))
    console.print(f"Blocks {e['reason']}.", markup=False)
    if unit := e.get("unit"):
        reached = "" if unit["reached"] else " (the target is out of reach)"
        console.print(f"Dose 1 is {unit['dose']:.3g} times that vector: {unit['divergence']:.2f} nats{reached}.")
    console.print(
        "norm: length of the vector; norm / residual: as a share of the block's mean state; split-half cosine: between "
        "the vectors of two halves of the contexts; held-out AUC: how well it tells the personas apart on contexts "
        "that it was not made from (0.5 = not at all)."
    )
    if e["round"] and e["cosine_first"] is not None:
        console.print(f"Cosine with round 0's vector: {number(e['cosine_first'], 2)}.")


def _walk(console: Console, e: dict) -> None:
    rows = [
        [f"{s['kappa']:.2f}", str(s["n"]), str(s["survived"]), f"{s['survival']:.2f}", str(s["banked"]), s["decision"]]
        for s in e["curve"]
    ]
    console.print(table(_round(e) + "walk-C", ["kappa", "sampled", "kept", "share", "banked", "decision"], rows))
    keys = {"trait": "trait", "trait of kept": "trait_kept"}
    keys |= {"sentence ok": "sentence_ok", "sentence ok of kept": "sentence_ok_kept"}
    rows = [
        [f"{d['dose']:.2f}", str(d["n"]), f"{d['kept']:.2f}", *(number(d[key]) for key in keys.values())]
        for d in e["per_dose"]
    ]
    console.print(table("", ["dose", "sampled", "kept share", *keys], rows))
    dropped = ", ".join(f"{gate} {n}" for gate, n in e["dropped"].items()) or "none"
    heat = "the model's own" if e["temperature"] is None else f"{e['temperature']:.2f}"
    console.print(
        "kappa multiplies every dose; share: of the sampled that passed the filter; banked: kept so far; decision: "
        "shrink lowers kappa, enough ends the walk; trait and sentence ok: shares by the trait's checker, of all and "
        "of the kept.\n"
        f"Sampling temperature: {heat}. Dropped by gate: {dropped}. Trait of base: {number(e['trait_base'], 2)}."
    )
    console.print("A few of them in full; read them:")
    for x in e["examples"]:
        console.print(
            f"  [{x['why']}, dose {x['dose']:.2f}] {x['prompt']}\n    -> {x['text'] or '(empty)'}", markup=False
        )


def _heal(console: Console, e: dict) -> None:
    console.print(LEGEND, markup=False)
    f, n = e["figures"], e["lengths"]
    keys = {"nll train": "train_nll", "nll held-out": "heldout_nll", "KL to prev": "kl_prev", "KL to base": "kl_base"}
    keys |= {"KL to prev, replay": "kl_prev_replay", "KL to base, replay": "kl_base_replay"}
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
    for note in e["notes"]:
        console.print(f"Note: {note}.", markup=False)
    if e["overfit"] is not None:
        console.print(
            f"Overfit check: plain training on the one most trait-laden completion took {e['overfit']:.2f} nats per "
            "token off it. Near 0 = the adapter cannot express it (rank, blocks, lr); large = it can, and where the "
            "trait does not move, training set or evaluation are what to look at."
        )


def _bake(console: Console, e: dict) -> None:
    warned = f" {e['warning']}" if e["warning"] else ""
    console.print(
        f"{_round(e)}bake: {counted(e['depth'], 'adapter')} folded: the adapted weights change by "
        f"{e['relative_change']:.1%}, and {e['rounding_loss']:.1g} of that change is lost to rounding.{warned}"
    )
    console.print(
        f"The student's mean states moved as far along the vector as a dose of {number(e['shift_dose'], 2)}; cosine of "
        f"their shift with the vector {number(e['cosine_vector'], 2)}."
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
            f"nats, coherence {interval(s['coherence'], 3)}; off-target log-odds "
            + (", ".join(f"{name} {interval(found)}".rstrip() for name, found in s["off_target"].items()) or "-")
        )
    if shifts := vignette_table([e]):
        console.print(table("vignettes: healed - base, nats, 95 % intervals", *shifts))
    console.print("Columns as under the baseline; shifts are paired item by item.")


def _verdict(console: Console, e: dict) -> None:
    _headed(console, f"{_round(e)}verdict: {e['verdict']}", f". {in_words(e['text'])}")
    if "retain" in e["text"]:
        console.print("retain: the student's shift as a share of the steered model's; a cluster: one prompt or item.")


def _gate(console: Console, e: dict) -> None:
    _headed(console, f"{_round(e)}gate: {decided(e)}", ". Each line is one check, with what it allows.")
    for reason in e["reasons"]:
        console.print(f"  {in_words(reason)}", markup=False)
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


def _end(console: Console, e: dict) -> None:
    states = [(t["name"], t["state"]) for t in e["trajectory"]]
    console.print(table("base -> steered -> healed", *state_table(states)))
    console.print(state_legend(states), markup=False)
    heads, compared = against_table(e["against"])
    narrow = [[cell.replace(" [", "\n[") for cell in row] for row in compared]
    console.print(table("the result against the prompted model and controls", heads, narrow))
    console.print(against_legend(e), markup=False)
    if without_checker(e["trajectory"][0]["state"]):
        console.print(NO_CHECKER, markup=False, style="yellow")
    _headed(console, f"verdict: {e['verdict']}", f". {in_words(e['text'])}")
    if e["ended_by"]:
        console.print(f"ended early: {in_words(e['ended_by'])}", markup=False)
    console.print(f"{result_line(e)}  time {duration(e['seconds'])}")


STAGES = (_start, _calibrate, _capture, _baseline, _extract, _walk, _heal, _bake, _evaluate, _verdict, _gate, _end)
SHOW: dict[str, Callable[[Console, dict], None]] = {stage.__name__[1:]: stage for stage in STAGES}
