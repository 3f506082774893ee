"""Healing a round of a finished run again under another regulariser, and the table of what comes of each.

Knows nothing of how completions were sampled and filtered: it reads a run folder.
"""

from steer_heal.studies.reheal.sweep import Arguments, sweep

__all__ = ["Arguments", "sweep"]
