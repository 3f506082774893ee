"""How to load what a run came to, as code with the run's own folder in it that works as it stands.

Knows nothing of pages. Names and prompts stand in it as literals, so that none of them can become code.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from steer_heal.ledger import Ledger
from steer_heal.report.headline import event
from steer_heal.report.pages.folder import base_of, round_folders

ADAPTER = "healed-adapter"
"""Folder that the snippets export to, where they are run."""


@dataclass(frozen=True)
class Snippet:
    """A few lines to copy; `told` says what they give, `language` is sh or python."""

    told: str
    language: str
    code: str


def snippets(ledger: Ledger) -> list[Snippet]:
    """Python with this library, the command that exports, plain peft; without a result, the steering vector."""
    if event(ledger, "end")["best_round"] is None:
        return [without_result(ledger)]
    run = shlex.quote(str(ledger.folder.resolve()))
    export = f"steer-heal export {run} --to {ADAPTER}"
    chat = f"steer-heal chat {run} --prompt {shlex.quote(question(ledger))}"
    told = "With this library, the rounds' adapters folded into the original weights:"
    return [
        Snippet(told, "python", folded(ledger)),
        Snippet("As one adapter for plain peft (--merged: a whole model):", "sh", export),
        Snippet("and then, without this run's folder:", "python", with_peft(ledger)),
        Snippet("Base, steered and healed on a question of your own:", "sh", chat),
    ]


def folded(ledger: Ledger) -> str:
    """Lines that load the student and let it reply."""
    rounds = tuple(event(ledger, "end")["folded"])
    lines = [
        f"run = {str(ledger.folder.resolve())!r}",
        "stack = sh.AdapterStack(lm.model)",
        f"for number in {rounds!r}:  # the rounds that stand, up to the best one",
        '    stack.push(sh.Adapter.load(f"{run}/rounds/{number:02d}/adapter"))',
    ]
    return "\n".join([*original(ledger), *lines, *asked(ledger)])


def with_peft(ledger: Ledger) -> str:
    """Lines that load the exported adapter with its base."""
    if event(ledger, "start")["model"] == "tiny-random":  # made in memory, there is no folder that peft could load
        return f"import steer_heal as sh\n\nmodel = sh.load({ADAPTER!r}).model"
    load = f"model = AutoPeftModelForCausalLM.from_pretrained({ADAPTER!r})"
    return f"from peft import AutoPeftModelForCausalLM\n\n{load}"


def without_result(ledger: Ledger) -> Snippet:
    """Lines that load the first steering vector of a run of which no round stands."""
    told = "No round stands, so the result is the original model."
    vectors = [path / "vector.safetensors" for path in round_folders(ledger).values()]
    found = next((path for path in vectors if path.is_file()), None)
    if found is None:
        return Snippet(f"{told} There is nothing to load beside it.", "python", "\n".join(original(ledger)))
    load = f"vector = sh.SteeringVector.load({str(found.resolve())!r})"
    lines = [*original(ledger), load, *asked(ledger, "vector, doses=(0.5,), ")]
    return Snippet(f"{told} Its steering vector is there, here at a dose of 0.5:", "python", "\n".join(lines))


def original(ledger: Ledger) -> list[str]:
    """Lines that load the original model as the run did."""
    name, dtype = event(ledger, "start")["model"], ledger.config["dtype"]
    options = "" if dtype == "auto" else f", dtype={dtype!r}"
    return ["import steer_heal as sh", "", f"lm = sh.load({name!r}{options})"]


def question(ledger: Ledger) -> str:
    """The first held-out prompt."""
    return next((row.prompt for row in base_of(ledger).replies), "What should I do?")


def asked(ledger: Ledger, more: str = "") -> list[str]:
    """Lines that ask the first held-out prompt as the run did."""
    system, tokens = base_of(ledger).system, ledger.config["max_new_tokens"]
    return [
        f"prompts = [{question(ledger)!r}]",
        f"(reply,) = sh.generate(lm, prompts, {more}system={system!r}, max_new_tokens={tokens})",
        "print(reply.text)",
    ]
