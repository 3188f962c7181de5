"""Word ids: those in a corpus file are verified before use, and those from a caller are checked before a kernel gets them."""

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from command import STORIES
from tiny import MODES, tiny_model

from fflm.backend.cpu.backend import CpuBackend
from fflm.errors import FflmError
from fflm.models.mixture.cache import UnigramCache
from fflm.models.mixture.model import Mixture
from fflm.models.neural.fast import FastScorer
from fflm.models.ngram.train import estimate_model
from fflm.models.scoring import score_part
from fflm.network.feedforward import Network
from fflm.text import ids as module
from fflm.text import windows
from fflm.text.corpus import Corpus
from fflm.text.settings import TextSettings
from fflm.text.tokenize import TextSource, tokenize
from fflm.text.vocabulary import VocabularyRule
from fflm.text.windows import Windows

# Ids in the file of a part.


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text.txt").write_text(STORIES[:3000], encoding="utf-8")
    return tokenize(TextSource([tmp_path / "text.txt"], TextSettings(), VocabularyRule(), "20%"), tmp_path / "corpus")


def reopen_with_ids(corpus, change, name="train"):
    """Change the ids in the file of a part, and open the corpus again."""
    path = corpus.path / f"{name}.npy"
    ids = np.load(path)
    change(ids)
    np.save(path, ids)
    return Corpus.open(corpus.path)


def reopen_with_ids_and_sha256(corpus, ids):
    """Write other ids with the right checksum in corpus.json, and open the corpus again."""
    path = corpus.path / "corpus.json"
    np.save(corpus.path / "train.npy", ids)
    about = json.loads(path.read_text("utf-8"))
    about["parts"]["train"]["sha256"] = module.hashlib.sha256(ids.tobytes()).hexdigest()
    about.pop("sha256", None)  # as in corpora of older versions
    path.write_text(json.dumps(about), encoding="utf-8")
    return Corpus.open(corpus.path)


def test_ids_slices_equal_those_of_array(corpus):
    ids, expected = corpus.parts["train"].ids, np.load(corpus.path / "train.npy")
    for key in (slice(None), slice(3, 9), slice(-5, None), slice(9, 3), slice(0, 10**12)):
        found = ids[key]
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected[key])
        assert not found.flags.writeable
    assert np.array_equal(np.asarray(ids, np.int64), expected)
    assert len(ids) == len(expected)
    with pytest.raises(ValueError, match="in their order"):
        ids[::2]


USES = [
    lambda corpus: corpus.parts["train"].ids[:1],
    lambda corpus: Windows(corpus.parts["train"].ids, 2, padding=1).batch(np.array([0])),
    lambda corpus: Windows(corpus.parts["train"].ids, 2, padding=1).counts(len(corpus.vocabulary)),
    lambda corpus: estimate_model(corpus, 2),
    lambda corpus: score_part(UnigramCache(3, corpus.vocabulary, corpus.settings), corpus.parts["train"]),
    lambda corpus: corpus.verify(),
]
"""Every operation that reads the ids of a corpus."""


@pytest.mark.parametrize("use", USES)
def test_every_use_refuses_damaged_ids(corpus, use):
    words = len(corpus.vocabulary)
    use(corpus)
    ids = np.load(corpus.path / "train.npy")
    ids[-1] = words
    with pytest.raises(
        FflmError, match=rf"train\.npy is damaged \(it has the id {words}, but the vocabulary has {words} words\)"
    ):
        use(reopen_with_ids_and_sha256(corpus, ids))
    ids[-1] = 0
    with pytest.raises(FflmError, match=r"train\.npy is damaged \(it has \d+ ids of (<unk>|</s>), but corpus\.json says \d+\)"):
        use(reopen_with_ids_and_sha256(corpus, ids))
    with pytest.raises(FflmError, match=r"train\.npy is damaged \(wrong sha256\): tokenize the text again"):
        use(reopen_with_ids(corpus, lambda ids: ids.sort()))


def test_ids_file_is_verified_once_and_again_after_change(corpus, monkeypatch):
    part = corpus.parts["train"]
    tallies = []
    real = module.Tally
    monkeypatch.setattr(module, "Tally", lambda end: tallies.append(end) or real(end))
    corpus.verify()
    corpus.verify()
    score_part(UnigramCache(3, corpus.vocabulary, corpus.settings), part)
    assert len(tallies) == len(corpus.parts)
    path = corpus.path / "train.npy"
    before = path.read_bytes()
    os.utime(path, ns=(1, 1))
    part.ids[:3]
    assert len(tallies) == len(corpus.parts) + 1
    with path.open("rb+") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\0\0")
    os.utime(path, ns=(2, 2))
    with pytest.raises(FflmError, match="wrong sha256"):
        part.ids[:3]
    path.write_bytes(before)
    assert len(part.ids[:3]) == 3


@pytest.mark.parametrize("size", [0, 200])
def test_ids_file_truncated_during_use_is_refused(corpus, size):
    examples = Windows(corpus.parts["train"].ids, 2, padding=1)
    examples.batch(np.arange(5))
    os.truncate(corpus.path / "train.npy", size)
    with pytest.raises(FflmError, match=r"train\.npy was truncated or changed while it was read: tokenize the text again"):
        examples.batch(np.arange(5))


def test_ids_stay_readable_after_folder_is_moved_or_replaced(corpus, tmp_path):
    expected = np.load(corpus.path / "train.npy")
    corpus.path.rename(tmp_path / "moved")
    moved = corpus.moved(tmp_path / "moved")
    assert np.array_equal(moved.parts["train"].ids[:], expected)
    tokenize(
        TextSource([tmp_path / "text.txt"], TextSettings(line_ends=False), VocabularyRule(), None),
        tmp_path / "moved",
        overwrite=True,
    )
    assert np.array_equal(moved.parts["train"].ids[:], expected)
    assert str(tmp_path / "moved" / "train.npy") in repr(moved.parts["train"].ids)


def test_threads_and_pickled_copies_read_same_ids(corpus, monkeypatch):
    monkeypatch.setattr(windows, "BLOCK", 64)
    examples = Windows(corpus.parts["train"].ids, 3, padding=1)
    alone = Windows(np.load(corpus.path / "train.npy"), 3, padding=1)
    positions = np.random.default_rng(1).permutation(len(examples))[: 40 * 16].reshape(40, 16)
    with ThreadPoolExecutor(8) as pool:
        for found, rows in zip(pool.map(examples.batch, positions), positions, strict=True):
            assert all(map(np.array_equal, found, alone.batch(rows)))
    copy = pickle.loads(pickle.dumps(examples))
    assert all(map(np.array_equal, copy.batch(positions[0]), alone.batch(positions[0])))


# Ids that a caller passes.

MODEL = tiny_model(MODES["line ends"])
CACHE = UnigramCache(3, MODEL.vocabulary, MODEL.text)
MODELS = {
    "network": MODEL,
    "cache": CACHE,
    "mixture": Mixture({"a": MODEL, "b": CACHE}, [0.5, 0.5]),
}
V = len(MODEL.vocabulary)


@pytest.fixture(params=[*MODELS, "n-gram model"])
def model(request, tmp_path):
    if request.param in MODELS:
        return MODELS[request.param]
    (tmp_path / "text.txt").write_text("the cat sat on the dog . the the cat\n" * 5, encoding="utf-8")
    found = estimate_model(
        tokenize(TextSource([tmp_path / "text.txt"], TextSettings(), VocabularyRule(), None), tmp_path / "c"), 4
    )
    assert len(found.vocabulary) == V
    return found


INVALID_IDS = [
    (np.full(4, 10**9), "ids from 0 to .*, not 1,000,000,000"),
    (np.full(4, -1, np.int8), "ids from 0 to .*, not -1"),
    (np.full(4, 2**40), "not 1,099,511,627,776"),
    (np.full(4, 2**64 - 1, np.uint64), "not 18,446,744,073,709,551,615"),
    (np.full(4, V + 1), "not 9"),
    (np.zeros(4), "integers, not of float64"),
    (np.zeros(4, object), "integers, not of object"),
    (np.zeros(4, bool), "integers, not of bool"),
    (["the"] * 4, "integers, not of <U3"),
]


@pytest.mark.parametrize(("ids", "message"), INVALID_IDS)
def test_values_that_are_not_ids_are_refused(model, ids, message):
    contexts, targets = np.zeros((4, 3), np.int32), np.zeros(4, np.int32)
    with pytest.raises(FflmError, match=f"`contexts` must be .*{message}"):
        model.losses(np.array([ids] * 3).T, targets)
    with pytest.raises(FflmError, match=f"`contexts` must be .*{message}"):
        model.log_probabilities(np.array([ids] * 3).T)
    with pytest.raises(FflmError, match=f"`targets` must be .*{message}"):
        model.losses(contexts, ids)
    with pytest.raises(FflmError, match=f"`ids` must be .*{message}"):
        model.losses_of_text(ids)
    with pytest.raises(FflmError, match=f"`ids` must be .*{message}"):
        model.losses_of_texts([targets, ids])
    with pytest.raises(FflmError, match=f"`ids` must be .*{message}"):
        FastScorer(MODEL).losses_of_text(ids)
    with pytest.raises(FflmError, match=f"`ids` must be .*{message}"):
        MODEL.vocabulary.decode(ids)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 2)), np.zeros(3), np.zeros((4, 3, 1)), None, [[1], [1, 2]], np.zeros((5, 3), int)]
)
def test_ids_of_wrong_shape_are_refused(model, wrong):
    with pytest.raises(FflmError, match="must be an array of ids of the shape"):
        model.losses(wrong, np.zeros(4, np.int32))
    with pytest.raises(FflmError, match=r"`targets` must be an array of ids of the shape \(4,\), not"):
        model.losses(np.zeros((4, 3), np.int32), wrong)


@pytest.mark.parametrize("start", [-1, 5, 0.5, None])
@pytest.mark.parametrize("scorer", [MODEL, FastScorer(MODEL)])
def test_start_that_is_not_an_id_is_refused(scorer, start):
    with pytest.raises(FflmError, match="`start` must be"):
        scorer.losses_of_text(np.zeros(4, np.int32), start)


def test_losses_do_not_depend_on_id_dtype_or_layout(model):
    contexts = np.arange(12).reshape(3, 4).T % V
    targets = np.arange(8)[::-2]
    expected = model.losses(np.ascontiguousarray(contexts, np.int32), targets.astype(np.int32))
    for type_ in (np.uint8, np.int64, np.uint64, ">i4"):
        assert np.array_equal(model.losses(contexts.astype(type_), targets.astype(type_)), expected)
    assert np.array_equal(model.losses(contexts.tolist(), targets.tolist()), expected)
    assert model.losses(contexts[:0], targets[:0]).shape == model.losses_of_text([]).shape == (0,)
    assert model.losses_of_texts([]) == []


def test_network_refuses_ids_outside_vocabulary():
    network, parameters = Network(MODEL.config, CpuBackend()), MODEL.parameters
    contexts, targets, losses = np.zeros((2, 3), np.int32), np.zeros(2, np.int32), np.empty(2, np.float32)
    for wrong in (V + 1, -1):
        with pytest.raises(ValueError, match=f"contexts from .* but the network has 0 to {V}"):
            network.log_probabilities(parameters, np.full_like(contexts, wrong))
    for wrong in (V, -1):
        with pytest.raises(ValueError, match=f"targets from .* but the network has 0 to {V - 1}"):
            network.losses(parameters, contexts, np.full_like(targets, wrong), losses)
    with pytest.raises(ValueError, match="rows from 2 to 2, but the network has 0 to 1"):
        network.losses(parameters, contexts, targets, losses, rows=np.full_like(targets, 2))
