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
    code = main(["--fast-dev-run", "--quiet", "--reference", "both", "--replay", "0.2", "--out", {out!r}])
    from steer_heal.model.depth import pick_layers
    try:
        pick_layers("ab", 4)
    except Exception as problem:
        print("a misuse is a", type(problem).__name__)
    sys.exit(code)
"""


def test_a_whole_run_keeps_to_its_annotations_and_the_checker_is_really_on(tmp_path):
    """In a process of its own, so that the checker sees the package's first import."""
    code = SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode in (0, 3) and "TypeCheckError" not in done.stderr, done.stderr[-2000:]
    assert list(tmp_path.glob("*/report.html"))
    assert "a misuse is a TypeCheckError" in done.stdout
