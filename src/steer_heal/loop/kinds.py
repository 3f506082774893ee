"""How each result of a stage is committed as a unit: JSON, or safetensors where there are tensors.

Knows nothing of when they are computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

from safetensors.torch import load, save
from torch import Tensor

from steer_heal.evaluation import Metrics
from steer_heal.evaluation.anchors import Captured, Checked
from steer_heal.healing import HealConfig, Healed
from steer_heal.healing.adapter import Adapter
from steer_heal.ledger.units import Kind, json_kind
from steer_heal.loop.calibration import Calibration
from steer_heal.steering import SteeringVector
from steer_heal.steering.vector import Provenance, Quality
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.trait import Anchor


def tensors_kind(take_apart: Callable, put_together: Callable) -> Kind:
    """A kind made of (what JSON can hold, tensors by name): one line of JSON, then safetensors."""

    def dump(value) -> bytes:
        facts, tensors = take_apart(value)
        line = json.dumps(facts, ensure_ascii=False, default=lambda number: number.item())
        return f"{line}\n".encode() + save({name: tensor.contiguous() for name, tensor in tensors.items()})

    def read(content: bytes):
        line, _, rest = content.partition(b"\n")
        return put_together(json.loads(line), load(rest))

    return Kind(dump, read)


def _vector_apart(vector: SteeringVector) -> tuple[dict, dict[str, Tensor]]:
    facts = {"provenance": asdict(vector.provenance), "quality": {i: asdict(q) for i, q in vector.quality.items()}}
    return facts, {str(i): tensor for i, tensor in vector.vectors.items()}


def _vector(facts: Mapping, tensors: Mapping[str, Tensor]) -> SteeringVector:
    quality = {int(i): Quality(**q) for i, q in facts["quality"].items()}
    vectors = {int(i): tensors[i] for i in sorted(tensors, key=int)}
    return SteeringVector(vectors, Provenance(**facts["provenance"]), quality)


def healed_kind(config: HealConfig) -> Kind[tuple[Healed, dict]]:
    """A heal under this configuration, and figures measured beside it."""

    def apart(found: tuple[Healed, dict]) -> tuple[dict, dict[str, Tensor]]:
        healed, beside = found
        adapter = healed.adapter
        facts = {
            "beside": beside,
            "adapter": [adapter.rank, adapter.alpha, adapter.base_model, adapter.fan_in_fan_out],
            "experts": [list(adapter.experts), adapter.experts_transposed],
            "story": [[dict(s) for s in healed.steps], [dict(e) for e in healed.epochs]],
            "figures": [dict(healed.figures), dict(healed.lam), dict(healed.tau)],
        }
        factors = {"a": adapter.a, "b": adapter.b}
        return facts, {f"{side}.{name}": t for side, some in factors.items() for name, t in some.items()}

    def together(facts: Mapping, tensors: Mapping[str, Tensor]) -> tuple[Healed, dict]:
        a, b = ({n[2:]: t for n, t in sorted(tensors.items()) if n.startswith(side)} for side in ("a.", "b."))
        steps, epochs = facts["story"]
        experts, transposed = facts["experts"]
        adapter = Adapter(a, b, *facts["adapter"], tuple(experts), transposed)
        return Healed(adapter, config, tuple(steps), tuple(epochs), *facts["figures"]), facts["beside"]

    return tensors_kind(apart, together)


def captured_kind(tasks: Sequence[Anchor]) -> Kind[Captured]:
    """What a model got right of these tasks."""

    return json_kind(Captured.to_dict, partial(Captured.from_dict, tasks))


VECTOR: Kind[SteeringVector] = tensors_kind(_vector_apart, _vector)
METRICS: Kind[Metrics] = json_kind(asdict, Metrics.from_dict)
FILTER: Kind[CoherenceFilter] = json_kind(CoherenceFilter.to_dict, CoherenceFilter.from_dict)
CHECKED: Kind[Checked] = json_kind(asdict, Checked.from_dict)
CALIBRATION: Kind[Calibration] = json_kind(asdict, Calibration.from_dict)
STATES: Kind[dict[int, Tensor]] = tensors_kind(
    lambda states: ({}, {str(i): tensor for i, tensor in states.items()}),
    lambda _, tensors: {int(i): tensor for i, tensor in tensors.items()},
)
"""Mean states by block."""
