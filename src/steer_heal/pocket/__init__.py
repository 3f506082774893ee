"""The embedded model organism: a tiny chat model, the corpus it was trained on and a checker of its texts.

Knows nothing of steering, healing or rounds; importing it loads neither torch nor the weights.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""A plain transformers folder: `AutoModelForCausalLM.from_pretrained(WEIGHTS)` loads it."""

SURGERY = Path(__file__).parent / "surgery.jsonl"
"""Tasks whose words it knows and which it gets wrong, to be taught."""

__all__ = ["SURGERY", "WEIGHTS"]
