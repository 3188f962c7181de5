"""A job that filters a collection, and goes on where it was interrupted or killed."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fflm.arguments import PathLike, Processes, convert, to_path
from fflm.errors import FflmError
from fflm.files import (
    LOCK,
    locked_folder,
    os_errors_as_fflm_error,
    remove_leftovers,
    replacing_folder,
    split_compression,
    write_json,
)
from fflm.filtering.formats import make_format
from fflm.filtering.journal import JOB, REMEDY, REPORT, Description, Journal
from fflm.filtering.lines import BytesPart, compressor, scores_target
from fflm.filtering.quality import MEASURES, DocumentScorer, Measures, figures, keep_threshold
from fflm.filtering.records import Part
from fflm.filtering.settings import FilterSettings
from fflm.filtering.sources import Source, file_system, find_sources, is_url, publish
from fflm.filtering.worker import FilterWorker, Result, Task, prepare_worker
from fflm.models.folder import fingerprint, has_fingerprint
from fflm.processors import usable_processors
from fflm.signals import ctrl_c
from fflm.stored import read_json
from fflm.workers import map_in_order

FOLDER = ".filter"
"""Name of the folder of a job in its output folder."""

SAVE_SECONDS = 10.0
"""Seconds between two lines of the journal about a file in progress."""

PERCENTILES = (10, 25, 50, 75, 90)


@dataclass(frozen=True)
class Progress:
    """How far a job has come.

    Attributes
    ----------
    writes
        Whether documents are selected, rather than scored before the selection.
    fraction
        The share of this pass that is done.
    name
        The file in progress.
    """

    writes: bool
    fraction: float
    name: str


@dataclass(frozen=True)
class Report:
    """What was filtered.

    Attributes
    ----------
    output
        The output folder or URL.
    files
        Number of files.
    documents, kept
        Number of documents, and of those that were kept.
    blank
        Number of documents without words.
    broken
        Why records are broken, by the name of the file and the number of the record, as in ``docs.jsonl:7``. They are not
        documents.
    oov_rate
        OOV rate of all documents together; None if they have no words.
    perplexities
        Percentiles of the perplexities of the documents, by their numbers, such as ``10``.
    threshold
        The highest perplexity that was kept, if there was a share to keep.
    model
        The model's folder, the size of its vocabulary, the rule by which its words were chosen, and whether ends are predicted.
    """

    output: str
    files: int
    documents: int
    kept: int
    blank: int
    broken: dict[str, str]
    oov_rate: float | None
    perplexities: dict[str, float]
    threshold: float | None
    model: dict[str, str | int]


def start_job(inputs: Iterable[str], output: str, model: PathLike, settings: FilterSettings) -> "FilterJob":
    """Start a job.

    Parameters
    ----------
    inputs
        Files and folders, as paths and URLs.
    output
        The folder or URL for the filtered files, which must be empty.
    model
        The folder of the model.
    settings
        How the collection is filtered.

    Raises
    ------
    FflmError
        If the inputs cannot be found, their formats are unknown, the model is not a model, or the output exists or is a URL that
        cannot be used.
    """
    model = to_path("model", model).absolute()
    sources = find_sources(list(inputs))
    check_targets(settings, sources)
    if is_url(output):
        file_system(output)
    DocumentScorer.load(model, settings.fast)  # refuses a model that cannot score, before there is a folder
    root = _root(output)
    about = {
        "format": 1,
        "model": str(model),
        "fingerprint": fingerprint(model),
        "output": _absolute(output),
        "sources": [(_absolute(source.name), source.target) for source in sources],
        "settings": settings.to_dict(),
    }
    with replacing_folder(root, lambda: _check_free(root), "filtering into") as folder:
        (folder / FOLDER).mkdir()
        write_json(folder / FOLDER / JOB, about)
    return FilterJob(root / FOLDER)


def resume_job(output: str) -> "FilterJob":
    """Resume the job with an output folder or URL.

    Raises
    ------
    FflmError
        If there is none, its files are damaged, or its model has changed.
    """
    folder = _root(output) / FOLDER
    if not (folder / JOB).is_file():
        raise FflmError(f"{output} was not made by a filter: give the output folder of `fflm.filter`")
    return FilterJob(folder)


def _root(output: str) -> Path:
    """Return the folder with the folder of a job: the output folder, or one in the current folder if that is a URL."""
    return Path(f"{output.rstrip('/').rpartition('/')[2]}.filter") if is_url(output) else Path(output)


def _absolute(name: str) -> str:
    """Return a path that does not depend on the current folder, or a URL."""
    return name if is_url(name) else str(Path(name).absolute())


def check_targets(settings: FilterSettings, sources: Sequence[Source]) -> None:
    """Check the paths of the files that are written, below the output folder.

    Raises
    ------
    FflmError
        If the format of a file is unknown, or two files would be written to the same path.
    """
    targets: dict[str, str] = {}
    for source in sources:
        for target in (source.target, *([scores_target(source.target)] if settings.beside(source.name) else [])):
            if target in targets:
                both = f"{targets[target]} and {source.name}"
                raise FflmError(f"{both} would both be written to {target}: filter them into different folders")
            targets[target] = source.name


def _check_free(root: Path) -> None:
    with os_errors_as_fflm_error(f"write {root}"):
        if (root / FOLDER / JOB).exists():
            again = f"`fflm.resume_filter('{root}')`"
            raise FflmError(f"{root} was made by a filter: resume it with {again}, or choose another folder")
        if root.exists() and not (root.is_dir() and {path.name for path in root.iterdir()} <= {LOCK}):
            raise FflmError(f"{root} exists: choose another folder")


class FilterJob:
    """A job, which is started by `start_job` or resumed by `resume_job`.

    Parameters
    ----------
    folder
        The folder of the job.

    Attributes
    ----------
    output
        The output folder or URL.
    settings
        How the collection is filtered.
    sources
        The files.
    """

    def __init__(self, folder: Path) -> None:
        about = read_json(folder / JOB, Description, REMEDY)
        self.output: str = about["output"] if is_url(about["output"]) else str(folder.parent.absolute())  # which may be moved
        self.settings: FilterSettings = convert(about["settings"], FilterSettings)
        self.sources = [Source(*each) for each in about["sources"]]
        self._folder = folder
        self._model = Path(about["model"])
        with os_errors_as_fflm_error(f"read {self._model}"):
            same = has_fingerprint(self._model, about["fingerprint"])
        if not same:
            raise FflmError(f"{self._model} has changed since the job began: restore it, or {REMEDY}")
        self.journal = Journal(folder)
        self._threshold: float | None = None

    def run(self, processes: Processes = None, progress: Callable[[Progress], None] | None = None) -> Report:
        """Filter what is left to filter, and report on the whole collection.

        Parameters
        ----------
        processes
            Number of worker processes, by default one for each processor that this process may use. They are started only if a
            pass takes more than a few seconds.
        progress
            Called after each batch of documents.

        Raises
        ------
        FflmError
            If a file cannot be read or written; the job can be resumed when the cause is gone.
        """
        with ctrl_c(), locked_folder(self._folder, "filtering in"), os_errors_as_fflm_error(f"write {self._folder}"):
            for folder in (self._folder, self._folder.parent):
                remove_leftovers(folder)
            if not (self._folder / REPORT).exists():
                self._finish(processes or usable_processors(), progress)
            for index in range(len(self.sources)):
                self.journal.path(index, "measures").unlink(missing_ok=True)
            report: Report = convert(read_json(self._folder / REPORT, Report, REMEDY), Report)
        return replace(report, output=self.output)

    def _finish(self, processes: int, progress: Callable[[Progress], None] | None) -> None:
        """Make the passes that are left, and write the report."""
        if self.settings.selection.keep is not None:
            self._pass(False, processes, progress)
            self._threshold = keep_threshold(self.settings.selection, self._all_measures())
        self._pass(True, processes, progress)
        write_json(self._folder / REPORT, asdict(self._report()))

    def _pass(self, writes: bool, processes: int, progress: Callable[[Progress], None] | None) -> None:
        """Go through all files, and select documents, or only score them, before the selection."""
        writer: _Writer | None = None
        with closing(self._tasks(writes)) as tasks, closing(self._results(tasks, processes)) as results:
            try:
                for result in results:
                    writer = writer or _Writer(self, result.task)
                    writer.add(result)
                    if result.task.batch is None:
                        writer.finish()
                        writer = None
                    if progress:
                        fraction = (result.task.file + result.task.fraction) / len(self.sources)
                        progress(Progress(writes, fraction, result.task.name))
            finally:
                if writer:
                    writer.abandon()

    def _tasks(self, writes: bool) -> Generator[Task, None, None]:
        """Yield the batches that are left of all files."""
        measured = writes and self.settings.selection.keep is not None
        for index, source in enumerate(self.sources):
            done = self.journal.states.get((writes, index))
            if done and done.done:
                if writes:
                    self.publish(index)
                continue
            task = Task(index, source.name, source.target, writes)
            with source.open() as file:
                version, format_ = source.version(), make_format(self.settings, source.name, source.target)
                if measured and self.journal.states[False, index].version != version:
                    raise FflmError(f"{source.name} has changed since it was scored: restore it, or {REMEDY}")
                state = self.journal.begin(writes, index, version, format_.resumable)
                first, size = state.records, int(version[0]) if version[0].isdecimal() else 0  # some servers do not say it
                for batch in format_.read(file, source.name, state.end):
                    known = self._measures(index, first, batch.records) if measured else None
                    fraction = min(1.0, file.tell() / size) if size else 0.0
                    yield task._replace(batch=batch, first=first + 1, measures=known, fraction=fraction)
                    first += batch.records
            yield task._replace(fraction=1.0)

    def _results(self, tasks: Iterator[Task], processes: int) -> Generator[Result, None, None]:
        """Yield the results of tasks, from worker processes if it takes long."""
        work = FilterWorker(self._scorer, self.settings, self._threshold).work
        return map_in_order(work, tasks, processes, prepare_worker, (self._model, self.settings, self._threshold))

    @cached_property
    def _scorer(self) -> DocumentScorer:
        """The model, in this process."""
        return DocumentScorer.load(self._model, self.settings.fast)

    def publish(self, index: int) -> None:
        """Move the complete files that were made of a source below the output folder, unless that was done."""
        target = self.sources[index].target
        for suffix, name in (("scores", scores_target(target)), ("kept", target)):
            part = self.journal.path(index, suffix)
            if part.exists():
                publish(part, self.output, name)

    def _measures(self, index: int, start: int, count: int) -> Measures:
        """Return the measures of some records of a file."""
        path = self.journal.path(index, "measures")
        measures = np.empty(0, MEASURES)
        if path.exists():
            measures = np.fromfile(path, MEASURES, count, offset=start * MEASURES.itemsize)
        if len(measures) < count:
            raise FflmError(f"{path} is damaged (its end is missing): {REMEDY}")
        return measures

    def _all_measures(self) -> Measures:
        """Return the measures of all records, from the pass that made them."""
        writes = self.settings.selection.keep is None
        counts = [self.journal.states[writes, index].records for index in range(len(self.sources))]
        return np.concatenate([np.empty(0, MEASURES), *(self._measures(index, 0, count) for index, count in enumerate(counts))])

    def _report(self) -> Report:
        """Return the report on a job that is complete."""
        measures = self._all_measures()
        measures = measures[measures["tokens"] >= 0]
        perplexities = figures(measures)["perplexity"]
        perplexities = perplexities[~np.isnan(perplexities)]
        tokens = int(measures["tokens"].sum())
        states = [self.journal.states[True, index] for index in range(len(self.sources))]
        broken = {
            f"{source.name}:{record}": reason
            for source, state in zip(self.sources, states, strict=True)
            for record, reason in state.broken.items()
        }
        levels = np.percentile(perplexities, PERCENTILES).tolist() if len(perplexities) else []
        model = self._scorer.model
        return Report(
            output=self.output,
            files=len(self.sources),
            documents=len(measures),
            kept=sum(state.kept for state in states),
            blank=len(measures) - len(perplexities),
            broken=broken,
            oov_rate=int(measures["unknown"].sum()) / tokens if tokens else None,
            perplexities=dict(zip(map(str, PERCENTILES), levels, strict=False)),
            threshold=self._threshold,
            model={
                "path": str(self._model),
                "vocabulary": len(model.vocabulary),
                "rule": model.vocabulary.rule,
                "policy": model.text.policy,
            },
        )


class _Writer:
    """Writes what is made of a file, and keeps the journal about it.

    Parameters
    ----------
    job
        The job.
    task
        A task of the file.
    """

    def __init__(self, job: FilterJob, task: Task) -> None:
        self._job, self._key = job, (task.writes, task.file)
        self._journal = job.journal
        self._state = self._journal.states[self._key]
        self._format = make_format(job.settings, task.name, task.target)
        self._broken: dict[str, str] = {}
        self._saved = time.monotonic()
        self._parts: dict[str, Part] = {}
        if not (task.writes and job.settings.selection.keep is not None):
            self._parts["measures"] = BytesPart(*self._place("measures"))
        if not task.writes:
            return
        source = job.sources[task.file]
        with source.open() as file:
            self._parts["kept"] = self._format.part(*self._place("kept"), file, job.settings.in_record(task.name))
        if job.settings.beside(task.name):
            empty = compressor(split_compression(task.target)[1])(b"")
            self._parts["scores"] = BytesPart(*self._place("scores"), empty)

    def _place(self, suffix: str) -> tuple[Path, int]:
        """Return the path of a file in progress, and the size to which it is complete."""
        return self._journal.path(self._key[1], suffix), self._state.sizes.get(suffix, 0)

    def add(self, result: Result) -> None:
        """Write a result."""
        batch = result.task.batch
        if batch is None:
            return
        contents = {"measures": result.measures.tobytes(), "kept": result.kept, "scores": result.scores}
        for suffix, part in self._parts.items():
            if contents[suffix] is not None:
                part.write(contents[suffix])
        self._state.end = batch.end
        self._state.records += batch.records
        self._state.kept += result.selected
        self._broken |= {str(number): reason for number, reason in result.broken.items()}
        if self._format.resumable and time.monotonic() - self._saved >= SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        """Write everything to disk, and a line of the journal that says so."""
        for part in self._parts.values():
            part.sync()
        self._state.sizes = {suffix: part.size for suffix, part in self._parts.items()}
        self._journal.write(*self._key, self._broken)
        self._broken = {}
        self._saved = time.monotonic()

    def abandon(self) -> None:
        """Close the files in progress as they are."""
        for part in self._parts.values():
            part.abandon()

    def finish(self) -> None:
        """Complete the files in progress, and move them below the output folder."""
        for part in self._parts.values():
            part.close()
        self._state.sizes, self._state.done = {}, True
        self._journal.write(*self._key, self._broken)
        writes, index = self._key
        if writes:
            self._job.publish(index)
