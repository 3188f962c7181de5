"""The training loop, which is a generator of events."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fflm.backend.common import placed
from fflm.backend.protocol import Array
from fflm.clock import running_time
from fflm.errors import FflmError, SettingsError
from fflm.network.feedforward import Network
from fflm.network.output import SAMPLE, Objective
from fflm.network.parameters import Parameters
from fflm.network.subset import Subset, frame, put, take
from fflm.parallel.communicator import SINGLE_PROCESS, Communicator
from fflm.shuffling import shuffled
from fflm.stored import REMEDY
from fflm.training.affix_vectors import AffixVectors
from fflm.training.events import MAX_LOSS, DivergedError, Evaluation, Finished, Losses, Step
from fflm.training.examples import Examples
from fflm.training.lazy_adam import LazyAdam
from fflm.training.optimizers import Optimizer
from fflm.training.sampling import Sampler
from fflm.training.schedules import rate_at
from fflm.training.settings import TrainingSettings
from fflm.training.state import State, StateDict, state_from_dict
from fflm.training.teacher import Teacher

EVALUATION_ROWS = 1024
"""Predicted words per evaluation batch."""

UNKNOWN = 0
"""The id of all words outside the vocabulary."""

STOPPED = "stopped by the program"
"""Why training has ended if `Session.stop` was called."""

MEAN_STEPS = 100
"""Number of batches over which `State.loss_mean` averages; with fewer batches, the average is not used."""


DRIFTED = (
    "the processes have computed different weights, as processors of different kinds may: "
    "use hosts of one kind, or set NUMBA_CPU_NAME=generic"
)
"""Message if processes that should have the same weights have not."""


class Requests(NamedTuple):
    """What a process asks for at a training step.

    Attributes
    ----------
    end
        That training ends with an evaluation after this step.
    save
        That a checkpoint is saved after this step.
    interrupt
        That the program ends, so that training can be resumed later.
    """

    end: bool = False
    save: bool = False
    interrupt: bool = False


@dataclass(frozen=True)
class _Batch:
    """A batch that is prepared for a training step.

    Attributes
    ----------
    contexts
        The inputs of the network, (B, n): the rows that this process computes.
    targets
        The targets of these rows, (B,).
    first, size
        The number of their first row in the batch, and the number of rows of the batch.
    objective
        The function to minimize.
    subset
        The rows of the parameters that the step uses, or None for all.
    exact
        Whether the loss is exact, and not over a sample of the words.
    """

    contexts: Array
    targets: Array
    first: int
    size: int
    objective: Objective
    subset: Subset | None
    exact: bool


class Trainer:
    """Trains the parameters of a network.

    Parameters
    ----------
    network
        The network. If it has a partition, all processes compute the same rows, and each has the parameters and moments of its
        own words.
    parameters
        The initial parameters, as NumPy arrays; with a partition, of own words only. On the CPU, they are changed in place.
    train
        The training data.
    valid
        The validation data. Without it, training does not stop early, and the last weights count as the best.
    settings
        The settings of training.
    communicator
        The processes that train together, with the same data. Without a partition, each has the same parameters and optimizer,
        computes the gradients of a share of the rows of each batch, and makes the same update with the sums over all processes.
    teacher
        The networks whose distributions replace a share of the targets, on the same device; by default there are none.
    affixes
        The affixes of each word and of the padding, (V + 1, K) int32, as for `AffixVectors`; None for none.

    Attributes
    ----------
    communicator
        As above.
    rows
        The processes that divide the rows of batches; with a partition, this process by itself.
    teacher
        As above.
    parameters, gradients
        The parameters that are trained, and their gradients, on the device. The network computes with `network_parameters`.
    state
        The state of training besides the arrays.
    optimizer
        The optimizer and its moments.
    lazy_adam
        The lazy Adam updates; None if each step updates all rows.
    requested
        What any of the processes asked for at the last step.

    Raises
    ------
    FflmError
        If the settings do not fit the output of the network, or the teacher.
    """

    def __init__(
        self,
        network: Network,
        parameters: Parameters,
        train: Examples,
        valid: Examples | None,
        settings: TrainingSettings,
        communicator: Communicator = SINGLE_PROCESS,
        teacher: Teacher | None = None,
        affixes: npt.NDArray[np.int32] | None = None,
    ) -> None:
        self.network = network
        self._affixes: AffixVectors | None = None
        if affixes is not None:
            width = parameters.embeddings.shape[1]
            self._affixes = AffixVectors(affixes, width, parameters.dtype, network.backend)
            parameters = dataclasses.replace(parameters, affixes=np.zeros((self._affixes.count, width), parameters.dtype))
        self.parameters = parameters.mapped(network.backend.upload)
        self.train = train
        self.valid = valid
        self.settings = settings
        self.communicator: Communicator = network.backend.connect(communicator)
        self.rows = SINGLE_PROCESS if network.partition else self.communicator
        special = settings.loss != "exact" or settings.smoothing or settings.self_normalise or settings.adversarial
        if network.config.output != "softmax" and special:
            raise SettingsError(
                "a sampled loss, smoothing, self-normalization and adversarial noise are of a softmax: leave them out"
            )
        if teacher and (settings.loss == "nce" or settings.smoothing or network.config.bands or network.partition):
            raise SettingsError("a teacher needs one softmax without smoothing: leave out `smoothing`, `bands`, and the loss nce")
        self.teacher = teacher
        self.optimizer = Optimizer(settings, parameters, network.backend)
        self.gradients = parameters.zeros_like().mapped(network.backend.upload)
        self._scale = network.backend.upload(np.ones(1, parameters.dtype))
        self._losses = network.backend.empty((min(settings.batch_size, len(train)),), parameters.dtype)
        self._recording = network.backend.recording()
        self.state = State()
        self.requested = Requests()
        if settings.loss != "exact":
            self._sampler = Sampler(train.counts(network.config.vocabulary), settings.samples, settings.seed)
        self.lazy_adam: LazyAdam | None = None
        if settings.loss != "exact" or network.config.sparse:
            copies = 1 if self.optimizer.updates_rows else 1 + len(self.optimizer.moments)
            if settings.optimizer in ("adam", "adamw") and not settings.frozen:
                self.lazy_adam = LazyAdam(self.parameters, self.optimizer.moments, settings)
                copies = 1
            # Memory for the rows of subsets. These arrays are large, but the operating system provides only the pages in use.
            self._memory = [parameters.zeros_like().mapped(network.backend.upload) for _ in range(copies)]

    @property
    def common(self) -> list[Array]:
        """The parameters that are the same in all processes."""
        return list(self.parameters) if not self.network.partition else self.network.partition.common(self.parameters)

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.train) // self.settings.batch_size)

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return self.state.rate_factor * rate_at(self.settings, self.state.step, self.steps)

    @property
    def steps(self) -> int:
        """Number of steps in all epochs."""
        return self.settings.epochs * self.batches

    def state_dict(self) -> StateDict:
        """Return everything that a trainer with the same network, data and settings needs to continue in the same way.

        Call this method between two events of `run`, in all processes. The arrays may share memory with the trainer, so they must
        be stored or copied before training continues. Only the first process gets them, but with a partition, all do.
        """
        arrays: dict[str, Array] = {}
        for part, own in self._parts().items():
            if whole := self._whole(own):
                arrays |= {f"{part}.{name}": array for name, array in whole.items()}
        if self.lazy_adam:
            arrays |= {f"done.{name}": rows for name, rows in self.lazy_adam.done.items()}
        return {"state": dataclasses.asdict(self.state), "arrays": arrays}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Continue from a state. If there is an error, the trainer does not change.

        Parameters
        ----------
        state_dict
            The result of `state_dict` of a trainer with the same network, data and settings, perhaps on another device, or in
            another number of processes.

        Raises
        ------
        FflmError
            If the state or the arrays do not belong to such a trainer.
        """
        self._check_state(state_dict)
        own = {name: self._own_rows(name, array) for name, array in state_dict["arrays"].items()}
        self._load({"state": state_dict["state"], "arrays": own})

    def load_from_first(self, state_dict: StateDict | None) -> None:
        """Load a state in all processes, as `load_state_dict` does; only the first process gives it.

        No other process has more than one array of all words at a time.
        """

        def check() -> dict[str, Any]:
            assert state_dict
            self._check_state(state_dict)
            return state_dict["state"]

        state = self.communicator.on_first(check)
        self._load({"state": state, "arrays": self.own_from_first({} if state_dict is None else state_dict["arrays"])})

    def own_from_first(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Return what each process has of the arrays of a state, which only the first process gives."""
        about = self.communicator.on_first(lambda: {name: [array.shape, array.dtype.str] for name, array in given.items()})
        own: dict[str, Array] = {}
        for name, (shape, dtype) in about.items():
            array = given[name] if given else np.empty(shape, dtype)
            self.communicator.broadcast_array(array)
            rows = self._own_rows(name, array)
            own[name] = rows if given else rows.copy()  # so that the memory of the whole array becomes free
        return own

    def _check_state(self, state_dict: StateDict) -> None:
        """Raise an FflmError if a state does not belong to a trainer like this."""
        state, arrays = state_from_dict(state_dict["state"]), state_dict["arrays"]
        if state.batch >= self.batches:
            raise FflmError(f"the state is that after {state.batch:,} batches of an epoch, which has {self.batches:,}; {REMEDY}")
        affixes = self._affixes.count if self._affixes else 0
        for part in self._parts():
            own = {name.removeprefix(f"{part}."): array for name, array in arrays.items() if name.startswith(f"{part}.")}
            Parameters.from_arrays(self.network.config, own, affixes=affixes)

    def _own_rows(self, name: str, array: Array) -> Array:
        """Return what this process has of an array of a state."""
        partition, (_, _, parameter) = self.network.partition, name.partition(".")
        return array[partition.own] if partition and partition.divides(parameter) else array

    def _load(self, state_dict: StateDict) -> None:
        """Continue from a state that was checked, and has what this process has of each array."""
        arrays, backend = state_dict["arrays"], self.network.backend
        if self.lazy_adam:
            self.lazy_adam.restore(arrays)
        for part, parameters in self._parts().items():
            for name, array in parameters.items():
                saved = arrays[f"{part}.{name}"]
                backend.copy(backend.upload(saved).reshape(len(saved), -1), array.reshape(len(saved), -1))
        self.state = state_from_dict(state_dict["state"])

    def network_parameters(self) -> Parameters:
        """Return the parameters with which the network computes, on the device. The next training step may change them.

        They differ from `parameters` if there are vectors of affixes, which have been added to the embeddings.
        """
        return self._affixes.summed(self.parameters) if self._affixes else self.parameters

    def weights(self) -> Parameters | None:
        """Return `network_parameters` as NumPy arrays, which training may change, in the first process, and None in the others.

        With a partition, all processes get them, with `DividedRows`.
        """
        return self._whole(self.network_parameters())

    def _whole(self, own: Parameters) -> Parameters | None:
        """Return parameters, or moments, as `weights` does."""
        if not (self.network.partition or self.communicator.first):
            return None
        downloaded = own.mapped(self.network.backend.download)
        return self.network.partition.whole(downloaded) if self.network.partition else downloaded

    def _parts(self) -> dict[str, Parameters]:
        """Return the parameters and the optimizer's moments under the names that they have in a checkpoint."""
        return {"parameters": self.parameters} | {f"moment{index}": moment for index, moment in enumerate(self.optimizer.moments)}

    def run(self, requests: Callable[[], Requests] = Requests) -> Iterator[Step | Evaluation | Finished]:
        """Train from the current state to the end, and yield events.

        The state is consistent at each event, so the caller can stop at any of them, save, and continue later.

        Parameters
        ----------
        requests
            A function that returns what this process asks for; ``requested`` has the result at the next event. The processes tell
            each other with the loss of each step, so that this takes no further message.

        Raises
        ------
        DivergedError
            If the loss or the gradient is not finite, or the loss explodes.
        """
        state, settings = self.state, self.settings
        while not state.finished:
            positions = shuffled(len(self.train), settings.batch_size, settings.seed, state.epoch, state.batch)
            batches = (self._prepare(each, step) for step, each in enumerate(positions, state.step))
            started = running_time()
            batch = next(batches, None)
            while batch:
                rate = self.rate
                losses = self._launch(batch, rate)
                upcoming = next(batches, None)  # the host prepares the next batch while the device is still computing this one
                loss = self._finish(batch, losses, requests)
                state.seconds += running_time() - started
                words = min(state.batch * settings.batch_size, len(self.train))
                ended = state.batch == self.batches
                if ended:
                    state.epoch, state.batch = state.epoch + 1, 0
                stop = self.requested.end
                if ended or stop or (settings.evaluate_every and state.step % settings.evaluate_every == 0):
                    yield self._evaluate(rate, stop)
                    if state.finished:
                        break
                else:
                    yield Step(state.step, state.epoch + 1, words, loss, batch.exact, rate)
                batch, started = upcoming, running_time()
        yield Finished(state.step, state.finished)

    def _prepare(self, positions: Array, step: int) -> _Batch:
        """Prepare the batch of the examples at positions (B,) for step number ``step`` (from 0)."""
        contexts, targets = self.train.batch(positions)
        objective, words = self._objective(targets, step)
        subset = None
        if words is not None or self.network.config.sparse:  # the step must not take time for rows that it does not use
            rows_for = self.network.backend.padded if self._is_recorded(words is None) else int
            subset = Subset(self.network.config, contexts, targets, words, rows_for)
            contexts, targets = subset.contexts, subset.targets
            objective = objective.padded(len(subset.places["output.bias"])) if words is not None else objective
        share = self.rows.share(len(targets))
        if self.teacher:
            teacher = self.teacher.predictions(positions[share], words, objective.offsets)
            objective = dataclasses.replace(objective, teacher=teacher)
        return _Batch(contexts[share], targets[share], share.start, len(targets), objective, subset, words is None)

    def _launch(self, batch: _Batch, rate: float) -> Array:
        """Start a training step, and return the losses (B,) of the rows of this process, on the device.

        The device may still be computing them. The next step overwrites them.
        """
        backend, subset, objective = self.network.backend, batch.subset, batch.objective
        arrays: dict[str, Any] = {"numbers": self.optimizer.numbers(rate, self.state.step)}
        arrays |= {name: each for name in SAMPLE if (each := getattr(objective, name)) is not None}
        if subset:
            arrays |= {f"places.{name}": words for name, words in subset.places.items()}
            if self.lazy_adam:
                arrays |= self.lazy_adam.skipped(rate, subset)
            if self._affixes:
                arrays["affixes"] = self._affixes.of(subset.places["embeddings"])
        elif self.lazy_adam:
            self.lazy_adam.catch_up_all(backend, rate)
        if self._is_recorded(batch.exact):
            self.network.check(self.parameters, batch.contexts, batch.targets)
            self._recording(partial(self._step, batch), contexts=batch.contexts, targets=batch.targets, **arrays)
        else:
            self._step(batch, batch.contexts, batch.targets, **placed(backend, arrays))
        if self.lazy_adam:
            self.lazy_adam.step(rate, subset)
        return self._losses[: len(batch.targets)]

    def _is_recorded(self, exact: bool) -> bool:
        """Return whether the host has nothing to do within a step, and its arrays have only a few different shapes."""
        config = self.network.config
        if self.teacher or self.rows.size > 1 or config.bands:
            return False
        if exact:
            return not config.sparse or config.input == "window"  # the longest of the texts of a batch may have any length
        return not self.settings.smoothing  # which depends on how many words the sample has

    def _step(self, batch: _Batch, contexts: Array, targets: Array, numbers: Any, **arrays: Any) -> None:
        """Compute the losses and gradients of a batch, and update parameters and moments.

        Parameters
        ----------
        batch
            The batch, or another one whose arrays have the same shapes.
        contexts, targets
            Those of the batch. They may be on the device; the following arguments are.
        numbers
            The numbers of the step.
        arrays
            The arrays of the objective (`SAMPLE`); with a subset, its `Subset.places`, the names with the prefix ``places.``,
            what `LazyAdam.skipped` returns, and the affixes of its words.
        """
        backend, settings = self.network.backend, self.settings
        parameters, gradients, moments = self.parameters, self.gradients, self.optimizer.moments
        places = {name.removeprefix("places."): words for name, words in arrays.items() if name.startswith("places.")}
        if places:
            gradients = frame(gradients, gradients, places)
            if self.lazy_adam:
                parameters = self.lazy_adam.take(backend, self._memory[0], places, arrays)
            elif self.optimizer.updates_rows:
                parameters = take(backend, parameters, self._memory[0], places)
            else:
                wholes = zip((parameters, *moments), self._memory, strict=True)
                parameters, *parts = (take(backend, whole, memory, places) for whole, memory in wholes)
                moments = tuple(parts)
        affixes = arrays.get("affixes")
        self.network.gradients(
            self._affixes.summed(parameters, affixes) if self._affixes else parameters,
            contexts,
            targets,
            gradients,
            self._losses[: len(targets)],
            objective=dataclasses.replace(batch.objective, **{name: arrays[name] for name in SAMPLE if name in arrays}),
            seed=settings.seed,
            numbers=numbers,
            first=batch.first,
            batch=batch.size,
        )
        left_out = ("affixes", "embeddings") if settings.frozen else ("affixes",)  # those of affixes follow from the sums
        self.rows.sum_arrays([gradient for name, gradient in gradients.items() if name not in left_out])
        if settings.frozen:
            backend.clear(gradients.embeddings)
        if self._affixes:
            self._affixes.backpropagate(gradients, affixes)
        self.optimizer.add_penalties(parameters, gradients)
        if settings.clip:
            backend.clip_factor(self._all_gradients(gradients), settings.clip, self._scale)
        numeric = {"scale": self._scale, "numbers": numbers}
        in_place = places if self.lazy_adam or self.optimizer.updates_rows else ()
        self.optimizer.update(parameters, gradients, moments, **numeric, left_out=in_place)
        if self.lazy_adam and places:
            self.lazy_adam.update(backend, parameters, gradients, places, arrays, **numeric)
        elif in_place:
            self.optimizer.update_rows(self.parameters, gradients, places, **numeric)
        elif places:
            for part, whole in zip((parameters, *moments), (self.parameters, *self.optimizer.moments), strict=True):
                put(backend, part, whole, places)

    def _all_gradients(self, gradients: Parameters) -> list[Array]:
        """Return arrays whose norm is that of the gradients of all words: of the divided arrays, the norms in all processes."""
        if not self.network.partition:
            return list(gradients)
        backend, partition = self.network.backend, self.network.partition
        norms = self.communicator.gather([backend.norm(partition.divided(gradients))])
        return [*partition.common(gradients), backend.upload(norms.astype(gradients.dtype))]

    def _finish(self, batch: _Batch, losses: Array, requests: Callable[[], Requests]) -> float:
        """Wait for the end of a training step, update the state, and return the mean loss of the batch.

        ``requests`` is as for `run`.

        Raises
        ------
        DivergedError
            If the loss or the gradient is not finite, or the loss has exploded.
        """
        state, backend, words = self.state, self.network.backend, batch.size
        own = float(backend.download(losses).sum(dtype=np.float64))
        every = self.communicator.gather([own, *requests()])
        total = float(np.cumsum(every[:, 0])[-1])  # added up in the order of ranks
        self.requested = Requests(*map(any, every[:, 1:].T.tolist()))
        self._check(total / words, batch.exact)
        if not math.isfinite(backend.download(self._scale)[0]):
            raise DivergedError(f"the gradient is not finite at step {state.step + 1}")
        state.step += 1
        state.batch += 1
        state.loss_sum += total
        state.loss_words += words
        state.loss_exact = state.loss_exact and batch.exact
        state.words += words
        return total / words

    def _objective(self, targets: Array, step: int) -> tuple[Objective, Array | None]:
        """Return the objective of a step, and the words (R,) over which its softmax is computed, or None for all words."""
        settings, dtype = self.settings, self.parameters.dtype
        exact = Objective(settings.smoothing, settings.self_normalise, adversarial=settings.adversarial)
        if settings.loss == "exact" or step >= round((1 - settings.exact_end) * self.steps):
            return exact, None
        sample = self._sampler.draw(targets, step)
        if settings.loss == "nce":
            return Objective(noise=sample.draws.astype(dtype), offsets=-sample.log_draws.astype(dtype)), sample.words
        offsets = -sample.log_chances.astype(dtype)
        return dataclasses.replace(exact, offsets=offsets), sample.words

    def _check(self, loss: float, exact: bool) -> None:
        """Update the moving average of the loss by the mean loss of a batch; raise a DivergedError if training has diverged."""
        state, step, config = self.state, self.state.step + 1, self.network.config
        decisions, blind = self._expected_loss(exact)
        if not loss < MAX_LOSS * decisions:
            unit = " nats per word" if config.outputs is None and decisions == 1 else ""
            raise DivergedError(f"the loss is {loss:.3g}{unit} at step {step}")
        if exact != state.mean_exact:
            state.mean_exact, state.mean_steps = exact, 0
        state.mean_steps += 1
        state.loss_mean += (loss - state.loss_mean) / min(state.mean_steps, MEAN_STEPS)
        if state.mean_steps > MEAN_STEPS and state.loss_mean > 2 * blind + 1:
            cost = f"(a prediction without context has {blind:.1f})"
            raise DivergedError(f"the loss has exploded to {state.loss_mean:.1f} nats at step {step} {cost}")

    def _expected_loss(self, exact: bool) -> tuple[float, float]:
        """Return the number of decisions in a loss, and the loss of a network that ignores contexts, in nats.

        A softmax makes one decision. If it gives all words the same probability, its loss is log V; a sampled softmax does not
        lose more than that, because of its correction. Noise-contrastive estimation makes 1 + k decisions, to tell a word from k
        samples. For a network that knows only the frequencies of words, each of the 1 + k words is equally likely to be the
        target. The loss is then log(1 + k) for the target and log((1 + k) / k) for each sample, whatever the vocabulary size.
        For independent units, no such number is known, and both results are infinite.
        """
        if self.network.config.output != "softmax":
            return math.inf, math.inf
        if exact or self.settings.loss != "nce":
            return 1, math.log(self.network.config.classes)
        k = self.settings.samples
        return 1 + k, math.log1p(k) + k * math.log1p(1 / k)

    def _evaluate(self, rate: float, stop: bool) -> Evaluation:
        """Evaluate on the validation data, update the state, and return the event.

        ``rate`` is the rate of the last step, and ``stop`` says whether training is to end.

        Raises
        ------
        DivergedError
            If the mean loss on the validation data is too large; without such data, if a weight is not finite.
        """
        state, settings = self.state, self.settings
        if self.lazy_adam:
            self.lazy_adam.catch_up_all(self.network.backend, rate)
        train_loss = state.loss_sum / state.loss_words
        self.communicator.check_same(self.common, DRIFTED)
        valid = None if self.valid is None else sum_losses(self.network, self.network_parameters(), self.valid, self.rows)
        best = valid is None or valid.mean < state.best
        if valid is None:
            norms = self.communicator.gather([self.network.backend.norm(self.parameters)])
            if not np.isfinite(norms).all():
                raise DivergedError("a weight is not finite")
        else:
            state.best = min(state.best, valid.mean)
            state.bad = 0 if best else state.bad + 1
            if not best and settings.schedule == "plateau":
                state.rate_factor /= 2
        if settings.patience and state.bad >= settings.patience:
            state.finished = f"no better for {state.bad} evaluations"
        elif state.epoch >= settings.epochs:
            state.finished = "the only epoch done" if settings.epochs == 1 else f"all {settings.epochs} epochs done"
        elif stop:
            state.finished = STOPPED
        exact, state.loss_sum, state.loss_words, state.loss_exact = state.loss_exact, 0.0, 0, True
        speed = state.words / max(state.seconds, 1e-9)
        return Evaluation(state.step, state.epoch, state.words, train_loss, exact, valid, best, rate, state.seconds, speed)


def sum_losses(
    network: Network, parameters: Parameters, examples: Examples, communicator: Communicator = SINGLE_PROCESS
) -> Losses:
    """Return the sum of the losses over all examples, in evaluation mode.

    Each process computes a share of the evaluation batches. Their sums are added in their order, so that the result is the same
    for any number of processes.

    Raises
    ------
    DivergedError
        If the sum is not finite, or the mean loss of a softmax is above `MAX_LOSS`.
    """
    rows = network.config.rows(EVALUATION_ROWS)
    starts = range(0, len(examples), rows)
    sums = np.zeros((len(starts), 2))
    share = communicator.share(len(starts))
    for low, own in zip(starts[share], sums[share], strict=True):
        contexts, targets = examples.batch(np.arange(low, min(low + rows, len(examples))))
        device_losses = network.backend.empty((len(targets),), parameters.dtype)
        network.losses(parameters, contexts, targets, device_losses)
        losses = network.backend.download(device_losses)
        own[0] = losses.sum(dtype=np.float64)
        if network.config.outputs is None:
            own[1] = losses[targets == UNKNOWN].sum(dtype=np.float64)
    communicator.sum_arrays([sums])
    total, unknown = np.cumsum(sums, axis=0)[-1].tolist()
    result = Losses(len(examples), total, unknown)
    if not result.mean < (MAX_LOSS if network.config.output == "softmax" else math.inf):
        raise DivergedError(f"the mean loss in the evaluation is {result.mean:.3g} nats per word")
    return result
