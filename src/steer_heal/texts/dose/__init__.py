"""Walk-C: find the dose multiplier kappa at which enough completions survive the filter, and bank every survivor.

Knows nothing of models, vectors and torch: it decides over counts; sampling and judging are functions handed in.
"""

from steer_heal.texts.dose.config import MODES, DoseConfig
from steer_heal.texts.dose.controllers import Bisection, Grid, Ladder, Plan, Step, controller
from steer_heal.texts.dose.walk import Judged, Walk, walk_c

__all__ = [
    "MODES",
    "Bisection",
    "DoseConfig",
    "Grid",
    "Judged",
    "Ladder",
    "Plan",
    "Step",
    "Walk",
    "controller",
    "walk_c",
]
