"""The first hour with a GPU, in calls of under ten minutes: whether everything works, whether it is right, and its speed.

The parts, in the order in which they are run; each is a command with a limit of time:

- ``versions``: the GPU, its driver, clocks and power, and the versions of CUDA, Python and the packages;
- ``operations``: the operations of all precisions, and with wgmma, compared with float64;
- ``tests-fp32``, ``tests-mixed``: the numerical tests on the GPU, and those of the CUDA backend;
- ``large``: the softmax at 33,279 to 1,000,000 words, compared with float64, and whether its bits repeat;
- ``memcheck``, ``racecheck``: compute-sanitizer over small training steps in mixed precision; with ``-wgmma``, with this
  instruction, which needs compute capability 9.0;
- ``steps``: training steps, as graphs and with single launches, beside PyTorch's;
- ``training``: if ``--brown`` is given, training to the same perplexity;
- ``ncu-fp32``, ``ncu-mixed``, ``ncu-wgmma``, ``ncu-tf32``: the profiler's counters of the five products of a training step.

The output of a part is written to NAME.log in the folder of results while it runs, and its exit status and duration to NAME.json.
Parts that succeeded, or whose program is missing, are not run again by the same command. ``operations``, ``large``, ``steps`` and
``training`` are parts of `gpu.py`, which keeps its results in the folder ``gpu``, so that a part that ran out of time continues.

The script needs a GPU and numba-cuda; the tests need pytest and hypothesis. ``--fake`` runs everything on the fake CUDA driver,
at small sizes and without limits for the parts, which tests the script itself.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, TextIO

from bengio import WINDOW, bengio_network, random_text
from common import ROOT
from gpu import TESTS, open_backend

from fflm.files import write_json

TOOLKIT = Path("/usr/local/cuda")
"""The folder of the CUDA toolkit, in which numba-cuda finds libNVVM if ``CUDA_HOME`` names it."""

FAKE = [str(ROOT / "tests" / "support" / "fake_cuda.py")]
"""A program that runs another Python program on the fake CUDA driver."""

PACKAGES = ("numpy", "scipy", "numba", "numba-cuda", "cuda-bindings", "cuda-core", "cuda-toolkit", "torch", "pytest")
COUNTERS = ["--clock-control", "none", "--set", "detailed", "--kernel-name", "regex:product", "--launch-count", "5", "--csv"]


class Part(NamedTuple):
    """A part: a command and its limit in seconds."""

    seconds: int
    command: list[str]


def parts_of(options: argparse.Namespace) -> dict[str, Part]:
    """Return all parts by their names."""
    python = [sys.executable, *(FAKE if options.fake else [])]
    pytest = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--device", "ptx" if options.fake else "cuda"]
    gpu = [*python, str(ROOT / "benchmarks" / "gpu.py"), "--results", str(options.results / "gpu"), "--parts"]
    one, tests = [*python, __file__, "--step"], {precision: list(TESTS[precision]) for precision in TESTS}
    small, full = ["60", "9", "20", "1"], ["50000", "256", "8192", "1"]  # words, hidden units, batch, steps
    sizes = ["60x9x20"] if options.fake else ["50000x256x8192", "10000x256x1024"]
    if options.fake:
        full, gpu = small, [*gpu[:-1], "--quick", "--large", "70x9x33", "--parts"]
        tests = {precision: [TESTS[precision][0], "-k", "single_row"] for precision in TESTS}
    parts = {
        "versions": Part(60, [*python, __file__, "--versions"]),
        "operations": Part(120, [*gpu, "operations"]),
        "tests-fp32": Part(300, [*pytest, *tests["fp32"]]),
        "large": Part(400, [*gpu, "large"]),
        "steps": Part(300, [*gpu, "limits", "steps", "--sizes", *sizes]),
        "tests-mixed": Part(240, [*pytest, "--precision", "mixed", *tests["mixed"]]),
    }
    for tool in ("memcheck", "racecheck"):
        checked = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1"]
        size = small if options.fake else ["300", "40", "140", "2"]
        parts[tool] = Part(120, [*checked, *one, "mixed", *size])
        parts[f"{tool}-wgmma"] = Part(120, [*checked, *one, "wgmma", *size])
    for precision in ("fp32", "mixed", "wgmma", "tf32"):
        parts[f"ncu-{precision}"] = Part(120, ["ncu", *COUNTERS, *one, precision, *full])
    if options.brown:
        parts["training"] = Part(570, [*gpu, "training", "--brown", str(options.brown)])
    return parts


def run_part(name: str, command: list[str], folder: Path, seconds: float) -> None:
    """Run the command of a part for at most a number of seconds; write its output and its result to the folder."""
    started, log = time.monotonic(), folder / f"{name}.log"
    with log.open("w") as output:
        status = run_command(command, output, seconds)
    taken = time.monotonic() - started
    write_json(folder / f"{name}.json", {"status": status, "seconds": taken, "command": command})
    last = "".join(log.read_text(errors="replace").splitlines()[-1:])
    print(f"{name}: {status}, {taken:.0f} s; {last[:200]}", flush=True)


def run_command(command: list[str], output: TextIO, seconds: float) -> int | str:
    """Run a command with an output; return its exit status, ``out of time`` or, if there is no such program, ``missing``."""
    if not shutil.which(command[0]):
        print(f"{command[0]} is missing", file=output)
        return "missing"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    if TOOLKIT.is_dir():
        environment.setdefault("CUDA_HOME", str(TOOLKIT))
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with what the command has started
        process.wait()
        return "out of time"


def is_done(name: str, folder: Path) -> bool:
    """Return whether a part has succeeded, or its program is missing."""
    path = folder / f"{name}.json"
    return path.exists() and json.loads(path.read_text())["status"] in (0, "missing")


def print_versions() -> None:
    """Print the versions of everything that a result depends on, and the state of the GPU."""
    from fflm.backend.devices import describe_device, why_no_gpu

    print(f"Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} processors")
    for package in PACKAGES:
        try:
            print(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            print(package, "is missing")
    for command in (["nvidia-smi", "-q", "-d", "CLOCK,POWER,MEMORY,PERFORMANCE"], ["nvcc", "--version"], ["nvidia-smi"]):
        if shutil.which(command[0]):
            print(subprocess.run(command, capture_output=True, text=True).stdout)
        else:
            print(command[0], "is missing")
    if reason := why_no_gpu():
        sys.exit(f"no GPU can be used: {reason}")
    print(describe_device("cuda"))


def train_steps(name: str, words: int, hidden: int, batch: int, steps: int) -> None:
    """Train Bengio's network on random text for some steps, with a backend of `gpu.open_backend`; print the loss of each."""
    from fflm.network.feedforward import Network
    from fflm.network.parameters import Parameters
    from fflm.training.settings import TrainingSettings
    from fflm.training.trainer import Trainer

    config, windows = bengio_network(words, hidden), random_text(words, 4 * batch + WINDOW, seed=1)
    network = Network(config, open_backend(name))
    settings = TrainingSettings(epochs=10**6, batch_size=batch)
    events = Trainer(network, Parameters.random(config, 1), windows, None, settings).run()
    for _ in range(steps):
        print(next(events))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="parts to run [default: all]")
    parser.add_argument("--results", type=Path, default=Path("first_hour.work"), help="folder of results [default: %(default)s]")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no part that could end after this time [default: 9]")
    parser.add_argument("--brown", type=Path, help="brown.txt, for training")
    parser.add_argument("--fake", action="store_true", help="use the fake CUDA driver, and small sizes")
    parser.add_argument("--versions", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--step", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.versions:
        print_versions()
    elif options.step:
        train_steps(options.step[0], *map(int, options.step[1:]))
    else:
        run_parts(parser, options)


def run_parts(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Run the chosen parts that have not been run, until the time is over."""
    options.results = options.results.resolve()
    options.results.mkdir(parents=True, exist_ok=True)
    parts, started = parts_of(options), time.monotonic()
    if unknown := set(options.parts or ()) - set(parts):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    todo = [name for name in options.parts or parts if not is_done(name, options.results)]
    for name in todo:
        left = 60 * options.minutes - (time.monotonic() - started)
        if name != todo[0] and parts[name].seconds > left:
            print(f"{name}: may take {parts[name].seconds} s, which are not left; run the same command again to continue")
            break
        run_part(name, parts[name].command, options.results, left if options.fake else min(left, parts[name].seconds))


if __name__ == "__main__":
    main()
