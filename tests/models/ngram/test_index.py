"""The index of n-grams finds what a search in a dictionary finds, whatever collides, and does not crash on damaged entries."""

import math
import mmap
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from ngrams import make_ngrams, ngram_case, write_ngrams

import fflm
from fflm.arrays import INDEX, WEIGHTS
from fflm.errors import FflmError
from fflm.models.base import Predictor
from fflm.models.ngram import kernels
from fflm.models.ngram import model as models
from fflm.models.ngram.arpa import import_arpa, read_arpa
from fflm.models.ngram.index import make_index
from fflm.packing import Packed
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=[1, 2, 4])
def case(request, tmp_path_factory):
    """Return what `ngram_case` returns."""
    return ngram_case(request.param, tmp_path_factory.mktemp("index") / "model.arpa")


def test_scores_equal_reference(case):
    model, lines, expected = case
    np.testing.assert_allclose(model.scores(lines) / math.log(10), expected, rtol=1e-6)
    np.testing.assert_array_equal([float(model.scores([line])[0]) for line in lines], model.scores(lines))


def test_words_of_index_equal_scores_of_lines(case):
    model, lines, _ = case
    for line, score in zip(lines[-60:], model.scores(lines[-60:]), strict=True):
        ids = np.append(model.vocabulary.encode(line.split()), np.int32(1))
        assert -model.losses_of_text(ids).sum() == pytest.approx(score, rel=1e-6)


@pytest.mark.parametrize("mode", ["sentence", "stream"])
def test_scores_of_a_text_equal_those_of_single_contexts(case, mode):
    """Contexts cross the pieces of a text that are looked up together, and the shares of threads."""
    model, lines, _ = case
    model = models.NgramModel(model.tables, model.vocabulary, TextSettings(Tokenizer("space"), mode), model.about)
    ids, _ = model._encoder.encode_chunk("\n".join(lines).encode())
    expected = Predictor.losses_of_text(model, ids)
    for start in (0, 1, 3, len(ids) - 5, len(ids)):
        np.testing.assert_array_equal(model.losses_of_text(ids, start), expected[start:])
        shared = np.empty(len(ids) - start, np.float32)
        kernels.ngram_losses_of_text(ids, start, model.packed, shared, 3)
        np.testing.assert_array_equal(shared, expected[start:])


@pytest.mark.parametrize("room", [0.001, 0.3, 1.0])
def test_index_grows_and_survives_collisions(case, room):
    model, lines, _ = case
    expected = model.scores(lines)
    index = make_index(model.tables, len(model.vocabulary) + 1, room)
    packed = Packed(kernels.LineTables(index, index.words, *model.context_limits, model.order, 0.0))
    np.testing.assert_array_equal(model._encoder.apply(kernels.ngram_score_lines, lines, packed)[0], expected)


def test_damaged_entries_end_searches_and_are_never_indices(case):
    model, lines, _ = case
    index = make_index(model.tables, len(model.vocabulary) + 1)
    noise = np.random.default_rng(3).integers(1, 256, index.entries[:-1].nbytes, np.uint8)
    index.entries[:-1] = noise.view(kernels.ENTRY)  # no other entry than the last is free
    packed = Packed(kernels.LineTables(index, index.words, *model.context_limits, model.order, 0.0))
    assert len(model._encoder.apply(kernels.ngram_score_lines, lines, packed)[0]) == len(lines)


def test_threads_share_index(case):
    model, lines, _ = case
    expected, results = model.scores(lines), [None] * 4

    def score(thread):
        results[thread] = model.scores(lines)

    threads = [threading.Thread(target=score, args=(thread,)) for thread in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_index_refuses_more_entries_than_have_numbers(case):
    model, *_ = case
    with pytest.raises(FflmError, match="too many to be scored"):
        make_index(model.tables, len(model.vocabulary) + 1, 2**32)


# The stored index.


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a model of order 3 with its index."""
    write_ngrams(tmp_path / "model.arpa", make_ngrams(3), 3)
    import_arpa(tmp_path / "model.arpa", tmp_path / "model.ngram")
    return tmp_path / "model.ngram"


LINES = ["w1 w2 w3", "", "w29 unseen w7"]


def flip(path, place):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_stored_index_is_mapped_and_gives_same_scores(folder, monkeypatch):
    expected = fflm.load(folder).scores(LINES)
    (folder / INDEX).rename(folder / "aside")
    np.testing.assert_array_equal(fflm.load(folder).scores(LINES), expected)
    (folder / "aside").rename(folder / INDEX)
    monkeypatch.setattr(models, "make_index", None)
    monkeypatch.setattr(models, "is_consistent", None)
    model = fflm.load(folder)
    np.testing.assert_array_equal(model.scores(LINES), expected)
    assert "n-grams" in repr(model)
    entries = model._index.entries
    assert entries.ctypes.data % 64 == 0
    while not isinstance(entries, mmap.mmap):
        entries = entries.base


def test_index_of_other_tables_is_ignored(folder, tmp_path):
    other = read_arpa(tmp_path / "model.arpa")
    other.tables.log_probabilities[:] -= np.float32(1)
    other.save(folder)
    np.testing.assert_array_equal(fflm.load(folder).scores(LINES), other.scores(LINES))


def test_damaged_header_of_index_is_refused(folder):
    content = (folder / INDEX).read_bytes()
    for old, new in (
        (b'\\"words\\": 33', b'\\"words\\": 34'),
        (b'\\"slots\\": 7', b'\\"slots\\": 9'),
        (b'\\"slots\\": ', b'\\"slots\\":-'),
        (b'"entries"', b'"entrees"'),
    ):
        assert content.count(old) == 1, (old, content[:400])
        (folder / INDEX).write_bytes(content.replace(old, new))
        with pytest.raises(FflmError, match=r"index\.safetensors is damaged"):
            fflm.load(folder)
    (folder / INDEX).write_bytes(content[:-1])
    with pytest.raises(FflmError, match=r"index\.safetensors is damaged"):
        fflm.load(folder)


def test_verify_finds_changed_bits_that_loading_does_not_read(folder):
    fflm.load(folder, verify=True)
    for name in (INDEX, WEIGHTS):
        flip(folder / name, -100)
        model = fflm.load(folder)
        assert len(model.scores(LINES)) == len(LINES)
        with pytest.raises(FflmError, match=rf"{name} is damaged"):
            fflm.load(folder, verify=True)
        if name == WEIGHTS:
            with pytest.raises(FflmError, match=rf"{name} is damaged"):
                model.next_words("w1", 1)
        flip(folder / name, -100)


def test_model_with_index_is_pickled_by_its_path(folder, tmp_path):
    model = fflm.load(folder)
    content = pickle.dumps(model)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content).scores(LINES), model.scores(LINES))
    other = read_arpa(tmp_path / "model.arpa")
    other.tables.log_probabilities[:] -= np.float32(1)
    other.save(folder)
    with pytest.raises(FflmError, match="has changed since the model was loaded: load it again"):
        pickle.loads(content)


SHARED = """
import sys
from pathlib import Path
from fflm.arrays import map_arrays
import numpy as np
mapped, _ = map_arrays(Path(sys.argv[1]), (np.uint8,))
lines = iter(Path("/proc/self/smaps").read_text().splitlines())
next(line for line in lines if line.endswith(sys.argv[1]))
sizes = {}
for line in lines:
    name, _, size = line.partition(":")
    if not size.endswith("kB"):
        break
    sizes[name] = int(size.split()[0])
print(sizes["Shared_Clean"] + sizes["Shared_Dirty"], sizes["Private_Clean"] + sizes["Private_Dirty"])
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says which pages are shared")
def test_processes_share_mapped_index(folder):
    model = fflm.load(folder)
    assert model._index.entries.view(np.uint8).any()  # has all pages in memory
    command = [sys.executable, "-c", SHARED, str(folder / INDEX)]
    shared, private = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert shared > 0
    assert private == 0
