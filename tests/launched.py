"""Starts processes as a launcher does, from a process that has everything imported, and what they are asked to do."""

import contextlib
import os
import signal
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from healing_data import QUICK, completion
from resume_runs import config, undrawn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import steer_heal.model
from steer_heal.commands.run import main
from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.healing import heal, reference_states
from steer_heal.loop import steps
from steer_heal.loop.frame import inputs
from steer_heal.loop.rounds import run_rounds
from steer_heal.model import memory
from steer_heal.model.structure import fingerprint
from steer_heal.processes import each, rank, together, told
from steer_heal.texts.engines import check_engine
from steer_heal.texts.generation import Request, generate_requests
from steer_heal.texts.sampling import Sampling


def launch(context, count, folder, work, *given) -> list[int]:
    """Run `work(*given)` in so many processes at once; exit codes. Each one's stderr is in `folder/RANK.err`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(count):
        names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started.append(context.Process(target=_work, args=(names, folder, work, given)))
        started[-1].start()
    for process in started:
        process.join(120)
        assert process.exitcode is not None, f"hangs: {process.kill()}"
    return [process.exitcode for process in started]


def _work(names, folder: Path, work, given) -> None:
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    out, said = ((folder / f"{names['RANK']}.{kind}").open("w") for kind in ("out", "err"))
    with out, said, contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        code = work(*given)
    sys.exit(code)


def rows(lm):
    """Completions of unequal length and weight; more than a step has, and no multiple of it."""
    return [completion(lm, i, 5 + 3 * (i % 4), origin="base" if i % 5 == 0 else "steered") for i in range(13)]


def healed(lm):
    """A heal that uses every term of the loss, with steps that leave some of three processes without a row."""
    data = rows(lm)
    prev = reference_states(lm, data)
    config = replace(QUICK, reg="kl_rev", lam_mode="budget", batch_size=2, grad_accum=2, spectral=0.01, clip=1.0)
    return heal(lm, data, config, {"prev": prev, "base": prev}, weights=[1 + i % 3 for i in range(len(data))])


def sampled(lm):
    """Replies to prompts of unequal length, in batches smaller than the list."""
    requests = [Request("a " * (1 + i % 7) + "b ?", 0.0, i) for i in range(22)]
    return generate_requests(
        lm, requests, max_new_tokens=12, seed=3, batch_rows=4, sampling=Sampling(temperature=1.0, top_p=0.9)
    )


def states(lm):
    """Reference states by completion, of several batches."""
    return reference_states(lm, rows(lm), batch_tokens=64).rows


def save_heal(folder: Path) -> int:
    """Every process saves what its heal came to."""
    with together():
        torch.save(healed(steer_heal.model.load("tiny-random")), folder / f"heal-{rank()}")
    return 0


def save_stages(folder: Path) -> int:
    """Every process saves its completions, states, heal, and what it hears of another's failure."""

    def fail(job: int) -> int:
        if job == 1:
            raise InputError(f"job {job} of {each([1, 2], str)}")
        return job

    with together():
        lm = steer_heal.model.load("tiny-random")
        found = {"completions": sampled(lm), "states": states(lm), "heal": healed(lm)}
        try:
            each(range(4), fail)
        except InputError as problem:
            found["failure"] = str(problem), problem.rank
        found["told"] = told(lambda: rank())
        with mock.patch.object(memory, "free_memory", lambda device: 100.0 - 10 * int(os.environ["RANK"])):
            found["free"] = memory.free_for(lm.base)
        halves = sharded()
        # Inside `each` a process is alone: both do the whole heal, side by side, each with half of every block.
        found["sharded"] = each(range(2), lambda number: healed(halves).adapter)
        found["refused"] = []
        for refused in (partial(inputs, RunConfig(fast_dev_run=True), halves), partial(check_engine, "vllm")):
            try:
                refused()
            except InputError as problem:
                found["refused"].append(str(problem))
        torch.save(found, folder / f"stages-{rank()}")
    return 0


def sharded():
    """The model with a share of every block in each process."""
    mesh, lm = init_device_mesh("cpu", (2,)), steer_heal.model.load("tiny-random")
    for block in lm.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return lm


@undrawn()
def run_sharded(folder: Path) -> int:
    """A user's script: each process shards the model itself, and has a run on it."""
    lm = sharded()
    before = fingerprint(lm.base)
    result = run_rounds(config(folder, n_rounds=1, model="tiny-random"), lm=lm)
    stack = result.run.stack
    with stack.unfolded():
        found = {"rounds": len(stack), "same": fingerprint(lm.base) == before}
    torch.save(found | {"verdict": result.verdict.name}, folder / f"sharded-{os.environ['RANK']}")
    return 0


@undrawn()
def command(words: list[str], then: str = "") -> int:
    """The command line; `then` is what becomes of the second process: killed after sampling, or ill at the start."""

    def ill(*given):
        raise InputError("the second process is ill: see a doctor")

    if os.environ["RANK"] == "1":
        if then == "killed":
            steps.measure_steered = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
        if then == "ill":
            steps.calibrate_filter = ill
    return main(words)
