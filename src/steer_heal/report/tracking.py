"""A run's figures in an experiment tracker, from its events: Weights & Biases, TensorBoard or trackio.

Knows nothing of what the events mean. Each tracker's package is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from itertools import count
from pathlib import Path

from steer_heal.errors import InputError

Log = Callable[[Mapping[str, float], int], None]
PROJECT = "steer_heal"
STEP = "step/number"
"""Steps of all heals of a run, counted on; everything else is over rounds."""


def check_tracker(name: str | None) -> None:
    """Raises InputError for a tracker whose package is not installed."""
    if name is not None and find_spec(name) is None:
        raise InputError(f"track {name}: the package {name} is not installed: pip install 'steer-heal[{name}]'")


def tracker(name: str, folder: Path, config: Mapping[str, object]) -> Callable[[dict], None]:
    """A listener that logs every number of a run's events, and the steps of its heals; it closes at the run's end.

    Args:
        folder: the run's. TensorBoard's and Weights & Biases' files lie in it, trackio's where trackio keeps them.
    """
    log, close = {"wandb": _wandb, "tensorboard": _tensorboard, "trackio": _trackio}[name](folder, config)
    steps = count()

    def on_event(event: dict) -> None:
        for row in event.get("steps", ()):
            number = next(steps)
            log({STEP: number, **dict(_numbers("step", row))}, number)
        round = event["round"] or 0
        if figures := dict(_numbers(event["stage"], {k: v for k, v in event.items() if k not in ("round", "time")})):
            log({"round": round, **figures}, round)
        if event["stage"] == "end":
            close()

    return on_event


def _numbers(name: str, value: object) -> Iterator[tuple[str, float]]:
    """Every number in nested mappings, under the names that lead to it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _tensorboard(folder: Path, config: Mapping[str, object]) -> tuple[Log, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=0)  # a resumed run logs again from its start
    writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in config.items()))

    def log(figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def _wandb(folder: Path, config: Mapping[str, object]) -> tuple[Log, Callable[[], None]]:
    import wandb

    run = wandb.init(project=PROJECT, name=folder.name, dir=str(folder), config=dict(config))
    run.define_metric("*", step_metric="round")
    run.define_metric("step/*", step_metric=STEP)
    return lambda figures, step: run.log(dict(figures)), run.finish


def _trackio(folder: Path, config: Mapping[str, object]) -> tuple[Log, Callable[[], None]]:
    import trackio

    run = trackio.init(project=PROJECT, name=folder.name, config=dict(config))
    return lambda figures, step: run.log(dict(figures)), trackio.finish
