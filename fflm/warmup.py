"""Ahead-of-time compilation of all kernels, for example when a container image is built."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from fflm import api, compiling, kenlm
from fflm.arguments import Device
from fflm.backend.devices import choose_device, device_backend
from fflm.errors import FflmError
from fflm.models.classifier.model import TextClassifier
from fflm.models.mixture.cache import NeuralCache
from fflm.models.mixture.model import Mixture
from fflm.models.neural.fast import FastScorer
from fflm.models.neural.model import NeuralModel
from fflm.models.neural.quantized import QuantizedNetwork
from fflm.models.ngram.arpa import write_arpa
from fflm.models.ngram.model import NgramModel
from fflm.models.ngram.train import train as train_ngram
from fflm.network.config import NetworkConfig, Output
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.text.numbering import Numbering
from fflm.text.settings import TextSettings
from fflm.training.examples import Rows
from fflm.training.settings import OptimizerName, TrainingSettings
from fflm.training.trainer import Trainer

_TEXT = "The cat sat on the wall. The dog sat on the mat.\n" * 40
"""The text that language models are trained on."""

_SMALL: dict[str, Any] = {"window": 2, "embedding": 2, "hidden": (2,), "epochs": 1, "batch_size": 64, "averages": ()}
"""Settings of all language models, which train in no time."""

_NETWORKS = (
    {"averages": (3,), "patience": 0, "smoothing": 0.1, "self_normalise": 0.1, "adversarial": 0.1},
    {"averages": (3,), "direct": True, "loss": "sampled", "samples": 2, "exact_end": 0.5, "epochs": 2},
    {"loss": "nce", "samples": 2, "optimizer": "adagrad"},
    {"tied": False, "bands": (3, 5), "optimizer": "rmsprop"},
    {"tied": False, "residual": True, "hidden": (2, 2), "direct": True, "optimizer": "sgd", "momentum": 0.9},
    {"loss": "sampled", "samples": 2, "tied": False, "direct": True, "optimizer": "adam", "hidden": (3,)},
)
"""Settings of language models that together use all kernels of training in single precision, and the networks of all presets."""

_CLASSIFIERS: tuple[dict[str, Any], ...] = (
    {"input": "mean", "bigrams": True},
    {"input": "max", "optimizer": "adamw", "weight_decay": 0.1},
    {"input": "window", "length": 3},
    {"input": "features", "log_length": True},
)
"""Settings of text classifiers that together use all kernels of classifiers."""


def warm_up(device: Device = "cpu") -> Iterator[str]:
    """Compile all kernels for this machine and cache them on disk, by training and using all kinds of models on a tiny text.

    Parameters
    ----------
    device
        The device of the networks; the kernels of the CPU are always compiled.

    Yields
    ------
    str
        A description of the next step.

    Raises
    ------
    FflmError
        If the device cannot be used, or compiled kernels cannot be cached.
    """
    chosen = choose_device(device)
    with tempfile.TemporaryDirectory(prefix="fflm-warmup-") as name:
        folder = Path(name)
        yield "reading text"
        _read()
        for place in dict.fromkeys(("cpu", chosen)):
            yield f"language models ({place})"
            _language_models(folder, place)
            yield f"text classifiers ({place})"
            _classifiers(folder, place)
        yield "n-gram models and fast scoring"
        _scorers(folder)
        yield "estimators"
        _estimators()
    if reason := compiling.cache_failure():
        raise FflmError(reason)


def _read() -> None:
    """Compile the kernels that read text."""
    numbering = Numbering(TextSettings())
    numbering.number(b"the cat " * (1 << 17))  # kernels are used once a text has this length
    numbering.number(" ".join(map(str, range(5000))).encode())


def _language_models(folder: Path, device: Device) -> None:
    """Compile the kernels of language models on a device."""
    text, path = folder / "text.txt", folder / "text.model"
    text.write_text(_TEXT, encoding="utf-8")
    for fields in _NETWORKS:
        model = api.train(text, path, overwrite=True, device=device, **{**_SMALL, **fields})
        model.generate("The cat", length=2, seed=1)
        model.score(_TEXT)
        NeuralModel.load(path, device).score("The cat")
    teacher = folder / "teacher.model"
    api.train(text, teacher, device=device, **_SMALL)
    api.train(text, path, overwrite=True, device=device, teacher=teacher, **_SMALL)


def _classifiers(folder: Path, device: Device) -> None:
    """Compile the kernels of text classifiers on a device."""
    text, path = folder / "lines.tsv", folder / "lines.classifier"
    text.write_text("\n".join(f"{'ab'[row % 2]}\tthe cat {row % 3}" for row in range(40)), encoding="utf-8")
    for fields in _CLASSIFIERS:
        api.train_classifier(text, path, overwrite=True, device=device, epochs=1, embedding=2, **fields).predict(["the cat", ""])
        TextClassifier.load(path, device).predict(["the cat"])


def _scorers(folder: Path) -> None:
    """Compile the kernels of n-gram models and of fast scoring; ``folder`` contains the text of `_language_models`."""
    ngram = train_ngram([folder / "text.txt"], folder / "text.ngram", 3)
    ngram.score(_TEXT)
    ngram.next_words("The cat", 3)
    write_arpa(ngram, folder / "text.arpa")
    api.train(folder / "text.txt", folder / "text.model", overwrite=True, **_SMALL)
    scorer = FastScorer(NeuralModel.load(folder / "text.model"))
    ids = scorer.text.encode_text(_TEXT, scorer.vocabulary)
    scorer.losses_of_text(ids)
    scorer.model.losses_of_text(ids[:3])
    cache = NeuralCache(5, 10.0, scorer.model)
    cache.losses_of_text(ids)
    Mixture({"network": scorer.model, "cache": cache}, [0.5, 0.5]).next_words("The cat", 3)
    for each in (ngram, scorer, scorer.model):
        each.scores(_TEXT.splitlines()[:1])
    sentences = train_ngram([folder / "text.txt"], folder / "sentences.ngram", 3, mode="sentence")
    write_arpa(sentences, folder / "sentences.arpa")
    settings = {**_SMALL, "mode": "sentence", "self_normalise": 0.1}
    api.train(folder / "text.txt", folder / "sentences.model", overwrite=True, **settings)
    network = QuantizedNetwork.of(NeuralModel.load(folder / "sentences.model"), tables=True)
    for name, small in (("sentences.ngram", sentences.quantize()), ("sentences.model", network)):
        (folder / f"small.{name}").mkdir()
        small.save(folder / f"small.{name}")
        small.next_words("the cat", 3)
    trie = NgramModel.load(folder / "small.sentences.ngram")
    trie.score(_TEXT)
    trie.scores(_TEXT.splitlines()[:1])
    FastScorer(network).losses_of_text(ids)
    for name in ("sentences.arpa", "sentences.model", "small.sentences.ngram", "small.sentences.model"):
        model = kenlm.Model(folder / name)
        list(model.full_scores("the cat"))
        model.score("the cat")


def _estimators() -> None:
    """Compile the kernels of networks in double precision, which `fflm.estimators` uses."""
    numbers = np.random.default_rng(1).normal(size=(40, 3))
    optimizers = itertools.cycle(get_args(OptimizerName))  # there are more outputs than optimizers
    for output, optimizer in zip(get_args(Output), optimizers, strict=False):
        config = NetworkConfig.feedforward(
            3, (2, 2), 2, output=output, residual=optimizer == "sgd", dropout=0.1, embedding_dropout=0.1
        )
        targets = np.arange(40, dtype=np.int32) % 2 if output == "softmax" else np.sign(numbers[:, :2])
        settings = TrainingSettings(epochs=1, batch_size=32, optimizer=optimizer, weight_decay=0.1)
        examples, network = Rows(numbers, targets), Network(config, device_backend("cpu"))
        trainer = Trainer(network, Parameters.random(config, 1, np.float64), examples, examples, settings)
        for _ in trainer.run():
            pass
        network.predict(trainer.parameters, numbers)
