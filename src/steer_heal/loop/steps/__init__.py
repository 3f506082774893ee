"""The steps of a round as the loop calls them: each calls one stage, and records in the ledger what came of it.

Know nothing of the command line and of printing. Maths is in the stages, not here.
"""

from steer_heal.loop.steps.judging import (
    judge,
    judge_rounds,
    measure,
    measure_steered,
    measure_student,
    save_round,
    starve,
)
from steer_heal.loop.steps.rows import shuffled_pairs, training_rows
from steer_heal.loop.steps.state import Round, Run, RunResult, Setting
from steer_heal.loop.steps.texts import calibrate_filter, walk_dose
from steer_heal.loop.steps.training import bake, heal_rows
from steer_heal.loop.steps.vector import extract_vector

__all__ = [
    "Round",
    "Run",
    "RunResult",
    "Setting",
    "bake",
    "calibrate_filter",
    "extract_vector",
    "heal_rows",
    "judge",
    "judge_rounds",
    "measure",
    "measure_steered",
    "measure_student",
    "save_round",
    "shuffled_pairs",
    "starve",
    "training_rows",
    "walk_dose",
]
