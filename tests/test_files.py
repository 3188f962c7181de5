"""Files and folders that are whole or absent, and locks on folders, where several processes want the same."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command import snapshot

from fflm import files
from fflm.errors import FflmError
from fflm.files import LOCK, locked_folder, reading_folder, replacing, replacing_folder


def is_locked(folder):
    """Return whether another process finds the folder locked."""
    program = f"from pathlib import Path\nfrom fflm.files import *\nwith locked_folder(Path({str(folder)!r})): pass"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0 or "FflmError: another process (" in result.stderr
    return result.returncode != 0


# Locks


def test_a_lock_is_for_one_process_and_one_thread(tmp_path):
    with locked_folder(tmp_path):
        assert is_locked(tmp_path)
        refused = []

        def lock():
            try:
                with locked_folder(tmp_path):
                    pass
            except FflmError as error:
                refused.append(str(error))

        thread = threading.Thread(target=lock)
        thread.start()
        thread.join()
        assert refused == [f"this process is already training in {tmp_path}: wait for it to end, or choose another folder"]
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_locks_nothing_any_more(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom fflm.files import *\n"
        f"with locked_folder(Path({str(tmp_path)!r})): print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        reason = rf"another process \({process.pid} on .*\) is at work in"
        with pytest.raises(FflmError, match=reason), locked_folder(tmp_path, "at work in"):
            pass
        assert (tmp_path / LOCK).exists()
        process.kill()
    with locked_folder(tmp_path):
        assert is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []


FORKED = """
import os, sys, time
from pathlib import Path
from fflm.errors import FflmError
from fflm.files import locked_folder

def free():
    try:
        with locked_folder(folder):
            return True
    except FflmError:
        return False

folder = Path(sys.argv[1])
hold, release = os.pipe()
with locked_folder(folder):
    leaver = os.fork()
    if not leaver:
        assert not free()
        sys.exit(5)  # as an exception leaves the block
    assert os.waitstatus_to_exitcode(os.waitpid(leaver, 0)[1]) == 5
    assert not free()
    if not os.fork():
        os.close(release)
        os.read(hold, 1)  # until the parent ends
        os._exit(0)
assert free()  # though the child has the file open
"""


def test_a_forked_process_has_no_part_in_a_lock(tmp_path):
    subprocess.run([sys.executable, "-c", FORKED, tmp_path], check=True)


def test_a_lock_stays_with_its_folder(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    with locked_folder(old):
        old.rename(new)
        old.mkdir()
        assert is_locked(new)
        assert not is_locked(old)
    assert list(new.iterdir()) == []


@pytest.mark.parametrize("change", ["released", "replaced"])
def test_what_is_locked_is_what_is_there(tmp_path, monkeypatch, change):
    """Another process releases the lock, or replaces the folder, just before we get the lock on the file that we have opened."""
    folder = tmp_path / "folder"
    folder.mkdir()
    real = fcntl.flock

    def flock(*arguments):
        monkeypatch.setattr(fcntl, "flock", real)
        if change == "released":
            (folder / LOCK).unlink()
        else:
            folder.rename(tmp_path / "old")
            folder.mkdir()
        real(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked_folder(folder):
        assert is_locked(folder)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_where_there_are_no_locks_work_goes_on(tmp_path, monkeypatch, number):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked_folder(tmp_path), locked_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_from_a_stranger_does_not_have_us_write_elsewhere(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / LOCK).symlink_to("../precious")
    with pytest.raises(FflmError, match="cannot write"), locked_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "precious").read_text() == "x"


def test_a_folder_that_is_none_cannot_be_locked(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "missing"):
        with pytest.raises(FflmError, match=f"cannot write .*{name}"), locked_folder(tmp_path / name):
            pass


# New folders


def must_be_new(path):
    """Return a check that refuses a folder that exists."""

    def check():
        if path.exists():
            raise FflmError(f"{path.name} exists")

    return check


def test_a_folder_that_has_come_into_being_is_kept(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(FflmError, match=r"discarded, because .* has changed in the meantime: folder exists"):  # noqa: PT012, SIM117
        with replacing_folder(path, must_be_new(path)) as folder:
            (folder / "ours").touch()
            path.mkdir()
            (path / "theirs").write_text("x")
    assert snapshot(tmp_path) == {"folder": None, "folder/theirs": b"x"}


def test_a_folder_that_comes_into_being_at_the_last_moment_is_kept(tmp_path):
    """It is not there when we look for it, and there when ours is to be given its name."""
    path = tmp_path / "folder"
    calls = []

    def check():
        calls.append(path.exists())
        must_be_new(path)()
        if len(calls) == 2:
            path.mkdir()
            (path / "theirs").write_text("x")

    with pytest.raises(FflmError, match="folder exists"), replacing_folder(path, check) as folder:
        (folder / "ours").touch()
    assert calls == [False, False, True]
    assert snapshot(tmp_path) == {"folder": None, "folder/theirs": b"x"}


@pytest.fixture(params=["exchanged", "renamed twice"])
def way(request, monkeypatch):
    """Replace a folder in both ways."""
    if request.param == "renamed twice":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    elif sys.platform != "linux":
        pytest.skip("only Linux exchanges names")
    return request.param


def make(path, name):
    path.mkdir()
    (path / name).write_text(name)


@pytest.mark.usefixtures("way")
def test_a_folder_is_replaced(tmp_path):
    path = tmp_path / "folder"
    make(path, "old")
    with replacing_folder(path) as folder:
        (folder / "new").write_text("new")
    assert snapshot(tmp_path) == {"folder": None, "folder/new": b"new"}


@pytest.mark.usefixtures("way")
def test_a_folder_that_is_locked_is_not_replaced(tmp_path):
    path = tmp_path / "folder"
    make(path, "old")
    with replacing_folder(tmp_path / "other") as folder:
        make(folder / "new", "new")
    with locked_folder(path):
        before = snapshot(tmp_path)
        with pytest.raises(FflmError, match="already training in"), replacing_folder(path):
            pass
        assert snapshot(tmp_path) == before


def test_exchanging_needs_no_second_step(tmp_path):
    for name in ("one", "two"):
        make(tmp_path / name, name)
    if not files._exchange(tmp_path / "one", tmp_path / "two"):
        pytest.skip("not possible on this file system")
    assert snapshot(tmp_path) == {"one": None, "one/two": b"two", "two": None, "two/one": b"one"}
    assert not files._exchange(tmp_path / "one", tmp_path / "missing")


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("moment", [1, 2])
def test_nothing_is_lost_between_two_renames(tmp_path, monkeypatch, failure, moment):
    path = tmp_path / "folder"
    make(path, "old")
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    real, calls = Path.replace, []

    def replace(self, target):
        calls.append(target)
        if len(calls) == moment:
            raise failure
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises((FflmError, KeyboardInterrupt)), replacing_folder(path):
        pass
    assert snapshot(tmp_path) == {"folder": None, "folder/old": b"old"}


# New files


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_has_come_into_being_is_kept(tmp_path, monkeypatch, links):
    if not links:

        def link(*arguments):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    path = tmp_path / "file"
    with replacing(path, overwrite=False) as temporary:
        temporary.write_text("first")
    with pytest.raises(FflmError, match="file exists: choose another file"), replacing(path, overwrite=False):
        raise AssertionError("the work must not be done in vain")
    path.unlink()
    with pytest.raises(FflmError, match="file exists: choose another file"):  # noqa: PT012, SIM117
        with replacing(path, overwrite=False) as temporary:
            temporary.write_text("ours")
            path.write_text("theirs")
    assert snapshot(tmp_path) == {"file": b"theirs"}
    with replacing(path) as temporary:
        temporary.write_text("ours")
    assert snapshot(tmp_path) == {"file": b"ours"}


# Reading


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("fails", [True, False])
def test_a_folder_that_is_replaced_while_it_is_read(tmp_path, fails):
    path = tmp_path / "folder"
    make(path, "old")
    with pytest.raises(FflmError, match="folder was replaced while it was read: try again"):  # noqa: PT012, SIM117
        with reading_folder(path):
            with replacing_folder(path):
                pass
            if fails:
                raise FflmError("it is damaged")
    with pytest.raises(FflmError, match="it is damaged"), reading_folder(path):
        raise FflmError("it is damaged")
    with pytest.raises(FflmError, match="it is missing"), reading_folder(tmp_path / "missing"):
        raise FflmError("it is missing")
