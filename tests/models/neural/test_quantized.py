"""Networks with weights of 8 bits equal the reference, computed from the stored numbers, and damaged files are refused."""

import shutil

import numpy as np
import pytest
import reference
from tiny import MODES, tiny_model

import fflm
from fflm.arrays import WEIGHTS, load_arrays, save_arrays
from fflm.errors import FflmError
from fflm.instructions import LANES
from fflm.models.neural.fast import FastScorer, _in_integers
from fflm.models.neural.model import NeuralModel, save_config
from fflm.models.neural.quantized import TYPES, QuantizedNetwork
from fflm.models.ngram.model import NgramModel
from fflm.models.quantize import model_size
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.training.checkpoints import save_weights

ACTIVATIONS = {"relu": lambda values: np.maximum(values, 0), "tanh": np.tanh}


def network_of(shape, text=MODES["sentence"]):
    """Return a small network that normalizes itself, with random weights."""
    twin = tiny_model(text)
    fields = {"averages": (), "window": 3, "embedding": 4, "hidden": (6,), "activation": "relu", "tied": False, **shape}
    config = NetworkConfig(len(twin.vocabulary), **fields)
    parameters = Parameters.random(config, 3)
    generator = np.random.default_rng(3)
    for array in parameters:
        array[...] = generator.normal(0, 0.7, array.shape)
    about = {"training": {"self_normalise": 0.1}}
    return NeuralModel(config, parameters, twin.vocabulary, text, about)


def test_weights_are_rounded_to_127th_parts_of_the_largest_of_a_row():
    model = network_of({"tied": True, "hidden": (6, 5)})
    model.parameters.embeddings[2] = 0
    small = QuantizedNetwork.of(model)
    for (name, array), (_, restored) in zip(model.parameters.items(), small.parameters.items(), strict=True):
        if array.ndim == 1:
            np.testing.assert_array_equal(restored, array)
            continue
        units = np.abs(array).max(axis=1, keepdims=True) / 127
        np.testing.assert_array_equal(np.abs(restored - array) <= 0.501 * units, True, err_msg=name)
        assert small.arrays[name].dtype == np.int8
        np.testing.assert_array_equal(np.abs(small.arrays[name]).max(axis=1), np.where(units[:, 0] > 0, 127, 0))
    with pytest.raises(FflmError, match="the network has no tables"):  # because of its two layers
        QuantizedNetwork.of(model, tables=True)


def test_quantized_network_predicts_as_a_network_with_the_restored_weights():
    small = QuantizedNetwork.of(network_of({"tied": True}))
    model = NeuralModel(small.config, small.parameters, small.vocabulary, small.text)
    assert small.next_words("the", 5) == model.next_words("the", 5)
    assert "quantized" in repr(small)


SHAPES = {
    "relu": {},
    "relu, averages, more than a piece of lanes": {"averages": (2, 30), "hidden": (LANES + 7,)},
    "averages": {"averages": (2, 3), "activation": "tanh", "word_weights": True},
}


def check_fast_scores(model):
    """Check the fast scores of a text against sums over the stored tables in double precision; return these, and contexts."""
    small = QuantizedNetwork.of(model, tables=True)
    config, arrays = small.config, {name: array.astype(np.float64) for name, array in small.fast_arrays.items()}
    ids = np.random.default_rng(0).integers(0, config.vocabulary, 700, np.int32)  # line ends, whose id is 1, are among them
    contexts = small.windows(ids).batch(np.arange(len(ids)))[0]
    tables, end = arrays["tables"], 0
    hidden = arrays["bias"] if not _in_integers(config) else arrays["bias_sum"] * arrays["units"]
    for k, size in enumerate(config.blocks):  # the averages of older words, then each word of the window
        unit = arrays["average_units"] if k < len(config.averages) else arrays["units"]
        hidden = hidden + unit * tables[contexts[:, end : end + size], k].sum(axis=1)
        end += size
    hidden = ACTIVATIONS[config.activation_of(1)](hidden) * (1 if _in_integers(config) else arrays["output_units"])
    if _in_integers(config):
        hidden = hidden / np.where(arrays["units"] > 0, arrays["units"], 1)
    scale, bias = arrays["outputs"][ids].T
    expected = -(hidden * tables[ids, -1]).sum(axis=1) * scale - bias
    np.testing.assert_allclose(FastScorer(small).losses_of_text(ids), expected, rtol=0, atol=1e-4 * expected.std())
    return ids, contexts, expected


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_fast_scores_equal_reference(shape):
    small = QuantizedNetwork.of(network_of(shape))
    ids, contexts, found = check_fast_scores(network_of(shape))
    case = {**reference.PLAIN, **small.config.to_dict()}
    weights = {name: array.astype(np.float64) for name, array in small.parameters.items()}
    outputs = reference.forward(weights, contexts, case, 0, 0, training=False)[2]
    exact = -(outputs * reference.softmax_weight(weights)[ids]).sum(1) - weights["output.bias"][ids]
    assert (found - exact).std() < 0.1 * exact.std()


def test_sums_over_long_windows_do_not_overflow():
    model = network_of({"window": 300})
    model.parameters.embeddings[...] = 1
    model.parameters.hidden_weights[0][...] = 0.5
    check_fast_scores(model)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder of a network that normalizes itself."""
    return _stored(network_of({}), tmp_path_factory.mktemp("made") / "m.model")


@pytest.fixture
def folder(made, tmp_path):
    """Return the folder of a quantized network."""
    shutil.copytree(made, tmp_path / "m.model")
    fflm.quantize(tmp_path / "m.model", tmp_path / "small.model", tables=True)
    return tmp_path / "small.model"


def test_quantized_network_is_stored(folder, made):
    small, expected = fflm.load(folder), QuantizedNetwork.of(fflm.load(made), tables=True)
    assert "parameters" not in vars(small)
    lines = ["the cat sat", "", "the dog"]
    scorer = FastScorer(small)
    assert np.shares_memory(scorer._tables.tables, small.arrays["fast.tables"])
    assert scorer._tables.tables.ctypes.data % 64 == 0
    np.testing.assert_array_equal(scorer.scores(lines), FastScorer(expected).scores(lines))
    assert "parameters" not in vars(small)  # until it predicts without the tables
    np.testing.assert_array_equal(small.scores(lines), expected.scores(lines))
    with pytest.raises(FflmError, match="is quantized, so that it can only predict"):
        NeuralModel.load(folder)
    with pytest.raises(FflmError, match="is quantized already"):
        fflm.quantize(folder, folder.with_name("again.model"))
    assert not folder.with_name("again.model").exists()


def test_damaged_quantized_network_is_refused(folder):
    arrays, figures = load_arrays(folder / WEIGHTS, TYPES)
    for name, array in arrays.items():
        for damaged in (array[:-1], array[None], array.astype(np.int16 if array.dtype != np.int16 else np.int8)):
            save_arrays(folder / WEIGHTS, {**arrays, name: damaged}, figures)
            with pytest.raises(FflmError, match=r"^the weights in .*model\.safetensors are (not this network|damaged)"):
                fflm.load(folder)
        if array.dtype == np.float32:
            changed = array.copy()
            changed.flat[-1] = np.nan
            save_arrays(folder / WEIGHTS, {**arrays, name: changed}, figures)
            with pytest.raises(FflmError, match=r"^the weights in .*model\.safetensors are damaged.* not finite"):
                fflm.load(folder).score("the cat")
            with pytest.raises(FflmError, match=r"^the weights in .*model\.safetensors are damaged.* not finite"):
                fflm.load(folder, verify=True)
    save_arrays(folder / WEIGHTS, {**arrays, "fast.other": arrays["fast.units"]}, figures)
    assert len(FastScorer(fflm.load(folder)).scores(["the cat"])) == 1  # unknown arrays are ignored
    save_arrays(folder / WEIGHTS, {**arrays, "fast.tables": ~arrays["fast.tables"]}, figures)
    assert len(FastScorer(fflm.load(folder)).scores(["the cat"])) == 1  # any numbers are safe


def test_copy_is_smaller_than_its_original_or_not_made(tmp_path):
    with pytest.raises(FflmError, match=r"so small that the copy would not be smaller \([\d,]+ bytes instead of [\d,]+\)"):
        fflm.quantize(_stored(network_of({"embedding": 1}), tmp_path / "tiny.model"), tmp_path / "small.model")
    assert not (tmp_path / "small.model").exists()
    fflm.quantize(_stored(network_of({"embedding": 64}), tmp_path / "m.model"), tmp_path / "small.model")
    assert model_size(tmp_path / "small.model") < model_size(tmp_path / "m.model")
    assert not fflm.load(tmp_path / "small.model").fast_arrays


def test_other_models_are_not_quantized(made, tmp_path):
    fflm.mix([made], cache=5, tune=[_write(tmp_path / "t.txt", "the cat sat\n")]).save(tmp_path / "m.mix")
    with pytest.raises(FflmError, match="quantize the models that it mixes"):
        fflm.quantize(tmp_path / "m.mix", tmp_path / "x")
    assert not isinstance(fflm.load(made), NgramModel)


def _stored(model, path):
    path.mkdir()
    save_config(path, model.config, model.text, model.vocabulary, model.about)
    save_weights(path, model.parameters, {})
    return path


def _write(path, text):
    path.write_text(text)
    return path
