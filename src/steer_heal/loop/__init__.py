"""The loop over rounds: what is done in which order, what stands, and how a stopped run goes on.

Knows nothing of the command line.
"""
