"""Claim: 50 million tokens are tokenized and trained on with less than 1 GB of memory in addition to the parameters.

The script makes a text of that size by repeating one, runs `fflm tokenize` and then `fflm train` for some time, and measures
the resident memory of the process and of its children (Linux only). Parameters, gradients and moments are subtracted from
the memory of the training. The script verifies that the ids on disk are those of the repeated text.
"""

import argparse
import contextlib
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import FFLM, STORIES, machine, parse, record, resident

from fflm.arrays import CHECKPOINT, LOG, load_arrays
from fflm.text.corpus import Corpus
from fflm.text.settings import TextSettings

LIMIT = 10**9
VALID_TOKENS = 20_000
EVALUATE_EVERY = 500


def family(process: int) -> Iterator[int]:
    """Yield a process and all its descendants."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def watch(arguments: list[str | Path], seconds: float = math.inf) -> dict[str, float]:
    """Run ``fflm``, interrupt it after some seconds as Ctrl-C would, and return its time and its memory, in bytes.

    ``process`` and ``largest_child`` are peaks; ``together`` is the largest sum over all processes at one moment, in which
    shared memory is counted once for each process.
    """
    started = time.monotonic()
    process = subprocess.Popen([*FFLM, *map(str, arguments)], stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    together = 0
    interrupted = False
    while process.poll() is None:
        total = 0
        with contextlib.suppress(OSError, KeyError):  # a process that has just ended
            for member in family(process.pid):
                now, peaks[member] = resident(member)
                total += now
        together = max(together, total)
        if not interrupted and time.monotonic() - started > seconds:
            process.send_signal(signal.SIGINT)
            interrupted = True
        time.sleep(0.02)
    if process.returncode not in ((0, 130) if interrupted else (0,)):
        sys.exit(f"fflm {arguments[0]} failed with code {process.returncode}")
    own = peaks.pop(process.pid)
    return {
        "seconds": time.monotonic() - started,
        "process": own,
        "largest_child": max(peaks.values(), default=0),
        "children": len(peaks),
        "together": max(together, own),
    }


def show(name: str, memory: dict[str, float]) -> None:
    print(
        f"{name}: {memory['seconds']:.1f} s; peak memory {memory['process'] / 1e6:.0f} MB in the process, "
        f"{memory['largest_child'] / 1e6:.0f} MB in the largest of {memory['children']} children, "
        f"{memory['together'] / 1e6:.0f} MB together"
    )


def write_text(file: Path, text: str, settings: TextSettings, tokens: int) -> int:
    """Write a text to a file, repeatedly until it has a number of tokens; return the number of repetitions."""
    once = len(settings.tokens(settings.tokenizer.normalize(text)))
    repetitions = math.ceil(tokens / once)
    with file.open("w", encoding="utf-8", newline="\n") as large:
        for _ in range(repetitions):
            large.write(text)
    print(f"text: {once:,} tokens {repetitions:,} times, {file.stat().st_size / 1e6:.0f} MB")
    return repetitions


def tokenize(file: Path, ids: Path, expected_text: str, repetitions: int, settings: TextSettings) -> dict[str, Any]:
    """Tokenize a file and verify the ids on disk; return the figures.

    Parameters
    ----------
    file, ids
        The file, and the folder of the corpus that is made.
    expected_text, repetitions
        The text that the file has, and how often it is repeated.
    settings
        How the text is read.
    """
    figures = watch(["tokenize", file, "-o", ids, "--valid", VALID_TOKENS, "--quiet"])
    show("tokenize", figures)
    corpus = Corpus.open(ids)
    expected = settings.encode_text(expected_text, corpus.vocabulary)
    tokens = sum(part.tokens for part in corpus.parts.values())
    whole = np.concatenate([corpus.parts["train"].ids[:], corpus.parts["valid"].ids[:]])
    if not np.array_equal(whole, np.tile(expected.astype(whole.dtype), repetitions)):
        sys.exit("the ids on disk are not those of the text")
    print(f"          {tokens:,} tokens, {tokens / figures['seconds']:,.0f} per second; the ids on disk are verified")
    return {"tokens": tokens, "bytes": file.stat().st_size, "vocabulary": len(corpus.vocabulary), "tokenize": figures}


def train(ids: Path, model: Path, seconds: float) -> dict[str, Any]:
    """Train on a corpus for some seconds; return the figures."""
    figures = watch(["train", ids, "-o", model, "--evaluate-every", EVALUATE_EVERY, "--quiet"], seconds)
    arrays, checkpoint = load_arrays(model / CHECKPOINT)
    network = sum(array.nbytes for array in arrays.values())  # parameters and moments
    network += sum(array.nbytes for name, array in arrays.items() if name.startswith("parameters."))  # and gradients
    state = checkpoint["state"]
    evaluations = (model / LOG).read_text(encoding="utf-8").count('"evaluation"')
    rate = state["words"] / state["seconds"]
    beyond = figures["together"] - network
    show("train", figures)
    print(f"       {state['words']:,} tokens, {rate:,.0f} per second; {evaluations} evaluations")
    print(f"       parameters, gradients and moments {network / 1e6:.0f} MB, other memory {beyond / 1e6:.0f} MB")
    return {
        "train": figures,
        "parameters_gradients_moments": network,
        "train_beyond_them": beyond,
        "train_tokens": state["words"],
        "train_tokens_per_second": rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="?", default=STORIES, help="the text that is repeated [default: the stories]")
    parser.add_argument("--tokens", type=int, default=50_000_000, help="length of the text [default: %(default)s]")
    parser.add_argument(
        "--seconds", type=float, default=120, help="duration of training, with start and compiling [default: %(default)s]"
    )
    options = parse(parser)
    tokens, seconds = (2_000_000, 15.0) if options.quick else (options.tokens, options.seconds)
    about = machine()
    text = options.text.read_text(encoding="utf-8").rstrip("\n") + "\n"
    settings = TextSettings()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, ids, model = folder / "large.txt", folder / "large.ids", folder / "large.model"
        repetitions = write_text(file, text, settings, tokens)
        result = tokenize(file, ids, text, repetitions, settings)
        result |= train(ids, model, seconds)
    passed = result["tokenize"]["together"] < LIMIT and result["train_beyond_them"] < LIMIT
    print(f"{'both are' if passed else 'NOT both are'} below {LIMIT / 1e6:.0f} MB")
    record("large_corpus", options.quick, about, **result, limit=LIMIT, passed=passed)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
