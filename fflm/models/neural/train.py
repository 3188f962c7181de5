"""Training a neural language model: a session in the model's folder, which saves checkpoints and can be resumed."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fflm.arguments import (
    Device,
    Overwrite,
    PathLike,
    Processes,
    Progress,
    Texts,
    checked,
    parameters,
    refuse_unknown,
    to_path,
)
from fflm.arrays import CONFIG
from fflm.backend.devices import Compute
from fflm.errors import FflmError, SettingsError
from fflm.models.corpora import describe_corpus, find_corpus, is_described
from fflm.models.creation import TEXT_OPTIONS, check_free, model_path, new_model, pop_fields, text_source
from fflm.models.folder import opening_run
from fflm.models.neural.initial import InitialModel
from fflm.models.neural.model import save_config
from fflm.models.neural.teacher import load_teacher, reload_teacher
from fflm.models.scoring import part_score
from fflm.models.vectors import read_vectors
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.parallel.world import world
from fflm.stored import REMEDY
from fflm.text.affixes import affixes_of
from fflm.text.corpus import Corpus
from fflm.text.windows import Windows
from fflm.training.events import Losses
from fflm.training.examples import Examples
from fflm.training.schemes import choose_scheme
from fflm.training.session import Session
from fflm.training.settings import (
    AUTOMATIC,
    TEACHER_WEIGHT,
    Extend,
    Initial,
    LossName,
    NetworkPreset,
    Parallel,
    TeacherPath,
    TeacherWeight,
    TrainingSettings,
    Vectors,
    refuse_idle,
)

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "quick": {
        "window": 5,
        "averages": (20,),
        "word_weights": False,
        "embedding": 64,
        "hidden": (128,),
        "direct": False,
        "dropout": 0.1,
        "embedding_dropout": 0.1,
        "adversarial": 0.0,
        "epochs": 3,
        "rate": 4e-3,
    },
    "best": {"members": 5},
    "bengio2003": {
        "window": 4,
        "averages": (),
        "embedding": 60,
        "hidden": (50,),
        "activation": "tanh",
        "direct": True,
        "tied": False,
        "dropout": 0.0,
        "embedding_dropout": 0.0,
        "epochs": 20,
        "batch_size": 1,
        "optimizer": "sgd",
        "rate": 1e-3,
        "schedule": "inverse",
        "decay": 1e-8,
        "weight_decay": 1e-4,
        "clip": 0.0,
        "adversarial": 0.0,
        "loss": "exact",
    },
}
"""The settings of each preset that differ from the defaults of `NetworkConfig` and `TrainingSettings`, or the number of networks.

``bengio2003`` is MLP1 in table 1 of Bengio et al. 2003, y = b + W x + U tanh(d + H x), trained as in section 4.2.
"""


def default_batch_size(words: int, vocabulary: int) -> int:
    """Return a batch size for a text: some thousand updates an epoch, within what is efficient and fits in memory."""
    largest = min(words // 300, 128 * 2**20 // (4 * vocabulary))
    return next((size for size in (512, 256, 128) if size <= largest), 64)


def default_loss(vocabulary: int) -> LossName:
    """Return the loss to train with: over a sample where a vocabulary is so large that the sample saves much."""
    return "sampled" if vocabulary > 16 * TrainingSettings.samples else "exact"


def default_adversarial(loss: LossName) -> float:
    """Return the strength of adversarial noise, which lowers the perplexity of a softmax on other text."""
    return 0.0 if loss == "nce" else 0.01


def default_window(averages: tuple[int, ...]) -> int:
    """Return the window of a network that sees these averages, which replace the words that are farther back."""
    return 4 if averages else 8


SMALL = 300_000
"""The number of words up to which a text is learned by heart through more inputs or weights; a network for a larger one gains."""

LARGE = 1_000_000
"""The number of words beyond which a network needs little dropout, because it cannot learn a text by heart in a few passes."""


def default_averages(words: int) -> tuple[int, ...]:
    """Return the averages that a network for a text sees."""
    return (4, 16, 64, 256) if words > SMALL else ()


def default_direct(words: int, tied: bool) -> bool:
    """Return whether there are direct connections. To output weights that are not tied they would be many for each word."""
    return tied and words > SMALL


def default_affixes(vocabulary: int, tied: bool, frozen: bool) -> bool:
    """Return whether words with a common affix learn from each other, which helps where many words are rare."""
    return vocabulary > 2000 and tied and not frozen


def default_dropout(words: int, adversarial: float) -> float:
    """Return the dropout of hidden units. With adversarial noise, a network for a larger text needs little or none."""
    if words <= SMALL or not adversarial:
        return 0.4
    return 0.1 if words <= LARGE else 0.0


def default_embedding_dropout(words: int, adversarial: float) -> float:
    """Return the dropout of the input. With adversarial noise, it is higher for texts of medium size, and low for large ones."""
    if words <= SMALL or not adversarial:
        return 0.2
    return 0.3 if words <= LARGE else 0.1


def default_weight_decay(words: int) -> float:
    """Return the weight decay, which is lower for large texts: weights decay in every step, and their epochs have more steps.

    Source: Wang & Aitchison 2024 (https://arxiv.org/abs/2405.13698).
    """
    return TrainingSettings.weight_decay * min(1.0, LARGE / words)


def default_epochs(words: int) -> int:
    """Return how many passes over a text are worth their time: the larger it is, the fewer."""
    return next((epochs for epochs, most in ((10, SMALL), (6, LARGE), (4, 3_000_000), (2, 30_000_000)) if words <= most), 1)


@checked
def start_session(
    inputs: Texts,
    path: PathLike | None = None,
    *,
    overwrite: Overwrite = False,
    processes: Processes = None,
    progress: Progress = None,
    vectors: Vectors = None,
    preset: NetworkPreset = "default",
    parallel: Parallel = "auto",
    initial: Initial = None,
    extend_vocabulary: Extend = False,
    teacher: TeacherPath = None,
    teacher_weight: TeacherWeight = TEACHER_WEIGHT,
    **fields: Any,
) -> "TrainingSession":
    """Start a training run: tokenize the text unless that was done, and set up network and folder.

    Parameters
    ----------
    inputs
        Files, folders or ``"-"``; or one folder made by `fflm.text.tokenize.tokenize`; or that of another model, for the same
        text with the same vocabulary.
    path
        The model's folder; by default that of `model_path`.
    overwrite, ..., fields
        As `fflm.train` takes them, which lists them all.

    Raises
    ------
    FflmError
        If anything is wrong with them, the text or the folder, which is then as it was before.
    """
    if teacher is None and teacher_weight != TEACHER_WEIGHT:
        raise SettingsError("`teacher_weight` has no effect without `teacher`: leave it out")
    base = None
    if initial is not None:
        if vectors is not None:
            raise SettingsError("a model to start from has embeddings: leave out `vectors`, or `initial`")
        base = InitialModel.load(to_path("initial", initial), extend_vocabulary)
        base.check_fields(fields)
    elif extend_vocabulary:
        raise SettingsError("there is no vocabulary to extend: give the model to start from (`initial`)")
    fields = PRESETS[preset] | (base.fields() if base else {}) | fields
    source = text_source(inputs, fields)
    if base:
        source = base.source(source)
    place = model_path(path, source.inputs)
    start = None if vectors is None else to_path("vectors", vectors)
    compute = Compute.choose(**pop_fields(fields, Compute))
    shape, settings, automatic = network_settings(fields, embeddings=vectors is not None or base is not None)
    refuse_unknown(fields, OPTIONS)
    refuse_idle(shape, settings, automatic)
    with new_model(source, place, lambda: check_free(place, overwrite), processes=processes, progress=progress) as (new, corpus):
        config, settings = resolve_settings(shape, settings, automatic, corpus)
        check_length(corpus, config)
        taught = None
        if teacher is not None:
            if parallel == "vocabulary":
                raise SettingsError("with a teacher, processes divide the rows of batches: leave out `parallel`")
            parallel = "data"
            taught = load_teacher(to_path("teacher", teacher), teacher_weight, corpus, place)
        scheme = choose_scheme(parallel, config, settings, world().size, compute.device)
        embeddings = read_vectors(start, corpus.vocabulary, config.embedding) if start else None
        weights = base.parameters(corpus) if base else None
        return TrainingSession.start(new, corpus, config, settings, compute, embeddings, weights, scheme, taught)


OPTIONS = {
    **parameters(NetworkConfig, "input", "numbers", "outputs", "output"),
    **parameters(TrainingSettings),
    **TEXT_OPTIONS,
    **parameters(Compute.choose),
    **parameters(start_session, "path"),
}
"""What `start_session` takes."""
for _name in AUTOMATIC:
    OPTIONS[_name] = OPTIONS[_name].replace(annotation=OPTIONS[_name].annotation | None, default=None)


def network_settings(fields: dict[str, Any], embeddings: bool = False) -> tuple[NetworkConfig, TrainingSettings, list[str]]:
    """Take out of ``fields`` those of `NetworkConfig` and `TrainingSettings`; nonsense is refused before the text is read.

    ``embeddings`` says whether the initial embeddings are given, so that they can be frozen.

    The vocabulary and the settings that the third value names depend on the text or on others: `resolve_settings` fills them in.
    """
    automatic = [name for name in AUTOMATIC if fields.get(name) is None]
    for name in automatic:
        fields.pop(name, None)
    config = NetworkConfig(
        vocabulary=1, **pop_fields(fields, NetworkConfig, "vocabulary", "input", "numbers", "outputs", "output")
    )
    settings = TrainingSettings(**pop_fields(fields, TrainingSettings))
    if settings.frozen and not embeddings:
        raise SettingsError("only embeddings that are given can be frozen: leave out `frozen`, or give `vectors` or `initial`")
    if settings.frozen and settings.affixes:
        raise SettingsError("the embeddings of words with affixes change in training: leave out `affixes`, or `frozen`")
    if config.bands and settings.loss != "exact":
        raise SettingsError(f"an adaptive softmax has no use for the loss {settings.loss}: leave out `bands`, or `loss`")
    return config, settings, automatic


def resolve_settings(
    config: NetworkConfig, settings: TrainingSettings, automatic: Sequence[str], corpus: Corpus
) -> tuple[NetworkConfig, TrainingSettings]:
    """Fill in what depends on the text and on other settings, after `network_settings`."""
    words, vocabulary = corpus.parts["train"].tokens, len(corpus.vocabulary)
    config = dataclasses.replace(config, vocabulary=vocabulary)
    if "averages" in automatic:
        config = dataclasses.replace(config, averages=default_averages(words))
    if "word_weights" in automatic:
        config = dataclasses.replace(config, word_weights=bool(config.averages))
    if "window" in automatic:
        config = dataclasses.replace(config, window=default_window(config.averages))
    if "batch_size" in automatic:
        settings = dataclasses.replace(settings, batch_size=default_batch_size(words, vocabulary))
    if "loss" in automatic and not config.bands:
        settings = dataclasses.replace(settings, loss=default_loss(vocabulary))
    if "direct" in automatic:
        config = dataclasses.replace(config, direct=default_direct(words, config.tied))
    if "adversarial" in automatic:
        settings = dataclasses.replace(settings, adversarial=default_adversarial(settings.loss))
    if "affixes" in automatic:
        settings = dataclasses.replace(settings, affixes=default_affixes(vocabulary, config.tied, settings.frozen))
    if "dropout" in automatic:
        config = dataclasses.replace(config, dropout=default_dropout(words, settings.adversarial))
    if "embedding_dropout" in automatic:
        config = dataclasses.replace(config, embedding_dropout=default_embedding_dropout(words, settings.adversarial))
    if "weight_decay" in automatic:
        settings = dataclasses.replace(settings, weight_decay=default_weight_decay(words))
    if "epochs" in automatic:
        settings = dataclasses.replace(settings, epochs=default_epochs(words))
    return config, settings


def check_length(corpus: Corpus, config: NetworkConfig) -> None:
    """Raise an FflmError if a part of a corpus has not a single context of a network."""
    for name, part in corpus.parts.items():
        if part.tokens <= config.window:
            remedy = "give more text or a smaller `window`"
            if name != "train":
                remedy += f", or none with `{name}=0`"
            raise FflmError(f"the {name} text has {part.tokens} tokens, too few for a window of {config.window}: {remedy}")


class TrainingSession(Session):
    """The training session of a network on text. Create it with `start_session`, `start` or `resume`."""

    data: Corpus
    headlines = ("loss", "perplexity")

    @property
    def corpus(self) -> Corpus:
        """The data."""
        return self.data

    @classmethod
    def resume(cls, path: Path, corpus: Corpus | None = None, *, epochs: int | None = None, device: Device | None = None) -> Self:
        """Resume the run in a folder, as `Session.resume` says; ``corpus`` is the same data, if it now lies elsewhere."""
        with opening_run(path, "network") as about:
            if corpus is None:
                corpus = Corpus.open(find_corpus(path, about["corpus"]))
            corpus.verify()
            if not is_described(corpus, about["corpus"]):
                reason = _difference(path, corpus, about)
                raise FflmError(
                    f"{path} was trained on other data ({reason}): resume with that, or train again with `overwrite=True`"
                )
            if about["network"]["vocabulary"] != len(corpus.vocabulary) or corpus.settings.to_dict() != about["text"]:
                raise FflmError(f"{path / CONFIG} is damaged (it does not fit the text): {REMEDY}")
            teacher = reload_teacher(about["teacher"], corpus, path) if "teacher" in about else None
            return cls._resume(path, corpus, about, epochs, device, teacher)

    def parts(self, config: NetworkConfig) -> dict[str, Examples]:
        """Return the windows of the parts of the corpus."""
        corpus = self.corpus
        return {
            name: Windows.of(part.ids, corpus.vocabulary, corpus.settings, config.context) for name, part in corpus.parts.items()
        }

    def affixes(self) -> npt.NDArray[np.int32] | None:
        """Return the affixes of each word and of the padding; None if no words have any in common."""
        affixes = affixes_of(self.corpus.vocabulary)
        return affixes if affixes.size else None

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the corpus."""
        return self.corpus.fingerprint

    def description(self) -> dict[str, Any]:
        """Return what config.json says of given embeddings and of the corpus."""
        return {
            "vectors": self.vectors,
            "corpus": describe_corpus(self.corpus, self.path),
        }

    def save_description(self, about: Mapping[str, Any]) -> None:
        """Write config.json, with the fields ``about``, and the vocabulary."""
        save_config(self.folder, self.trainer.network.config, self.corpus.settings, self.corpus.vocabulary, about)

    def conditions(self) -> dict[str, Any]:
        """Return the evaluation conditions."""
        return {"text": self.corpus.conditions}

    def measure(self, name: str, losses: Losses, parameters: Parameters) -> dict[str, Any]:
        """Return the losses on a part of the corpus as the figures of a `Score`, which are JSON values."""
        corpus = self.corpus
        return part_score(corpus.parts[name], corpus.vocabulary, corpus.settings, losses.total, losses.unknown).to_dict()


def _difference(path: Path, corpus: Corpus, about: dict[str, Any]) -> str:
    """Say in what a corpus differs from the one that a run began with."""
    if corpus.settings.to_dict() != about["text"]:
        return "the text is read differently"
    if len(corpus.vocabulary) != about["vocabulary"]["size"]:
        return "another vocabulary"
    for name, counts in about["corpus"].get("parts", {}).items():
        if name not in corpus.parts or corpus.parts[name].counts != counts:
            return f"another {name} text"
    return "the text or the vocabulary has changed"
