"""Training an n-gram model on text, in a folder."""

from typing import Any

from fflm.arguments import (
    Overwrite,
    PathLike,
    Processes,
    Progress,
    Texts,
    checked,
    parameters,
    refuse_unknown,
)
from fflm.files import NewFolder
from fflm.models.corpora import describe_corpus
from fflm.models.creation import TEXT_OPTIONS, check_free, model_path, new_model, text_source
from fflm.models.ngram.estimate import estimate
from fflm.models.ngram.model import NgramModel
from fflm.models.ngram.settings import ORDER, Order, Prune, PruneEntropy, largest_pruned
from fflm.models.scoring import score_part
from fflm.parallel.launch import refuse_several_processes
from fflm.text.corpus import Corpus


@checked
def estimate_model(corpus: Corpus, order: Order = ORDER, prune: Prune = (), prune_entropy: PruneEntropy = 0.0) -> NgramModel:
    """Count the n-grams of a corpus's training part and estimate a model in memory.

    Raises
    ------
    FflmError
        If an argument is out of range.
    """
    tables, details = estimate(corpus.parts["train"].ids[:], corpus.vocabulary, corpus.settings, order, prune, prune_entropy)
    return NgramModel(tables, corpus.vocabulary, corpus.settings, {"ngram": {"order": order, **details}})


@checked
def train(
    inputs: Texts,
    path: PathLike | None = None,
    order: Order = ORDER,
    *,
    prune: Prune = (),
    prune_entropy: PruneEntropy = 0.0,
    overwrite: Overwrite = False,
    processes: Processes = None,
    progress: Progress = None,
    **fields: Any,
) -> NgramModel:
    """Train a model on text, in a folder, and evaluate it on what is held out.

    Parameters
    ----------
    inputs
        Files, folders or ``"-"``; or one folder made by `fflm.text.tokenize.tokenize`; or that of another model, for the same
        text with the same vocabulary.
    path
        The model's folder; by default ``stories.ngram`` for ``corpora/stories.txt``.
    order, ..., fields
        As `fflm.train_ngram` takes them, which lists them all.

    Raises
    ------
    FflmError
        If anything is wrong with them, the text or the folder, which is then as it was before.
    """
    refuse_several_processes("the training of an n-gram model")
    source = text_source(inputs, fields)
    place = model_path(path, source.inputs, "ngram")
    refuse_unknown(fields, OPTIONS)
    largest_pruned(prune, order)  # refused before the text is read
    with new_model(source, place, lambda: check_free(place, overwrite), processes=processes, progress=progress) as (new, corpus):
        model = estimate_model(corpus, order, prune, prune_entropy)
        model.about["corpus"] = describe_corpus(corpus, place)
        model.about["figures"] = {
            name: score_part(model, corpus.parts[name]).to_dict() for name in ("valid", "test") if name in corpus.parts
        }
        assert isinstance(new, NewFolder)
        model.save(new.folder)
        model.save_index(new.folder)
        new.publish()
    return NgramModel.load(place)


OPTIONS = {**parameters(train, "path"), **TEXT_OPTIONS}
"""What `train` takes."""
