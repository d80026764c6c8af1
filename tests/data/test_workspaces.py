"""Temporaries: those of the dead go, those of the living stay, and nothing that was replaced is lost."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from cortex_fast.data.results import replace_whole
from cortex_fast.data.workspaces import put_in_place, sweep, workspace
from tests.killing import die, hidden, killed


def write(path: Path) -> None:
    replace_whole(path, lambda file: file.write_text("whole"))


def test_the_next_write_removes_leftovers_of_killed_writers(tmp_path):
    def dead(file):
        file.write_text("half")
        (file.parent / ".tmpabc").write_text("of safetensors")
        (file.parent / "folder").mkdir()
        die()

    for name in ("one", "one", "another"):
        killed(lambda name=name: replace_whole(tmp_path / name, dead))
        assert len(hidden(tmp_path)) == 1  # of the last; each swept the one before
    (tmp_path / ".another.7f.partial").mkdir()  # a user's own, of nearly such a name
    write(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".another.7f.partial", "one"]


@pytest.mark.parametrize("moment", ["mkdir", "open", "flock", "glob", "unlink", "close"])
def test_killed_at_any_step_of_a_workspace(tmp_path, moment):
    """While it is made and while it is removed: the next write clears it."""

    def dead():
        place = {"mkdir": Path, "open": os, "flock": fcntl, "glob": Path, "unlink": Path, "close": os}[moment]
        act = getattr(place, moment)

        def act_and_die(*args, **kwargs):
            result = act(*args, **kwargs)
            if moment != "mkdir" or ".partial" in str(args[0]):
                die()
            return result

        setattr(place, moment, act_and_die)
        write(tmp_path / "file")

    killed(dead)
    write(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_workspaces_of_living_processes_stay(tmp_path):
    with workspace(tmp_path / "one") as space:
        (space / "half").write_text("half")
        write(tmp_path / "two")
        child = os.fork()
        if child == 0:
            sweep(tmp_path)
            os._exit(0)
        os.waitpid(child, 0)
        assert (space / "half").read_text() == "half"
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_a_sweep_between_creating_and_locking_a_workspace_does_no_harm(tmp_path, monkeypatch):
    mkdir = Path.mkdir
    swept = []

    def swept_at_once(path, *args, **kwargs):
        mkdir(path, *args, **kwargs)
        if path.suffix == ".partial" and not swept:
            swept.append(path)
            sweep(tmp_path)
            assert not path.exists()

    monkeypatch.setattr(Path, "mkdir", swept_at_once)
    write(tmp_path / "file")
    assert swept and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_replaced_folder_comes_back_where_its_replacement_was_killed(tmp_path):
    target = tmp_path / "report"
    target.mkdir()
    (target / "index.html").write_text("old")

    def dead():
        rename = Path.rename

        def second_dies(path, to):
            if path.name == "new":
                die()
            return rename(path, to)

        Path.rename = second_dies
        with workspace(target) as space:
            (space / "new").mkdir()
            put_in_place(space / "new", target)

    killed(dead)
    assert not target.exists()
    write(tmp_path / "else")
    assert (target / "index.html").read_text() == "old" and not hidden(tmp_path)


def test_without_locks_nothing_is_removed_and_everything_is_written(tmp_path, monkeypatch):
    def none(descriptor, how):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    killed(lambda: replace_whole(tmp_path / "file", die))
    monkeypatch.setattr(fcntl, "flock", none)
    write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "whole" and len(hidden(tmp_path)) == 1


def test_a_full_disk_names_the_file_and_not_its_temporary(tmp_path):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    with pytest.raises(OSError, match=r"No space left on device: '[^']*/store'"):
        replace_whole(tmp_path / "store", full)
    assert not list(tmp_path.iterdir())
