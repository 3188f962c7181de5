"""Claim: with 100,000 words, a training step with a sampled softmax is at least 10 times as fast as an exact one.

A step goes from the embeddings to the update: window 4, m 128, h 256, batch 512, dropout 0.2, Adam, word frequencies as in
text. The sampled softmax, noise-contrastive estimation and the adaptive softmax take turns with the exact loss.

The script also times the sampled step of the network that `fflm train` trains by default (averages of 340 words, m 128, h 512,
tied embeddings, AdamW, clipping) beside its exact step. It prints the words per second, and which share of the machine's
matrix-product rate the products of the step reach.

The script first verifies that a sampled softmax with all words in the sample has the loss and the gradients of the exact
one.
"""

import argparse
import dataclasses
import functools
import itertools
import statistics
import sys
from typing import Any

import numba
import numpy as np
from bengio import bengio_network, random_text
from common import in_turns, machine, parse, quartiles, record, shortfalls, show_verdict
from sampled import trainer
from training_step import default, product_rates

from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.cpu.launching import limit_threads
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.output import Objective
from fflm.network.parameters import Parameters
from fflm.network.subset import Subset, frame, put, take
from fflm.shuffling import shuffled
from fflm.text.windows import Windows
from fflm.training.sampling import Sampler
from fflm.training.settings import TrainingSettings

LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # changes of the network, and of its training settings
    "exact": ({}, {}),
    "sampled": ({}, {"loss": "sampled"}),
    "nce": ({}, {"loss": "nce"}),
    "adaptive": ({"bands": (4000, 20_000)}, {}),
}
WORDS, BATCH = 100_000, 512
DEFAULT_WORDS = 33_000, 100_000
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


def default_steps(rounds: int) -> dict[str, Any]:
    """Time the steps of the default network with the exact loss and with a sampled softmax."""
    rows = {}
    for words in DEFAULT_WORDS:
        size = default(words)
        windows = Windows(random_text(words, 2_000_000, seed=0).ids, size.config.context, padding=words)
        settings = dataclasses.replace(size.settings, epochs=1000)
        sampled = dataclasses.replace(settings, loss="sampled")
        flops = {"exact": size.flops, "sampled": size.flops_of(softmax_words(windows, sampled, words))}
        for threads in sorted({1, numba.config.NUMBA_NUM_THREADS}):
            with limit_threads(threads):
                steps = {
                    loss: functools.partial(next, trainer(size.config, own, windows, None).run())
                    for loss, own in (("exact", settings), ("sampled", sampled))
                }
                rate = product_rates(threads, 5)["fflm"]
                times = in_turns(steps, rounds)
            for loss, seconds in times.items():
                speed, share = (quartiles([count / each for each in seconds]) for count in (BATCH, flops[loss] / rate))
                ratio = quartiles([exact / own for exact, own in zip(times["exact"], seconds, strict=True)])
                rows[f"{loss}, V = {words}, {threads} threads"] = {
                    "seconds": quartiles(seconds),
                    "words_per_second": speed,
                    "share_of_product_rate": share,
                    "faster_than_exact": ratio,
                }
                print(
                    f"  default network, V = {words:,}, {threads} threads: {loss:8} {speed['median']:8,.0f} words per second "
                    f"({speed['low']:,.0f} to {speed['high']:,.0f}), {share['median']:.0%} of the product rate, "
                    f"{ratio['median']:.1f} times as fast as exact"
                )
    return rows


def softmax_words(windows: Windows, settings: TrainingSettings, words: int) -> int:
    """Return over how many words the sampled softmax of a batch is computed, the mean of some batches."""
    sampler, counts = Sampler(windows.counts(words), settings.samples, settings.seed), []
    for step, positions in enumerate(itertools.islice(shuffled(len(windows), BATCH, settings.seed, 0), 10)):
        counts.append(len(sampler.draw(windows.batch(positions)[1], step).words))
    return round(statistics.mean(counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = parse(parser)
    about = machine()
    verify()
    rounds = 3 if options.quick else 15
    rows, default_rows = steps(rounds), default_steps(rounds)
    passed = show_verdict(
        *shortfalls({name: row["faster_than_exact"] for name, row in rows.items() if "sampled" in name}, DEMANDED)
    )
    record("sampled_step", options.quick, about, demanded=DEMANDED, passed=passed, steps=rows, default_steps=default_rows)
    sys.exit(not passed and not options.quick)


if __name__ == "__main__":
    main()
