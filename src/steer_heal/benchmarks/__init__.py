"""Baselines that `scripts/bench.py` measures the package against; no stage imports them."""
