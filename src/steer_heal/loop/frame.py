"""What stands around the rounds: model, texts, folder and baselines before the first, the end's event and pages after.

Knows nothing of what a round does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from steer_heal import model as models
from steer_heal.config import RunConfig, idle_options
from steer_heal.errors import InputError
from steer_heal.evaluation.anchors import Halves
from steer_heal.evaluation.shift import summary
from steer_heal.evaluation.verdict import Verdict
from steer_heal.healing.bake import AdapterStack, refuse_folded
from steer_heal.ledger import Ledger, led
from steer_heal.ledger.clock import now, time_passed
from steer_heal.loop import gate, steps
from steer_heal.loop.controls import CONTROLS, against
from steer_heal.loop.preflight import check_barrier, check_fit, check_texts
from steer_heal.loop.steps import Run, RunResult, Setting
from steer_heal.model import LM
from steer_heal.model.memory import choose_threads
from steer_heal.model.structure import fingerprint, is_sharded
from steer_heal.processes import alike, count, first
from steer_heal.report.console import Reporter
from steer_heal.trait import Trait, default_trait

MODEL_OPTIONS = ("dtype", "load_in", "device", "attn_implementation", "trust_remote_code", "temperature", "top_p")
FAST_NOTE = "fast dev run: every stage is exercised, the numbers mean nothing"


def prepare(config: RunConfig, reporter: Reporter) -> Run:
    """Model, trait, run folder, calibrated filter, and the two baselines every round is compared with."""
    config = config.resolved()
    given = inputs(config)
    return begin(config, *given, new_ledger(config), reporter)


def asked(config: RunConfig | None, lm: LM | None = None, trait: Trait | None = None) -> RunConfig:
    """The configuration of a run whose model or trait may be in memory; both are recorded by name.

    Raises InputError where it names another one, or says how a model is to be loaded that is there already.
    """
    config = config or RunConfig()
    if lm is not None:
        if idle := [name for name in MODEL_OPTIONS if getattr(config, name) != getattr(RunConfig, name)]:
            raise InputError(
                f"{', '.join(idle)}: such options belong to loading a model, and one is given: leave them out"
            )
        config = config.for_model(lm.name)
    if trait is not None:
        if config.trait not in (None, trait.name):
            raise InputError(
                f"the configuration names the trait {config.trait!r}, the one given is {trait.name!r}: leave one out"
            )
        config = replace(config, trait=trait.name)
    return config.resolved(trait)


def inputs(config: RunConfig, lm: LM | None = None, trait: Trait | None = None) -> tuple[LM, Trait, Halves]:
    """Model, trait and anchor tasks; of the trait's own anchors none that is replayed is left to be measured on."""
    trait = trait or Trait.load(config.trait or default_trait(config.model_name))
    tasks = gate.anchors_of(config, trait)
    lm = lm or models.load(config.model_name, **{name: getattr(config, name) for name in MODEL_OPTIONS})
    _check_whole(lm, config.engine)
    choose_threads(lm.model, config.threads)
    anchors = (*tasks.counted, *tasks.replayed)
    check_fit(lm, trait, config)
    check_texts(lm, trait, anchors, config)
    trait.check_functions(anchors)
    check_barrier(lm, config)
    return lm, replace(trait, anchors=tasks.not_replayed(trait.anchors)), tasks


def _check_whole(lm: LM, engine: str) -> None:
    """Processes that share work out have a whole model each, on one device, and nothing is folded in.

    Raises InputError where it is otherwise.
    """
    refuse_folded(lm.model)
    if is_sharded(lm.base) and not (alike() and engine == "transformers"):
        raise InputError(f"{lm.name} is sharded over processes: give it to run_rounds, with engine transformers")
    if count() > 1 and len({parameter.device for parameter in lm.model.parameters()}) > 1:
        raise InputError(f"{lm.name} lies on several devices, and each process needs a whole one: start one process")


def new_ledger(config: RunConfig) -> Ledger:
    """A run folder of its own under `config.out`."""
    label = f"{config.model_name}_{config.reg_name}_s{config.seed}"
    return led(lambda: Ledger.create(config.out, label, config.to_dict()))


def begin(config: RunConfig, lm: LM, trait: Trait, tasks: Halves, ledger: Ledger, reporter: Reporter) -> Run:
    """Calibrated filter, captured anchors, and the two baselines; in a run that goes on they are there already."""
    ledger.listeners.append(reporter.on_event)
    reporter.plan(config.n_rounds, 1 + len(CONTROLS) if config.controls == "all" else 1)
    texts = repr((vars(trait) | {"check": None}, tasks, config.vignettes()))
    ledger.record(
        "start",
        model=lm.name,
        trait=trait.name,
        reg=config.reg_name,
        n_rounds=config.n_rounds,
        seed=config.seed,
        device=str(lm.device),
        folder=str(ledger.folder),
        note=FAST_NOTE if config.fast_dev_run else None,
        idle=idle_options(config),
        inputs={"weights": fingerprint(lm.base), "texts": hashlib.sha256(texts.encode()).hexdigest()[:32]},
    )
    setting = Setting(config, lm, trait, ledger, reporter, AdapterStack(lm.model))
    fitted = steps.calibrate_filter(setting)
    captured, replayable = gate.capture_anchors(setting, tasks)
    base = steps.measure(setting, "base")
    prompted = steps.measure(setting, "prompted", system=trait.pos)
    ledger.write_once("base.json", base.to_json())
    ledger.write_once("prompted.json", prompted.to_json())
    ledger.record("baseline", base=summary(base, base), prompted=summary(prompted, base))
    measured = {"filter": fitted, "base": base, "prompted": prompted, "captured": captured, "replayable": replayable}
    return Run(**vars(setting), **measured, kappa=config.kappa_start)


def finish(
    run: Run,
    verdict: Verdict,
    best: int | None,
    ended: Verdict | None,
    controls: Mapping[str, RunResult],
    since: float,
) -> RunResult:
    """The end event and the files a reader opens first; `since` is when this process took up the run."""
    from steer_heal.report import write_report

    student = next((r.healed for r in run.rounds if r.number == best), None)
    compared = against(run, student, len(run.stack), controls)
    states = {"base": summary(run.base, run.base)}
    for r in run.rounds:
        states[f"{r.number} steered"] = summary(r.steered, run.base)
        states[f"{r.number} healed{'' if r.stands else ' (reverted)'}"] = summary(r.healed, run.base)
    states["prompted"] = summary(run.prompted, run.base)
    states |= {f"control: {row['name']}, {row['rounds']} rounds": row["state"] for row in compared[1:] if row["state"]}
    run.ledger.record(
        "end",
        verdict=verdict.name,
        text=verdict.text,
        best_round=best,
        folded=[r.number for r in run.standing[: len(run.stack)]],
        ended_by=ended and ended.text,
        seconds=time_passed(run.ledger.events(), since, now()),
        trajectory=[{"name": name, "state": state} for name, state in states.items()],
        against=compared,
        controls=run.config.controls,
        folder=str(run.ledger.folder),
    )
    if first():
        write_report(run.ledger)
    return RunResult(verdict, best, tuple(run.rounds), run.ledger.shown, run, controls)
