"""Adapters in use: scaled, summed with another trait's, argued against, and trained on after.

Knows nothing of how they were trained.
"""
