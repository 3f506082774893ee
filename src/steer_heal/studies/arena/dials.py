"""What an arm leaves: adapters, a vector or a prompt, each with a strength that can be turned from 0, and its files.

Knows nothing of how it came about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake.bias import bias_baked
from steer_heal.ledger import write_json
from steer_heal.steering import SteeringVector
from steer_heal.studies.arena.ground import Ground, Spent


@dataclass(frozen=True)
class Dial:
    """A change of the model at any strength: c times the sum of adapters, c times a vector in the biases, or a prompt.

    Attributes:
        adapters: with the factor of each; contrastive weights subtract one.
        vector: what is added to block outputs, baked into biases. prompted: the persona is shown instead.
        spent: what it cost to make.
    """

    adapters: tuple[tuple[Adapter, float], ...] = ()
    vector: SteeringVector | None = None
    prompted: bool = False
    spent: Spent = field(default_factory=Spent)

    @contextmanager
    def turned(self, ground: Ground, strength: float) -> Iterator[str | None]:
        """Inside the block the model is changed; gives the system prompt to ask under (None: the neutral one)."""
        stack = ground.material.stack
        with ExitStack() as undo:
            if self.vector is not None:
                undo.enter_context(bias_baked(ground.lm, self.vector, strength))
            for adapter, factor in self.adapters:
                stack.push(adapter, strength * factor)
                undo.callback(stack.pop)
            yield ground.material.trait.pos if self.prompted else None

    def save(self, folder: Path) -> None:
        """Adapters in PEFT's format, the vector, and `dial.json`, which says that all are written."""
        folder.mkdir(parents=True, exist_ok=True)
        for i, (adapter, _) in enumerate(self.adapters):
            adapter.save(folder / f"adapter-{i}")
        if self.vector is not None:
            self.vector.save(folder / "vector.safetensors")
        factors = [factor for _, factor in self.adapters]
        about = {"factors": factors, "vector": self.vector is not None, "prompted": self.prompted}
        write_json(folder / "dial.json", about | {"spent": asdict(self.spent)})

    @classmethod
    def load(cls, folder: Path) -> Dial | None:
        """The inverse; None where none was written to the end."""
        path = folder / "dial.json"
        if not path.is_file():
            return None
        about = json.loads(path.read_text(encoding="utf-8"))
        factors = enumerate(about["factors"])
        adapters = tuple((Adapter.load(folder / f"adapter-{i}"), factor) for i, factor in factors)
        vector = SteeringVector.load(folder / "vector.safetensors") if about["vector"] else None
        return cls(adapters, vector, about["prompted"], Spent(**about["spent"]))
