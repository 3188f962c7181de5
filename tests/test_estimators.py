"""The estimators pass scikit-learn's checks, equal its linear models, and refuse invalid arguments."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from fflm import FeedforwardClassifier, FeedforwardRegressor, FflmError
from fflm.training.examples import Scale

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")


@parametrize_with_checks(
    [
        FeedforwardClassifier((), output="sigmoid", validation=0.2),
        FeedforwardRegressor(),
    ]
)
def test_estimators_pass_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        FeedforwardClassifier(),
        FeedforwardClassifier((8,), "tanh", output="hinge"),
        FeedforwardRegressor((30, 30), residual=True, output="absolute"),
    ]
)
def test_larger_estimators_pass_scikit_learn_checks(estimator, check):
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


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus"])
@pytest.mark.parametrize("output", ["softmax", "sigmoid", "hinge"])
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
    features, classes = (
        generator.normal(size=(60, 20)),
        generator.integers(0, 2, 60),
    )  # random classes cannot be learned
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
        ({"output": "squared"}, "`output` must be one of hinge, sigmoid, softmax or None, not 'squared'"),
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
