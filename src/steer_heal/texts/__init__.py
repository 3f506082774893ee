"""Texts: sampling under a dose, the dose that enough of them survive (walk-C), and the filter that says which do.

Knows nothing of training and rounds.
"""
