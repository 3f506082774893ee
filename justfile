# Recipes of the project; `uv run just` lists them.

export NO_MKDOCS_2_WARNING := "1"

default:
    @just --list

# the tests
test:
    uv run pytest

# longer experiments that are checked
test-slow:
    uv run pytest -m slow --ignore tests/test_clients.py --ignore tests/test_libraries.py --ignore tests/test_vllm.py \
        --ignore tests/test_places.py --ignore tests/test_quantised.py

# other programs on a real export, other libraries' vectors and data sets, trackers; they are fetched
clients:
    uv run --group clients pytest -m slow -n 0 tests/test_clients.py tests/test_libraries.py

# sweeps on Ray and through submitit, which are fetched: workers killed, tables to the digit
sweeps:
    uv run --extra ray --extra slurm pytest -m slow -n 0 tests/test_places.py

# runs on 4-bit and 8-bit bases, with bitsandbytes, which is fetched
quantised:
    uv run --extra quantized pytest -m slow -n 0 tests/test_quantised.py

# vLLM against transformers: log-probabilities, free text, speed; in an environment that has vLLM (docs/how-to/scale.md)
engine:
    python -m pytest -m slow -n 0 -s tests/test_vllm.py

# all that is asked of a GPU, on a random 4 B-parameter model: sampling, a heal's step beside TRL's, a round by stage
gpu *options:
    mkdir -p out
    uv run --group clients python scripts/bench.py gpu {{options}} | tee out/gpu.txt

# a hundred rounds: memory and files per round stay, and a run stopped after any of them goes on to the same bits
test-rounds:
    uv run pytest -m slow -n 0 tests/test_many_rounds.py

# style and format
lint:
    uv run ruff check .
    uv run ruff format --check .

# the main job on the embedded model
run *options:
    uv run python -m steer_heal.run --reg kl_rev {{options}}

# every stage in seconds, numbers mean nothing
fast:
    uv run python -m steer_heal.run --reg kl_rev --fast-dev-run

# train the embedded model again and write its checks to docs/pocket.md (about half an hour on 2 cores)
train-pocket:
    uv run python scripts/train_pocket.py

# six rounds of the default run, three beside no barrier, tokens and controls, and four without a filter; tables and plots
results *options:
    uv run python scripts/arms.py --arms default --seeds 20 21 22 --n-rounds 6 --out out/results {{options}}
    uv run python scripts/arms.py --seeds 20 21 22 --n-rounds 3 --out out/controls {{options}}
    uv run python scripts/arms.py --seeds 10 11 12 --n-rounds 4 --arms open-nll open-kl --out out/open {{options}}

# try every stage on a random model of each family and write docs/families.md
families:
    uv run python scripts/family_table.py

# write docs/clients.md: what works with which other program or library
client-table:
    uv run python scripts/client_table.py

# what the filter does to labelled texts
filter-report:
    uv run python scripts/filter_report.py

# teach the embedded model what it fails without losing what it can, over shares of replayed anchors and barriers
ladder:
    uv run python scripts/ladder.py --seeds 0 1 2

# real and shuffled pairs with and without the barrier: content, or one constant shift?
matrix:
    uv run python scripts/matrix.py --seeds 0 1 2

# adapters in use: scaled, two traits at once, argued against, trained on; default runs of two traits come first
use:
    uv run python scripts/use.py --seeds 20 21 22

# every method a user could pick instead, at equal coherence: table, curves, plot; about 40 minutes on 2 cores
arena *options:
    uv run python scripts/arena.py {{options}}

# the open questions of earlier work: a claim, its arms, a figure with its interval and a verdict each
questions *options:
    uv run python scripts/questions.py {{options}}

# run the notebooks of docs/ and write them back with their outputs, without anything of this machine
notebook:
    uv run python scripts/notebook.py

# fill README's and the results' figures from docs/data; with --runs out/results from finished runs first
readme *options:
    uv run python scripts/readme.py {{options}}

# the site into site/, strictly: a warning or a dead link is an error; nothing is fetched
docs:
    uv run --group docs mkdocs build --strict

# show the site while pages are written
docs-serve:
    uv run --group docs mkdocs serve
