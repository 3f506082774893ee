"""Runs the notebooks of docs/ in this interpreter and writes them back with their outputs.

    uv run python scripts/notebook.py             # run, strip, write (`just notebook`)
    uv run python scripts/notebook.py --check     # run only; exit code 1 when a cell fails

Nothing of the machine is written: no times, paths, execution counts of another session, or progress bars. The kernel is
this interpreter, whatever kernels are installed; no network is used.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import steer_heal
from steer_heal.commands.script import run_script

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTEBOOK = DOCS / "quickstart.ipynb"
KERNEL = "this-interpreter"
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}


@dataclass(frozen=True)
class Arguments:
    """What to do with the notebooks."""

    notebook: Path | None = None
    """One of them alone."""
    check: bool = False
    """Run it and write nothing."""
    timeout: int = 300
    """Longest time of one cell, in seconds."""


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: int = 300) -> nbformat.NotebookNode:
    """Run every cell in `folder`, in place. Raises CellExecutionError where a cell fails."""
    with tempfile.TemporaryDirectory() as scratch:
        kernel = _kernel(Path(scratch))
        client = NotebookClient(notebook, km=kernel, timeout=timeout, resources={})
        try:
            client.execute(cwd=str(folder))
        finally:
            run_sync(kernel.shutdown_kernel)(now=True)  # the client ends kernels of its own only
    return notebook


def _kernel(scratch: Path) -> AsyncKernelManager:
    """A kernel of this interpreter that imports this `steer_heal`, with all its files under `scratch`."""
    source = str(Path(steer_heal.__file__).resolve().parents[1])
    spec = {
        "argv": [
            sys.executable,
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
            "--HistoryManager.enabled=False",
        ],
        "display_name": KERNEL,
        "language": "python",
        "env": {
            "PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH")))),
            "IPYTHONDIR": str(scratch / "ipython"),
            "OMP_NUM_THREADS": "1",
        },
    }
    (scratch / KERNEL).mkdir()
    (scratch / KERNEL / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    specs = KernelSpecManager(kernel_dirs=[str(scratch)])
    # Sockets in the folder: nothing is reached over a network, not even localhost.
    return AsyncKernelManager(
        kernel_name=KERNEL, kernel_spec_manager=specs, connection_file=str(scratch / "connection.json"),
        transport="ipc", ip=str(scratch / "kernel"),
    )  # fmt: skip


def strip(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Only what a reader sees, the same for everyone: sources, printed text, results, pictures. In place."""
    notebook.metadata = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    number = 0
    for place, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = {}, f"cell-{place:02d}"
        if cell.cell_type != "code":
            continue
        number += 1
        cell.execution_count = number
        cell.outputs = _joined(cell.outputs)
        for one in cell.outputs:
            if "metadata" in one:
                one.metadata = {}
            if "execution_count" in one:
                one.execution_count = number
    return notebook


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Printed text in one piece, however it arrived; stderr holds progress bars and warnings of one machine."""
    text = "".join(one.text for one in outputs if one.get("name") == "stdout")
    shown = [one for one in outputs if one.output_type != "stream"]
    return ([nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []) + shown


def run(arguments: Arguments) -> int:
    """Run, strip, write; returns the exit code."""
    paths = sorted(DOCS.glob("*.ipynb")) if arguments.notebook is None else [arguments.notebook]
    return max(run_one(path, arguments) for path in paths)


def run_one(path: Path, arguments: Arguments) -> int:
    """Run, strip and write one notebook; returns the exit code."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        try:
            execute(notebook, Path(folder), arguments.timeout)
        except CellExecutionError as problem:
            print(problem, file=sys.stderr)
            return 1
    if not arguments.check:
        nbformat.write(strip(notebook), path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    return 0


main = partial(run_script, Arguments, run, about=__doc__, name="notebook")


if __name__ == "__main__":
    raise SystemExit(main())
