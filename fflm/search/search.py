"""A search over settings: runs on one text, judged by their perplexity on its validation part, in a folder of their own.

Optuna proposes what to try and says which runs are hopeless. Its history is an SQLite file in the folder, in which every change
is a transaction, so that a kill at any moment loses none of it; a run that was interrupted goes on from its checkpoint. What is
tried next is a function of the seed, of the trial's number and of the trials before it, so that an interrupted search tries what
a whole one does.
"""

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Required, Self, TypedDict

import numpy as np
from msgspec import Meta

from fflm.arguments import (
    Device,
    PathLike,
    Paths,
    Positive,
    Precision,
    Processes,
    Progress,
    Threads,
    Workers,
    checked,
    refuse_unknown,
    to_path,
    to_paths,
)
from fflm.backend.cpu.launching import default_threads
from fflm.backend.devices import check_precision, choose_device
from fflm.errors import FflmError, install
from fflm.files import (
    FolderLock,
    NewFolder,
    check_regular,
    locked_folder,
    os_errors_as_fflm_error,
    remove_leftovers,
    write_json,
    write_text,
)
from fflm.models.corpora import describe_corpus, find_corpus, is_described
from fflm.models.creation import default_path, new_model, text_source
from fflm.models.description import CorpusReference, NetworkFigures
from fflm.models.folder import load_weights, read_config
from fflm.models.neural.train import OPTIONS, TrainingSession, check_length, network_settings, resolve_settings
from fflm.network.config import NetworkConfig
from fflm.search.space import (
    Choices,
    Range,
    SamplerName,
    Space,
    check_space,
    count_values,
    extreme_values,
    logarithmic,
    part_from_dict,
    rounded,
    show,
    with_values,
)
from fflm.stored import check_json, read_json
from fflm.text.corpus import Corpus
from fflm.training.events import USELESS, DivergedError, Evaluation, Event, Finished
from fflm.training.session import check_size
from fflm.training.settings import TrainingSettings

FORMAT, VERSION = "fflm search", 1

SEARCH, STUDY, TABLE = "search.json", "study.db", "trials.tsv"

REMEDY = "restore it from a copy, or start a new search"

State = Literal["complete", "pruned", "diverged", "refused", "running"]

TRIALS = 20
"""Trials of a search if nobody says how many, but for a grid, which is tried whole."""

STARTUP = 5
"""So many trials are drawn at random before a model guides them, and must be complete before others are pruned."""

ATTEMPTS = 100
"""How often another proposal is asked for in place of one that was tried before."""


@dataclass(frozen=True)
class Trial:
    """What became of a try.

    Attributes
    ----------
    number
        From 1.
    values
        Of the settings that are searched.
    state
        ``complete``; ``pruned``, given up because it was worse than the median of others at the same place; ``diverged``;
        ``refused``, because its values do not go together; ``running``, also while it is interrupted.
    loss
        On the validation text, nats per word: the lowest of all evaluations; None if there was none.
    epochs, seconds
        Trained for.
    reason
        Why it ended.
    """

    number: int
    values: Mapping[str, Any]
    state: State
    loss: float | None
    epochs: float
    seconds: float
    reason: str

    @property
    def perplexity(self) -> float | None:
        """Of the validation text."""
        return None if self.loss is None else math.exp(self.loss)


class PartFile(TypedDict, total=False):
    """A part of a space: a range, or choices."""

    low: float
    high: float
    values: Annotated[list[bool | float | str | list[int]], Meta(max_length=1000)]


class SearchFile(TypedDict, total=False):
    """What search.json says."""

    corpus: Required[CorpusReference]
    network: Required[NetworkConfig]
    training: Required[TrainingSettings]
    threads: Required[Workers]
    device: Device
    precision: Precision
    space: Required[Annotated[dict[str, PartFile], Meta(min_length=1)]]
    sampler: Required[SamplerName]
    trials: Required[Positive | None]
    prune: Required[bool]


class Outcome(TypedDict):
    """What the history says of a trial that ended."""

    state: State
    reason: str
    epochs: float
    seconds: float
    loss: Annotated[float, Meta(lt=USELESS)] | None


def ranking(trials: Sequence[Trial]) -> list[Trial]:
    """Sort trials: the complete ones by their perplexity, the best first, then the others by theirs."""
    return sorted(trials, key=lambda trial: (trial.state != "complete", math.inf if trial.loss is None else trial.loss))


@checked
def start_search(
    inputs: Paths,
    path: PathLike | None,
    space: Space,
    *,
    sampler: SamplerName = "bayesian",
    trials: Positive | None = None,
    prune: bool = True,
    processes: Processes = None,
    progress: Progress = None,
    threads: Threads = None,
    device: Device = "cpu",
    precision: Precision = "fp32",
    **fields: Any,
) -> "Search":
    """Begin a search: tokenize the text, once for all trials, unless that was done, and set up the folder.

    Parameters
    ----------
    inputs, processes, progress, threads, device, precision, fields
        As `fflm.train` takes them: the settings that all trials share. The test text is not looked at.
    path
        The folder of the search, which must not exist; by default ``stories.tune`` for ``corpora/stories.txt``.
    space
        What is searched.
    sampler
        ``bayesian``: a tree-structured Parzen estimator guides the search (Bergstra et al. 2011); ``random``; ``grid``: all
        combinations of choices.
    trials
        How many, at most; there are fewer if there are no more combinations.
    prune
        Whether to give up a trial that, at an evaluation, is worse than the median of those that got there and further.

    Raises
    ------
    FflmError
        If anything is wrong with them, the text or the folder, which then does not exist.
    """
    _optuna()
    device = choose_device(device)
    check_precision(precision, device)
    paths = to_paths("inputs", inputs)
    place = default_path(paths, "tune") if path is None else to_path("path", path)
    _check_new(place)
    source = text_source(paths, fields)
    shape, settings, automatic = network_settings(fields)
    refuse_unknown(fields, OPTIONS)
    check_space(space, sampler, shape, settings)
    with new_model(source, place, lambda: _check_new(place), processes=processes, progress=progress) as (new, corpus):
        if "valid" not in corpus.parts:
            raise FflmError("without validation text nothing tells a good setting from a bad one: give some with `valid`")
        config, settings = resolve_settings(shape, settings, automatic, corpus)
        for values in ({}, *extreme_values(space)):
            check_length(corpus, with_values(config, settings, values)[0])
        about = {
            "format": FORMAT,
            "version": VERSION,
            "corpus": describe_corpus(corpus, place),
            "network": config.to_dict(),
            "training": settings.to_dict(),
            "threads": threads or default_threads(),
            "device": device,
            "precision": precision,
            "space": {name: dataclasses.asdict(part) for name, part in space.items()},
            "sampler": sampler,
            "trials": trials,
            "prune": prune,
        }
        write_json(new.folder / SEARCH, about)
        Search(new.folder, corpus, about)  # makes the history, whose tables are not all there at once
        new.publish()
    return Search.open(place)


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
        raise FflmError(f"{path} is a search of another version of fflm: go on with that, or start a new search")
    check_json(about, SearchFile, str(path / SEARCH), REMEDY)
    return about


class Search:
    """A search and its folder. Made by `start_search`, `resume` or `open`; consume `events`.

    Attributes
    ----------
    path
        The folder: a description, the history, a table of all trials, the corpus, and the models of the best trial so far and of
        the one that is running.
    corpus
        The data.
    space
        What is searched.
    limit
        How many trials there are to be.
    run
        The training run of the trial that is running, if one is.
    save_seconds
        Time between its checkpoints; by default that of any run.
    """

    def __init__(self, path: Path, corpus: Corpus, about: Mapping[str, Any]) -> None:
        self.path = path
        self.corpus = corpus
        self.run: TrainingSession | None = None
        self.save_seconds: float | None = None
        self._lock: FolderLock  # while the folder is locked
        self.config = NetworkConfig.from_dict(about["network"])
        self.settings = TrainingSettings.from_dict(about["training"])
        self.threads: int = about["threads"]
        self.device = about.get("device", "cpu")
        self.precision = about.get("precision", "fp32")
        self.prune: bool = about["prune"]
        self._sampler: SamplerName = about["sampler"]
        try:
            self.space: Space = {name: part_from_dict(name, fields) for name, fields in about["space"].items()}
            check_space(self.space, self._sampler, self.config, self.settings)
            check_size(self.config)
        except FflmError as error:
            raise FflmError(f"{path / SEARCH} is damaged ({str(error).replace('`', '')}): {REMEDY}") from error
        if self.config.vocabulary != len(corpus.vocabulary):
            raise FflmError(f"{path / SEARCH} is damaged (the network has another vocabulary than the text): {REMEDY}")
        combinations = math.prod(count_values(part) for part in self.space.values())
        wanted = about["trials"] or (combinations if self._sampler == "grid" else TRIALS)
        self.limit = int(min(wanted, combinations))
        self._distributions = {name: _distribution(name, part) for name, part in self.space.items()}
        self._study = self._open_study()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the search in a folder to look at it.

        Raises
        ------
        FflmError
            If it is none, its files are damaged, or the data is not what it began with.
        """
        _optuna()
        about = _read_search(path)
        corpus = Corpus.open(find_corpus(path, about["corpus"]))
        if not is_described(corpus, about["corpus"]):
            raise FflmError(f"{path} was started on other data than {corpus.path} holds now: restore that, or start a new search")
        return cls(path, corpus, about)

    @classmethod
    def resume(cls, path: Path, *, trials: int | None = None) -> Self:
        """Open the search in a folder to go on with it, perhaps with a new number of trials.

        Raises
        ------
        FflmError
            As `open`, or if the search is going on elsewhere.
        """
        _read_search(path)
        with locked_folder(path):
            search = cls.open(path)
            search.corpus.verify()
            about = _read_search(path)
            if trials in (None, about["trials"]):
                return search
            write_json(path / SEARCH, {**about, "trials": trials})
            return cls.open(path)

    @property
    def trials(self) -> list[Trial]:
        """All trials, in the order in which they began."""
        return [self._trial(frozen) for frozen in self._history]

    @property
    def _history(self) -> list[Any]:
        """All trials, as Optuna has them."""
        with self._clear_errors():
            try:
                history: list[Any] = self._study.trials
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise FflmError(f"{self.path / STUDY} is damaged ({error}): {REMEDY}") from error
        if any(frozen.distributions != self._distributions for frozen in history):
            raise FflmError(f"{self.path / SEARCH} was changed after the search had started: {REMEDY}")
        return history

    @property
    def best(self) -> Trial | None:
        """The complete trial with the lowest perplexity; its model is `folder` of it."""
        return next((trial for trial in ranking(self.trials) if trial.state == "complete"), None)

    def folder(self, trial: Trial) -> Path:
        """Return where the model of a trial is, if it is the best or running."""
        return self.path / f"trial-{trial.number}"

    def figures(self, trial: Trial) -> dict[str, Any]:
        """Return how well the model of a trial predicts the validation text."""
        path = self.folder(trial)
        _, figures = load_weights(path, read_config(path, "network"), NetworkFigures)
        if "valid" not in figures:
            raise FflmError(f"{path} is damaged (it was not evaluated): {REMEDY}")
        valid: dict[str, Any] = figures["valid"]
        return valid

    def configure(self, values: Mapping[str, Any]) -> tuple[NetworkConfig, TrainingSettings]:
        """Return all settings of a trial."""
        return with_values(self.config, self.settings, values)

    def events(self) -> Iterator[TrainingSession | Event | Trial]:
        """Go through all trials that are left: of each the run, when it begins or goes on, its events, and what became of it.

        Stop consuming at any event and call `save` to interrupt.

        Raises
        ------
        FflmError
            If a file cannot be written, or the search is going on elsewhere.
        """
        with locked_folder(self.path) as self._lock, self._clear_errors():
            self._tidy()
            yield from self._events()

    def _events(self) -> Iterator[TrainingSession | Event | Trial]:
        while frozen := self._next():
            values = self._trial(frozen).values
            try:
                check_length(self.corpus, self.configure(values)[0])
            except FflmError as error:
                yield self._end(frozen, "refused", str(error))
                continue
            run = self.run = self._start(self._trial(frozen))
            state, reason = "complete", ""
            with run.locked():
                yield run
                try:
                    if self._hopeless(frozen):  # it was interrupted between an evaluation and this question
                        state = "pruned"
                    else:
                        for event in run.events():
                            yield event
                            if isinstance(event, Finished):
                                break  # before the test text is looked at
                            if isinstance(event, Evaluation) and self._hopeless(frozen):
                                state = "pruned"
                                break
                except FflmError as error:
                    if not isinstance(error.__cause__, DivergedError):
                        raise
                    state, reason = "diverged", str(error)
            yield self._end(frozen, state, reason or run.trainer.state.finished)

    def save(self) -> None:
        """Save the run of the trial that is running, to go on with it later."""
        if self.run:
            self.run.save()

    def _open_study(self) -> Any:
        optuna = _optuna()
        import sqlite3

        from sqlalchemy import NullPool

        if (self.path / STUDY).exists():
            check_regular(self.path / STUDY)
        path = (self.path / STUDY).resolve()
        engine = {"poolclass": NullPool, "creator": lambda: sqlite3.connect(path)}  # a URL must be UTF-8, a path need not
        with self._clear_errors():
            return optuna.create_study(
                storage=optuna.storages.RDBStorage("sqlite:///", engine_kwargs=engine),
                study_name="fflm",
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(seed=0),  # never asked: see _draw
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP) if self.prune else optuna.pruners.NopPruner(),
            )

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turn what may be wrong with the history into one line: damaged, no permission, disk full."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, _optuna().exceptions.OptunaError) as error:
            cause = error.__cause__ or error
            raise FflmError(
                f"{self.path / STUDY} cannot be used ({cause}): restore it from a copy, or start a new search"
            ) from error

    def _next(self) -> Any:
        """Return the trial that was interrupted, or a new one, or None when all are done; one of Optuna's."""
        self._lock.check()
        trials = self._history
        running = [frozen for frozen in trials if not frozen.state.is_finished()]
        if not running and len(trials) < self.limit:
            self._study.add_trial(self._draw(trials))
            running = self._history[-1:]
        return running[0] if running else None

    def _draw(self, past: Sequence[Any]) -> Any:
        """Return a trial to add, one that was not tried before if that can be.

        It is drawn in a copy of the study, with random numbers of its own, and then recorded in a single transaction.
        """
        optuna = _optuna()
        distributions, tried = self._distributions, [frozen.params for frozen in past]
        for attempt in range(ATTEMPTS):
            study = optuna.create_study(sampler=self._new_sampler(len(past), attempt))
            study.add_trials(past)
            study.ask(distributions)
            drawn = study.trials[-1]
            params = {name: rounded(value, self.space[name]) for name, value in drawn.params.items()}
            if params not in tried:
                break
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING, params=params, distributions=distributions, system_attrs=drawn.system_attrs
        )

    def _new_sampler(self, number: int, attempt: int) -> Any:
        """Return a sampler whose random numbers are those of a trial, from 0."""
        samplers = _optuna().samplers
        if self._sampler == "grid":  # takes the combinations in an order that the seed decides
            grid = {
                name: [show(value) for value in part.values] for name, part in self.space.items() if isinstance(part, Choices)
            }
            return samplers.GridSampler(grid, seed=self.settings.seed % 2**32)
        seed = int(np.random.SeedSequence([self.settings.seed, number, attempt]).generate_state(1)[0])
        if self._sampler == "random":
            return samplers.RandomSampler(seed)
        return samplers.TPESampler(n_startup_trials=STARTUP, seed=seed)

    def _start(self, trial: Trial) -> TrainingSession:
        """Begin the run of a trial, or go on with it."""
        path = self.folder(trial)
        if path.exists():
            run = TrainingSession.resume(path, self.corpus)
        else:
            with NewFolder(path) as new:
                config, settings = self.configure(trial.values)
                run = TrainingSession.start(
                    new, self.corpus, config, settings, threads=self.threads, device=self.device, precision=self.precision
                )
        if self.save_seconds is not None:
            run.save_seconds = self.save_seconds
        return run

    def _hopeless(self, frozen: Any) -> bool:
        """Report where the run stands, if it was evaluated just now, and return whether to give it up."""
        assert self.run
        state = self.run.trainer.state
        if not state.words or state.loss_words:
            return False
        trial = _optuna().trial.Trial(self._study, frozen._trial_id)
        if state.words not in frozen.intermediate_values:
            trial.report(state.best, state.words)
        return not state.finished and bool(trial.should_prune())

    def _end(self, frozen: Any, state: str, reason: str) -> Trial:
        """Record what became of a trial and remove the models that are not needed any more."""
        optuna = _optuna()
        trial = optuna.trial.Trial(self._study, frozen._trial_id)
        about: dict[str, Any] = {"state": state, "reason": reason, "epochs": 0.0, "seconds": 0.0, "loss": None}
        if self.run:
            standing = self.run.trainer.state
            about["epochs"] = round(standing.words / len(self.run.trainer.train), 2)
            about["seconds"] = round(standing.seconds, 3)
            about["loss"] = standing.best if standing.best < math.inf else None
        trial.set_user_attr("outcome", about)
        if state == "complete":
            self._study.tell(trial, about["loss"])
        else:  # what diverged is as bad as what is hopeless, and the sampler is to learn it
            states = optuna.trial.TrialState
            self._study.tell(trial, state=states.FAIL if state == "refused" else states.PRUNED)
        self.run = None
        self._tidy()
        return self._trial(self._history[frozen.number])

    def _trial(self, frozen: Any) -> Trial:
        """Return what is recorded of a trial."""
        values = {}
        for name, part in self.space.items():
            value = frozen.params[name]
            values[name] = next(one for one in part.values if show(one) == value) if isinstance(part, Choices) else value
        outcome: Any = {"state": "running", "loss": None, "epochs": 0.0, "seconds": 0.0, "reason": ""}
        if frozen.state.is_finished():
            outcome = frozen.user_attrs.get("outcome")
            check_json(outcome, Outcome, str(self.path / STUDY), REMEDY)
        return Trial(frozen.number + 1, values, **{name: outcome[name] for name in Outcome.__annotations__})

    def _tidy(self) -> None:
        """Write the table, and remove what no one needs: runs that were beaten or given up, and what a kill has left."""
        best, trials = self.best, self.trials
        rows: list[list[Any]] = [["trial", "state", "perplexity", "loss", "epochs", "seconds", *self.space]]
        for trial in ranking(trials):
            figures = (trial.number, trial.state, trial.perplexity, trial.loss, trial.epochs, trial.seconds)
            rows.append([*figures, *map(show, trial.values.values())])
        lines = ["\t".join("" if value is None else str(value) for value in row) for row in rows]
        write_text(self.path / TABLE, "\n".join(lines) + "\n")
        needed = {self.folder(trial) for trial in trials if trial.state == "running" or trial == best}
        with os_errors_as_fflm_error(f"write {self.path}"):
            for folder in set(self.path.glob("trial-*")) - needed:
                shutil.rmtree(folder)
            for folder in (self.path, *needed):
                remove_leftovers(folder)


def _optuna() -> Any:
    """Import Optuna, and keep it quiet."""
    try:
        import optuna
    except ImportError as error:
        raise FflmError(f"tuning needs optuna: run {install('tune')}") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _distribution(name: str, part: Range | Choices) -> Any:
    """Return what Optuna calls a distribution."""
    distributions = _optuna().distributions
    if isinstance(part, Choices):
        return distributions.CategoricalDistribution(tuple(map(show, part.values)))
    if isinstance(part.low, int) and isinstance(part.high, int):
        return distributions.IntDistribution(part.low, part.high)
    return distributions.FloatDistribution(part.low, part.high, log=logarithmic(name, part))
