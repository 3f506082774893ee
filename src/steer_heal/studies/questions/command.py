"""The questions as a command: the runs that are missing, then every question's answer, then one table of all of them.

Knows nothing of the method.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steer_heal.errors import InputError
from steer_heal.studies.arms.definitions import BUILT_IN, OPEN, WATCH, Arm
from steer_heal.studies.arms.jobs import finished, make_jobs
from steer_heal.studies.arms.places import Local
from steer_heal.studies.arms.reading import read_run
from steer_heal.studies.arms.running import Failure, alone, run_jobs
from steer_heal.studies.questions import heals, models, over_rounds
from steer_heal.studies.questions.answers import RULE, Answer, Part, table
from steer_heal.studies.writing import Stopwatch, say, write_page

SIZES = ("--n-rounds", "2", "--n-min", "40", "--walk-batch", "56", "--eval-items", "24", "--eval-replies", "40")
COMMON = (*WATCH, *SIZES)
"""Small runs of which nothing is taken back: a minute and a half each on an idle core."""

LONGER = ("--n-rounds", "3")
BARRIER = ("--reg", "kl_rev", *OPEN)

ARMS = (
    Arm("open-nll", ("--reg", "nll", *OPEN, *LONGER)),
    Arm("open-kl", (*BARRIER, *LONGER)),
    Arm("prev", (*BARRIER, "--reference", "prev", *LONGER)),
    Arm("bounded", ("--reg", "nll", *OPEN, "--replay", "0.3", "--accumulate", "128")),
    Arm("ramp", (*BARRIER, "--lam-power", "-0.5")),
    Arm("cvar", (*BARRIER, "--kl-agg", "cvar")),
    Arm("p95", (*BARRIER, "--kl-agg", "p95")),
    Arm("max", (*BARRIER, "--kl-agg", "max")),
    BUILT_IN["tokens"],
    BUILT_IN["default"],
    BUILT_IN["shuffled"],
)
"""open-nll and open-kl: sampled tokens, no coherence filter and doses past the knee, so that the barrier has something
to hold. prev, ramp and the aggregates differ from open-kl in one option, bounded from open-nll in its rows. tokens has
the filter and the walk; default and shuffled learn from a teacher."""


@dataclass(frozen=True)
class Question:
    """How a claim of earlier work is answered, the arms that are read, and over how many rounds the claim is about."""

    answer: Callable[..., list[Part]]
    arms: tuple[str, ...] = ()
    rounds: int = 1

    @property
    def claim(self) -> str:
        """The first line of what its function says of itself."""
        first = inspect.getdoc(self.answer).splitlines()[0].removesuffix(".")
        return first[0].lower() + first[1:]

    def asked(self, **given: object) -> list[Part]:
        """Its answer, from those of runs, seeds and folder that its function takes."""
        return self.answer(**{name: given[name] for name in inspect.signature(self.answer).parameters})


QUESTIONS = {
    1: Question(over_rounds.prev_or_base, ("open-kl", "prev"), 10),
    2: Question(over_rounds.walk, ("tokens",), 10),
    3: Question(heals.lam, ("open-nll", "open-kl", "ramp")),
    4: Question(models.contexts),
    5: Question(models.personas),
    6: Question(over_rounds.nll_over_rounds, ("open-nll", "open-kl"), 10),
    7: Question(models.distance, ("open-nll",)),
    8: Question(over_rounds.aggregates, ("open-kl", "p95", "max", "cvar")),
    9: Question(over_rounds.bounded, ("open-nll", "bounded")),
    10: Question(heals.epochs),
    11: Question(models.anchors),
    12: Question(over_rounds.shuffled, ("default", "shuffled")),
    13: Question(models.cosines, ("tokens",)),
    14: Question(heals.masked, ("tokens",)),
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
            parts = question.asked(runs=runs, seeds=seeds, out=arguments.out)
            rounds = min((runs[arm][seed].n_rounds for arm in question.arms for seed in seeds), default=1)
            found = Answer(number, question.claim, question.arms, tuple(seeds), tuple(parts), rounds, question.rounds)
            found.save(arguments.out / "answers")
            say(f"question {number}: {found.verdict}, {watch}")
        answers = [Answer.load(path) for path in sorted((arguments.out / "answers").glob("*.json"))]
        return failures, write_page(arguments.out / "questions.md", "# Open questions", table(answers), RULE)
