"""Several threads of a process get the same bits as one, with every threading layer, and so do forked processes.

Numba and BLAS, whose threads these are, are loaded in the right way.
"""

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from command import STORIES
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic
from threadpoolctl import threadpool_info
from tiny import MODES, tiny_model

import fflm
from fflm.backend.cpu import backend as cpu_backend
from fflm.backend.cpu import launching
from fflm.backend.cpu.backend import CpuBackend
from fflm.backend.cpu.blas import ONE_THREAD
from fflm.backend.cpu.kernels import FEW_ROWS
from fflm.backend.cpu.launching import kernel
from fflm.models.mixture.cache import NeuralCache, UnigramCache
from fflm.models.mixture.model import Mixture
from fflm.models.neural import fast, few
from fflm.models.neural.fast import FastScorer
from fflm.models.ngram import estimate as ngram_estimate
from fflm.models.ngram import model as ngram_model
from fflm.models.ngram.train import estimate_model
from fflm.network.feedforward import Network
from fflm.text.corpus import Corpus
from fflm.text.settings import TextSettings
from fflm.text.tokenize import TextSource, tokenize
from fflm.text.vocabulary import VocabularyRule

THREADS = 8

TEXTS = [" ".join(STORIES.split()[start : start + length]) for start, length in ((0, 3), (20, 40), (100, 9), (200, 150))]

SETTINGS = {"window": 2, "embedding": 4, "hidden": (6,), "averages": (), "epochs": 1, "batch_size": 64}


def corpus(folder: Path) -> Corpus:
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    return tokenize(TextSource([folder / "text.txt"], TextSettings(), VocabularyRule(), None), folder / "corpus")


def round_trip(model: Any) -> Any:
    """Use a model, pickle it, and return the unpickled copy."""
    if hasattr(model, "score") and not hasattr(model, "fit"):
        model.score(TEXTS[0])
    return pickle.loads(pickle.dumps(model))


def operations(folder: Path, keep: Callable[[Any], Any] = lambda model: model) -> dict[str, Callable[[str], Any]]:
    """Return what the library computes, as functions of a text whose results can be compared.

    All functions share the same models, each of which is passed through ``keep`` first.
    """
    model = tiny_model(MODES["line ends"])
    of_text = estimate_model(corpus(folder), 3)
    caches = {"cache": UnigramCache(5, model.vocabulary, model.text), "neural cache": NeuralCache(5, 3.0, model)}
    mixture = Mixture({"a": model, "b": tiny_model(MODES["line ends"], seed=2), **caches}, [0.4, 0.3, 0.2, 0.1])
    labeled = "\n".join(f"{'ab'[row % 2]}\t{line}" for row, line in enumerate(STORIES.split("\n")[:40]) if line)
    (folder / "lines.tsv").write_text(labeled, encoding="utf-8")
    classifier = fflm.train_classifier(folder / "lines.tsv", folder / "lines.classifier", epochs=1, valid=None)
    scorer = FastScorer(tiny_model(MODES["line ends"], seed=3))
    features = np.random.default_rng(1).normal(size=(200, 5))
    estimator = fflm.FeedforwardClassifier(hidden=(7,), epochs=2, random_state=1).fit(features, features[:, 0] > 0)
    model, of_text, mixture, classifier, scorer, estimator = map(keep, (model, of_text, mixture, classifier, scorer, estimator))
    models = {"network": model, "n-gram": of_text, "mixture": mixture}
    found: dict[str, Callable[[str], Any]] = {}
    for name, each in models.items():
        found |= {
            f"score by {name}": lambda text, each=each: each.score(text).loss_sum,
            f"scores of lines by {name}": lambda text, each=each: each.scores(text.splitlines()).tobytes(),
            f"next words by {name}": lambda text, each=each: fflm.models.generation.next_words(
                each, fflm.models.generation.read_prefix(each, text), 5
            ),
            f"generate by {name}": lambda text, each=each: [
                sample.ids
                for sample in fflm.models.generation.sample(
                    each, fflm.models.generation.read_prefix(each, text), samples=2, length=5, seed=len(text)
                )
            ],
        }
    return {
        **found,
        "perplexity": lambda text: model.perplexity(folder / "text.txt").loss_sum if len(text) < 50 else None,
        "classifier": lambda text: classifier.predict_proba(text.split(" ")).tobytes(),
        "fast scorer": lambda text: scorer.losses_of_text(scorer.text.encode_text(text, scorer.vocabulary)).tobytes(),
        "scores of lines by fast scorer": lambda text: scorer.scores(text.splitlines()).tobytes(),
        "estimator": lambda text: estimator.predict_proba(features[: len(text)]).tobytes(),
        "fit an estimator": lambda text: (
            estimator.__class__(hidden=3, epochs=1, random_state=len(text))
            .fit(features[:50], features[:50, 0] > 0)
            .predict_proba(features)
            .tobytes()
        ),
    }


def check_results_in_threads(folder: Path) -> None:
    """Check that results in several threads equal those in one, while another thread trains."""
    work = [(name, function, text) for name, function in operations(folder).items() for text in TEXTS]
    expected = [function(text) for _, function, text in work]
    train = lambda name: fflm.train(folder / "corpus", folder / name, **SETTINGS).parameters  # noqa: E731
    alone = train("alone.model")
    before = sys.getswitchinterval(), numba.get_num_threads(), blas_threads()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS + 1) as pool:
            training = pool.submit(train, "beside.model")
            results = [
                pool.submit(lambda order=order: {place: work[place][1](work[place][2]) for place in order})
                for order in np.random.default_rng(1).permuted(np.tile(np.arange(len(work)), (THREADS, 1)), axis=1).tolist()
            ]
            for result in results:
                for place, value in result.result().items():
                    assert value == expected[place], work[place]
            assert all(map(np.array_equal, alone, training.result()))
    finally:
        sys.setswitchinterval(before[0])
    assert (numba.get_num_threads(), blas_threads()) == before[1:]


def blas_threads() -> list[int]:
    return [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]


def set_shares(monkeypatch: pytest.MonkeyPatch, shares: int = 2) -> None:
    """Divide the work of all kernels into this number of shares."""
    for module in (cpu_backend, ngram_model, ngram_estimate, fast, few):
        monkeypatch.setattr(module, "shares_of", lambda work, threads=None: shares)


@pytest.mark.slow
@pytest.mark.parametrize("shares", [1, 2])
def test_results_in_several_threads_equal_those_in_one(tmp_path, monkeypatch, shares):
    set_shares(monkeypatch, shares)
    check_results_in_threads(tmp_path)


@pytest.mark.slow
def test_results_in_several_threads_with_workqueue_layer(tmp_path):
    program = f"""
import pathlib, pytest, numba, test_threads
with pytest.MonkeyPatch.context() as patch:
    test_threads.set_shares(patch)
    test_threads.check_results_in_threads(pathlib.Path({str(tmp_path)!r}))
print(numba.threading_layer())
"""
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "workqueue", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "workqueue\n"), result.stderr


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "passive"), ("NUMBA_OPT", "2")])
def test_environment_variables_are_set_before_numba_is_imported(name: str, value: str):
    program = f"import os, sys; import fflm.network.config; print(os.environ[{name!r}], 'numba' in sys.modules)"
    for own in ({}, {name: "1"}):  # a value that the user has set stays
        environment = {key: other for key, other in os.environ.items() if key != name} | own
        result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        assert result.stdout == f"{own.get(name, value)} False\n"


def test_scipy_linalg_works_after_blas_was_loaded_alone():
    program = """
import sys
import fflm.backend.cpu.blas
assert "scipy.linalg" not in sys.modules
import scipy.linalg
from scipy.linalg import cython_blas
assert scipy.linalg.inv([[2.0]]) == [[0.5]] and cython_blas.__pyx_capi__["sgemm"]
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_blas_threads_are_restored_when_last_thread_leaves():
    before = blas_threads()
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with ONE_THREAD:
            inside.set()
            leave.wait()

    with ONE_THREAD:
        other = threading.Thread(target=stay)
        other.start()
        inside.wait()
    during = blas_threads()
    leave.set()
    other.join()
    assert 1 in during
    assert blas_threads() == before


def test_results_do_not_depend_on_number_of_threads(monkeypatch):
    """Results depend on the number of shares, not on how many threads compute them, nor on whether it is the calling one."""
    monkeypatch.setattr(launching, "WORTH_WAKING", 0)
    model, contexts = tiny_model(), np.random.default_rng(1).integers(0, 9, (300, 3), np.int32)

    def results(threads: int) -> list[np.ndarray]:
        vars(model)["network"] = Network(model.config, CpuBackend(threads))
        return [model.log_probabilities(contexts), model.losses(contexts, contexts[:, 0] % len(model.vocabulary))]

    expected = results(5)
    with launching.limit_threads(1):
        fewer = results(5)
    monkeypatch.setattr(launching, "_threads_unusable", True)
    for left, middle, right in zip(expected, fewer, results(5), strict=True):
        assert np.array_equal(left, middle)
        assert np.array_equal(left, right)


@pytest.mark.parametrize("shares", [1, 2, 5])
def test_each_share_is_computed_once(shares):
    @launching.kernel()
    def count(counts, shares, t):
        counts[t] += 1

    counts = np.zeros(shares)
    count(counts, shares)
    assert counts.tolist() == [1] * shares


@pytest.mark.parametrize("shares", [1, 2, 5])
def test_too_little_memory_for_a_share_is_an_error(shares):
    @launching.kernel()
    def allocate(counts, shares, t):
        if t == shares - 1:
            counts[t] = len(np.empty(2**55, np.uint8))

    for _ in range(2):
        with pytest.raises(MemoryError):
            allocate(np.zeros(shares), shares)


def test_model_is_first_used_by_several_threads_at_once():
    expected = tiny_model().score(TEXTS[3]).loss_sum
    model, start = tiny_model(), threading.Barrier(THREADS)

    def score(_: int) -> float:
        start.wait()
        return model.score(TEXTS[3]).loss_sum

    with ThreadPoolExecutor(THREADS) as pool:
        assert set(pool.map(score, range(THREADS))) == {expected}


def test_used_models_can_be_pickled(tmp_path):
    """Multiprocessing pickles models to send them to spawned processes."""
    for name, function in operations(tmp_path, keep=round_trip).items():
        assert function(TEXTS[1]) is not None or name == "perplexity", name


@intrinsic
def count_of(context: Any, array: Any) -> Any:
    """Return the address of the reference count of an array, 0 if it has none."""
    del context

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        counted = context.make_array(signature.args[0])(context, builder, values[0]).meminfo
        return builder.ptrtoint(counted, context.get_value_type(types.intp))

    return types.intp(array), emit


@kernel()
def fill_counts(array, pair, counts, threads, t):
    own = np.zeros(1)
    counts[t] = count_of(array), count_of(pair[0][t:]), count_of(pair[1][1]), count_of(own)


@pytest.mark.parametrize("shares", [1, 2, 3])
def test_threads_do_not_count_references_to_arrays_that_they_share(shares: int):
    counts = np.full((shares, 4), -1)
    fill_counts(np.zeros(3), (np.zeros(5), (None, np.zeros(2))), counts, shares)
    assert not counts[:, :3].any()
    assert counts[:, 3].all()


@pytest.mark.parametrize("layer", ["tbb", "none"])
def test_unusable_threading_layer_is_named_in_error(layer):
    program = """
import numpy as np, fflm
from fflm.backend.cpu.launching import kernel
@kernel()
def fill(array, threads, t):
    array[t] = 1
try:
    fill(np.zeros(2), 2)
except fflm.FflmError as error:
    print(error)
"""
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_THREADING_LAYER_PRIORITY": "omp tbb workqueue"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "NUMBA_THREADING_LAYER" in result.stdout or layer == "tbb"  # because TBB may be installed


def in_forked_process(function: Callable[[], Any]) -> tuple[Any, list[int], int | None]:
    """Return the result of a function in a forked process, the threads of BLAS there, and the exit status."""
    assert numba.threading_layer()  # the threads were started here
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with ONE_THREAD:  # as if another thread were computing
        child = context.Process(target=lambda: sender.send((function(), blas_threads())))
        child.start()
    assert receiver.poll(60)
    found, threads = receiver.recv()
    child.join()
    return found, threads, child.exitcode


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_process_gives_same_predictions(monkeypatch):
    set_shares(monkeypatch)
    model = tiny_model()
    contexts = np.random.default_rng(1).integers(0, 9, (2 * FEW_ROWS, 3), np.int32)  # so many that threads share them

    def predict() -> bytes:
        return model.log_probabilities(contexts).tobytes()

    expected = predict()
    assert in_forked_process(predict) == (expected, blas_threads(), 0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_process_that_was_forked_before_threads_started_has_its_own():
    program = """
import os, numpy as np
from fflm.backend.cpu.launching import kernel
@kernel()
def fill(array, threads, t):
    array[t] = t
fill(np.zeros(1), 1)
child = os.fork()
array = np.full(2, -1.0)
fill(array, 2)
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
os._exit(int(array.tolist() != [0, 1]))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_process_gives_same_results(tmp_path, monkeypatch):
    set_shares(monkeypatch)
    work = [(function, text) for function in operations(tmp_path).values() for text in TEXTS]
    expected = [function(text) for function, text in work]
    assert in_forked_process(lambda: [function(text) for function, text in work]) == (expected, blas_threads(), 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_waits_until_no_thread_compiles():
    compiling, forking = threading.Event(), threading.Event()

    def compile_for_long() -> None:
        with global_compiler_lock:
            compiling.set()
            forking.wait()

    other = threading.Thread(target=compile_for_long)
    other.start()
    compiling.wait()
    threading.Timer(0.1, forking.set).start()
    child = os.fork()
    if not child:
        with global_compiler_lock:  # a child without a free lock would wait for ever
            os._exit(0)
    other.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
