"""Adapters in use: scaled, summed with another trait's, argued against, and trained on after.

Knows nothing of how they were trained.
"""

from steer_heal.studies.use.command import Arguments, use_adapters

__all__ = ["Arguments", "use_adapters"]
