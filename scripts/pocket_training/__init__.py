"""How `pocket` came to be: its corpus, tokenizer, training, checks and data card; a room for maintainers, not shipped.

    uv run just train-pocket                                  # rebuild everything, at most 30 minutes on 2 cores
    uv run python scripts/train_pocket.py --only traits       # one part: train, checks, traits or surgery

In the order of reading: `templates`, `mundane` and `corpus` make the chats, `tokenizer` their words, `training` the
weights; `measure` and `checks` judge them, `datacard` writes docs/pocket.md; `traitfiles` writes what the library asks
the model; `rebuild` runs all of it. Knows nothing of steering, healing or rounds; what a user runs (weights, checker)
is in `steer_heal.pocket`.
"""
