"""Locks: one run at a time, and none held by the dead."""

import errno
import fcntl
import os
import threading

import pytest

from cortex_fast.data import locks
from tests.killing import die, hidden, killed


def test_the_refusal_of_a_second_run_names_the_file_and_the_first_run(tmp_path):
    path = tmp_path / "deep" / "store"
    messages = []

    def second():
        try:
            with locks.held(path):
                messages.append("no error")
        except BlockingIOError as error:
            messages.append(str(error))

    with locks.held(path):
        thread = threading.Thread(target=second)  # a thread is another as well as a process
        thread.start()
        thread.join()
        second()
    assert len(messages) == 2
    for text in messages:
        assert text.startswith(f"{path}: another run is writing it (process {os.getpid()} on ")
    second()
    assert messages[-1] == "no error" and not list(path.parent.iterdir())


def test_killed_processes_hold_no_lock_and_living_ones_do(tmp_path):
    path = tmp_path / "store"

    def dead():
        with locks.held(path):
            die()

    killed(dead)
    assert len(hidden(tmp_path)) == 1
    with locks.held(path):
        child = os.fork()
        if child == 0:
            try:
                with locks.held(path):
                    os._exit(1)
            except BlockingIOError:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert not hidden(tmp_path)


def test_a_lock_on_a_removed_file_does_not_count(tmp_path, monkeypatch):
    """Its holder removes it between the opening and the locking: the file that replaces it is locked."""
    path, opened = tmp_path / "lock", []
    flock = fcntl.flock

    def late(descriptor, how):
        opened.append(descriptor)
        if len(opened) == 1:
            path.unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    descriptor = locks.take(path, make=True)
    assert len(opened) == 2 and os.path.samestat(os.fstat(descriptor), path.stat())
    os.close(descriptor)
    with pytest.raises(FileNotFoundError):
        locks.take(tmp_path / "nowhere")


def test_a_file_system_without_locks_is_written_to_with_a_warning(tmp_path, monkeypatch):
    def none(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="no locks; let no second run write it"), locks.held(tmp_path / "store"):
        (tmp_path / "store").write_text("written")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
