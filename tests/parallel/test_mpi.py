"""Several processes over MPI, started by `mpiexec`."""

import json
import re
from pathlib import Path

import mpi_checks
import numpy as np
import pytest
from command import SMALL
from command import fflm as command
from processes import MPIEXEC, mpiexec, needs_mpi
from two_hosts import two_hosts, why_no_hosts

import fflm
from fflm.arrays import load_arrays

pytestmark = needs_mpi

PROGRAM = Path(mpi_checks.__file__)


def log(model, event="evaluation"):
    lines = map(json.loads, (Path(model) / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def test_operations_of_communicator(tmp_path):
    result = mpiexec(3, PROGRAM, "operations", folder=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "size", "settings"), [("training", 2, mpi_checks.TRAINING), ("vocabulary", 3, mpi_checks.VOCABULARY)]
)
def test_interrupted_training_in_several_processes_equals_uninterrupted(text, name, size, settings):
    """Ctrl-C in one process stops all after the same step; the losses are those of one process, which can also continue."""
    result = mpiexec(size, PROGRAM, name, folder=Path())
    if name == "vocabulary":
        check_diverging(result)
    else:
        assert result.returncode == 0, result.stderr
    # The signal comes after step 5. Losses take one message, and each sum of arrays two; the divided vocabulary has two more, for
    # the normalizers and for the norm of the gradients.
    assert json.loads(result.stdout) == {"step": 6, "messages": 3 if name == "training" else 5}
    (whole, figures), (resumed, again) = (
        load_arrays(Path(model, "model.safetensors"), of=dict) for model in ("whole.model", "resumed.model")
    )
    assert figures == again
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    about = json.loads(Path("whole.model/config.json").read_text())
    assert (about["processes"], about["parallel"]) == (size, settings.get("parallel", "data"))
    fflm.train("text.txt", "single.model", **settings)
    for one, two in zip(log("single.model"), log("whole.model"), strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
        assert two["valid"]["perplexity"] == pytest.approx(one["valid"]["perplexity"], rel=1e-4)
    assert log("whole.model", "test") == log("resumed.model", "test")
    (stopped,) = log("stopped.model")
    assert stopped["step"] == 4
    fflm.resume("whole.model", epochs=3)
    assert log("whole.model", "resumed")[0]["processes"] == 1
    assert len(log("whole.model")) == 3


@pytest.mark.slow
@pytest.mark.skipif(bool(why_no_hosts()), reason=why_no_hosts())
def test_two_hosts_with_slow_link_give_the_bits_of_one(text):
    """The hosts are network namespaces, between which all messages pass a link of 10 Mbit/s."""
    received = {}
    with two_hosts(10e6, MPIEXEC) as launcher:
        for name, command in {"one": [MPIEXEC], "two": launcher}.items():
            Path(name).mkdir()
            Path(name, "text.txt").write_bytes(text.read_bytes())
            result = mpiexec(2, PROGRAM, "hosts", folder=Path(name), launcher=command)
            assert result.returncode == 0, result.stderr
            received[name] = json.loads(result.stdout)
    one, two = (load_arrays(Path(name, "text.model/model.safetensors"))[0] for name in received)
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    parameters = sum(array.nbytes for array in one.values())
    assert received["one"] == [0, 0]
    assert min(received["two"]) > 10 * parameters  # there are more steps than ten


def test_divergence_is_rolled_back_and_fault_of_one_process_ends_all(text):
    check_diverging(mpiexec(2, PROGRAM, "diverging", folder=Path()))


def check_diverging(result):
    """Check what `mpi_checks.diverging` leaves."""
    # The launcher reports the status of any process: 1 of the process that ended all, or 9 of one that it killed.
    assert result.returncode in (1, 9)
    assert "RuntimeError: a fault in the last process" in result.stderr
    assert re.search(r"MPI_Abort\(comm=\w+, 1\)", result.stderr)
    (event,) = log("diverging.model", "rolled back")
    assert (event["step"], event["cause"]) == (4, "the loss is nan nats per word at step 5")
    _, about = load_arrays(Path("diverging.model/checkpoint.safetensors"), of=dict)
    assert about["state"]["step"] in (5, 6)
    fflm.resume("diverging.model", epochs=1)


def test_tokenizing_counting_and_scoring_in_several_processes_equal_one(text):
    """A corpus has the same ids and words, an n-gram model and a score the same bits; characters of cut parts may differ."""
    tokenize = "tokenize", text, text, "--test", "10%", "-o"
    one = command(*tokenize, "one.ids", folder=Path())
    three = mpiexec(3, "-m", "fflm", *tokenize, "three.ids", folder=Path())
    for result, folder in ((one, "one.ids"), (three, "three.ids")):
        assert result.returncode == 0, result.stderr
        assert result.stdout.count(f"{folder}: vocabulary") == 1
    for name in ("train.npy", "valid.npy", "test.npy", "vocabulary.tsv"):
        assert Path("one.ids", name).read_bytes() == Path("three.ids", name).read_bytes()
    model = fflm.train_ngram("one.ids", "text.ngram", order=3)
    result = mpiexec(
        2, "-m", "fflm", "ngram", "train", "one.ids", "-o", "two.ngram", "--order", 3, "--arpa", "two.arpa", folder=Path()
    )
    assert (result.returncode, result.stdout.count("model two.ngram")) == (0, 1), result.stderr
    for name in ("model.safetensors", "index.safetensors"):
        assert Path("text.ngram", name).read_bytes() == Path("two.ngram", name).read_bytes()
    for given, expected in (([text], model.perplexity(text)), (["--part", "train"], None)):
        result = mpiexec(2, "-m", "fflm", "score", "-m", "text.ngram", *given, "--json", folder=Path())
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
        assert found["tokens"] == (expected.tokens if expected else model.about["corpus"]["parts"]["train"]["tokens"])
        assert expected is None or found["log_probability"] == expected.log_probability


@pytest.mark.slow
def test_command_prints_once(text):
    result = mpiexec(2, "-m", "fflm", "train", text, *SMALL, "--epochs", 1, "--threads", 1, folder=Path())
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "model text.model, from epoch 1"
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr.count("done: the only epoch done") == 1
    Path("reviews.tsv").write_text("".join(f"{word}\tsome {word} text {number}\n" for number in range(40) for word in ("a", "b")))
    result = mpiexec(2, "-m", "fflm", "classify", "train", "reviews.tsv", "--epochs", 1, "--threads", 1, folder=Path())
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("reviews.classifier") == 1
    result = mpiexec(2, "-m", "fflm", "train", text, "-o", "text.model", folder=Path())
    assert (result.returncode, result.stderr.count("error: text.model exists")) == (1, 1)
