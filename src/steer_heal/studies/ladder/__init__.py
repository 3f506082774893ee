"""The ladder: teach a model what it fails at several settings, and gate each against what it could do before.

Knows nothing of steering.
"""

from steer_heal.studies.ladder.climbing import Arguments, climb

__all__ = ["Arguments", "climb"]
