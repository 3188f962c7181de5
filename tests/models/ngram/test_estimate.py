"""Estimation in little memory, and in several processes: the same model, bit for bit, as in one block of one process."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import in_processes
from test_ngram import model_of, random_texts, vocabulary_of
from tiny import MODES

from fflm.errors import FflmError
from fflm.models.ngram import counting
from fflm.models.ngram.counting import Work
from fflm.models.ngram.estimate import estimate_on_disk, in_memory
from fflm.models.ngram.index import make_index
from fflm.models.ngram.indexing import build_index
from fflm.models.ngram.indexing_kernels import REGION
from fflm.models.ngram.model import NgramModel
from fflm.models.ngram.settings import memory_bytes
from fflm.models.ngram.train import train
from fflm.parallel.communicator import SINGLE_PROCESS
from fflm.processors import available_memory


def bits(arrays):
    return {name: array.tobytes() for name, array in in_memory(arrays)._asdict().items()}


@given(
    random_texts(), st.sampled_from([(), (0, 1), (0, 0, 2)]), st.sampled_from([0.0, 0.1]), st.integers(1, 3), st.integers(2, 9)
)
@settings(max_examples=40)
def test_model_depends_neither_on_memory_nor_on_processes(drawn, prune, prune_entropy, size, block):
    """Blocks, chunks and buffers are a few rows long, so that they end at any place."""
    text, order, ids, words = drawn
    given_ = np.array(ids, np.uint16), vocabulary_of(words, text.ends), text, order, prune[:order], prune_entropy

    def run(folder, communicator=SINGLE_PROCESS):
        estimated = estimate_on_disk(Work(Path(folder), 0, communicator), *given_)
        result = bits(estimated.arrays), estimated.details, [path.name for path in Path(folder).glob("run-*")]
        communicator.barrier()  # others read the same files
        index = None
        if communicator.first and estimated.levels:
            index = build_index(Work(Path(folder), 0), estimated.levels, len(given_[1]) + 1)[1].read().tobytes()
        return result, index

    with pytest.MonkeyPatch.context() as patched, TemporaryDirectory() as one, TemporaryDirectory() as other:
        expected, index = run(one)
        patched.setattr(counting, "SMALLEST_BLOCK", block)
        patched.setattr(counting, "_ROWS", 3)
        patched.setattr(counting, "_GRAMS", 4)
        found = in_processes(size, lambda communicator: run(other, communicator))
        assert [result for result, _ in found] == [expected] * size
        assert found[0][1] == index


def test_index_that_is_made_part_by_part_finds_all_ngrams(tmp_path):
    """The table has several regions, and does not depend on how many of them are in memory."""
    ids = np.minimum(np.random.default_rng(1).zipf(1.3, 100_000), 300).astype(np.uint16)
    vocabulary, text = vocabulary_of([f"w{i}" for i in range(300)], ends=True), MODES["line ends"]
    found = []
    for memory in (2**30, 0):
        work = Work(tmp_path / str(memory), memory)
        work.folder.mkdir()
        estimated = estimate_on_disk(work, ids, vocabulary, text, 5)
        index, rows = build_index(work, estimated.levels, len(vocabulary) + 1)
        assert index.slots > REGION
        assert rows.read().tobytes() == np.asarray(index.entries).tobytes()
        found.append(np.array(index.entries))
    assert found[0].tobytes() == found[1].tobytes()
    other = make_index(in_memory(estimated.arrays), len(vocabulary) + 1)
    for name in ("log_p", "back_off"):
        both = [np.sort(entries[name][entries["key"] != 0]) for entries in (found[0], other.entries)]
        assert np.array_equal(*both, equal_nan=True)
    about = {"ngram": {"order": 5, **estimated.details}}
    models = [NgramModel(each, vocabulary, text, about) for each in (index, in_memory(estimated.arrays))]
    assert np.array_equal(*(model.losses_of_text(ids[:2000].astype(np.int32)) for model in models))


def test_order_one_has_no_contexts():
    assert model_of([1, 2, 3, 1], MODES["line ends"], 1).tables.words.tolist() == [0]


def test_memory_is_a_size_or_a_share_for_all_processes(tmp_path, text):
    assert memory_bytes("1.5K") == memory_bytes("1.5K", 4) == 1536
    assert memory_bytes("2G") == 2**31
    assert memory_bytes("50%", 4) == pytest.approx(available_memory() / 8, rel=0.2)
    for wrong in ("2", "G", "-1G", "2 G", "150", f"{10**400}G"):
        with pytest.raises(FflmError, match="memory"):
            train("text.txt", tmp_path / "x.ngram", memory=wrong)


def test_failed_estimation_leaves_nothing(text, monkeypatch):
    """What is in the temporary folder is removed, and an existing model stays."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(counting.Column, "append", fail)
    before = sorted(Path().iterdir())
    with pytest.raises(FflmError, match=r"cannot write new.ngram: No space left on device"):
        train("text.txt", "new.ngram")
    assert sorted(Path().iterdir()) == before
