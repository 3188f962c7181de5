"""At every system call of every command that writes, something goes wrong: nothing is lost, half-written, left or believed.

As SQLite's tests do it (https://sqlite.org/testing.html): the first call fails, then, in a new folder, the second, and so on to
the last; and again with SIGTERM, and with SIGKILL. A message names the command, the kind of fault and the call, and
``FAULTS_AT=17 pytest tests/test_faults.py -k "train and kill"`` runs that one alone. To keep CI short, errors and SIGKILL are
tried at about 60 calls of what trains (20 of searches), elsewhere, and with SIGTERM, at a third as many;
``FAULTS_EVERY=1`` tries all. Commands that take long are marked ``slow``.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

import pytest
from command import STORIES, snapshot
from faults import Server

if sys.platform != "linux" or not shutil.which("cc"):
    pytest.skip("faults need Linux and a C compiler", allow_module_level=True)

TEXT = STORIES[:2400]
LINES = "".join(f"{label}\t{word} {label} one\n" for word in ("this", "that", "the", "no", "a") for label in ("good", "bad") * 2)
NETWORK = "-q --embedding 2 --hidden 2 --batch-size 128 --window 2"
TRAIN = f"{NETWORK} --epochs 2"
CLASSIFY = "-q --embedding 2 --hidden 2 --epochs 2 --valid 20% --test 20%"
TUNE = f"{TRAIN} --search rate=0.001..0.01"

TUNE_ANEW = f"""
from pathlib import Path
from fflm.cli import main
main(("tune -q --resume new" if Path("new").exists() else "tune ids -o new {TUNE} --trials 2").split())
"""

STOP = """
from {module} import {run}
from fflm.training.events import Evaluation
run = {run}.resume(__import__("pathlib").Path("new"), epochs=3)
for event in run.events():
    if isinstance(event, Evaluation):
        break
"""
"""Goes on with a run that is done, up to its next evaluation."""

COMPILE = """
import os
os.environ["NUMBA_CACHE_DIR"] = "new"
from fflm.compiling import compiled
@compiled()
def double(number):
    return 2 * number
print(double(21))
"""


GET_ANEW = """
import shutil
from fflm.cli import main
shutil.rmtree("stories", ignore_errors=True)
main("corpus get stories".split())
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes
    ----------
    program
        A command line of fflm, or Python code.
    before
        Programs that make what it needs, in a folder with texts and tokenized texts.
    outputs
        What it writes, in the folder it runs in.
    resume
        Goes on with what is there but not complete; without it, what is there must be complete.
    again
        Does the work once more, after outputs have been made; by default with ``--overwrite``.
    meanwhile
        A pattern of what may lie in outputs that are not complete.
    warns
        Whether it says ``warning:`` and goes on where it cannot write.
    """

    program: str
    before: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("new",)
    resume: str = ""
    again: str = ""
    meanwhile: str = "nothing"
    warns: bool = False


OLD = f"train ids -o new {NETWORK} --epochs 1 --seed 7"
NGRAM = ("ngram train ids -o old.ngram --order 2 -q",)
MIX = "mix -q one.model old.ngram -o new"

COMMANDS = {
    "train": Command(f"train ids -o new {TRAIN}", resume="train -q --resume new"),
    "train --overwrite": Command(f"train ids -o new --overwrite {TRAIN}", (OLD,), resume="train -q --resume new"),
    "train --resume": Command(
        "train -q --resume new", (OLD, STOP.format(module="fflm.models.neural.train", run="TrainingSession")), resume="same"
    ),
    "train --resume --epochs": Command("train -q --resume new --epochs 2", (OLD,), resume="same"),
    "classify": Command(f"classify train lines.tsv -o new {CLASSIFY}", resume="classify train -q --resume new"),
    "classify --overwrite": Command(
        f"classify train lines.tsv -o new --overwrite {CLASSIFY}",
        (f"classify train lines.tsv -o new {CLASSIFY} --seed 7",),
        resume="classify train -q --resume new",
    ),
    "classify --resume --epochs": Command(
        "classify train -q --resume new --epochs 3", (f"classify train lines.tsv -o new {CLASSIFY} --seed 7",), resume="same"
    ),
    "tune": Command(
        f"tune ids -o new {TUNE} --trials 2",
        resume="tune -q --resume new",
        again=TUNE_ANEW,
        meanwhile=r"new/trial-\d(/\w[\w.]*)?",
    ),
    "tune --resume": Command(
        "tune -q --resume new --trials 3",
        (f"tune ids -o new {TUNE} --trials 2",),
        resume="same",
        meanwhile=r"new/trial-\d(/\w[\w.]*)?",
    ),
    "tokenize": Command("tokenize text.txt -o new -q"),
    "tokenize --overwrite": Command("tokenize text.txt -o new -q --overwrite --valid 10%", ("tokenize text.txt -o new -q",)),
    "ngram train": Command("ngram train text.txt -o new --arpa new.arpa -q --order 2", outputs=("new", "new.arpa")),
    "ngram train --overwrite": Command(
        "ngram train ids -o new -q --order 2 --overwrite", ("ngram train ids -o new -q --order 3",)
    ),
    "ngram import": Command("ngram import tiny.arpa -o new"),
    "ngram import --overwrite": Command("ngram import tiny.arpa -o new --overwrite", ("ngram train ids -o new -q --order 2",)),
    "ngram export": Command("ngram export -m old.ngram -o new.arpa.gz -q", NGRAM, ("new.arpa.gz",)),
    "ngram export --overwrite": Command(
        "ngram export -m old.ngram -o new.arpa -q --overwrite", (*NGRAM, 'open("new.arpa", "w").write("old\\n")\n'), ("new.arpa",)
    ),
    "mix": Command(MIX, (OLD.replace("new", "one.model"), *NGRAM)),
    "mix --overwrite": Command(f"{MIX} --overwrite", (OLD.replace("new", "one.model"), *NGRAM, f"{MIX} --cache 20")),
    "vectors": Command("vectors -m one.model -o new.txt -q", (OLD.replace("new", "one.model"),), ("new.txt",)),
    "vectors --overwrite": Command(
        "vectors -m one.model -o new.txt -q --overwrite",
        (OLD.replace("new", "one.model"), 'open("new.txt", "w").write("old\\n")\n'),
        ("new.txt",),
    ),
    "plot": Command("plot -q one.model -o new.png", (OLD.replace("new", "one.model"),), ("new.png",)),
    "corpus get": Command("corpus get stories", outputs=("stories",), again=GET_ANEW),
    "kernels": Command(COMPILE, resume="same", warns=True),
}

ARPA = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1 <unk>\n-99 <s>\n-1 </s>\n-1 word\n\n\\end\\\n"

TOLERATED = re.compile(
    r"fork |mkdir \.|(open|flock|ftruncate64|pwrite|unlinkat) .*/\.lock|flock .*"
    r"|(link|linkat|renameat2|unlink|unlinkat|rmdir|copy_file_range|sendfile) .*"
    r"|(open|pwrite|ftruncate64) .*/study\.db.*|fdatasync .*"
)
"""Calls that may fail and the command succeed: locks, what can be done otherwise or is there, clearing up, and
what SQLite does again or can do without."""

CLEARING = re.compile(r"(unlink|unlinkat|rmdir) .*")
"""Calls whose failing leaves something behind until the next time."""

BETWEEN_OR_CLEARING = re.compile(rf"(open|flock) .*/\.lock|(mkdir|flock) .*\.(tmp|part)|{CLEARING.pattern}")
"""Calls with which a signal may come so that what they have made, or were to remove, stays until the next time."""


def words(program):
    """Return a command line as a list, code as it is."""
    return program if "\n" in program else program.split()


def sorted_header(content):
    """Return a safetensors file with its header in order, which is a hash table's; as it is if it is none."""
    length = int.from_bytes(content[:8], "little")
    with contextlib.suppress(ValueError):
        return json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode() + content[8 + length :]
    return content


def database(content, journal):
    """Return a SQLite file as SQL, with what is in its journal rolled back; as it is if it is none."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "copy.db")
        path.write_bytes(content)
        if journal is not None:
            Path(f"{path}-journal").write_bytes(journal)
        with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(sqlite3.connect(path)) as connection:
            return "\n".join(connection.iterdump()).encode()
    return content


class Laboratory:
    """Where faults are tried: a server, folders as commands find them, and what they have when nothing goes wrong."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "server").mkdir()
        self.server = Server(folder / "server")
        self.base = folder / "base"
        self.base.mkdir()
        (self.base / "text.txt").write_text(TEXT, encoding="utf-8")
        (self.base / "lines.tsv").write_text(LINES, encoding="utf-8")
        (self.base / "tiny.arpa").write_text(ARPA)
        self.must(["tokenize", "text.txt", "-o", "ids", "-q", "--valid", "10%"], self.base)
        self.experiments = {}

    def must(self, program, folder):
        """Run a program that must succeed."""
        outcome = self.server.run(program, folder)
        assert outcome.status == 0, outcome
        return outcome

    def experiment(self, name, command):
        """Return the experiment of a command, which is prepared once."""
        if name not in self.experiments:
            self.experiments[name] = Experiment(self, name, command)
        return self.experiments[name]


class Experiment:
    """A command, the folder it runs in, and what it makes there."""

    def __init__(self, laboratory, name, command):
        self.server, self.name, self.command = laboratory.server, name, command
        folder = Path(tempfile.mkdtemp(dir=laboratory.folder))
        self.seed, self.work = (
            folder / "seed",
            folder / "work",
        )  # models refer to corpora by absolute paths, so there is one to work in
        shutil.copytree(laboratory.base, self.work)
        for program in command.before:
            laboratory.must(words(program), self.work)
        self.work.rename(self.seed)
        self.before = self.content(self.seed)
        with self.beginning():
            self.server.prepare(words(command.program), self.work)
        with self.beginning():
            self.outcome = laboratory.must(words(command.program), self.work)
            self.after = self.content(self.work)
        assert self.after != self.before
        self.recovered = {}

    @contextlib.contextmanager
    def beginning(self):
        """Have the folder to work in as the command finds it."""
        shutil.copytree(self.seed, self.work)
        yield
        shutil.rmtree(self.work)

    def content(self, folder):
        """Return what a folder holds."""
        found = snapshot(folder)
        return {
            name: sorted_header(value)
            if value and name.endswith(".safetensors")
            else database(value, found.get(f"{name}-journal"))
            if value and name.endswith(".db")
            else value
            for name, value in found.items()
        }

    def part(self, content, output):
        """Return what a folder's content has of an output, without leftovers."""
        return {
            name: value
            for name, value in content.items()
            if (name == output or name.startswith(f"{output}/")) and name in self.before.keys() | self.after.keys()
        }

    def state(self, content, output):
        """Return whether an output is ``old``, ``new`` or ``partial``."""
        found = self.part(content, output)
        if found == self.part(self.after, output):
            return "new"
        return "old" if found == self.part(self.before, output) else "partial"

    def examine(self, kind, at):
        """Let a fault happen at a call; return what is wrong afterwards, in lines."""
        with self.beginning():
            outcome = self.server.run(words(self.command.program), self.work, kind, at)
            call = outcome.calls[at - 1] if at <= len(outcome.calls) else "none"
            problems = [*self.wrong_end(outcome, kind, call), *self.wrong_state(outcome, kind, call)]
        return [f"{self.name}: {kind} at call {at} of {len(self.outcome.calls)} ({call}): {problem}" for problem in problems]

    def wrong_end(self, outcome, kind, call):
        """Yield what is wrong with how a command ended, and with what it said."""
        error, done = re.fullmatch(r"error: [^\n]+\n", outcome.stderr), outcome.status == 0
        said = re.sub(r"warning: [^\n]+\n", "", outcome.stderr) if self.command.warns else outcome.stderr
        if kind == "kill":
            if outcome.status != -9:
                yield f"it was not killed: {outcome}"
        elif done:
            if kind in ("fail", "full") and not TOLERATED.fullmatch(call) and not self.command.warns:
                yield "the failure was ignored"
            if (outcome.stdout, said) != (self.outcome.stdout, self.outcome.stderr):
                yield f"it said {outcome.stdout!r} and {outcome.stderr!r}"
        elif kind == "terminate":
            if outcome.status != 130 or not re.fullmatch(
                r"\n?(error: interrupted|stopped and saved; resume with: .*|stopped before .*)\n", outcome.stderr
            ):
                yield f"status {outcome.status}: {outcome.stderr}"
        elif kind in ("short", "interrupt") or outcome.status != 1 or not error:
            yield f"status {outcome.status}: {outcome.stderr}"
        elif outcome.stdout:
            yield f"it failed, and printed {outcome.stdout!r}"

    def wrong_state(self, outcome, kind, call):
        """Yield what is wrong with what a command has left, and with what can be made of that."""
        content = self.content(self.work)
        known = self.before.keys() | self.after.keys()
        leftovers = sorted(name for name in content if name not in known and not re.fullmatch(self.command.meanwhile, name))
        states = {output: self.state(content, output) for output in self.command.outputs}
        for name, value in self.before.items():
            if name.partition("/")[0] not in self.command.outputs and content.get(name, b"") != value:
                yield f"{name} has changed"
        if outcome.status == 0 and set(states.values()) != {"new"} and not (self.command.warns and "warning: " in outcome.stderr):
            yield f"it succeeded, but: {states}"
        if kind == "full":  # SQLite keeps its journal when the database cannot be written, and the next one to open it rolls back
            leftovers = [name for name in leftovers if not name.endswith(".db-journal")]
        excused = {"fail": CLEARING, "terminate": BETWEEN_OR_CLEARING, "kill": re.compile(".*")}.get(kind)
        if leftovers and not (excused and excused.fullmatch(call)):
            yield f"left behind: {', '.join(leftovers)}"
        if "partial" in states.values():
            if not self.command.resume:
                yield f"half-written: {states}"
                return
            replaced = any(name.endswith("model.safetensors") for name in self.part(self.before, "new"))
            if replaced and "new/config.json" in content and "new/model.safetensors" not in content:
                yield "the old model is gone, and the new one has no weights yet"
        if leftovers or "partial" in states.values():
            yield from self.recover(content, "partial" in states.values())

    def recover(self, content, partial):
        """Yield what is wrong with what the next command makes of what was left; the same for equal content."""
        key = frozenset((re.sub(r"\.\w+\.tmp|\.tmp\w+", ".tmp", name), value) for name, value in content.items())
        if key not in self.recovered:
            self.recovered[key] = list(self._recover(partial))
        yield from self.recovered[key]

    def _recover(self, partial):
        program = self.command.program
        if partial and self.command.resume != "same":
            program = self.command.resume
        elif not partial and self.command.resume != "same":
            program = self.command.again or f"{program}{'' if '--overwrite' in program else ' --overwrite'}"
        outcome = self.server.run(words(program), self.work)
        if outcome.status:
            again = " ".join(words(program)[:3])
            yield f"afterwards, {again} ...: status {outcome.status}: {outcome.stderr}"
            return
        content = self.content(self.work)
        for name in sorted(content.keys() | self.after.keys()):
            if name not in self.after:
                if str(Path(name).parent) in self.after or "/" not in name:
                    yield f"left behind even by the next command: {name}"
            elif name not in content:
                yield f"afterwards there is no {name}"
            elif content[name] != self.after[name]:
                yield f"afterwards other bits in {name}"


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory):
    """Start a server, and make the texts that commands read."""
    laboratory = Laboratory(tmp_path_factory.mktemp("faults"))
    with laboratory.server:
        yield laboratory


def report(problems):
    """Fail with what was found."""
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:200])


QUICK = {"tokenize --overwrite", "ngram import", "vectors", "corpus get", "kernels", "train --resume --epochs"}
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS]
"""The commands, of which those that take long are tried only by CI."""


@pytest.mark.parametrize("kind", ["fail", "terminate", "kill", "full", "short", "interrupt"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_lost(laboratory, name, kind):
    if COMMANDS[name].warns and kind in ("terminate", "kill"):
        pytest.skip("what a kill has left in the cache of kernels stays until fflm changes: nobody reads it")
    experiment = laboratory.experiment(name, COMMANDS[name])
    every = len(experiment.outcome.calls) // (20 if name.startswith("tune") else 60) + 1  # SQLite makes hundreds
    if not (COMMANDS[name].resume and kind in ("fail", "kill")):
        every *= 3
    calls = range(1, len(experiment.outcome.calls) + 1, int(os.environ.get("FAULTS_EVERY", every)))
    if kind in ("full", "short", "interrupt"):
        calls = [
            at for at in range(1, len(experiment.outcome.calls) + 1) if re.match("p?write", experiment.outcome.calls[at - 1])
        ]
        calls = calls[:: every if name.startswith("tune") else 1]
    if "FAULTS_AT" in os.environ:
        calls = [int(os.environ["FAULTS_AT"])]
    report([problem for at in calls for problem in experiment.examine(kind, at)])


WORKERS = """
from fflm.cli import main
from fflm.text import tokenize as module
module._SERIAL_SECONDS = -1
main("tokenize long.txt -o new -q --processes 2".split())
"""


def test_a_worker_process_that_cannot_start(laboratory):
    command = Command(WORKERS, ("open('long.txt', 'w').write(open('text.txt').read() * 250)\n",), again=WORKERS)
    experiment = laboratory.experiment("tokenize --processes 2", command)
    forks = [at for at, call in enumerate(experiment.outcome.calls, 1) if call.startswith("fork")]
    assert len(forks) >= 2
    report([problem for at in forks for problem in experiment.examine("fail", at)])


def not_on_disk(calls, passing):
    """Yield which files of a command's calls got their names before their content was on disk, or whose names never were."""
    written, named = set(), set()
    for call in calls:
        name, _, path = call.partition(" ")
        path = re.sub(r"/\.tmp\w{6}$", "/new", path)  # safetensors renames its own file, unseen, to the one that it is asked for
        if re.search(passing, path):
            continue
        if re.fullmatch("p?writev?|ftruncate(64)?|sendfile|copy_file_range", name):
            written.add(path)
        elif name in ("fsync", "fdatasync"):
            written.discard(path)
            named.discard(path)
        elif name.startswith("rename") or name == "link":
            before, _, after = path.partition(" -> ") if " -> " in path else (path, "", path)
            yield from (f"{after} before {file}" for file in written if f"{file}/".startswith(f"{before}/"))
            named = {folder for folder in named if not f"{folder}/".startswith(f"{before}/")} | {str(Path(after).parent)}
            named = {"" if folder == "." else folder for folder in named}
        elif name in ("unlink", "unlinkat", "rmdir"):
            written.discard(path)
    yield from written | {f"names in {folder or 'the folder'}" for folder in named}


@pytest.mark.parametrize("name", NAMES)
def test_what_was_written_is_on_disk(laboratory, name):
    """A power cut after the end takes nothing back, and one before leaves no file without its content."""
    command = COMMANDS[name]
    passing = r"\.lock$|/provisional$|study\.db|log\.jsonl$" + ("|^new/fflm-" if command.warns else "")
    report(list(not_on_disk(laboratory.experiment(name, command).outcome.calls, passing)))


def test_what_is_not_on_disk_is_found():
    calls = ["open a/new", "write a/new", "fsync a/new", "rename a/new -> b", "fsync "]
    assert list(not_on_disk(calls, "passing")) == []
    assert list(not_on_disk(calls[:2] + calls[3:], "passing")) == ["b before a/new", "a/new"]
    assert list(not_on_disk(calls[:4], "passing")) == ["names in the folder"]


IN_PLACE = """
with open("new", "w", buffering=1) as file:
    for line in range(3):
        print("new", line, file=file)
"""
BESIDE = """
import os
with open("temporary", "w") as file:
    file.write("new")
os.replace("temporary", "new")
"""
ONE_LINE = """
import sys
try:
    exec({program!r})
except OSError as error:
    sys.exit(print("error:", error, file=sys.stderr) or 1)
"""
SILENT = """
import contextlib
with contextlib.suppress(OSError):
    exec({program!r})
print("saved")
"""


@pytest.mark.parametrize(
    ("program", "kind", "problem"),
    [
        (ONE_LINE.format(program=IN_PLACE), "fail", r"fail at call 2 of 4 \(write new\): half-written: {'new': 'partial'}"),
        (ONE_LINE.format(program=IN_PLACE), "full", r"full at call 3 of 4 \(write new\): half-written"),
        (IN_PLACE, "kill", r"kill at call 4 of 4 \(write new\): half-written"),
        (BESIDE, "fail", r"fail at call 1 of 3 \(open temporary\): status 99: Traceback"),
        (ONE_LINE.format(program=BESIDE), "fail", r"fail at call 3 of 3 \(rename temporary -> new\): left behind: temporary"),
        (SILENT.format(program=BESIDE), "fail", r"fail at call 2 of 3 \(write temporary\): the failure was ignored"),
        (SILENT.format(program=BESIDE), "fail", r"call 2 of 3 \(write temporary\): it succeeded, but: {'new': 'old'}"),
        (
            BESIDE.replace("file.write", "sum(b''); import os; os.write(file.fileno(), b'new') and id"),
            "short",
            "it succeeded, but",
        ),
        ("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_DFL)" + BESIDE, "terminate", r"status -15"),
    ],
)
def test_faults_are_found(laboratory, program, kind, problem):
    """What these tests are for is noticed in programs that have it."""
    command = Command(program, ("open('new', 'w').write('old')\n",), again=program)
    experiment = Experiment(laboratory, "program", command)
    problems = [problem for at in range(1, len(experiment.outcome.calls) + 1) for problem in experiment.examine(kind, at)]
    assert any(re.search(problem, line) for line in problems), problems
