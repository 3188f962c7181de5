"""Runs all benchmarks of README.md that this machine can run, one after the other, with the durations that it states.

If it is stopped, the same command continues with the benchmark that was running. Those that have ended are listed in
``all.work``, until all have. A benchmark that fails without a result is tried again by the next run; one whose claim does not
hold has a result. ``--list`` only shows what would run, and what is missing for the rest.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from two_hosts import why_no_hosts

from fflm.backend.devices import choose_device
from fflm.errors import FflmError

HERE = Path(__file__).resolve().parent
DONE = HERE / "all.work" / "done"

ROW = re.compile(r"^\| `python benchmarks/(?P<command>.+?)` \| (?P<claim>.*) \| (?P<duration>.*?) \|$", re.MULTILINE)
NEEDS = re.compile(r"(?:It|The script) needs (?:`pip install ([\w-]+)`|the extra `(\w+)`|(numba-cuda))")
COMPARES = re.compile(r"comparison needs `pip install ([\w-]+)`")
MODULES = {"fasttext-wheel": "fasttext", "mpi": "mpi4py", "numba-cuda": "numba_cuda"}
"""The names of modules that differ from those of their packages and extras."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of README.md.

    Attributes
    ----------
    script, words
        The name of the script, and the words of its command after that: options, and files and folders of corpora.
    optional
        Files and folders that it can also do without.
    claim, duration
        What the table says of it.
    """

    script: str
    words: tuple[str, ...]
    optional: tuple[str, ...]
    claim: str
    duration: str

    @classmethod
    def of(cls, row: re.Match[str]) -> "Benchmark":
        """Return the benchmark of a row of the table, in whose command what is optional is in brackets."""
        needed, _, rest = row["command"].partition("[")
        script, *words = needed.split()
        return cls(script, tuple(words), tuple(rest.removesuffix("]").split()), row["claim"], row["duration"])

    def command(self, corpora: Path) -> list[str | Path]:
        """Return the command that runs it with the corpora in a folder."""
        words = [word if word.startswith("-") else corpora / word for word in self.words]
        return [sys.executable, HERE / self.script, *words, *filter(Path.exists, (corpora / word for word in self.optional))]

    def missing(self, corpora: Path) -> list[str]:
        """Return what is missing to run it."""
        files = [corpora / word for word in self.words if not word.startswith("-")]
        packages = [name for found in NEEDS.finditer(self.claim) for name in found.groups() if name]
        found = [str(each) for each in files if not each.exists()]
        found += [name for name in packages if not is_installed(name)]
        if self.claim.startswith("On a GPU"):
            try:
                choose_device("cuda")
            except FflmError:
                found.append("GPU")
        return found

    def left_out(self) -> list[str]:
        """Return the parts that it would leave out."""
        found = [f"the comparison with {name}" for name in COMPARES.findall(self.claim) if not is_installed(name)]
        if "for root on Linux" in self.claim and (reason := why_no_hosts()):
            found.append(f"links between hosts ({reason})")
        return found


def benchmarks() -> list[Benchmark]:
    """Return the benchmarks of README.md."""
    return [Benchmark.of(row) for row in ROW.finditer((HERE / "README.md").read_text(encoding="utf-8"))]


def is_installed(package: str) -> bool:
    """Return whether a package, or that of an extra, is installed."""
    return find_spec(MODULES.get(package, package)) is not None


def has_result(script: str, since: float) -> bool:
    """Return whether a script has recorded a result after a time."""
    return any(path.stat().st_mtime >= since for path in (HERE / "results").glob(f"{Path(script).stem}*.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, default=Path(), metavar="FOLDER", help="has brown.txt, wikitext-2, poems.txt")
    parser.add_argument("--list", action="store_true", help="only show what would run")
    options = parser.parse_args()
    done = DONE.read_text(encoding="utf-8").splitlines() if DONE.exists() else []
    failed = []
    for benchmark in benchmarks():
        script = benchmark.script
        if missing := benchmark.missing(options.corpora):
            print(f"{script}: skipped, as there is no {', no '.join(missing)}")
            continue
        if script in done:
            print(f"{script}: done")
            continue
        left_out = f", without {' and '.join(out)}" if (out := benchmark.left_out()) else ""
        print(f"{script}: {benchmark.duration}{left_out}", flush=True)
        if options.list:
            continue
        started = time.time()
        status = subprocess.run(benchmark.command(options.corpora), check=False).returncode
        print(f"{script}: ended with status {status} after {(time.time() - started) / 60:.0f} min\n", flush=True)
        if status == 0 or has_result(script, started):
            DONE.parent.mkdir(exist_ok=True)
            with DONE.open("a", encoding="utf-8") as file:
                file.write(f"{script}\n")
        else:
            failed.append(script)
    if failed:
        sys.exit(f"without a result: {', '.join(failed)}; the same command tries them again")
    if not options.list and DONE.exists():
        shutil.rmtree(DONE.parent)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped: the same command continues")
