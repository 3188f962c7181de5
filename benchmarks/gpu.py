"""Claim: on a GPU, a training step in float32 is no slower than PyTorch's eager step and needs a fraction of its memory.

A step in mixed precision is at least twice as fast as PyTorch's compiled step in bfloat16 (50,000 words, 256 hidden units,
batches of 8,192).

One run measures everything and writes one file:

- every operation, compared with float64 on fresh random numbers;
- the limits of the machine: a copy on the device and a large matrix product;
- the host's time per launch;
- the time of each operation, beside the time that its matrix products take at the limit;
- whole steps of Bengio's network (dropout, AdamW, clipping) in float32 and in mixed precision, beside PyTorch's steps of the
  same network on the same batches, in float32, TF32 and bfloat16, eager and compiled;
- if texts are given, training to the same perplexity;
- the numerical tests on the device.

If a part fails, its error is recorded and the other parts continue. An interrupted run continues when the same command is
run again.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bengio import EMBEDDING, WINDOW, bengio_network, random_text
from common import ROOT, brown, check_sizes, in_turns, machine, parse, record, wikitext

from fflm.backend.devices import describe_device, device_backend, why_no_gpu
from fflm.backend.protocol import Backend
from fflm.bench import Size, measure
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
        "tests/backend/cuda/test_mixed.py",
    ),
    "mixed": ("tests/backend/test_backend.py", "tests/network/test_feedforward.py"),
}
STEPS = [(words, hidden, batch) for words in (50_000, 10_000, 250_000) for hidden in (256, 512, 1024) for batch in (8192, 1024)]
"""Vocabulary, hidden units and batch of the steps; the claim is about the first."""

MODES = ("fp32", "tf32", "bf16")
TOLERANCES = {"fp32": 2e-5, "mixed": 1e-2}
"""Largest errors of results, relative to the largest result: sums of up to 5,000 products in float32, or of rounded operands."""


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
        """Note how far a result is from the expected one."""
        self.off[name] = float(np.abs(self.backend.download(found) - expected).max() / np.abs(expected).max())

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
        """Compare losses, gradients and log-probabilities of the softmax."""
        backend = self.backend
        (u, u64), (c, c64), (f, f64) = self.numbers(words, size, scale=0.3), self.numbers(words), self.numbers(rows, size)
        targets = self.generator.integers(0, words, rows, np.int32)
        losses, d_f = backend.empty((rows,), np.float32), backend.empty((rows, size), np.float32)
        d_u, d_c = backend.empty((words, size), np.float32), backend.empty((words,), np.float32)
        backend.output_gradients(f, u, c, backend.upload(targets), 0.1, 0.05, 1 / rows, 0.0, losses, d_f, d_u, d_c)
        self.compare("softmax losses", losses, reference.output_losses(f64, u64, c64, targets))
        expected = reference.output_gradients(f64, u64, c64, targets, 0.1, 0.05, 1 / rows)
        for name, found, right in zip(("features", "weight", "bias"), (d_f, d_u, d_c), expected, strict=True):
            self.compare(f"softmax gradients, {name}", found, right)
        logs = backend.empty((rows, words), np.float32)
        backend.log_probabilities(f, u, c, logs)
        self.compare("log-probabilities", logs, reference.log_probabilities(f64, u64, c64))

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
    comparison.embeddings(rows=rows, words=words, size=size)
    wrong = [name for name, each in comparison.off.items() if not each < TOLERANCES[precision]]
    for name, each in comparison.off.items():
        print(f"  {name:28} off by {each:.1e}{'  WRONG' if name in wrong else ''}")
    return {"seed": comparison.seed, "off": comparison.off, "wrong": wrong}


def seconds(run: Callable[[], Any]) -> float:
    """Return the median time in seconds of a function that waits for its results."""
    return statistics.median(in_turns({"run": run}, rounds=5, turn_seconds=0.1)["run"])


def ceilings() -> dict[str, float]:
    """Measure PyTorch's copies on the device (bytes read and written per second) and matrix products (operations per second)."""
    source = torch.ones(2**28, device="cuda")
    target = torch.empty_like(source)
    found = {"copy": 2 * source.nbytes / seconds(lambda: (target.copy_(source), torch.cuda.synchronize()))}
    for mode in MODES:
        torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"
        dtype = torch.bfloat16 if mode == "bf16" else torch.float32
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        found[mode] = 2 * 8192**3 / seconds(lambda a=a, b=b: (a @ b, torch.cuda.synchronize()))
    torch.backends.cuda.matmul.allow_tf32 = False
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
    config: NetworkConfig, parameters: Parameters, settings: TrainingSettings, mode: str, compiled: bool
) -> Callable[[np.ndarray, np.ndarray], Any]:
    """Return the training step of PyTorch, for contexts and targets on the host."""
    torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"
    network = TorchNetwork(config, parameters).to("cuda")
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
        with torch.autocast("cuda", torch.bfloat16, enabled=mode == "bf16"):
            return torch.nn.functional.cross_entropy(network.logits(contexts, training=True), targets)

    loss = torch.compile(loss) if compiled else loss

    def step(contexts: np.ndarray, targets: np.ndarray, rate: float | None = None) -> Any:
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate
        arrays = torch.from_numpy(contexts).pin_memory(), torch.from_numpy(targets).long().pin_memory()
        value = loss(*(array.to("cuda", non_blocking=True) for array in arrays))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.clip)
        optimizer.step()
        return value

    step.network = network  # type: ignore[attr-defined]
    return step


def whole_step(words: int, hidden: int, batch: int) -> dict[str, Any]:
    """Time whole steps of fflm and PyTorch, and measure their memory; fflm's includes scratch memory and the pool."""
    from numba.cuda.cudadrv.driver import driver

    from fflm.backend.cuda.backend import CudaBackend
    from fflm.backend.cuda.memory import POOL, use_gpu

    use_gpu()
    config = bengio_network(words, hidden)
    settings = TrainingSettings(epochs=10**6, batch_size=batch)
    windows = random_text(words, 4 * batch + WINDOW, seed=1)
    row: dict[str, Any] = {"vocabulary": words, "hidden": hidden, "batch": batch, "seconds": {}, "bytes": {}}
    for precision in TOLERANCES:
        POOL.give_back()
        free, _ = driver.cuMemGetInfo()
        network = Network(config, CudaBackend(precision == "mixed"))  # a new backend, which has no scratch memory yet
        events = Trainer(network, Parameters.random(config, 1), windows, None, settings).run()
        row["seconds"][f"fflm {precision}"] = seconds(lambda events=events: next(events))
        row["bytes"][f"fflm {precision}"] = free - driver.cuMemGetInfo()[0]
        del network, events
    examples = [windows.batch(positions) for positions in shuffled(len(windows), batch, 1, 0) if len(positions) == batch]
    for mode in MODES if torch else ():
        for compiled in (False, True):
            name = f"PyTorch {mode}{' compiled' if compiled else ''}"
            try:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                theirs = torch_step(config, Parameters.random(config, 1), settings, mode, compiled)
                turn = iter(range(10**9))
                row["seconds"][name] = seconds(lambda s=theirs, t=turn: s(*examples[next(t) % len(examples)]).item())
                row["bytes"][name] = torch.cuda.max_memory_allocated()
            except Exception as error:  # out of memory, or the compiler has failed
                row["seconds"][name] = f"{type(error).__name__}: {str(error)[:200]}"
    print("  ms: " + ", ".join(f"{name} {1000 * t:.2f}" for name, t in row["seconds"].items() if isinstance(t, float)))
    return row


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
        step, number, perplexities = torch_step(config, start(), settings, mode, compiled=False), 0, []
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
    """Return a hash of the code that is measured. It is part of the name of the file of results."""
    files = sorted([Path(__file__), *(ROOT / "fflm").rglob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brown", type=Path, help="brown.txt, for training")
    parser.add_argument("--wikitext", type=Path, help="the folder of WikiText-2, for training")
    parser.add_argument("--work", type=Path, default=Path("gpu.work"), help="folder for texts and results [default: %(default)s]")
    parser.add_argument("--skip", nargs="*", default=[], help="parts to leave out: tests, kernels, step, training, ...")
    options = parse(parser)
    if reason := why_no_gpu():
        sys.exit(f"no GPU can be used: {reason}")
    about = {**machine(), "gpu": describe_device("cuda")}
    backends = {precision: device_backend("cuda", precision) for precision in TOLERANCES}
    few = STEPS[:1] if options.quick else STEPS
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / f"{'quick' if options.quick else 'full'} {sources()}.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}

    def part(name: str, run: Callable[[], Any]) -> None:
        if name.split()[0] in options.skip or (name in results and "error" not in results[name]):
            return
        print(name, flush=True)
        try:
            results[name] = run()
        except Exception as error:
            traceback.print_exc()
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        write_json(kept, results)  # after each part, so that an interruption loses no results
        record("gpu", options.quick, about, **results)

    part("operations", lambda: {precision: operations(backend, precision) for precision, backend in backends.items()})
    if torch:
        part("ceilings", ceilings)
    part("launches", launches)
    limits = results.get("ceilings", {})
    modes = {"fp32": "fp32", "mixed": "bf16"}
    part("kernels", lambda: {name: kernels(backends[name], limits.get(mode)) for name, mode in modes.items()})
    for size in few:
        words, hidden, batch = size
        part(f"step of {words:,} words, {hidden:,} hidden, {batch:,} rows", lambda size=size: whole_step(*size))
    for name, source, read in (("Brown", options.brown, brown), ("WikiText-2", options.wikitext, wikitext)):
        if source:
            corpus = read(source, options.work / name)
            check_sizes(name, corpus)
            part(f"training on {name}", lambda corpus=corpus: training(backends, corpus))
    part("tests", lambda: {precision: tests(precision) for precision in TESTS})


if __name__ == "__main__":
    main()
