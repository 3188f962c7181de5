"""Sampled losses: the sample, and training with them."""

import dataclasses

import numpy as np
import pytest
import reference

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.text.windows import Windows
from fflm.training.checkpoints import Checkpoint
from fflm.training.events import Evaluation, Finished, Step
from fflm.training.sampling import Sampler
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

SEED = 3
COUNTS = np.array([50, 30, 0, 10, 5, 3, 1, 1])


# The sample.


def test_sample_contains_targets_and_drawn_words():
    sampler, targets = Sampler(COUNTS, 40, SEED), np.array([7, 2, 2], np.int32)
    sample = sampler.draw(targets, 5)
    assert (np.diff(sample.words) > 0).all()
    assert {2, 7} <= set(sample.words.tolist())
    assert sample.draws.sum() == 40
    assert set(sample.words[sample.draws == 0].tolist()) <= {2, 7}
    again, other = sampler.draw(targets, 5), sampler.draw(targets, 6)
    assert np.array_equal(sample.draws, again.draws)
    assert not (len(sample.words) == len(other.words) and np.array_equal(sample.draws, other.draws))


@pytest.mark.slow
def test_words_are_drawn_with_stated_probabilities():
    sampler, rounds = Sampler(COUNTS, 6, SEED), 20_000
    shares = (COUNTS + 1) / (COUNTS + 1).sum()
    draws, seen = np.zeros(8), np.zeros(8)
    generator = np.random.default_rng(0)
    for step in range(rounds):
        targets = generator.choice(8, 4, p=shares).astype(np.int32)  # the last three are the targets of other examples
        sample = sampler.draw(targets[1:], step)
        np.add.at(draws, sample.words, sample.draws)
        seen[sample.words] += 1
    whole = sampler.draw(np.arange(8, dtype=np.int32), 0)
    np.testing.assert_allclose(draws / rounds, np.exp(whole.log_draws), atol=0.05)
    np.testing.assert_allclose(whole.log_draws, np.log(6 * shares))
    four = sampler.draw(np.zeros(4, np.int32), 0)
    np.testing.assert_allclose(seen[four.words] / rounds, np.exp(four.log_chances), atol=0.02)


# Training.

CONFIG = NetworkConfig(8, 1, 8, (), averages=(), tied=False, dropout=0.0, embedding_dropout=0.0)
CHAIN = np.random.default_rng(1).dirichlet(np.full(8, 0.7), 8)
"""The probabilities p(word | previous word), (8, 8)."""


def markov_chain(length):
    """Return the ids (length + 1,) of a text drawn from the Markov chain `CHAIN`."""
    generator, words = np.random.default_rng(2), [0]
    for _ in range(length):
        words.append(generator.choice(8, p=CHAIN[words[-1]]))
    return np.array(words, np.int32)


TEXT = markov_chain(8000)
SHORT = TEXT[:1500]
"""A text for tests in which nothing has to be learned."""

SETTINGS = TrainingSettings(
    epochs=4, batch_size=16, optimizer="adam", rate=0.02, weight_decay=0.0, clip=0.0, patience=0, exact_end=0.0, seed=SEED
)


def train(settings, text=TEXT, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    windows = Windows(text, 1, padding=8)
    trainer = Trainer(Network(config, CpuBackend()), Parameters.random(config, 1, np.float64), windows, windows, settings)
    trainer.parameters.start_from(windows.counts(8))
    return trainer, list(trainer.run())


def log_normalizers(trainer):
    """Return the log of the softmax's normalizer after every word, (8,)."""
    contexts = np.arange(8, dtype=np.int32)[:, None]
    arrays = dict(trainer.parameters.items())
    case = {**reference.PLAIN, **trainer.network.config.to_dict()}
    hidden = reference.forward(arrays, contexts, case, 0, 0, training=False)[2]
    return reference.log_normalizers(hidden, arrays["output.weight"], arrays["output.bias"])


FEW = {"loss": "sampled", "samples": 2, "batch_size": 2, "epochs": 1, "rate": 0.01}


@pytest.mark.slow
@pytest.mark.parametrize("fields", [FEW, {"loss": "nce", "samples": 8}], ids=lambda fields: fields["loss"])
def test_sampled_losses_learn_the_distribution(fields):
    """The best loss is the entropy of the chain; without the correction by log-probabilities it would be about 0.06 higher."""
    best = train(SETTINGS)[1][-2].valid.mean
    trainer, events = train(dataclasses.replace(SETTINGS, **fields))
    assert events[-2].valid.mean < best + 0.03
    assert [event.exact for event in events[:-1]] == [False] * (len(events) - 1)
    assert isinstance(events[-1], Finished)
    if fields["loss"] == "nce":
        assert np.abs(log_normalizers(trainer)).max() < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["exact", "sampled"])
def test_self_normalization_reduces_log_normalizers(loss):
    settings = dataclasses.replace(SETTINGS, loss=loss, samples=4)
    plain, penalised = (train(dataclasses.replace(settings, self_normalise=each))[0] for each in (0.0, 1.0))
    assert np.abs(log_normalizers(penalised)).max() < 0.5 * np.abs(log_normalizers(plain)).max()


def test_sample_of_all_words_equals_exact_softmax():
    settings = dataclasses.replace(SETTINGS, epochs=1, optimizer="sgd", schedule="constant", rate=0.5, evaluate_every=20)
    exact, sampled = (train(dataclasses.replace(settings, loss=loss, samples=10_000)) for loss in ("exact", "sampled"))
    for left, right in zip(exact[0].parameters, sampled[0].parameters, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_outside_sample_are_unchanged(tied):
    settings = dataclasses.replace(SETTINGS, optimizer="adamw", weight_decay=0.1, loss="sampled", samples=1, batch_size=2, seed=4)
    config = dataclasses.replace(CONFIG, tied=tied)
    windows = Windows(TEXT, 1, padding=8)
    trainer = Trainer(Network(config, CpuBackend()), Parameters.random(config, 1, np.float64), windows, None, settings)
    kept: list[np.ndarray] = []
    for event, _ in zip(trainer.run(), range(30), strict=False):
        assert isinstance(event, Step)
        arrays = [*trainer.parameters, *(array for moment in trainer.optimizer.moments for array in moment)]
        for now, before in zip(arrays, kept or arrays, strict=True):
            if len(now) >= 8:  # two contexts, two targets and one draw touch at most five rows
                assert sum(np.array_equal(left, right) for left, right in zip(now, before, strict=True)) >= 3
        kept = [array.copy() for array in arrays]


def test_exact_end_trains_last_steps_with_exact_softmax():
    settings = dataclasses.replace(SETTINGS, loss="sampled", samples=2, exact_end=0.25, evaluate_every=100)
    trainer, events = train(settings)
    steps = [event.exact for event in events if isinstance(event, Step)]
    assert steps == sorted(steps)
    assert sum(steps) == pytest.approx(0.25 * len(steps), rel=0.02)
    evaluations = [event for event in events if isinstance(event, Evaluation)]
    begins = [0, *(event.step for event in evaluations[:-1])]
    assert [event.exact for event in evaluations] == [step >= 0.75 * trainer.steps for step in begins]


@pytest.mark.parametrize("exact_end", [0.0, 0.3])
@pytest.mark.parametrize("shape", [{}, {"tied": True}, {"bands": (3, 6)}], ids=str)
def test_rows_never_touched_are_decayed_at_evaluation(shape, exact_end):
    """At every evaluation, rows that no step has touched have decayed as in all steps."""
    text = SHORT[SHORT < 6]  # so that some embeddings are never in a context or a sample
    loss = "exact" if "bands" in shape else "sampled"
    settings = dataclasses.replace(
        SETTINGS,
        epochs=1,
        optimizer="adamw",
        weight_decay=0.3,
        schedule="cosine",
        evaluate_every=40,
        loss=loss,
        samples=1,
        batch_size=8,
        exact_end=exact_end,
    )
    config = dataclasses.replace(CONFIG, vocabulary=50, **shape)
    windows = Windows(text, 1, padding=50)
    trainer = Trainer(Network(config, CpuBackend()), Parameters.random(config, 1, np.float64), windows, windows, settings)
    before, kept, seen = trainer.parameters.embeddings.copy(), 1.0, 0
    for event in trainer.run():
        if isinstance(event, Step | Evaluation):
            kept *= 1 - event.rate * 0.3
        if isinstance(event, Evaluation):
            rows = np.flatnonzero(~(trainer.optimizer.moments[0].embeddings != 0).any(1))
            seen += len(rows)
            np.testing.assert_allclose(trainer.parameters.embeddings[rows], before[rows] * kept, rtol=1e-9)
            if not shape:
                rows = np.flatnonzero(~(trainer.optimizer.moments[0].output_weight != 0).any(1))
                start = Parameters.random(config, 1, np.float64).output_weight
                np.testing.assert_allclose(trainer.parameters.output_weight[rows], start[rows] * kept, rtol=1e-9)
    assert seen


def test_loaded_state_dict_shares_no_arrays_with_its_trainer():
    """Two trainers continue in turns from one state dict in memory, and end with the same weights."""
    settings = dataclasses.replace(SETTINGS, epochs=1, batch_size=5, loss="sampled", samples=1, optimizer="adamw")
    windows = Windows(SHORT, 1, padding=8)
    config = CONFIG

    def trainer(seed):
        return Trainer(Network(config, CpuBackend()), Parameters.random(config, seed, np.float64), windows, windows, settings)

    first, second = trainer(1), trainer(2)
    for _ in zip(first.run(), range(30), strict=False):
        pass
    second.load_state_dict(first.state_dict())
    runs = first.run(), second.run()
    for one, other in zip(*runs, strict=True):
        assert (one.step, getattr(one, "loss", None)) == (other.step, getattr(other, "loss", None))
    assert all(map(np.array_equal, first.parameters, second.parameters))


@pytest.mark.parametrize("loss", ["sampled", pytest.param("nce", marks=pytest.mark.slow)])
@pytest.mark.parametrize("tied", [False, True])
def test_resumed_sampled_training_equals_uninterrupted(loss, tied, tmp_path):
    settings = dataclasses.replace(
        SETTINGS, epochs=1, batch_size=5, loss=loss, samples=1, exact_end=0.3, optimizer="adamw", weight_decay=0.2
    )
    whole = train(settings, SHORT, tied=tied)[0]
    config = whole.network.config
    windows = Windows(SHORT, 1, padding=8)

    def fresh(seed):
        return Trainer(Network(config, CpuBackend()), Parameters.random(config, seed, np.float64), windows, windows, settings)

    first = fresh(1)
    first.parameters.start_from(windows.counts(8))
    for _ in zip(first.run(), range(30), strict=False):
        pass
    Checkpoint(first.state_dict(), "corpus").save(tmp_path / "c")
    second = fresh(2)
    second.load_state_dict(Checkpoint.load(tmp_path / "c").state_dict)
    assert second.state.step > 0
    list(second.run())
    for left, right in zip(whole.parameters, second.parameters, strict=True):
        assert np.array_equal(left, right)
