"""The sub-commands of `steer-heal`, and what they share: options, help, exit codes.

Nothing here computes; each command calls the library as a notebook would.
"""
