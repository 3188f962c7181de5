"""A training run in a folder: logged and saved as it goes, resumed where it stopped."""

import contextlib
import dataclasses
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from fflm.arguments import Device
from fflm.arrays import CHECKPOINT, CONFIG, LOG, WEIGHTS, load_arrays, meaning
from fflm.backend.devices import Compute
from fflm.errors import FflmError
from fflm.files import FolderLock, NewFolder, locked_folder, os_errors_as_fflm_error, remove_leftovers, sync, write_json
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters, shapes
from fflm.parallel.world import world
from fflm.signals import ctrl_c
from fflm.stored import read_json
from fflm.training.checkpoints import Checkpoint, check_shapes, save_weights
from fflm.training.events import DivergedError, Evaluation, Event, Finished, Losses, RolledBack, Step, Tested
from fflm.training.examples import Examples
from fflm.training.log import append_log, truncate_log
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer, sum_losses

DIVERGENCES = 5
"""Maximum number of times that a run returns to its checkpoint with half the learning rate."""

PARAMETERS = 2**36
"""Maximum number of parameters of a network."""

SAVE_SECONDS = 60.0
"""Time between checkpoints, besides those at evaluations."""


Callback: TypeAlias = Callable[["Session", Event], None]
"""A function that is called with the session and each of its events."""


class Session(ABC):
    """A run and its folder. Create it with `start`, or with ``resume`` of a subclass; consume `events`.

    If the program was started in several processes, they train together: all of them must use a session in the same way. Only
    the first one writes files.

    Parameters
    ----------
    place
        The model's folder; a new one is not published yet.
    data
        The data to train on, as `parts` understands it.
    config, settings
        The network and its training.
    compute
        The device that trains, its threads and its precision.
    embeddings
        (V + 1, m) to start from, NaN in rows that are to be random.

    Attributes
    ----------
    path
        The model's folder.
    trainer
        The run itself.
    communicator
        The processes that train together.
    vectors
        Number of words whose embeddings were given to start from.
    valid
        The figures of the latest evaluation, on the validation part.
    """

    headlines: ClassVar[tuple[str, ...]]
    """The most important of the figures that `measure` returns."""

    embedding_scale: ClassVar[float] = 1.0
    """Factor of the random initial embeddings."""

    def __init__(
        self,
        place: Path | NewFolder,
        data: Any,
        config: NetworkConfig,
        settings: TrainingSettings,
        compute: Compute,
        embeddings: npt.NDArray[np.float32] | None = None,
    ) -> None:
        check_size(config)
        self._new = None if isinstance(place, Path) else place
        self.path = place if isinstance(place, Path) else place.path
        self.data = data
        self.compute = compute
        self.communicator = world()
        parts = self.parts(config)
        self._test = parts.get("test")
        parameters = Parameters.random(config, settings.seed)
        parameters.start_from(parts["train"].counts(config.classes))
        if parameters.embeddings is not None:
            parameters.embeddings[...] *= self.embedding_scale
        self.vectors = 0 if embeddings is None else parameters.take_embeddings(embeddings)
        network = Network(config, compute.backend())
        self.trainer = Trainer(network, parameters, parts["train"], parts.get("valid"), settings, self.communicator)
        self.save_seconds = SAVE_SECONDS
        self.valid: dict[str, Any] | None = None
        self._saved = time.monotonic()
        self._process: int | None = None  # that has the folder locked for this run
        self._lock: FolderLock  # while it is locked
        self._config = self._settings = ""  # hashes of config.json, in the first process
        self._known: list[int | None] = []  # when the files were written that this run has written last, or read

    @classmethod
    def start(
        cls,
        new: NewFolder | Path,
        data: Any,
        config: NetworkConfig,
        settings: TrainingSettings,
        compute: Compute | None = None,
        embeddings: npt.NDArray[np.float32] | None = None,
    ) -> Self:
        """Start a run in a new folder, which is published at once, or when there are weights if it replaces a model.

        Parameters
        ----------
        new
            The model's folder, which is empty, except for the data that may be in it; in all processes but the first its path.
        data, config, settings, embeddings
            As for the class.
        compute
            By default the CPU, with one thread per core.

        Raises
        ------
        FflmError
            If the folder cannot be written.
        """
        session = cls(new, data, config, settings, compute or Compute.choose(), embeddings)
        session._check_same()
        if not session.communicator.first:
            return session
        about = {
            "training": settings.to_dict(),
            "processes": session.communicator.size,
            "threads": session.compute.threads,
            "device": session.compute.device,
            **session.description(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        session.save_description(about)
        session._set_meanings(read_json(session.folder / CONFIG, dict[str, Any]))
        size = session.trainer.parameters.count
        session._write("start", parameters=size, processes=session.communicator.size, **session.conditions())
        session._save()
        session._known = session._times()
        return session

    @classmethod
    @abstractmethod
    def resume(cls, path: Path, *, epochs: int | None = None, device: Device | None = None) -> Self:
        """Resume the run in a folder, as if it had never been interrupted.

        Parameters
        ----------
        path
            The model's folder.
        epochs
            A new number of epochs.
        device
            The device to continue on, if not the one that trained so far. Results differ by rounding. A run in mixed precision on
            the GPU continues in float32 on the CPU.

        Raises
        ------
        FflmError
            If there is no such run, it is going on elsewhere, its files are damaged, or the data is not what it began with.
        """

    @classmethod
    def _resume(cls, path: Path, data: Any, about: dict[str, Any], epochs: int | None, device: Device | None) -> Self:
        """Resume the run in a folder, which is locked, with the data that it started with; ``about`` is its config.json.

        ``epochs`` and ``device`` are those of `resume`.

        Raises
        ------
        FflmError
            If the folder's files are damaged, or the data is not what the run started with.
        """
        config, settings = NetworkConfig.from_dict(about["network"]), TrainingSettings.from_dict(about["training"])
        check_shapes(path / CHECKPOINT, config)
        checkpoint = Checkpoint.load(path / CHECKPOINT, meaning(about, training=True))
        processes = about.get("processes", 1)
        threads = max(1, about["threads"] * processes // world().size)  # as many as before, in all processes together
        compute = Compute.choose(threads, device or checkpoint.device or about.get("device", "cpu"))
        if compute.device == "cuda":
            compute = dataclasses.replace(compute, precision=about.get("precision", "fp32"))
        session = cls(path, data, config, settings, compute)
        session.vectors = about.get("vectors", 0)
        session._restore_from(checkpoint, about, epochs)
        return session

    @abstractmethod
    def parts(self, config: NetworkConfig) -> dict[str, Examples]:
        """Return the parts of the data as examples for a network: train, and perhaps valid and test."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Fingerprint of the data."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return the fields of a new run's config.json other than its settings, as JSON values."""

    @abstractmethod
    def save_description(self, about: Mapping[str, Any]) -> None:
        """Write the files that training does not change: config.json, with the fields ``about``, and what belongs to it."""

    @abstractmethod
    def conditions(self) -> dict[str, Any]:
        """Return the fields about the data in the first line of the log, as JSON values."""

    @abstractmethod
    def measure(self, name: str, losses: Losses, parameters: Parameters) -> dict[str, Any]:
        """Return the figures of the part ``name``, of losses and weights on the device, as JSON values."""

    @property
    def folder(self) -> Path:
        """Where the files are: at `path`; under a temporary name if a model is to be replaced and there are no weights yet."""
        return self._new.folder if self._new else self.path

    @property
    def published(self) -> bool:
        """Whether the files are at `path`."""
        return self.folder == self.path

    def discard(self) -> None:
        """Give up a run that is not published yet: what was at `path` stays there."""
        if self._new:
            self._new.discard()

    def _restore_from(self, checkpoint: Checkpoint, about: dict[str, Any], epochs: int | None) -> None:
        """Continue from a checkpoint, with a new number of epochs if one is given; ``about`` is the folder's config.json.

        The folder is locked. What changes is written to the checkpoint at once, and reported in config.json afterwards: after a
        kill between the two, the next one to go on reports it.
        """
        self._restore(checkpoint)
        settings, state = self.trainer.settings, self.trainer.state
        known = checkpoint.epochs
        if known is None:  # only config.json had it, which a kill may have left with a number that the run knows nothing of
            stopped = settings.patience and state.bad >= settings.patience
            known = state.epoch if state.finished and not stopped else settings.epochs
        wanted = epochs or checkpoint.epochs or settings.epochs
        if wanted != known:
            if wanted <= state.epoch:
                raise FflmError(f"{state.epoch} epochs are done already: give `epochs` a larger number")
            if state.finished:
                state.finished, state.bad = "", 0
        self.trainer.settings = dataclasses.replace(settings, epochs=wanted)
        self._check_same()  # all processes have read the files
        if not self.communicator.first:
            return
        self._set_meanings(about)
        truncate_log(self.folder / LOG, state.log_bytes)
        if self.communicator.size != about.get("processes", 1):
            self._write("resumed", step=state.step, processes=self.communicator.size)
        if (wanted, self.compute.device) != (known, checkpoint.device or about.get("device", "cpu")):
            self._save()
        reported = {**about, "training": self.trainer.settings.to_dict(), "device": self.compute.device}
        if reported != about:
            write_json(self.folder / CONFIG, reported)
        remove_leftovers(self.folder)
        self._known = self._times()

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Give the trainer the state of a checkpoint, which must be of the same data."""
        if checkpoint.corpus != self.fingerprint:
            raise FflmError(f"{self.path} was trained on other data: resume with that, or train again with `overwrite=True`")
        try:
            self.trainer.load_state_dict(checkpoint.state_dict)
        except FflmError as error:
            raise FflmError(f"{self.folder / CHECKPOINT} cannot be used: {error}") from error

    def _check_same(self) -> None:
        """Raise an FflmError unless all processes train the same network with the same settings on the same data."""
        trainer = self.trainer
        if self.communicator.size == 1:
            return
        texts = [repr(trainer.network.config), repr(trainer.settings), repr(trainer.state.step), self.fingerprint]
        self.communicator.check_same(
            [*texts, *trainer.parameters],
            "the processes do not train the same network on the same data: give all of them the same arguments and files",
        )

    def _set_meanings(self, about: dict[str, Any]) -> None:
        """Compute the hashes of config.json that are stored with the weights and with the checkpoint."""
        self._config, self._settings = meaning(about), meaning(about, training=True)

    @property
    def figures(self) -> dict[str, Any]:
        """Figures of the best weights so far, as they are stored with them."""
        _, figures = load_arrays(self.folder / WEIGHTS, of=dict[str, Any], config=self._config)
        return dict(figures)

    def events(self) -> Iterator[Event]:
        """Train to the end, logging and saving; stop consuming at any event and call `save` to interrupt.

        A run that fails before it is published is discarded.

        Raises
        ------
        FflmError
            If training diverges again and again, a file cannot be written, or another run has gone on in the folder.
        """
        try:
            with self.locked():
                while True:
                    try:
                        for event in self.trainer.run():
                            self._record(event)
                            yield event
                        if self._test is not None:
                            yield self._evaluate_test(self._test)
                        return
                    except DivergedError as error:
                        yield self._roll_back(error)
        except Exception:
            self.discard()
            raise

    def finish(self, *callbacks: Callback) -> bool:
        """Train to the end, or until Ctrl-C, which ends training after the current step and saves.

        A run that is interrupted before it is published is discarded.

        Parameters
        ----------
        *callbacks
            Functions that are called with the session and each event.

        Returns
        -------
        bool
            Whether training came to its end.

        Raises
        ------
        FflmError
            As `events`.
        KeyboardInterrupt
            If Ctrl-C comes before the first step, or a second time. The last checkpoint is where training resumes.
        """
        try:
            with ctrl_c() as interrupted:
                if interrupted.received:
                    raise KeyboardInterrupt
                for event in self.events():
                    interrupted.deferred = True  # from the first step on, because kernels may have to be compiled before it
                    stop = self.communicator.any(interrupted.received) and not self.trainer.state.finished
                    if stop and self.published:  # a model that has not been evaluated must not replace a trained one
                        self.save()  # before anything is shown, because the terminal may be closed
                    for callback in callbacks:
                        callback(self, event)
                    if stop:
                        return False
            self.communicator.barrier()  # until the first process has written all files
            return True
        finally:
            self.discard()

    def save(self) -> None:
        """Write the checkpoint to go on from; before the first evaluation also the weights, to use meanwhile.

        The first weights of a run that is to replace a model take that model's place. If there was no step yet, there are none.

        Raises
        ------
        FflmError
            If a file cannot be written, or another run has gone on in the folder.
        """
        with self.locked():
            self._save()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder inside the block. `events` and `save` do that, too, and may be used inside.

        Raises
        ------
        FflmError
            If another run is going on in the folder, or has changed it since this one was there; or if it was moved or replaced.
        """
        if not self.communicator.first:
            yield
            return
        if self._process == os.getpid():
            self._lock.check()
            yield
            return
        with locked_folder(self.folder) as self._lock:
            if self._times() != self._known:
                raise FflmError(f"{self.path} has been changed by another run: resume it from there")
            self._process = os.getpid()
            try:
                yield
            finally:
                self._process = None
                with contextlib.suppress(FflmError):  # what is at the path now may be another run's
                    self._lock.check()
                    self._known = self._times()

    def _times(self) -> list[int | None]:
        """Return when the files were written that another run would change."""
        paths = [self.folder / name for name in (CONFIG, CHECKPOINT)]
        return [path.stat().st_mtime_ns if path.exists() else None for path in paths]

    def _save(self) -> None:
        """Write the checkpoint, after what it refers to; then publish the folder, once there is no trained model to be lost."""
        if not self.communicator.first:
            return
        state = self.trainer.state
        if 0 < state.words == state.loss_words:
            self._save_weights({"step": state.step, "epoch": self._epochs(state.words)})
        with os_errors_as_fflm_error(f"write {self.folder / LOG}"):
            sync(self.folder / LOG)
        checkpoint = Checkpoint(self.trainer.state_dict(), self.fingerprint, self.trainer.settings.epochs, self.compute.device)
        checkpoint.save(self.folder / CHECKPOINT, self._settings)
        self._saved = time.monotonic()
        if self._new and not self.published and (state.words or not self._new.replaces):
            self._new.publish()
            if self._process == os.getpid():
                self._lock.folder = self.path

    def _save_weights(self, figures: dict[str, Any]) -> None:
        save_weights(self.folder, self.trainer.parameters.mapped(self.trainer.network.backend.download), figures, self._config)

    def _write(self, event: str, **fields: Any) -> None:
        if self.communicator.first:
            self.trainer.state.log_bytes = append_log(self.folder / LOG, event, **fields)

    def _record(self, event: Step | Evaluation | Finished) -> None:
        """Log an event, and save what is due."""
        if not self.communicator.first:
            return
        if isinstance(event, Evaluation | Finished):
            self._lock.check()
        if isinstance(event, Evaluation):
            figures: dict[str, Any] = {"step": event.step, "epoch": self._epochs(event.words)}
            figures["train_loss"] = event.train_loss
            if event.valid is not None:
                figures["valid"] = self.valid = self.measure("valid", event.valid, self.trainer.parameters)
            if event.best:
                self._save_weights(figures)
            self._write("evaluation", **{**dataclasses.asdict(event), "valid": figures.get("valid")})
            self.save()
        elif isinstance(event, Finished):
            # Not part of the state: a finished run that is resumed says it again, as it does its figures on the test.
            append_log(self.folder / LOG, "finished", reason=event.reason)
        elif time.monotonic() - self._saved > self.save_seconds:
            self.save()

    def _evaluate_test(self, test: Examples) -> Tested:
        """Evaluate the best weights on the test part, unless that was done, and store the figures with them."""
        communicator, network = self.communicator, self.trainer.network
        arrays, figures = (
            load_arrays(self.folder / WEIGHTS, of=dict[str, Any], config=self._config) if communicator.first else ({}, {})
        )
        if communicator.any(communicator.first and "test" not in figures):
            best = Parameters.from_arrays(network.config, arrays) if communicator.first else Parameters.zeros(network.config)
            for array in best:
                communicator.broadcast_array(array)
            weights = best.mapped(network.backend.upload)
            losses = sum_losses(network, weights, test, communicator)
            if communicator.first:
                figures = {**figures, "test": self.measure("test", losses, weights)}
                save_weights(self.folder, best, figures, self._config)
        if communicator.first:
            append_log(self.folder / LOG, "test", **figures["test"])
        return Tested(communicator.on_first(lambda: figures["test"]))

    def _roll_back(self, error: DivergedError) -> RolledBack:
        divergences = self.trainer.state.divergences + 1
        if divergences > DIVERGENCES:
            raise FflmError(f"training does not converge: {error}; try a lower `rate`, or a smaller `clip`") from error
        if self.communicator.first:
            self._lock.check()
            self._restore(Checkpoint.load(self.folder / CHECKPOINT, self._settings))
        self.trainer.synchronize()
        state = self.trainer.state
        state.divergences = divergences
        state.rate_factor /= 2
        event = RolledBack(state.step, str(error), state.rate_factor)
        self._write("rolled back", **dataclasses.asdict(event))
        self.save()
        return event

    def _epochs(self, words: int) -> float:
        """Return how many epochs some predicted words are."""
        return round(words / len(self.trainer.train), 2)


def check_size(config: NetworkConfig) -> None:
    """Raise an FflmError if a network has too many parameters."""
    count = sum(map(math.prod, shapes(config).values()))
    if count > PARAMETERS:
        raise FflmError(f"the network would have {count:,} parameters: choose smaller sizes of layers")
