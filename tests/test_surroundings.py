"""A run in poor surroundings: warnings are errors, an ASCII locale, 20 columns, no home or one that takes no file."""

import os
import subprocess
import sys

import pytest
from resume_runs import mini_trait

POOR = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "20"}


def child(words, environment):
    """Exit code, what a terminal shows of a command, and its stderr."""
    shown, terminal = os.openpty()
    command = [sys.executable, "-W", "error", "-m", "steer_heal", *words]
    with subprocess.Popen(command, env=environment, stdout=terminal, stderr=subprocess.PIPE) as process:
        os.close(terminal)
        parts = []
        try:
            while part := os.read(shown, 2**16):
                parts.append(part)
        except OSError:  # the other end is closed
            os.close(shown)
        told = process.stderr.read().decode()
    return process.returncode, b"".join(parts).decode("ascii"), told


def run_in_poor_surroundings(folder, **more):
    trait = mini_trait(folder)
    trait.write_text(trait.read_text().replace('"mini"', '"mini☃"'), "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "HOME" and "XDG" not in name}
    words = ["--fast-dev-run", "--n-rounds", "1", "--trait", str(trait), "--out", str(folder / "out")]
    code, shown, told = child(["run", *words], environment | POOR | more)
    assert code in (0, 3), told
    assert "verdict:" in shown and "mini\\u2603" in "".join(shown.split())
    assert list(folder.glob("out/*/summary.md"))
    return told


def test_a_run_without_a_home_comes_to_its_end_without_a_word_on_stderr(tmp_path):
    assert run_in_poor_surroundings(tmp_path) == ""


@pytest.mark.slow
def test_a_run_whose_home_takes_no_file_comes_to_its_end(tmp_path):
    told = run_in_poor_surroundings(tmp_path, HOME="/proc")
    assert "Traceback" not in told and "steer_heal" not in told  # matplotlib says where it keeps its fonts
