"""Claim: a line's exact score takes no longer than its matrix products in NumPy, 0.1 ms with a small network, a next word 1 ms.

Measured are single calls for a line of 12 words: `model.score`, `model.scores` of one line, `model.next_words`, and `generate`
per word with top-k sampling. The models are networks with random weights and with word frequencies as in text: the preset
``quick`` with 2,400 words, and the default network with 10,000 words; and a 5-gram model of stories.txt, which scores the lines
of its own text. For networks there is also the time that NumPy takes, on one thread, for the matrix products of a line alone.

The default network is also mixed with a unigram cache and a neural cache of 2,000 words. This mixture predicts the next word of a
text that has 2,000 words and grows by a word a call.

Verified first: the losses of lines equal those of a network in NumPy, in double precision, and are the same to the last bit alone
and in a list. The next words of the growing text have the probabilities that caches give them which have seen no text before.
"""

import argparse
import itertools
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import STORIES, joined, machine, parse, quartiles, ratios, record, shortfalls, show_verdict
from threadpoolctl import threadpool_limits

import fflm
from fflm.models.language_model import LanguageModel
from fflm.models.mixture.cache import NeuralCache, UnigramCache
from fflm.models.mixture.model import Mixture
from fflm.models.neural.model import NeuralModel
from fflm.models.neural.train import PRESETS
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import Vocabulary

WORDS = 12  # of a line
LENGTH = 20  # of a continuation
SHAPE = ("window", "averages", "embedding", "hidden")
RATIO = 1.0
SMALL = 100  # microseconds, of a line's exact score with a small network: ten times what a line may take from tables
NEXT = 1000  # microseconds, of a next word
TOLERANCE = 1e-5  # relative, of a line's loss, and of a word's probability
CACHED = 2_000  # words that caches remember


def network(words: int, preset: str) -> NeuralModel:
    """Return a network of the shape of a preset with random weights."""
    text = TextSettings(Tokenizer("space"), mode="sentence")
    vocabulary = Vocabulary.from_words([f"w{number}" for number in range(words - 2)], {}, ends=True)
    shape = {name: value for name, value in PRESETS[preset].items() if name in SHAPE}
    config = NetworkConfig(len(vocabulary), **shape)
    parameters = Parameters.random(config, 1)
    for array in parameters:
        array *= 3  # so that predictions depend on contexts
    parameters.output_bias[:] = -np.log(np.arange(1, len(vocabulary) + 1))
    return NeuralModel(config, parameters, vocabulary, text)


def reference_loss(model: NeuralModel, line: str) -> float:
    """Return -log p of a line, nats, of a network with one hidden layer of ReLU and tied weights, in double precision."""
    config, parameters = model.config, model.parameters.mapped(lambda array: array.astype(np.float64))
    ids = np.array([*map(model.vocabulary.id, line.split()), model.vocabulary.end_id])
    loss, context = 0.0, [model.vocabulary.start_id] * config.context
    for word in ids:
        borders = np.cumsum((0, *config.blocks))
        blocks = [parameters.embeddings[context[low:high]] for low, high in itertools.pairwise(borders)]
        inputs = np.concatenate([block.sum(axis=0) * len(block) ** -0.5 for block in blocks])
        hidden = np.maximum(parameters.hidden_weights[0] @ inputs + parameters.hidden_biases[0], 0)
        scores = parameters.softmax_weight @ (parameters.projection @ hidden) + parameters.output_bias
        loss += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[word]
        context = [*context[1:], word]
    return float(loss)


def products(model: NeuralModel) -> Callable[[], Any]:
    """Return what computes the matrix products of a line alone, by NumPy's BLAS."""
    parameters = model.parameters
    weights = [parameters.hidden_weights[0], parameters.projection, parameters.softmax_weight]
    inputs = [np.ones((WORDS + 1, weight.shape[1]), weight.dtype) for weight in weights]
    return lambda: [rows @ weight.T for rows, weight in zip(inputs, weights, strict=True)]


def mixture(model: NeuralModel) -> Mixture:
    """Return a mixture of a network, a unigram cache and a neural cache."""
    caches = {"unigram": UnigramCache(CACHED, model.vocabulary, model.text), "neural": NeuralCache(CACHED, 14.0, model)}
    return Mixture({"network": model, **caches}, [0.8, 0.1, 0.1])


def check_growing_text(model: NeuralModel, words: list[str]) -> None:
    """Stop if a mixture predicts other next words after it has seen the text before."""
    seen = mixture(model)
    for count in range(CACHED, CACHED + 3):
        prefix = " ".join(words[:count])
        found, expected = dict(seen.next_words(prefix)), dict(mixture(model).next_words(prefix))
        if not all(math.isclose(found.get(word, 0.0), value, rel_tol=TOLERANCE) for word, value in expected.items()):
            sys.exit("the mixture predicts other next words after it has seen the text before: nothing was timed")


def calls(model: LanguageModel, lines: list[str]) -> dict[str, Callable[[int], Any]]:
    """Return the calls to time by name; each takes the number of its round."""
    sampling: dict[str, Any] = {"length": LENGTH, "top_k": 40, "stop_at_end": False}
    result: dict[str, Callable[[int], Any]] = {
        "score": lambda number: model.score(lines[number % len(lines)]),
        "scores of one line": lambda number: model.scores([lines[number % len(lines)]]),
        "next_words": lambda number: model.next_words(lines[number % len(lines)]),
        "generate, per word": lambda number: model.generate(lines[0], seed=abs(number), **sampling),
    }
    if isinstance(model, NeuralModel):
        compute = products(model)
        result["products in NumPy"] = lambda _: compute()
    return result


def growing_text(model: Mixture, words: list[str]) -> dict[str, Callable[[int], Any]]:
    """Return the calls to time of a mixture, as `calls` does."""
    prefix, sampling = " ".join(words[:CACHED]), {"length": LENGTH, "top_k": 40, "stop_at_end": False}
    return {
        "next_words": lambda number: model.next_words(" ".join(words[: CACHED + number])),
        "generate, per word": lambda number: model.generate(prefix, seed=abs(number), **sampling),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = parse(parser)
    warnings.filterwarnings("ignore", "not in the vocabulary")
    about, rounds = machine(), 5 if options.quick else 400
    networks = {
        "quick network, 2,400 words": network(2_400, "quick"),
        "default network, 10,000 words": network(10_000, "default"),
    }
    models: dict[str, LanguageModel] = {**networks}
    generator = np.random.default_rng(1)
    lines = [" ".join(f"w{number}" for number in generator.integers(0, 2_000, WORDS)) for _ in range(20)]
    for name, model in networks.items():
        if not np.allclose(-model.scores(lines), [reference_loss(model, line) for line in lines], rtol=TOLERANCE):
            sys.exit(f"{name}: the losses of lines differ from those of NumPy: nothing was timed")
        if not np.array_equal([float(model.scores([line])[0]) for line in lines], model.scores(lines)):
            sys.exit(f"{name}: a line has another score alone than in a list: nothing was timed")
    words = [f"w{number}" for number in generator.integers(0, 2_000, CACHED + rounds)]
    check_growing_text(model, words)
    with tempfile.TemporaryDirectory() as folder:
        text = [line for line in STORIES.read_text(encoding="utf-8").splitlines() if line]
        models["5-gram model"] = fflm.train_ngram(STORIES, Path(folder, "ngram.model"), mode="sentence", tokenizer="space")
    models["mixture with caches"] = mixture(model)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    relative: dict[str, dict[str, float]] = {}
    with threadpool_limits(1, "blas"):
        for name, model in models.items():
            own = [line for line in text if len(line.split()) == WORDS][:20] if name == "5-gram model" else lines
            steps = growing_text(model, words) if isinstance(model, Mixture) else calls(model, own)
            times: dict[str, list[float]] = {step: [] for step in steps}
            for number in range(-1, rounds):
                for step, call in steps.items():
                    started = time.perf_counter()
                    call(number)
                    seconds = time.perf_counter() - started
                    if number >= 0:  # before the first round, kernels are compiled
                        times[step].append(1e6 * seconds / (LENGTH if step.startswith("generate") else 1))
            rows[name] = {step: {"fastest": min(each), **quartiles(each)} for step, each in times.items()}
            for step, row in rows[name].items():
                print(f"{name:30} {step:20} {row['fastest']:9,.1f} {row['median']:9,.1f} us, fastest and median")
            if name in networks:
                relative[name] = ratios(times["products in NumPy"], times["scores of one line"])
                print(f"{name}: {relative[name]['median']:.2f} times as long as the products")
    small, following = "quick network, 2,400 words", ("next_words", "generate, per word")
    found = [
        shortfalls({f"{name}: time relative to the products": row for name, row in relative.items()}, most=RATIO),
        shortfalls({f"{small}: microseconds of scores of one line": rows[small]["scores of one line"]}, most=SMALL),
        shortfalls({f"{name}: microseconds of {step}": rows[name][step] for name in rows for step in following}, most=NEXT),
    ]
    passed = show_verdict(*joined(found))
    record("calls", options.quick, about, passed=passed, rows=rows, relative_to_products=relative, words=WORDS)
    sys.exit(not passed and not options.quick)


if __name__ == "__main__":
    main()
