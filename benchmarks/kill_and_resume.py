"""Claim: a training run that is killed at any moment and resumed ends with exactly the weights of an uninterrupted run.

The script trains on the stories once without interruption. Then it trains again with 20 kills (SIGKILL) at random moments,
which may be before training has started, and resumes after each. The weights, the best weights so far, the moments of the
optimizer and the figures are compared bit for bit.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import FFLM, STORIES, machine, parse, record

from fflm.arrays import CHECKPOINT, WEIGHTS, load_arrays

SETTINGS = ["--embedding", "16", "--hidden", "32", "--batch-size", "64", "--patience", "0", "--evaluate-every", "100"]
SAVE_SECONDS = "0.2"


def start(model: Path, epochs: int) -> subprocess.Popen[bytes]:
    """Start the run, or resume it if it has a checkpoint."""
    new = [STORIES, "-o", model, *SETTINGS, "--epochs", epochs]
    what = ["--resume", model] if (model / CHECKPOINT).exists() else new
    command = [*FFLM, "train", *map(str, what), "--quiet", "--save-every", SAVE_SECONDS]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def state(model: Path) -> dict[str, Any]:
    """Return the state of training in the run's checkpoint."""
    return load_arrays(model / CHECKPOINT)[1]["state"] if (model / CHECKPOINT).exists() else {"step": 0}


def differences(model: Path, other: Path) -> list[str]:
    """Return what differs between two models."""
    found = []
    for file in (WEIGHTS, CHECKPOINT):
        (arrays, about), (others, other_about) = load_arrays(model / file), load_arrays(other / file)
        if file == WEIGHTS and about != other_about:
            found.append("the figures")
        for name in arrays.keys() | others.keys():
            if name not in arrays or name not in others or not np.array_equal(arrays[name], others[name]):
                found.append(f"{name} in {file}")
    return found


class Course(NamedTuple):
    """The course of an uninterrupted run: the seconds until its first step, those in all, and the number of its steps."""

    before: float
    seconds: float
    steps: int


def uninterrupted(model: Path, epochs: int) -> Course:
    """Train without interruption."""
    started = time.monotonic()
    process = start(model, epochs)
    while process.poll() is None and not state(model)["step"]:
        time.sleep(0.01)
    before = time.monotonic() - started
    if process.wait():
        sys.exit("the uninterrupted run failed")
    return Course(before, time.monotonic() - started, state(model)["step"])


def kill_after(model: Path, epochs: int, seconds: float) -> list[str]:
    """Start or resume a run and kill it after some seconds; return the names of the temporary files that it leaves."""
    process = start(model, epochs)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    else:
        sys.exit(f"the run ended by itself (exit status {process.returncode}): more --epochs give more time")
    return sorted(path.name for path in model.rglob("*.tmp"))


def killed_repeatedly(model: Path, epochs: int, course: Course, waits: Sequence[float]) -> list[dict[str, Any]]:
    """Train with kills, then without until the end; return what was found after each kill.

    Parameters
    ----------
    model, epochs
        The folder of the run, and the number of its epochs.
    course
        That of an uninterrupted run.
    waits
        For each kill, a random number from 0 to 1: how long to wait for it, relative to the longest wait.
    """
    rows: list[dict[str, Any]] = []
    for kill, wait in enumerate(waits):
        if state(model).get("finished"):
            sys.exit(f"the run has ended after {kill} kills: more --epochs give more time")
        # The remaining time is divided by the number of kills to come and one more. The wait is up to 1.5 times this share.
        rest = (course.seconds - course.before) * (1 - state(model)["step"] / course.steps)
        seconds = wait * (course.before + 1.5 * rest / (len(waits) - kill + 1))
        left = kill_after(model, epochs, seconds)
        rows.append({"seconds": seconds, "step_saved": state(model)["step"], "left_over": len(left)})
        print(f"{kill + 1:4}  {seconds:8.2f}  {rows[-1]['step_saved']:10,}  {', '.join(left)}")
    if start(model, epochs).wait():
        sys.exit("the last resumed run failed")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="number of kills [default: %(default)s]")
    parser.add_argument("--epochs", type=int, default=30, help="number of epochs [default: %(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="random seed of the moments [default: %(default)s]")
    options = parse(parser)
    kills, epochs = (4, 5) if options.quick else (options.kills, options.epochs)
    about = machine()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole.model", Path(folder) / "killed.model"
        if start(Path(folder) / "first.model", 1).wait():  # compiles the kernels
            sys.exit("training failed")
        course = uninterrupted(whole, epochs)
        print(f"uninterrupted: {course.steps:,} steps in {course.seconds:.1f} s")
        print("\nkill  after, s  step saved  files left over")
        rows = killed_repeatedly(killed, epochs, course, [moments.random() for _ in range(kills)])
        different = differences(killed, whole)
        left = len(list(killed.rglob("*.tmp")))
    resumed = sum(row["step_saved"] > 0 for row in rows)
    print(f"\n{kills} kills, {resumed} of them after training had started; {left} temporary files left at the end")
    print(f"DIFFERENT: {', '.join(different)}" if different else "weights, moments and figures are equal, bit for bit")
    record(
        "kill_and_resume",
        options.quick,
        about,
        settings=SETTINGS,
        epochs=epochs,
        save_seconds=float(SAVE_SECONDS),
        steps=course.steps,
        seconds=course.seconds,
        kills=rows,
        different=different,
    )
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
