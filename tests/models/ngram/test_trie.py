"""Quantized n-gram models find in their tries what the originals find, and do not crash on damaged files."""

import json
import math
import pickle
import re

import numpy as np
import pytest
from command import PERPLEXITY, STORIES
from command import fflm as command
from ngrams import make_ngrams, ngram_case, write_ngrams

import fflm
from fflm.arrays import WEIGHTS, load_arrays, save_arrays
from fflm.cli.quantize import _change
from fflm.errors import FflmError
from fflm.models.ngram import kernels
from fflm.models.ngram.arpa import import_arpa, read_arpa, write_arpa
from fflm.models.ngram.trie import TRIE_TYPES, _quantize
from fflm.models.ngram.trie_kernels import BLOCK, LARGE_BLOCK

LINES = ["w1 w2 w3", "", "w29 unseen w7"]


@pytest.fixture(scope="module", params=[1, 2, 4])
def case(request, tmp_path_factory):
    """Return what `ngram_case` returns.

    There are fewer than 255 values of each kind and length, so that rounding changes nothing.
    """
    return ngram_case(request.param, tmp_path_factory.mktemp("trie") / "model.arpa")


def test_quantized_model_equals_its_original_and_reference(case):
    model, lines, expected = case
    small = model.quantize()
    np.testing.assert_allclose(small.scores(lines) / math.log(10), expected, rtol=1e-6)
    np.testing.assert_array_equal(small.scores(lines), model.scores(lines))
    for text in (lines[5], *lines[-20:]):
        ids = np.append(model.vocabulary.encode(text.split()), np.int32(1))
        np.testing.assert_array_equal(small.losses_of_text(ids), model.losses_of_text(ids))
    contexts = model.windows(ids).batch(np.arange(len(ids)))[0]
    np.testing.assert_allclose(small.log_probabilities(contexts), model.log_probabilities(contexts), rtol=1e-6)


def test_states_of_quantized_model_equal_those_of_its_original(case):
    model, *_ = case
    small, states = model.quantize(), [np.zeros(model.window + 1, np.int32) for _ in range(2)]
    for word in (3, 5, 4, 32, 1, 2**31 - 1, 3, -1, 5):  # the large numbers are of other models, whose states are used by mistake
        found = [
            kernels.ngram_score_after(state, word, state, each.packed) for state, each in zip(states, (model, small), strict=True)
        ]
        assert found[0] == found[1]
        np.testing.assert_array_equal(*states)


def read_trie(arrays, order):
    """Return log p and the back-off weights of the n-grams in the arrays of a file, by ids, read as the format is described."""
    counts, key_bits = arrays["counts"].astype(int), int(arrays["counts"][0] - 1).bit_length()
    keys = [word * (0x9E3779B97F4A7C15 >> (64 - key_bits) | 1) % 2**key_bits for word in range(counts[0])]
    words = arrays["words"].view([("log_p", np.float32), ("back_off", np.float32), ("children", np.uint32)])[:, 0]
    stored, child_bits = (np.unpackbits(arrays[name], bitorder="little") for name in ("ngrams", "children"))
    ngrams = {(word,): (entry["log_p"], entry["back_off"]) for word, entry in enumerate(words[:-1])}
    level, starts, bit, child_bit, block = list(ngrams), list(words["children"]), 0, 0, 0
    for k in range(1, order):
        width = key_bits + (16 if k < order - 1 else 8)
        parents = np.repeat(np.arange(len(level)), np.diff(starts))
        numbers = [
            int("".join(map(str, stored[first::-1][:width])), 2) for first in bit + width * np.arange(1, counts[k] + 1) - 1
        ]
        bit += -(-int(counts[k]) * width // 64) * 64
        level = [(keys.index(number % 2**key_bits), *level[parent]) for number, parent in zip(numbers, parents, strict=True)]
        codes = np.array(numbers) >> key_bits
        log_p = arrays["bins"][0, k, codes % 256]
        back_offs = arrays["bins"][1, k, codes >> 8] if k < order - 1 else np.full(len(codes), np.float32(-0.0))
        ngrams |= dict(zip(level, zip(log_p, back_offs, strict=True), strict=True))
        if k < order - 1:
            blocks = -(-len(level) // BLOCK)
            ones = np.flatnonzero(child_bits[child_bit:])[: blocks * BLOCK + 1]
            starts = [ones[min(i, len(level))] - min(i, len(level)) for i in range(len(level) + 1)]
            expected = [ones[i] - i for i in range(0, blocks * BLOCK + 1, BLOCK)]
            np.testing.assert_array_equal(arrays["blocks"][block:][: blocks + 1], expected)
            child_bit, block = child_bit + -(-(ones[-1] + 1) // 64) * 64, block + blocks + 1
    assert len(ngrams) == counts.sum()
    return ngrams


@pytest.mark.parametrize("order", [1, 2, 4])
def test_stored_trie_has_all_ngrams_as_its_format_says(tmp_path, order):
    ngrams = make_ngrams(order)
    write_ngrams(tmp_path / "model.arpa", ngrams, order)
    model = read_arpa(tmp_path / "model.arpa")
    numbers = {word: number for number, word in enumerate([*model.vocabulary.words, "<s>"])}
    found = read_trie(model.quantize().arrays, order)
    for ngram, (log_p, back_off) in ngrams.items():
        own = found.pop(tuple(map(numbers.get, ngram)))
        assert ngram == ("<s>",) or own[0] == pytest.approx(log_p * math.log(10), rel=1e-6)
        assert own[1] == pytest.approx(back_off * math.log(10), rel=1e-6)
    for log_p, _ in found.values():  # ends and beginnings of others
        assert np.isnan(log_p)


def test_ngrams_with_many_children_are_found(tmp_path):
    count = LARGE_BLOCK + 100
    ngrams = {(word,): (-3.0, -0.25) for word in ["<unk>", "</s>", "<s>", *(f"w{number}" for number in range(count))]}
    ngrams |= {(f"w{number}", "w1"): (-2.0, -0.5) for number in range(0, count, 7)}
    many = [(f"w{number}", "w70", "w1") for number in range(count - 50)]
    ngrams |= dict.fromkeys([*many, ("w3", "w0", "w1"), (f"w{count - 9}", f"w{count // 7 * 7 - 7}", "w1")], (-1.0, 0.0))
    write_ngrams(tmp_path / "model.arpa", ngrams, 3)
    model = read_arpa(tmp_path / "model.arpa")
    lines = [" ".join(ngram) for ngram in ngrams if len(ngram) == 3] + [f"w{count - number} w70 w1" for number in range(1, 50)]
    np.testing.assert_array_equal(model.quantize().scores(lines), model.scores(lines))


@pytest.mark.parametrize("name", ["ngrams", "children", "blocks"])
@pytest.mark.parametrize("kind", ["zeros", "ones", "noise"])
def test_damaged_tries_end_searches_and_are_never_indices(case, name, kind):
    model, lines, _ = case
    small = model.quantize()
    damaged = getattr(small._index, name).view(np.uint8)
    noise = np.random.default_rng(3).integers(0, 256, damaged.shape, np.uint8)
    damaged[:] = {"zeros": 0, "ones": 255, "noise": noise}[kind]
    assert len(small.scores(lines)) == len(lines)
    assert small.log_probabilities(np.full((1, model.window), 3, np.int32)).shape == (1, len(model.vocabulary))


def test_values_are_rounded_to_means_of_equally_many():
    values = np.random.default_rng(4).gamma(2, 2, 255 * 40).astype(np.float32)
    means, numbers = _quantize(values)
    expected = np.sort(values).reshape(255, 40).mean(axis=1, dtype=np.float64)
    np.testing.assert_allclose(means, expected, rtol=1e-6)
    np.testing.assert_array_equal(numbers - 1, np.abs(values[:, None] - means).argmin(axis=1))
    few = np.array([-1.5, -0.25, -1.5, 0.0], np.float32)
    means, numbers = _quantize(few)
    np.testing.assert_array_equal(means[numbers - 1], few)


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a model of order 3."""
    write_ngrams(tmp_path / "model.arpa", make_ngrams(3), 3)
    import_arpa(tmp_path / "model.arpa", tmp_path / "model.ngram")
    return tmp_path / "model.ngram"


def test_quantized_model_is_stored_mapped_and_pickled_by_its_path(folder):
    model = fflm.load(folder)
    small = fflm.quantize(folder, folder.with_name("small.ngram"))
    assert "quantized" in repr(small)
    np.testing.assert_array_equal(small.scores(LINES), model.scores(LINES))
    again = pickle.loads(content := pickle.dumps(small))
    assert len(content) < 1000
    np.testing.assert_array_equal(again.scores(LINES), model.scores(LINES))
    assert pickle.loads(pickle.dumps(model.quantize())).scores(LINES).tolist() == model.scores(LINES).tolist()
    assert small.next_words("w1", 3) == model.next_words("w1", 3)
    for use in (lambda: write_arpa(small, folder / "x.arpa"), small.quantize):
        with pytest.raises(FflmError, match="the model is quantized, and can only predict"):
            use()
    with pytest.raises(FflmError, match="is the model itself"):
        fflm.quantize(folder, folder, overwrite=True)
    with pytest.raises(FflmError, match="has no tables of fast scoring"):
        fflm.quantize(folder, folder.with_name("x.ngram"), tables=True)


def test_damaged_quantized_model_is_refused_or_found_by_verify(folder):
    path = folder.with_name("small.ngram")
    arrays = fflm.quantize(folder, path).arrays
    content = (path / WEIGHTS).read_bytes()
    _, figures = load_arrays(path / WEIGHTS, TRIE_TYPES)
    descending, beyond = arrays["words"].copy(), arrays["words"].copy()
    descending.view(np.uint32)[5, 2], beyond.view(np.uint32)[-1, 2] = 2**31, 10**6
    for name, damaged in (
        *((name, array[:-1]) for name, array in arrays.items()),
        *((name, array.astype(np.float32)) for name, array in arrays.items() if name != "bins"),
        ("counts", arrays["counts"] + np.uint32(1)),
        ("words", arrays["words"][:, :-1]),
        ("words", descending),
        ("words", beyond),
        ("bins", arrays["bins"].view(np.uint8)),
        ("bins", arrays["bins"] + np.float32(np.inf)),
    ):
        save_arrays(path / WEIGHTS, {**arrays, name: damaged}, figures)
        with pytest.raises(FflmError, match=r"model\.safetensors is damaged"):
            fflm.load(path)
    save_arrays(path / WEIGHTS, {"codes": np.zeros((3, 3), np.uint16)}, figures)
    with pytest.raises(FflmError, match="was quantized by an earlier version: quantize the original again"):
        fflm.load(path)
    (path / WEIGHTS).write_bytes(content[:-1])
    with pytest.raises(FflmError, match=r"model\.safetensors is damaged"):
        fflm.load(path)
    damaged = bytearray(content)
    damaged[-100] ^= 1
    (path / WEIGHTS).write_bytes(damaged)
    assert len(fflm.load(path).scores(LINES)) == len(LINES)
    with pytest.raises(FflmError, match=r"model\.safetensors is damaged"):
        fflm.load(path, verify=True)


def test_change_of_perplexity_has_no_negative_zero():
    assert [_change(100, after) for after in (99.9999, 100, 100.0001, 99.5)] == ["+0.00%"] * 3 + ["-0.50%"]


def test_command_states_sizes_and_perplexities(tmp_path):
    (tmp_path / "text.txt").write_text(STORIES)
    fflm.train_ngram(tmp_path / "text.txt", tmp_path / "t.ngram", order=3)
    result = command("quantize", "t.ngram", "-o", "s.ngram", folder=tmp_path)
    assert re.search(rf"^valid {PERPLEXITY}; [+-]\d+\.\d\d% of that of the original$", result.stdout, re.MULTILINE)
    again = json.loads(command("quantize", "t.ngram", "-o", "s.ngram", "--overwrite", "--json", folder=tmp_path).stdout)
    assert again["bytes"] < again["original_bytes"] / 2
    assert again["valid"]["perplexity"] == pytest.approx(again["valid"]["original"], rel=0.005)
    assert "quantized" in repr(fflm.load(tmp_path / "s.ngram"))
    assert command("score", "-m", "s.ngram", "--part", "valid", folder=tmp_path).returncode == 0
    assert "model.safetensors:" in command("info", "s.ngram", folder=tmp_path).stdout
