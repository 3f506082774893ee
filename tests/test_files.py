"""A folder that is filled, then named: at no moment is there a half one under its name, and an old one is not lost."""

import errno
import os

import pytest

from steer_heal.errors import NotWrittenError
from steer_heal.ledger.files import whole_folder


def fill(final, word):
    with whole_folder(final) as folder:
        (folder / "sub").mkdir()
        for name in ("one", "sub/two"):
            (folder / name).write_text(word)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def both(word):
    return {"one": word, "sub/two": word}


def test_a_folder_gets_its_name_when_it_is_whole_and_replaces_one_that_has_it(tmp_path):
    final = tmp_path / "00.interrupted"
    with pytest.raises(KeyError), whole_folder(final) as folder:
        (folder / "one").write_text("half")
        raise KeyError
    assert not final.exists()
    for word in ("old", "new"):
        fill(final, word)
        assert content(final) == both(word)
    assert [path.name for path in tmp_path.iterdir()] == ["00.interrupted"]


def test_a_disk_that_fails_at_any_moment_leaves_the_old_folder_or_the_new_one(tmp_path, monkeypatch):
    final, failed = tmp_path / "00.diverged", []
    fill(final, "old")
    for moment in range(1, 100):
        left = [moment]

        def failing(name, real, left=left):
            def operate(*args):
                left[0] -= 1
                if left[0] == 0:
                    failed.append(name)
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*args)

            return operate

        with monkeypatch.context() as patch:
            for name in ("fsync", "replace"):
                patch.setattr(os, name, failing(name, getattr(os, name)))
            try:
                fill(final, "new")
                break
            except NotWrittenError as problem:
                assert "No space left" in str(problem) and str(final) in str(problem)
        kept = final if final.exists() else tmp_path / "00.diverged.before.partial"
        assert content(kept) in (both("old"), both("new"))
        if not final.exists():
            fill(final, "old")
    assert content(final) == both("new") and {"fsync", "replace"} == set(failed) and len(failed) >= 5
