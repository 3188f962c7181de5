"""The work on a batch of records: their scores, and what is written of them. It is done in worker processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fflm.backend.cpu.launching import compute_on_calling_thread
from fflm.files import split_compression
from fflm.filtering.formats import make_format
from fflm.filtering.lines import score_lines
from fflm.filtering.quality import BLANK, BROKEN, MEASURES, DocumentScorer, Measures, chosen, figures
from fflm.filtering.records import Batch
from fflm.filtering.settings import FilterSettings


class Task(NamedTuple):
    """A batch of a file.

    Attributes
    ----------
    file
        The index of the file in the collection.
    name, target
        The name of the file, and its path below the output folder.
    writes
        Whether something is written of it.
    batch
        The batch, or None at the end of the file.
    first
        The number of its first record, from 1.
    measures
        The measures of its records (D,), if they are known.
    fraction
        The share of the file that was read.
    """

    file: int
    name: str
    target: str
    writes: bool
    batch: Batch | None = None
    first: int = 1
    measures: Measures | None = None
    fraction: float = 0.0


class Result(NamedTuple):
    """What was made of a task.

    Attributes
    ----------
    task
        The task, without its records.
    kept
        What is written of it, None for nothing.
    scores
        What is written of the scores beside the file.
    measures
        The measures of all records, (D,).
    selected
        The number of records that are kept.
    broken
        Why records are broken, by their numbers.
    """

    task: Task
    kept: Any
    scores: bytes
    measures: Measures
    selected: int
    broken: dict[int, str]


class FilterWorker:
    """Does the work on batches.

    Parameters
    ----------
    scorer
        Scores the documents.
    settings
        How the collection is filtered.
    threshold
        The highest perplexity to keep, if there is a share to keep.
    """

    def __init__(self, scorer: DocumentScorer, settings: FilterSettings, threshold: float | None) -> None:
        self._scorer = scorer
        self._settings = settings
        self._threshold = threshold

    def work(self, task: Task) -> Result:
        """Return what is made of a task."""
        batch = task.batch
        if batch is None:
            return Result(task, None, b"", np.empty(0, MEASURES), 0, {})
        format_ = make_format(self._settings, task.name, task.target)
        parsed = format_.parse(batch.payload)
        measures = task.measures
        if measures is None:
            readable, texts = parsed.readable
            measures = np.zeros(len(parsed.texts), MEASURES)
            measures["tokens"] = BLANK
            measures["tokens"][list(parsed.broken)] = BROKEN
            measures[readable] = self._scorer.measure(texts)
        light = task._replace(batch=batch._replace(payload=None), measures=None)
        broken = {task.first + index: reason for index, reason in parsed.broken.items()}
        if not task.writes:
            return Result(light, None, b"", measures, 0, broken)
        rows = np.flatnonzero(chosen(self._settings.selection, measures, self._threshold))
        scores = None if self._settings.scores == "none" else figures(measures)
        kept = None
        if len(rows):
            kept = format_.select(parsed, rows, scores if self._settings.in_record(task.name) else None)
        beside = b""
        if scores is not None and self._settings.beside(task.name):
            beside = score_lines(task.first, rows, scores, split_compression(task.target)[1])
        return Result(light, kept, beside, measures, len(rows), broken)


def prepare_worker(model: Path, settings: FilterSettings, threshold: float | None) -> Callable[[Task], Result]:
    """Load a model in a worker process; return the function that does the work on a task."""
    compute_on_calling_thread()
    scorer = DocumentScorer.load(model, settings.fast)
    scorer.measure(["a"])  # loads the kernels and makes their tables, which processes share that are forked afterwards
    return FilterWorker(scorer, settings, threshold).work
