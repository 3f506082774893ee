"""A whole run in which every annotated call of the package is checked against its types and tensor shapes."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from jaxtyping import install_import_hook
sys.path.insert(0, {tests!r})
with install_import_hook("steer_heal", "typecheck.typechecked"):
    from steer_heal.run import main
    sys.exit(main(["--fast-dev-run", "--quiet", "--reference", "both", "--replay", "0.2", "--out", {out!r}]))
"""


def run_checked(script: str, tmp_path) -> subprocess.CompletedProcess:
    """The script in a process of its own, so that the checker sees the package's first import."""
    code = script.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_a_whole_run_keeps_to_its_annotations(tmp_path):
    done = run_checked(SCRIPT, tmp_path)
    assert done.returncode in (0, 3) and "TypeCheckError" not in done.stderr, done.stderr[-2000:]
    assert list(tmp_path.glob("*/report.html"))


def test_the_checker_is_really_on(tmp_path):
    misuse = 'from steer_heal.model.depth import pick_layers; pick_layers("ab", 4)  #'
    wrong = SCRIPT.replace('sys.exit(main(["--fast', misuse)
    assert "TypeCheckError" in run_checked(wrong, tmp_path).stderr
