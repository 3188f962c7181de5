"""Training an n-gram model on text, in a folder."""

from pathlib import Path
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
from fflm.models.ngram.counting import Work
from fflm.models.ngram.estimate import estimate, estimate_on_disk, in_memory
from fflm.models.ngram.indexing import build_index
from fflm.models.ngram.kernels import Index
from fflm.models.ngram.model import NgramModel
from fflm.models.ngram.settings import MEMORY, ORDER, Memory, Order, Prune, PruneEntropy, Stages, largest_pruned, memory_bytes
from fflm.models.ngram.tables import Tables
from fflm.models.scoring import score_part
from fflm.parallel.world import world
from fflm.text.corpus import Corpus


@checked
def estimate_model(corpus: Corpus, order: Order = ORDER, prune: Prune = (), prune_entropy: PruneEntropy = 0.0) -> NgramModel:
    """Count the n-grams of a corpus's training part and estimate a model in memory.

    Raises
    ------
    FflmError
        If an argument is out of range.
    """
    tables, details = estimate(corpus.parts["train"].ids, corpus.vocabulary, corpus.settings, order, prune, prune_entropy)
    return NgramModel(tables, corpus.vocabulary, corpus.settings, {"ngram": {"order": order, **details}})


@checked
def train(
    inputs: Texts,
    path: PathLike | None = None,
    order: Order = ORDER,
    *,
    prune: Prune = (),
    prune_entropy: PruneEntropy = 0.0,
    memory: Memory = MEMORY,
    overwrite: Overwrite = False,
    processes: Processes = None,
    progress: Progress = None,
    stages: Stages = None,
    **fields: Any,
) -> NgramModel:
    """Train a model on text, in a folder, and evaluate it on what is held out.

    Several processes with the same file system count and interpolate together. The first one tokenizes the text, writes the model
    and evaluates it. The model does not depend on their number.

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
    communicator = world()
    source = text_source(inputs, fields)
    place = model_path(path, source.inputs, "ngram")
    refuse_unknown(fields, OPTIONS)
    largest_pruned(prune, order)  # refused before the text is read
    memory_bytes(memory)
    with new_model(source, place, lambda: check_free(place, overwrite), processes=processes, progress=progress) as (new, corpus):

        def make_folder() -> str:
            assert isinstance(new, NewFolder)
            folder = new.folder.with_name("ngrams")
            folder.mkdir()
            return str(folder)

        folder = Path(communicator.on_first(make_folder))
        work = Work(folder, memory_bytes(memory, communicator.size), communicator, stages)
        ids = corpus.parts["train"].ids
        estimated = estimate_on_disk(work, ids, corpus.vocabulary, corpus.settings, order, prune, prune_entropy)

        def save() -> None:
            assert isinstance(new, NewFolder)
            entries = None
            content: Tables | Index
            if estimated.levels:
                content, entries = build_index(work, estimated.levels, len(corpus.vocabulary) + 1)
            else:
                content = in_memory(estimated.arrays)
            about = {"ngram": {"order": order, **estimated.details}, "corpus": describe_corpus(corpus, place)}
            model = NgramModel(content, corpus.vocabulary, corpus.settings, about)
            model.about["figures"] = {
                name: score_part(model, corpus.parts[name]).to_dict() for name in ("valid", "test") if name in corpus.parts
            }
            model.save(new.folder, estimated.arrays)
            model.save_index(new.folder, entries)
            new.publish()

        communicator.on_first(save)
    return NgramModel.load(place)


OPTIONS = {**parameters(train, "path"), **TEXT_OPTIONS}
"""What `train` takes."""
