"""What kind of shift an adapter is: content that depends on the text, or one constant shift of the logits.

Knows nothing of how an adapter was trained and of rounds.
"""

from steer_heal.evaluation.probes.figures import Probe, Sign
from steer_heal.evaluation.probes.moments import ShiftMoments, entropy_deficit
from steer_heal.evaluation.probes.probing import intruder_directions, intruders, probe, probe_states

__all__ = [
    "Probe",
    "ShiftMoments",
    "Sign",
    "entropy_deficit",
    "intruder_directions",
    "intruders",
    "probe",
    "probe_states",
]
