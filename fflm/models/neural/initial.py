"""Training that starts from a trained model: of its network on other text, with its vocabulary or a larger one."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from fflm.errors import FflmError, SettingsError
from fflm.models.neural.model import NeuralModel
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.text.corpus import Corpus
from fflm.text.settings import TextSettings
from fflm.text.tokenize import TextSource
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import VocabularyRule

_ADDED_WORDS = "min_count", "max_size", "source"
_CHANGEABLE = "dropout", "embedding_dropout"
_GIVEN = "vocabulary", "input", "numbers", "outputs", "output"


def settings_of_model(extended: bool) -> set[str]:
    """Return the names of the settings that the initial model gives, if its vocabulary is kept, or is ``extended``."""
    of = (NetworkConfig, Tokenizer, TextSettings, VocabularyRule)
    names = {"tokenizer", *(field.name for each in of for field in dataclasses.fields(each))}
    return names.difference(_ADDED_WORDS if extended else ())


@dataclass(frozen=True)
class InitialModel:
    """The model that training starts from, and whether words are added to its vocabulary.

    Raises
    ------
    FflmError
        If words cannot be added, because the model has an adaptive softmax.
    """

    path: Path
    model: NeuralModel
    extended: bool

    def __post_init__(self) -> None:
        if self.extended and self.model.config.bands:
            raise SettingsError(
                f"{self.path} has an adaptive softmax, to which no words can be added: leave out `extend_vocabulary`"
            )

    @classmethod
    def load(cls, path: Path, extended: bool) -> Self:
        """Load the model in a folder."""
        return cls(path, NeuralModel.load(path, verify=True), extended)

    def check_fields(self, names: Collection[str]) -> None:
        """Raise an FflmError if any of the names of settings that are given is of one that the model determines."""
        fixed = sorted(settings_of_model(self.extended).difference(_CHANGEABLE).intersection(names))
        if fixed:
            listed = ", ".join(f"`{name}`" for name in fixed)
            raise SettingsError(
                f"training that starts from {self.path} keeps its network and its way to read text: leave out {listed}"
            )

    def fields(self) -> dict[str, Any]:
        """Return the settings of the network, but for those that are the same in all language models, or depend on the text."""
        names = {field.name for field in dataclasses.fields(NetworkConfig)}
        return {name: getattr(self.model.config, name) for name in names.difference(_GIVEN)}

    def source(self, source: TextSource) -> TextSource:
        """Return a source whose text is read as the model reads text, with its vocabulary."""
        return dataclasses.replace(source, settings=self.model.text, base=self.model.vocabulary, extended=self.extended)

    def parameters(self, corpus: Corpus) -> Parameters:
        """Return the initial weights for the vocabulary of a corpus.

        The bias of each added word is that of ``<unk>``, plus the logarithm of the ratio of the word's frequency in the training
        text to that of ``<unk>`` in the text that the model was trained on; so is that of ``<unk>`` itself. Thus an added word
        is as probable after a context as its frequency says, if it has followed the context as often as other unknown words.

        Raises
        ------
        FflmError
            If the corpus was tokenized with another vocabulary.
        """
        before, after = self.model.vocabulary, corpus.vocabulary
        added = after.words[len(before) :]
        if after.words[: len(before)] != before.words or corpus.settings != self.model.text or (added and not self.extended):
            raise FflmError(f"{corpus.path} was not tokenized with the vocabulary of {self.path}: give the text instead")
        if not added:
            return self.model.parameters.mapped(np.copy)
        counts = np.array([after.counts[0], *after.counts[len(before) :]]) + 1.0
        unknown = (before.counts[0] + 1.0) / (sum(before.counts) + 1.0)
        return self.model.parameters.extended(np.log(counts / (sum(after.counts) + len(counts)) / unknown))
