"""Training in several processes, which are threads here: the same model as in one process."""

import dataclasses

import numpy as np
import pytest
from processes import in_processes
from tolerances import assert_close

from fflm.arrays import give_parts, load_arrays, save_arrays
from fflm.backend.cpu.backend import CpuBackend
from fflm.errors import FflmError
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.network.partition import Partition
from fflm.parallel.communicator import SINGLE_PROCESS
from fflm.text.windows import Windows
from fflm.training.checkpoints import Checkpoint
from fflm.training.events import DivergedError, Evaluation, Step
from fflm.training.examples import Rows
from fflm.training.settings import TrainingSettings
from fflm.training.teacher import Teacher, TeacherNetwork
from fflm.training.trainer import Trainer, sum_losses

WORDS = 30
TEXT = np.random.default_rng(0).zipf(1.3, 150).clip(1, WORDS).astype(np.uint16) - 1
CONFIG = NetworkConfig(WORDS, 3, 6, (7,), averages=(), tied=True, dropout=0.3, embedding_dropout=0.2)
SETTINGS = TrainingSettings(epochs=2, batch_size=16, rate=0.01, clip=0.5, patience=0, evaluate_every=4)
"""An epoch has 10 batches, the last with 6 rows, which is less than a full share of each of 4 processes."""

CASES = {
    "exact": ({}, {"loss": "exact"}),
    "sampled": ({}, {"loss": "sampled", "samples": 8, "exact_end": 0.3, "adversarial": 0.1}),
    "nce": ({"tied": False}, {"loss": "nce", "samples": 8, "optimizer": "adam", "l1": 1e-3}),
    "bands": ({"tied": False, "bands": (10, 20)}, {"loss": "exact", "weight_decay": 0.1}),
    "sgd": ({"direct": True}, {"loss": "exact", "optimizer": "sgd", "momentum": 0.9, "l2": 0.01, "smoothing": 0.1}),
    "small batches": ({}, {"loss": "sampled", "samples": 4, "batch_size": 2, "epochs": 1, "evaluate_every": 20}),
    "teacher": ({}, {"loss": "sampled", "samples": 8, "exact_end": 0.3}),
    "affixes": ({}, {"loss": "sampled", "samples": 8, "exact_end": 0.3, "affixes": True, "l1": 1e-3}),
}

AFFIXES = np.where(np.arange(4) < np.arange(WORDS + 1)[:, None] % 4, np.arange(WORDS + 1)[:, None] * np.arange(4) % 7, -1)
AFFIXES = AFFIXES.astype(np.int32)
"""The affixes of words, of which there are seven. A word has none to three."""

UNTIED = dataclasses.replace(CONFIG, tied=False)

VOCABULARY_CASES = {
    "adamw": (
        {"residual": True, "hidden": (7, 7)},
        {"smoothing": 0.1, "self_normalise": 0.1, "l1": 1e-3, "adversarial": 0.1},
    ),
    "sgd": ({"direct": True}, {"optimizer": "sgd", "momentum": 0.9, "l2": 0.01, "weight_decay": 0.1, "schedule": "plateau"}),
    "affixes": ({}, {"affixes": True}),
    "adagrad": ({"hidden": (), "dropout": 0.0}, {"optimizer": "adagrad", "clip": 0.0, "frozen": True}),
}
"""The changes to `UNTIED` and `SETTINGS` of trainings that divide the words among processes."""

ROUNDING = 1e-9
"""Differences of float64 sums in another order, after the steps of a run."""


def texts(config):
    if config.outputs is not None:
        generator = np.random.default_rng(1)
        rows = generator.integers(-1, WORDS, (90, 5)).astype(np.int32)
        return Rows(rows, generator.integers(0, config.outputs, 90).astype(np.int32))
    return Windows(TEXT, config.context, padding=WORDS)


def teacher():
    """Return a teacher of two networks, which see more words than the student."""
    configs = [dataclasses.replace(CONFIG, window=5, hidden=(4,)), dataclasses.replace(CONFIG, tied=False, direct=True)]
    networks = [
        TeacherNetwork(share, each, Parameters.random(each, 9, np.float64))
        for share, each in zip((0.3, 0.2), configs, strict=True)
    ]
    return Teacher(networks, [texts(each) for each in configs], CpuBackend())


def trainer(communicator, config=CONFIG, settings=SETTINGS, seed=1, *, vocabulary=False, taught=False):
    examples = texts(config)
    partition = Partition(config, communicator) if vocabulary else None
    start = Parameters.random(config, seed, np.float64, words=partition.own if partition else slice(None))
    network = Network(config, CpuBackend(), partition)
    teaching, affixes = teacher() if taught else None, AFFIXES if settings.affixes else None
    return Trainer(network, start, examples, examples, settings, communicator, teaching, affixes)


def train(communicator, config, settings, steps=10**9, **kind):
    """Train for a number of steps; return the losses of all events, and the trainer."""
    run, losses = trainer(communicator, config, settings, **kind), []
    for event in run.run():
        if isinstance(event, Step):
            losses.append(event.loss)
        elif isinstance(event, Evaluation):
            losses += [event.train_loss, event.valid.total, event.valid.unknown]
        if run.state.step >= steps:
            break
    return losses, run


def whole_weights(run):
    """Return the weights of all words."""
    return [weight if isinstance(weight, np.ndarray) else np.concatenate(list(weight)) for weight in run.weights()]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_training_in_several_processes_equals_training_in_one(name, size):
    shape, fields = CASES[name]
    config, settings = dataclasses.replace(CONFIG, **shape), dataclasses.replace(SETTINGS, **fields)
    taught = name == "teacher"
    expected, one = train(SINGLE_PROCESS, config, settings, taught=taught)
    results = in_processes(size, lambda communicator: train(communicator, config, settings, taught=taught))
    for losses, run in results:
        assert losses == results[0][0]
        assert_close(losses, expected, ROUNDING)
        for array, first, single in zip(run.parameters, results[0][1].parameters, one.parameters, strict=True):
            assert np.array_equal(array, first)
            assert_close(array, single, ROUNDING, unit=1.0)


@pytest.mark.parametrize("frozen", [False, True])
def test_classifier_in_several_processes_equals_one(frozen):
    config = NetworkConfig(WORDS, 5, 6, (7,), averages=(), tied=False, outputs=3, input="mean", dropout=0.3)
    settings = dataclasses.replace(SETTINGS, loss="exact", frozen=frozen)
    expected, one = train(SINGLE_PROCESS, config, settings)
    for losses, run in in_processes(3, lambda communicator: train(communicator, config, settings)):
        assert_close(losses, expected, ROUNDING)
        assert_close(run.parameters.embeddings, one.parameters.embeddings, ROUNDING)


@pytest.mark.parametrize("name", VOCABULARY_CASES)
def test_training_over_divided_vocabulary_equals_training_in_one_process(name, tmp_path):
    """Also after a resume in another number of processes, from a checkpoint that has all words, and the bytes of any other."""
    shape, fields = VOCABULARY_CASES[name]
    config, settings = dataclasses.replace(UNTIED, **shape), dataclasses.replace(SETTINGS, **fields)
    expected, one = train(SINGLE_PROCESS, config, settings)

    def whole(communicator):
        losses, run = train(communicator, config, settings, vocabulary=True)
        return losses, run, whole_weights(run)

    def stopped(communicator):
        state_dict = train(communicator, config, settings, 7, vocabulary=True)[1].state_dict()
        if communicator.first:
            Checkpoint(state_dict, "text").save(tmp_path / "checkpoint")
        else:
            give_parts(state_dict["arrays"])

    results = in_processes(3, whole)
    assert [len(run.parameters.output_weight) for _, run, _ in results] == [10, 10, 10]
    for losses, run, _ in results:
        assert losses == results[0][0]
        assert_close(losses, expected, ROUNDING)
        assert all(map(np.array_equal, run.common, results[0][1].common))
    first = results[0][2]
    in_processes(3, stopped)
    save_arrays(tmp_path / "copy", *load_arrays(tmp_path / "checkpoint"))
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "checkpoint").read_bytes()
    state = Checkpoint.load(tmp_path / "checkpoint").state_dict
    for array, single in zip(first, one.weights(), strict=True):
        assert_close(array, single, ROUNDING, unit=1.0)

    def resume(communicator):
        run = trainer(communicator, config, settings, seed=2, vocabulary=communicator.size > 1)
        run.load_from_first(state if communicator.first else None)
        list(run.run())
        return whole_weights(run)

    assert all(map(np.array_equal, in_processes(3, resume)[0], first))
    for resumed in (in_processes(2, resume)[0], resume(SINGLE_PROCESS)):
        for left, right in zip(resumed, first, strict=True):
            assert_close(left, right, ROUNDING, unit=1.0)


def test_divided_vocabulary_diverges_in_all_processes_at_the_same_step():
    def run(communicator):
        own = trainer(communicator, UNTIED, vocabulary=True)
        if communicator.rank == 1:
            own.parameters.output_weight[3] = np.nan
        try:
            list(own.run())
        except DivergedError as error:
            return str(error)

    assert in_processes(2, run) == ["the loss is nan nats per word at step 1"] * 2


def test_validation_loss_is_the_same_for_any_number_of_processes(monkeypatch):
    monkeypatch.setattr("fflm.training.trainer.EVALUATION_ROWS", 20)
    run = trainer(SINGLE_PROCESS)
    expected = sum_losses(run.network, run.parameters, run.train)

    def losses(communicator):
        return sum_losses(run.network, run.parameters, run.train, communicator)

    for size in (2, 3, 9):  # there are 8 batches
        assert in_processes(size, losses) == [expected] * size


@pytest.mark.parametrize("loss", ["exact", "sampled"])
def test_resumed_in_as_many_processes_equals_uninterrupted(loss):
    settings = dataclasses.replace(SETTINGS, loss=loss, samples=8)
    whole = in_processes(3, lambda communicator: train(communicator, CONFIG, settings))[0][1]
    stopped = in_processes(3, lambda communicator: train(communicator, CONFIG, settings, 7))[0][1]
    state = stopped.state_dict()

    def resume(communicator):
        run = trainer(communicator, settings=settings, seed=2)
        run.load_from_first(state if communicator.first else None)
        list(run.run())
        return run

    for run in in_processes(3, resume):
        assert run.state.step == whole.state.step
        assert run.state.best == whole.state.best
        assert all(map(np.array_equal, run.parameters, whole.parameters))
    for left, right in zip(in_processes(2, resume)[1].parameters, whole.parameters, strict=True):
        assert_close(left, right, ROUNDING, unit=1.0)


def test_different_weights_are_refused_at_the_next_evaluation():
    def run(communicator):
        own = trainer(communicator)
        own.parameters.output_bias[0] += 1e-12 * communicator.rank
        list(own.run())

    with pytest.raises(FflmError, match="the processes have computed different weights"):
        in_processes(2, run)


def test_all_processes_diverge_at_the_same_step():
    def run(communicator):
        own = trainer(communicator)
        if communicator.rank == 1:
            own.parameters.hidden_biases[0][:] = np.nan
        try:
            list(own.run())
        except DivergedError as error:
            return str(error)

    first, second = in_processes(2, run)
    assert first == second == "the loss is nan nats per word at step 1"
