"""The student of a run for other programs: what is written, at which strength, and onto the hub.

Knows nothing of training; every figure of a card comes from the run's records or is measured here once.
"""
