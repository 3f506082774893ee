"""Arms: the main job under several settings and seeds, run side by side, compared at equal rounds and at equal trait.

Knows nothing of the method: runs are processes of the command line, figures come from their run folders.
"""

from steer_heal.studies.arms.bar import bar_lines
from steer_heal.studies.arms.comparing import matched, paired
from steer_heal.studies.arms.definitions import BUILT_IN, Arm, parse_arm, select
from steer_heal.studies.arms.jobs import Job, make_jobs
from steer_heal.studies.arms.reading import ArmRun, State, read_run
from steer_heal.studies.arms.running import Failure, run_jobs
from steer_heal.studies.arms.tables import write_tables

__all__ = [
    "BUILT_IN", "Arm", "ArmRun", "Failure", "Job", "State", "bar_lines", "make_jobs", "matched", "paired", "parse_arm",
    "read_run", "run_jobs", "select", "write_tables",
]  # fmt: skip
