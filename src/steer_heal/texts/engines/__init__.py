"""Engines for sampling: what one is asked and gives back, and the two there are, `transformers` and `vllm`.

Knows nothing of completions and of where they are kept.
"""

from steer_heal.texts.engines.protocol import Cut, Engine, Row
from steer_heal.texts.engines.transformers import TRANSFORMERS

__all__ = ["TRANSFORMERS", "Cut", "Engine", "Row"]
