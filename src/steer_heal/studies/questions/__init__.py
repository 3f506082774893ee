"""Open questions of earlier work: a claim each, the arms that bear on it, a figure with its interval and a verdict.

Knows nothing of the method: runs are arms, figures come from their folders and from small measurements on them.
"""

from steer_heal.studies.questions.command import Arguments, ask

__all__ = ["Arguments", "ask"]
