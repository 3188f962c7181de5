"""The reference equals finite differences, published vectors and closed forms; the gradient check detects errors."""

from collections.abc import Callable

import gradcheck
import numpy as np
import pytest
import reference
from reference import CASES
from tolerances import ACTIVATION, FLOAT64, PRODUCT, assert_close

SEED, STEP = 5, 7


def check_gradients(name: str, gradients: dict[str, np.ndarray]) -> None:
    """Compare gradients of a case with finite differences of its objective."""
    case = CASES[name]
    parameters, contexts, targets = reference.batch(case)
    norms = None
    if case["adversarial"]:  # the norms of the noise count as constants
        norms = reference.radii(reference.softmax_weight(parameters), targets, case["adversarial"])
    gradcheck.check(lambda: reference.objective(parameters, contexts, targets, case, SEED, STEP, norms), parameters, gradients)


def gradients_of(name: str) -> dict[str, np.ndarray]:
    return reference.network_gradients(*reference.batch(CASES[name]), CASES[name], SEED, STEP)


QUICK = {"tanh", "teacher", "adversarial", "everything", "averages", "noise", "tied, direct", "one band, direct, penalty"}


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_reference_gradients_equal_finite_differences(name: str) -> None:
    check_gradients(name, gradients_of(name))


# The gradient check detects errors.


def swapped_inputs_and_outputs(inputs, weight, bias, activation, d_outputs):
    dz = d_outputs * reference.slope(activation, inputs @ weight.T + bias)
    return dz.T @ inputs, dz.sum(0), dz @ weight.T


def only_last_of_equal_words(contexts, blocks, d_inputs, d_embeddings, weights):
    result = d_embeddings.copy()
    result[contexts] += d_inputs.reshape(*contexts.shape, -1)
    return result


def mean_of_blocks(contexts, blocks, d_inputs, d_embeddings, weights):
    return right_scatter_add(contexts, blocks, d_inputs / np.repeat(np.sqrt(blocks), 3), d_embeddings)


right_scatter_add = reference.scatter_add


def changed_output(change: Callable) -> Callable:
    right = reference.output_gradients

    def output_gradients(*arguments):
        return change(*right(*arguments))

    return output_gradients


MISTAKES = {
    "slope of activation missing": ("tanh", "slope", lambda name, z: np.ones_like(z)),
    "slope of another activation": ("elu", "slope", lambda name, z: np.where(z > 0, 1.0, 0.01)),
    "sum instead of mean over batch": ("tanh", "output_gradients", changed_output(lambda *all_: [13 * x for x in all_])),
    "transposed matrix": ("two square layers", "affine_backward", swapped_inputs_and_outputs),
    "gradient of direct connections missing": (
        "direct",
        "output_gradients",
        changed_output(lambda d_hidden, *others: (np.hstack([d_hidden[:, :5], 0 * d_hidden[:, 5:]]), *others)),
    ),
    "gradient of tied softmax missing": (
        "tied, projected",
        "output_gradients",
        changed_output(lambda d_hidden, d_weight, d_bias: (d_hidden, 0 * d_weight, d_bias)),
    ),
    "gradient of contexts missing": (
        "tied, projected",
        "scatter_add",
        lambda contexts, blocks, d_inputs, d_embeddings, weights: d_embeddings,
    ),
    "equal words of context counted once": ("tanh", "scatter_add", only_last_of_equal_words),
    "averages treated as means": ("averages", "scatter_add", mean_of_blocks),
    "weights of words left out": ("weighted averages", "scatter_add", lambda *arguments: right_scatter_add(*arguments[:4])),
    "normalization treated as constant factor": (
        "residual",
        "normalize_backward",
        lambda values, d: d / np.sqrt(values.var(1, keepdims=True) + 1e-5),
    ),
    "residual sum missing": ("residual", "normalize_backward", lambda values, d: np.zeros_like(d)),
    "penalty missing": ("penalty", "log_normalizers", lambda hidden, weight, bias: np.zeros(len(hidden))),
    "noise counted once": ("noise", "noise", lambda case: np.ones(case["vocabulary"])),
    "gradient of noise missing": (
        "adversarial",
        "radii",
        lambda weight, targets, adversarial: np.zeros(len(targets)),
    ),
    "smoothing missing": ("smoothing", "smoothed_targets", lambda targets, words, smoothing: np.eye(words)[targets]),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_gradient_check_detects_wrong_formula(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, function, wrong = MISTAKES[mistake]
    with monkeypatch.context() as patch:
        patch.setattr(reference, function, wrong)
        gradients = gradients_of(name)
    with pytest.raises(AssertionError, match="relative error"):
        check_gradients(name, gradients)


@pytest.mark.parametrize("name", ["dropout", "embedding dropout"])
def test_gradient_check_detects_missing_dropout_in_backward_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, contexts, _ = reference.batch(CASES[name])
    forward = reference.forward(parameters, contexts, CASES[name], SEED, STEP, training=True)
    with monkeypatch.context() as patch:
        patch.setattr(reference, "forward", lambda *arguments, **options: forward)
        patch.setattr(reference, "dropout", lambda values, *arguments: values)
        gradients = gradients_of(name)
    with pytest.raises(AssertionError, match="relative error"):
        check_gradients(name, gradients)


@pytest.mark.slow
@pytest.mark.parametrize("array", ["embeddings", "hidden.0.weight", "hidden.0.bias", "output.weight", "output.bias"])
def test_gradient_check_detects_one_wrong_coordinate(array: str) -> None:
    for place in (np.argmax, np.argmin):  # the largest coordinate, and the smallest that is not zero
        gradients = gradients_of("tanh")
        sizes = np.abs(gradients[array])
        gradients[array].flat[place(np.where(sizes > 0, sizes, np.median(sizes)))] *= 1.00001
        with pytest.raises(AssertionError, match=rf"relative error.*{array}"):
            check_gradients("tanh", gradients)


def test_gradient_check_detects_error_in_tiny_gradient() -> None:
    array, coefficients = np.zeros(2), np.array([1.0, 1e-9])
    gradcheck.check(lambda: array @ coefficients, {"x": array}, {"x": coefficients})
    with pytest.raises(AssertionError, match="relative error"):
        gradcheck.check(lambda: array @ coefficients, {"x": array}, {"x": np.array([1.0, 0.98e-9])})


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_gradient_check_detects_nan_and_infinity(wrong: float) -> None:
    gradients = gradients_of("tanh")
    gradients["hidden.0.bias"][2] = wrong
    with pytest.raises(AssertionError, match=r"hidden\.0\.bias"):
        check_gradients("tanh", gradients)


def test_gradient_check_detects_missing_and_misshapen_arrays() -> None:
    gradients = gradients_of("tanh")
    with pytest.raises(AssertionError, match=r"hidden\.0\.weight"):
        check_gradients("tanh", {**gradients, "hidden.0.weight": gradients["hidden.0.weight"].T})
    del gradients["output.bias"]
    with pytest.raises(AssertionError):
        check_gradients("tanh", gradients)


# Philox and dropout.


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    """The vectors are those in tests/kat_vectors of Random123, the library of the authors of Philox."""
    words = reference.philox(*([int(word, 16) for word in text.split()] for text in (counter, key)))
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def test_dropout_keeps_mean() -> None:
    ones = np.ones((400, 250))
    for rate in (0.0, 0.1, 0.5, 0.9):
        dropped = reference.dropout(ones, rate, 1, 2, 3)
        assert set(np.unique(dropped)) <= {0.0, 1 / (1 - rate)}
        deviation = (rate * (1 - rate) / ones.size) ** 0.5
        assert abs((dropped == 0).mean() - rate) <= 5 * deviation


def test_dropout_depends_on_seed_step_layer_and_row() -> None:
    numbers = {"seed": 1, "step": 2, "layer": 3, "row": 0}
    first = reference.dropout(np.ones((40, 25)), 0.5, **numbers)
    for name in numbers:
        for change in (1, 2**32) if name in ("seed", "step") else (1,):
            other = reference.dropout(np.ones((40, 25)), 0.5, **{**numbers, name: numbers[name] + change})
            assert 0.4 < (first == other).mean() < 0.6
    assert np.array_equal(first[7:], reference.dropout(np.ones((33, 25)), 0.5, 1, 2, 3, row=7))


# The formulas.


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "leaky_relu", "elu", "softplus", "identity"])
def test_activation_slopes_equal_finite_differences(name: str) -> None:
    z = np.linspace(-6, 6, 100)
    wanted = [gradcheck.derivative(lambda: float(reference.activate(name, z)[i]), z, (i,)) for i in range(100)]  # noqa: B023
    assert_close(reference.slope(name, z), np.array(wanted), gradcheck.TOLERANCE)


def test_activations_at_known_points() -> None:
    z, e = np.array([-1e3, -1.0, 0.0, 1.0, 1e3]), np.e
    known = {
        "tanh": [-1, (1 - e**2) / (1 + e**2), 0, (e**2 - 1) / (e**2 + 1), 1],
        "sigmoid": [0, 1 / (1 + e), 0.5, e / (1 + e), 1],
        "relu": [0, 0, 0, 1, 1e3],
        "leaky_relu": [-10, -0.01, 0, 1, 1e3],
        "elu": [-1, 1 / e - 1, 0, 1, 1e3],
        "softplus": [0, np.log(1 + 1 / e), np.log(2), np.log(1 + e), 1e3],
        "identity": z,
    }
    for name, values in known.items():
        np.testing.assert_allclose(reference.activate(name, z), values, rtol=0, atol=ACTIVATION[FLOAT64])


def test_softmax_of_known_scores() -> None:
    weight, bias = np.array([[1.0], [-1.0]]), np.zeros(2)
    logs = reference.log_probabilities(np.array([[0.0], [np.log(2) / 2], [500.0]]), weight, bias)
    half, third = np.log(1 / 2), np.log(1 / 3)
    assert_close(logs, np.array([[half, half], [third - half, third], [0, -1000]]), PRODUCT[FLOAT64])


def test_objective_equals_mean_loss() -> None:
    parameters, contexts, targets = reference.batch(CASES["tanh"])
    losses = reference.network_losses(parameters, contexts, targets, CASES["tanh"])
    assert_close(reference.objective(parameters, contexts, targets, CASES["tanh"]), losses.mean(), PRODUCT[FLOAT64])
    uniform = -reference.network_log_probabilities(parameters, contexts, CASES["tanh"]).mean()
    smoothed = reference.objective(parameters, contexts, targets, CASES["smoothing"])
    assert_close(smoothed, 0.9 * losses.mean() + 0.1 * uniform, PRODUCT[FLOAT64])


# The optimizer steps, compared with closed forms for a constant gradient.

G, RATE, STEPS = np.array([0.5, -2.0, 3.0]), 0.1, 20
PENALTY = {"scale": 1.0, "l2": 0.0}


def test_momentum_steps_equal_closed_form() -> None:
    for nesterov, ahead in ((False, 0), (True, 1)):
        weight, velocity = np.ones(3), np.zeros(3)
        for _ in range(STEPS):
            weight, velocity = reference.momentum_step(weight, G, velocity, **PENALTY, rate=RATE, momentum=0.9, nesterov=nesterov)
        velocities = [(1 - 0.9 ** (t + ahead)) / 0.1 for t in range(1, STEPS + 1)]  # Nesterov's velocity is one step ahead
        assert_close(weight, 1 - RATE * G * sum(velocities), PRODUCT[FLOAT64])


def test_adagrad_steps_equal_closed_form() -> None:
    weight, total = np.ones(3), np.zeros(3)
    for _ in range(STEPS):
        weight, total = reference.adagrad_step(weight, G, total, **PENALTY, rate=RATE, epsilon=0.0)
    assert_close(total, STEPS * G**2, PRODUCT[FLOAT64])
    assert_close(weight, 1 - RATE * np.sign(G) * sum(t**-0.5 for t in range(1, STEPS + 1)), PRODUCT[FLOAT64])


def test_rmsprop_steps_equal_closed_form() -> None:
    weight, mean = np.ones(3), np.zeros(3)
    for _ in range(STEPS):
        weight, mean = reference.rmsprop_step(weight, G, mean, **PENALTY, rate=RATE, decay=0.9, epsilon=0.0)
    assert_close(mean, (1 - 0.9**STEPS) * G**2, PRODUCT[FLOAT64])
    moved = sum((1 - 0.9**t) ** -0.5 for t in range(1, STEPS + 1))
    assert_close(weight, 1 - RATE * np.sign(G) * moved, PRODUCT[FLOAT64])


def test_adam_steps_equal_closed_form() -> None:
    settings = {"rate": RATE, "beta1": 0.9, "beta2": 0.999, "epsilon": 0.0}
    for shrink in (0.0, 0.01):
        weight, first, second = np.ones(3), np.zeros(3), np.zeros(3)
        for step in range(1, STEPS + 1):
            weight, first, second = reference.adam_step(weight, G, first, second, **PENALTY, shrink=shrink, **settings, step=step)
        steps = sum((1 - shrink) ** t for t in range(STEPS))  # each step has size one, and decays afterwards
        assert_close(weight, (1 - shrink) ** STEPS - RATE * np.sign(G) * steps, 1e-12)
        assert_close(second, (1 - 0.999**STEPS) * G**2, 1e-12)


def test_l2_penalty_is_added_to_scaled_gradient() -> None:
    weight = np.array([2.0, -4.0])
    stepped, velocity = reference.momentum_step(
        weight, np.array([3.0, 8.0]), np.zeros(2), scale=0.5, l2=0.25, rate=0.1, momentum=0.0, nesterov=False
    )
    assert_close(velocity, np.array([2.0, 3.0]), PRODUCT[FLOAT64])
    assert_close(stepped, np.array([1.8, -4.3]), PRODUCT[FLOAT64])
