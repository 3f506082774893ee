"""How a token is drawn from a model's distribution.

Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass

from steer_heal.arguments import check_fields
from steer_heal.errors import InputError
from steer_heal.shown import brief


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; None keeps what the model's generation config says.

    Attributes:
        temperature: divides the logits, above 0.
        top_p: the likeliest tokens that together hold this share (0..1] of the probability.
        top_k: the likeliest k tokens; 0 for no limit.
        min_p: tokens with at least this share [0..1) of the likeliest one's probability (Nguyen et al. 2024), judged
            after the temperature: with heat it lets the plausible alternatives in and keeps the implausible out.

    Raises InputError on an impossible value.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None

    __repr__ = brief

    def __post_init__(self) -> None:
        check_fields(self)
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature {self.temperature}: give a number above 0, such as 0.8, or greedy")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p}: give a share above 0 and at most 1, such as 0.95")
        if self.top_k is not None and self.top_k < 0:
            raise InputError(f"top_k {self.top_k}: give a number of tokens, 0 for no limit")
        if self.min_p is not None and not 0 <= self.min_p < 1:
            raise InputError(f"min_p {self.min_p}: give a share from 0 to under 1, such as 0.02")

    def options(self, greedy: bool) -> dict[str, float | None]:
        """Arguments for transformers' `generate`."""
        if greedy:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "min_p": None}
        given = {name: value for name, value in vars(self).items() if value is not None}
        return {"do_sample": True} | {name: value if name == "top_k" else float(value) for name, value in given.items()}


MODELS_OWN = Sampling()
"""As the model's generation config says."""
