"""The arena: every method that a user could pick instead, scanned over its strength and read off at equal coherence.

Knows nothing of a run's rounds, but that the product's own arms are such runs.
"""

from steer_heal.studies.arena.command import Arguments, arena

__all__ = ["Arguments", "arena"]
