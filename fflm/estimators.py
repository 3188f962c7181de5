"""Feedforward networks over numeric features, with the interface of scikit-learn: fit, predict, predict_proba, score.

from fflm import FeedforwardClassifier

model = FeedforwardClassifier(hidden=(6,), activation="sigmoid").fit(X, y)
model.predict_proba(X_new)
"""

from collections.abc import Sequence
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from fflm.errors import FflmError, install

try:
    from scipy.special import gammaln, xlogy
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

Layers: TypeAlias = Sequence[npt.ArrayLike]
"""For each layer, an array of its weights (or biases), or one number for all of them."""


class Feedforward(BaseEstimator):  # type: ignore[misc]
    """The base class of both estimators, which compute in double precision.

    Parameters
    ----------
    hidden
        Sizes of the hidden layers, or the size of a single hidden layer; empty for linear and logistic regression.
    activation
        The activation function of the hidden layers, or a sequence with one function for each hidden layer.
    output
        The type of the outputs, which determines the loss.

        For a classifier, ``softmax`` (the default) has probabilities that add up to 1. With ``sigmoid``, each class has an
        independent probability (for two classes, there is only one unit). With ``hinge`` and ``exponential``, the outputs are
        scores instead of probabilities, and the sign of a score is the prediction.

        For a regressor, ``squared`` (the default) predicts means; ``absolute`` predicts medians, which are robust to outliers;
        ``poisson`` predicts the means e^z of counts, or of other targets of at least 0.

        For both, ``sigmoid_squared`` and ``sigmoid_absolute`` have sigmoid outputs with the squared or the absolute error. The
        targets of a regressor must then be from 0 to 1.
    negative_slope
        The slope of ``leaky_relu`` and ``elu`` below 0, as for `fflm.network.config.NetworkConfig`.
    residual
        Whether hidden layers after the first have residual connections, as for `fflm.network.config.NetworkConfig`.
    normalize
        Whether to scale the features to mean 0 and standard deviation 1 in the training set.
    dropout, input_dropout
        Dropout probability of the outputs of hidden layers, and of the features.
    epochs, batch_size, optimizer, rate, momentum, nesterov, weight_decay, l1, l2, schedule, clip
        As for `fflm.training.settings.TrainingSettings`. A batch size of 1 is stochastic gradient descent; None is batch gradient
        descent.
    random_biases
        Whether the biases of hidden layers are initialized at random, as the weights are, instead of with 0. The activations of
        different units then change at different inputs. If inputs are symmetric around 0 and the function to learn is odd, units
        with biases of 0 can get stuck.
    validation
        Share of the training examples that is used for validation instead, to stop early and to keep the best weights; 0 for
        none.
    patience
        Number of epochs without a lower validation loss after which training stops; 0 to never stop early.
    random_state
        The random seed, or a ``numpy.random.RandomState``, for initial weights, order of examples, dropout, and the choice of
        validation examples.

    Attributes
    ----------
    config_, parameters_
        The network (`NetworkConfig`) and its weights (`Parameters`).
    evaluations_
        The losses after each epoch, a list of `fflm.training.events.Evaluation`. They are those of the scaled targets, without
        penalties, and for ``poisson`` without the term log y!.
    coefs_, intercepts_
        Lists of the weights, (inputs, outputs), and of the biases, (outputs,), of each layer, as in scikit-learn's networks.
    scale_
        The mean and the standard deviation of the features (`fflm.training.examples.Scale`); None if they are not normalized.
    n_features_in_, feature_names_in_
        The number and the names of the features, as in all estimators of scikit-learn.
    """

    def __init__(
        self,
        hidden: Sequence[int] | int = (100,),
        activation: Activation | Sequence[Activation] = "relu",
        *,
        output: Output | None = None,
        negative_slope: float | None = None,
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
        l1: float = 0.0,
        l2: float = 0.0,
        random_biases: bool = False,
        schedule: ScheduleName = "cosine",
        clip: float = 1.0,
        validation: float = 0.0,
        patience: int = 10,
        random_state: Any = None,
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.output = output
        self.negative_slope = negative_slope
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
        self.l1 = l1
        self.l2 = l2
        self.random_biases = random_biases
        self.schedule = schedule
        self.clip = clip
        self.validation = validation
        self.patience = patience
        self.random_state = random_state

    def _output(self, *choices: Output) -> Output:
        """Return the type of the outputs after checking that it is one of the choices; the first of them is the default."""
        output: Output = check("output", Literal[choices] | None, self.output) or choices[0]  # type: ignore[valid-type]
        return output

    def _network(self, inputs: int, outputs: int, output: Output) -> NetworkConfig:
        """Return the configuration of a network with these numbers of inputs and outputs."""
        return NetworkConfig.feedforward(
            inputs,
            self.hidden,
            outputs,
            activation=self.activation,
            negative_slope=self.negative_slope,
            residual=self.residual,
            dropout=self.dropout,
            embedding_dropout=check("input_dropout", Fraction, self.input_dropout),
            output=output,
        )

    def _start(self, seed: int, coefs: Layers | None, intercepts: Layers | None) -> Parameters:
        """Return the initial weights and biases: random ones, except those that are given."""
        biases = check("random_biases", bool, self.random_biases)
        parameters = Parameters.random(self.config_, seed, np.float64, random_biases=biases)
        for name, given, arrays in (
            ("coefs_init", coefs, [weight.T for weight in parameters.layer_weights]),
            ("intercepts_init", intercepts, parameters.layer_biases),
        ):
            if given is not None:
                _copy_layers(name, given, arrays)
        return parameters

    def _train(self, rows: Rows, strata: npt.NDArray[Any] | None, coefs: Layers | None, intercepts: Layers | None) -> None:
        """Train the network ``config_``.

        Parameters
        ----------
        rows
            The features (N, I), and the targets as the network reads them.
        strata
            The classes of the examples, (N,), whose proportions are kept in the validation set; None to choose it at random.
        coefs, intercepts
            As for ``fit``.
        """
        seed = int(check_random_state(self.random_state).randint(2**31))
        wanted = {"normalize": bool, "validation": Fraction, "batch_size": Positive | None}
        normalize, validation, batch_size = (check(name, annotation, getattr(self, name)) for name, annotation in wanted.items())
        parts = [(rows.inputs, rows.targets)]
        if validation:
            chosen = train_test_split(np.arange(len(rows)), test_size=validation, stratify=strata, random_state=seed)
            parts = [rows.batch(places) for places in chosen]
        self.scale_ = Scale.of([parts[0][0]]) if normalize else None
        train, *valid = (Rows(self._scaled(numbers), targets) for numbers, targets in parts)
        settings = TrainingSettings(
            epochs=self.epochs,
            patience=self.patience,
            batch_size=len(train) if batch_size is None else min(batch_size, len(train)),
            optimizer=self.optimizer,
            rate=self.rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            l1=self.l1,
            l2=self.l2,
            schedule=self.schedule,
            clip=self.clip,
            seed=seed,
        )
        network, parameters = Network(self.config_, device_backend("cpu")), self._start(seed, coefs, intercepts)
        self.parameters_, self.evaluations_ = train_in_memory(
            Trainer(network, parameters, train, valid[0] if valid else None, settings)
        )

    @property
    def coefs_(self) -> list[npt.NDArray[np.float64]]:
        """The weights of each layer, (inputs, outputs)."""
        return [weight.T for weight in self.parameters_.layer_weights]

    @property
    def intercepts_(self) -> list[npt.NDArray[np.float64]]:
        """The biases of each layer, (outputs,)."""
        return list(self.parameters_.layer_biases)

    def _scaled(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the features (N, I) as the network reads them."""
        return np.ascontiguousarray(numbers) if self.scale_ is None else self.scale_.apply(numbers)

    def _outputs(self, features: Any) -> npt.NDArray[np.float64]:
        """Return the outputs of the network, (N, O), for features (N, I)."""
        check_is_fitted(self)
        numbers = validate_data(self, features, reset=False, dtype=np.float64)
        network = Network(self.config_, device_backend("cpu"))
        outputs: npt.NDArray[np.float64] = network.predict(self.parameters_, self._scaled(numbers))
        return outputs


def _copy_layers(name: str, given: Layers, arrays: Sequence[npt.NDArray[np.float64]]) -> None:
    """Copy initial weights or biases, as they were given to ``fit`` as argument ``name``, to the arrays of the layers.

    Raises
    ------
    ValueError
        If they do not fit the layers.
    """
    try:
        values = [np.asarray(each, np.float64) for each in given]
    except (TypeError, ValueError):  # it is not a sequence, or does not contain numbers
        values = []
    fits = len(values) == len(arrays)
    if not fits or any(each.shape not in ((), array.shape) for each, array in zip(values, arrays, strict=True)):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"`{name}` must be arrays of the shapes {shapes}, one for each layer, or numbers")
    for array, each in zip(arrays, values, strict=True):
        array[...] = each


class FeedforwardClassifier(ClassifierMixin, Feedforward):  # type: ignore[misc]
    """A feedforward network as a classifier.

    The parameters are those of `Feedforward`.

    Attributes
    ----------
    classes_
        The classes in ascending order, (C,). Other attributes are those of `Feedforward`.
    """

    def fit(self, X: Any, y: Any, *, coefs_init: Layers | None = None, intercepts_init: Layers | None = None) -> Self:
        """Fit the network to training data.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The features.
        y : array-like of shape (n_samples,)
            The classes.
        coefs_init, intercepts_init
            The initial weights and biases of each layer, with the shapes of ``coefs_`` and ``intercepts_``, or one number for all
            weights of a layer. By default, weights are random, and biases as ``random_biases`` says. They apply to the features
            as the network reads them, which are normalized unless ``normalize`` is False.

        Returns
        -------
        self
            The fitted classifier.

        Raises
        ------
        ValueError
            If there is only one class, or if X, y or the initial weights have invalid shapes or values.
        FflmError
            If a parameter is out of range, or training does not converge.
        """
        numbers, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        self.classes_, places = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("Classifier can't train when only one class is present.")
        output = self._output("softmax", "sigmoid", "hinge", "exponential", "sigmoid_squared", "sigmoid_absolute")
        units = 1 if len(self.classes_) == 2 and output != "softmax" else len(self.classes_)
        self.config_ = self._network(numbers.shape[1], units, output)
        self._train(Rows(numbers, self._targets(places)), places, coefs_init, intercepts_init)
        return self

    def _targets(self, places: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        """Return the targets of the network for examples whose classes are ``classes_[places]``, places (N,).

        For a softmax, they are (N,) int32; for other outputs (N, O) float64, where O is 1 if there are two classes.
        """
        config = self.config_
        if config.output == "softmax":
            return places.astype(np.int32)
        ones = places[:, None] == (np.arange(config.classes) if config.classes > 1 else 1)
        return np.where(ones, 1, -1 if _has_margins(self) else 0).astype(np.float64)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Predict the class of each example: the one with the highest probability or score.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The features.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            The classes.
        """
        outputs = self._outputs(X)
        places = outputs.argmax(1)
        if outputs.shape[1] == 1:
            places = (outputs[:, 0] > (0 if _has_margins(self) else 0.5)).astype(int)
        labels: npt.NDArray[Any] = self.classes_[places]
        return labels

    def loss(self, X: Any, y: Any) -> float:
        """Return the mean loss, which is that of training without penalties.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The features.
        y : array-like of shape (n_samples,)
            The classes.

        Returns
        -------
        loss : float
            The mean loss of an example; for ``softmax`` and ``sigmoid``, in nats.

        Raises
        ------
        ValueError
            If a class was not in the training data.
        """
        check_is_fitted(self)
        numbers, labels = validate_data(self, X, y, reset=False, dtype=np.float64)
        if unknown := set(np.unique(labels)) - set(self.classes_):
            raise ValueError(f"The classifier has not seen the classes {sorted(unknown)}.")
        losses = np.empty(len(numbers))
        targets = self._targets(np.searchsorted(self.classes_, labels))
        Network(self.config_, device_backend("cpu")).losses(self.parameters_, self._scaled(numbers), targets, losses)
        return float(losses.mean())

    def zero_one_loss(self, X: Any, y: Any) -> float:
        """Return the share of misclassified examples: 1 - accuracy.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The features.
        y : array-like of shape (n_samples,)
            The classes.
        """
        return 1.0 - float(self.score(X, y))

    @available_if(lambda self: not _has_margins(self))  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Return the probabilities of the classes.

        The method does not exist for ``hinge`` and ``exponential``, whose outputs are not probabilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The features.

        Returns
        -------
        p : ndarray of shape (n_samples, n_classes)
            The probabilities, in the order of ``classes_``. They add up to 1 for each example; the independent probabilities of
            sigmoid outputs are divided by their sum.
        """
        outputs = self._outputs(X)
        if outputs.shape[1] == 1:
            outputs = np.hstack([1 - outputs, outputs])
        probabilities: npt.NDArray[np.float64] = outputs / outputs.sum(1, keepdims=True)
        return probabilities

    @available_if(lambda self: _has_margins(self))  # type: ignore[untyped-decorator]
    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Return the scores of the classes.

        The method exists only for ``hinge`` and ``exponential``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The features.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            The scores in the order of ``classes_``; for two classes, that of the second. A positive score predicts the class.
        """
        outputs = self._outputs(X)
        return outputs.reshape(-1) if outputs.shape[1] == 1 else outputs


MARGINS = "hinge", "exponential"
"""The types of outputs of a classifier that are scores instead of probabilities."""


def _has_margins(classifier: FeedforwardClassifier) -> bool:
    """Return whether the outputs of a classifier, fitted or not, are scores instead of probabilities."""
    return (classifier.config_.output if hasattr(classifier, "config_") else classifier.output) in MARGINS


class FeedforwardRegressor(RegressorMixin, Feedforward):  # type: ignore[misc]
    """A feedforward network as a regressor.

    The parameters are those of `Feedforward`. For training, the targets are scaled to mean 0 and standard deviation 1. Those of
    ``poisson`` are scaled to mean 1, and those of sigmoid outputs are not scaled.

    Attributes
    ----------
    target_scale_
        The scale of the targets (`fflm.training.examples.Scale`). Other attributes are those of `Feedforward`.
    """

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn's checks have to know of this estimator."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.positive_only = self.output == "poisson"
        return tags

    def fit(self, X: Any, y: Any, *, coefs_init: Layers | None = None, intercepts_init: Layers | None = None) -> Self:
        """Fit the network to training data.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The features.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            The numbers to predict.
        coefs_init, intercepts_init
            The initial weights and biases, as for `FeedforwardClassifier.fit`. They apply to the scaled targets.

        Returns
        -------
        self
            The fitted regressor.

        Raises
        ------
        ValueError
            If ``output`` does not admit the targets, or if X, y or the initial weights have invalid shapes or values.
        FflmError
            If a parameter is out of range, or training does not converge.
        """
        numbers, targets = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        output = self._output("squared", "absolute", "poisson", "sigmoid_squared", "sigmoid_absolute")
        columns = targets.reshape(len(targets), -1).astype(np.float64)
        self.target_scale_ = _target_scale(output, columns)
        self._flat = targets.ndim == 1
        self.config_ = self._network(numbers.shape[1], columns.shape[1], output)
        self._train(Rows(numbers, self.target_scale_.apply(columns)), None, coefs_init, intercepts_init)
        return self

    def predict(self, X: Any) -> npt.NDArray[np.float64]:
        """Predict the numbers of each example.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The features.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            The predictions, with as many dimensions as the targets of ``fit``.
        """
        outputs = self._outputs(X)
        numbers: npt.NDArray[np.float64] = self.target_scale_.undo(outputs)
        return numbers.reshape(-1) if self._flat else numbers

    def loss(self, X: Any, y: Any) -> float:
        """Return the mean loss of the examples, each of which is summed over the outputs.

        The loss is that of ``output``, in the unit of y (or its square); for ``poisson``, it is the negative log-likelihood,
        including the term log y!, in nats.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The features.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            The true numbers.

        Returns
        -------
        loss : float
            The mean loss.

        Raises
        ------
        ValueError
            If y does not fit X or the outputs, or has numbers that are not finite or, for ``poisson``, negative.
        """
        check_is_fitted(self)
        _, y = validate_data(self, X, y, reset=False, dtype=np.float64, multi_output=True, y_numeric=True)
        predicted, targets = (each.reshape(len(each), -1) for each in (self.predict(X), y))
        if targets.shape != predicted.shape:
            raise ValueError(f"y has {targets.shape[1]} outputs, but the regressor predicts {predicted.shape[1]}.")
        if self.config_.output == "poisson" and targets.min() < 0:
            raise ValueError("The targets of a Poisson loss must not be negative.")
        if self.config_.output == "poisson":
            losses = predicted - xlogy(targets, predicted) + gammaln(targets + 1)
        elif self.config_.output in ("squared", "sigmoid_squared"):
            losses = (predicted - targets) ** 2
        else:
            losses = np.abs(predicted - targets)
        return float(losses.sum() / len(losses))


def _target_scale(output: Output, targets: npt.NDArray[np.float64]) -> Scale:
    """Return the scale in which targets (N, O) are learned.

    Raises
    ------
    ValueError
        If the type of output cannot predict such targets.
    """
    outputs = targets.shape[1]
    if output == "poisson":
        if targets.min() < 0:
            raise ValueError("`output='poisson'` needs targets of at least 0.")
        mean = targets.mean(0)
        return Scale(np.zeros(outputs), np.where(mean > 0, mean, 1.0))
    if output.startswith("sigmoid"):
        if targets.min() < 0 or targets.max() > 1:
            raise ValueError(f"`output={output!r}` needs targets from 0 to 1.")
        return Scale(np.zeros(outputs), np.ones(outputs))
    return Scale.of([targets])
