"""`steer-heal doctor`: what is installed, on what machine, and whether the method's foundations hold here.

Knows nothing of runs. Each check says whether it holds, and what it saw; exit code 1 when one does not.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from steer_heal.ledger.environment import environment
from steer_heal.model.names import check_name

if TYPE_CHECKING:
    import torch

    from steer_heal.model import LM

TOLERANCE = {"torch.float32": 1e-4, "torch.float16": 2e-2, "torch.bfloat16": 5e-2}
"""Largest difference of losses in nats, by the dtype of the weights."""
Found = tuple[bool, str]


@dataclass(frozen=True)
class Doctor:
    """Versions, device and memory; then the method's foundations, checked on a model.

    A dose of 0 changes no bit, the chunked loss equals the plain one, adapters fold and leave without a trace, and a
    tiny round runs through. Exit code 1 when one of them fails.

    Attributes:
        model: Model of the checks: tiny-random, pocket, a folder, a hub id.
        device: cpu, cuda, mps or auto.
        dtype: auto, float32, bfloat16 or float16.
        no_round: Leave out the tiny round, which always runs on tiny-random, and the gate on a ruined pocket.
    """

    model: str = "tiny-random"
    device: str = "auto"
    dtype: str = "auto"
    no_round: bool = False

    def __call__(self) -> int:
        """Print the machine and one line per check."""
        check_name(self.model)
        from steer_heal import model as models
        from steer_heal.loop.gate import blocks_a_ruined_model
        from steer_heal.model.loading import resolve_device

        device = resolve_device(self.device)
        lm = models.load(self.model, device=self.device, dtype=self.dtype)
        for line in machine(device):
            print(line)
        print(f"model    {lm.name}, {len(lm.blocks)} blocks of width {lm.width}, {lm.dtype} on {lm.device}")
        asked: dict[str, Callable[[], Found]] = {
            "dose 0 is transparent": partial(dose_zero, lm),
            "chunked loss equals the model's": partial(chunked_loss, lm),
            "fold and undo": partial(fold_and_undo, lm),
        }
        if not self.no_round:
            asked |= {"one tiny round": tiny_round, "the gate blocks a ruined model": blocks_a_ruined_model}
        failed = 0
        for name, check in asked.items():
            started = time.perf_counter()
            good, detail = check()
            failed += not good
            print(f"{'ok  ' if good else 'FAIL'}     {name}: {detail} ({time.perf_counter() - started:.1f} s)")
        print("all is well" if not failed else f"{failed} check(s) failed: do not trust a run on this machine")
        return min(failed, 1)


def machine(device: torch.device) -> list[str]:
    """Versions, device, memory and disk, a line each."""
    import torch

    found = environment()
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in found["versions"].items())
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = [
        f"python   {found['python']} on {found['platform']}",
        f"versions {versions}",
        f"package  {found['imported_from']}, commit {found['git_commit'] or 'none'}",
        f"cpu      {os.cpu_count()} cores, {found['cpu_threads']} torch threads, {total / 1e9:.1f} GB of memory",
    ]
    if device.type == "cuda":
        free, all_of = torch.cuda.mem_get_info(device)
        lines.append(f"cuda     {found['cuda']}, {free / 1e9:.1f} of {all_of / 1e9:.1f} GB free")
    else:
        lines.append(f"device   {device.type}")
    return [*lines, f"disk     {shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB free here"]


def dose_zero(lm: LM) -> Found:
    """At dose 0 the logits are those of the plain model, bit for bit; at dose 1 they are not."""
    import torch

    from steer_heal.steering import extract
    from steer_heal.trait import Trait, default_trait

    trait = Trait.load(default_trait(lm.name))
    vector = extract(lm, trait.pos, trait.neg, trait.contexts[:8])
    batch = lm.encode_chat(trait.eval_prompts[:4])
    with torch.no_grad():
        plain = lm.model(**batch).logits
        steered = {}
        for dose in (0.0, 1.0):
            with vector.applied(lm.model, dose):
                steered[dose] = lm.model(**batch).logits
        again = lm.model(**batch).logits
    same = torch.equal(plain, steered[0.0]) and torch.equal(plain, again)
    moved = (steered[1.0] - plain).abs().max().item()
    return same and moved > 0, f"dose 0 {'changes nothing' if same else 'changes logits'}, dose 1 by up to {moved:.2g}"


def chunked_loss(lm: LM) -> Found:
    """nll and KL of the chunked loss against a plain log-softmax over the whole vocabulary, and the bare head."""
    import torch

    from steer_heal.healing.barriers import position_losses, resolve_reg
    from steer_heal.model import check_head

    check_head(lm)
    rows = lm.base.get_input_embeddings().num_embeddings
    ids = torch.randint(rows, (1, 33), generator=torch.Generator().manual_seed(0)).to(lm.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        hidden, targets = lm.hidden_states(batch)[0, :-1], ids[0, 1:]
        ours = position_losses(lm.head, hidden, targets, [hidden.flip(0)], resolve_reg("kl_rev", 0), chunk=7)
        logits = lm.base(**batch, use_cache=False).logits[0, :-1].float()
    logp, reference = logits.log_softmax(-1), logits.flip(0).log_softmax(-1)
    nll = -logp.gather(-1, targets[:, None])[:, 0]
    kl = (logp.exp() * (logp - reference)).sum(-1)
    worst = max((ours.nll - nll).abs().max().item(), (ours.divergence[0] - kl).abs().max().item())
    limit = TOLERANCE.get(str(lm.dtype), 1e-4) * max(1.0, kl.max().item(), nll.max().item())
    return worst <= limit, f"largest difference of nll and KL {worst:.1g} nats"


def fold_and_undo(lm: LM) -> Found:
    """A random adapter moves the logits while it is folded in, and leaves the weights bit for bit."""
    import torch

    from steer_heal.healing.adapter import Adapter
    from steer_heal.healing.bake import AdapterStack
    from steer_heal.model.structure import full_weight

    name = next(f"{lm.blocks_path}.0.{n}" for n, m in lm.blocks[0].named_modules() if isinstance(m, torch.nn.Linear))
    weight = lm.base.get_submodule(name).weight
    before, generator = weight.data.clone(), torch.Generator().manual_seed(0)
    rows, columns = full_weight(lm.base, name).shape
    a, b = (torch.randn(*shape, generator=generator) for shape in ((4, columns), (rows, 4)))
    batch, stack = lm.pad_left([[1, 2, 3]]), AdapterStack(lm.model)
    with torch.no_grad():
        plain = lm.model(**batch).logits
        stack.push(Adapter({name: a}, {name: b}, 4, 4.0))
        moved = (lm.model(**batch).logits - plain).abs().max().item()
        stack.pop()
        after = lm.model(**batch).logits
    same = torch.equal(lm.base.get_submodule(name).weight, before) and torch.equal(after, plain)
    return same and moved > 0, f"logits moved by {moved:.2g}, {'restored bit for bit' if same else 'NOT restored'}"


def tiny_round() -> Found:
    """One round of the whole loop on `tiny-random` in a temporary folder; its numbers mean nothing."""
    from rich.console import Console

    from steer_heal.config import RunConfig
    from steer_heal.loop.rounds import run_rounds
    from steer_heal.report.console import Reporter

    silent = Reporter(Console(quiet=True), quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        result = run_rounds(RunConfig(fast_dev_run=True, n_rounds=1, out=folder), silent)
        written = sum(path.is_file() for path in result.folder.rglob("*"))
    return written > 0, f"passed every stage, {written} files"
