"""Feedforward networks over plain features, as scikit-learn's estimators: fit, predict, predict_proba, score.

from fflm import FeedforwardClassifier

model = FeedforwardClassifier(hidden=(6,), activation="sigmoid").fit(X, y)
model.predict_proba(X_new)
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from fflm.errors import FflmError, install

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise FflmError(f"the estimators need scikit-learn: run {install('learn')}") from error

from fflm.arguments import Fraction, Positive, check
from fflm.backend.devices import device_backend
from fflm.backend.protocol import Activation
from fflm.network.config import NetworkConfig, Output
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.training.examples import Rows, Scale
from fflm.training.in_memory import train_in_memory
from fflm.training.settings import OptimizerName, ScheduleName, TrainingSettings
from fflm.training.trainer import Trainer


class Feedforward(BaseEstimator):  # type: ignore[misc]
    """What both estimators do, in double precision.

    Parameters
    ----------
    hidden
        Sizes of the hidden layers, or that of the only one; none for linear and logistic regression.
    activation
        Of the hidden layers.
    output
        What the outputs are, and with that the loss. Of a classifier ``softmax``, the default, whose probabilities add up to one;
        ``sigmoid``, a unit for each class by itself, or one for two; ``hinge``, the same with scores whose signs are learned,
        and no probabilities. Of a regressor ``squared``, the default, for means; ``absolute`` for medians, which do not follow
        outliers.
    residual
        Whether hidden layers after the first add to what they read, as for `fflm.network.config.NetworkConfig`.
    normalize
        Whether the features are brought to mean 0 and deviation 1, those of the training set.
    dropout, input_dropout
        Share of the hidden layers' outputs, and of the features, that is dropped in training.
    epochs, batch_size, optimizer, rate, momentum, nesterov, weight_decay, schedule, clip
        As for `fflm.training.settings.TrainingSettings`. A batch size of 1 is stochastic, None batch gradient descent.
    validation
        Share of the examples that is kept from training, to stop early and keep the best weights; 0 for none.
    patience
        Epochs without a lower validation loss after which training stops; 0 for never.
    random_state
        Of initial weights, order of examples, dropout, and the choice of the validation examples.

    Attributes
    ----------
    config_, parameters_
        The network (`NetworkConfig`) and its weights (`Parameters`).
    evaluations_
        The losses of every epoch (`fflm.training.events.Evaluation`).
    scale_
        The mean and the deviation of the features, None unless they are normalized.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.
    """

    def __init__(
        self,
        hidden: Sequence[int] | int = (100,),
        activation: Activation = "relu",
        *,
        output: Output | None = None,
        residual: bool = False,
        normalize: bool = True,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        epochs: int = 200,
        batch_size: int | None = 32,
        optimizer: OptimizerName = "adamw",
        rate: float = 1e-2,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 1e-3,
        schedule: ScheduleName = "cosine",
        clip: float = 1.0,
        validation: float = 0.0,
        patience: int = 10,
        random_state: Any = None,
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.output = output
        self.residual = residual
        self.normalize = normalize
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.rate = rate
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.clip = clip
        self.validation = validation
        self.patience = patience
        self.random_state = random_state

    def _output(self, *choices: Output) -> Output:
        """Return the output, the first of the choices by default."""
        output: Output = check("output", Literal[choices] | None, self.output) or choices[0]  # type: ignore[valid-type]
        return output

    def _train(
        self,
        numbers: npt.NDArray[Any],
        targets: npt.NDArray[Any],
        outputs: int,
        output: Output,
        strata: npt.NDArray[Any] | None,
    ) -> None:
        """Train on features (N, I) and what the network is to put out, ``strata`` (N,) in proportion in the validation set."""
        seed = int(check_random_state(self.random_state).randint(2**31))
        wanted = {"normalize": bool, "input_dropout": Fraction, "validation": Fraction, "batch_size": Positive | None}
        normalize, input_dropout, validation, batch_size = (
            check(name, annotation, getattr(self, name)) for name, annotation in wanted.items()
        )
        self.config_ = NetworkConfig.feedforward(
            numbers.shape[1],
            self.hidden,
            outputs,
            activation=self.activation,
            residual=self.residual,
            dropout=self.dropout,
            embedding_dropout=input_dropout,
            output=output,
        )
        parts = [(numbers, targets)]
        if validation:
            chosen = train_test_split(np.arange(len(numbers)), test_size=validation, stratify=strata, random_state=seed)
            parts = [(numbers[rows], targets[rows]) for rows in chosen]
        self.scale_ = Scale.of([parts[0][0]]) if normalize else None
        train, *valid = (Rows(self._scaled(rows), wanted) for rows, wanted in parts)
        settings = TrainingSettings(
            epochs=self.epochs,
            patience=self.patience,
            batch_size=len(train) if batch_size is None else min(batch_size, len(train)),
            optimizer=self.optimizer,
            rate=self.rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            clip=self.clip,
            seed=seed,
        )
        network = Network(self.config_, device_backend("cpu"))
        parameters = Parameters.random(self.config_, seed, np.float64)
        self.parameters_, self.evaluations_ = train_in_memory(
            Trainer(network, parameters, train, valid[0] if valid else None, settings)
        )

    def _scaled(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.ascontiguousarray(numbers) if self.scale_ is None else self.scale_.apply(numbers)

    def _outputs(self, features: Any) -> npt.NDArray[np.float64]:
        """Return the network's outputs (N, O)."""
        check_is_fitted(self)
        numbers = validate_data(self, features, reset=False, dtype=np.float64)
        network = Network(self.config_, device_backend("cpu"))
        outputs: npt.NDArray[np.float64] = network.predict(self.parameters_, self._scaled(numbers))
        return outputs


class FeedforwardClassifier(ClassifierMixin, Feedforward):  # type: ignore[misc]
    """A feedforward network that tells classes apart; parameters and attributes are those of `Feedforward`, and ``classes_``."""

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from features X (N, I) and classes y (N,)."""
        numbers, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        self.classes_, places = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("Classifier can't train when only one class is present.")
        output = self._output("softmax", "sigmoid", "hinge")
        if output == "softmax":
            self._train(numbers, places.astype(np.int32), len(self.classes_), output, places)
            return self
        ones = places[:, None] == (np.arange(len(self.classes_)) if len(self.classes_) > 2 else 1)
        targets = np.where(ones, 1, 0 if output == "sigmoid" else -1).astype(np.float64)
        self._train(numbers, targets, targets.shape[1], output, places)
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the likeliest classes (N,)."""
        outputs = self._outputs(X)
        places = outputs.argmax(1)
        if outputs.shape[1] == 1:
            places = (outputs[:, 0] > (0.5 if self.config_.output == "sigmoid" else 0)).astype(int)
        labels: npt.NDArray[Any] = self.classes_[places]
        return labels

    @available_if(lambda self: not _has_margins(self))  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Return the probability of each class (N, C), in the order of ``classes_``."""
        outputs = self._outputs(X)
        if outputs.shape[1] == 1:
            outputs = np.hstack([1 - outputs, outputs])
        probabilities: npt.NDArray[np.float64] = outputs / outputs.sum(1, keepdims=True)
        return probabilities

    @available_if(lambda self: _has_margins(self))  # type: ignore[untyped-decorator]
    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Return the scores of ``hinge``, (N, C), or (N,) of the second of two classes; those above 0 are of the class."""
        outputs = self._outputs(X)
        return outputs.reshape(-1) if outputs.shape[1] == 1 else outputs


def _has_margins(classifier: FeedforwardClassifier) -> bool:
    """Whether a classifier, as it was fitted or is to be, has scores and no probabilities."""
    output = classifier.config_.output if hasattr(classifier, "config_") else classifier.output
    return bool(output == "hinge")


class FeedforwardRegressor(RegressorMixin, Feedforward):  # type: ignore[misc]
    """A feedforward network that predicts numbers; parameters and attributes are those of `Feedforward`.

    The targets are brought to mean 0 and deviation 1 for training.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from features X (N, I) and numbers y, (N,) or (N, O)."""
        numbers, targets = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        output = self._output("squared", "absolute")
        columns = targets.reshape(len(targets), -1).astype(np.float64)
        self.target_scale_ = Scale.of([columns])
        self._flat = targets.ndim == 1
        self._train(numbers, self.target_scale_.apply(columns), columns.shape[1], output, None)
        return self

    def predict(self, X: Any) -> npt.NDArray[np.float64]:
        """Return numbers, (N,) or (N, O) as they were learned."""
        outputs = self._outputs(X)
        numbers: npt.NDArray[np.float64] = self.target_scale_.undo(outputs)
        return numbers.reshape(-1) if self._flat else numbers
