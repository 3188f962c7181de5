"""Faults at system calls of every command that writes: no file is lost, half-written, left behind, or used when it is incomplete.

The method is that of SQLite's tests (https://sqlite.org/testing.html): the first call fails, then, in a new folder, the second,
and so on to the last; and again with SIGTERM, and with SIGKILL. A message names the command, the kind of fault and the call, and
``FAULTS_AT=17 pytest tests/test_faults.py -k "train and kill"`` runs that one alone. To keep CI short, one call of each kind is
tried (of searches every third kind, by turns with SIGKILL and with the other faults), and with signals every third kind, except
SIGKILL of commands that can be resumed;
``FAULTS_EVERY=1`` tries all calls. Commands that take long are marked ``slow``.
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

TUNE_AGAIN = f"""
from pathlib import Path
from fflm.cli import main
main(("tune -q --resume new" if Path("new").exists() else "tune ids -o new {TUNE} --trials 2").split())
"""

CLASSIFIER_TUNE = f"classify tune lines.tsv -o new {CLASSIFY} --trials 2 --search rate=0.01..0.1"
CLASSIFIER_TUNE_AGAIN = f"""
from pathlib import Path
from fflm.cli import main
main(("classify tune -q --resume new" if Path("new").exists() else "{CLASSIFIER_TUNE}").split())
"""

RESUME_AND_STOP = """
from {module} import {run}
from fflm.training.events import Evaluation
run = {run}.resume(__import__("pathlib").Path("new"), epochs=3)
for event in run.events():
    if isinstance(event, Evaluation):
        break
"""
"""A program that resumes a finished training session with more epochs, and stops at the next evaluation."""

COMPILE = """
import os
os.environ["NUMBA_CACHE_DIR"] = "new"
from fflm.compiling import compiled
@compiled()
def double(number):
    return 2 * number
print(double(21))
"""


GET_AGAIN = """
import shutil
from fflm.cli import main
shutil.rmtree("stories", ignore_errors=True)
main("corpus get stories".split())
"""


COLLECTION = """
import gzip, os
os.mkdir("docs")
with gzip.GzipFile("docs/a.jsonl.gz", "wb", mtime=0) as file:
    file.writelines(b'{"text": "%s"}\\n' % text for text in [b"the cat sat", b"a dog", b"it"] * 20)
with open("docs/b.txt", "w") as file:
    file.write("the old dog\\nsaid no\\n" * 20)
"""

FILTER = """
from fflm.cli import main
from fflm.filtering import job, lines
job.SAVE_SECONDS, lines.BLOCK = 0, 500
"""
FILTER_NEW = f'{FILTER}main("filter docs -m old.ngram -o new -q --keep 50% --processes 1".split())\n'
FILTER_RESUME = f'{FILTER}main("filter -q --resume new --processes 1".split())\n'
FILTER_AGAIN = f"""
from pathlib import Path
if Path("new").exists():
    exec({FILTER_RESUME!r})
else:
    exec({FILTER_NEW!r})
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes
    ----------
    program
        A command line of fflm, or Python code.
    before
        Programs that make the files it needs, in a folder with texts and tokenized texts.
    outputs
        The files and folders that it writes in the current folder.
    resume
        A program that continues with incomplete outputs; without it, outputs must be complete.
    again
        A program that does the work again when outputs exist; by default the program with ``--overwrite``.
    meanwhile
        A pattern of the names of files that may be in incomplete outputs.
    warns
        Whether it prints ``warning:`` and continues if it cannot write.
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
        "train -q --resume new",
        (OLD, RESUME_AND_STOP.format(module="fflm.models.neural.train", run="TrainingSession")),
        resume="same",
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
        again=TUNE_AGAIN,
        meanwhile=r"new/trial-\d(/\w[\w.]*)?",
    ),
    "tune --resume": Command(
        "tune -q --resume new --trials 3",
        (f"tune ids -o new {TUNE} --trials 2",),
        resume="same",
        meanwhile=r"new/trial-\d(/\w[\w.]*)?",
    ),
    "tune classifiers": Command(
        CLASSIFIER_TUNE,
        resume="classify tune -q --resume new",
        again=CLASSIFIER_TUNE_AGAIN,
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
    "corpus get": Command("corpus get stories", outputs=("stories",), again=GET_AGAIN),
    "filter": Command(
        FILTER_NEW, (*NGRAM, COLLECTION), resume=FILTER_RESUME, again=FILTER_AGAIN, meanwhile=r"new/\.filter/\d+\.\w+"
    ),
    "kernels": Command(COMPILE, resume="same", warns=True),
}

ARPA = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1 <unk>\n-99 <s>\n-1 </s>\n-1 word\n\n\\end\\\n"

TOLERATED = re.compile(
    r"fork |mkdir \.|(open|flock|ftruncate64|pwrite|unlinkat) .*/\.lock|flock .*"
    r"|(link|linkat|renameat2|unlink|unlinkat|rmdir|copy_file_range|sendfile) .*"
    r"|(open|pwrite|ftruncate64) .*/study\.db.*|fdatasync .*"
)
"""Calls whose failure does not make the command fail: calls for locks, calls with an alternative, calls that clean up, and calls
that SQLite repeats or can do without."""

CLEANUP = re.compile(r"(unlink|unlinkat|rmdir) .*")
"""Calls whose failure leaves files behind, which the next command removes."""

CREATION_OR_CLEANUP = re.compile(rf"(open|flock) .*/(trial-\d+)?\.lock|(mkdir|flock) .*\.(tmp|part)|{CLEANUP.pattern}")
"""Calls during which a signal may leave files behind, which the next command removes."""


def split_command(program):
    """Return a command line as a list of arguments, and Python code unchanged."""
    return program if "\n" in program else program.split()


def sorted_header(content):
    """Return a safetensors file with a sorted header, whose order is otherwise that of a hash table; other files unchanged."""
    length = int.from_bytes(content[:8], "little")
    with contextlib.suppress(ValueError):
        return json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode() + content[8 + length :]
    return content


def database_as_sql(content, journal):
    """Return a SQLite database as SQL, after a rollback of its journal; other files unchanged."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "copy.db")
        path.write_bytes(content)
        if journal is not None:
            Path(f"{path}-journal").write_bytes(journal)
        with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(sqlite3.connect(path)) as connection:
            return "\n".join(connection.iterdump()).encode()
    return content


class Laboratory:
    """A server, the folder from which experiments start, and the experiments made so far."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "server").mkdir()
        self.server = Server(folder / "server")
        self.base = folder / "base"
        self.base.mkdir()
        (self.base / "text.txt").write_text(TEXT, encoding="utf-8")
        (self.base / "lines.tsv").write_text(LINES, encoding="utf-8")
        (self.base / "tiny.arpa").write_text(ARPA)
        self.server.prepare(["corpus", "list"], self.base)  # so that messages look the same whatever command is the first
        self.run_checked(["tokenize", "text.txt", "-o", "ids", "-q", "--valid", "10%"], self.base)
        self.experiments = {}

    def run_checked(self, program, folder):
        """Run a program that must succeed."""
        outcome = self.server.run(program, folder)
        assert outcome.status == 0, outcome
        return outcome

    def experiment(self, name, command):
        """Return the experiment of a command, which is prepared at the first call."""
        if name not in self.experiments:
            self.experiments[name] = Experiment(self, name, command)
        return self.experiments[name]


class Experiment:
    """A command, the folder in which it runs, and the files before and after it without a fault."""

    def __init__(self, laboratory, name, command):
        self.server, self.name, self.command = laboratory.server, name, command
        folder = Path(tempfile.mkdtemp(dir=laboratory.folder))
        self.seed, self.work = (
            folder / "seed",
            folder / "work",
        )  # there is only one folder to work in, because models refer to corpora by absolute paths
        shutil.copytree(laboratory.base, self.work)
        for program in command.before:
            laboratory.run_checked(split_command(program), self.work)
        self.work.rename(self.seed)
        self.before = self.read_folder(self.seed)
        with self.fresh_folder():
            self.server.prepare(split_command(command.program), self.work)
        with self.fresh_folder():
            self.outcome = laboratory.run_checked(split_command(command.program), self.work)
            self.after = self.read_folder(self.work)
        assert self.after != self.before
        self.recovered = {}

    @contextlib.contextmanager
    def fresh_folder(self):
        """Make the folder in which the command runs, and remove it afterwards."""
        shutil.copytree(self.seed, self.work)
        yield
        shutil.rmtree(self.work)

    def read_folder(self, folder):
        """Return the content of all files in a folder, in a form that can be compared."""
        found = snapshot(folder)
        return {
            name: sorted_header(value)
            if value and name.endswith(".safetensors")
            else database_as_sql(value, found.get(f"{name}-journal"))
            if value and name.endswith(".db")
            else value
            for name, value in found.items()
        }

    def output_content(self, content, output):
        """Return the part of a folder's content that belongs to an output, without leftovers."""
        return {
            name: value
            for name, value in content.items()
            if (name == output or name.startswith(f"{output}/")) and name in self.before.keys() | self.after.keys()
        }

    def output_state(self, content, output):
        """Return whether an output is ``old``, ``new`` or ``partial``."""
        found = self.output_content(content, output)
        if found == self.output_content(self.after, output):
            return "new"
        return "old" if found == self.output_content(self.before, output) else "partial"

    def calls_to_fail(self, kind):
        """Return the numbers of the calls, counted from 1, at which a kind of fault is tried.

        Of each kind of call, which is a function and the names of its files, one is tried: the first of one kind, the second of
        the next, and so on. Files under construction count as one file.
        """
        places = {}
        for at, call in enumerate(self.outcome.calls, 1):
            names = [Path(re.sub(r".*\.(tmp|part)\w*$", ".tmp", part)).name for part in call.split()]
            places.setdefault(re.sub(r"\d+", "", " ".join(names)), []).append(at)
        if kind in ("full", "short", "interrupt"):
            places = {name: found for name, found in places.items() if re.match("p?write", name)}
        if "FAULTS_EVERY" in os.environ:
            return sorted(at for found in places.values() for at in found)[:: int(os.environ["FAULTS_EVERY"])]
        chosen = sorted(found[number % len(found)] for number, found in enumerate(places.values()))
        if self.name.startswith("tune"):
            return chosen[::3][kind == "kill" :: 2]
        all_kinds = kind not in ("kill", "terminate") or (kind == "kill" and self.command.resume)
        return chosen[:: 1 if all_kinds else 3]

    def find_problems(self, kind, at):
        """Run the command with a fault at a call; return the problems that are found afterwards, one line each."""
        with self.fresh_folder():
            outcome = self.server.run(split_command(self.command.program), self.work, kind, at)
            call = outcome.calls[at - 1] if at <= len(outcome.calls) else "none"
            problems = [*self.exit_problems(outcome, kind, call), *self.file_problems(outcome, kind, call)]
        return [f"{self.name}: {kind} at call {at} of {len(self.outcome.calls)} ({call}): {problem}" for problem in problems]

    def exit_problems(self, outcome, kind, call):
        """Yield the problems with the exit status and the messages of a command."""
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
                r"\n?(error: interrupted|stopped( and saved)?; resume with: .*|stopped before .*)\n", outcome.stderr
            ):
                yield f"status {outcome.status}: {outcome.stderr}"
        elif kind in ("short", "interrupt") or outcome.status != 1 or not error:
            yield f"status {outcome.status}: {outcome.stderr}"
        elif outcome.stdout:
            yield f"it failed, and printed {outcome.stdout!r}"

    def file_problems(self, outcome, kind, call):
        """Yield the problems with the files that a command has left, and with what the next command makes of them."""
        content = self.read_folder(self.work)
        known = self.before.keys() | self.after.keys()
        leftovers = sorted(name for name in content if name not in known and not re.fullmatch(self.command.meanwhile, name))
        states = {output: self.output_state(content, output) for output in self.command.outputs}
        for name, value in self.before.items():
            if name.partition("/")[0] not in self.command.outputs and content.get(name, b"") != value:
                yield f"{name} has changed"
        if outcome.status == 0 and set(states.values()) != {"new"} and not (self.command.warns and "warning: " in outcome.stderr):
            yield f"it succeeded, but: {states}"
        # SQLite keeps its journal if it cannot write the database, and the next process to open that rolls back. The journal may
        # stay until the next command, which is run below: it must remove the journal and give the right results.
        unexpected = [name for name in leftovers if not (kind == "full" and name.endswith(".db-journal"))]
        excused = {"fail": CLEANUP, "terminate": CREATION_OR_CLEANUP, "kill": re.compile(".*")}.get(kind)
        if unexpected and not (excused and excused.fullmatch(call)):
            yield f"left behind: {', '.join(unexpected)}"
        if "partial" in states.values():
            if not self.command.resume:
                yield f"half-written: {states}"
                return
            replaced = any(name.endswith("model.safetensors") for name in self.output_content(self.before, "new"))
            if replaced and "new/config.json" in content and "new/model.safetensors" not in content:
                yield "the old model is gone, and the new one has no weights yet"
        if leftovers or "partial" in states.values():
            yield from self.recovery_problems(content, "partial" in states.values())

    def recovery_problems(self, content, partial):
        """Yield the problems of the next command with what was left; equal content is tried only once."""
        key = frozenset((re.sub(r"\.\w+\.tmp|\.tmp\w+", ".tmp", name), value) for name, value in content.items())
        if key not in self.recovered:
            self.recovered[key] = list(self._run_next_command(partial))
        yield from self.recovered[key]

    def _run_next_command(self, partial):
        program = self.command.program
        if partial and self.command.resume != "same":
            program = self.command.resume
        elif not partial and self.command.resume != "same":
            program = self.command.again or f"{program}{'' if '--overwrite' in program else ' --overwrite'}"
        outcome = self.server.run(split_command(program), self.work)
        if outcome.status:
            again = " ".join(split_command(program)[:3])
            yield f"afterwards, {again} ...: status {outcome.status}: {outcome.stderr}"
            return
        content = self.read_folder(self.work)
        for name in sorted(content.keys() | self.after.keys()):
            if name not in self.after:
                # A trial's lock file that could not be removed does no harm: the next process that trains there locks it.
                if re.fullmatch(r"new/trial-\d/\.lock", name):
                    continue
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


def assert_no_problems(problems):
    """Fail with the list of problems if there are any."""
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:200])


QUICK = {"tokenize --overwrite", "ngram import", "vectors", "corpus get", "kernels", "train --resume --epochs"}
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS]
"""The names of commands; those that take long are marked `slow`."""


@pytest.mark.parametrize("kind", ["fail", "terminate", "kill", "full", "short", "interrupt"])
@pytest.mark.parametrize("name", NAMES)
def test_fault_at_system_call_leaves_old_or_new_files(laboratory, name, kind):
    if COMMANDS[name].warns and kind in ("terminate", "kill"):
        pytest.skip("leftovers in the cache of kernels stay until fflm changes, and are never read")
    experiment = laboratory.experiment(name, COMMANDS[name])
    calls = experiment.calls_to_fail(kind)
    if "FAULTS_AT" in os.environ:
        calls = [int(os.environ["FAULTS_AT"])]
    assert_no_problems([problem for at in calls for problem in experiment.find_problems(kind, at)])


WORKERS = """
from fflm.cli import main
from fflm import workers
workers.SERIAL_SECONDS = -1
main("tokenize long.txt -o new -q --processes 2".split())
"""


def test_failed_fork_of_worker_process_is_reported(laboratory):
    command = Command(WORKERS, ("open('long.txt', 'w').write(open('text.txt').read() * 250)\n",), again=WORKERS)
    experiment = laboratory.experiment("tokenize --processes 2", command)
    forks = [at for at, call in enumerate(experiment.outcome.calls, 1) if call.startswith("fork")]
    assert forks
    assert_no_problems([problem for at in forks for problem in experiment.find_problems("fail", at)])


def unsynced_files(calls, ignored):
    """Yield the files that a command renamed before their content was synced, and those that were never synced."""
    written, named = set(), set()
    for call in calls:
        name, _, path = call.partition(" ")
        path = re.sub(r"/\.tmp\w{6}$", "/new", path)  # safetensors renames its temporary file by a call that is not recorded
        if re.search(ignored, path):
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
def test_written_files_are_synced_to_disk(laboratory, name):
    """A power failure afterwards loses no file, and one before leaves no file without its content."""
    command = COMMANDS[name]
    ignored = r"\.lock$|/provisional$|study\.db|log\.jsonl$" + ("|^new/fflm-" if command.warns else "")
    assert_no_problems(list(unsynced_files(laboratory.experiment(name, command).outcome.calls, ignored)))


def test_unsynced_files_are_detected():
    calls = ["open a/new", "write a/new", "fsync a/new", "rename a/new -> b", "fsync "]
    assert list(unsynced_files(calls, "passing")) == []
    assert list(unsynced_files(calls[:2] + calls[3:], "passing")) == ["b before a/new", "a/new"]
    assert list(unsynced_files(calls[:4], "passing")) == ["names in the folder"]


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
def test_faulty_programs_are_detected(laboratory, program, kind, problem):
    """The tests of this module detect the faults of programs that have them."""
    command = Command(program, ("open('new', 'w').write('old')\n",), again=program)
    experiment = Experiment(laboratory, "program", command)
    problems = [problem for at in range(1, len(experiment.outcome.calls) + 1) for problem in experiment.find_problems(kind, at)]
    assert any(re.search(problem, line) for line in problems), problems
