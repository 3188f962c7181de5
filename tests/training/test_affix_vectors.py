"""Training with vectors of affixes, compared with a reference in NumPy and with finite differences."""

import dataclasses

import numpy as np
import pytest
import reference
from tolerances import FLOAT64, NETWORK, assert_close

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.text.windows import Windows
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

WORDS, COUNT = 300, 40
CONFIG = NetworkConfig(WORDS, 2, 5, (6,), "tanh", averages=(), tied=True, dropout=0.0, embedding_dropout=0.0)
TEXT = np.random.default_rng(0).zipf(1.2, 260).clip(1, WORDS).astype(np.uint16) - np.uint16(1)
SETTINGS = TrainingSettings(
    epochs=1, batch_size=130, optimizer="sgd", rate=0.5, schedule="constant", clip=0.0, weight_decay=0.0, patience=0, affixes=True
)


def affixes():
    """Return the affixes of words, of which a word has none to four."""
    generator = np.random.default_rng(2)
    rows = np.full((WORDS + 1, 4), -1, np.int32)
    for row in rows[:-1]:
        own = generator.choice(COUNT, generator.integers(0, 5), replace=False)
        row[: len(own)] = own
    rows[0] = -1
    rows[1, 0] = COUNT - 1
    return rows


def matrix(rows):
    """Return how much of each affix's vector is added to the embedding of each word: (V + 1, A)."""
    shares = np.zeros((len(rows), COUNT))
    for share, row in zip(shares, rows, strict=True):
        own = row[row >= 0]
        share[own] = 1 / max(1, len(own))
    return shares


def trainer(settings=SETTINGS, threads=2):
    start = Parameters.random(CONFIG, 1, np.float64)
    for array in start:
        array *= 3
    run = Trainer(Network(CONFIG, CpuBackend(threads)), start, Windows(TEXT, 2, padding=WORDS), None, settings, affixes=affixes())
    run.parameters.affixes[...] = np.random.default_rng(3).normal(0, 0.3, run.parameters.affixes.shape)
    return run


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_equal_finite_differences(threads):
    """Those of the vectors of words and of affixes, which one step of gradient descent shows."""
    run, shares = trainer(threads=threads), matrix(affixes())
    before = {name: array.copy() for name, array in run.parameters.items()}
    batches = []
    run.train.batch = lambda positions, batch=run.train.batch: batches.append(batch(positions)) or batches[-1]
    next(run.run())
    contexts, targets = batches[0]
    case = {**reference.PLAIN, "vocabulary": WORDS, "window": 2, "embedding": 5, "hidden": (6,), "tied": True}

    def loss(vectors, of_affixes):
        summed = {**before, "embeddings": vectors + shares @ of_affixes}
        return reference.network_losses(summed, contexts, targets, case).mean()

    own, shared = before["embeddings"], before["affixes"]
    found = {name: (before[name] - array) / SETTINGS.rate for name, array in run.parameters.items()}
    generator = np.random.default_rng(4)
    for name in ("embeddings", "affixes"):
        for _ in range(5):
            direction, step = generator.normal(size=before[name].shape), 1e-5
            moves = [direction * step if name == "embeddings" else 0, direction * step if name == "affixes" else 0]
            slope = (loss(own + moves[0], shared + moves[1]) - loss(own - moves[0], shared - moves[1])) / (2 * step)
            assert slope == pytest.approx(float((found[name] * direction).sum()), rel=1e-6, abs=1e-9)
    summed = {**before, "embeddings": own + shares @ shared}
    expected = reference.network_gradients(summed, contexts, targets, case)
    assert_close(found["embeddings"], expected["embeddings"], NETWORK[FLOAT64], unit=1.0)
    assert_close(found["affixes"], shares.T @ expected["embeddings"], NETWORK[FLOAT64], unit=1.0)


@pytest.mark.parametrize(
    "fields",
    [{}, {"momentum": 0.9}, {"optimizer": "adam", "rate": 0.05}, {"optimizer": "adagrad", "rate": 0.2}],
    ids=["sgd", "momentum", "adam", "adagrad"],
)
def test_sample_of_all_words_trains_as_the_exact_loss_does(fields):
    """A step that takes the rows of the words out of the arrays must leave the same numbers as one that uses all of them."""
    settings = dataclasses.replace(SETTINGS, epochs=3, batch_size=len(TEXT), **fields)  # each step uses the padding, too
    exact = trainer(settings)
    sampled = trainer(dataclasses.replace(settings, loss="sampled", samples=10**6))
    for run in (exact, sampled):
        list(run.run())
    for array, expected in zip(sampled.network_parameters(), exact.network_parameters(), strict=True):
        assert_close(array, expected, 1e-8, unit=1.0)
    assert_close(sampled.parameters.affixes, exact.parameters.affixes, 1e-8, unit=1.0)


def test_sampled_step_moves_the_embeddings_of_words_that_it_does_not_use():
    """They share affixes with words that it uses."""
    run = trainer(dataclasses.replace(SETTINGS, batch_size=4, loss="sampled", samples=2))
    before = run.network_parameters().embeddings.copy()
    own = run.parameters.embeddings.copy()
    next(run.run())
    moved = (run.network_parameters().embeddings != before).any(axis=1)
    used = (run.parameters.embeddings != own).any(axis=1)
    assert 0 < used.sum() < 30 < moved.sum() < WORDS
    assert not moved[-1] or used[-1]
