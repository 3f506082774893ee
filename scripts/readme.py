"""Fills the marked blocks of README.md and docs/results with figures of finished runs, so that none is typed by hand.

    uv run python scripts/readme.py                        # from docs/data/rounds.json (`just readme`)
    uv run python scripts/readme.py --runs out/results     # read the finished runs of the default arm first
    uv run python scripts/readme.py --arena out/arena      # read the finished arena first
    uv run python scripts/readme.py --check                # write nothing; exit code 1 where a page differs

With --runs also the picture of the first seed, with --arena the arena's. Knows nothing of how a figure is measured.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from steer_heal.commands.script import run_script
from steer_heal.errors import InputError
from steer_heal.report import markdown_table
from steer_heal.studies.arms.bar import bar_lines
from steer_heal.studies.arms.comparing import compare_states
from steer_heal.studies.arms.jobs import finished, recorded_source
from steer_heal.studies.arms.reading import ArmRun, State, figures, read_run
from steer_heal.studies.arms.tables import bar_rows, cell

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "docs" / "data" / "rounds.json"
ARENA = DATA.with_name("arena.json")
PAGES = tuple(
    ROOT / place for place in ("README.md", "docs/results.md", "docs/results/rounds.md", "docs/results/arena.md")
)
BLOCK = re.compile(r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = ["", "trait", "log-odds", "sentence ok", "4-grams", "words", "entropy"]
ABSOLUTE = ("trait", "log_odds", "sentence_ok", "distinct4", "words", "entropy")


@dataclass(frozen=True)
class Arguments:
    """Where figures come from."""

    runs: Path | None = None
    """Folder of scripts/arms.py with finished runs of the default arm; without it the committed figures are used."""
    arena: Path | None = None
    """Folder of scripts/arena.py with a finished page; without it the committed figures are used."""
    check: bool = False
    """Write nothing."""


def collect(folder: Path) -> dict:
    """What the pages show of the finished runs of the default arm, seed by seed. Raises InputError without any."""
    found = sorted((int(path.name.rpartition("_s")[2]), path) for path in folder.glob("default_s*"))
    ledgers = {seed: (path, ledger) for seed, path in found if (ledger := finished(path)) is not None}
    if not ledgers:
        raise InputError(f"{folder}: no finished run of the default arm: make some with scripts/arms.py")
    runs = [read_run("default", seed, ledger) for seed, (_, ledger) in ledgers.items()]
    seeds = list(ledgers)
    return {
        "seeds": seeds,
        "n_rounds": runs[0].n_rounds,
        "seconds": [round(run.seconds) for run in runs],
        "sources": sorted({recorded_source(path) or "unknown" for path, _ in ledgers.values()}),
        "verdicts": [f"{run.verdict} (best round {run.best_round})" for run in runs],
        "states": {
            name: [None if state is None else described(state, run) for run, state in zip(runs, states, strict=True)]
            for name, states in all_states(runs).items()
        },
        "moved": {
            name: str(getattr(compare_states([run.base for run in runs], [run.last for run in runs]), name))
            for name in ("free_trait", "log_odds", "sentence_ok")
        },
        "bar": [
            ["line", "unit", *map(str, seeds), "all", "met"],
            *(list(row.values())[1:] for row in bar_rows(bar_lines(runs), seeds)),
        ],
        "replies": replies(runs[0]),
    }


def all_states(runs: Sequence[ArmRun]) -> dict[str, list[State | None]]:
    """By name the state of every run; None where a run was over before."""

    def of_round(number: int, wanted: str) -> list[State | None]:
        rounds = [next((r for r in run.rounds if r.number == number and r.student), None) for run in runs]
        if wanted == "steered":
            return [r and State(r.steered, None) for r in rounds]
        return [
            r and (run.standing(number) if wanted == "stands" else r.student)
            for r, run in zip(rounds, runs, strict=True)
        ]

    states: dict[str, list[State | None]] = {
        name: [getattr(run, name) for run in runs] for name in ("base", "prompted")
    }
    for number in range(max(len(run.rounds) for run in runs)):
        states |= {f"{number} {what}": of_round(number, what) for what in ("steered", "stands", "trained")}
    return states | {"end": [run.last for run in runs]}


def described(state: State, run: ArmRun) -> dict[str, float | None]:
    """The figures of a state, as they are and as shares of base, four digits."""
    metrics, relative = state.metrics, figures(state, run.base)
    own = {"log_odds": metrics.log_odds, "distinct4": metrics.distinct4, "words": metrics.words}
    values = {**relative, **own, "entropy": metrics.token_entropy}
    return {name: None if value is None else round(value, 4) for name, value in values.items()}


def replies(run: ArmRun) -> dict:
    """One prompt's replies: the first on which base takes the other side, steering breaks and the result is sound."""
    result = next(r for r in run.rounds if r.number == run.best_round)
    rows = zip(run.base.metrics.replies, run.rounds[0].steered.replies, result.student.metrics.replies, strict=True)
    shown = [
        (base, steered, healed)
        for base, steered, healed in rows
        if base.trait == 0 and base.reply_ok and steered.sentence_ok < 0.5 and healed.trait == 1 and healed.reply_ok
    ]
    if not shown:
        raise InputError(f"{run.folder}: no prompt on which base, steered and healed all show what they are")
    base, steered, healed = shown[0]
    texts = {"prompt": base.prompt, "base": base.text, "steered": steered.text, "healed": healed.text}
    return {**texts, "round": run.best_round, "like_it": len(shown), "prompts": len(run.base.metrics.replies)}


def seeds_in_words(data: dict) -> str:
    """`seed 10`, or `seeds 10, 11, 12`."""
    return f"seed{'s' if len(data['seeds']) > 1 else ''} {', '.join(map(str, data['seeds']))}"


def over_seeds(found: Sequence[dict | None], name: str, digits: int = 2, signed: bool = False) -> str:
    """Median (range) of a figure over the seeds that have it."""
    return cell([one[name] for one in found if one], digits, signed)


def short_row(data: dict, label: str, state: str) -> list[str]:
    """Medians of one state's figures."""
    found = data["states"][state]
    digits = {"words": 1}
    middles = [over_seeds(found, name, digits.get(name, 2), name == "log_odds").split(" ")[0] for name in ABSOLUTE]
    return [label, *middles]


def readme_rows(data: dict) -> str:
    """What goes in, what comes out: medians over the seeds."""
    rows = [
        short_row(data, "base", "base"),
        short_row(data, "asked: persona as system prompt", "prompted"),
        short_row(data, "steered, round 0, nothing filtered", "0 steered"),
        short_row(data, "healed, round 0", "0 stands"),
        short_row(data, f"healed, what stands after {data['n_rounds']} rounds", "end"),
    ]
    return markdown_table(COLUMNS, rows)


def readme_replies(data: dict) -> str:
    """The pair, as a list."""
    one = data["replies"]
    said = {
        "Asked": one["prompt"],
        "Before": one["base"],
        "Steered, not healed": one["steered"],
        f"After {one['round'] + 1} rounds": one["healed"],
    }
    return "\n".join(wrapped(f"**{who}:** {text}", "- ") for who, text in said.items())


def in_words(data: dict) -> str:
    """The result in sentences, medians (range) over the seeds."""
    end, first = data["states"]["end"], data["states"]["0 stands"]
    lowest = min(
        one["sentence_share"]
        for name, found in data["states"].items()
        if name.endswith("stands")
        for one in found
        if one
    )
    grams, moved = over_seeds(end, "distinct4_share"), over_seeds(first, "shift", signed=True)
    stands = over_seeds(end, "shift", signed=True)
    before, after = (over_seeds(state, "trait") for state in (data["states"]["base"], end))
    text = (
        f"{seeds_in_words(data).capitalize()}, {data['n_rounds']} rounds: {', '.join(data['verdicts'])}. "
        f"Forced choice moves by {moved} nats in round 0 and stands at {stands} at the end; free text goes from "
        f"{before} to {after}. Sound sentences: never under {lowest:.3f} of base's in what stood. "
        f"4-grams end at {grams} of base's."
    )
    return wrapped(text)


def wrapped(text: str, mark: str = "") -> str:
    """Text in lines of at most 100 characters; the first is marked, the others stand under it."""
    return textwrap.fill(text, 100, initial_indent=mark, subsequent_indent=" " * len(mark), break_on_hyphens=False)


def bar_table(data: dict) -> str:
    """The bar, line by line."""
    return markdown_table(*(data["bar"][0], data["bar"][1:]))


ROUND_COLUMNS = [
    "state",
    "n",
    "trait",
    "log-odds shift",
    "sentence ok of base",
    "4-grams",
    "words",
    "entropy",
    "off-target",
]
ROUND_FIGURES = ("trait", "shift", "sentence_share", "distinct4_share", "words_share", "entropy_share", "off_target")


def rounds_table(data: dict) -> str:
    """Median (range) of every state that stands; what a reverted round had trained stands under it."""
    rows = []
    for name, found in data["states"].items():
        number, _, what = name.partition(" ")
        if what == "steered" or (what == "trained" and found == data["states"][f"{number} stands"]):
            continue
        label = {"stands": f"round {number}", "trained": f"round {number}, as trained"}.get(what, name)
        cells = [over_seeds(found, figure, signed=figure == "shift") for figure in ROUND_FIGURES]
        rows.append([label, str(sum(one is not None for one in found)), *cells])
    return markdown_table(ROUND_COLUMNS, rows)


def made_with(data: dict) -> str:
    """Which runs the figures are of."""
    minutes = ", ".join(f"{seconds / 60:.0f}" for seconds in data["seconds"])
    return wrapped(
        f"Generated by `scripts/readme.py` from the run folders of {seeds_in_words(data)}; minutes per run: {minutes}, "
        "beside other jobs."
    )


def moved(data: dict) -> str:
    """What stands at the end against base, paired."""
    found = data["moved"]
    return wrapped(
        f"At the end against base, {seeds_in_words(data)}, items and prompts paired, 95 %: log-odds "
        f"{found['log_odds']} nats, free text {found['free_trait']} of the replies, sentence ok {found['sentence_ok']}."
    )


BLOCKS = {
    "readme-rows": readme_rows,
    "in-words": in_words,
    "readme-replies": readme_replies,
    "bar": bar_table,
    "rounds": rounds_table,
    "made-with": made_with,
    "moved": moved,
}
BLOCKS |= {
    f"arena-{part}": lambda data, part=part: wrapped(data["arena"][part]) for part in ("about", "verdict", "legend")
}
BLOCKS |= {f"arena-{part}": lambda data, part=part: data["arena"][part] for part in ("table", "recipes", "curves")}


def filled(page: str, data: dict) -> str:
    """The page with every marked block as the figures have it. Raises InputError for a block that nothing fills."""

    def block(match: re.Match) -> str:
        if match[2] not in BLOCKS:
            raise InputError(f"block {match[2]!r} is none of {', '.join(BLOCKS)}")
        return f"{match[1]}{BLOCKS[match[2]](data)}\n{match[3]}"

    return BLOCK.sub(block, page)


def refresh(arguments: Arguments) -> int:
    """Read, fill, write or check; returns the exit code."""
    if arguments.runs is not None:
        text = json.dumps(collect(arguments.runs), indent=1)
        DATA.write_text(f"{text}\n", encoding="utf-8")
        seed = json.loads(text)["seeds"][0]
        shutil.copyfile(
            finished(arguments.runs / f"default_s{seed}").folder / "trajectory.png", ROOT / "docs" / "trajectory.png"
        )
    if arguments.arena is not None:
        shutil.copyfile(arguments.arena / "arena.json", ARENA)
        shutil.copyfile(arguments.arena / "arena.png", ROOT / "docs" / "arena.png")
    data = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (DATA, ARENA)}
    data = data["rounds"] | {"arena": data["arena"]}
    pages = {path: path.read_text(encoding="utf-8") for path in PAGES}
    different = [path for path, text in pages.items() if filled(text, data) != text]
    for path in different:
        if arguments.check:
            print(f"{path.name}: its figures are not those of docs/data, run `just readme`", file=sys.stderr)
        else:
            path.write_text(filled(pages[path], data), encoding="utf-8")
    return 1 if different and arguments.check else 0


main = partial(run_script, Arguments, refresh, about=__doc__, name="readme")


if __name__ == "__main__":
    sys.exit(main())
