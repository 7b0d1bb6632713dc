"""Locks: one holder, who is told to whom waits, who can be stopped while waiting, and who notices that it lost it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ddbench.base import locks
from ddbench.base.cache import atomic_write
from ddbench.base.locks import lock
from ddbench.base.opening import in_place
from ddbench.base.progress import Interrupts, noting
from ddbench.errors import BusyError, DataError, InterruptedRun

HOLDER = """
import sys, pathlib
from ddbench.base.cache import lock
with lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``run/lock`` until its standard input closes."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run" / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_second_holder_that_does_not_wait_is_told_which_process_holds_the_lock(tmp_path, holder):
    with (
        pytest.raises(BusyError, match=rf"run is being written by process {holder.pid};"),
        lock(tmp_path / "run" / "lock", wait=False),
    ):
        raise AssertionError("the lock was given to two")


def test_lock_of_a_killed_process_is_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock(tmp_path / "run" / "lock", wait=False):
        assert (tmp_path / "run" / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_second_holder_waits_until_the_first_is_done(tmp_path):
    order, ready = [], threading.Event()

    def second():
        ready.set()
        with lock(tmp_path / "lock"):
            order.append("second")

    with lock(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        ready.wait()
        time.sleep(0.05)  # time enough for a lock that does not lock to show
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_lock_can_be_taken_again_and_after_an_error_inside(tmp_path):
    with pytest.raises(KeyError), lock(tmp_path / "lock", wait=False):
        raise KeyError
    for _ in range(2):
        with lock(tmp_path / "lock", wait=False):
            assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"


# -- waiting -------------------------------------------------------------------------------------------------


def test_who_waits_says_once_for_whom_and_is_stopped_by_a_signal(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    said: list[str] = []
    stop = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    with noting(said.append), Interrupts():
        stop.start()
        with pytest.raises(InterruptedRun, match="kept"), lock(tmp_path / "run" / "lock"):
            raise AssertionError("the lock was given to two")
    assert said == [f"waiting for process {holder.pid}, which is at work on {tmp_path / 'run' / 'lock'}"]


def test_a_holder_on_another_machine_is_named_with_it(tmp_path):
    for written, said in (("process 7 on node12", "process 7 on node12"), ("process 7", "process 7")):
        with lock(tmp_path / "lock"):
            (tmp_path / "lock").write_text(written)
            with pytest.raises(BusyError, match=f"is being written by {said};"), lock(tmp_path / "lock", wait=False):
                raise AssertionError("the lock was given to two")


def test_what_is_not_the_name_of_a_process_is_not_repeated(tmp_path):
    with lock(tmp_path / "lock"):
        (tmp_path / "lock").write_text("process 1; rm -r everything")
        with (
            pytest.raises(BusyError, match="is being written by another process;"),
            lock(tmp_path / "lock", wait=False),
        ):
            raise AssertionError("the lock was given to two")


# -- lock files that go ----------------------------------------------------------------------------------------


def is_locked(path) -> bool:
    try:
        with lock(path, wait=False):
            return False
    except BusyError:
        return True


def test_a_lock_file_that_was_removed_is_made_again_before_anything_is_stored(tmp_path):
    with lock(tmp_path / "lock"):
        (tmp_path / "lock").unlink()
        atomic_write(tmp_path / "deep" / "file", b"new")
        assert is_locked(tmp_path / "lock")
    assert (tmp_path / "deep" / "file").read_bytes() == b"new"
    assert not is_locked(tmp_path / "lock")


def test_the_holder_of_a_removed_lock_that_another_took_stores_nothing_more(tmp_path):
    atomic_write(tmp_path / "file", b"old")
    with lock(tmp_path / "lock"):
        (tmp_path / "lock").unlink()
        with lock(tmp_path / "lock", wait=False), pytest.raises(BusyError, match=rf"process {os.getpid()} took it"):
            atomic_write(tmp_path / "file", b"new")
        with pytest.raises(BusyError, match="stores no more"):  # the other is gone, and what it wrote is not
            atomic_write(tmp_path / "file", b"new")
        with pytest.raises(BusyError), in_place(tmp_path / "file", "ab"):
            raise AssertionError("it was opened for writing")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_folder_that_was_removed_with_its_lock_is_said_and_not_made_again(tmp_path):
    folder = tmp_path / "run"
    with lock(folder / "lock"):
        (folder / "lock").unlink()
        folder.rmdir()
        with pytest.raises(DataError, match="run was removed while this process was writing there; run the same"):
            atomic_write(folder / "inside" / "file", b"new")
    assert not folder.exists()


def test_a_lock_inside_a_folder_that_was_removed_with_its_own_does_not_make_it_again(tmp_path):
    folder = tmp_path / "run"
    with lock(folder / "lock"):
        (folder / "lock").unlink()
        folder.rmdir()
        with pytest.raises(DataError, match="run was removed while"), lock(folder / "evaluations" / "lock"):
            raise AssertionError("it was made again")
    assert not folder.exists()


def test_a_lock_says_nothing_about_other_folders_and_nothing_once_it_is_released(tmp_path):
    with lock(tmp_path / "run" / "lock"):
        (tmp_path / "run" / "lock").unlink()
        atomic_write(tmp_path / "other" / "file", b"new")
        assert not (tmp_path / "run" / "lock").exists()
    atomic_write(tmp_path / "run" / "file", b"new")
    assert not (tmp_path / "run" / "lock").exists()


def test_a_file_that_is_replaced_between_opening_and_locking_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    locked, replaced = locks._locked, []

    def late(stream):
        if not replaced:
            replaced.append(1)
            (tmp_path / "lock").unlink()
            (tmp_path / "lock").write_text("")
        return locked(stream)

    monkeypatch.setattr(locks, "_locked", late)
    with lock(tmp_path / "lock"):
        assert is_locked(tmp_path / "lock")


# -- links -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linked", ["run", "run/lock"])
def test_a_lock_inside_a_folder_is_not_reached_through_a_link(tmp_path, linked):
    precious, out = tmp_path / "precious", tmp_path / "out"
    precious.mkdir()
    (precious / "lock").write_text("many lines of it")
    (out / linked).parent.mkdir(parents=True, exist_ok=True)
    (out / linked).symlink_to(precious / linked.removeprefix("run").strip("/"))
    with pytest.raises(DataError, match=f"{linked} is a link"), lock(out / "run" / "lock", within=out):
        raise AssertionError("it was followed")
    assert (precious / "lock").read_text() == "many lines of it"


def test_nothing_is_stored_through_a_linked_folder_while_a_lock_covers_it(tmp_path):
    precious, run = tmp_path / "precious", tmp_path / "out" / "run"
    precious.mkdir()
    run.mkdir(parents=True)
    (run / "stage-0").symlink_to(precious)
    with lock(run / "lock", within=tmp_path / "out"), pytest.raises(DataError, match="stage-0 is a link"):
        atomic_write(run / "stage-0" / "result.json", b"{}")
    assert list(precious.iterdir()) == []


def test_a_folder_that_is_named_by_way_of_its_parent_is_no_link(tmp_path):
    (tmp_path / "a").mkdir()
    with lock(tmp_path / "a" / ".." / "out" / "run" / "lock", within=tmp_path / "a" / ".." / "out"):
        atomic_write(tmp_path / "a" / ".." / "out" / "run" / "file", b"new")
    assert (tmp_path / "out" / "run" / "file").read_bytes() == b"new"
