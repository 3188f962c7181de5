"""The history of a search: which trials there were, what became of them, and what to try next.

Optuna proposes the values of a trial and decides which trials to prune. Its study is a file in the search's folder, in which
every change is a transaction, so that a kill at any moment loses none of it: an SQLite file, or a journal, which also works on
file systems that several machines share. What a trial tries is a function of the seed, of its number and of the trials before
it, so that an interrupted search tries what an uninterrupted one does. This is the only module that imports Optuna.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
from msgspec import Meta

from fflm.errors import FflmError, install
from fflm.files import check_regular
from fflm.search.space import Choices, Range, SamplerName, Space, logarithmic, rounded, show
from fflm.stored import check_json
from fflm.training.events import MAX_LOSS

SEARCH = "search.json"

StorageName = Literal["sqlite", "journal"]

STUDIES: dict[StorageName, str] = {"sqlite": "study.db", "journal": "study.journal"}
"""The file of the study, by Optuna's storage."""

REMEDY = "restore it from a copy, or start a new search"


State = Literal["complete", "pruned", "diverged", "refused", "running"]


STARTUP = 5
"""Number of trials whose values are drawn at random before a model proposes them, and that must be complete before others are
pruned."""


ATTEMPTS = 100
"""How often another proposal is drawn in place of one that was tried before."""


@dataclass(frozen=True)
class Trial:
    """A trial of a search: the values it tries, and its outcome.

    Attributes
    ----------
    number
        Number of the trial, from 1.
    values
        Values of the settings that are searched.
    state
        ``complete``; ``pruned``, stopped because it was worse than the median of other trials at the same step; ``diverged``;
        ``refused``, because its values cannot be combined; ``running``, also while it is interrupted.
    loss
        The lowest validation loss of all evaluations, nats per word; None if there was no evaluation.
    epochs, seconds
        How long it trained.
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
        """Validation perplexity."""
        return None if self.loss is None else math.exp(self.loss)


class Outcome(TypedDict):
    """What the study records of a trial that ended."""

    state: State
    reason: str
    epochs: float
    seconds: float
    loss: Annotated[float, Meta(lt=MAX_LOSS)] | None


def ranking(trials: Sequence[Trial]) -> list[Trial]:
    """Sort trials: first the complete ones by their perplexity, the best first, then the others by theirs."""
    return sorted(trials, key=lambda trial: (trial.state != "complete", math.inf if trial.loss is None else trial.loss))


class Study:
    """The study in a search's folder, which is created if it does not exist. Several processes can use it at once.

    Parameters
    ----------
    path
        The file, of which the name is one of `STUDIES`, in the search's folder.
    space
        What is searched.
    sampler
        What proposes values, as `fflm.search.search.start_search` takes it.
    seed
        Random seed of the proposals.
    prune
        Whether trials are pruned.

    Raises
    ------
    FflmError
        If Optuna is not installed, or the file cannot be used.
    """

    def __init__(self, path: Path, space: Space, sampler: SamplerName, seed: int, prune: bool) -> None:
        self.path = path
        self._space = space
        self._sampler = sampler
        self._seed = seed
        self._distributions = {name: _distribution(name, part) for name, part in space.items()}
        self._study = self._open(prune)
        self._running: Any = None  # Optuna's record of the trial that `next_trial` returned

    def _open(self, prune: bool) -> Any:
        """Open or create Optuna's study."""
        optuna = import_optuna()
        if self.path.exists():
            check_regular(self.path)
        with self.errors_as_fflm_error(), self._damage_as_fflm_error():
            return optuna.create_study(
                storage=_journal(self.path) if self.path.name == STUDIES["journal"] else _sqlite(self.path),
                study_name="fflm",
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(seed=0),  # never used, because `_propose` has samplers of its own
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP) if prune else optuna.pruners.NopPruner(),
            )

    @contextlib.contextmanager
    def errors_as_fflm_error(self) -> Iterator[None]:
        """Raise an FflmError if the file is damaged, must not be written, or the disk is full, inside the block."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, import_optuna().exceptions.OptunaError) as error:
            cause = error.__cause__ or error
            raise FflmError(f"{self.path} cannot be used ({cause}): {REMEDY}") from error

    @contextlib.contextmanager
    def _damage_as_fflm_error(self) -> Iterator[None]:
        """Raise an FflmError if Optuna cannot make sense of what it reads inside the block."""
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise FflmError(f"{self.path} is damaged ({error}): {REMEDY}") from error

    @property
    def trials(self) -> list[Trial]:
        """All trials, in the order in which they started."""
        return [self._trial(frozen) for frozen in self._records]

    def next_trial(self, limit: int, claim: Callable[[int], bool]) -> Trial | None:
        """Return a trial that was interrupted, or else a new one, or None if there are ``limit`` trials already.

        Parameters
        ----------
        limit
            The number of trials.
        claim
            Reserves a trial, given its number, for this process; returns False if another process has reserved it. No other
            process may call this method at the same time.
        """
        records = self._records
        running = [frozen for frozen in records if not frozen.state.is_finished()]
        found = next((frozen for frozen in running if claim(frozen.number + 1)), None)
        if found is None and len(records) < limit:
            self._study.add_trial(self._propose(records))
            found = self._records[-1]
            claim(found.number + 1)
        self._running = found
        return self._trial(found) if found else None

    def report(self, words: int, loss: float) -> None:
        """Record the lowest loss so far of the running trial, which was trained on this number of words, unless that was done."""
        if words not in self._running.intermediate_values:
            self._running_trial().report(loss, words)

    def should_prune(self) -> bool:
        """Return whether the running trial, as it was reported, is worse than the median of others at the same step."""
        return bool(self._running_trial().should_prune())

    def finish(self, outcome: Outcome) -> Trial:
        """Record the outcome of the running trial, and return that trial."""
        states = import_optuna().trial.TrialState
        trial = self._running_trial()
        trial.set_user_attr("outcome", dict(outcome))
        if outcome["state"] == "complete":
            self._study.tell(trial, outcome["loss"])
        else:  # the sampler must learn that a trial that diverged is as bad as one that was pruned
            self._study.tell(trial, state=states.FAIL if outcome["state"] == "refused" else states.PRUNED)
        return self._trial(self._records[self._running.number])

    @property
    def _records(self) -> list[Any]:
        """All trials, as Optuna's frozen trials."""
        with self.errors_as_fflm_error(), self._damage_as_fflm_error():
            records: list[Any] = self._study.trials
        if any(frozen.distributions != self._distributions for frozen in records):
            raise FflmError(f"{self.path.with_name(SEARCH)} was changed after the search had started: {REMEDY}")
        return records

    def _running_trial(self) -> Any:
        """Return the running trial as an Optuna trial, through which it is reported."""
        return import_optuna().trial.Trial(self._study, self._running._trial_id)

    def _trial(self, frozen: Any) -> Trial:
        """Return the trial of a record."""
        values = {}
        for name, part in self._space.items():
            value = frozen.params[name]
            values[name] = next(one for one in part.values if show(one) == value) if isinstance(part, Choices) else value
        outcome: Any = {"state": "running", "loss": None, "epochs": 0.0, "seconds": 0.0, "reason": ""}
        if frozen.state.is_finished():
            outcome = frozen.user_attrs.get("outcome")
            check_json(outcome, Outcome, str(self.path), REMEDY)
        return Trial(frozen.number + 1, values, **{name: outcome[name] for name in Outcome.__annotations__})

    def _propose(self, past: Sequence[Any]) -> Any:
        """Return a record of a new trial whose values were not tried before, if there are such values.

        The values are drawn in a copy of the study in memory, by a sampler of their own. The record is added to the study in a
        single transaction.
        """
        optuna = import_optuna()
        distributions, tried = self._distributions, [frozen.params for frozen in past]
        for attempt in range(ATTEMPTS):
            study = optuna.create_study(sampler=self._new_sampler(len(past), attempt))
            study.add_trials(past)
            study.ask(distributions)
            drawn = study.trials[-1]
            params = {name: rounded(value, self._space[name]) for name, value in drawn.params.items()}
            if params not in tried:
                break
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING, params=params, distributions=distributions, system_attrs=drawn.system_attrs
        )

    def _new_sampler(self, number: int, attempt: int) -> Any:
        """Return the sampler of a trial, whose number counts from 0; its random numbers depend on nothing else than the seed."""
        samplers = import_optuna().samplers
        if self._sampler == "grid":  # takes the combinations in an order that the seed decides
            grid = {
                name: [show(value) for value in part.values] for name, part in self._space.items() if isinstance(part, Choices)
            }
            return samplers.GridSampler(grid, seed=self._seed % 2**32)
        seed = int(np.random.SeedSequence([self._seed, number, attempt]).generate_state(1)[0])
        if self._sampler == "random":
            return samplers.RandomSampler(seed)
        return samplers.TPESampler(n_startup_trials=STARTUP, seed=seed)


def import_optuna() -> Any:
    """Import Optuna, and silence its log.

    Raises
    ------
    FflmError
        If it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise FflmError(f"tuning needs optuna: run {install('tune')}") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _sqlite(path: Path) -> Any:
    """Return Optuna's storage in an SQLite file."""
    import sqlite3

    from sqlalchemy import NullPool

    resolved = path.resolve()
    engine = {"poolclass": NullPool, "creator": lambda: sqlite3.connect(resolved)}  # a URL must be UTF-8, a path need not
    return import_optuna().storages.RDBStorage("sqlite:///", engine_kwargs=engine)


def _journal(path: Path) -> Any:
    """Return Optuna's storage in a journal, whose lock also works on network file systems: it is a symbolic link."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path.resolve())))


def _distribution(name: str, part: Range | Choices) -> Any:
    """Return Optuna's distribution of the values of a setting."""
    distributions = import_optuna().distributions
    if isinstance(part, Choices):
        return distributions.CategoricalDistribution(tuple(map(show, part.values)))
    if isinstance(part.low, int) and isinstance(part.high, int):
        return distributions.IntDistribution(part.low, part.high)
    return distributions.FloatDistribution(part.low, part.high, log=logarithmic(name, part))
