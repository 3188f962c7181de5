"""Files and folders that are whole or absent, and locks on folders, where several processes want the same."""

import errno
import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command import snapshot

from fflm import files
from fflm.errors import FflmError
from fflm.files import (
    LOCK,
    NewFolder,
    locked_folder,
    reading_folder,
    remove_leftovers,
    replacing,
    replacing_folder,
    restore,
    write_text,
)


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


def test_a_folder_that_is_to_be_replaced_is_locked_and_stays_until_then(tmp_path):
    path = tmp_path / "folder"
    make(path, "old")
    new = NewFolder(path)
    (new.folder / "new").write_text("new")
    assert new.replaces
    assert is_locked(path)
    assert (path / "old").exists()
    new.publish()
    assert not is_locked(path)
    assert snapshot(tmp_path) == {"folder": None, "folder/new": b"new"}
    new.discard()
    assert (path / "new").exists()


def test_a_new_folder_that_nobody_has_any_more_is_discarded(tmp_path):
    path = tmp_path / "folder"
    make(path, "old")
    before = snapshot(tmp_path)
    new = NewFolder(path)
    assert snapshot(tmp_path) != before
    del new
    gc.collect()
    assert snapshot(tmp_path) == before


LEFT = """
import os, sys
from pathlib import Path
from fflm.files import NewFolder
new = NewFolder(Path("folder"))
if not os.fork():
    sys.exit()  # which is none of the parent's end
os.wait()
assert new.folder.exists()
"""


def test_a_new_folder_is_discarded_at_exit_but_not_by_a_forked_process(tmp_path):
    make(tmp_path / "folder", "old")
    before = snapshot(tmp_path)
    subprocess.run([sys.executable, "-c", LEFT], cwd=tmp_path, check=True)
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what a descriptor is of")
def test_what_is_published_is_on_disk(tmp_path, monkeypatch):
    """Files and folders are, before they take their names, and so are the names."""
    real, done = os.fsync, []

    def fsync(descriptor):
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "folder"
    with replacing_folder(path) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text("x")
        wanted = {folder / "below" / "file", folder / "below", folder}
    assert set(done[:-1]) == wanted
    assert done[-1] == tmp_path
    done.clear()
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert done == [temporary, tmp_path]


def test_a_link_to_a_folder_stays_one(tmp_path):
    make(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    with replacing_folder(tmp_path / "link") as folder:
        (folder / "new").write_text("new")
    assert (tmp_path / "link").readlink() == Path("real")
    assert snapshot(tmp_path) == {"real": None, "real/new": b"new", "link": None}


# What killed processes leave


KILLED = """
import signal, sys
from pathlib import Path
from fflm import files
from fflm.files import NewFolder, replacing

def die(*arguments):
    signal.raise_signal(signal.SIGKILL)

with replacing(Path("file")) as temporary:
    temporary.write_text("half")
    new = NewFolder(Path("folder"))
    (new.folder / "new").write_text("new")
    match sys.argv[1]:
        case "between the renames":
            files._exchange = lambda one, other: False
            real = Path.replace
            Path.replace = lambda self, other: real(self, other) if other.name == "old" else die()
        case "after them":
            files._exchange = lambda one, other: False
            files._remove = die
        case "after the exchange":
            files._remove = die
        case "waiting":
            print(flush=True)
            signal.pause()
    if sys.argv[1] != "before":
        new.publish()
    die()
"""


def kill(folder, moment):
    result = subprocess.run([sys.executable, "-c", KILLED, moment], cwd=folder, check=False)
    assert result.returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["before", "between the renames", "after them", "after the exchange"])
def test_what_a_killed_process_has_left_is_removed_by_the_next_and_nothing_is_lost(tmp_path, moment):
    make(tmp_path / "folder", "old")
    kill(tmp_path, moment)
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    restore(tmp_path / "folder")  # as who reads it does
    after = "new" if moment.startswith("after") else "old"
    assert [path.name for path in (tmp_path / "folder").iterdir() if path.name != LOCK] == [after]
    with replacing(tmp_path / "other"), replacing_folder(tmp_path / "another"):
        pass
    assert len(list(tmp_path.glob(".*.tmp"))) == 2  # only what has the same name is removed
    for work, name in ((replacing, "file"), (replacing_folder, "folder")):
        with pytest.raises(FflmError, match="the work fails"), work(tmp_path / name):
            raise FflmError("the work fails")
    assert sorted(snapshot(tmp_path)) == sorted(["another", "other", "folder", f"folder/{after}"])


def test_a_removed_folder_does_not_come_back(tmp_path):
    make(tmp_path / "folder", "old")
    kill(tmp_path, "after them")
    shutil.rmtree(tmp_path / "folder")
    restore(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_what_a_living_process_is_making_is_left_alone(tmp_path):
    (tmp_path / ".file.tmp").write_text("a user's own")
    with subprocess.Popen([sys.executable, "-c", KILLED, "waiting"], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        before = snapshot(tmp_path)
        for name in ("file", "folder"):
            restore(tmp_path / name)
        remove_leftovers(tmp_path)
        after = snapshot(tmp_path)
        process.kill()
    assert after == before
    remove_leftovers(tmp_path)
    assert snapshot(tmp_path) == {".file.tmp": b"a user's own"}


def test_where_there_are_no_locks_nothing_is_removed(tmp_path, monkeypatch):
    kill(tmp_path, "before")
    before = snapshot(tmp_path)
    monkeypatch.setattr(files, "fcntl", None)
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert snapshot(tmp_path) == {**before, "file": b"whole"}


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


def test_a_link_to_a_file_stays_one(tmp_path):
    (tmp_path / "link").symlink_to("real")
    for content in ("first", "second"):
        with replacing(tmp_path / "link") as temporary:
            temporary.write_text(content)
        assert (tmp_path / "link").readlink() == Path("real")
        assert (tmp_path / "real").read_text() == content
    with pytest.raises(FflmError, match="link exists"), replacing(tmp_path / "link", overwrite=False):
        pass


def test_a_link_in_a_model_that_may_be_a_stranger_s_leads_nowhere(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / "config.json").symlink_to("precious")
    write_text(tmp_path / "config.json", "ours")
    assert not (tmp_path / "config.json").is_symlink()
    assert snapshot(tmp_path) == {"precious": b"x", "config.json": b"ours"}


def test_a_pipe_is_written_to(tmp_path):
    path, got = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_text()))
    reader.start()
    with replacing(path, overwrite=False) as temporary:
        temporary.write_text("all of it")
    reader.join()
    assert got == ["all of it"]
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_and_a_failure_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    with replacing(Path("/dev/null"), overwrite=False) as temporary:
        temporary.write_text("x")
    with pytest.raises(FflmError, match="cannot write /dev/full: No space left"), replacing(Path("/dev/full")) as temporary:
        temporary.write_text("x")
    assert Path("/dev/null").is_char_device()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_what_was_written_to_an_open_file_before_is_kept(tmp_path, name):
    (tmp_path / "link").symlink_to("/dev/stdout")
    program = (
        f"from pathlib import Path\nfrom fflm.files import replacing\n"
        f"with replacing(Path({name!r}), overwrite=False) as temporary: temporary.write_text('more')"
    )
    (tmp_path / "log").write_text("started, ")
    with (tmp_path / "log").open("a") as log:
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "started, more"
    assert (tmp_path / "link").is_symlink()


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    with pytest.raises(FflmError, match="is a folder: name a file"), replacing(tmp_path):
        pass


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
