"""The training of a text classifier, in its folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fflm.arguments import (
    Device,
    Overwrite,
    PathLike,
    Paths,
    Texts,
    check,
    checked,
    parameters,
    refuse_unknown,
    to_path,
    to_paths,
)
from fflm.arrays import CONFIG
from fflm.backend.devices import Compute
from fflm.errors import FflmError, SettingsError
from fflm.models.classifier.data import ClassifierData, LabeledSource
from fflm.models.classifier.features import read_lexicon
from fflm.models.classifier.metrics import Report
from fflm.models.classifier.model import ClassifierFile, probabilities, save_description
from fflm.models.classifier.settings import DEFAULTS, TAGGING, Balanced, Lexicons, TextInput, TokenizerMode, Vectors
from fflm.models.creation import TEXT_OPTIONS, check_free, model_path, new_folder, pop_fields, pop_tokenizer
from fflm.models.folder import opening_run
from fflm.models.neural.model import NeuralModel
from fflm.models.vectors import read_vectors, vector_size
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.parallel.launch import refuse_several_processes
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import Vocabulary, VocabularyRule
from fflm.training.events import Losses
from fflm.training.examples import Examples
from fflm.training.session import Session
from fflm.training.settings import TrainingSettings, refuse_idle


def default_epochs(examples: int) -> int:
    """Return a default number of epochs for a number of texts."""
    return next((epochs for epochs, most in ((50, 2_000), (20, 20_000), (5, 2_000_000)) if examples <= most), 2)


def default_batch_size(examples: int) -> int:
    """Return a default batch size for a number of texts: at least a hundred updates per epoch."""
    return next((size for size in (256, 128, 64, 32) if examples >= 100 * size), 16)


@checked
def start_session(
    inputs: Texts,
    path: PathLike | None = None,
    *,
    overwrite: Overwrite = False,
    vectors: Vectors = None,
    lexicons: Lexicons = (),
    balanced: Balanced = False,
    **fields: Any,
) -> "ClassifierSession":
    """Start to train a classifier: read the text, and set up network and folder.

    Parameters
    ----------
    inputs
        As `fflm.models.classifier.reading.read_labeled` takes them.
    path
        The classifier's folder; by default ``reviews.classifier`` for ``reviews.tsv``.
    overwrite, ..., fields
        As `fflm.train_classifier` takes them, which lists them all. Texts that are held out are drawn at random, of each class in
        proportion.

    Raises
    ------
    FflmError
        If anything is wrong with them, the text or the folder, which is then as it was before.
    """
    request = ClassifierRequest.of(inputs, {"lexicons": lexicons, "balanced": balanced, **fields})
    if Path("-") in request.source.inputs:
        refuse_several_processes("training a classifier on standard input")
    place = model_path(path, request.source.inputs, "classifier")
    start = None if vectors is None else to_path("vectors", vectors)
    if start and request.input.input == "features":
        raise SettingsError("features have no embeddings: leave out `vectors`, or choose another `input`")
    if request.settings.frozen and start is None:
        raise SettingsError("only embeddings that are given can be frozen: give `vectors`")
    refuse_idle(request.config, request.settings)
    with new_folder(place, lambda: check_free(place, overwrite)) as new:
        data, config, settings = request.read()
        embeddings = read_embeddings(start, data.reader.vocabulary) if start else None
        if embeddings is not None:
            config = dataclasses.replace(config, embedding=embeddings.shape[1])
        return ClassifierSession.start(new, data, config, settings, request.compute, embeddings)


@dataclass(frozen=True)
class ClassifierRequest:
    """What is asked for when a classifier is to be trained, before the text is read.

    Attributes
    ----------
    source, input, rule, balanced
        The labeled text, what a network reads of it, the vocabulary, and whether classes are taken as equally frequent.
    config, settings, automatic
        As `network_settings` returns them.
    compute
        The device, the number of threads, and the precision of training.
    """

    source: LabeledSource
    input: TextInput
    rule: VocabularyRule
    balanced: bool
    config: NetworkConfig
    settings: TrainingSettings
    automatic: list[str]
    compute: Compute

    @classmethod
    def of(cls, inputs: Texts, given: Mapping[str, Any]) -> Self:
        """Check inputs and settings, as `start_session` takes them, without ``path``, ``overwrite`` and ``vectors``.

        Raises
        ------
        FflmError
            If one of them is not valid.
        """
        fields = DEFAULTS | (TAGGING if given.get("input") == "tagging" else {}) | dict(given)
        source = LabeledSource(inputs, **pop_fields(fields, LabeledSource, "inputs"))  # type: ignore[arg-type]  # makes paths
        compute = Compute.choose(**pop_fields(fields, Compute))
        input = text_input(fields.pop("lexicons", ()), fields)
        rule = VocabularyRule(**pop_fields(fields, VocabularyRule, "words", "source"))
        balanced = check("balanced", Balanced, fields.pop("balanced", False))
        config, settings, automatic = network_settings(fields)
        refuse_unknown(fields, OPTIONS)
        return cls(source, input, rule, balanced, config, settings, automatic, compute)

    def read(self) -> tuple[ClassifierData, NetworkConfig, TrainingSettings]:
        """Read the text; return it with the settings that fit it."""
        parts = self.source.read(self.settings.seed, tagged=self.input.tagging)
        data = ClassifierData.of(parts, self.input, self.rule, self.balanced)
        return data, *resolve_settings(self.config, self.settings, self.automatic, data)


AUTOMATIC = ("batch_size", "epochs")
"""Settings that are chosen by the number of texts if they are None, or not given."""

NO_TRAINING = ("loss", "samples", "exact_end", "self_normalise", "adversarial", "affixes")
NO_NETWORK = ("vocabulary", "input", "numbers", "outputs", "output", "window", "averages", "word_weights", "tied", "bands")

OPTIONS = {
    **parameters(LabeledSource),
    **parameters(TextInput, "tokenizer", "lexicon"),
    "tokenizer": TEXT_OPTIONS["tokenizer"].replace(annotation=TokenizerMode),
    **parameters(Tokenizer, "mode", "subwords"),
    **parameters(VocabularyRule, "words", "source"),
    **parameters(NetworkConfig, *NO_NETWORK),
    **parameters(TrainingSettings, *NO_TRAINING),
    **parameters(Compute.choose),
    **parameters(start_session, "path"),
}
"""What `start_session` takes."""
for _name, _default in (DEFAULTS | dict.fromkeys(AUTOMATIC)).items():
    OPTIONS[_name] = OPTIONS[_name].replace(default=_default)


def text_input(lexicons: Paths, fields: dict[str, Any]) -> TextInput:
    """Make the input of a network of lexicons and of the fields of `TextInput`, which are removed from ``fields``."""
    lexicon = read_lexicon(to_paths("lexicons", lexicons)) if lexicons else {}
    return TextInput(tokenizer=pop_tokenizer(fields), lexicon=lexicon, **pop_fields(fields, TextInput, "tokenizer", "lexicon"))


def network_settings(fields: dict[str, Any]) -> tuple[NetworkConfig, TrainingSettings, list[str]]:
    """Take out of ``fields`` those of `NetworkConfig` and `TrainingSettings`; nonsense is refused before the text is read.

    What depends on the texts, and the settings that the third value names, are filled in by `resolve_settings`.
    """
    automatic = [name for name in AUTOMATIC if fields.get(name) is None]
    for name in automatic:
        fields.pop(name, None)
    settings = TrainingSettings(**pop_fields(fields, TrainingSettings, *NO_TRAINING))
    config = NetworkConfig(1, tied=False, outputs=2, **pop_fields(fields, NetworkConfig, *NO_NETWORK))
    return config, settings, automatic


def resolve_settings(
    config: NetworkConfig, settings: TrainingSettings, automatic: Sequence[str], data: ClassifierData
) -> tuple[NetworkConfig, TrainingSettings]:
    """Fill in what depends on the texts, after `network_settings`."""
    texts, reader = len(data.examples["train"]), data.reader
    if "batch_size" in automatic:
        settings = dataclasses.replace(settings, batch_size=default_batch_size(texts))
    if "epochs" in automatic:
        settings = dataclasses.replace(settings, epochs=default_epochs(texts))
    config = dataclasses.replace(
        config,
        vocabulary=len(reader.vocabulary),
        window=reader.input.window,
        outputs=len(data.labels),
        numbers=reader.width,
        input=reader.input.network,
    )
    return config, settings


class ClassifierSession(Session):
    """The training session of a text classifier. Create it with `start_session`, `start` or `resume`."""

    data: ClassifierData
    headlines = ("loss", "accuracy", "macro_f1")
    embedding_scale = 0.1  # a word that was not seen in training should say nothing

    @classmethod
    def resume(cls, path: Path, *, epochs: int | None = None, device: Device | None = None) -> Self:
        """Resume the run in a folder, as `Session.resume` says."""
        with opening_run(path, "classifier", ClassifierFile) as about:
            return cls._resume(path, ClassifierData.load(path, about), about, epochs, device)

    def parts(self, config: NetworkConfig) -> dict[str, Examples]:
        """Return the texts of each part."""
        return dict(self.data.examples)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the texts and their labels."""
        return self.data.fingerprint

    def description(self) -> dict[str, Any]:
        """Return what config.json says of the numbers of texts."""
        counts = self.data.examples["train"].counts(len(self.data.labels))
        return {"texts": self.data.sizes, "counts": counts.tolist()}

    def save_description(self, about: Mapping[str, Any]) -> None:
        """Write config.json, with the fields ``about``, the vocabulary and the texts."""
        data = self.data
        data.save_examples(self.folder)
        save_description(self.folder, self.trainer.network.config, data.labels, data.reader, data.shares, about)

    def conditions(self) -> dict[str, Any]:
        """Return the numbers of texts and words of each part."""
        return {"texts": self.data.sizes}

    def measure(self, name: str, losses: Losses, parameters: Parameters) -> dict[str, Any]:
        """Return the figures of a `Report`, as JSON values."""
        texts = self.data.examples[name]
        chances = probabilities(self.trainer.network, parameters, texts, self.data.shares)
        return Report.of(self.data.labels, chances, texts.labels).to_dict()


def read_embeddings(source: Path, vocabulary: Vocabulary) -> npt.NDArray[np.float32]:
    """Return a row a word of a vocabulary and one for the padding, NaN where the source has none: (V + 1, m)."""
    if not (source / CONFIG).is_file():
        return read_vectors(source, vocabulary, vector_size(source))
    model = NeuralModel.load(source, verify=True)
    known = model.vocabulary
    rows = np.full((len(vocabulary) + 1, model.config.embedding), np.nan, np.float32)
    for row, word in enumerate(vocabulary.words):
        if word in known:
            rows[row] = model.parameters.embeddings[known.id(word)]
    rows[[0, -1]] = model.parameters.embeddings[[known.unknown_id, known.start_id]]
    if np.isnan(rows[1:-1]).any(1).all():
        raise FflmError(f"{source} knows none of the words of the texts: give a model of this language, with the same tokenizer")
    return rows
