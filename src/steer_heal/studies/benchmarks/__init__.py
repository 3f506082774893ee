"""What `scripts/bench.py` measures: one module per bench, shared measuring, baselines; no stage imports them."""
