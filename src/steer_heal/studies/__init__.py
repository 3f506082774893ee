"""Studies around the loop, each answering a question that one run cannot: arms, sweeps, heals of the same texts.

Nothing in the package imports from here.
"""
