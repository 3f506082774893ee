"""Texts labelled good or broken, made from hand-written pieces: what the filter is tried on; not shipped.

Knows nothing of the filter.
"""
