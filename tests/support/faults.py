"""Running commands in which a chosen system call fails, or during which the process is killed.

`faults.c` replaces functions of the C library in a real process. Run as a program, this module is a server, which has imported
fflm and compiled the kernels that commands need. It forks a process for every command, which takes milliseconds instead of a
second.
"""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

KINDS = ("count", "fail", "full", "short", "interrupt", "terminate", "kill")
"""The kinds of faults at a call, in the order of faults.c.

The call is only counted; it fails; it and all later calls that need space fail; it writes only a half; it is interrupted by a
signal without a handler; the process gets SIGTERM; the process gets SIGKILL after half of a write.
"""

SECONDS = 60
"""Time limit of a command, after which SIGALRM ends it."""


@dataclass(frozen=True)
class Outcome:
    """The result of a command: its exit status (negative for a signal), its output, and its system calls with paths."""

    status: int
    stdout: str
    stderr: str
    calls: tuple[str, ...]


class Server:
    """A client that starts a server for the time of a ``with`` block; ``folder`` is for the files of the server."""

    def __init__(self, folder):
        self.folder = folder
        library, source = folder / "faults.so", Path(__file__).with_name("faults.c")
        subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-fPIC", "-shared", "-o", library, source, "-ldl"], check=True)
        self.process = subprocess.Popen(
            [sys.executable, __file__, folder],
            env={**os.environ, "LD_PRELOAD": str(library), "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.ready = set()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def prepare(self, program, folder):
        """Run a program in the server itself, so that later runs find its modules imported and its kernels compiled."""
        self._ask(program, folder, "count", 0, forked=False)

    def run(self, program, folder, kind="count", at=0):
        """Run a command line (a list) or Python code (a string) in a folder, with a fault at a call, counted from 1."""
        return self._ask(program, folder, kind, at, forked=True)

    def _ask(self, program, folder, kind, at, forked):
        request = {"program": program, "folder": str(folder), "kind": KINDS.index(kind), "at": at, "forked": forked}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        printed = {name: (self.folder / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr")}
        return Outcome(answer["status"], calls=tuple(answer["calls"]), **printed)


def serve(folder):
    """Answer requests on standard input, each a line of JSON, until the input ends."""
    import gc
    import signal

    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    library.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long]
    library.faults_count.restype = ctypes.c_long
    library.faults_call.argtypes, library.faults_call.restype = [ctypes.c_long], ctypes.c_char_p
    with os.fdopen(os.dup(0)) as requests, os.fdopen(os.dup(1), "w") as answers, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        for line in requests:
            request = json.loads(line)
            os.chdir(request["folder"])
            os.environ["TMPDIR"] = request["folder"]
            status, calls = 0, []
            if request["forked"]:
                process = os.fork()
                if not process:
                    signal.alarm(SECONDS)
                    library.faults_arm(os.fsencode(request["folder"]), request["kind"], request["at"])
                    status = work(request["program"], folder)
                    library.faults_disarm()
                    os._exit(status)
                status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                calls = [os.fsdecode(library.faults_call(number)) for number in range(1, library.faults_count() + 1)]
            else:
                environment = dict(os.environ)
                work(request["program"], folder)
                os.environ.clear()  # the program may have changed it, for example the folder of compiled kernels
                os.environ.update(environment)
                gc.collect()
                gc.freeze()  # otherwise garbage collection in every fork copies the memory of all imported modules
            os.chdir("/")
            print(json.dumps({"status": status, "calls": calls}), file=answers, flush=True)


def work(program, folder):
    """Run a program in this process with its output in files; return the exit status."""
    import traceback

    from fflm.cli import main

    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, descriptor)
        os.close(file)
    status = 0
    try:
        if isinstance(program, str):
            exec(compile(program, "program", "exec"), {"__name__": "program"})
        else:
            main(program)
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
