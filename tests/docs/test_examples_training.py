"""The examples of training: gradient descent, initial weights, batches, losses, backpropagation, and early stopping."""

from itertools import pairwise

import approximation
import backpropagation
import batches_and_rates
import cross_entropy
import early_stopping
import gradient_descent
import initial_weights
import losses
import misprints
import numpy as np
import pytest
import zero_centered

PNG = b"\x89PNG"


def test_gradient_descent_on_curve_equals_closed_form():
    for rate in (0.05, 0.5, 1.9, 2.1):
        path = gradient_descent.descend_curve(-1.0, rate, 10)
        np.testing.assert_allclose(path, 2 - 3 * (1 - rate) ** np.arange(11), rtol=1e-12)


@pytest.mark.parametrize(("points", "a", "b"), [([(1, 3), (2, 5), (3, 7)], 2, 1), ([(2, 0), (4, 1), (6, 2)], 0.5, -1)])
def test_fit_line_finds_line_through_three_points(points, a, b):
    assert points in gradient_descent.LINES.values()
    assert gradient_descent.fit_line(points, 0.05, 1500) == pytest.approx((a, b), abs=1e-4)


def test_gradient_descent_output_and_plot(capsys, tmp_path):
    gradient_descent.main(["--plot", str(tmp_path / "descent.png")])
    printed = capsys.readouterr().out
    assert "after  1000 steps  a =  2.0000, b =  1.0000" in printed
    assert "after  1000 steps  a =  0.5000, b = -1.0000" in printed
    assert (tmp_path / "descent.png").read_bytes().startswith(PNG)


def test_equal_hidden_units_stay_equal_in_training():
    same, random = initial_weights.equal(0.1), initial_weights.Parameters.random(initial_weights.IRIS, 1, np.float64)
    assert initial_weights.spread(same) < 1e-15
    losses = [initial_weights.train(each, initial_weights.IRIS, 300) for each in (same, random)]
    assert initial_weights.spread(same) < 1e-9
    assert initial_weights.spread(random) > 1
    assert losses == pytest.approx([0.137, 0.066], abs=0.01)


def test_logistic_regression_learns_from_zero_weights():
    linear = initial_weights.Parameters.zeros(initial_weights.LINEAR, np.float64)
    assert initial_weights.train(linear, initial_weights.LINEAR, 300) == pytest.approx(0.077, abs=0.005)


def test_two_starts_lead_to_two_minima():
    first, second = (initial_weights.descend_smallest(*start)[-1] for start in initial_weights.STARTS)
    np.testing.assert_allclose(first, -second, atol=0.02)
    np.testing.assert_allclose(first, (1.5, 0.8), atol=0.2)
    heights = initial_weights.surface(*np.array([first, (first + second) / 2, second]).T)
    assert heights[0] < 0.001
    assert heights[2] < 0.001
    assert heights[1] > 0.4


def test_xor_training_from_some_starts_ends_in_local_minimum():
    (good, right), (bad, wrong) = initial_weights.learn_xor(0), initial_weights.learn_xor(2)
    assert good < 0.01
    np.testing.assert_allclose(right, [0, 1, 1, 0], atol=0.01)
    assert bad == pytest.approx(np.log(2) / 2, abs=0.01)  # the loss is log 2 for two of four inputs, whose output is 1/2
    assert (np.abs(wrong - 0.5) < 0.01).sum() == 2


def test_sigmoid_outputs_give_gradients_of_one_sign():
    assert zero_centered.one_sign("sigmoid") == 1
    assert zero_centered.one_sign("tanh") < 0.05
    assert zero_centered.first_layer("sigmoid").mean() == pytest.approx(0.5, abs=0.05)
    assert zero_centered.first_layer("tanh").mean() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("rate", [0.1, 0.3, 1.0, 3.0])
def test_tanh_learns_faster_than_sigmoid(rate):
    assert zero_centered.train("tanh", rate)[-1] < 0.7 * zero_centered.train("sigmoid", rate)[-1]


def test_softmax_loss_and_gradient_equal_lecture():
    loss, gradient = cross_entropy.softmax_loss(np.array([0.3, 0.3, 0.4]), 2)
    assert loss == pytest.approx(-np.log(0.4))
    assert loss == pytest.approx(0.916, abs=5e-4)
    np.testing.assert_allclose(gradient, [0.3, 0.3, -0.6], atol=1e-15)


@pytest.mark.parametrize("z", [-8.0, -1.0, 0.0, 3.0])
def test_loss_slopes_after_sigmoid_equal_finite_differences(z):
    def losses(z):
        a = 1 / (1 + np.exp(-z))
        return np.array([-np.log(a), (a - 1) ** 2])

    e = 1e-5
    np.testing.assert_allclose(cross_entropy.slopes(z), (losses(z + e) - losses(z - e)) / (2 * e), rtol=1e-5)


def test_squared_error_does_not_train_saturated_sigmoid():
    by_entropy, by_squares = (cross_entropy.descend(-8.0, 1.0, 100, squared)[-1] for squared in (False, True))
    assert by_entropy > 4
    assert by_squares < -7.8


@pytest.mark.parametrize("sizes", [(3, 4, 1), (4, 5, 6, 3)])
def test_backpropagation_equals_library(sizes):
    W, b, inputs, targets = backpropagation.example(sizes, 7, seed=3)
    network = backpropagation.in_the_library(W, b)
    own = backpropagation.gradients(W, b, inputs[0], targets[0])
    found = backpropagation.library_gradients(*network, inputs[:1], targets[:1])
    assert [array.shape for array in own[0]] == [array.shape for array in W]
    assert max(map(backpropagation.largest_difference, own, found)) < 1e-14
    trained = backpropagation.library_train(W, b, inputs, targets, 0.05, 50)
    assert max(map(backpropagation.largest_difference, (W, b), trained)) > 0.1
    backpropagation.train(W, b, inputs, targets, 0.05, 50)
    assert max(map(backpropagation.largest_difference, (W, b), trained)) < 1e-12


@pytest.mark.slow
def test_loss_decreases_with_smaller_batches_and_diverges_with_large_rates():
    stochastic, mini, batch = (batches_and_rates.losses(size, 0.1)[-1] for size in (1, 15, 150))
    assert stochastic < 0.1 < mini < 0.4 < batch < 0.9
    small, right, large = (batches_and_rates.losses(150, rate)[-1] for rate in (0.1, 5.0, 100.0))
    assert right < 0.1 < small < 1 < large


@pytest.mark.slow
def test_early_stopping_ends_after_patience_and_scores_better():
    stopped, to_the_end = early_stopping.train(patience=20), early_stopping.train(patience=0)
    validation = early_stopping.losses(to_the_end)[1]
    best = int(validation.argmin()) + 1
    assert len(stopped.evaluations_) == best + 20
    assert validation[-1] > validation[best - 1] + 0.2
    x, y = early_stopping.sample(2000, seed=1, wrong=0.0)
    assert stopped.score(x, y) > early_stopping.train(patience=0, validation=0.0).score(x, y) + 0.02


def test_staircase_of_more_sigmoids_approximates_curve_better():
    errors = [approximation.largest_error(approximation.staircase(units)) for units in (4, 16, 64, 256)]
    assert errors[0] > 0.3
    for larger, smaller in pairwise(errors):
        assert smaller < 0.4 * larger


@pytest.mark.slow
def test_more_hidden_units_approximate_curve_better():
    errors = [approximation.largest_error(approximation.learned(units)) for units in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03


def test_backpropagation_output(capsys):
    backpropagation.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if " | " in line and "by the" not in line]
    assert len(rows) == 4 + 1 + 1 + 1
    assert all(one.split() == other.split() for one, other in rows)


def test_losses_of_numbers_and_counts_are_log_likelihoods_but_for_a_constant():
    for output, y in (("sigmoid", 1), ("squared", 1), ("absolute", 1), ("poisson", 3)):
        rests = [losses.loss(output, z, y)[0] - losses.surprise(output, z, y) for z in losses.SCORES]
        np.testing.assert_allclose(rests, rests[0], atol=1e-12)


def test_squared_error_and_poisson_learn_mean_and_absolute_error_learns_median():
    assert losses.constant("squared", losses.OUTLIER, 0.1, 200) == pytest.approx(22, abs=1e-6)
    assert losses.constant("poisson", losses.OUTLIER, 0.01, 1000) == pytest.approx(22, abs=1e-6)
    assert losses.constant("absolute", losses.OUTLIER, 0.01, 2000) == pytest.approx(3, abs=0.01)


def test_poisson_unit_predicts_positive_counts_where_line_is_negative():
    found = {}
    for output in ("squared", "poisson"):
        network, parameters = losses.linear(output, losses.X, losses.COUNTS, 0.05, 4000)
        found[output] = network.predict(parameters, losses.X)
    assert found["squared"].min() < -3
    assert 0 < found["poisson"].min() < 0.1
    np.testing.assert_allclose(found["poisson"], losses.COUNTS, atol=0.7)


def test_losses_plot(tmp_path):
    losses.draw(tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(PNG)


def test_right_formulas_equal_differences_and_printed_ones_do_not():
    for table in (misprints.gradients(), misprints.losses()):
        for printed, right, measured in table.values():
            assert right == pytest.approx(measured, abs=1e-8)
            assert abs(printed - measured) > 0.3


def test_printed_order_of_updates_changes_steps_and_errors():
    printed, right = misprints.distances()
    assert printed > 5 * right
    late, early = misprints.hidden_errors()
    assert np.abs(late - early).max() > 1e-4


def test_descent_may_raise_probability_of_wrong_class():
    before, after = misprints.step()
    assert after[2] > before[2]
    assert after[:2].sum() < before[:2].sum()
    assert after[1] > before[1]
