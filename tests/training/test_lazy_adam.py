"""Lazy updates of Adam: rows catch up on the steps that did not touch them."""

import dataclasses

import numpy as np
import pytest

from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.protocol import StepNumbers
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.network.subset import Subset
from fflm.training.lazy_adam import LazyAdam
from fflm.training.settings import TrainingSettings

SEED = 3
CONFIG = NetworkConfig(8, 1, 8, (), averages=(), tied=False, dropout=0.0, embedding_dropout=0.0)
SETTINGS = TrainingSettings(
    epochs=4, batch_size=16, optimizer="adam", rate=0.02, weight_decay=0.0, clip=0.0, patience=0, exact_end=0.0, seed=SEED
)


@pytest.mark.parametrize("tied", [False, True])
def test_lazy_adam_catches_up_on_decay_and_moments(tied):
    """Whenever rows are touched, their weights and moments have decayed in all steps in the end."""
    config = dataclasses.replace(CONFIG, vocabulary=30, tied=tied)
    arrays = [Parameters.random(config, 1, np.float64), *(Parameters.zeros(config, np.float64) for _ in range(2))]
    for name, array in arrays[2].items():  # so large that the first moment does not move the weights
        array[...] = 1e30 if name == "embeddings" else 1e28
    for array in arrays[1]:
        array[...] = 1
    memory, gradients = (Parameters.zeros(config, np.float64) for _ in range(2))
    start = [{name: array.copy() for name, array in part.items()} for part in arrays]
    settings = dataclasses.replace(SETTINGS, optimizer="adamw", weight_decay=0.5, loss="sampled")
    backend, lazy, kept = Network(config, CpuBackend()).backend, LazyAdam(arrays[0], tuple(arrays[1:]), settings), 1.0
    generator = np.random.default_rng(0)
    for step in range(20):
        rate = generator.uniform(0, 0.4)
        kept *= 1 - rate * 0.5
        if step == 12:  # this step touches all rows
            lazy.catch_up_all(backend, rate)
            subset = None
            for factor, part in zip((1 - rate * 0.5, 0.9, 0.999), arrays, strict=True):
                for name, array in part.items():
                    if part is not arrays[0] or not name.endswith("bias"):
                        array *= factor
        else:
            targets = generator.integers(0, 30, 3, np.int32)
            subset = Subset(config, generator.integers(0, 31, (3, 1), np.int32), targets, np.unique(targets))
            skipped, numbers = lazy.skipped(rate, subset), StepNumbers(step, rate, rate * 0.5)
            part = lazy.take(backend, memory, subset.places, skipped)
            lazy.update(backend, part, gradients, subset.places, skipped, scale=np.ones(1), numbers=numbers)
        lazy.step(rate, subset)
        if step == 15:
            done = lazy.done
            lazy = LazyAdam(arrays[0], tuple(arrays[1:]), settings)
            lazy.restore({f"done.{name}": rows for name, rows in done.items()})
    lazy.catch_up_all(backend, 0.1)
    for part, before, factor in zip(arrays, start, (kept, 0.9**20, 0.999**20), strict=True):
        for name, array in part.items():
            expected = before[name] * (1 if part is arrays[0] and name.endswith("bias") else factor)
            np.testing.assert_allclose(array, expected, rtol=1e-9, atol=1e-12)
