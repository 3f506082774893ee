"""Arms: the main job under several settings and seeds, run side by side, compared at equal rounds and at equal trait.

Knows nothing of the method: runs are processes of the command line, figures come from their run folders.
"""

from steer_heal.studies.arms.command import Arguments, arms

__all__ = ["Arguments", "arms"]
