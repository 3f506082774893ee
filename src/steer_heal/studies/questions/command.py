"""The questions as a command: the runs that are missing, then every question's answer, then one table of all of them.

Knows nothing of the method.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steer_heal.errors import InputError
from steer_heal.studies.arms.jobs import finished, make_jobs
from steer_heal.studies.arms.places import Local
from steer_heal.studies.arms.reading import read_run
from steer_heal.studies.arms.running import Failure, alone, run_jobs
from steer_heal.studies.questions import heals, models, over_rounds
from steer_heal.studies.questions.answers import RULE, Answer, Part, table
from steer_heal.studies.questions.definitions import ARMS, COMMON
from steer_heal.studies.questions.over_rounds import Runs, Seeds
from steer_heal.studies.writing import Stopwatch, say, write_page


@dataclass(frozen=True)
class Question:
    """A claim of earlier work, the arms it reads, how it is answered, and over how many rounds it is about."""

    claim: str
    arms: tuple[str, ...]
    answer: Callable[[Runs, Seeds, Path], list[Part]]
    rounds: int = 1


QUESTIONS = {
    1: Question(
        "over ten rounds prev as reference collapses, base holds the text",
        ("open-kl", "prev"),
        lambda runs, seeds, out: over_rounds.prev_or_base(runs, seeds),
        10,
    ),
    2: Question(
        "a fixed dose starves the filter as the trait grows; walk-C keeps it fed",
        ("tokens",),
        lambda runs, seeds, out: over_rounds.walk(runs, seeds),
        10,
    ),
    3: Question(
        "a lam that falls by round goes further at the same coherence; coherence is unimodal in lam",
        ("open-nll", "open-kl", "ramp"),
        lambda runs, seeds, out: heals.lam(runs, seeds),
    ),
    4: Question(
        "30 contexts of the domain overfit the vector to its format, diverse ones do not",
        (),
        lambda runs, seeds, out: models.contexts(seeds),
    ),
    5: Question(
        "a persona pair on two axes, or of unequal length, moves what it should not",
        (),
        lambda runs, seeds, out: models.personas(seeds),
    ),
    6: Question(
        "nll front-loads the trait, then erodes it",
        ("open-nll", "open-kl"),
        lambda runs, seeds, out: over_rounds.nll_over_rounds(runs, seeds),
        10,
    ),
    7: Question(
        "broken text lies farther from base than sound text, so a tau exists (AUC over .9)",
        ("open-nll",),
        lambda runs, seeds, out: models.distance(runs, seeds),
    ),
    8: Question(
        "over a loop p95 lets text go that rmse holds; max and cvar hold no less",
        ("open-kl", "p95", "max", "cvar"),
        lambda runs, seeds, out: over_rounds.aggregates(runs, seeds),
    ),
    9: Question(
        "the original's own texts and earlier rounds' keep the loop from collapse",
        ("open-nll", "bounded"),
        lambda runs, seeds, out: over_rounds.bounded(runs, seeds),
    ),
    10: Question(
        "in the ladder late epochs over-train: nothing more is learned, anchors are lost",
        (),
        lambda runs, seeds, out: heals.epochs(seeds, out),
    ),
    11: Question(
        "sampled anchors are fewer than greedy ones, and not the same each time",
        (),
        lambda runs, seeds, out: models.anchors(seeds),
    ),
    12: Question(
        "shuffled pairs carry the stance and not the text, under soft targets too",
        ("default", "shuffled"),
        lambda runs, seeds, out: over_rounds.shuffled(runs, seeds),
    ),
    13: Question(
        "independent runs make the same change at equal trait (cosine over .5)",
        ("tokens",),
        lambda runs, seeds, out: models.cosines(runs, seeds),
    ),
    14: Question(
        "the sound part of a text that the filter drops adds trait at no cost",
        ("tokens",),
        lambda runs, seeds, out: heals.masked(runs, seeds),
    ),
}


@dataclass(frozen=True)
class Arguments:
    """Open questions of earlier work: their runs, and their answers."""

    questions: tuple[int, ...] = tuple(QUESTIONS)
    """Questions by number; answers that OUT has to the others stay in the table."""
    seeds: tuple[int, ...] = (20, 21)
    """Seeds of every run and measurement; a question is answered over the seeds that have all its runs."""
    options: str = ""
    """Further options of every run, written as --options="--option value ..."; an arm's own win over them."""
    out: Path = Path("out/questions")
    """Folder of runs (OUT/ARM_sSEED), answers and the table."""
    workers: int = 0
    """Runs at a time; 0: one per core."""
    redo: bool = False
    """Make finished runs again that have other options or another source than now; without it they are refused."""
    tables: bool = False
    """Run no arm: ask the finished runs that are in OUT."""


def ask(arguments: Arguments) -> tuple[list[Failure], str]:
    """Run, answer, write; returns the runs that failed, and the page.

    Raises InputError for an unknown question and for stale runs.
    """
    unknown = [number for number in arguments.questions if number not in QUESTIONS]
    if unknown or arguments.workers < 0:
        raise InputError(
            f"question {unknown[0]}: give numbers from 1 to 14" if unknown else "--workers takes 0 or more"
        )
    asked = {number: QUESTIONS[number] for number in sorted(set(arguments.questions))}
    wanted = {name for question in asked.values() for name in question.arms}
    arms = [arm for arm in ARMS if arm.name in wanted]
    jobs = make_jobs(arms, arguments.seeds, arguments.out, (*COMMON, *shlex.split(arguments.options)))
    failures, watch, runs = [], Stopwatch(), {arm.name: {} for arm in arms}
    with alone(arguments.out):
        if jobs and not arguments.tables:
            failures = run_jobs(jobs, Local(arguments.workers), arguments.redo, say)
        for job in jobs:
            if (ledger := finished(job.folder)) is not None:
                runs[job.arm.name][job.seed] = read_run(job.arm.name, job.seed, ledger)
        for number, question in asked.items():
            seeds = [seed for seed in arguments.seeds if all(seed in runs[arm] for arm in question.arms)]
            if not seeds:
                say(f"question {number} has no answer: not all of {', '.join(question.arms)} are finished")
                continue
            parts = question.answer(runs, seeds, arguments.out)
            rounds = min((runs[arm][seed].n_rounds for arm in question.arms for seed in seeds), default=1)
            found = Answer(number, question.claim, question.arms, tuple(seeds), tuple(parts), rounds, question.rounds)
            found.save(arguments.out / "answers")
            say(f"question {number}: {found.verdict}, {watch}")
        answers = [Answer.load(path) for path in sorted((arguments.out / "answers").glob("*.json"))]
        return failures, write_page(arguments.out / "questions.md", "# Open questions", table(answers), RULE)
