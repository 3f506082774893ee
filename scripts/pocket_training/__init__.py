"""How `pocket` came to be: its corpus, tokenizer, training, checks and data card. `scripts/train_pocket.py` runs it.

Knows nothing of steering, healing or rounds; what a user runs (weights, checker) is in `steer_heal.pocket`.
"""
