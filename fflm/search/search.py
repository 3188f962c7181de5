"""A search over settings: training sessions on the same data, compared by their validation loss, in a folder of their own.

The `Study` says what to try and when to stop a trial early. Each trial is a training session in a folder within that of the
search, so that an interrupted trial resumes from its checkpoint. Only the models of the best and of running trials are kept.

Several processes can run one search, each one trial at a time. A process chooses its trial while it alone has the folder of the
search locked, and it keeps a file locked for its trial. When it ends, even if it is killed, the system releases that lock, and
the next process that looks for a trial resumes this one.
"""

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Required, Self, TypedDict

from msgspec import Meta

from fflm.arguments import (
    PathLike,
    Positive,
    Precision,
    Processes,
    Progress,
    Texts,
    Workers,
    checked,
    refuse_unknown,
    to_path,
)
from fflm.backend.devices import Compute
from fflm.errors import FflmError, SettingsError
from fflm.files import (
    FolderLock,
    NewFolder,
    lock_file,
    locked_folder,
    os_errors_as_fflm_error,
    remove_leftovers,
    watched_folder,
    write_json,
    write_text,
)
from fflm.models.classifier.model import DataFile, describe_data
from fflm.models.classifier.train import ClassifierRequest
from fflm.models.corpora import describe_corpus
from fflm.models.creation import model_path, new_model, pop_fields, text_source
from fflm.models.description import CorpusReference
from fflm.models.folder import VOCABULARY
from fflm.models.neural.train import OPTIONS, PRESETS, network_settings, resolve_settings
from fflm.network.config import NetworkConfig
from fflm.parallel.world import world
from fflm.search.data import CorpusData, LabeledData, SearchData, open_data
from fflm.search.space import (
    CHOICES,
    SamplerName,
    Space,
    check_space,
    count_values,
    extreme_values,
    part_from_dict,
    show,
    with_values,
)
from fflm.search.study import REMEDY, SEARCH, STUDIES, Outcome, State, StorageName, Study, Trial, import_optuna, ranking
from fflm.stored import check_json, read_json
from fflm.text.corpus import Corpus
from fflm.training.events import DivergedError, Evaluation, Event, Finished
from fflm.training.session import Session, check_size
from fflm.training.settings import NetworkPreset, TrainingSettings

FORMAT, VERSION = "fflm search", 1


TABLE = "trials.tsv"

TRIALS = 20
"""Default number of trials; of a grid, all combinations are tried by default."""

WAITING_SECONDS = 0.5
"""How long a process waits before it looks again for a trial that another process has left."""


class Waiting:
    """An event of a search: all trials that have not ended run in other processes. It comes every half second."""


class PartFile(TypedDict, total=False):
    """A range or choices, as search.json has them."""

    low: float
    high: float
    values: Annotated[list[bool | float | str | list[int | str] | None], Meta(max_length=CHOICES)]


class SearchFile(TypedDict, total=False):
    """The content of search.json, except for the data."""

    network: Required[NetworkConfig]
    training: Required[TrainingSettings]
    threads: Required[Workers]
    device: Literal["cpu", "cuda"]
    precision: Precision
    space: Required[Annotated[dict[str, PartFile], Meta(min_length=1)]]
    sampler: Required[SamplerName]
    trials: Required[Positive | None]
    prune: Required[bool]
    storage: StorageName


class NetworkSearchFile(SearchFile):
    """The content of search.json of a search for a language model."""

    corpus: CorpusReference


class ClassifierSearchFile(SearchFile, DataFile):
    """The content of search.json of a search for a text classifier."""


@dataclass(frozen=True)
class Plan:
    """How a search tries settings.

    Attributes
    ----------
    space
        What is searched.
    sampler
        ``bayesian``: a tree-structured Parzen estimator guides the search (Bergstra et al. 2011); ``random``; ``grid``: all
        combinations of choices.
    trials
        Maximum number of trials; there are fewer if there are fewer combinations.
    prune
        Whether to stop a trial early if it is worse, at an evaluation, than the median of the others at the same step.
    storage
        How Optuna stores the study: in an SQLite file, for processes on one machine, or in a journal, also for several machines.
    """

    space: Space
    sampler: SamplerName
    trials: int | None
    prune: bool
    storage: StorageName

    def start(
        self,
        new: NewFolder,
        data: SearchData,
        about: Mapping[str, Any],
        config: NetworkConfig,
        settings: TrainingSettings,
        compute: Compute,
    ) -> "Search":
        """Create and publish the folder of a search; ``about`` is what search.json says of its data."""
        for values in ({}, *extreme_values(self.space)):
            data.check(with_values(config, settings, values)[0])
        content = {
            "format": FORMAT,
            "version": VERSION,
            **about,
            "network": config.to_dict(),
            "training": settings.to_dict(),
            **dataclasses.asdict(compute),
            "space": {name: dataclasses.asdict(part) for name, part in self.space.items()},
            "sampler": self.sampler,
            "trials": self.trials,
            "prune": self.prune,
            "storage": self.storage,
        }
        write_json(new.folder / SEARCH, content)
        Search(new.folder, data, content)  # creates the study, whose tables are not all there at once
        new.publish()
        return Search.open(new.path)


@checked
def start_search(
    inputs: Texts,
    path: PathLike | None,
    space: Space,
    *,
    sampler: SamplerName = "bayesian",
    trials: Positive | None = None,
    prune: bool = True,
    storage: StorageName = "sqlite",
    processes: Processes = None,
    progress: Progress = None,
    preset: NetworkPreset = "default",
    **fields: Any,
) -> "Search":
    """Start a search for a language model: tokenize the text once for all trials, unless that was done, and set up the folder.

    Parameters
    ----------
    inputs, processes, progress, preset, fields
        As `fflm.train` takes them: the settings that all trials share. The test text is not looked at.
    path
        The folder of the search, which must not exist; by default ``stories.tune`` for ``corpora/stories.txt``.
    space, sampler, trials, prune, storage
        As for `Plan`.

    Raises
    ------
    FflmError
        If anything is wrong with them, the text or the folder, which then does not exist.
    """
    import_optuna()
    fields = PRESETS[preset] | fields
    source = text_source(inputs, fields)
    place = model_path(path, source.inputs, "tune")
    _check_new(place)
    compute = Compute.choose(**pop_fields(fields, Compute))
    shape, settings, automatic = network_settings(fields)
    refuse_unknown(fields, OPTIONS)
    check_space(space, sampler, shape, settings)
    plan = Plan(space, sampler, trials, prune, storage)
    with new_model(source, place, lambda: _check_new(place), processes=processes, progress=progress) as (new, corpus):
        config, settings = resolve_settings(shape, settings, automatic, corpus)
        about = {"corpus": describe_corpus(corpus, place)}
        assert isinstance(new, NewFolder)
        return plan.start(new, CorpusData(corpus), about, config, settings, compute)


@checked
def start_classifier_search(
    inputs: Texts,
    path: PathLike | None,
    space: Space,
    *,
    sampler: SamplerName = "bayesian",
    trials: Positive | None = None,
    prune: bool = True,
    storage: StorageName = "sqlite",
    **fields: Any,
) -> "Search":
    """Start a search for a text classifier: read the labeled text once for all trials, and set up the folder.

    Parameters
    ----------
    inputs, fields
        As `fflm.train_classifier` takes them, except for ``vectors``, ``frozen`` and ``overwrite``: the settings that all trials
        share. The test texts are not looked at.
    path
        The folder of the search, which must not exist; by default ``reviews.tune`` for ``reviews.tsv``.
    space, sampler, trials, prune, storage
        As for `Plan`.

    Raises
    ------
    FflmError
        If anything is wrong with them, the text or the folder, which then does not exist.
    """
    import_optuna()
    request = ClassifierRequest.of(inputs, fields)
    place = model_path(path, request.source.inputs, "tune")
    _check_new(place)
    if request.settings.frozen:
        raise SettingsError("trials have no embeddings that are given, which could be frozen: leave out `frozen`")
    check_space(space, sampler, request.config, request.settings, "classifier")
    with NewFolder(place, lambda: _check_new(place)) as new, os_errors_as_fflm_error(f"write {place}"):
        data, config, settings = request.read()
        data.save_examples(new.folder)
        data.reader.vocabulary.save(new.folder / VOCABULARY)
        about = {"kind": "classifier", **describe_data(data.labels, data.reader, data.shares)}
        plan = Plan(space, sampler, trials, prune, storage)
        return plan.start(new, LabeledData(data), about, config, settings, request.compute)


def _check_new(path: Path) -> None:
    """Raise an FflmError if there is anything at a path."""
    if path.exists():
        raise FflmError(f"{path} exists: `Search.resume('{path}')` resumes it, or choose another folder")


def _read_search(path: Path) -> dict[str, Any]:
    """Read the description of the search in a folder."""
    if not (path / SEARCH).is_file():
        raise FflmError(f"{path} is not a search: start one with `fflm.search.search.start_search`, or name another folder")
    about: dict[str, Any] = read_json(path / SEARCH, Any, REMEDY)
    if isinstance(about, dict) and about.get("format") == FORMAT and about.get("version") != VERSION:
        raise FflmError(f"{path} is a search of another version of fflm: resume it with that version, or start a new search")
    classifier = isinstance(about, dict) and about.get("kind") == "classifier"
    check_json(about, ClassifierSearchFile if classifier else NetworkSearchFile, str(path / SEARCH), REMEDY)
    return about


class Search:
    """A search and its folder. Made by `start_search`, `resume` or `open`; consume `events`.

    Attributes
    ----------
    path
        The folder: a description, the study, a table of all trials, the data, and the models of the best trial so far and of
        those that are running.
    data
        What all trials are trained on.
    space
        What is searched.
    limit
        Number of trials.
    run
        The training session of the trial that runs in this process, if there is one.
    save_seconds
        Time between its checkpoints; by default that of `Session`.
    """

    def __init__(self, path: Path, data: SearchData, about: Mapping[str, Any]) -> None:
        self.path = path
        self.data = data
        if world().size > 1:
            raise FflmError("a trial runs in one process: let each process leave the others first, with `separate`")
        self.run: Session | None = None
        self.save_seconds: float | None = None
        self._watched: FolderLock  # while trials run
        self.config = NetworkConfig.from_dict(about["network"])
        self.settings = TrainingSettings.from_dict(about["training"])
        self.compute = Compute.from_dict(about)
        self.prune: bool = about["prune"]
        self._sampler: SamplerName = about["sampler"]
        try:
            self.space: Space = {name: part_from_dict(name, fields) for name, fields in about["space"].items()}
            check_space(self.space, self._sampler, self.config, self.settings, data.kind)
            check_size(self.config)
        except FflmError as error:
            raise FflmError(f"{path / SEARCH} is damaged ({str(error).replace('`', '')}): {REMEDY}") from error
        if not data.fits(self.config):
            raise FflmError(f"{path / SEARCH} is damaged (the network has another vocabulary than the text): {REMEDY}")
        combinations = math.prod(count_values(part) for part in self.space.values())
        wanted = about["trials"] or (combinations if self._sampler == "grid" else TRIALS)
        self.limit = int(min(wanted, combinations))
        study = path / STUDIES[about.get("storage", "sqlite")]
        self._study = Study(study, self.space, self._sampler, self.settings.seed, self.prune)

    @classmethod
    @checked
    def open(cls, path: PathLike) -> Self:
        """Open the search in a folder to inspect it.

        Raises
        ------
        FflmError
            If the folder is not a search, its files are damaged, or the data is not that with which the search was started.
        """
        import_optuna()
        path = to_path("path", path)
        about = _read_search(path)
        return cls(path, open_data(path, about), about)

    @classmethod
    @checked
    def resume(cls, path: PathLike, *, trials: Positive | None = None) -> Self:
        """Open the search in a folder to resume it, optionally with a new number of trials.

        Raises
        ------
        FflmError
            As `open`.
        """
        path = to_path("path", path)
        _read_search(path)
        with locked_folder(path, wait=True):
            search = cls.open(path)
            search.data.verify()
            about = _read_search(path)
            if trials in (None, about["trials"]):
                return search
            write_json(path / SEARCH, {**about, "trials": trials})
            return cls.open(path)

    @property
    def corpus(self) -> Corpus:
        """The text of all trials, of a search for a language model."""
        assert isinstance(self.data, CorpusData)
        return self.data.corpus

    @property
    def trials(self) -> list[Trial]:
        """All trials, in the order in which they started."""
        return self._study.trials

    @property
    def best(self) -> Trial | None:
        """The complete trial with the lowest validation loss; its model is in `folder(best)`."""
        return next((trial for trial in ranking(self.trials) if trial.state == "complete"), None)

    def folder(self, trial: Trial) -> Path:
        """Return the folder of a trial, which exists if the trial is the best one or running."""
        return self.path / f"trial-{trial.number}"

    def _lock_path(self, number: int) -> Path:
        """Return the file that the process of a trial keeps locked."""
        return self.path / f"trial-{number}.lock"

    def figures(self, trial: Trial) -> dict[str, Any]:
        """Return the figures of the model of a trial on the validation part."""
        return self.data.figures(self.folder(trial))

    def configure(self, values: Mapping[str, Any]) -> tuple[NetworkConfig, TrainingSettings]:
        """Return all settings of a trial."""
        return with_values(self.config, self.settings, values)

    def events(self) -> Iterator[Session | Event | Trial | Waiting]:
        """Run remaining trials until all have ended, here or in other processes that run the search.

        Of each trial that runs here, yield its session, the events of the session, and the trial when it has ended. To interrupt
        the search, stop consuming at any event and call `save`.

        Raises
        ------
        FflmError
            If a file cannot be written.
        """
        with watched_folder(self.path) as self._watched, self._study.errors_as_fflm_error():
            with self._locked():
                self._tidy()
            while True:
                with contextlib.ExitStack() as claims:
                    trial = self._next(claims)
                    if trial:
                        yield from self._events(trial)
                if not trial:
                    if all(trial.state != "running" for trial in self.trials):
                        return
                    yield Waiting()
                    time.sleep(WAITING_SECONDS)

    def _events(self, trial: Trial) -> Iterator[Session | Event | Trial]:
        """Run a trial, and yield its events."""
        try:
            self.data.check(self.configure(trial.values)[0])
        except FflmError as error:
            yield self._end("refused", str(error))
            return
        run = self.run = self._start(trial)
        state: State = "complete"
        reason = ""
        with run.locked():
            yield run
            try:
                if self._should_prune():  # it was interrupted between an evaluation and this question
                    state = "pruned"
                else:
                    for event in run.events():
                        yield event
                        if isinstance(event, Finished):
                            break  # before the test text is looked at
                        if isinstance(event, Evaluation) and self._should_prune():
                            state = "pruned"
                            break
            except FflmError as error:
                if not isinstance(error.__cause__, DivergedError):
                    raise
                state, reason = "diverged", str(error)
        yield self._end(state, reason or run.trainer.state.finished)

    def save(self) -> None:
        """Save a checkpoint of the running trial, to resume it later."""
        if self.run:
            self.run.save()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Wait for the lock on the folder, and keep it inside the block."""
        self._watched.check()
        with locked_folder(self.path, wait=True):
            yield

    def _next(self, claims: contextlib.ExitStack) -> Trial | None:
        """Return the next trial to run, which is locked until the stack is closed, or None if there is none for this process."""
        with self._locked():
            return self._study.next_trial(self.limit, lambda number: lock_file(self._lock_path(number), claims))

    def _start(self, trial: Trial) -> Session:
        """Start the training session of a trial, or resume it."""
        path = self.folder(trial)
        if path.exists():
            run = self.data.resume(path)
        else:
            with NewFolder(path) as new:
                config, settings = self.configure(trial.values)
                run = self.data.start(new, config, settings, self.compute)
        run.evaluation_seconds = 0.0  # because the study stores each evaluation, and a trial must not be behind it
        if self.save_seconds is not None:
            run.save_seconds = self.save_seconds
        return run

    def _should_prune(self) -> bool:
        """Report the running trial to the study if it was evaluated just now, and return whether to stop it early."""
        assert self.run
        state = self.run.trainer.state
        if not state.words or state.loss_words:
            return False
        self._study.report(state.words, state.best)
        return not state.finished and self._study.should_prune()

    def _end(self, state: State, reason: str) -> Trial:
        """Record the outcome of the running trial, and remove the models that are not needed any more."""
        outcome: Outcome = {"state": state, "reason": reason, "epochs": 0.0, "seconds": 0.0, "loss": None}
        if self.run:
            progress = self.run.trainer.state
            outcome["epochs"] = round(progress.words / len(self.run.trainer.train), 2)
            outcome["seconds"] = round(progress.seconds, 3)
            outcome["loss"] = progress.best if progress.best < math.inf else None
        with self._locked():
            trial = self._study.finish(outcome)
            self._tidy()
        self.run = None
        return trial

    def _tidy(self) -> None:
        """Write the table; remove the models of all trials but the best and running ones, and what a killed process left."""
        best, trials = self.best, self.trials
        figures = ["number", "state", *(["perplexity"] if self.data.measure == "perplexity" else []), "loss", "epochs", "seconds"]
        rows: list[list[Any]] = [["trial", *figures[1:], *self.space]]
        rows += [[*(getattr(trial, name) for name in figures), *map(show, trial.values.values())] for trial in ranking(trials)]
        lines = ["\t".join("" if value is None else str(value) for value in row) for row in rows]
        write_text(self.path / TABLE, "\n".join(lines) + "\n")
        running = [trial for trial in trials if trial.state == "running"]
        needed = {self.folder(trial) for trial in (*running, *([best] if best else []))}
        locks = {self._lock_path(trial.number) for trial in running}
        with os_errors_as_fflm_error(f"write {self.path}"):
            for path in set(self.path.glob("trial-*")) - needed - locks:
                path.unlink() if path.suffix == ".lock" else shutil.rmtree(path)
            for folder in (self.path, *needed):
                remove_leftovers(folder)
