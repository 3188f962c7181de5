"""Claim: on a GPU, a training step in float32 is no slower than PyTorch's eager step and needs a fraction of its memory.

A step in mixed precision is at least twice as fast as PyTorch's compiled step in bfloat16 (50,000 words, 256 hidden units,
batches of 8,192).

The parts, in the order in which they are run:

- ``operations``: every operation, compared with float64 on fresh random numbers;
- ``steps``: whole steps of Bengio's network (dropout, AdamW, clipping) in float32 and in mixed precision, beside PyTorch's steps
  of the same network on the same batches, in float32, TF32 and bfloat16: eager, compiled, and compiled into CUDA graphs;
- ``large``: the softmax at large sizes, compared with float64, and whether its bits repeat;
- ``limits``: the limits of the machine: a copy on the device and a large matrix product;
- ``kernels``: the time of each operation, beside the time that its matrix products take at the limit;
- ``launches``: the host's time per launch;
- ``training``: if texts are given, training to the same perplexity;
- ``tests``: the numerical tests on the device.

Each result is written to a file of its own in the folder of results as soon as there is one. If a part fails, its error is
recorded and the others continue. A run that was interrupted, or that reached its limit of ``--minutes``, continues when the same
command is run again; results of other source code are not used.

The script needs a GPU and numba-cuda. The comparison needs PyTorch, and the tests need pytest and hypothesis.
"""

import argparse
import hashlib
import json
import math
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from bengio import EMBEDDING, WINDOW, bengio_network, launch_directly, random_text
from common import ROOT, brown, check_sizes, in_turns, machine, parse, record, wikitext

from fflm.backend.devices import describe_device, why_no_gpu
from fflm.backend.protocol import Backend
from fflm.bench import Size, measure
from fflm.errors import FflmError
from fflm.files import write_json
from fflm.models.neural.train import network_settings, resolve_settings
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.shuffling import shuffled
from fflm.text.corpus import Corpus
from fflm.text.windows import Windows
from fflm.training.events import Evaluation
from fflm.training.optimizers import ADAM_BETA1, ADAM_BETA2
from fflm.training.schedules import rate_at
from fflm.training.settings import TrainingSettings
from fflm.training.trainer import Trainer

sys.path.insert(0, str(ROOT / "tests" / "support"))

import reference

try:
    import torch
    from torch_network import TorchNetwork
except ImportError:
    torch = None

TESTS = {
    "fp32": (
        "tests/backend/test_backend.py",
        "tests/network/test_feedforward.py",
        "tests/backend/cuda/test_cuda.py",
        "tests/backend/cuda/test_cuda_sizes.py",
        "tests/backend/cuda/test_mixed.py",
        "tests/backend/cuda/test_tf32.py",
        "tests/backend/cuda/test_wgmma.py",
    ),
    "mixed": ("tests/backend/test_backend.py", "tests/network/test_feedforward.py"),
}
STEPS = [(words, hidden, batch) for words in (50_000, 10_000, 250_000) for hidden in (256, 512, 1024) for batch in (8192, 1024)]
"""Vocabulary, hidden units and batch of the steps; the claim is about the first."""

MODES = ("fp32", "tf32", "bf16")
CONTENDERS = (
    *("fflm-mixed", "fflm-fp32", "torch-fp32", "torch-bf16-compiled", "torch-tf32-compiled", "torch-bf16-graphs"),
    *("fflm-wgmma", "fflm-tf32", "fflm-mixed-launches", "fflm-fp32-launches"),
    *("torch-tf32", "torch-bf16", "torch-fp32-compiled", "torch-tf32-graphs", "torch-fp32-graphs"),
)
"""The programs and precisions of steps, the most important ones first. Graphs are those of ``mode="reduce-overhead"``.

fflm launches its steps as graphs, except with ``launches``, where it launches each kernel. ``wgmma`` is mixed precision with this
instruction, which is left out on GPUs that do not have it.
"""

LARGE = [(50_000, 256, 4096), (33_279, 100, 1000), (131_075, 256, 2048), (1_000_000, 64, 256)]
"""Vocabulary, features and rows of the large softmaxes: more than 256 tiles, and more than 2^28 numbers."""

CHUNK = 256
"""Number of rows of a softmax that are computed in float64 at a time."""

PARTS = ("operations", "steps", "large", "limits", "kernels", "launches", "training", "tests")
TOLERANCES = {"fp32": 2e-5, "mixed": 1e-2, "wgmma": 1e-2, "tf32": 1e-2}
"""Largest errors of results, relative to the largest result: sums of up to 5,000 products in float32, or of rounded operands."""


def open_backend(name: str) -> Backend:
    """Return a new backend, without scratch memory, of a precision, or with ``wgmma`` of mixed precision with this instruction.

    Raises
    ------
    FflmError
        If the GPU has no wgmma.
    """
    from fflm.backend.cuda.backend import CudaBackend

    return CudaBackend("mixed", wgmma=True) if name == "wgmma" else CudaBackend(name)


def open_backends() -> dict[str, Backend]:
    """Return the backends that the GPU has, by their names in `TOLERANCES`."""
    found = {}
    for name in TOLERANCES:
        try:
            found[name] = open_backend(name)
        except FflmError as error:
            print(f"{name} is left out: {error}")
    return found


def tests(precision: str) -> dict[str, Any]:
    """Run the numerical tests on the device."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "--device", "cuda", "--precision", precision, *TESTS[precision]]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    print("\n".join(lines[-15:]))
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"passed": result.returncode == 0, "summary": lines[-1:], "failed": failed, "seconds": time.perf_counter() - started}


class Comparison:
    """Compares the operations of a backend with float64, on random numbers that no earlier run has used.

    ``off`` has the largest error of each result, relative to the largest expected number.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.seed = time.time_ns() % 2**32
        self.generator = np.random.default_rng(self.seed)
        self.off: dict[str, float] = {}

    def numbers(self, *shape: int, scale: float = 1.0) -> tuple[Any, np.ndarray]:
        """Return random numbers as an array of the device and in float64."""
        array = (scale * self.generator.standard_normal(shape)).astype(np.float32)
        return self.backend.upload(array), array.astype(np.float64)

    def compare(self, name: str, found: Any, expected: np.ndarray) -> None:
        """Note how far a result, an array of the device or of NumPy, is from the expected one."""
        found = found if isinstance(found, np.ndarray) else self.backend.download(found)
        self.off[name] = float(np.abs(found - expected).max() / np.abs(expected).max())

    def layer(self, rows: int, size: int, width: int) -> None:
        """Compare a layer of ``size`` units with ``width`` inputs, forward and backward."""
        (x, x64), (w, w64), (b, b64) = self.numbers(rows, width), self.numbers(size, width, scale=width**-0.5), self.numbers(size)
        y = self.backend.empty((rows, size), np.float32)
        self.backend.affine(x, w, b, "tanh", y)
        self.compare("affine", y, reference.affine(x64, w64, b64, "tanh"))
        d_y, d_y64 = self.numbers(rows, size)
        (d_w, _), (d_b, _), (d_x, _) = self.numbers(size, width), self.numbers(size), self.numbers(rows, width)
        self.backend.affine_backward(x, w, y, "tanh", d_y, 0.0, d_w, d_b, d_x)
        expected = reference.affine_backward(x64, w64, b64, "tanh", d_y64)
        for name, found, right in zip(("weight", "bias", "inputs"), (d_w, d_b, d_x), expected, strict=True):
            self.compare(f"affine backward, {name}", found, right)

    def softmax(self, rows: int, words: int, size: int) -> None:
        """Compare losses and gradients of the softmax, and note whether they have the same bits when they are computed again."""
        backend = self.backend
        (u, u64), (c, c64), (f, f64) = self.numbers(words, size, scale=0.3), self.numbers(words), self.numbers(rows, size)
        targets = self.generator.integers(0, words, rows, np.int32)
        shapes = {"losses": (rows,), "features": f.shape, "weight": u.shape, "bias": c.shape}
        found: list[dict[str, Any]] = []
        for _ in range(2):
            results = {name: backend.empty(shape, np.float32) for name, shape in shapes.items()}
            backend.output_gradients(f, u, c, backend.upload(targets), 0.1, 0.05, 1 / rows, 0.0, *results.values())
            found.append({name: backend.download(result) for name, result in results.items()})
        expected = softmax_in_chunks(f64, u64, c64, targets, 1 / rows)
        for (name, result), right in zip(found[0].items(), expected, strict=True):
            self.compare(f"softmax {name if name == 'losses' else f'gradients, {name}'}", result, right)
        self.off["softmax, bits that differ"] = float(sum((found[0][name] != found[1][name]).sum() for name in shapes))

    def log_probabilities(self, rows: int, words: int, size: int) -> None:
        """Compare the log-probabilities of all words."""
        (u, u64), (c, c64), (f, f64) = self.numbers(words, size, scale=0.3), self.numbers(words), self.numbers(rows, size)
        logs = self.backend.empty((rows, words), np.float32)
        self.backend.log_probabilities(f, u, c, logs)
        self.compare("log-probabilities", self.backend.download(logs), reference.log_probabilities(f64, u64, c64))

    def embeddings(self, rows: int, words: int, size: int) -> None:
        """Compare gathering and scattering embeddings, with a block of several words and blocks of one."""
        contexts, blocks = self.generator.integers(0, words, (rows, 9), np.int32), (5, 1, 1, 1, 1)
        (e, e64), (d_i, d_i64), (d_e, d_e64) = self.numbers(words, size), self.numbers(rows, 5 * size), self.numbers(words, size)
        gathered = self.backend.empty((rows, 5 * size), np.float32)
        self.backend.gather(e, self.backend.upload(contexts), blocks, gathered)
        self.compare("gather", gathered, reference.gather(e64, contexts, blocks))
        self.backend.scatter_add(self.backend.upload(contexts), blocks, d_i, d_e)
        self.compare("scatter-add", d_e, reference.scatter_add(contexts, blocks, d_i64, d_e64))


def operations(
    backend: Backend, precision: str = "fp32", rows: int = 700, words: int = 5003, size: int = 190, width: int = 330
) -> dict[str, Any]:
    """Compare the operations of a step with float64: B rows, V words, vectors of a size, and layers of a width."""
    comparison = Comparison(backend)
    comparison.layer(rows=rows, size=size, width=width)
    comparison.softmax(rows=rows, words=words, size=size)
    comparison.log_probabilities(rows=rows, words=words, size=size)
    comparison.embeddings(rows=rows, words=words, size=size)
    return verdict(comparison, precision)


def large(backend: Backend, precision: str, words: int, size: int, rows: int) -> dict[str, Any]:
    """Compare the softmax of V words after vectors of a size and B rows with float64."""
    comparison = Comparison(backend)
    comparison.softmax(rows=rows, words=words, size=size)
    backend.release()
    return verdict(comparison, precision)


def softmax_in_chunks(f: np.ndarray, u: np.ndarray, c: np.ndarray, targets: np.ndarray, scale: float) -> list[np.ndarray]:
    """Return losses, and gradients of features, weight and bias in float64, computed for `CHUNK` rows at a time."""
    losses, d_f, d_u, d_c = [], [], np.zeros_like(u), np.zeros_like(c)
    for low in range(0, len(f), CHUNK):
        rows = slice(low, low + CHUNK)
        losses.append(reference.output_losses(f[rows], u, c, targets[rows]))
        gradients = reference.output_gradients(f[rows], u, c, targets[rows], 0.1, 0.05, scale)
        d_f.append(gradients[0])
        d_u += gradients[1]
        d_c += gradients[2]
    return [np.concatenate(losses), np.concatenate(d_f), d_u, d_c]


def verdict(comparison: Comparison, precision: str) -> dict[str, Any]:
    """Print and return the errors of a comparison, and which of them are too large."""
    wrong = [name for name, each in comparison.off.items() if not each < TOLERANCES[precision]]
    for name, each in comparison.off.items():
        print(f"  {name:28} off by {each:.1e}{'  WRONG' if name in wrong else ''}")
    return {"seed": comparison.seed, "off": comparison.off, "wrong": wrong}


def seconds(run: Callable[[], Any]) -> float:
    """Return the median time in seconds of a function that waits for its results."""
    return statistics.median(in_turns({"run": run}, rounds=5, turn_seconds=0.1)["run"])


def limits() -> dict[str, float]:
    """Measure PyTorch's copies on the device (bytes read and written per second) and matrix products (operations per second)."""
    source = torch.ones(2**28, device="cuda")
    target = torch.empty_like(source)
    found = {"copy": 2 * source.nbytes / seconds(lambda: (target.copy_(source), torch.cuda.synchronize()))}
    for mode in MODES:
        torch.set_float32_matmul_precision("high" if mode == "tf32" else "highest")
        dtype = torch.bfloat16 if mode == "bf16" else torch.float32
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        found[mode] = 2 * 8192**3 / seconds(lambda a=a, b=b: (a @ b, torch.cuda.synchronize()))
    torch.set_float32_matmul_precision("highest")
    print("  " + ", ".join(f"{name} {value / 1e12:.1f} T/s" for name, value in found.items()))
    return found


def launches() -> dict[str, dict[str, float]]:
    """Time launches of fflm and of numba.cuda."""
    from launching import time_launches

    return time_launches(rounds=9)


def kernels(backend: Backend, ceiling: float | None) -> list[dict[str, Any]]:
    """Time each operation, and compute the time that its matrix products would take at the limit for their precision."""
    rows = []
    for timing in measure(
        [Size(50_000, EMBEDDING, WINDOW, 256, 8192), Size(10_000, EMBEDDING, WINDOW, 256, 1024)], {"cuda": backend}
    ):
        floor = timing.products / ceiling if ceiling else None
        rows.append({**vars(timing.size), "operation": timing.operation, "seconds": timing.seconds, "floor": floor})
        beside = f", floor {1000 * floor:8.3f}" if floor else ""
        print(f"  V={timing.size.vocabulary:6} {timing.operation:18} {1000 * timing.seconds:8.3f} ms{beside}")
    return rows


def torch_step(
    config: NetworkConfig,
    parameters: Parameters,
    settings: TrainingSettings,
    mode: str,
    variant: str = "",
    device: str = "cuda",
) -> Callable[[np.ndarray, np.ndarray], Any]:
    """Return the training step of PyTorch, for contexts and targets on the host.

    ``mode`` is one of `MODES`, and ``variant`` is ``compiled``, ``graphs`` (compiled into CUDA graphs), or an empty string.
    """
    torch.set_float32_matmul_precision("high" if mode == "tf32" else "highest")
    torch.compiler.reset()  # Dynamo compiles a function only for a few networks, and then runs it without compiling
    network = TorchNetwork(config, parameters).to(device)
    weights = list(network.weights.values())
    matrices, biases = ([weight for weight in weights if (weight.ndim > 1) is wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": biases, "weight_decay": 0}],
        lr=settings.rate,
        betas=(ADAM_BETA1, ADAM_BETA2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )

    def loss(contexts: Any, targets: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=mode == "bf16"):
            return torch.nn.functional.cross_entropy(network.logits(contexts, training=True), targets)

    if variant:
        loss = torch.compile(loss, mode="reduce-overhead" if variant == "graphs" else None)

    def step(contexts: np.ndarray, targets: np.ndarray, rate: float | None = None) -> Any:
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate
        arrays = torch.from_numpy(contexts), torch.from_numpy(targets).long()
        if device == "cuda":
            arrays = tuple(array.pin_memory() for array in arrays)
        torch.compiler.cudagraph_mark_step_begin()
        value = loss(*(array.to(device, non_blocking=True) for array in arrays))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.clip)
        optimizer.step()
        return value

    step.network = network  # type: ignore[attr-defined]
    return step


def whole_step(contender: str, words: int, hidden: int, batch: int) -> dict[str, Any]:
    """Time whole steps of one of the `CONTENDERS`, and measure their memory; fflm's includes scratch memory and the pool."""
    from fflm.backend.cuda.memory import POOL, use_gpu

    use_gpu()
    POOL.give_back()  # what earlier steps took
    if torch:
        torch.cuda.empty_cache()
    config = bengio_network(words, hidden)
    settings = TrainingSettings(epochs=10**6, batch_size=batch)
    windows = random_text(words, 4 * batch + WINDOW, seed=1)
    program, mode, *variant = contender.split("-")
    timed = fflm_steps if program == "fflm" else torch_steps
    time_of_step, size = timed(config, settings, windows, mode, *variant)
    print(f"  {contender}: {1000 * time_of_step:.2f} ms, {size / 1e9:.2f} GB")
    return {
        "vocabulary": words,
        "hidden": hidden,
        "batch": batch,
        "contender": contender,
        "seconds": time_of_step,
        "bytes": size,
    }


def fflm_steps(
    config: NetworkConfig, settings: TrainingSettings, windows: Windows, precision: str, variant: str = ""
) -> tuple[float, int]:
    """Return the seconds of a step of fflm, and the bytes that training takes."""
    from numba.cuda.cudadrv.driver import driver

    free, _ = driver.cuMemGetInfo()
    backend = open_backend(precision)
    network = Network(config, launch_directly(backend) if variant == "launches" else backend)
    events = Trainer(network, Parameters.random(config, 1), windows, None, settings).run()
    found = seconds(lambda: next(events))
    return found, free - driver.cuMemGetInfo()[0]


def torch_steps(
    config: NetworkConfig, settings: TrainingSettings, windows: Windows, mode: str, variant: str = ""
) -> tuple[float, int]:
    """Return the seconds of a step of PyTorch, and the bytes that training takes."""
    batch = settings.batch_size
    examples = [windows.batch(positions) for positions in shuffled(len(windows), batch, 1, 0) if len(positions) == batch]
    torch.cuda.reset_peak_memory_stats()
    step, turn = torch_step(config, Parameters.random(config, 1), settings, mode, variant), count()
    found = seconds(lambda: step(*examples[next(turn) % len(examples)]).item())
    return found, torch.cuda.max_memory_allocated()


def training(backends: dict[str, Backend], corpus: Corpus) -> dict[str, Any]:
    """Train the default network on a text with fflm, and with PyTorch and the same settings; record times and perplexities."""
    shape, chosen, automatic = network_settings({"batch_size": 1024, "epochs": 3, "loss": "exact"})
    config, settings = resolve_settings(shape, chosen, automatic, corpus)
    windows = {
        name: Windows.of(part.ids, corpus.vocabulary, corpus.settings, config.context) for name, part in corpus.parts.items()
    }
    result: dict[str, Any] = {"network": config.to_dict(), "training": settings.to_dict()}

    def start() -> Parameters:
        parameters = Parameters.random(config, settings.seed)
        parameters.start_from(windows["train"].counts(config.vocabulary))
        return parameters

    for precision, backend in backends.items():  # both are evaluated in float32
        trainer = Trainer(Network(config, backend), start(), windows["train"], windows["valid"], settings)
        started = time.perf_counter()
        perplexities = [math.exp(event.valid.mean) for event in trainer.run() if isinstance(event, Evaluation) and event.valid]
        result[f"fflm {precision}"] = {"seconds": time.perf_counter() - started, "perplexities": perplexities}
    for mode in ("fp32", "bf16") if torch else ():
        step, number, perplexities = torch_step(config, start(), settings, mode), 0, []
        started = time.perf_counter()
        for epoch in range(settings.epochs):
            for positions in shuffled(len(windows["train"]), settings.batch_size, settings.seed, epoch):
                step(*windows["train"].batch(positions), rate=rate_at(settings, number, trainer.steps))
                number += 1
            total = 0.0
            for low in range(0, len(windows["valid"]), 1024):
                contexts, targets = windows["valid"].batch(np.arange(low, min(low + 1024, len(windows["valid"]))))
                with torch.no_grad():
                    logits = step.network.logits(torch.from_numpy(contexts).cuda())  # type: ignore[attr-defined]
                    target = torch.from_numpy(targets).long().cuda()
                    total += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
            perplexities.append(math.exp(total / len(windows["valid"])))
        result[f"PyTorch {mode}"] = {"seconds": time.perf_counter() - started, "perplexities": perplexities}
    for name, each in result.items():
        if "seconds" in each:
            print(f"  {name}: {each['seconds']:.1f} s, {', '.join(f'{p:.1f}' for p in each['perplexities'])}")
    return result


def sources() -> str:
    """Return a hash of the code that is measured. It is part of the name of the folder of results."""
    files = sorted([Path(__file__), *(ROOT / "fflm").rglob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


Task = tuple[str, Callable[[], Any]]
"""A name, which becomes that of a file, and a function that returns a result."""


def run_tasks(tasks: Iterator[Task], folder: Path, minutes: float) -> dict[str, Any]:
    """Run tasks, except those whose results are in the folder, until the time is over; return all results in the folder."""
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    for name, run in tasks:
        path = folder / f"{name}.json"
        if path.exists() and "error" not in json.loads(path.read_text()):
            continue
        if time.monotonic() - started > 60 * minutes:
            print(f"stopped after {minutes:g} minutes, before {name}; run the same command again to continue")
            break
        print(name, flush=True)
        try:
            result = run()
        except Exception as error:  # for example, out of memory
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        write_json(path, result)
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def is_failed(result: Any) -> bool:
    """Return whether a task had an error, found errors that are too large, or ran tests that failed."""
    return isinstance(result, dict) and ("error" in result or bool(result.get("wrong")) or not result.get("passed", True))


def size_of(text: str) -> tuple[int, int, int]:
    """Parse the size of a step, such as 50000x256x8192."""
    words, hidden, batch = map(int, text.split("x"))
    return words, hidden, batch


def steps(options: argparse.Namespace, backends: dict[str, Backend]) -> Iterator[Task]:
    """Yield the steps of all sizes and contenders, except those for which PyTorch or a backend is missing."""
    for size in options.sizes:
        for contender in options.contenders:
            program, mode, *_ = contender.split("-")
            if torch if program == "torch" else mode in backends:
                yield f"step-{'x'.join(map(str, size))}-{contender}", partial(whole_step, contender, *size)


def tasks_of(options: argparse.Namespace, folder: Path, backends: dict[str, Backend]) -> Iterator[Task]:
    """Yield the tasks of all parts that are to be run; the results are in a folder."""
    if "operations" in options.parts:
        for precision, backend in backends.items():
            yield f"operations-{precision}", partial(operations, backend, precision)
    if "steps" in options.parts:
        yield from steps(options, backends)
    if "large" in options.parts:
        for size in options.large:
            for precision, backend in backends.items():
                yield f"large-{'x'.join(map(str, size))}-{precision}", partial(large, backend, precision, *size)
    if "limits" in options.parts and torch:
        yield "limits", limits
    if "kernels" in options.parts:
        path = folder / "limits.json"
        ceilings = json.loads(path.read_text()) if path.exists() else {}
        for precision, mode in (("fp32", "fp32"), ("mixed", "bf16"), ("wgmma", "bf16"), ("tf32", "tf32")):
            if precision not in backends:
                continue
            yield f"kernels-{precision}", partial(kernels, backends[precision], ceilings.get(mode))
    if "launches" in options.parts:
        yield "launches", launches
    if "training" in options.parts:
        for name, source, read in (("Brown", options.brown, brown), ("WikiText-2", options.wikitext, wikitext)):
            if source:
                corpus = read(source, options.results / name)
                check_sizes(name, corpus)
                trained = {precision: backends[precision] for precision in ("fp32", "mixed")}
                yield f"training-{name}", partial(training, trained, corpus)
    if "tests" in options.parts:
        for precision in TESTS:
            yield f"tests-{precision}", partial(tests, precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="parts to run [default: all]")
    parser.add_argument("--sizes", nargs="+", type=size_of, default=STEPS, help="sizes of steps, such as 50000x256x8192")
    parser.add_argument("--large", nargs="+", type=size_of, default=LARGE, help="sizes of the large softmaxes")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS, metavar="NAME", help="[default: all]")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing after this time")
    parser.add_argument("--brown", type=Path, help="brown.txt, for training")
    parser.add_argument("--wikitext", type=Path, help="the folder of WikiText-2, for training")
    parser.add_argument(
        "--results", type=Path, default=Path("gpu.work"), help="folder for texts and results [default: %(default)s]"
    )
    options = parse(parser)
    if reason := why_no_gpu():
        sys.exit(f"no GPU can be used: {reason}")
    about = {**machine(), "gpu": describe_device("cuda")}
    backends = open_backends()
    if options.quick:
        options.sizes = options.sizes[:1]
    options.results.mkdir(parents=True, exist_ok=True)
    folder = options.results / f"{'quick' if options.quick else 'full'}-{sources()}"
    write_json(options.results / "machine.json", about)
    results = run_tasks(tasks_of(options, folder, backends), folder, options.minutes)
    record("gpu", options.quick, about, **results)
    if failed := [name for name, each in results.items() if is_failed(each)]:
        sys.exit(f"failed or wrong: {', '.join(failed)}")


if __name__ == "__main__":
    main()
