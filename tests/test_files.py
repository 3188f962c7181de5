"""Files and folders are written completely or not at all, and locks on folders exclude other processes and threads."""

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
    split_compression,
    write_text,
)


def is_locked(folder):
    """Return whether another process finds the folder locked."""
    program = f"from pathlib import Path\nfrom fflm.files import *\nwith locked_folder(Path({str(folder)!r})): pass"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0 or "FflmError: another process (" in result.stderr
    return result.returncode != 0


# Locks.


def test_lock_excludes_other_processes_and_threads(tmp_path):
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


def test_lock_of_killed_process_is_released(tmp_path):
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
        sys.exit(5)  # this exception leaves the block
    assert os.waitstatus_to_exitcode(os.waitpid(leaver, 0)[1]) == 5
    assert not free()
    if not os.fork():
        os.close(release)
        os.read(hold, 1)  # until the parent ends
        os._exit(0)
assert free()  # although the child has the file open
"""


def test_forked_process_does_not_hold_lock(tmp_path):
    subprocess.run([sys.executable, "-c", FORKED, tmp_path], check=True)


def test_lock_stays_with_renamed_folder(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    with locked_folder(old):
        old.rename(new)
        old.mkdir()
        assert is_locked(new)
        assert not is_locked(old)
    assert list(new.iterdir()) == []


@pytest.mark.parametrize("change", ["released", "replaced"])
def test_lock_is_taken_on_current_folder(tmp_path, monkeypatch, change):
    """Another process releases the lock or replaces the folder after we have opened the file, and before we lock it."""
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
def test_lock_is_skipped_on_file_systems_without_locks(tmp_path, monkeypatch, number):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked_folder(tmp_path), locked_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_lock_file_that_is_a_symbolic_link_is_refused(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / LOCK).symlink_to("../precious")
    with pytest.raises(FflmError, match="cannot write"), locked_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "precious").read_text() == "x"


def test_lock_of_missing_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "missing"):
        with pytest.raises(FflmError, match=f"cannot write .*{name}"), locked_folder(tmp_path / name):
            pass


# New folders.


def must_be_new(path):
    """Return a check that refuses a folder that exists."""

    def check():
        if path.exists():
            raise FflmError(f"{path.name} exists")

    return check


def test_folder_created_meanwhile_is_kept(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(FflmError, match=r"discarded, because .* has changed in the meantime: folder exists"):  # noqa: PT012, SIM117
        with replacing_folder(path, must_be_new(path)) as folder:
            (folder / "ours").touch()
            path.mkdir()
            (path / "theirs").write_text("x")
    assert snapshot(tmp_path) == {"folder": None, "folder/theirs": b"x"}


def test_folder_created_just_before_rename_is_kept(tmp_path):
    """The folder does not exist when it is checked, and exists when the new one is renamed."""
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
def replacement_method(request, monkeypatch):
    """Replace folders by exchanging names, or by two renames."""
    if request.param == "renamed twice":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    elif sys.platform != "linux":
        pytest.skip("only Linux exchanges names")
    return request.param


def make_folder(path, name):
    path.mkdir()
    (path / name).write_text(name)


@pytest.mark.usefixtures("replacement_method")
def test_replacing_folder_replaces_old_folder(tmp_path):
    path = tmp_path / "folder"
    make_folder(path, "old")
    with replacing_folder(path) as folder:
        (folder / "new").write_text("new")
    assert snapshot(tmp_path) == {"folder": None, "folder/new": b"new"}


@pytest.mark.usefixtures("replacement_method")
def test_locked_folder_is_not_replaced(tmp_path):
    path = tmp_path / "folder"
    make_folder(path, "old")
    with replacing_folder(tmp_path / "other") as folder:
        make_folder(folder / "new", "new")
    with locked_folder(path):
        before = snapshot(tmp_path)
        with pytest.raises(FflmError, match="already training in"), replacing_folder(path):
            pass
        assert snapshot(tmp_path) == before


def test_exchange_swaps_two_folders(tmp_path):
    for name in ("one", "two"):
        make_folder(tmp_path / name, name)
    if not files._exchange(tmp_path / "one", tmp_path / "two"):
        pytest.skip("not possible on this file system")
    assert snapshot(tmp_path) == {"one": None, "one/two": b"two", "two": None, "two/one": b"one"}
    assert not files._exchange(tmp_path / "one", tmp_path / "missing")


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("moment", [1, 2])
def test_failure_between_two_renames_restores_old_folder(tmp_path, monkeypatch, failure, moment):
    path = tmp_path / "folder"
    make_folder(path, "old")
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


def test_new_folder_locks_old_one_until_published(tmp_path):
    path = tmp_path / "folder"
    make_folder(path, "old")
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


def test_unreferenced_new_folder_is_discarded(tmp_path):
    path = tmp_path / "folder"
    make_folder(path, "old")
    before = snapshot(tmp_path)
    new = NewFolder(path)
    assert snapshot(tmp_path) != before
    del new
    gc.collect()
    assert snapshot(tmp_path) == before


EXIT_WITHOUT_PUBLISHING = """
import os, sys
from pathlib import Path
from fflm.files import NewFolder
new = NewFolder(Path("folder"))
if not os.fork():
    sys.exit()  # this is not the exit of the parent
os.wait()
assert new.folder.exists()
"""


def test_new_folder_is_discarded_at_exit_of_owner_only(tmp_path):
    make_folder(tmp_path / "folder", "old")
    before = snapshot(tmp_path)
    subprocess.run([sys.executable, "-c", EXIT_WITHOUT_PUBLISHING], cwd=tmp_path, check=True)
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the paths of descriptors")
def test_published_folder_is_synced_to_disk(tmp_path, monkeypatch):
    """Files and folders are synced before they are renamed, and the renaming is synced, too."""
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


def test_symbolic_link_to_folder_is_kept(tmp_path):
    make_folder(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    with replacing_folder(tmp_path / "link") as folder:
        (folder / "new").write_text("new")
    assert (tmp_path / "link").readlink() == Path("real")
    assert snapshot(tmp_path) == {"real": None, "real/new": b"new", "link": None}


# Leftovers of killed processes.


KILLED_AT_MOMENT = """
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
    result = subprocess.run([sys.executable, "-c", KILLED_AT_MOMENT, moment], cwd=folder, check=False)
    assert result.returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["before", "between the renames", "after them", "after the exchange"])
def test_leftovers_of_killed_process_are_restored_or_removed(tmp_path, moment):
    make_folder(tmp_path / "folder", "old")
    kill(tmp_path, moment)
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    restore(tmp_path / "folder")  # as reading the folder does
    after = "new" if moment.startswith("after") else "old"
    assert [path.name for path in (tmp_path / "folder").iterdir() if path.name != LOCK] == [after]
    with replacing(tmp_path / "other"), replacing_folder(tmp_path / "another"):
        pass
    assert len(list(tmp_path.glob(".*.tmp"))) == 2  # only leftovers of the same name are removed
    for work, name in ((replacing, "file"), (replacing_folder, "folder")):
        with pytest.raises(FflmError, match="the work fails"), work(tmp_path / name):
            raise FflmError("the work fails")
    assert sorted(snapshot(tmp_path)) == sorted(["another", "other", "folder", f"folder/{after}"])


def test_restore_does_not_bring_back_removed_folder(tmp_path):
    make_folder(tmp_path / "folder", "old")
    kill(tmp_path, "after them")
    shutil.rmtree(tmp_path / "folder")
    restore(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_files_of_running_process_are_not_removed(tmp_path):
    (tmp_path / ".file.tmp").write_text("a user's own")
    with subprocess.Popen([sys.executable, "-c", KILLED_AT_MOMENT, "waiting"], cwd=tmp_path, stdout=subprocess.PIPE) as process:
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


def test_leftovers_are_kept_without_locks(tmp_path, monkeypatch):
    kill(tmp_path, "before")
    before = snapshot(tmp_path)
    monkeypatch.setattr(files, "fcntl", None)
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert snapshot(tmp_path) == {**before, "file": b"whole"}


# New files.


@pytest.mark.parametrize("links", [True, False])
def test_file_created_meanwhile_is_kept(tmp_path, monkeypatch, links):
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


def test_file_keeps_its_permissions_and_a_new_one_follows_the_umask(tmp_path):
    mask, path = os.umask(0o027), tmp_path / "file"
    try:
        for mode in (0o640, 0o600):
            with replacing(path) as temporary:
                temporary.write_text("content")
            assert path.stat().st_mode & 0o777 == mode
            path.chmod(0o600)
    finally:
        os.umask(mask)


def test_symbolic_link_to_file_is_kept(tmp_path):
    (tmp_path / "link").symlink_to("real")
    for content in ("first", "second"):
        with replacing(tmp_path / "link") as temporary:
            temporary.write_text(content)
        assert (tmp_path / "link").readlink() == Path("real")
        assert (tmp_path / "real").read_text() == content
    with pytest.raises(FflmError, match="link exists"), replacing(tmp_path / "link", overwrite=False):
        pass


def test_suffix_of_compression_is_split_off():
    found = [split_compression(name) for name in ("a.csv.xz", "a.csv", Path("a.b/c.zst"), "a")]
    assert found == [(Path("a.csv"), ".xz"), (Path("a.csv"), ""), (Path("a.b/c"), ".zst"), (Path("a"), "")]


def test_write_text_replaces_symbolic_link(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / "config.json").symlink_to("precious")
    write_text(tmp_path / "config.json", "ours")
    assert not (tmp_path / "config.json").is_symlink()
    assert snapshot(tmp_path) == {"precious": b"x", "config.json": b"ours"}


def test_replacing_writes_into_pipe(tmp_path):
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


def test_replacing_device_leaves_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    with replacing(Path("/dev/null"), overwrite=False) as temporary:
        temporary.write_text("x")
    with pytest.raises(FflmError, match="cannot write /dev/full: No space left"), replacing(Path("/dev/full")) as temporary:
        temporary.write_text("x")
    assert Path("/dev/null").is_char_device()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_replacing_standard_output_appends(tmp_path, name):
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


def test_folder_is_not_replaced_by_file(tmp_path):
    with pytest.raises(FflmError, match="is a folder: name a file"), replacing(tmp_path):
        pass


# Reading.


@pytest.mark.usefixtures("replacement_method")
@pytest.mark.parametrize("fails", [True, False])
def test_folder_replaced_during_reading_is_reported(tmp_path, fails):
    path = tmp_path / "folder"
    make_folder(path, "old")
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
