"""Annotations: kept by a whole run, call by call with tensor shapes, and by what the documentation shows."""

import os
import subprocess
import sys
from pathlib import Path

import resume_runs
from doc_pages import ROOT, blocks

SCRIPT = """
import sys
from jaxtyping import install_import_hook
sys.path.insert(0, {tests!r})
with install_import_hook("steer_heal", "typecheck.typechecked"):
    from steer_heal.run import main
    code = main({words!r})
    from steer_heal.model.depth import pick_layers
    try:
        pick_layers("ab", 4)
    except Exception as problem:
        print("a misuse is a", type(problem).__name__)
    sys.exit(code)
"""


def test_a_whole_run_keeps_to_its_annotations_and_the_checker_is_really_on(tmp_path):
    """In a process of its own, so that the checker sees the package's first import."""
    asked = {"filter": "coherence", "reference": "both", "replay": 0.2, "replay_anchors": 0.2, "quiet": True}
    words = resume_runs.words(tmp_path, **asked, trait=every_kind(tmp_path))
    code = SCRIPT.format(tests=str(Path(__file__).parent), words=words)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode in (0, 3) and "TypeCheckError" not in done.stderr, done.stderr[-2000:]
    assert list(tmp_path.glob("out/*/report.html"))
    assert "a misuse is a TypeCheckError" in done.stdout


def every_kind(folder):
    """The trait of a few lines, with a row of each kind that it lacks."""
    asked = {"id": "'it'", "prompt": "'rain ?'", "choices": "['yes', 'no']", "trait": "'yes'", "category": "'rain'"}
    seen = {"id": "'it'", "foundation_coarse": "'Care'", "text": "'You see a dog being kicked.'"}
    tables = [("off_target", asked), ("vignettes", seen)]
    more = [
        "",
        *("\n".join([f"[[{name}]]", *(f"{key} = {value}" for key, value in row.items())]) for name, row in tables),
    ]
    path, formats = folder / "every.toml", 'held_out_choice_templates = ["{prompt} say: {choices}."]\n'
    path.write_text(formats + resume_runs.mini_trait(folder).read_text() + "\n".join(more) + "\n")
    return path


def complaints(code, folder):
    """What a static type checker says of a user's code, a line each."""
    (folder / "user.py").write_text(code, encoding="utf-8")
    source = str(Path(__file__).parents[1] / "src")
    words = ["--output-format", "concise", "--python", sys.prefix, "--extra-search-path", source, "user.py"]
    done = subprocess.run(
        [sys.executable, "-m", "ty", "check", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("user.py:")]


def test_a_static_type_checker_passes_on_the_readme_and_sees_what_a_user_does_wrong(tmp_path):
    shown = "\n".join(block.text for block in blocks(ROOT / "README.md") if block.kind == "python")
    assert "sh.heal" in shown and complaints(shown, tmp_path) == []
    found = complaints("import steer_heal as sh\nsh.heal(1, [])\nsh.load('pocket').nam\nsh.nothing\n", tmp_path)
    assert [line.split(":")[1] for line in found] == ["2", "3", "4"], found
