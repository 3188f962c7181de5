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
from pathlib import Path
from typing import Any

import numpy as np
from common import FFLM, STORIES, machine, parse, record

from fflm.arrays import CHECKPOINT, WEIGHTS, load_arrays

SETTINGS = ["--embedding", "16", "--hidden", "32", "--batch-size", "64", "--patience", "0", "--evaluate-every", "100"]
SAVE_SECONDS = "0.2"


def start(model: Path, epochs: int) -> subprocess.Popen[bytes]:
    """Begin the run, or go on with it if there is anything to go on with."""
    new = [STORIES, "-o", model, *SETTINGS, "--epochs", epochs]
    what = ["--resume", model] if (model / CHECKPOINT).exists() else new
    command = [*FFLM, "train", *map(str, what), "--quiet", "--save-every", SAVE_SECONDS]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def state(model: Path) -> dict[str, Any]:
    """Return where the run stands according to its checkpoint."""
    return load_arrays(model / CHECKPOINT)[1]["state"] if (model / CHECKPOINT).exists() else {"step": 0}


def differences(model: Path, other: Path) -> list[str]:
    """Name what differs between two models."""
    found = []
    for file in (WEIGHTS, CHECKPOINT):
        (arrays, about), (others, other_about) = load_arrays(model / file), load_arrays(other / file)
        if file == WEIGHTS and about != other_about:
            found.append("the figures")
        for name in arrays.keys() | others.keys():
            if name not in arrays or name not in others or not np.array_equal(arrays[name], others[name]):
                found.append(f"{name} in {file}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    options = parse(parser)
    kills, epochs = (4, 5) if options.quick else (options.kills, options.epochs)
    about = machine()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole.model", Path(folder) / "killed.model"
        if start(Path(folder) / "first.model", 1).wait():  # compiles the kernels
            sys.exit("training failed")
        started = time.monotonic()
        process = start(whole, epochs)
        while process.poll() is None and not state(whole)["step"]:
            time.sleep(0.01)
        before = time.monotonic() - started
        if process.wait():
            sys.exit("the uninterrupted run failed")
        seconds, steps = time.monotonic() - started, state(whole)["step"]
        print(f"uninterrupted: {steps:,} steps in {seconds:.1f} s\n\nkill  after, s  step saved  files left over")
        rows = []
        for kill in range(kills):
            if state(killed).get("finished"):
                sys.exit(f"the run has ended after {kill} kills: more --epochs give more time")
            # At most twice what leaves as much for each kill to come and for the end, less a quarter.
            rest = (seconds - before) * (1 - state(killed)["step"] / steps)
            wait = moments.uniform(0, before + 1.5 * rest / (kills - kill + 1))
            process = start(killed, epochs)
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            else:
                sys.exit(f"the run ended by itself after {kill} kills (code {process.returncode}): more --epochs give more time")
            left = sorted(path.name for path in killed.rglob("*.tmp"))
            rows.append({"seconds": wait, "step_saved": state(killed)["step"], "left_over": len(left)})
            print(f"{kill + 1:4}  {wait:8.2f}  {rows[-1]['step_saved']:10,}  {', '.join(left)}")
        if start(killed, epochs).wait():
            sys.exit("the last resumed run failed")
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
        steps=steps,
        seconds=seconds,
        kills=rows,
        different=different,
    )
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
