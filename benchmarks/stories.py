"""Claim: training on the bundled stories takes less than two minutes on two cores, including compiling.

The script runs the first example of the README as a new user would, with an empty cache of compiled kernels. Then it
continues a few prefixes with the model, for the reader to judge; only the time is checked.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import FFLM, STORIES, machine, parse, record

from fflm.cli.report import describe_perplexity
from fflm.models.neural.model import NeuralModel

LIMIT_SECONDS = 120.0
PREFIXES = ("The cat", "Once there was", "Grandmother said", '"I am')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = parse(parser)
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "stories.model"
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(Path(folder) / "kernels")}
        command = [*FFLM, "train", str(STORIES), "-o", str(model), *(["--epochs", "3"] if options.quick else [])]
        started = time.monotonic()
        moments = {}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as process:
            assert process.stderr
            for line in process.stderr:
                print(f"{time.monotonic() - started:7.1f} s  {line}", end="")
                if found := re.match(r"network|epoch", line):
                    moments[found[0]] = time.monotonic() - started
        total = time.monotonic() - started
        if process.returncode:
            sys.exit("fflm train failed")
        reading, compiled = moments["network"], moments["epoch"]  # the table's head is printed when training starts
        parts = {"start_and_reading": reading, "compiling": compiled - reading, "training": total - compiled}
        listed = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in parts.items())
        print(f"\n{total:.1f} s in all: {listed}")
        figures = NeuralModel.load(model).about["figures"]
        print(f"valid: {describe_perplexity(figures['valid'])}\n")
        continuations = []
        for prefix in PREFIXES:
            generate = [*FFLM, "generate", "--model", str(model), "--prefix", prefix, "--seed", "1", "--length", "40"]
            generate += ["--temperature", "0.7"]
            process = subprocess.run(generate, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            continuations.append(process.stdout.rstrip("\n"))
            print(continuations[-1], end="\n\n")
    passed = total < LIMIT_SECONDS
    print(f"{'under' if passed else 'NOT under'} two minutes")
    record(
        "stories",
        options.quick,
        about,
        seconds=total,
        parts=parts,
        figures=figures,
        continuations=continuations,
        passed=passed,
    )
    sys.exit(not passed)


if __name__ == "__main__":
    main()
