"""Claim: with 100,000 words, a training step with a sampled softmax is at least 10 times as fast as an exact one.

A step goes from the embeddings to the update: window 4, m 128, h 256, batch 512, dropout 0.2, Adam, word frequencies as in
text. The sampled softmax, noise-contrastive estimation and the adaptive softmax take turns with the exact loss.

The script first verifies that a sampled softmax with all words in the sample has the loss and the gradients of the exact
one.
"""

import argparse
import dataclasses
import functools
import sys
from typing import Any

import numba
import numpy as np
from bengio import bengio_network, random_text
from common import in_turns, machine, parse, quartiles, record, show_verdict
from sampled import trainer

from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.cpu.launching import limit_threads
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.output import Objective
from fflm.network.parameters import Parameters
from fflm.network.subset import Subset, frame, put, take
from fflm.training.settings import TrainingSettings

LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # changes of the network, and of its training settings
    "exact": ({}, {}),
    "sampled": ({}, {"loss": "sampled"}),
    "nce": ({}, {"loss": "nce"}),
    "adaptive": ({"bands": (4000, 20_000)}, {}),
}
WORDS, BATCH = 100_000, 512
DEMANDED = 10.0


def verify() -> None:
    """Exit unless a sampled softmax over all words has the loss and the gradients of the exact one."""
    config = NetworkConfig(500, 3, 8, (16,), averages=(), tied=False)
    network, generator = Network(config, CpuBackend()), np.random.default_rng(0)
    parameters = Parameters.random(config, 1, np.float64)
    contexts, targets = generator.integers(0, 500, (64, 3), np.int32), generator.integers(0, 500, 64, np.int32)
    exact, losses = Parameters.zeros(config, np.float64), np.empty((2, 64))
    network.gradients(parameters, contexts, targets, exact, losses[0])
    subset = Subset(config, contexts, targets, np.arange(500, dtype=np.int32))
    part = take(network.backend, parameters, Parameters.zeros(config, np.float64), subset.places)
    gradients = frame(Parameters.zeros(config, np.float64), Parameters.zeros(config, np.float64), subset.places)
    objective = Objective(offsets=np.zeros(500))
    network.gradients(part, subset.contexts, subset.targets, gradients, losses[1], objective=objective)
    found = Parameters.zeros(config, np.float64)
    put(network.backend, gradients, found, subset.places)
    pairs = [losses, *zip(exact, dataclasses.replace(gradients, embeddings=found.embeddings), strict=True)]
    if not all(np.allclose(left, right, rtol=1e-9, atol=1e-12) for left, right in pairs):
        sys.exit("a sampled softmax over all words is not the exact one: nothing was timed")


def steps(rounds: int) -> dict[str, Any]:
    """Time a step of each loss with a large vocabulary. Word frequencies follow Zipf's law."""
    windows, config = random_text(WORDS, 2_000_000, seed=0), bengio_network(WORDS)
    settings = TrainingSettings(epochs=1000, batch_size=BATCH, optimizer="adam", weight_decay=0.0, clip=0.0, rate=1e-3)
    rows = {}
    for threads in sorted({1, numba.config.NUMBA_NUM_THREADS}):
        with limit_threads(threads):
            contenders = {}
            for loss, (shape, changes) in LOSSES.items():
                own, fields = dataclasses.replace(config, **shape), dataclasses.replace(settings, **changes)
                contenders[loss] = functools.partial(next, trainer(own, fields, windows, None).run())
            times = in_turns(contenders, rounds)
        for loss, seconds in times.items():
            ratio = quartiles([exact / own for exact, own in zip(times["exact"], seconds, strict=True)])
            rows[f"{loss}, {threads} threads"] = {"seconds": quartiles(seconds), "faster_than_exact": ratio}
            print(
                f"  V = {WORDS:,}, {threads} threads: {loss:8} {1000 * quartiles(seconds)['median']:7.1f} ms per step, "
                f"{ratio['median']:.1f} times as fast as exact ({ratio['low']:.1f} to {ratio['high']:.1f})"
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = parse(parser)
    about = machine()
    verify()
    rows = steps(3 if options.quick else 15)
    missed = [name for name, row in rows.items() if row["faster_than_exact"]["median"] < DEMANDED and "sampled" in name]
    show_verdict(missed)
    record("sampled_step", options.quick, about, demanded=DEMANDED, passed=not missed, steps=rows)
    sys.exit(bool(missed) and not options.quick)


if __name__ == "__main__":
    main()
