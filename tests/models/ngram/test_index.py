"""The index of n-grams finds what a search in a dictionary finds, whatever collides, and does not crash on damaged entries."""

import json
import math
import mmap
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from command import PERPLEXITY, STORIES
from command import fflm as command

import fflm
from fflm.arrays import INDEX, WEIGHTS, load_arrays, save_arrays
from fflm.compiling import pack
from fflm.errors import FflmError
from fflm.models.base import Predictor
from fflm.models.ngram import kernels
from fflm.models.ngram import model as models
from fflm.models.ngram.arpa import import_arpa, read_arpa, write_arpa
from fflm.models.ngram.index import _quantize, _quantized, make_index, quantize_index, quantized_arrays
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import Tokenizer

WORDS = ["<unk>", "</s>", *(f"w{number}" for number in range(30))]


def make_ngrams(order):
    """Return random log-probabilities and back-off weights, to base 10, of n-grams, many of whose ends are not n-grams."""
    generator = np.random.default_rng(1)
    ngrams = {(word,): (-2.0, -0.25 if order > 1 else 0.0) for word in [*WORDS, "<s>"]}
    for length in range(2, order + 1):
        shorter = [ngram for ngram in ngrams if len(ngram) == length - 1 and ngram[-1] != "</s>"]
        for _ in range(250):
            ngram = (*shorter[generator.integers(len(shorter))], WORDS[generator.integers(len(WORDS))])
            back_off = 0.0 if length == order else round(-generator.random(), 3)
            ngrams[ngram] = round(-3 * generator.random(), 3), back_off
    return ngrams


def write_ngrams(path, ngrams, order):
    """Write an ARPA file, in which some weights are left out because they are 0."""
    lines = ["\\data\\"]
    levels = [{ngram: values for ngram, values in ngrams.items() if len(ngram) == length} for length in range(1, order + 1)]
    lines += [f"ngram {length}={len(level)}" for length, level in enumerate(levels, 1)]
    for length, level in enumerate(levels, 1):
        lines.append(f"\n\\{length}-grams:")
        lines += [f"{p}\t{' '.join(ngram)}" + (f"\t{weight}" if weight else "") for ngram, (p, weight) in level.items()]
    path.write_text("\n".join([*lines, "\n\\end\\\n"]))


def reference_score(ngrams, order, line):
    """Return log10 p of a sentence by the definition of back-off, in double precision."""
    text, total = ["<s>", *(word if (word,) in ngrams else "<unk>" for word in line.split()), "</s>"], 0.0
    for place in range(1, len(text)):
        context = tuple(text[max(0, place - order + 1) : place])
        while (*context, text[place]) not in ngrams:
            total += ngrams.get(context, (0, 0.0))[1]
            context = context[1:]
        total += ngrams[(*context, text[place])][0]
    return total


@pytest.fixture(scope="module", params=[1, 2, 4])
def case(request, tmp_path_factory):
    """Return a model, lines (some without words, one with more words than are looked up together), and their log10 p."""
    order, path = request.param, tmp_path_factory.mktemp("index") / "model.arpa"
    ngrams = make_ngrams(order)
    write_ngrams(path, ngrams, order)
    generator = np.random.default_rng(2)
    words = [*WORDS[2:], "unseen"]
    lines = [" ".join(generator.choice(words, length)) for length in (0, 1, 2, 7, 0, 2000, *generator.integers(0, 20, 300))]
    # Sentences of known n-grams, because random words are mostly not found in any.
    longest = [ngram for ngram in ngrams if len(ngram) == order and not {"</s>", "<s>"} & set(ngram)]
    lines += [" ".join(" ".join(longest[i]) for i in generator.integers(len(longest), size=5)) for _ in range(50)]
    return read_arpa(path), lines, np.array([reference_score(ngrams, order, line) for line in lines])


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
    packed = pack(kernels.LineTables(index, *model.context_limits, model.order, 0.0))
    np.testing.assert_array_equal(model._encoder.apply(kernels.ngram_score_lines, lines, packed)[0], expected)


def test_damaged_entries_end_searches_and_are_never_indices(case):
    model, lines, _ = case
    index = make_index(model.tables, len(model.vocabulary) + 1)
    noise = np.random.default_rng(3).integers(1, 256, index.entries[:-1].nbytes, np.uint8)
    index.entries[:-1] = noise.view(kernels.ENTRY)  # no other entry than the last is free
    packed = pack(kernels.LineTables(index, *model.context_limits, model.order, 0.0))
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


# The quantized index. Its n-grams have fewer than 255 values of each kind and length, so that rounding changes nothing.


def test_quantized_model_equals_its_original(case):
    model, lines, _ = case
    small = model.quantize()
    np.testing.assert_array_equal(small.scores(lines), model.scores(lines))
    for text in (lines[5], *lines[-20:]):
        ids = np.append(model.vocabulary.encode(text.split()), np.int32(1))
        np.testing.assert_array_equal(small.losses_of_text(ids), model.losses_of_text(ids))
    contexts = model.windows(ids).batch(np.arange(len(ids)))[0]
    np.testing.assert_allclose(small.log_probabilities(contexts), model.log_probabilities(contexts), rtol=1e-6)
    states = [np.zeros(model.window + 1, np.int32) for _ in range(2)]
    for word in (3, 5, 4, 32, 1):
        found = [
            kernels.ngram_score_after(state, word, state, each.packed) for state, each in zip(states, (model, small), strict=True)
        ]
        assert found[0] == found[1]
        np.testing.assert_array_equal(*states)


@pytest.mark.parametrize("room", [0.001, 0.3, 1.0])
def test_quantized_index_grows_and_survives_collisions(case, room):
    model, lines, _ = case
    index = quantize_index(model.tables, len(model.vocabulary) + 1, model.order, room)
    packed = pack(kernels.LineTables(index, *model.context_limits, model.order, 0.0))
    found = model._encoder.apply(kernels.ngram_score_lines, lines, packed)[0]
    np.testing.assert_array_equal(found, model.scores(lines))


@pytest.mark.parametrize(("words", "slots"), [(3, 40), (33, 1001), (2**15, 2**16 - 1), (2**20 + 1, 3000)])
def test_keys_of_quantized_index_can_be_computed_from_slots_and_tags(words, slots):
    codes, bins = np.zeros((slots + 256, kernels.CODES), np.uint16), np.zeros((2, 3, kernels.BINS), np.float32)
    index = _quantized(np.zeros(words, kernels.ENTRY), codes, bins)
    assert index.slots == slots
    assert (words + len(codes) - 1) << index.word_bits | (words - 1) < 1 << index.width
    assert -(-(2**32) // slots) << (index.width - 32) <= 1 << index.shift  # at most as many products as begin at one slot


def test_damaged_codes_end_searches_and_are_never_indices(case):
    model, lines, _ = case
    small = model.quantize()
    noise = np.random.default_rng(3).integers(1, 2**16, small._index.codes[:-1].shape, np.uint16)
    small._index.codes[:-1] = noise
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


def test_damaged_quantized_model_is_refused_or_found_by_verify(folder):
    path = folder.with_name("small.ngram")
    small = fflm.quantize(folder, path)
    content, arrays = (path / WEIGHTS).read_bytes(), quantized_arrays(small._index)
    _, figures = load_arrays(path / WEIGHTS, (np.uint8, np.uint16, np.float32))
    for name, damaged in (
        ("words", arrays["words"][:-1]),
        ("words", arrays["words"][:, :-1]),
        ("codes", arrays["codes"][:256]),
        ("codes", arrays["codes"][:, :2]),
        ("codes", np.vstack([arrays["codes"], [[1, 0, 0]]]).astype(np.uint16)),
        ("codes", arrays["words"]),
        ("bins", arrays["bins"][:, :-1]),
        ("bins", arrays["bins"].view(np.uint8)),
    ):
        save_arrays(path / WEIGHTS, {**arrays, name: damaged}, figures)
        with pytest.raises(FflmError, match=r"model\.safetensors is damaged"):
            fflm.load(path)
    (path / WEIGHTS).write_bytes(content[:-1])
    with pytest.raises(FflmError, match=r"model\.safetensors is damaged"):
        fflm.load(path)
    (path / WEIGHTS).write_bytes(content)
    flip(path / WEIGHTS, -100)
    assert len(fflm.load(path).scores(LINES)) == len(LINES)
    with pytest.raises(FflmError, match=r"model\.safetensors is damaged"):
        fflm.load(path, verify=True)


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
