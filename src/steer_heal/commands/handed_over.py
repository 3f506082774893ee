"""What a run handed over: its original model, the adapters of its result folded in, its vectors.

Knows nothing of how a run is made.
"""

from __future__ import annotations

from pathlib import Path

from steer_heal import model as models
from steer_heal.errors import InputError
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.ledger import Ledger
from steer_heal.model import LM
from steer_heal.steering import SteeringVector

LOADING = ("dtype", "device", "attn_implementation", "temperature", "top_p")
"""Options of a run that its model is loaded with; not its leave to run code, which only the user gives."""


def load_model(ledger: Ledger, device: str | None = None, trust_remote_code: bool = False) -> LM:
    """The original model of a run, loaded as the run did, on another device if one is named."""
    name = ledger.events("start")[-1]["model"]
    options = {key: ledger.config[key] for key in LOADING if key in ledger.config}
    if device is not None:
        options["device"] = device
    return models.load(name, trust_remote_code=trust_remote_code, **options)


def fold_result(ledger: Ledger, lm: LM) -> AdapterStack:
    """The run's result folded into its model: the adapters of the rounds that the end event names.

    Raises InputError when no round stands, or an adapter is missing, damaged or made for another model.
    """
    end = ledger.events("end")[-1]
    if end["best_round"] is None:
        raise InputError(
            f"run {str(ledger.folder)!r} ended as {end['verdict']}: no round stands, its result is the original model"
        )
    stack = AdapterStack(lm.model)
    for number in end["folded"]:
        stack.push(Adapter.load(round_folder(ledger, number) / "adapter"))
    return stack


def vector_of(ledger: Ledger, number: int = 0) -> SteeringVector:
    """The steering vector of a round. Raises InputError when it is missing."""
    return SteeringVector.load(round_folder(ledger, number) / "vector.safetensors")


def round_folder(ledger: Ledger, number: int) -> Path:
    return ledger.folder / "rounds" / f"{number:02d}"
