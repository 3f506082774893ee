"""A disk that fails: at every operation a run ends in one line, keeps what it has, and goes on to the same bits."""

import errno
import shutil

import pytest
from failing_disk import Disk
from resume_runs import content, folder_of, words

from steer_heal.commands.main import main
from steer_heal.commands.script import guarded

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)


def command(place):
    """The small run as a command line."""
    return ["run", *words(place, n_rounds=1)]


@pytest.fixture
def whole(tmp_path, undrawn):
    """What the run leaves when nothing fails."""
    (tmp_path / "whole").mkdir()
    assert main(command(tmp_path / "whole")) in (0, 3)
    return content(folder_of(tmp_path / "whole"))


def go_on_until_done(place, disk, capsys):
    """Run, then go on, as often as the disk fails; each time one line, exit code 2, nothing lost."""
    first, committed = command(place), {}
    while True:
        before, there = len(disk.failed), [*place.glob("out/*/config.json")]
        with disk:
            code = main(["run", "--resume", "auto", "--out", str(place / "out")] if there else first)
        told = capsys.readouterr().err
        if code in (0, 3) or (there and not [*place.glob("out/*/units")]):
            return
        failed = [*disk.failed][-1]
        assert code == 2 and len(disk.failed) > before, (failed, told)
        assert told.count("\n") == 1 and told.startswith("steer_heal: "), (failed, told)
        for path in place.glob("out/*"):  # it was no run yet
            if path.is_dir() and not (path / "config.json").is_file():
                shutil.rmtree(path)
        found = {path: path.read_bytes() for path in place.rglob("*.unit")}
        assert committed.items() <= found.items(), failed
        committed = found


def check(tmp_path, disk, whole, capsys):
    place = tmp_path / "failing"
    place.mkdir()
    go_on_until_done(place, disk, capsys)
    assert content(folder_of(place)) == whole
    assert len((place / "out" / "results.tsv").read_text().splitlines()) == 2
    return {kind for kind, *_ in disk.failed}


def test_a_run_whose_disk_fails_here_and_there_ends_with_the_same_bits(tmp_path, whole, monkeypatch, capsys):
    disk = Disk(monkeypatch, tmp_path / "failing", ERRORS, share=39)
    assert check(tmp_path, disk, whole, capsys) >= {"open", "write", "fsync", "os.rename"} and len(disk.failed) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_run_whose_disk_fails_at_every_operation_ends_with_the_same_bits(tmp_path, whole, monkeypatch, capsys, error):
    disk = Disk(monkeypatch, tmp_path / "failing", (error,))
    kinds = {"open", "os.mkdir", "os.rename", "os.remove", "os.scandir", "write", "fsync", "flock", "save_file"}
    assert check(tmp_path, disk, whole, capsys) >= kinds and len(disk.failed) > 200


def test_an_error_of_a_file_that_no_disk_gives_is_a_bug_and_keeps_its_traceback(tmp_path, capsys):
    with pytest.raises(FileNotFoundError):
        guarded(lambda words: (tmp_path / "none").read_text(), [])
    assert guarded(lambda words: (tmp_path / ("x" * 300)).read_text(), []) == 2
    assert capsys.readouterr().err.count("\n") == 1
