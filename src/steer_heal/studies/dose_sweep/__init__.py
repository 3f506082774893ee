"""A dose sweep: trait, answer mass, coherence of free text and perplexity at each dose, and where coherence gives way.

Knows nothing of training and rounds.
"""

from steer_heal.studies.dose_sweep.measuring import Arguments, sweep_doses

__all__ = ["Arguments", "sweep_doses"]
