"""The training loop, its optimizers, divergence and checkpoints, on ids without a text."""

import dataclasses
import math

import numpy as np
import pytest
import reference
from tolerances import FLOAT64, NETWORK, assert_close

from fflm.backend.cpu.backend import CpuBackend
from fflm.errors import FflmError
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters, shapes
from fflm.text.vocabulary import Vocabulary
from fflm.text.windows import Windows
from fflm.training.checkpoints import Checkpoint
from fflm.training.events import DivergedError, Evaluation, Finished, Step
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer, sum_losses

CONFIG = NetworkConfig(
    vocabulary=6,
    window=2,
    averages=(),
    embedding=4,
    hidden=(5,),
    activation="tanh",
    tied=False,
    dropout=0.0,
    embedding_dropout=0.0,
)
CYCLE = np.tile(np.arange(6, dtype=np.uint16), 20)
"""A text that a network learns at once, because each word determines the next."""

NOISE = np.random.default_rng(0).integers(0, 6, 60).astype(np.uint16)
"""A text of random words, in which there is nothing to learn."""

PLAIN = TrainingSettings(
    epochs=3, batch_size=16, optimizer="sgd", rate=0.5, schedule="constant", clip=0, weight_decay=0, patience=0
)


def windows(ids):
    return Windows(ids, CONFIG.window, padding=CONFIG.vocabulary)


AFFIXES = np.array([[0, 1, -1], [-1, -1, -1], [1, 2, 3], [3, -1, -1], [0, 3, -1], [2, -1, -1], [-1, -1, -1]], np.int32)
"""The affixes of the words of `CONFIG` and of the padding."""


def trainer(settings=PLAIN, *, train=CYCLE, valid=None, config=CONFIG, dtype=np.float64):
    texts = windows(train), None if valid is None else windows(valid)
    generator = np.random.default_rng(1)
    arrays = {name: generator.normal(0, 0.7, shape).astype(dtype) for name, shape in shapes(config).items()}
    affixes = AFFIXES if settings.affixes else None
    return Trainer(Network(config, CpuBackend()), Parameters.from_arrays(config, arrays), *texts, settings, affixes=affixes)


def plain_settings(**fields):
    return dataclasses.replace(PLAIN, **fields)


def evaluations(events):
    return [event for event in events if isinstance(event, Evaluation)]


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.9, "rate": 0.1},
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "rate": 0.1},
        {"optimizer": "adagrad", "rate": 0.2},
        {"optimizer": "rmsprop", "rate": 0.02},
        {"optimizer": "adam", "rate": 0.05},
        {"optimizer": "adamw", "rate": 0.05, "weight_decay": 0.01},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_every_optimizer_reduces_loss(fields):
    run = trainer(plain_settings(epochs=10, **fields), valid=CYCLE)
    before = sum_losses(run.network, run.parameters, run.train).mean
    losses = [event.valid_loss for event in evaluations(run.run())]
    assert before > 1.5
    assert losses[-1] < 0.1 * before


def test_events_report_steps_epochs_and_words():
    events = list(trainer(plain_settings(epochs=2, batch_size=50)).run())  # 120 words make batches of 50, 50 and 20
    assert [type(event) for event in events] == [Step, Step, Evaluation, Step, Step, Evaluation, Finished]
    assert [(event.step, event.epoch, event.words) for event in events[:2]] == [(1, 1, 50), (2, 1, 100)]
    assert [(event.step, event.epoch, event.words) for event in evaluations(events)] == [(3, 1, 120), (6, 2, 240)]
    assert events[-1] == Finished(6, "all 2 epochs done")


def test_evaluation_every_n_steps_and_after_every_epoch():
    events = trainer(plain_settings(epochs=2, batch_size=30, evaluate_every=3)).run()  # an epoch has 4 batches
    assert [event.step for event in evaluations(events)] == [3, 4, 6, 8]


def test_full_batch_descent_equals_reference():
    case = {**reference.PLAIN, "vocabulary": 6, "window": 2, "embedding": 4, "hidden": (5,)}
    run = trainer(plain_settings(epochs=4, batch_size=len(CYCLE), rate=0.3))
    parameters = {name: array.copy() for name, array in run.parameters.items()}
    contexts, targets = run.train.batch(np.arange(len(CYCLE)))
    for event in run.run():
        if isinstance(event, Finished):
            break
        losses = reference.network_losses(parameters, contexts, targets, case)
        assert event.train_loss == pytest.approx(losses.mean(), rel=1e-12)
        gradients = reference.network_gradients(parameters, contexts, targets, case)
        parameters = {name: array - 0.3 * gradients[name] for name, array in parameters.items()}
        for name, array in run.parameters.items():
            assert_close(array, parameters[name], NETWORK[FLOAT64], unit=1.0)


def test_weight_decay_skips_biases():
    plain, decayed = (trainer(plain_settings(epochs=1, batch_size=len(CYCLE), weight_decay=decay)) for decay in (0.0, 0.1))
    start = {name: array.copy() for name, array in plain.parameters.items()}
    for run in (plain, decayed):
        list(run.run())
    for name, without in plain.parameters.items():
        expected = without - 0.5 * 0.1 * start[name] if without.ndim > 1 else without
        np.testing.assert_allclose(dict(decayed.parameters.items())[name], expected, rtol=1e-12, atol=1e-15)


def test_losses_are_averaged_over_words():
    run = trainer(plain_settings(epochs=1, batch_size=50, rate=1e-12))  # the rate is so small that the weights stay the same
    contexts, targets = run.train.batch(np.arange(len(CYCLE)))
    losses = np.empty(len(CYCLE))
    run.network.losses(run.parameters, contexts, targets, losses)
    (evaluation,) = evaluations(run.run())
    assert evaluation.train_loss == pytest.approx(losses.mean(), rel=1e-9)
    long = windows(np.tile(NOISE, 25))  # an evaluation takes more than one batch, of which the last is shorter
    contexts, targets = long.batch(np.arange(len(long)))
    losses = np.empty(len(long))
    run.network.losses(run.parameters, contexts, targets, losses)
    found = sum_losses(run.network, run.parameters, long)
    assert found.mean == pytest.approx(losses.mean(), rel=1e-12)
    assert found.unknown == pytest.approx(
        losses[targets == Vocabulary.from_counts({"a": 1}, ends=True).unknown_id].sum(), rel=1e-12
    )


def test_dropout_differs_between_epochs():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    run = trainer(plain_settings(batch_size=120, rate=1e-12), train=np.zeros(120, np.uint16), config=config)
    run.train.padding = 0  # all examples are the same, so losses differ only by dropout
    losses = [event.train_loss for event in evaluations(run.run())]
    assert len({round(loss, 6) for loss in losses}) == 3


def test_clip_limits_norm_of_whole_gradient():
    limit = 0.01
    run = trainer(plain_settings(epochs=1, batch_size=len(CYCLE), rate=1.0, clip=limit))
    before = [array.copy() for array in run.parameters]
    list(run.run())
    moved = math.sqrt(sum(((after - array) ** 2).sum() for array, after in zip(before, run.parameters, strict=True)))
    assert moved == pytest.approx(limit, rel=1e-9)


def test_clip_leaves_smaller_gradients_unchanged():
    free, clipped = (trainer(plain_settings(epochs=1, clip=clip)) for clip in (0, 1e6))
    for run in (free, clipped):
        list(run.run())
    assert all(np.array_equal(a, b) for a, b in zip(free.parameters, clipped.parameters, strict=True))


def test_plateau_halves_rate_after_evaluation_without_improvement():
    events = evaluations(trainer(plain_settings(schedule="plateau", epochs=8, rate=2.0), train=NOISE, valid=CYCLE).run())
    rate, rates = 2.0, []
    for event in events:
        rates.append(rate)
        rate = rate if event.best else rate / 2
    assert [event.rate for event in events] == rates
    assert rates[-1] < 2.0


def test_early_stopping_after_patience():
    events = list(trainer(plain_settings(epochs=100, patience=2, rate=1.0), train=NOISE, valid=CYCLE).run())
    best = [event.best for event in evaluations(events)]
    assert best[-3:] == [True, False, False]
    assert events[-1].reason == "no better for 2 evaluations"
    valid = [event.valid_loss for event in evaluations(events)]
    assert min(valid) == valid[-3]


def test_last_state_is_best_without_validation():
    assert all(event.best and event.valid_loss is None for event in evaluations(trainer().run()))


def test_divergence_with_huge_rate_is_detected():
    with pytest.raises(DivergedError, match="nats per word at step"):
        list(trainer(plain_settings(rate=1e9)).run())


def test_slow_divergence_is_detected():
    with pytest.raises(DivergedError, match="the loss has exploded to"):
        list(trainer(plain_settings(rate=15.0, epochs=50), train=NOISE).run())


@pytest.mark.parametrize("exact_end", [0.0, 0.5])
def test_nce_divergence_threshold_is_not_log_v(exact_end):
    """Ignoring contexts costs 7.2 nats with 512 draws, although log V is 1.8, which is the measure of the exact end only."""
    settings = plain_settings(loss="nce", samples=512, epochs=40, rate=0.05, exact_end=exact_end)
    run = trainer(settings, train=NOISE, valid=NOISE)
    run.parameters.start_from(run.train.counts(6))
    means = {}
    for event in run.run():
        if isinstance(event, Step):
            means.setdefault(event.exact, []).append(run.state.loss_mean)
    blind = math.log1p(512) + 512 * math.log1p(1 / 512)
    assert means[False][-1] == pytest.approx(blind, rel=0.1)
    assert blind > 2 * math.log(6) + 1
    if exact_end:
        assert means[True][0] == pytest.approx(math.log(6), rel=0.3)  # the running mean of the loss starts again
    assert run.state.finished == "all 40 epochs done"


@pytest.mark.parametrize("fields", [{}, {"optimizer": "adamw", "weight_decay": 0.2, "clip": 1.0}], ids=["sgd", "adamw"])
def test_nce_divergence_is_detected(fields):
    with pytest.raises(DivergedError, match="at step"):
        list(trainer(plain_settings(loss="nce", samples=16, rate=1e3, epochs=50, **fields)).run())


def test_slow_nce_divergence_is_detected():
    with pytest.raises(DivergedError, match=r"the loss has exploded to .* \(a prediction without context has 3\.8\)"):
        list(trainer(plain_settings(loss="nce", samples=16, rate=8.0, epochs=200), train=NOISE).run())


@pytest.mark.parametrize("clip", [0, 1])
def test_nan_weights_are_detected_at_first_step(clip):
    run = trainer(plain_settings(clip=clip))
    run.parameters.output_bias[0] = math.nan
    with pytest.raises(DivergedError, match="at step 1"):
        list(run.run())


def test_divergence_is_detected_in_validation():
    run = trainer(
        plain_settings(epochs=1, batch_size=len(CYCLE), rate=1e9), valid=CYCLE
    )  # the only step makes the weights useless
    with pytest.raises(DivergedError, match="the mean loss in the evaluation is"):
        list(run.run())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("rate", 0.0),
        ("rate", -1.0),
        ("rate", math.nan),
        ("rate", math.inf),
        ("clip", math.inf),
        ("momentum", 1.0),
        ("momentum", math.nan),
        ("weight_decay", -1.0),
        ("decay", math.nan),
        ("warmup", 1.0),
        ("clip", -1.0),
        ("clip", math.nan),
        ("smoothing", 1.0),
        ("samples", 0),
        ("exact_end", 1.0),
        ("self_normalise", -0.1),
        ("loss", "hinge"),
        ("epsilon", 0.0),
        ("patience", -1),
        ("evaluate_every", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("optimizer", "lbfgs"),
        ("schedule", "linear"),
    ],
)
def test_invalid_training_settings_are_refused(field, value):
    with pytest.raises(FflmError, match=f"`{field}` must be .*, not {value}|`{field}` must be .*, not {value!r}"):
        plain_settings(**{field: value})


# Checkpoints.


SCHEDULES = [
    plain_settings(optimizer="adamw", rate=0.01, schedule="cosine", clip=1.0, weight_decay=0.01, evaluate_every=3),
    plain_settings(optimizer="sgd", momentum=0.9, rate=0.1, schedule="plateau"),
    plain_settings(optimizer="adagrad", schedule="inverse", decay=1e-3),
    plain_settings(optimizer="adam", rate=0.01, loss="sampled", samples=2, exact_end=0.5, affixes=True),
]


@pytest.mark.parametrize("settings", SCHEDULES, ids=lambda settings: settings.optimizer)
def test_resume_after_any_event_gives_same_bits(settings, tmp_path):
    config = dataclasses.replace(CONFIG, dropout=0.3, embedding_dropout=0.2)
    whole = trainer(settings, train=NOISE, valid=CYCLE, config=config, dtype=np.float32)
    events = list(whole.run())
    expected = [*whole.parameters, *(array for moment in whole.optimizer.moments for array in moment)]
    for stop in range(1, len(events)):
        first = trainer(settings, train=NOISE, valid=CYCLE, config=config, dtype=np.float32)
        for _, _event in zip(range(stop), first.run(), strict=False):
            pass
        Checkpoint(first.state_dict(), "data").save(tmp_path / "checkpoint")
        second = trainer(settings, train=NOISE, valid=CYCLE, config=config, dtype=np.float32)
        second.load_state_dict(Checkpoint.load(tmp_path / "checkpoint").state_dict)
        rest = list(second.run())
        assert [without_times(event) for event in rest] == [without_times(event) for event in events[stop:]]
        found = [*second.parameters, *(array for moment in second.optimizer.moments for array in moment)]
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def without_times(event):
    """Return the fields of an event without times and speeds."""
    return {name: value for name, value in dataclasses.asdict(event).items() if name not in ("seconds", "words_per_second")}


def test_state_dict_of_another_network_is_refused():
    other = trainer(config=dataclasses.replace(CONFIG, hidden=(7,)))
    before = [array.copy() for array in other.parameters]
    with pytest.raises(FflmError, match="not this network's"):
        other.load_state_dict(trainer().state_dict())
    assert all(map(np.array_equal, other.parameters, before))


def test_damaged_state_dict_is_refused():
    state_dict = trainer().state_dict()
    state_dict["state"]["batch"] = 10**6
    with pytest.raises(FflmError, match="after 1,000,000 batches of an epoch, which has"):
        trainer().load_state_dict(state_dict)
    with pytest.raises(FflmError, match="lack 'affixes'"):
        trainer(plain_settings(affixes=True)).load_state_dict(trainer().state_dict())
    state_dict = trainer().state_dict()
    del state_dict["arrays"]["parameters.embeddings"]
    with pytest.raises(FflmError, match="lack 'embeddings'"):
        trainer().load_state_dict(state_dict)
