"""Mixed precision computes float16 values exactly, rounds others once, and trains nearly as single precision does."""

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType

import devices
import numpy as np
import pytest
import reference
from command import installed_fflm as fflm
from devices import gpu_backend
from rounding import RoundingBackend
from tiny import tiny_model
from tolerances import HALF_SLOPES, MIXED_STEPS, MIXED_WAY, SAME_ROUNDING, SINGLE_SOFTMAX, assert_close

pytest.importorskip("numba_cuda", reason="pip install -e '.[dev-cuda]'")

from numba.cuda.cudadrv.driver import CudaAPIError
from test_cuda import NETWORK, RUNS, train_ten_steps

from fflm.backend import devices as backend_devices
from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.cuda import backend as cuda_backend
from fflm.backend.cuda import fragments, pipeline, products
from fflm.backend.cuda import mixed as cuda_mixed
from fflm.errors import FflmError
from fflm.models.classifier import train as classifier
from fflm.models.neural import train
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.training.events import Evaluation

MIXED = gpu_backend("mixed")


def on_gpu(*arrays):
    """Return the arrays on the device."""
    return [MIXED.upload(array) for array in arrays]


@pytest.mark.parametrize(
    ("rows", "width", "outputs"),
    [(1, 1, 1), (3, 9, 2), (33, 31, 40), (150, 200, 137), (128, 64, 256), (300, 9, 260)],
)
def test_products_of_float16_values_are_exact(rows, width, outputs):
    generator = np.random.default_rng(0)
    shapes = (rows, width), (outputs, width), (outputs,), (rows, outputs), (outputs, width), (rows, width)
    inputs, weight, bias, d_outputs, before, noise = (generator.integers(-8, 9, shape).astype(np.float32) / 4 for shape in shapes)
    d_outputs *= np.float32(2.0**-30)  # below the range of float16
    before *= np.float32(2.0**-30)
    x, w, b, d_y, d_w, d_x = on_gpu(inputs, weight, bias, d_outputs, before, noise)
    y, d_b = on_gpu(np.full((rows, outputs), np.nan, np.float32), bias)
    MIXED.affine(x, w, b, "identity", y)
    assert np.array_equal(MIXED.download(y), inputs @ weight.T + bias)
    MIXED.affine_backward(x, w, y, "identity", d_y, 1.0, d_w, d_b, d_x)
    assert np.array_equal(MIXED.download(d_w), before + d_outputs.T @ inputs)
    assert np.array_equal(MIXED.download(d_x), d_outputs @ weight)


@pytest.mark.parametrize(("rows", "words", "size"), [(1, 1, 1), (3, 127, 7), (5, 129, 3), (140, 300, 130)])
@pytest.mark.parametrize("scale", [2.0**-13, 1.0])
def test_softmax_of_float16_values_is_accurate(rows, words, size, scale):
    """Losses are as accurate as in single precision; only exponentials and the gradients from them are rounded to float16."""
    generator = np.random.default_rng(0)
    shapes = (rows, size), (words, size), (words,)
    hidden, weight, bias = (generator.normal(size=shape).astype(np.float16).astype(np.float32) for shape in shapes)
    weight /= 4
    targets = generator.integers(0, words, rows, np.int32)
    arrays = on_gpu(hidden, weight, bias, targets)
    results = on_gpu(*(np.full(shape, np.nan, np.float32) for shape in ((rows,), *shapes)))
    MIXED.output_gradients(*arrays, 0.1, 0.2, scale, 0.0, *results)
    exact = *(each.astype(np.float64) for each in (hidden, weight, bias)), targets
    assert_close(MIXED.download(results[0]), reference.output_losses(*exact), SINGLE_SOFTMAX, unit=1.0)
    expected = reference.output_gradients(*exact, 0.1, 0.2, scale)
    for found, wanted in zip(results[1:], expected, strict=True):
        assert_close(MIXED.download(found), wanted, HALF_SLOPES, unit=scale)


def operations(backend, rows, words, size):
    """Return the results of all products with random operands of these sizes, and the units of their tolerances."""
    generator = np.random.default_rng(0)
    shapes = (rows, size), (words, size), (words,), (rows, words)
    hidden, weight, bias, d_outputs = (generator.normal(size=shape).astype(np.float32) for shape in shapes)
    targets, noise = generator.integers(0, words, rows, np.int32), generator.poisson(2, words).astype(np.float32)
    before = weight[::-1].copy(), bias[::-1].copy()
    x, w, b, t, k, d_y, d_w, d_b = map(backend.upload, (hidden, weight, bias, targets, noise, d_outputs * 1e-6, *before))
    losses, d_x = backend.upload(np.zeros(rows, np.float32)), backend.upload(np.zeros_like(hidden))
    y = backend.upload(np.zeros_like(d_outputs))
    found = []

    def note(*arrays, unit=0.0):
        found.extend((backend.download(array).copy(), unit) for array in arrays)

    backend.affine(x, w, b, "tanh", y)
    note(y)
    backend.affine_backward(x, w, y, "tanh", d_y, 1.0, d_w, d_b, d_x)
    note(d_w, d_b, d_x)
    backend.output_gradients(x, w, b, t, 0.1, 0.05, 1 / rows, 0.0, losses, d_x, d_w, d_b)
    note(losses, d_x, d_w, d_b, unit=1 / rows)  # the gradient of a single word nearly cancels
    backend.nce_gradients(x, w, b, t, k, 1 / rows, 1.0, losses, d_x, d_w, d_b)
    note(losses, d_x, d_w, d_b)
    return found


@pytest.mark.parametrize(("rows", "words", "size"), [(1, 1, 1), (3, 127, 7), (5, 129, 3), (140, 300, 130), (260, 140, 40)])
def test_mixed_operations_round_in_same_places_as_numpy(rows, words, size):
    """For any float32 values the results equal those of NumPy with rounding in the same places."""
    sizes = rows, words, size
    for (found, unit), (expected, _) in zip(operations(MIXED, *sizes), operations(RoundingBackend(), *sizes), strict=True):
        assert_close(found, expected, SAME_ROUNDING, unit=unit)


BUGS = {
    "no barrier": ("to weights", "pipeline", "            cuda.syncthreads()\n        finish", "        finish"),
    "a wait for too few copies": ("to weights", "pipeline", "make_wait(steps_ahead - 1)", "make_wait(steps_ahead)"),
    "copies to the stage that is read": ("to weights", "pipeline", "copy_step(shared, free,", "copy_step(shared, stage,"),
    "another tile's factors": (
        "slopes to inputs",
        "products",
        "factors[line, piece // uint32(COLUMNS // width)",
        "factors[line, piece // uint32(2 * COLUMNS // width)",
    ),
    "no ends of lines": ("layer", "products", " and place < uint32(matrix.shape[1])", ""),
    "a sum of too few": ("slopes to weights", "products", "for k in range(readers):", "for k in range(readers - 1):"),
}
"""For each bug the form of products that has it (only one is compiled anew), a module, a text in its source, and the
replacement."""


def module_from_source(source, path):
    """Return a module with this source; it needs a file and a name of its own, by which its kernels are cached."""
    path.write_text(source, encoding="utf-8")
    module = ModuleType(path.stem)
    exec(compile(source, path, "exec"), vars(module))
    return module


@pytest.mark.skipif(devices.device == "cuda", reason="the behavior of a real GPU with these bugs is undefined")
@pytest.mark.parametrize("bug", BUGS)
def test_bugs_in_mixed_kernels_are_detected(bug, tmp_path, monkeypatch):
    form, place, text, replacement = BUGS[bug]
    for module in (products, pipeline, fragments, cuda_mixed):  # each imports from those before
        name, source = module.__name__.rpartition(".")[2], Path(module.__file__).read_text(encoding="utf-8")
        if name == place:
            assert source.count(text) == 1
            source = source.replace(text, replacement)
        changed = module_from_source(source, tmp_path / f"{name}, {bug}.py")
        monkeypatch.setitem(sys.modules, module.__name__, changed)
    monkeypatch.setitem(cuda_backend.PRODUCTS["mixed"], form, changed.make_mixed_product(changed.MIXED, bug, form))

    def check():
        test_products_of_float16_values_are_exact(100, 40, 7)
        test_softmax_of_float16_values_is_accurate(140, 300, 9, 1.0)

    with pytest.raises((CudaAPIError, AssertionError)):
        check()


@pytest.mark.parametrize("name", ["default", "tied, direct", "nce"])
def test_ten_mixed_steps_are_close_to_single_precision(name):
    """Losses are as close as rounded operands allow, and the weights have moved in nearly the same direction."""
    losses, parameters = train_ten_steps(CpuBackend(), *RUNS[name])
    found_losses, found = train_ten_steps(MIXED, *RUNS[name])
    assert not np.array_equal(found_losses, losses)
    np.testing.assert_allclose(found_losses, losses, rtol=MIXED_STEPS)
    start = dict(Parameters.random(dataclasses.replace(NETWORK, **RUNS[name][0]), 1).items())
    for key, array in parameters.items():
        assert np.linalg.norm(found[key] - array) <= MIXED_WAY * np.linalg.norm(array - start[key]), key


def test_mixed_precision_training_session(text, monkeypatch):
    backends = {"fp32": MIXED.full_precision, "mixed": MIXED}
    monkeypatch.setattr(backend_devices, "choose_device", lambda device: device)
    monkeypatch.setattr(backend_devices, "device_backend", lambda device, precision, threads: backends[precision])
    fields = {"embedding": 6, "hidden": (8,), "batch_size": 64, "window": 3, "epochs": 1, "device": "cuda"}
    perplexities = {}
    for precision in backends:
        run = train.start_session([text], Path(f"{precision}.model"), precision=precision, **fields)
        assert {type(event).__name__ for event in run.events()} >= {"Step", "Evaluation"}
        perplexities[precision] = run.figures["valid"]["perplexity"]
        assert json.loads(Path(f"{precision}.model/config.json").read_text())["precision"] == precision
    assert 0 < abs(perplexities["mixed"] / perplexities["fp32"] - 1) < MIXED_STEPS
    assert train.TrainingSession.resume(Path("mixed.model")).trainer.network.backend is backends["mixed"]
    assert train.TrainingSession.resume(Path("mixed.model"), device="cpu").trainer.network.backend is backends["fp32"]


def test_mixed_precision_training_session_of_a_classifier(tmp_path, monkeypatch):
    backends = {"fp32": MIXED.full_precision, "mixed": MIXED}
    monkeypatch.setattr(backend_devices, "choose_device", lambda device: device)
    monkeypatch.setattr(backend_devices, "device_backend", lambda device, precision, threads: backends[precision])
    (tmp_path / "lines.tsv").write_text("".join(f"{'ab'[row % 2]}\tthe cat {row % 7}\n" for row in range(40)))
    fields = {"embedding": 6, "hidden": (8,), "input": "mean", "epochs": 1, "seed": 1, "device": "cuda"}
    losses = {}
    for precision in backends:
        path = tmp_path / precision
        run = classifier.start_session([tmp_path / "lines.tsv"], path, precision=precision, **fields)
        losses[precision] = [event.train_loss for event in run.events() if isinstance(event, Evaluation)]
        assert json.loads((path / "config.json").read_text())["precision"] == precision
    assert losses["mixed"] != losses["fp32"]
    np.testing.assert_allclose(losses["mixed"], losses["fp32"], rtol=MIXED_STEPS)
    assert classifier.ClassifierSession.resume(tmp_path / "mixed").trainer.network.backend is backends["mixed"]


def test_prediction_uses_single_precision():
    model, contexts = tiny_model(), np.random.default_rng(0).integers(0, 9, (40, 3)).astype(np.int32)
    parameters = model.parameters.mapped(MIXED.upload)
    exact, found = (
        Network(model.config, backend).log_probabilities(parameters, contexts) for backend in (MIXED.full_precision, MIXED)
    )
    assert np.array_equal(exact, found)


def test_mixed_precision_needs_a_gpu(text):
    with pytest.raises(FflmError, match="mixed precision needs the device cuda"):
        train.start_session([text], Path("other.model"), precision="mixed")
    with pytest.raises(FflmError, match="`precision` must be one of fp32, mixed, tf32, not 'half'"):
        train.start_session([text], Path("other.model"), precision="half")
    with pytest.raises(FflmError, match="TF32 needs the device cuda"):
        train.start_session([text], Path("other.model"), precision="tf32")
    assert not Path("other.model").exists()
    result = fflm("train", text, "--precision", "mixed", "-o", "other.model", folder=Path())
    assert (result.returncode, result.stderr) == (2, "error: mixed precision needs the device cuda: on the CPU, train in fp32\n")
