"""One arm on one seed: made once, then measured at every strength, each measurement kept on disk.

Knows nothing of other arms.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics
from steer_heal.ledger import write_json
from steer_heal.ledger.files import write_whole
from steer_heal.studies.arena.arms import Arm
from steer_heal.studies.arena.dials import Dial
from steer_heal.studies.arena.ground import Ground, Sizes, Spent


@dataclass(frozen=True)
class Point:
    """A model state: how strong the change is, its metrics, KL(original || it) on neutral replies in nats per token."""

    strength: float
    metrics: Metrics
    divergence: float


@dataclass(frozen=True)
class Curve:
    """One arm on one seed: the original model (strength 0) and the changed one at rising strengths."""

    arm: str
    seed: int
    points: tuple[Point, ...]
    spent: Spent


COARSE = (0.5, 0.75, 1.0, 1.5, 2.5, 4.0)
"""Strengths at which a learning rate is judged."""
BROKEN = 0.85
"""Share of base's sound sentences or anchors under which nothing stronger is measured: no figure is read off there."""


def measured(arm: Arm, config: RunConfig, sizes: Sizes, out: Path, rate: float | None = None) -> Curve:
    """Make the arm and measure it; what is on disk already is read back.

    Args:
        config: model, trait and seed; the product's own options.
        rate: instead of the arm's learning rate.
        out: folder of the arena: texts in `seed-S/`, arms in `NAME-sS/`, or `NAME-rRATE-sS/` at another rate.
    """
    place = out / f"{arm.name}{'' if rate is None else f'-r{rate:g}'}-s{config.seed}"
    ground: Ground | None = None

    def prepared() -> Ground:
        nonlocal ground
        if ground is None:
            ground = Ground(config, sizes, out / f"seed-{config.seed}")
            ground.prepare()
        return ground

    dial = Dial.load(place)
    if dial is None:
        dial = arm.make(prepared(), rate or arm.rate or 0.0)
        dial.save(place)
    base = _point(out / f"seed-{config.seed}" / f"base-{sizes.items}-{sizes.replies}", 0.0, None, prepared)
    if not base.metrics.sentence_ok:
        raise InputError(
            f"{config.model_name} says no sound sentence, so there is no coherence to keep: train it first"
        )
    points = [base]
    for strength in arm.strengths if rate is None else COARSE:
        points.append(_point(place / f"at-{strength:g}", strength, dial, prepared))
        if broken(points[-1].metrics, base.metrics):
            break
    return Curve(arm.name, config.seed, tuple(points), dial.spent)


def broken(metrics: Metrics, base: Metrics) -> bool:
    """Whether a state has clearly left the coherence at which arms are compared."""
    pairs = ((metrics.sentence_ok, base.sentence_ok), (metrics.anchors_right, base.anchors_right))
    return any(old is not None and new < BROKEN * old for new, old in pairs)


def _point(stem: Path, strength: float, dial: Dial | None, prepared) -> Point:
    """Measured now, or read back; `stem`.json has the metrics, `stem`.kl the divergence, written last."""
    file, last = stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".kl")
    if not last.is_file():
        ground: Ground = prepared()
        with (dial or Dial()).turned(ground, strength) as system:
            metrics, divergence = ground.measure(system)
        write_whole(file, metrics.to_json().encode("utf-8"))
        write_json(last, divergence)
    return Point(strength, Metrics.load(file), json.loads(last.read_text()) or 0.0)
