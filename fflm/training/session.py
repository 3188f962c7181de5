"""A training run in a folder, which is logged and saved during training, and can be resumed."""

import contextlib
import dataclasses
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from fflm.arguments import Device
from fflm.arrays import CHECKPOINT, CONFIG, LOG, WEIGHTS, give_parts, load_arrays, meaning
from fflm.backend.devices import Compute
from fflm.clock import local_time
from fflm.errors import FflmError
from fflm.files import FolderLock, NewFolder, locked_folder, os_errors_as_fflm_error, remove_leftovers, sync, write_json
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters, parameter_count
from fflm.network.partition import Partition
from fflm.parallel.world import world
from fflm.signals import Interruption, ctrl_c
from fflm.stored import read_json
from fflm.training.checkpoints import Checkpoint, check_shapes, save_weights
from fflm.training.events import DivergedError, Evaluation, Event, Finished, Losses, RolledBack, Step, Tested
from fflm.training.examples import Examples
from fflm.training.log import append_log, truncate_log
from fflm.training.settings import Scheme, TrainingSettings
from fflm.training.teacher import Teacher, TeacherModel
from fflm.training.trainer import STOPPED, Requests, Trainer, sum_losses

DIVERGENCES = 5
"""Maximum number of times that a training run returns to its checkpoint, with half the learning rate, after it has diverged."""

PARAMETERS = 2**36
"""Maximum number of parameters of a network."""

SAVE_SECONDS = 60.0
"""Default of `Session.save_seconds`."""

EVALUATION_SECONDS = 10.0
"""Default of `Session.evaluation_seconds`."""


Callback: TypeAlias = Callable[["Session", Event], None]
"""A function that is called with the session and each of its events."""


class Session(ABC):
    """A training run and its folder. Create a session with `start` or `resume` of a subclass, and iterate over `events`.

    If the program was started in several processes, they train together: all of them must use a session in the same way. Only
    the first one writes files.

    Parameters
    ----------
    place
        The folder of the model, or a new folder that is not published yet.
    data
        The data to train on, whose type depends on the subclass (see `parts`).
    config, settings
        The configuration of the network and the settings of training.
    compute
        The device, the number of threads, and the precision of training.
    embeddings
        Initial embeddings, (V + 1, m) float32, with NaN in rows that are initialized at random. By default all are random.
    parameters
        The initial weights, on the CPU; by default random ones.
    parallel
        What several processes divide: the rows of each batch, or the words of the vocabulary.
    teacher
        The networks whose distributions replace a share of the targets; None for none.

    Attributes
    ----------
    path
        The folder of the model.
    data, compute, parallel
        As above.
    trainer
        The trainer.
    communicator
        The processes that train together.
    vectors
        Number of words whose initial embeddings were given.
    valid
        The figures of the last evaluation on the validation data; None if there is none.
    save_seconds, evaluation_seconds
        Seconds between checkpoints. One is also written after an evaluation, if the last one is ``evaluation_seconds`` old.
    label
        What progress calls the run if it is one of several, such as ``member 2 of 5``.
    """

    headlines: ClassVar[tuple[str, ...]]
    """The names of the most important figures that `measure` returns."""

    embedding_scale: ClassVar[float] = 1.0
    """Factor by which random initial embeddings are multiplied."""

    def __init__(
        self,
        place: Path | NewFolder,
        data: Any,
        config: NetworkConfig,
        settings: TrainingSettings,
        compute: Compute,
        embeddings: npt.NDArray[np.float32] | None = None,
        parameters: Parameters | None = None,
        parallel: Scheme = "data",
        teacher: TeacherModel | None = None,
    ) -> None:
        check_size(config)
        self._new = None if isinstance(place, Path) else place
        self.path = place if isinstance(place, Path) else place.path
        self.data = data
        self.compute = compute
        self.parallel = parallel
        divided = parallel == "vocabulary" and world().size > 1
        partition = Partition(config, world()) if divided else None
        parts = self.parts(config)
        self._test = parts.get("test")
        if parameters is None:
            words = partition.own if partition else slice(None)
            parameters = Parameters.random(config, settings.seed, words=words)
            parameters.start_from(parts["train"].counts(config.classes), words)
            if parameters.embeddings is not None:
                parameters.embeddings[...] *= self.embedding_scale
        elif partition:
            parameters = partition.own_part(parameters)
        self.vectors = 0 if embeddings is None else parameters.take_embeddings(embeddings)
        network = Network(config, compute.backend(), partition)
        affixes = self.affixes() if settings.affixes else None
        examples = [self.parts(each.config)["train"] for each in teacher.networks] if teacher else []
        teaching = Teacher(teacher.networks, examples, network.backend) if teacher else None
        self.trainer = Trainer(network, parameters, parts["train"], parts.get("valid"), settings, world(), teaching, affixes)
        self.communicator = self.trainer.communicator
        self.save_seconds, self.evaluation_seconds = SAVE_SECONDS, EVALUATION_SECONDS
        self.label = ""
        self.valid: dict[str, Any] | None = None
        self._saved = time.monotonic()  # when the last checkpoint was written
        self._interruption = Interruption()  # that of `finish`
        self._stop = False  # whether `stop` was called
        self.trainer.requested = Requests()
        self._process: int | None = None  # the id of the process that has locked the folder for this session
        self._lock: FolderLock  # the lock, while the folder is locked
        self._weights_meaning = self._checkpoint_meaning = ""  # hashes of config.json, which only the first process uses
        self._unsaved: dict[str, Any] | None = None  # the figures of an evaluation whose weights are not stored
        self._modified: list[int | None] = []  # the modification times of the files as this session has left or read them

    @classmethod
    def start(
        cls,
        new: NewFolder | Path,
        data: Any,
        config: NetworkConfig,
        settings: TrainingSettings,
        compute: Compute | None = None,
        embeddings: npt.NDArray[np.float32] | None = None,
        parameters: Parameters | None = None,
        parallel: Scheme = "data",
        teacher: TeacherModel | None = None,
    ) -> Self:
        """Start a training run in a new folder.

        The folder is published at once; but if it replaces a model, it is published as soon as there are weights.

        Parameters
        ----------
        new
            The folder of the model, which may contain the data, and is otherwise empty; in all processes but the first its path.
        data, config, settings, embeddings, parameters, parallel, teacher
            As for the class.
        compute
            As for the class; by default the CPU with one thread per core.

        Raises
        ------
        FflmError
            If the folder cannot be written.
        """
        session = cls(new, data, config, settings, compute or Compute.choose(), embeddings, parameters, parallel, teacher)
        session._check_same()
        if not session.communicator.first:
            session._save()
            return session
        about = {
            "training": settings.to_dict(),
            "processes": session.communicator.size,
            "parallel": parallel,
            "threads": session.compute.threads,
            "device": session.compute.device,
            "precision": session.compute.precision,
            **session.description(),
            **({"teacher": teacher.about} if teacher else {}),
            "created": local_time(),
        }
        session.save_description(about)
        session._set_meanings(read_json(session.folder / CONFIG, dict[str, Any]))
        size = parameter_count(config)
        session._write("start", parameters=size, processes=session.communicator.size, **session.conditions())
        session._save()
        session._modified = session._times()
        return session

    @classmethod
    @abstractmethod
    def resume(cls, path: Path, *, epochs: int | None = None, device: Device | None = None) -> Self:
        """Resume the training run in a folder. The results are the same as if it had not been interrupted.

        Parameters
        ----------
        path
            The folder of the model.
        epochs
            A new number of epochs; by default the number does not change.
        device
            A new device; by default the device does not change. On another device, results differ by rounding. Training in mixed
            precision or TF32 on a GPU continues in float32 on the CPU.

        Raises
        ------
        FflmError
            If there is no such run, another process is training in the folder, its files are damaged, or the data has changed.
        """

    @classmethod
    def _resume(
        cls,
        path: Path,
        data: Any,
        about: dict[str, Any],
        epochs: int | None,
        device: Device | None,
        teacher: TeacherModel | None = None,
    ) -> Self:
        """Resume the training run in a folder that the caller has locked.

        Parameters
        ----------
        path, epochs, device
            As for `resume`.
        data
            The data of the run.
        about
            The content of config.json.
        teacher
            As for the class.

        Raises
        ------
        FflmError
            If the files of the folder are damaged, or the data has changed.
        """
        config, settings = NetworkConfig.from_dict(about["network"]), TrainingSettings.from_dict(about["training"])
        check_shapes(path / CHECKPOINT, config)
        checkpoint = Checkpoint.load(path / CHECKPOINT, meaning(about, training=True), arrays=world().first)
        processes = about.get("processes", 1)
        threads = max(1, about["threads"] * processes // world().size)  # as many as before, in all processes together
        compute = Compute.choose(threads, device or checkpoint.device or about.get("device", "cpu"))
        if compute.device == "cuda":
            compute = dataclasses.replace(compute, precision=about.get("precision", "fp32"))
        session = cls(path, data, config, settings, compute, parallel=about.get("parallel", "data"), teacher=teacher)
        session.vectors = about.get("vectors", 0)
        session._restore_from(checkpoint, about, epochs)
        return session

    @abstractmethod
    def parts(self, config: NetworkConfig) -> dict[str, Examples]:
        """Return the parts of the data as examples for a network: ``train``, and if there are any, ``valid`` and ``test``."""

    def affixes(self) -> npt.NDArray[np.int32] | None:
        """Return the affixes of each word and of the padding, as for `Trainer`; None if no words have any in common."""
        return None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Fingerprint of the data."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return the fields of config.json of a new run, other than those about training, as JSON values."""

    @abstractmethod
    def save_description(self, about: Mapping[str, Any]) -> None:
        """Write the files that training does not change: config.json with the fields ``about``, and others such as the words."""

    @abstractmethod
    def conditions(self) -> dict[str, Any]:
        """Return the fields about the data in the first line of the log, as JSON values."""

    @abstractmethod
    def measure(self, name: str, losses: Losses, parameters: Parameters) -> dict[str, Any]:
        """Return the figures of an evaluation on a part of the data, as JSON values.

        Parameters
        ----------
        name
            The part: ``valid`` or ``test``.
        losses
            The losses on this part.
        parameters
            The weights, on the device.
        """

    @property
    def folder(self) -> Path:
        """The folder of the files: `path`, or a temporary folder until the run is published."""
        return self._new.folder if self._new else self.path

    @property
    def published(self) -> bool:
        """Whether the files are at `path`, and not in a temporary folder."""
        return self.folder == self.path

    def discard(self) -> None:
        """Remove the files of a run that is not published yet. What is at `path` does not change."""
        if self._new:
            self._new.discard()

    def _restore_from(self, checkpoint: Checkpoint, about: dict[str, Any], epochs: int | None) -> None:
        """Continue from a checkpoint, with a new number of epochs if one is given; ``about`` is the content of config.json.

        The caller has locked the folder. Changes are written to the checkpoint first, and then to config.json. If the process is
        killed in between, the next session that resumes the run writes them to config.json.
        """
        self._restore(checkpoint)
        settings, state = self.trainer.settings, self.trainer.state
        previous = checkpoint.epochs
        if previous is None:
            # In early versions, only config.json has the number of epochs. If a kill came after a new number was written, the
            # training state does not correspond to it.
            stopped = settings.patience and state.bad >= settings.patience
            previous = state.epoch if state.finished and not stopped else settings.epochs
        wanted = epochs or checkpoint.epochs or settings.epochs
        if wanted != previous:
            if wanted <= state.epoch:
                raise FflmError(f"{state.epoch} epochs are done already: give `epochs` a larger number")
            if state.finished:
                state.finished, state.bad = "", 0
        self.trainer.settings = dataclasses.replace(settings, epochs=wanted)
        self._check_same()  # all processes have read the files
        changed = (wanted, self.compute.device) != (previous, checkpoint.device or about.get("device", "cpu"))
        if not self.communicator.first:
            if changed:
                self._save()
            return
        self._set_meanings(about)
        truncate_log(self.folder / LOG, state.log_bytes)
        if self.communicator.size != about.get("processes", 1):
            self._write("resumed", step=state.step, processes=self.communicator.size)
        if changed:
            self._save()
        reported = {**about, "training": self.trainer.settings.to_dict(), "device": self.compute.device}
        if reported != about:
            write_json(self.folder / CONFIG, reported)
        remove_leftovers(self.folder)
        self._modified = self._times()

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        """Load the state of a checkpoint, which only the first process needs to have, into the trainer.

        Raises
        ------
        FflmError
            If the checkpoint does not belong to this run.
        """
        self._unsaved = None
        if checkpoint and checkpoint.corpus != self.fingerprint:
            raise FflmError(f"{self.path} was trained on other data: resume with that, or train again with `overwrite=True`")
        try:
            self.trainer.load_from_first(checkpoint.state_dict if checkpoint and self.communicator.first else None)
        except FflmError as error:
            raise FflmError(f"{self.folder / CHECKPOINT} cannot be used: {error}") from error

    def _check_same(self) -> None:
        """Raise an FflmError unless all processes train the same network with the same settings on the same data."""
        trainer = self.trainer
        if self.communicator.size == 1:
            return
        texts = [repr(trainer.network.config), repr(trainer.settings), repr(trainer.state.step), self.fingerprint]
        self.communicator.check_same(
            [*texts, *trainer.common],
            "the processes do not train the same network on the same data: give all of them the same arguments and files",
        )

    def _set_meanings(self, about: dict[str, Any]) -> None:
        """Compute the hashes of config.json that are stored with the weights and with the checkpoint; see `meaning`."""
        self._weights_meaning, self._checkpoint_meaning = meaning(about), meaning(about, training=True)

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of the best weights so far, which are stored with these weights."""
        _, figures = load_arrays(self.folder / WEIGHTS, of=dict[str, Any], config=self._weights_meaning)
        return dict(figures)

    def events(self) -> Iterator[Event]:
        """Train to the end, with log and checkpoints, and yield events.

        To interrupt training, stop the iteration at any event, and call `save`. A run that fails before it is published is
        discarded.

        Raises
        ------
        FflmError
            If training diverges more than `DIVERGENCES` times, a file cannot be written, or another run has changed the folder.
        """
        try:
            with self.locked():
                while True:
                    try:
                        for event in self.trainer.run(self._requests):
                            self._record(event)
                            yield event
                            if isinstance(event, Evaluation) and self.communicator.any(self._stop):
                                self._end()
                        if self._test is not None:
                            yield self._evaluate_test(self._test)
                        return
                    except DivergedError as error:
                        yield self._roll_back(error)
        except Exception:
            self.discard()
            raise

    def finish(self, *callbacks: Callback) -> bool:
        """Train to the end, or until Ctrl-C is pressed, which ends training after the current step and saves.

        A run that is interrupted before it is published is discarded.

        Parameters
        ----------
        *callbacks
            Functions that are called with the session and each event. What one of them raises ends training, after a checkpoint
            if there is one process only; of several, the others cannot take part in it.

        Returns
        -------
        bool
            Whether training was completed.

        Raises
        ------
        FflmError
            As for `events`.
        KeyboardInterrupt
            If Ctrl-C is pressed before the first step, or for the second time. Training can be resumed from the last checkpoint.
        """
        try:
            with ctrl_c() as interrupted:
                self._interruption = interrupted
                if interrupted.received:
                    raise KeyboardInterrupt
                for event in self.events():
                    interrupted.deferred = True  # not before the first step, because compiling kernels may take long
                    stop = self.trainer.requested.interrupt and not self.trainer.state.finished
                    # A model that has not been evaluated must not replace a trained model.
                    if stop and self.communicator.on_first(lambda: self.published):
                        self.save()  # save before the callbacks print anything, because the terminal may be closed
                    try:
                        for callback in callbacks:
                            callback(self, event)
                    except BaseException:
                        if self.communicator.size == 1 and self.published:
                            self.save()
                        raise
                    if stop:
                        return False
            self.communicator.barrier()  # until the first process has written all files
            return True
        finally:
            self.discard()

    def stop(self) -> None:
        """End training, as early stopping does: at once in a callback for an `Evaluation`, otherwise after an evaluation.

        That evaluation follows the next step, so that all processes stop after the same one; any of them may call this method.
        The best weights are kept, and evaluated on the test data. `fflm.resume` with more epochs continues training.
        """
        self._stop = True

    def save(self) -> None:
        """Write a checkpoint. Before the first evaluation, also write the weights, so that the model can be used.

        If the run replaces a model, it is published with its first weights, which exist after the first step.

        Raises
        ------
        FflmError
            If a file cannot be written, or another run has changed the folder.
        """
        with self.locked():
            self._save()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other runs in this context. `events` and `save` do the same, and may be used inside.

        Raises
        ------
        FflmError
            If another run has locked the folder, or has changed it since this session used it; or if it was moved or replaced.
        """
        if not self.communicator.first:
            yield
            return
        if self._process == os.getpid():
            self._lock.check()
            yield
            return
        with locked_folder(self.folder) as self._lock:
            if self._times() != self._modified:
                raise FflmError(f"{self.path} has been changed by another run: resume it from there")
            self._process = os.getpid()
            try:
                yield
            finally:
                self._process = None
                with contextlib.suppress(FflmError):  # the folder at this path may have been replaced by another run
                    self._lock.check()
                    self._modified = self._times()

    def _times(self) -> list[int | None]:
        """Return the modification times, in ns, of the files that another run would change; None for a missing file."""
        paths = [self.folder / name for name in (CONFIG, CHECKPOINT)]
        return [path.stat().st_mtime_ns if path.exists() else None for path in paths]

    def _save(self) -> None:
        """Write the checkpoint after the files that it refers to, and publish the folder.

        Without validation data, and before the first evaluation, the weights are those of the checkpoint. A folder that replaces
        a model is only published if there are weights. The first process writes, but all must call this.
        """
        state = self.trainer.state
        figures, evaluated = self._unsaved, state.loss_words < state.words
        if state.loss_words and (self.trainer.valid is None or not evaluated):
            figures = {"step": state.step, "epoch": self._epochs(state.words)}
            figures |= {"train_loss": state.loss_sum / state.loss_words} if evaluated else {}
        if figures:
            self._save_weights(figures)
        state_dict = self.trainer.state_dict()
        if not self.communicator.first:
            give_parts(state_dict["arrays"])
            return
        with os_errors_as_fflm_error(f"write {self.folder / LOG}"):
            sync(self.folder / LOG)
        checkpoint = Checkpoint(state_dict, self.fingerprint, self.trainer.settings.epochs, self.compute.device)
        checkpoint.save(self.folder / CHECKPOINT, self._checkpoint_meaning)
        self._saved = time.monotonic()
        if self._new and not self.published and (state.words or not self._new.replaces):
            self._new.publish()
            if self._process == os.getpid():
                self._lock.folder = self.path

    def _save_weights(self, figures: dict[str, Any]) -> None:
        """Write the current weights with their figures, which only the first process does; all processes must call this."""
        self._unsaved = None
        weights = self.trainer.weights()
        if weights and self.communicator.first:
            save_weights(self.folder, weights, figures, self._weights_meaning)
        elif weights:
            give_parts(dict(weights.items()))

    def _write(self, event: str, **fields: Any) -> None:
        """Append an event to the log, and record the length of the log in the state."""
        if self.communicator.first:
            self.trainer.state.log_bytes = append_log(self.folder / LOG, event, **fields)

    def _requests(self) -> Requests:
        """Return what this process asks for."""
        return Requests(self._stop, self._due(self.save_seconds), self._interruption.received)

    def _due(self, seconds: float) -> bool:
        """Return whether this is the first process, and the last checkpoint was written more than some seconds ago."""
        return self.communicator.first and time.monotonic() - self._saved > seconds

    def _end(self) -> None:
        """End training after an evaluation, unless it has ended."""
        state = self.trainer.state
        if not state.finished:
            state.finished = STOPPED
            self.save()

    def _record(self, event: Step | Evaluation | Finished) -> None:
        """Write an event to the log, and save the weights and the checkpoint if it is time to."""
        first = self.communicator.first
        if isinstance(event, Evaluation | Finished) and first:
            self._lock.check()
        if isinstance(event, Evaluation):
            figures: dict[str, Any] = {"step": event.step, "epoch": self._epochs(event.words)}
            figures["train_loss"] = event.train_loss
            if event.valid is not None and first:
                figures["valid"] = self.valid = self.measure("valid", event.valid, self.trainer.network_parameters())
            if event.valid is not None and event.best:
                self._save_weights(figures)
            elif event.best:  # without validation data, all weights count as the best, and are stored with the next checkpoint
                self._unsaved = figures
            self._write("evaluation", **{**dataclasses.asdict(event), "valid": figures.get("valid")})
            due = self._due(min(self.save_seconds, self.evaluation_seconds))
            if self.communicator.any(due or not self.published or bool(self.trainer.state.finished)):
                self.save()
        elif isinstance(event, Finished):
            # This does not change the state: if a finished run is resumed, it logs its end and its test figures again.
            if first:
                append_log(self.folder / LOG, "finished", reason=event.reason)
        elif self.trainer.requested.save:
            self.save()

    def _evaluate_test(self, test: Examples) -> Tested:
        """Evaluate the best weights on the test data, and store the figures with them, unless this was done before."""
        communicator, network = self.communicator, self.trainer.network
        arrays, figures = (
            load_arrays(self.folder / WEIGHTS, of=dict[str, Any], config=self._weights_meaning)
            if communicator.first
            else ({}, {})
        )
        if communicator.any(communicator.first and "test" not in figures):
            best = (
                Parameters.from_arrays(network.config, arrays, f"the weights in {self.folder / WEIGHTS}")
                if communicator.first
                else None
            )
            given = {f"parameters.{name}": array for name, array in best.items()} if best else {}
            own = {name.removeprefix("parameters."): array for name, array in self.trainer.own_from_first(given).items()}
            weights = Parameters.assemble(network.config, own).mapped(network.backend.upload)
            losses = sum_losses(network, weights, test, self.trainer.rows)
            if best:
                figures = {**figures, "test": self.measure("test", losses, weights)}
                save_weights(self.folder, best, figures, self._weights_meaning)
        if communicator.first:
            append_log(self.folder / LOG, "test", **figures["test"])
        return Tested(communicator.on_first(lambda: figures["test"]))

    def _roll_back(self, error: DivergedError) -> RolledBack:
        """Return to the last checkpoint with half the learning rate; raise an FflmError if this was done too often."""
        divergences = self.trainer.state.divergences + 1
        if divergences > DIVERGENCES:
            clip = "a smaller `clip`" if self.trainer.settings.clip else "`clip`"
            raise FflmError(f"training does not converge: {error}; try a lower `rate`, or {clip}") from error
        if self.communicator.first:
            self._lock.check()
        first, path = self.communicator.first, self.folder / CHECKPOINT
        self._restore(Checkpoint.load(path, self._checkpoint_meaning) if first else None)
        state = self.trainer.state
        state.divergences = divergences
        state.rate_factor /= 2
        event = RolledBack(state.step, str(error), state.rate_factor)
        self._write("rolled back", **dataclasses.asdict(event))
        self.save()
        return event

    def _epochs(self, words: int) -> float:
        """Return a number of predicted words in epochs, rounded to two decimal places."""
        return round(words / len(self.trainer.train), 2)


def check_size(config: NetworkConfig) -> None:
    """Raise an FflmError if a network has too many parameters."""
    count = parameter_count(config)
    if count > PARAMETERS:
        raise FflmError(f"the network would have {count:,} parameters: choose smaller sizes of layers")
