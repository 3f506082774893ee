"""The wheel: what `uv build` makes holds the whole package, and runs the main job without the repository."""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UV = os.environ.get("UV") or shutil.which("uv")
ALONE = """
import runpy, sys
from pathlib import Path

folder, module = Path(sys.argv[1]), sys.argv[2]
others = [p for p in sys.path if (Path(p) / "steer_heal").exists() and Path(p).resolve() != folder.resolve()]
sys.path[:] = [p for p in sys.path if p not in others]
sys.argv[:] = sys.argv[2:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    own = [m.__file__ for name, m in sys.modules.items() if name.partition(".")[0] == "steer_heal" and m.__file__]
    print("modules", len(own), "elsewhere", sum(not Path(file).is_relative_to(folder) for file in own))
"""
"""Runs a module of the package in a folder, any other copy (the editable installation) taken off the path."""

pytestmark = pytest.mark.skipif(UV is None, reason="uv is not installed: pip install uv")


def uv(*words, cwd, **more):
    """Run uv, from its cache alone where that suffices."""
    for offline in (("--offline",), ()):
        done = subprocess.run([UV, *words, *offline], cwd=cwd, capture_output=True, text=True, timeout=900, **more)
        if done.returncode == 0:
            return done
    raise AssertionError(done.stderr)


def run(words, cwd, **environment):
    """Run a command in a folder, with nothing of this process's Python settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "COV_"))}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", **environment}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's file."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--wheel", "--out-dir", str(folder), cwd=ROOT)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    """The wheel's content in a folder."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def digests(folder, root):
    """Content hash by path of every file under `folder`, compiled ones left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_wheel_holds_every_file_of_the_package_and_no_other(unpacked):
    there, here = digests(unpacked / "steer_heal", unpacked), digests(SOURCE / "steer_heal", SOURCE)
    assert there == here
    needed = (
        "weights/model.safetensors",
        "built_in/pocket-care.toml",
        "templates/report.html",
        "words.txt.gz",
        "grammar.toml",
    )
    assert all(any(name.endswith(one) for name in there) for one in needed)
    assert {path.name for path in unpacked.iterdir()} == {"steer_heal", f"steer_heal-{PROJECT['version']}.dist-info"}


def test_the_wheels_metadata_are_those_of_the_project(unpacked):
    (found,) = importlib.metadata.distributions(path=[str(unpacked)])
    assert (found.name, found.version) == (PROJECT["name"], PROJECT["version"])
    extras = PROJECT["optional-dependencies"].items()
    wanted = [*PROJECT["dependencies"], *(f'{one}; extra == "{name}"' for name, some in extras for one in some)]
    assert {str(Requirement(one)) for one in found.requires} == {str(Requirement(one)) for one in wanted}
    assert any(str(path).endswith("licenses/LICENSE") for path in found.files)
    assert found.metadata["Description"] or found.metadata.get_payload().startswith("# steer_heal")


def test_its_entry_points_exist_in_it(unpacked):
    parser = ConfigParser()
    parser.read(next(unpacked.glob("*.dist-info")) / "entry_points.txt", encoding="utf-8")
    assert dict(parser["console_scripts"]) == PROJECT["scripts"]
    for target in parser["console_scripts"].values():
        module, _, function = target.partition(":")
        code = f"import {module} as m; print(callable(m.{function}), m.__file__)"
        there, file = run([sys.executable, "-c", code], unpacked).split()
        assert there == "True" and Path(file).is_relative_to(unpacked)


def test_the_main_job_runs_from_the_unpacked_wheel_alone(unpacked, tmp_path):
    words = ["--reg", "kl_rev", "--fast-dev-run", "--n-rounds", "1", "--quiet", "--out", "runs"]
    words += ["--max-new-tokens", "8", "--n-min", "8", "--walk-batch", "8", "--epochs", "1"]
    command = [sys.executable, "-c", ALONE, unpacked, "steer_heal.run", *words]
    *_, told = run(command, tmp_path, PYTHONPATH=str(unpacked), HF_HUB_OFFLINE="1").strip().splitlines()
    _, modules, _, elsewhere = told.split()
    assert int(modules) > 50 and int(elsewhere) == 0
    (made,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert {"report.html", "summary.md", "trajectory.png", "rounds"} <= {path.name for path in made.iterdir()}


@pytest.mark.slow
def test_it_installs_into_an_empty_environment_and_runs_from_another_folder(wheel, tmp_path):
    place, folder = tmp_path / "environment", tmp_path / "elsewhere"
    folder.mkdir()
    uv("venv", "--python", sys.executable, str(place), cwd=folder)
    python, command = place / "bin" / "python", place / "bin" / "steer-heal"
    newest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]["exclude-newer"]
    uv("pip", "install", "--python", str(python), "--exclude-newer", newest, str(wheel), cwd=folder)
    file = run([python, "-c", "import steer_heal; print(steer_heal.__file__)"], folder).strip()
    assert Path(file).is_relative_to(place.resolve())
    run([python, "-m", "steer_heal.run", "--reg", "kl_rev", "--fast-dev-run"], folder)
    assert list(folder.glob("out/*/report.html"))
    assert "pocket-care" in run([command, "traits"], folder)
    assert run([command, "--version"], folder).strip() == f"steer-heal {PROJECT['version']}"
