"""Real or shuffled pairs x barrier off or on, healed from the same rows: is what a heal learns content or one shift?

Knows nothing of how completions were sampled and filtered.
"""

from steer_heal.studies.matrix.building import Arguments, build

__all__ = ["Arguments", "build"]
