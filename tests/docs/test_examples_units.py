"""The examples on units and gradients give the figures of the textbook."""

import closed_form
import computation_graph
import gaussian_classes
import iris_weights
import mcculloch_pitts
import network_drawing
import numpy as np
import perceptrons
import pytest
import unit

PNG = b"\x89PNG"
XOR = [0, 1, 1, 0]


def test_unit_output_equals_textbook():
    z, y = unit.by_hand(unit.W, unit.B, unit.X)
    assert z == pytest.approx(0.87, abs=1e-15)
    assert y == pytest.approx(0.70, abs=0.005)
    assert y == pytest.approx(0.7047456979980911, abs=1e-15)
    assert unit.by_the_library(unit.W, unit.B, unit.X) == pytest.approx(y, abs=1e-15)


def test_unit_output(capsys):
    unit.main()
    printed = capsys.readouterr().out
    assert "w . x + b  = 0.2 * 0.5 + 0.3 * 0.6 + 0.9 * 0.1 + 0.5 = 0.87\n" in printed
    assert "1 / (1 + e^-0.87) = 0.70\n" in printed
    by_hand, by_the_library = (line.split()[-1] for line in printed.splitlines()[-2:])
    assert by_hand[:10] == by_the_library[:10] == "0.70474569"


@pytest.mark.parametrize(("name", "outputs"), [("AND", [0, 0, 0, 1]), ("OR", [0, 1, 1, 1])])
def test_perceptrons_compute_logical_and_and_or(name, outputs):
    assert perceptrons.TARGETS[name].tolist() == outputs
    assert perceptrons.perceptron(*perceptrons.PERCEPTRONS[name], perceptrons.INPUTS).tolist() == outputs


def learned_by_the_rule(name):
    """Return the outputs for the four inputs after each epoch of the perceptron rule."""
    history = perceptrons.perceptron_rule(perceptrons.TARGETS[name])
    assert history[-1] in history[:-1]  # so that further epochs would repeat earlier ones
    return [perceptrons.perceptron(np.array(w), b, perceptrons.INPUTS).tolist() for *w, b in history]


def test_perceptron_rule_learns_logical_and_and_or():
    assert learned_by_the_rule("AND")[-2:] == [[0, 0, 0, 1]] * 2
    assert learned_by_the_rule("OR")[-2:] == [[0, 1, 1, 1]] * 2


def test_perceptron_rule_does_not_learn_xor():
    assert XOR not in learned_by_the_rule("XOR")


def test_network_with_hidden_layer_computes_xor():
    network, parameters = perceptrons.xor_network()
    assert perceptrons.hidden(perceptrons.INPUTS).tolist() == [[0, 0], [1, 0], [1, 0], [2, 1]]
    assert network.predict(parameters, perceptrons.INPUTS).tolist() == [[0], [1], [1], [0]]


@pytest.mark.parametrize("seed", [0, 1])
def test_network_with_hidden_layer_learns_xor(seed):
    np.testing.assert_allclose(perceptrons.learned(8, seed), XOR, atol=0.05)


@pytest.mark.slow
def test_perceptrons_output_and_plot(capsys, tmp_path):
    perceptrons.main(["--plot", str(tmp_path / "xor.png")])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:6] == [
        "AND: w = [1, 1], b = -1, y = 1 if w . x + b > 0",
        "x1 x2 w . x + b y",
        "0 0 -1 0",
        "0 1 0 0",
        "1 0 0 0",
        "1 1 1 1",
    ]
    assert lines[7:12] == ["x1 x2 w . x + b y", "0 0 0 0", "0 1 1 1", "1 0 1 1", "1 1 2 1"]
    assert "as after epoch 2: it goes round for ever, all four never right" in lines
    verdicts = [line.split(": ")[1] for line in lines if line.startswith("as after")]
    assert verdicts == ["learned", "learned", "it goes round for ever, all four never right"]
    given = lines.index("x1 x2 h1 h2 y")
    assert lines[given + 1 : given + 5] == ["0 0 0 0 0", "0 1 1 0 1", "1 0 1 0 1", "1 1 2 1 0"]
    learned = lines.index("x1 x2 p(y = 1) y")
    assert [line.split()[-1] for line in lines[learned + 1 : learned + 5]] == ["0", "1", "1", "0"]
    assert (tmp_path / "xor.png").read_bytes().startswith(PNG)


def test_closed_form_gradients_equal_values_by_hand():
    weights = {"W1": np.zeros((1, 1)), "b1": np.zeros(1), "W2": np.array([[2.0], [-2.0]]), "b2": np.array([-1.0, 1.0])}
    x = np.array([3.0])  # a1 = 1/2 with the derivative 1/4; z2 = 0, so a2 = (1/2, 1/2) and a2 - y = (-1/2, 1/2)
    expected = {"W1": [[-1.5]], "b1": [-0.5], "W2": [[-0.25], [0.25]], "b2": [-0.5, 0.5]}
    loss, library = closed_form.by_the_library(weights, x, 0)
    assert loss == pytest.approx(np.log(2), abs=1e-15)
    for found in (closed_form.closed_form(weights, x, 0), library):
        for name, gradient in expected.items():
            np.testing.assert_allclose(found[name], gradient, rtol=0, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_closed_form_gradients_equal_library_and_finite_differences(seed):
    weights, x, label = closed_form.example(seed)
    formulas = closed_form.closed_form(weights, x, label)
    loss, library = closed_form.by_the_library(weights, x, label)
    assert loss == pytest.approx(closed_form.loss(weights, x, label), rel=1e-13)
    assert max(closed_form.largest_difference(formulas, library).values()) < 1e-14
    assert max(closed_form.largest_difference(formulas, closed_form.finite_differences(weights, x, label)).values()) < 1e-9


def test_closed_form_output(capsys):
    closed_form.main()
    table = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split(" = ")[0] for line in table] == ["dJ/db2", "dJ/dW2", "dJ/db1", "dJ/dW1"]
    for line in table:
        to_library, to_differences = map(float, line.split()[-2:])
        assert to_library < 1e-14
        assert to_differences < 1e-9


def by_name(loss):
    computation_graph.backward(loss)
    return {node.name: node for node in computation_graph.topological_order(loss)}


def test_small_graph_values_and_gradients():
    nodes = by_name(computation_graph.small_graph())
    assert {name: node.value for name, node in nodes.items()} == {"a": 3, "b": 1, "c": -2, "d": 2, "e": 5, "L": -10}
    assert {name: node.gradient for name, node in nodes.items()} == {"a": -2, "b": -4, "c": 5, "d": -2, "e": -2, "L": 1}


def test_topological_order_has_inputs_first():
    order = computation_graph.topological_order(computation_graph.network_graph(**computation_graph.NETWORK))
    assert len(order) == len(set(order)) == len(computation_graph.NETWORK_PLACES)
    for place, node in enumerate(order):
        assert set(node.inputs) <= set(order[:place])


def test_network_graph_gradients_equal_values_by_hand():
    nodes = by_name(computation_graph.network_graph(**computation_graph.NETWORK))
    assert [nodes[name].value for name in ("z1", "z2", "h1", "h2", "z")] == [1.5, 0.5, 1.5, 0.5, 0.5]
    yhat = 1 / (1 + np.exp(-0.5))
    expected = {"yhat": -1 / yhat, "z": yhat - 1, "h1": 0.5 * (yhat - 1), "h2": -1.5 * (yhat - 1), "u1": 1.5 * (yhat - 1)}
    expected["x1"] = (0.5 * 0.5 - 1.5 * -0.5) * (yhat - 1)  # the sum over two edges
    assert {name: nodes[name].gradient for name in expected} == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("seed", range(4))
def test_network_graph_gradients_equal_library(seed):
    generator = np.random.default_rng(seed)
    arrays = {name: generator.normal(size=shape) for name, shape in (("x", 2), ("w", (2, 2)), ("b", 2), ("u", 2))}
    case = {**arrays, "c": generator.normal(), "y": float(seed % 2)}
    nodes = by_name(computation_graph.network_graph(**case))
    loss, gradients = computation_graph.by_the_library(**case)
    assert nodes["L"].value == pytest.approx(loss, rel=1e-13)
    assert {name: nodes[name].gradient for name in gradients} == pytest.approx(gradients, rel=1e-13, abs=1e-15)


def test_computation_graph_output_and_plot(capsys, tmp_path):
    computation_graph.main(["--plot", str(tmp_path / "graphs.png")])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in ("d = 2b = 2.0000", "e = a + d = 5.0000", "L = c e = -10.0000", "b -> d 1.0000 -4.0000 = -2.0000 x 2.0000"):
        assert line in lines
    assert "dL/dc = 5, dL/da = -2, dL/db = -4, dL/dd = -2, dL/de = -2, dL/dL = 1" in lines
    by_the_graph, by_the_library = np.array([line.split()[1:] for line in lines[-10:]], float).T
    np.testing.assert_allclose(by_the_graph, by_the_library, rtol=0, atol=2e-10)
    assert by_the_graph[0] == pytest.approx(0.4740769842, abs=1e-9)  # -log sigmoid(0.5)
    assert (tmp_path / "graphs.png").read_bytes().startswith(PNG)


def test_iris_network_of_lecture_has_one_misprint():
    found = iris_weights.probabilities()
    far = np.abs(found - iris_weights.PRINTED) >= 1e-6
    assert np.argwhere(far).tolist() == [[0, 0]]
    assert found[0, 0] == pytest.approx(0.9999984144, abs=1e-10)
    assert iris_weights.PRINTED[0].sum() == pytest.approx(0.999986, abs=5e-7)
    np.testing.assert_allclose(iris_weights.PRINTED[1:].sum(1), 1, atol=1e-6)
    assert found.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]


def test_iris_network_of_lecture_output_and_plot(capsys, tmp_path):
    iris_weights.main(["--plot", str(tmp_path / "iris.svg")])
    printed = capsys.readouterr().out
    assert "17 of 18 printed numbers agree to 1e-06" in printed
    assert printed.count("<- a misprint") == 1
    assert "<svg" in (tmp_path / "iris.svg").read_text(encoding="utf-8")


def test_softmax_layer_equals_posterior_of_gaussian_classes():
    x, _ = gaussian_classes.sample(500, seed=3)
    posterior = gaussian_classes.bayes(x)
    np.testing.assert_allclose(posterior.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(gaussian_classes.predict(gaussian_classes.layer(), x), posterior, atol=1e-14)


@pytest.mark.slow
def test_learned_weights_approach_weights_of_gaussian_classes(capsys, tmp_path):
    exact = gaussian_classes.differences(gaussian_classes.layer())
    errors = [np.abs(gaussian_classes.differences(gaussian_classes.learn(count)) - exact).max() for count in (200, 20_000)]
    assert errors[1] < 0.2 < errors[0]
    gaussian_classes.main(["--plot", str(tmp_path / "classes.png")])
    assert "largest difference over 1,000 points" in capsys.readouterr().out
    assert (tmp_path / "classes.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [("x1 AND x2", [0, 0, 0, 1]), ("x1 OR x2", [0, 1, 1, 1]), ("NOT x1", [1, 1, 0, 0]), ("x1 AND NOT x2", [0, 0, 1, 0])],
)
def test_mcculloch_pitts_neurons_compute_logical_functions(name, outputs):
    neuron = mcculloch_pitts.NEURONS[name]
    assert [neuron.fires(row) for row in mcculloch_pitts.rows(2)] == outputs
    assert perceptrons.perceptron(*neuron.as_perceptron(2), np.array(mcculloch_pitts.rows(2))).tolist() == outputs


def test_inhibitory_input_of_mcculloch_pitts_neuron_prevents_firing():
    neuron = mcculloch_pitts.Neuron((0, 1), (2,), 1)
    assert [neuron.fires(inputs) for inputs in ([1, 1, 0], [1, 1, 1], [0, 0, 0])] == [1, 0, 0]


def test_mcculloch_pitts_networks_compute_every_function(capsys):
    assert mcculloch_pitts.compute(XOR, 2) == XOR
    mcculloch_pitts.main()
    printed = capsys.readouterr().out
    assert printed.count("the same in all 4 rows: True") == 4
    assert [line.split()[:3] for line in printed.splitlines()[-3:]] == [[n, "of", n] for n in ("4", "16", "256")]


@pytest.mark.parametrize("name", network_drawing.NAMES)
def test_network_drawing_output_and_plot(name, capsys, tmp_path):
    network_drawing.main([name, "--plot", str(tmp_path / "network.svg")])
    assert "parameters\n" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "network.svg").read_text(encoding="utf-8")
