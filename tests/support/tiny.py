"""Small models with random weights, for tests that need a model without training."""

import numpy as np

from fflm.models.base import Predictor
from fflm.models.neural.model import NeuralModel
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import LINE_END
from fflm.text.vocabulary import Vocabulary

MODES = {
    "sentence": TextSettings(mode="sentence"),
    "line ends": TextSettings(mode="stream"),
    "no ends": TextSettings(mode="stream", line_ends=False),
}
WORDS = ("the", "cat", "dog", "sat", "on", ".")


def tiny_model(text=MODES["sentence"], words=WORDS, *, window=3, seed=1):
    """Return a network whose distributions are far from uniform and depend on every word of the context."""
    counts = {word: 10 * (len(words) - index) for index, word in enumerate(words)} | ({LINE_END: 7} if text.ends else {})
    vocabulary = Vocabulary.from_counts(counts, ends=text.ends)
    config = NetworkConfig(
        vocabulary=len(vocabulary), window=window, averages=(), embedding=4, hidden=(6,), activation="tanh", tied=False
    )
    parameters = Parameters.random(config, seed)
    generator = np.random.default_rng(seed)
    for array in parameters:
        array[...] = generator.normal(0, 1, array.shape)
    return NeuralModel(config, parameters, vocabulary, text)


def exact_log_probabilities(model, contexts):
    """Return log p(word | context) of every word by a `tiny_model` in double precision: contexts (B, n) -> (B, V), nats."""
    arrays = model.parameters.mapped(lambda array: array.astype(np.float64))
    inputs = arrays.embeddings[contexts].reshape(len(contexts), model.config.inputs)
    hidden = np.tanh(inputs @ arrays.hidden_weights[0].T + arrays.hidden_biases[0])
    scores = hidden @ arrays.softmax_weight.T + arrays.output_bias
    return scores - np.logaddexp.reduce(scores, axis=1)[:, None]


class Bigrams(Predictor):
    """A predictor with p(word | previous word) from a table; words that the table does not have are rare."""

    window = 1

    def __init__(self, text, words, table):
        self.text = text
        self.vocabulary = Vocabulary.from_words(words, {}, ends=text.ends)
        ids = {word: id_ for id_, word in enumerate([*self.vocabulary.words, "<s>"])}
        self.table = np.full((len(ids), len(ids) - 1), 1e-3)
        for before, row in table.items():
            for word, probability in row.items():
                self.table[ids[before], ids[word]] = probability
        self.table /= self.table.sum(axis=1, keepdims=True)

    def log_probabilities(self, contexts):
        """Return the rows of the table for the last words of contexts."""
        return np.log(self.table[contexts[:, -1]])

    def losses(self, contexts, targets):
        """Return the negative entries of the table for contexts and targets."""
        return -np.log(self.table[contexts[:, -1], targets])
