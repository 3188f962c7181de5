"""The CUDA backend as a whole: it trains as the CPU does, and its kernels keep within limits of registers and memory."""

import dataclasses
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import devices
import numpy as np
import pytest
from click.testing import CliRunner
from devices import fake_driver, gpu_backend
from tiny import tiny_model

pytest.importorskip("numba_cuda", reason="pip install -e '.[dev-cuda]'")

from fflm.arrays import WEIGHTS, load_arrays
from fflm.backend import devices as backend_devices
from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.cuda import kernels as cuda_kernels
from fflm.backend.cuda import launching as cuda_launching
from fflm.backend.cuda import mixed as cuda_mixed
from fflm.backend.cuda.backend import PRODUCTS, SPAN, WAVE, CudaBackend, divide
from fflm.backend.cuda.launching import signature
from fflm.backend.cuda.memory import use_gpu
from fflm.backend.protocol import Dropout, StepNumbers
from fflm.bench import Size, measure
from fflm.cli import main
from fflm.errors import FflmError
from fflm.models.neural import train
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.text.holdout import Share
from fflm.text.windows import Windows
from fflm.training.checkpoints import Checkpoint
from fflm.training.events import Step
from fflm.training.examples import Rows
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

CAPABILITIES = (8, 0), (9, 0, "a")

REGISTERS = 65_536
"""Registers of a multiprocessor."""


ALL_PRODUCTS = {f"{precision} {form}": product for precision, own in PRODUCTS.items() for form, product in own.items()}


class Recorder(CudaBackend):
    """A backend that records launches of kernels, and computes nothing."""

    def __init__(self, name):
        self.launches = {}
        super().__init__("mixed" if name == "wgmma" else name, wgmma=name == "wgmma")

    def _run(self, kernel, blocks, arguments):
        name = next((name for name, product in ALL_PRODUCTS.items() if product is kernel), kernel.py_func.__name__)
        self.launches[name] = kernel, signature(arguments)


def recorded_launches(name):
    """Run every operation with the products of this name; return all kernels with the types of their arguments, by name."""
    gpu_backend()
    backend = Recorder(name)

    def ones(*shape, dtype=np.float32):
        return backend.upload(np.ones(shape, dtype))

    one, row, ids, two, few, factor = ones(2, 3), ones(3), ones(2, dtype=np.int32), ones(2), ones(2, 2), ones(1)
    contexts, words, sources = ones(2, 2, dtype=np.int32), ones(2, 4, dtype=np.int32), ones(2, 3, dtype=np.int32)
    backend.copy(one, one)
    backend.gather(one, contexts, (1, 1), one)
    backend.scatter_add(contexts, (1, 1), one, one)
    backend.scatter_add(contexts, (1, 1), one, one, (one, two, two))
    backend.mean_pool(one, words, one)
    backend.mean_pool_backward(words, one, one)
    backend.max_pool(one, words, one, sources)
    backend.max_pool_backward(sources, one, one)
    backend.put_rows(one, ids, one)
    placed = backend.place(StepNumbers())
    backend.dropout(one, Dropout(0.5, 1, placed, 3), 0, one)
    backend.affine(one, one, two, "tanh", few)
    backend.affine_backward(one, one, few, "tanh", few, 0.0, one, two, one)
    many, tall = ones(300, 3), ones(300, 2)
    backend.affine_backward(many, one, tall, "tanh", tall, 0.0, one, two, many)
    backend.add(one, one)
    backend.normalize(one, one)
    backend.normalize_backward(one, one, one)
    backend.output_losses(one, one, two, ids, ids, two)
    backend.output_gradients(one, one, two, ids, 0.0, 0.0, 1.0, 0.0, two, one, one, two, adversarial=0.1)
    backend.nce_gradients(one, one, two, ids, two, 1.0, 0.0, two, one, one, two)
    backend.replace_targets(few, ids, 0.5, 0.0, few)
    backend.unit_losses(one, one, "sigmoid", 1.0, two, one)
    backend.log_probabilities(one, one, two, few)
    backend.add_penalty(one, one, 0.1, 0.1)
    backend.clip_factor([one, row], 1.0, factor)
    numbers = {"scale": factor, "l2": 0.0, "numbers": placed}
    backend.momentum_step([one], [one], [one], momentum=0.9, nesterov=True, **numbers)
    backend.adagrad_step([one], [one], [one], epsilon=1e-3, **numbers)
    backend.adagrad_step_rows(one, ids, one, one, epsilon=1e-3, **numbers)
    backend.rmsprop_step([one], [one], [one], decay=0.9, epsilon=1e-3, **numbers)
    adam = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3}
    backend.adam_step([one], [one], [one], [one], **numbers, **adam, shrinks=True)
    backend.adam_catch_up(one, one, one, two, two, **adam, numbers=placed)
    backend.adam_take_rows(one, one, one, ids, two, two, one, **adam, numbers=placed)
    backend.adam_step_rows(one, one, ids, two, one, one, one, **numbers, **adam, shrinks=True)
    return backend.launches


LAUNCHES = {name: launch for precision in PRODUCTS for name, launch in recorded_launches(precision).items()}


def test_every_cuda_kernel_is_launched_by_an_operation():
    found = vars(cuda_kernels) | vars(cuda_mixed)
    kernels = {name for name, value in found.items() if hasattr(value, "py_func") and not value.targetoptions.get("device")}
    assert kernels | set(ALL_PRODUCTS) == set(LAUNCHES)


def link(codes, capability):
    """Link the code of kernels for a compute capability; return the machine code and the log of the linker."""
    from cuda.bindings import nvjitlink

    options = [f"-arch=sm_{''.join(map(str, capability))}", "-lto", "-verbose", "-Xptxas=-v"]
    handle = nvjitlink.create(len(options), options)
    try:
        for code in codes:
            nvjitlink.add_data(handle, nvjitlink.InputType.LTOIR, code, len(code), "kernel")
        nvjitlink.complete(handle)
        log, cubin = bytearray(nvjitlink.get_info_log_size(handle)), bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_info_log(handle, log)
        nvjitlink.get_linked_cubin(handle, cubin)
    finally:
        nvjitlink.destroy(handle)
    return bytes(cubin), log.decode()


def count_instructions(cubin, folder):
    """Disassemble machine code; return the counts of instructions by name, such as ``LDG.E``, of each kernel, by its name."""
    tool = next(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm"), None) or shutil.which("nvdisasm")
    if tool is None:
        pytest.skip("nvdisasm is missing; pip install -e '.[dev-cuda]'")
    path = folder / "kernels.cubin"
    path.write_bytes(cubin)
    text = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True).stdout
    _, *parts = re.split(r"^\s+\.section\s+\.text\.(\w+),", text, flags=re.MULTILINE)
    instruction = r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)"
    return {name: Counter(re.findall(instruction, body)) for name, body in zip(parts[::2], parts[1::2], strict=True)}


KERNELS = {
    **{precision: [f"{precision} {form}" for form in own] for precision, own in PRODUCTS.items()},
    "others": [name for name in LAUNCHES if name not in ALL_PRODUCTS],
}
"""The names of kernels that are linked at once, because the disassembler takes half a second to start."""


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda capability: "sm_" + "".join(map(str, capability)))
@pytest.mark.parametrize("group", KERNELS)
def test_kernels_use_no_stack_spills_or_double_precision(group, capability, tmp_path):
    """A kernel has no stack, spills, local memory or double precision, and two blocks, one with wgmma, fit into `REGISTERS`.

    The kernels come from the cache that all tests share. The part that takes long, Numba's, is the same for all capabilities.
    """
    if group == "wgmma" and capability < (9, 0):
        pytest.skip("it needs compute capability 9.0")
    kernels = [LAUNCHES[name] for name in KERNELS[group]]
    (threads,), blocks = {kernel.threads for kernel, _ in kernels}, 1 if group == "wgmma" else 2
    codes = [bytes(kernel.compile(types)._codelibrary.get_ltoir(capability)) for kernel, types in kernels]
    cubin, log = link(codes, capability)
    instructions = count_instructions(cubin, tmp_path)
    assert len(instructions) == log.count("Compiling entry function") == len(kernels)
    reports = log.split("Compiling entry function ")[1:]
    for report in reports:
        kernel = report.partition(" for ")[0]
        assert [int(number) for number in re.findall(r"(\d+) bytes stack frame", report)] == [0], kernel
        assert [int(number) for number in re.findall(r"(\d+) bytes spill", report)] == [0, 0], kernel
        registers = max(int(number) for number in re.findall(r"Used (\d+) registers", report))
        assert blocks * threads * registers <= REGISTERS, kernel
    for kernel, found in instructions.items():
        assert sum(found.values()) > 10, kernel
        assert not [each for each in found if re.match(r"LDL|STL|D(ADD|MUL|FMA|SETP|MNMX)|.*F64", each)], kernel
        if group == "fp32":  # in a step 8 lines of 8 x 8 products, and the loads of their factors
            assert found["FFMA"] >= 8 * 8 * 8, kernel
            assert found["LDS.128"] == 8 * 4, kernel
        # In a step 2 x 4 x 8 products of fragments on tensor cores, and the loads of their factors: 8 KiB for each of four warps,
        # which compute 64 x 64 x 32 products of halves or 64 x 64 x 16 of TF32. Where the lines of TF32 lie across the inner
        # dimension, the loads are of single numbers. Copies to shared memory are asynchronous.
        tensor_cores = {each: count for each, count in found.items() if each.startswith("HMMA")}
        expected = {"mixed": {"HMMA.16816.F32": 64}, "tf32": {"HMMA.1688.F32.TF32": 64}}.get(group, {})
        assert tensor_cores == expected, kernel
        loads = sum(count for each, count in found.items() if each.startswith("LDSM"))
        assert loads in {"mixed": [16], "tf32": [0, 8, 16]}.get(group, [0]), kernel
        assert group != "tf32" or found["LDS"] >= 4 * (16 - loads), kernel
        copies = sum(count for each, count in found.items() if each.startswith("LDGSTS.E.BYPASS.128"))
        expected = {"mixed": [3 * 8], "tf32": [3 * 8], "wgmma": [2 * 12, 3 * 12]}  # the first steps may be a loop
        assert copies in expected.get(group, [0]), kernel
        products = sum(count for each, count in found.items() if each.startswith("HGMMA.64x256x16.F32"))
        assert products == 4 * (group == "wgmma"), kernel
    assert "serialized" not in log, log  # the compiler would warn of products that it does one after the other


def test_compiled_kernels_are_cached_on_disk(tmp_path):
    """The kernels of products share their function's name, but the cache must keep forms and precisions apart."""
    program = """
import test_cuda
from fake_cuda import install_fake_driver

install_fake_driver()
for name in ("add", "fp32 normalizers", "fp32 logits", "tf32 logits"):
    kernel, types = test_cuda.LAUNCHES[name]
    code = kernel.compile(types)._codelibrary.get_asm_str()
    print(hash(code), len(kernel.stats.cache_hits))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    found = []
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        found.append([line.split() for line in result.stdout.splitlines()])
    assert [hits for _, hits in found[0]] == ["0"] * 4
    assert [hits for _, hits in found[1]] == ["1"] * 4
    assert [code for code, _ in found[0]] == [code for code, _ in found[1]]
    assert len({code for code, _ in found[0]}) == 4


# Training.

NETWORK = NetworkConfig(
    vocabulary=150, window=2, averages=(3,), word_weights=True, embedding=8, hidden=(12,), tied=False, dropout=0.2
)
SETTINGS = TrainingSettings(epochs=1, batch_size=24, rate=0.01)
TEXT = np.random.default_rng(0).zipf(1.3, 40 * 24).clip(1, 150).astype(np.uint16) - np.uint16(1)
RUNS = {
    "default": ({}, {}),
    "tied, direct": (
        {"tied": True, "direct": True, "averages": (), "word_weights": False},
        {"smoothing": 0.1, "self_normalise": 0.1},
    ),
    "residual": ({"residual": True, "hidden": (12, 12), "activation": "relu"}, {"optimizer": "rmsprop", "rate": 1e-3}),
    "bands": ({"bands": (20, 60)}, {"optimizer": "adagrad"}),
    "sampled": ({}, {"loss": "sampled", "samples": 30, "exact_end": 0.2, "adversarial": 0.1}),
    "affixes": ({"tied": True}, {"loss": "sampled", "samples": 30, "exact_end": 0.2, "affixes": True}),
    "nce": ({"hidden": ()}, {"loss": "nce", "samples": 30, "optimizer": "sgd", "momentum": 0.9, "rate": 0.5}),
    "mean of words": (
        {"input": "mean", "averages": (), "word_weights": False, "outputs": 4, "embedding_dropout": 0.2},
        {"optimizer": "adagrad"},
    ),
    "maximum of words": ({"input": "max", "averages": (), "word_weights": False, "outputs": 4, "hidden": ()}, {}),
    "numbers": (
        {"input": "numbers", "numbers": 5, "averages": (), "word_weights": False, "outputs": 2, "output": "sigmoid"},
        {"optimizer": "sgd", "rate": 0.5},
    ),
}


def train_ten_steps(backend, changes, settings):
    """Train for ten steps; return the losses, and the parameters by name."""
    config = dataclasses.replace(NETWORK, **changes)
    examples = Windows(TEXT, config.context, padding=config.vocabulary)
    if config.input in ("mean", "max"):
        texts = np.where(
            np.arange(4) < np.arange(len(TEXT))[:, None] % 5, np.stack([np.roll(TEXT, k).astype(int) for k in range(4)], 1), -1
        )
        examples = Rows(texts.astype(np.int32), (TEXT % 4).astype(np.int32))
    elif config.input == "numbers":
        numbers = np.random.default_rng(0).normal(size=(len(TEXT), 5)).astype(np.float32)
        examples = Rows(numbers, (numbers[:, :2] > 0).astype(np.float32))
    parameters, settings = Parameters.random(config, 1), dataclasses.replace(SETTINGS, **settings)
    words = np.arange(config.vocabulary + 1, dtype=np.int32)[:, None]
    affixes = np.where(words % 3 > np.arange(3), words * [1, 3, 5] % 9, np.int32(-1)) if settings.affixes else None
    trainer = Trainer(Network(config, backend), parameters, examples, None, settings, affixes=affixes)
    losses = [event.loss for event, _ in zip(trainer.run(), range(10), strict=False) if isinstance(event, Step)]
    return losses, {name: backend.download(array) for name, array in trainer.parameters.items()}


@pytest.mark.parametrize("name", RUNS)
def test_ten_training_steps_equal_those_on_cpu(name):
    losses, parameters = train_ten_steps(CpuBackend(), *RUNS[name])
    found_losses, found = train_ten_steps(gpu_backend(), *RUNS[name])
    assert len(losses) == 10
    np.testing.assert_allclose(found_losses, losses, rtol=2e-5)
    for key, array in parameters.items():
        np.testing.assert_allclose(found[key], array, rtol=0, atol=2e-4 * np.abs(array).max())


def test_training_resumes_from_checkpoint_on_either_device(tmp_path):
    config = dataclasses.replace(NETWORK, vocabulary=150, hidden=(6,))
    settings = dataclasses.replace(SETTINGS, epochs=2, loss="sampled", samples=30)
    windows = Windows(TEXT[:120], config.context, padding=config.vocabulary)

    def trainer(backend):
        return Trainer(Network(config, backend), Parameters.random(config, 1), windows, None, settings)

    def weights(run):
        return {name: run.network.backend.download(array) for name, array in run.parameters.items()}

    first = trainer(gpu_backend())
    for _ in zip(range(3), first.run(), strict=False):
        pass
    Checkpoint(first.state_dict(), "text").save(tmp_path / "checkpoint")
    for backend in (gpu_backend(), CpuBackend()):
        again = trainer(backend)
        again.load_state_dict(Checkpoint.load(tmp_path / "checkpoint").state_dict)
        for name, array in weights(again).items():
            assert np.array_equal(array, weights(first)[name])
        for _ in again.run():
            pass
        if backend.name == "cuda":
            expected = weights(again)
    for name, array in weights(again).items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=2e-4 * np.abs(array).max())


def test_training_session_on_gpu_gives_same_perplexity_as_on_cpu(text, monkeypatch):
    backends = {"cuda": gpu_backend(), "cpu": CpuBackend()}
    monkeypatch.setattr(backend_devices, "choose_device", lambda device: device)
    monkeypatch.setattr(backend_devices, "device_backend", lambda device, precision, threads: backends[device])
    fields = {"embedding": 6, "hidden": (8,), "batch_size": 64, "window": 3, "test": Share(0.1)}
    figures = {}
    for device in backends:
        run = train.start_session([text], Path(f"{device}.model"), device=device, epochs=2, **fields)
        assert {type(event).__name__ for event in run.events()} >= {"Step", "Evaluation", "Tested"}
        figures[device] = run.figures
        assert json.loads(Path(f"{device}.model/config.json").read_text())["device"] == device
    for part in ("valid", "test"):
        assert abs(figures["cuda"][part]["perplexity"] / figures["cpu"][part]["perplexity"] - 1) < 1e-4
    run = train.TrainingSession.resume(Path("cuda.model"), epochs=3, device="cpu")
    assert run.trainer.network.backend is backends["cpu"]
    assert any(isinstance(event, Step) for event in run.events())
    assert train.TrainingSession.resume(Path("cuda.model")).compute.device == "cpu"


@pytest.fixture
def gpu_found(monkeypatch):
    """Let the choice of a device find a GPU, even if it is the fake one."""
    gpu_backend()
    if devices.device != "cuda":
        monkeypatch.setattr("fflm.backend.devices.why_no_gpu", lambda: "")


SMALL_RUN = {"epochs": 2, "batch_size": 512, "embedding": 6, "hidden": (8,), "window": 3}


@pytest.mark.skipif(devices.device == "cuda", reason="a real GPU does not record launches")
def test_model_predicts_same_on_gpu_and_cpu():
    model, contexts = tiny_model(), np.random.default_rng(0).integers(0, 9, (40, 3)).astype(np.int32)
    other = dataclasses.replace(model)
    vars(other)["network"] = Network(model.config, gpu_backend())
    targets = np.random.default_rng(1).integers(0, len(model.vocabulary), 40).astype(np.int32)
    np.testing.assert_allclose(other.losses(contexts, targets), model.losses(contexts, targets), rtol=1e-5)
    np.testing.assert_allclose(other.log_probabilities(contexts), model.log_probabilities(contexts), rtol=1e-5)


def test_threads_sharing_a_gpu_give_same_results():
    """Each thread has scratch memory of its own, so that threads do not disturb each other."""
    model, generator = tiny_model(), np.random.default_rng(0)
    network = Network(model.config, gpu_backend())
    weights = model.parameters.mapped(network.backend.upload)
    batches = [generator.integers(0, 9, (rows, 3)).astype(np.int32) for rows in (1, 3, 40)]

    def results(contexts):
        losses = network.backend.empty((len(contexts),), np.float32)
        network.losses(weights, contexts, contexts[:, 0] % 8, losses)
        return network.log_probabilities(weights, contexts).tobytes(), network.backend.download(losses).tobytes()

    expected = [results(batch) for batch in batches]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(results, batches * 8))
    finally:
        sys.setswitchinterval(interval)
    assert found == expected * 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_gpu_in_forked_process_is_refused():
    gpu_backend()
    use_gpu()
    child = os.fork()
    if not child:
        try:
            use_gpu()
        except FflmError as error:
            os._exit(7 if "spawn" in str(error) else 1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    use_gpu()


@pytest.mark.skipif(devices.device == "cuda", reason="a real GPU does not record what waits")
@pytest.mark.usefixtures("new_pool")
@pytest.mark.parametrize("precision", ["fp32", "mixed"])
def test_training_step_synchronizes_only_for_its_results(monkeypatch, precision):
    from numba.cuda.cudadrv.driver import driver

    calls = []

    def noted(name, function):
        return lambda *arguments: (calls.append(name), function(*arguments))[1]

    backend = gpu_backend(precision)
    waiting = ("cuCtxSynchronize", "cuStreamSynchronize", "cuMemcpyHtoD", "cuMemcpyDtoH")
    for name in (*waiting, "cuMemAlloc", "cuMemFree", "cuMemHostAlloc", "cuGraphLaunch"):
        monkeypatch.setitem(vars(driver), name, noted(name, getattr(driver, name)))
    monkeypatch.setattr(cuda_launching, "launch", noted("launch", cuda_launching.launch))
    windows = Windows(TEXT, NETWORK.context, padding=NETWORK.vocabulary)
    training = Trainer(Network(NETWORK, backend), Parameters.random(NETWORK, 1), windows, None, SETTINGS).run()
    next(training)
    assert calls.count("launch") <= 40
    for _ in range(4):  # the step is recorded
        next(training)
    gpu, streams = fake_driver(), set()
    enqueue = gpu.enqueue
    monkeypatch.setattr(gpu, "enqueue", lambda action, stream=0: (streams.add(stream), enqueue(action, stream)))
    calls.clear()
    next(training)
    assert streams == {use_gpu()}
    assert calls == ["cuGraphLaunch", *["cuStreamSynchronize"] * 2]  # the losses, and the factor that clips the gradient


@pytest.mark.skipif(devices.device == "cuda", reason="the memory of a real GPU cannot be limited")
@pytest.mark.usefixtures("new_pool")
@pytest.mark.parametrize("share", [0.7, 1.25])
def test_batch_larger_than_gpu_memory_is_split(monkeypatch, share):
    """The result is the same whether memory runs out in the softmax or after it."""
    from fflm.backend.cuda import memory as cuda_memory

    config, rows = dataclasses.replace(NETWORK, vocabulary=1000), 100
    generator = np.random.default_rng(0)
    contexts = generator.integers(0, 1000, (rows, config.context), np.int32)
    targets = generator.integers(0, 1000, rows, np.int32)
    gpu = fake_driver()

    def gradients(backend, capacity):
        arrays = [Parameters.random(config, 1).mapped(backend.upload) for _ in range(2)]
        losses, network = backend.empty((rows,), np.float32), Network(config, backend)
        cuda_memory.POOL.give_back()
        gpu.capacity = sum(gpu.held.values()) + capacity
        network.gradients(arrays[0], contexts, targets, arrays[1], losses)
        return network.rows_at_once(arrays[0], rows), [backend.download(array) for array in (*arrays[1], losses)]

    monkeypatch.setattr(gpu, "capacity", gpu.capacity)
    _, expected = gradients(CpuBackend(), 0)
    gpu.capacity = 2**30
    backend = gpu_backend()
    at_once, found = gradients(backend, int(share * 4 * 1000 * rows))
    assert at_once < rows
    for array, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, right, rtol=0, atol=1e-5 * np.abs(right).max())
    gpu.capacity = 2**30
    backend.release()
    with pytest.raises(MemoryError, match=r"of the GPU's .* use a smaller network or vocabulary \(batches go in parts"):
        gradients(backend, 5000)


def test_interrupted_scatter_add_leaves_no_partial_sums(monkeypatch):
    backend, contexts = gpu_backend(), np.zeros((2, 1), np.int32)

    def summed():
        contexts_there, values, total = map(backend.upload, (contexts, np.ones((2, 3), np.float32), np.zeros((4, 3), np.float32)))
        backend.scatter_add(contexts_there, (1,), values, total)
        return backend.download(total)

    def interrupted(*_):
        raise KeyboardInterrupt

    expected = summed()
    with monkeypatch.context() as patch:
        patch.setattr(backend, "_each", interrupted)  # this step adds the partial sums to the total
        with pytest.raises(KeyboardInterrupt):
            summed()
    assert np.array_equal(summed(), expected)


@pytest.mark.parametrize("magnitude", [1e-33, 1e-28, 1.0])
def test_gradients_of_any_magnitude_are_added(magnitude):
    backend, contexts = gpu_backend(), np.array([[1], [2], [1]], np.int32)
    values = (magnitude * np.array([[1, 2], [3, 4], [5, 6]])).astype(np.float32)
    arrays = list(map(backend.upload, (contexts, values, np.zeros((4, 2), np.float32))))
    backend.scatter_add(arrays[0], (1,), *arrays[1:])
    expected = magnitude * np.array([[0, 0], [6, 8], [3, 4], [0, 0]])
    np.testing.assert_allclose(backend.download(arrays[2]), expected, rtol=1e-4)


def test_gpu_benchmark_compares_operations_with_float64():
    """Correct operations pass the comparison, and a wrong one is named."""
    import gpu

    backend = gpu_backend()
    sizes = {"rows": 9, "words": 70, "size": 5, "width": 7}
    assert gpu.operations(backend, **sizes)["wrong"] == []
    for precision in ("mixed", "tf32"):
        assert gpu.operations(gpu_backend(precision), precision, **sizes)["wrong"] == []
    backend.log_probabilities = lambda hidden, weight, bias, logs: backend.clear(logs)
    assert gpu.operations(backend, **sizes)["wrong"] == ["log-probabilities"]


def test_gpu_benchmark_times_operations_and_steps(monkeypatch):
    """The parts of the benchmark that need no PyTorch run once, with small sizes."""
    import gpu

    monkeypatch.setattr(gpu, "torch", None)
    monkeypatch.setattr("bengio.EMBEDDING", 8)
    monkeypatch.setattr(gpu, "Size", lambda *_: Size(60, 4, 2, 5, 8))
    monkeypatch.setattr(gpu, "measure", functools.partial(measure, seconds=0.0))
    monkeypatch.setattr(gpu, "seconds", lambda run: (run(), 1.0)[1])
    assert all(each["floor"] is None or each["floor"] >= 0 for each in gpu.kernels(gpu_backend(), ceiling=1e12))
    for contender in ("fflm-fp32", "fflm-mixed-launches"):
        row = gpu.whole_step(contender, 50, 16, 32)
        assert (row["contender"], row["seconds"]) == (contender, 1.0)
        # Small arrays may fit into memory that a real driver has already taken from the GPU.
        assert row["bytes"] > 0 or devices.device == "cuda"


@pytest.mark.skipif(devices.device == "cuda", reason="it uses the fake driver")
def test_trainer_of_launching_benchmark_ignores_results():
    """Losses that are zero do not stop it, and epochs end without an evaluation."""
    import launching

    class Idle(CpuBackend):
        def download(self, array):
            return np.zeros_like(array)

    windows = Windows(TEXT[:60], NETWORK.context, padding=NETWORK.vocabulary)
    trainer = launching.IdleTrainer(Network(NETWORK, Idle()), Parameters.random(NETWORK, 1), windows, windows, SETTINGS)
    assert [event is None for event, _ in zip(trainer.run(), range(6), strict=False)] == [False, False, True] * 2


@pytest.mark.skipif(devices.device == "cuda", reason="it runs on the fake driver")
def test_first_hour_runs_parts_and_keeps_their_results(tmp_path, monkeypatch, capsys):
    """A profiler that only runs the program stands for ncu; there is no compute-sanitizer."""
    import first_hour

    profiler = tmp_path / "ncu"
    profiler.write_text(f'#!/bin/sh\nuntil [ "$1" = "{sys.executable}" ]; do shift; done\nexec "$@"\n')
    profiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def printed(*arguments):
        monkeypatch.setattr(sys, "argv", ["first_hour.py", "--fake", "--results", str(tmp_path), *arguments])
        first_hour.main()
        return capsys.readouterr().out

    result = printed("--parts", "ncu-mixed", "memcheck")
    assert re.fullmatch(r"ncu-mixed: 0, \d+ s; Step\(.*loss=4\.0.*\nmemcheck: missing, 0 s; .*\n", result), result
    assert json.loads((tmp_path / "ncu-mixed.json").read_text())["status"] == 0
    assert printed("--parts", "ncu-mixed", "memcheck") == ""  # all is done
    result = printed("--parts", "versions", "steps", "--minutes", "0.0005")
    assert result.startswith("versions: out of time, 0 s; ")
    assert "\nsteps: may take 300 s, which are not left" in result
    with pytest.raises(SystemExit):
        printed("--parts", "rest")


# Commands.


@pytest.fixture
def commands(text, gpu_found):
    """Return a function that runs a command line with a GPU, and returns the result."""

    def command(line):
        result = CliRunner().invoke(main, shlex.split(line), prog_name="fflm")
        assert result.exit_code == 0, result.output
        return result

    return command


def test_commands_give_same_results_on_gpu_and_cpu(commands):
    small = "--embedding 6 --hidden 8 --batch-size 64 --window 3 --epochs 1"
    trained = commands(f"train text.txt -o a.model --device auto {small}")
    assert re.match(r"device: cuda \(.+, compute capability \d+\.\d\)\n", trained.stderr)
    commands(f"train text.txt -o b.model --device cpu {small}")
    perplexities = [load_arrays(Path(f"{name}.model") / WEIGHTS)[1]["valid"]["perplexity"] for name in "ab"]
    assert abs(perplexities[0] / perplexities[1] - 1) < 1e-4
    found = {}
    for device in ("cpu", "cuda"):
        options = f"-m a.model --device {device}"
        words = json.loads(commands(f"next {options} --prefix 'the cat' --json").stdout)["words"]
        text = commands(f"generate {options} --prefix 'the cat' --length 9 --seed 1").stdout
        score = json.loads(commands(f"score {options} text.txt --json").stdout)["perplexity"]
        found[device] = [word["probability"] for word in words], text, score
    np.testing.assert_allclose(found["cuda"][0], found["cpu"][0], rtol=1e-5)
    assert found["cuda"][1] == found["cpu"][1]
    assert abs(found["cuda"][2] / found["cpu"][2] - 1) < 1e-5


def test_bench_command_compares_both_devices(commands):
    result = commands("bench --vocabulary 60 --hidden 5 --batch-size 8 --embedding 4 --window 2 --seconds 0 -o bench.svg")
    assert re.match(r"devices: cpu \(\d+ threads?\), cuda \(.+\)\n", result.stderr)
    head, *rows = (line.split() for line in result.stdout.splitlines()[1:])
    assert head == ["cpu", "ms", "tokens/s", "GFLOP/s", "cuda", "ms", "tokens/s", "GFLOP/s", "times"]
    assert len(rows) == 11
    assert Path("bench.svg").stat().st_size > 1000


# The choice of a device.


def test_why_no_gpu_names_the_reason():
    program = """
import sys
from fflm.backend import devices
print(devices.why_no_gpu())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "\n" or result.stdout.startswith("no driver of an NVIDIA GPU works (")


def test_kernels_compile_with_numpy_without_row_stack():
    """NumPy 2.5 has removed a function that numba-cuda uses, and warns while numba-cuda is imported."""
    program = """
import numpy as np
vars(np).pop("row_stack", None)
from fflm.backend.cuda import kernels
import devices
from numba import float32
devices.compiled(kernels.add, (float32[::1], float32[::1]))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@pytest.mark.parametrize("inner", [0, 1, 127, 128, 300, 1000, 8192, 50_000])
@pytest.mark.parametrize("blocks", [0, 1, 2, 16, 100, 128, 264, 5000])
def test_divide_makes_no_empty_parts(blocks, inner):
    parts, span = divide(blocks, inner)
    assert (parts - 1) * span < max(1, inner) <= max(1, parts * span)
    assert span % SPAN == 0
    assert parts == 1 or blocks * parts <= WAVE
