"""Texts labelled good or broken, made from hand-written pieces: what the filter is tried on. No stage imports them.

Knows nothing of the filter.
"""

from steer_heal.studies.labelled_texts.labelled import labelled, read_labelled, write_labelled
from steer_heal.studies.labelled_texts.pieces import Pieces

__all__ = ["Pieces", "labelled", "read_labelled", "write_labelled"]
