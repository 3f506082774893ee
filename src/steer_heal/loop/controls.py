"""Controls: the same loop with one setting changed, the same budget and seed, compared with the run item by item.

Knows nothing of the stages. The gate only watches a control: it shows what its method does, and is not to be saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace

from steer_heal.evaluation import Metrics, compare
from steer_heal.evaluation.shift import summary
from steer_heal.healing.bake import AdapterStack
from steer_heal.loop.steps import Run, RunResult

CONTROLS: Mapping[str, Mapping[str, str]] = {
    "unsteered": {"vector": "none"},
    "random vector": {"vector": "random"},
    "shuffled pairs": {"pairs": "shuffled"},
}
SHARED = ("calibrate", "capture", "baseline")
"""Stages before round 0 that a control takes over from its run: same model, same items, same seed."""


def run_controls(run: Run, complete: Callable[[Run], RunResult]) -> dict[str, RunResult]:
    """Every control to its end, in `controls/NAME/` of the run's folder; the run's own weights are back after it."""
    found = {}
    with _original_weights(run.stack):
        for name, settings in CONTROLS.items():
            part = prepare_control(run, name, settings)
            found[name] = complete(part)
            run.stack.clear()
    return found


def prepare_control(run: Run, name: str, settings: Mapping[str, str]) -> Run:
    """The run's model, filter and baselines with other settings and a ledger of its own."""
    changed = {**settings, "controls": "none", "gate": "watch"}
    if settings.get("vector") == "none":
        changed["doses"] = (0.0,)
        # Without steering there is no divergence of its own to take a share of: the run's budget in nats instead.
        if run.config.tau_rel is not None and (heals := run.ledger.events("heal")):
            changed |= {"tau_rel": None, "tau": max(heals[0]["tau"].values(), default=run.config.tau)}
    config = replace(run.config, **changed)
    ledger = run.ledger.part(f"controls/{name.replace(' ', '-')}", config.to_dict())
    ledger.listeners.append(run.reporter.of_control(name))
    (start,) = run.ledger.events("start")
    ledger.record("start", **_figures(start) | {"control": name, "folder": str(ledger.folder)})
    for stage in SHARED:
        (event,) = run.ledger.events(stage)
        ledger.record(stage, **_figures(event))
    for file in ("base.json", "prompted.json"):
        ledger.write_once(file, (run.ledger.folder / file).read_text(encoding="utf-8"))
    return replace(run, config=config, ledger=ledger, rounds=[], kappa=config.kappa_start)


def against(run: Run, student: Metrics | None, depth: int, controls: Mapping[str, RunResult]) -> list[dict]:
    """One row per comparison: the prompted model, then every control after as many baked rounds as the result has.

    Args:
        student: the run's result; None when no round stands, and then nothing is compared with the controls.
        depth: adapters in the result; a control that ended earlier is compared as it was at its end.

    Returns rows with `name`, `verdict`, `rounds` baked, the control's `state`, `shift` (control - base) and
    `difference` (healed - control), both paired with 95 % intervals.
    """
    rows = [_row(run, "prompted", None, None, run.prompted, student)]
    for name, result in controls.items():
        baked = result.run.standing[: depth or None]
        last = baked[-1].healed if baked else None
        rows.append(_row(run, name, result.verdict.name, len(baked), last, student))
    return rows


def _row(run: Run, name: str, verdict, rounds, control: Metrics | None, student: Metrics | None) -> dict:
    return {
        "name": name,
        "verdict": verdict,
        "rounds": rounds,
        "state": control and summary(control, run.base),
        "shift": control and asdict(compare(run.base, control)),
        "difference": asdict(compare(control, student)) if control and student else None,
    }


@contextmanager
def _original_weights(stack: AdapterStack) -> Iterator[None]:
    """The stack is empty inside the block, so that another can fold; after it the same adapters give the same bits."""
    folded = list(zip(stack.adapters, stack.doses, strict=True))
    stack.clear()
    try:
        yield
    finally:
        stack.clear()
        for adapter, dose in folded:
            stack.push(adapter, dose)


def _figures(event: Mapping) -> dict:
    return {key: value for key, value in event.items() if key not in ("stage", "round", "time")}
