"""The loop over rounds: what is done in which order, what stands, and how a stopped run goes on.

Read `rounds` first: it is the method. Each of its lines is a function of `steps`, which calls one stage and records
what came of it, or of `gate`; `frame` is what stands before the first round and after the last.
Knows nothing of the command line.
"""
