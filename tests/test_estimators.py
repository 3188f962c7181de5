"""The estimators pass scikit-learn's checks, equal its linear models, and refuse invalid arguments."""

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import loguniform, poisson
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor
from sklearn.metrics import zero_one_loss
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fflm import FeedforwardClassifier, FeedforwardRegressor, FflmError
from fflm.training.examples import Scale

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")


def failures(estimator):
    """Return the check that gives negative targets to an estimator whose tags say that it takes none."""
    return {"check_regressor_multioutput": "negative targets"} if estimator.output == "poisson" else {}


@parametrize_with_checks(
    [
        FeedforwardClassifier((), output="sigmoid", validation=0.2),
        FeedforwardRegressor(),
        FeedforwardRegressor((), output="poisson"),
    ],
    expected_failed_checks=failures,
)
def test_estimators_pass_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        FeedforwardClassifier(),
        FeedforwardClassifier((8,), "tanh", output="hinge"),
        FeedforwardClassifier((8, 5), ("tanh", "relu"), output="exponential", l1=1e-3, random_biases=True),
        FeedforwardClassifier(output="sigmoid_squared"),
        FeedforwardRegressor((30, 30), residual=True, output="absolute"),
    ]
)
def test_larger_estimators_pass_scikit_learn_checks(estimator, check):
    """How arrays are read does not depend on the layers, so the test above is enough for those that cannot be written to."""
    if "readonly_memmap" in check.keywords:
        pytest.skip("the smaller estimators are tested with it")
    check(estimator)


PLAIN = {"optimizer": "sgd", "momentum": 0.9, "schedule": "constant", "clip": 0.0, "weight_decay": 0.0, "random_state": 0}


def test_classifier_without_hidden_layer_equals_logistic_regression():
    features, classes = load_iris(return_X_y=True)
    scaled = Scale.of([features]).apply(features)
    theirs = LogisticRegression(C=10.0, tol=1e-10, max_iter=10_000).fit(scaled, classes)
    decay = 1 / (10.0 * len(features))  # scikit-learn minimizes 1/2 |w|^2 plus C times the sum of losses
    ours = FeedforwardClassifier((), **{**PLAIN, "weight_decay": decay}, rate=0.5, batch_size=None, epochs=3000)
    ours.fit(features, classes)
    np.testing.assert_allclose(ours.predict_proba(features), theirs.predict_proba(scaled), atol=1e-5)
    np.testing.assert_allclose(ours.parameters_.output_weight, theirs.coef_, atol=1e-4)


def test_classifier_with_one_sigmoid_equals_binary_logistic_regression():
    features, classes = load_iris(return_X_y=True)
    classes = np.array(["other", "versicolor"])[(classes == 1).astype(int)]
    scaled = Scale.of([features]).apply(features)
    theirs = LogisticRegression(C=10.0, tol=1e-10, max_iter=10_000).fit(scaled, classes)
    decay = 1 / (10.0 * len(features))
    ours = FeedforwardClassifier((), output="sigmoid", **{**PLAIN, "weight_decay": decay}, rate=0.5, batch_size=None, epochs=3000)
    ours.fit(features, classes)
    assert ours.parameters_.output_weight.shape == (1, 4)
    np.testing.assert_allclose(ours.predict_proba(features), theirs.predict_proba(scaled), atol=1e-5)
    assert (ours.predict(features) == theirs.predict(scaled)).all()


def test_regressor_without_hidden_layer_equals_linear_regression():
    features, wanted = load_diabetes(return_X_y=True)
    ours = FeedforwardRegressor((), **PLAIN, rate=0.05, batch_size=None, epochs=4000).fit(features, wanted)
    np.testing.assert_allclose(ours.predict(features), LinearRegression().fit(features, wanted).predict(features), rtol=1e-3)


def test_absolute_error_predicts_median():
    wanted = np.array([1.0] * 7 + [100.0] * 4)
    features = np.zeros((11, 1))
    settings = {**PLAIN, "schedule": "cosine"}
    median = FeedforwardRegressor((), output="absolute", **settings, rate=0.05, batch_size=None, epochs=1000)
    mean = FeedforwardRegressor((), **settings, rate=0.05, batch_size=None, epochs=1000)
    assert abs(median.fit(features, wanted).predict(features[:1])[0] - 1) < 1
    assert abs(mean.fit(features, wanted).predict(features[:1])[0] - wanted.mean()) < 1


def random_counts():
    """Return features (200, 3) and counts (200,) whose mean is an exponential of them."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 3))
    return features, generator.poisson(np.exp(features @ [0.5, -0.3, 0] + 1))


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_regressor_without_hidden_layer_equals_poisson_regression(alpha):
    features, wanted = random_counts()
    theirs = PoissonRegressor(alpha=alpha, tol=1e-10, max_iter=10_000).fit(Scale.of([features]).apply(features), wanted)
    # the targets are scaled to a mean of 1, which divides the loss, so alpha is divided, too
    ours = FeedforwardRegressor((), output="poisson", **PLAIN, l2=alpha / wanted.mean(), rate=0.1, batch_size=None, epochs=2000)
    ours.fit(features, wanted)
    np.testing.assert_allclose(ours.coefs_[0][:, 0], theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(ours.predict(features), theirs.predict(Scale.of([features]).apply(features)), rtol=1e-4)


def test_poisson_loss_equals_negative_log_likelihood():
    features, wanted = random_counts()
    model = FeedforwardRegressor((8,), "tanh", output="poisson", epochs=20, random_state=0).fit(features, wanted)
    predicted = model.predict(features)
    assert (predicted > 0).all()
    assert model.loss(features, wanted) == pytest.approx(-poisson.logpmf(wanted, predicted).mean(), rel=1e-12)
    squared = FeedforwardRegressor((8,), "tanh", epochs=20, random_state=0).fit(features, wanted)
    assert squared.loss(features, wanted) == pytest.approx(((squared.predict(features) - wanted) ** 2).mean(), rel=1e-12)
    assert squared.predict(features).min() < 0  # although counts are not negative


@pytest.mark.parametrize("bad", [np.full((200, 2), 1.0), np.full(200, np.nan), np.full(200, -1.0), np.ones(199)])
def test_poisson_loss_refuses_invalid_targets(bad):
    features, wanted = random_counts()
    model = FeedforwardRegressor((), output="poisson", epochs=1, random_state=0).fit(features, wanted)
    assert model.loss(features, wanted.reshape(-1, 1)) == model.loss(features, wanted)
    with pytest.raises(ValueError, match=r"outputs|NaN|must not be negative|inconsistent"):
        model.loss(features, bad)


def test_weights_that_are_not_finite_are_not_returned():
    model = FeedforwardRegressor((), clip=0, optimizer="sgd", rate=1e307, epochs=1, batch_size=None, normalize=False)
    features, wanted = random_counts()
    with pytest.raises(FflmError, match="training does not converge: a weight is not finite"):
        model.fit(100 * features, wanted)


def test_exponential_loss_gives_half_of_log_odds():
    classes = np.array([0] * 3 + [1] * 9)
    model = FeedforwardClassifier((), output="exponential", **PLAIN, rate=0.1, batch_size=None, epochs=500)
    model.fit(np.zeros((12, 1)), classes)
    np.testing.assert_allclose(model.decision_function(np.zeros((2, 1))), np.log(9 / 3) / 2, atol=1e-6)
    assert not hasattr(model, "predict_proba")
    assert model.loss(np.zeros((12, 1)), classes) == pytest.approx(2 * (1 / 4 * 3 / 4) ** 0.5)  # the smallest possible value


@pytest.mark.parametrize(("output", "expected"), [("sigmoid_squared", 0.3), ("sigmoid_absolute", 0.1)])
def test_sigmoid_with_squared_and_absolute_error_gives_mean_and_median(output, expected):
    wanted = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.8, 0.8, 0.1, 0.8])
    wanted[-1] = 0.3 * 9 - wanted[:-1].sum()
    settings = {**PLAIN, "schedule": "cosine", "momentum": 0.0}
    model = FeedforwardRegressor((), output=output, **settings, rate=0.5, batch_size=None, epochs=2000)
    model.fit(np.zeros((9, 1)), wanted)
    assert model.predict(np.zeros((1, 1)))[0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("output", "wanted", "message"),
    [
        ("poisson", [0.0, 1.0, -0.1], "targets of at least 0"),
        ("sigmoid_squared", [0.0, 1.0, 1.1], "targets from 0 to 1"),
        ("sigmoid_absolute", [0.0, 1.0, -0.1], "targets from 0 to 1"),
    ],
)
def test_targets_out_of_range_of_output_are_refused(output, wanted, message):
    with pytest.raises(ValueError, match=message):
        FeedforwardRegressor(output=output).fit(np.zeros((3, 1)), wanted)


def test_classifier_loss_and_zero_one_loss():
    features, classes = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[classes]
    model = FeedforwardClassifier((6,), epochs=5, random_state=0).fit(features[::2], names[::2])
    assert model.zero_one_loss(features, names) == pytest.approx(zero_one_loss(names, model.predict(features)))
    probabilities = model.predict_proba(features)[np.arange(len(classes)), classes]
    assert model.loss(features, names) == pytest.approx(-np.log(probabilities).mean())
    with pytest.raises(ValueError, match="has not seen the classes"):
        model.loss(features[:2], ["setosa", "rosa"])


def test_l1_penalty_equals_soft_thresholding():
    generator = np.random.default_rng(0)
    features = np.linalg.qr(np.hstack([np.ones((64, 1)), generator.normal(size=(64, 3))]))[0][:, 1:] * 8
    wanted = features @ [3.0, 0.2, -2.0]
    wanted /= wanted.std()
    strength = 0.5
    settings = {**PLAIN, "schedule": "cosine", "momentum": 0.0}
    model = FeedforwardRegressor((), **settings, l1=strength, rate=0.05, batch_size=None, epochs=3000).fit(features, wanted)
    least_squares = features.T @ wanted / 64
    expected = np.sign(least_squares) * np.maximum(np.abs(least_squares) - strength / 2, 0)
    assert (expected == 0).sum() == 1
    np.testing.assert_allclose(model.coefs_[0][:, 0], expected, atol=1e-3)


def test_l2_penalty_equals_weight_decay_with_sgd():
    features, classes = load_iris(return_X_y=True)
    settings = {**PLAIN, "rate": 0.1, "epochs": 20}
    decay, penalty = (
        FeedforwardClassifier((6,), **{**settings, name: 0.01}).fit(features, classes) for name in ("weight_decay", "l2")
    )
    for left, right in zip(decay.coefs_ + decay.intercepts_, penalty.coefs_ + penalty.intercepts_, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)


def test_l2_penalty_with_adamw_equals_logistic_regression():
    features, classes = load_iris(return_X_y=True)
    adamw = {"optimizer": "adamw", "weight_decay": 0.0, "clip": 0.0, "rate": 0.1, "random_state": 0}
    model = FeedforwardClassifier((), **adamw, l2=1 / (10.0 * len(features)), batch_size=None, epochs=3000).fit(features, classes)
    scaled = Scale.of([features]).apply(features)
    theirs = LogisticRegression(C=10.0, tol=1e-10, max_iter=10_000).fit(scaled, classes)
    np.testing.assert_allclose(model.predict_proba(features), theirs.predict_proba(scaled), atol=1e-3)


def test_coefs_init_and_intercepts_init_are_used():
    features, classes = load_iris(return_X_y=True)
    generator = np.random.default_rng(0)
    coefs = [generator.normal(size=shape) for shape in ((4, 6), (6, 3))]
    intercepts = [generator.normal(size=size) for size in (6, 3)]
    still = FeedforwardClassifier((6,), "sigmoid", normalize=False, rate=1e-12, weight_decay=0, epochs=1)
    still.fit(features, classes, coefs_init=coefs, intercepts_init=intercepts)
    for found, given in zip(still.coefs_ + still.intercepts_, coefs + intercepts, strict=True):
        np.testing.assert_allclose(found, given, atol=1e-9)
    logits = 1 / (1 + np.exp(-(features @ coefs[0] + intercepts[0]))) @ coefs[1] + intercepts[1]
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(still.predict_proba(features), expected, atol=1e-8)


def test_equal_initial_weights_stay_equal():
    features, classes = load_iris(return_X_y=True)
    model = FeedforwardClassifier((6,), "tanh", epochs=20, random_state=0)
    first = model.fit(features, classes, coefs_init=[0.1, 0.1]).coefs_[0]
    assert np.abs(first - first[:, :1]).max() < 1e-9
    assert np.abs(first - 0.1).max() > 0.01
    first = model.fit(features, classes).coefs_[0]
    assert np.abs(first - first[:, :1]).max() > 0.1


@pytest.mark.parametrize(
    "given",
    [
        {"coefs_init": [np.zeros((6, 4)), 0.1]},
        {"coefs_init": [0.1]},
        {"coefs_init": [np.zeros(6), 0]},
        {"intercepts_init": ["a", 0]},
    ],
)
def test_initial_weights_of_wrong_shape_are_refused(given):
    features, classes = load_iris(return_X_y=True)
    with pytest.raises(
        ValueError, match=r"must be arrays of the shapes \((4, 6\), \(6, 3|6,\), \(3,)\), one for each layer, or numbers"
    ):
        FeedforwardClassifier((6,), epochs=1).fit(features, classes, **given)


def test_random_biases_initialize_hidden_layers_only():
    features, classes = load_iris(return_X_y=True)
    settings = {"rate": 1e-12, "weight_decay": 0, "epochs": 1, "random_state": 3}
    zero, spread = (
        FeedforwardClassifier((50, 40), random_biases=each, **settings).fit(features, classes) for each in (False, True)
    )
    for layer, inputs in ((0, 4), (1, 50)):
        assert np.abs(zero.intercepts_[layer]).max() < 1e-9
        assert 0.9 * inputs**-0.5 < np.abs(spread.intercepts_[layer]).max() <= inputs**-0.5
    assert np.abs(spread.intercepts_[2]).max() < 1e-9  # the biases of the outputs
    for left, right in zip(zero.coefs_, spread.coefs_, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-9)


def test_activation_of_each_layer():
    features, classes = load_iris(return_X_y=True)
    model = FeedforwardClassifier((6, 5), ("leaky_relu", "tanh"), negative_slope=0.2, rate=1e-12, weight_decay=0, epochs=1)
    model.fit(features, classes)
    hidden = Scale.of([features]).apply(features) @ model.coefs_[0]
    hidden = np.tanh(np.where(hidden > 0, hidden, 0.2 * hidden) @ model.coefs_[1])
    np.testing.assert_allclose(np.log(model.predict_proba(features)), log_softmax(hidden @ model.coefs_[2], axis=1), atol=1e-8)


@pytest.mark.parametrize(
    ("activation", "output"),
    [
        *((activation, "softmax") for activation in ("sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus")),
        *(("relu", output) for output in ("sigmoid", "hinge", "exponential", "sigmoid_squared")),
    ],
)
def test_accuracy_on_iris_with_every_activation_and_output(activation, output):
    features, classes = load_iris(return_X_y=True)
    model = FeedforwardClassifier((6,), activation, output=output, random_state=1).fit(features[::2], classes[::2])
    assert model.score(features[1::2], classes[1::2]) >= 0.92


@pytest.mark.parametrize("batch_size", [1, 8, None])
def test_batch_size_determines_number_of_steps(batch_size):
    features, classes = load_iris(return_X_y=True)
    model = FeedforwardClassifier((), optimizer="sgd", rate=0.1, batch_size=batch_size, epochs=30, random_state=0)
    model.fit(features, classes)
    steps = -(-len(features) // (batch_size or len(features)))
    assert [event.step for event in model.evaluations_] == [steps * (epoch + 1) for epoch in range(30)]
    losses = [event.train_loss for event in model.evaluations_]
    assert losses[-1] < losses[0]


def test_early_stopping_after_patience_keeps_best_weights():
    generator = np.random.default_rng(0)
    features, classes = generator.normal(size=(60, 20)), generator.integers(0, 2, 60)  # there is nothing to learn
    model = FeedforwardClassifier((50,), validation=0.3, patience=5, random_state=0).fit(features, classes)
    losses = [event.valid_loss for event in model.evaluations_]
    assert len(losses) < 200
    assert len(losses) == np.argmin(losses) + 6


def test_scale_standardizes_features_and_undoes_it():
    generator = np.random.default_rng(0)
    numbers = np.hstack([generator.normal(1e6, 3, (50, 2)), np.full((50, 1), 0.1), np.zeros((50, 1))])
    scale = Scale.of([numbers[:7], numbers[7:30], numbers[30:]])
    scaled = scale.apply(np.asfortranarray(numbers))
    assert scaled.flags.c_contiguous
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-8)
    np.testing.assert_allclose(scaled.std(0), [1, 1, 0, 0], atol=1e-8)
    np.testing.assert_allclose(scale.undo(scaled), numbers)


def test_regressor_predicts_several_targets():
    features = np.random.default_rng(0).normal(size=(80, 3))
    wanted = np.stack([features.sum(1), features[:, 0] - 7], 1)
    model = FeedforwardRegressor((), random_state=0).fit(features, wanted)
    assert model.predict(features).shape == (80, 2)
    assert model.score(features, wanted) > 0.99


def test_hinge_classifier_has_decision_function_and_no_probabilities():
    features, classes = load_iris(return_X_y=True)
    model = FeedforwardClassifier(output="hinge", epochs=3, random_state=0)
    assert not hasattr(model, "predict_proba")
    scores = model.fit(features, classes).decision_function(features)
    assert (model.predict(features) == scores.argmax(1)).all()
    two = model.fit(features[:100], classes[:100])
    assert (two.predict(features[:100]) == (two.decision_function(features[:100]) > 0)).all()
    two.set_params(output="softmax")  # the fitted model does not change
    assert not hasattr(two, "predict_proba")
    assert not hasattr(FeedforwardClassifier(), "decision_function")


def test_hidden_may_be_one_integer():
    features, classes = load_iris(return_X_y=True)
    assert FeedforwardClassifier(np.int64(7), epochs=1).fit(features, classes).config_.hidden == (7,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "squared"}, "`output` must be one of exponential, hinge, sigmoid, .*, softmax or None, not 'squared'"),
        ({"activation": ("relu", "tanh")}, "`activation` must be one, or one for each hidden layer, not 2 for 1 hidden layers"),
        ({"negative_slope": -0.1}, "`negative_slope` must be a number of at least 0 or None, not -0.1"),
        ({"l1": -1}, "`l1` must be a number of at least 0, not -1"),
        ({"random_biases": 1}, "`random_biases` must be True or False, not 1"),
        ({"activation": "tahn"}, "`activation` must be one of .*tanh, not 'tahn'"),
        ({"hidden": (0,)}, "`hidden` must be a list of at most 1,000 integers from 1 to 1,000,000; item 0 is 0"),
        ({"hidden": (2.5,)}, "item 0 is 2.5"),
        ({"hidden": "abc"}, "`hidden` must be a list of at most 1,000 integers .*, not 'abc'"),
        ({"epochs": 1.5}, "`epochs` must be an integer from 1 to 1,000,000, not 1.5"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1 or None, not 0"),
        ({"patience": -1}, "`patience` must be an integer of at least 0, not -1"),
        ({"rate": "x"}, "`rate` must be a number above 0, not 'x'"),
        ({"dropout": "x"}, "`dropout` must be a number of at least 0 and below 1, not 'x'"),
        ({"input_dropout": 2}, "`input_dropout` must be"),
        ({"validation": 1.0}, "`validation` must be"),
        ({"normalize": "no"}, "`normalize` must be True or False"),
        ({"rate": -1.0}, "`rate` must be a number above 0, not -1.0"),
        ({"rate": 1e300, "optimizer": "sgd", "clip": 0.0}, "training does not converge"),
    ],
)
def test_invalid_estimator_arguments_are_refused(change, message):
    features, classes = load_iris(return_X_y=True)
    model = FeedforwardClassifier(**change)
    with np.errstate(all="ignore"), pytest.raises((FflmError, ValueError), match=message):
        model.fit(features, classes)


def test_scikit_learn_searches_settings_of_estimators():
    """The search prefers a rate that learns to one that is far too small, also in a pipeline and for a regressor."""
    features, classes = load_iris(return_X_y=True)
    network = FeedforwardClassifier(activation="tanh", epochs=20, random_state=1)
    space = {"rate": loguniform(1e-6, 0.1), "hidden": [(), (6,), (6, 4)], "l2": loguniform(1e-6, 1e-3)}
    search = RandomizedSearchCV(network, space, n_iter=8, cv=3, scoring="neg_log_loss", random_state=1).fit(features, classes)
    tried = search.cv_results_
    assert search.best_params_["rate"] > 1e-3 > min(tried["param_rate"])
    assert search.best_estimator_.score(features, classes) > 0.94
    assert search.best_estimator_.get_params()["hidden"] == search.best_params_["hidden"]
    numbers, targets = load_diabetes(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), FeedforwardRegressor((4,), epochs=10, random_state=1))
    grid = GridSearchCV(pipeline, {"feedforwardregressor__rate": [1e-6, 1e-2]}, cv=2).fit(numbers, targets)
    assert grid.best_params_ == {"feedforwardregressor__rate": 1e-2}
