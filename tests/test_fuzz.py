"""Every reader is given thousands of damaged and hostile files: it succeeds, or reports in one line what is wrong.

Each case is a small valid file in which bytes, lines, numbers or JSON values are changed. Some files that a checksum would refuse
get the right one. By default a tenth of the cases are tried. ``FFLM_FUZZ=1``, as in CI, tries all of them, and ``FFLM_FUZZ=20
pytest tests/test_fuzz.py`` twenty times as many, which differ each time.
"""

import bz2
import contextlib
import copy
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors
import safetensors.numpy
from command import STORIES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning
from tiny import MODES, tiny_model

import fflm
from fflm import filter as filter_collection
from fflm import load, resume_filter
from fflm.arrays import CHECKPOINT, CONFIG, INDEX, LOG, WEIGHTS, _crc32
from fflm.errors import FflmError, FflmWarning
from fflm.filtering.job import Progress
from fflm.models.classifier import model as classify_model
from fflm.models.classifier import train as classify
from fflm.models.classifier.features import read_lexicon
from fflm.models.classifier.reading import read_labeled
from fflm.models.mixture.train import mix
from fflm.models.neural import train
from fflm.models.ngram.arpa import read_arpa, write_arpa
from fflm.models.ngram.train import estimate_model
from fflm.models.ngram.train import train as train_ngram_model
from fflm.models.scoring import score_hypotheses
from fflm.models.vectors import read_vectors, vector_size
from fflm.search import search as search_module
from fflm.search import space
from fflm.text import reading
from fflm.text.corpus import Corpus, checksum
from fflm.text.reading import read_chunks
from fflm.text.settings import TextSettings
from fflm.text.tokenize import TextSource, tokenize
from fflm.text.vocabulary import Vocabulary, VocabularyRule, read_words
from fflm.text.windows import Windows

pytestmark = pytest.mark.fuzz

TIMES = float(os.environ.get("FFLM_FUZZ", "0.1"))

MEMORY = 1 << 30
"""Limit of the memory of a case, in bytes."""

SECONDS = 20
"""Limit of the time of a case, on a busy machine."""

ODD_NUMBERS = [
    b"0",
    b"-1",
    b"1e999",
    b"nan",
    b"-inf",
    b"1_0",
    b"99999999999",
    b"1000000000000000000000",
    b"9" * 5000,
    b"0x10",
    b"1.5",
]
ODD_PIECES = [
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\n",
    b"\r",
    b"\r\n",
    b"\t",
    b" ",
    b'"',
    b",",
    b"\\u000a",
    b"\\",
    b"\xe2\x80\xa8",
    b"<unk>",
    b"<s>",
    b"</s>",
    b"|||",
    b"__label__",
    b"\x1f\x8b\x08",
    b"BZh9",
    b"PK\x03\x04",
    b"\x1b[2J",
    b"x" * 3000,
    b"[" * 3000,
    "猫\u0301\u200b".encode(),
]
ODD_VALUES = [
    None,
    True,
    -1,
    0,
    1.5,
    2**63,
    10**30,
    1e308,
    "",
    "猫",
    "\0",
    "../..",
    "\ud800",
    [],
    [[]],
    {},
    {"": 0},
    [0] * 300,
    "9" * 400,
    float("nan"),
    float("inf"),
]


@st.composite
def changed_bytes(draw: Any, content: bytes) -> bytes:
    """Draw the content of a file with one to three changes."""
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["bit", "piece", "number", "cut", "repeat", "lines", "end"]))
        low = draw(st.integers(0, len(content)))
        high = min(len(content), low + draw(st.integers(0, 40)))
        if kind == "bit" and low < len(content):
            content = content[:low] + bytes([content[low] ^ 1 << draw(st.integers(0, 7))]) + content[low + 1 :]
        elif kind == "piece":
            content = content[:low] + draw(st.sampled_from(ODD_PIECES) | st.binary(max_size=8)) + content[high:]
        elif kind == "number" and (found := list(re.finditer(rb"-?[0-9.]+", content))):
            place = found[draw(st.integers(0, len(found) - 1))]
            content = content[: place.start()] + draw(st.sampled_from(ODD_NUMBERS)) + content[place.end() :]
        elif kind == "cut":
            content = content[:low] + content[high:]
        elif kind == "repeat":
            content = content[:high] + content[low:high] * draw(st.integers(1, 20)) + content[high:]
        elif kind == "lines":
            lines = content.split(b"\n")
            one, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
            lines[one], lines[other] = lines[other], draw(st.sampled_from([lines[one], lines[other], b""]))
            content = b"\n".join(lines)
        elif kind == "end":
            content = content[:low]
    return content


@st.composite
def changed_json(draw: Any, content: bytes) -> bytes:
    """Draw the content of a JSON file with values that are replaced, missing or deeply nested."""
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 2))):
        place = value
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
            if not isinstance(place[key], dict | list) or not place[key] or draw(st.integers(0, 3)) == 0:
                how = draw(st.integers(0, 9))
                if how == 0 and isinstance(place, dict):
                    del place[key]
                elif how == 1:
                    place[key] = [place[key]]
                elif how == 2 and isinstance(place, dict):
                    place["unheard-of"] = place[key]
                else:
                    place[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))  # a second change may be inside
                break
            place = place[key]
    text = json.dumps(value)
    if draw(st.integers(0, 30)) == 0:
        text = text.replace("0", "[" * 20_000, 1)
    return text.encode()


def changed(content: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy that draws changed versions of a file; JSON is changed by values or by bytes."""
    try:
        json.loads(content)
    except ValueError:
        return changed_bytes(content)
    return changed_json(content) | changed_bytes(content)


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Limit the memory and the time that a case may take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if statm.exists():
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, hard))
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _too_long(*_: Any) -> None:
    raise AssertionError(f"a case takes more than {SECONDS} s")


def succeeds_or_is_refused(use: Callable[[], Any]) -> bool:
    """Return whether a call succeeds; fail if it raises anything but an `FflmError` of one line."""
    try:
        with limits(), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", FflmWarning)
            warnings.filterwarnings("ignore", "not in the vocabulary, read as <unk>")
            use()
    except FflmError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        assert len(message) < 2000, message
        return False
    return True


def fuzz(content: bytes, use: Callable[[bytes], Any], cases: int, known: tuple[bytes, ...] = ()) -> None:
    """Try a valid file, files that were once read wrongly (``known``), and changed ones."""

    @settings(
        max_examples=round(cases * TIMES),
        derandomize=TIMES <= 1,
        suppress_health_check=list(HealthCheck),
    )
    @given(changed(content))
    def run(changed_content: bytes) -> None:
        succeeds_or_is_refused(lambda: use(changed_content))

    assert succeeds_or_is_refused(lambda: use(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)  # a warning that an example is long
        for case in known:
            succeeds_or_is_refused(partial(use, case))
        run()


# Texts.


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("kind", ["plain", *COMPRESSIONS])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-7", "gb18030", "latin-1"])
def test_fuzzed_texts_are_read_or_refused(tmp_path, kind, encoding):
    text = "The cat sat.\n\nDer Kater saß.\r\n".encode(encoding)
    path = tmp_path / "text"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        for _ in read_chunks([path], encoding, "strict" if len(content) % 2 else "replace", 16):
            pass

    fuzz(text if kind == "plain" else COMPRESSIONS[kind](text), read, 100)


# Lists.


@dataclass
class Reader:
    """A reader of files, a valid file for it, its name, and files that were once read wrongly."""

    read: Callable[[Path], Any]
    content: bytes
    name: str = "file"
    known: tuple[bytes, ...] = ()


MODEL = tiny_model(MODES["line ends"])
VECTORS = "".join(f"{word} {row} -1.5 2e-3\n" for row, word in enumerate(["the", "cat", "dog", "</s>"])).encode()
WORDS = "the\t12\ncat\t3\n\\u0020\t1\n猫\t1\n".encode()
LABELLED = "speech\tThe cat said hello.\ntelling\tIt sat.\n\nspeech\t猫\n".encode()
LABELLED_CSV = b'label,text\nspeech,"The cat, it said ""hello""."\ntelling,"It\nsat."\n'
LABELLED_FASTTEXT = b"__label__speech The cat said hello.\n__label__telling It sat.\n"
NBEST = b"0 ||| the cat sat ||| lm= -3.5 tm= 2 ||| -7.5\n0 ||| the dog ||| ||| -8\n\n1 ||| \xe7\x8c\xab ||| lm= 1\n"


def _vectors(path: Path) -> None:
    size = vector_size(path)
    assert read_vectors(path, MODEL.vocabulary, size).shape == (len(MODEL.vocabulary) + 1, size)
    read_vectors(path, MODEL.vocabulary, 3)


def _hypotheses(path: Path, *, moses: bool) -> None:
    for _ in score_hypotheses(MODEL, read_chunks([path]), moses=moses):
        pass


LISTS = {
    "words": Reader(read_words, WORDS),
    "lexicon": Reader(lambda path: read_lexicon([path]), b"good\tpraise\nbad\tblame\nnone\n"),
    "vectors": Reader(_vectors, VECTORS, known=(b"5 3000000\nthe 1 2 3\n", b"3000000000 3000000000\n", b"the " * 100_000)),
    "vectors with a header": Reader(_vectors, b"4 3\n" + VECTORS),
    "tab": Reader(lambda path: read_labeled([path]), LABELLED),
    "csv": Reader(lambda path: read_labeled([path]), LABELLED_CSV, "file.csv"),
    "fasttext": Reader(lambda path: read_labeled([path]), LABELLED_FASTTEXT),
    "n-best list": Reader(lambda path: _hypotheses(path, moses=True), NBEST),
    "hypotheses": Reader(lambda path: _hypotheses(path, moses=False), NBEST),
}


@pytest.mark.parametrize("name", LISTS)
def test_fuzzed_lists_are_read_or_refused(tmp_path, name):
    reader = LISTS[name]
    path = tmp_path / reader.name

    def read(content: bytes) -> None:
        path.write_bytes(content)
        reader.read(path)

    fuzz(reader.content, read, 300, reader.known)


@pytest.mark.parametrize(
    ("of", "bomb", "message"),
    [
        ("words", b"a\n", "has more than 65,536 bytes, too many for a list of words"),
        ("lexicon", b"a\tb\n", "has more than 65,536 bytes, too many for a list of words"),
        ("vectors", b"the 1 2 3\n", "more than 200 times as large when it is decompressed"),
        ("tab", b"a\tb\n", "more than 200 times as large when it is decompressed"),
        ("tab", b"a", "line 1 is longer than 4,096 characters"),
        ("vectors", b"a ", "line 1 is longer than 4,096 bytes"),
    ],
)
def test_lists_that_fill_memory_are_refused(tmp_path, monkeypatch, of, bomb, message):
    monkeypatch.setattr(reading, "_LARGEST", 1 << 16)
    monkeypatch.setattr(reading, "LONGEST", 1 << 12)
    path = tmp_path / "file"
    path.write_bytes(bz2.compress(bomb * 100_000) if "compressed" in message else bomb * 100_000)
    with pytest.raises(FflmError, match=message):
        LISTS[of].read(path)


def test_highly_compressed_text_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_LARGEST", 1 << 16)
    path = tmp_path / "text.bz2"
    path.write_bytes(bz2.compress(f"{STORIES}\n".encode() * 8))
    assert "".join(read_chunks([path])) == f"{STORIES}\n" * 8


# N-gram models.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Return a small tokenized corpus."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "text.txt").write_text(STORIES[:1500], encoding="utf-8")
    return tokenize(TextSource([folder / "text.txt"], TextSettings(), VocabularyRule(), "20%"), folder / "corpus")


ARPA = (
    b"\\data\\\nngram 1=1000000000000\n\n\\1-grams:\n-1\ta\n\n\\end\\\n",
    b"\\data\\\nngram 1=" + b"9" * 5000,
    b"\\data\\\n\\end\\\n",
    b"\\data\\\nngram 1=1\n\n\\1-grams:\n-1\t<s>\n\n\\end\\\n",
)


def test_fuzzed_arpa_files_are_read_or_refused(corpus, tmp_path):
    path, model = tmp_path / "model.arpa", estimate_model(corpus, 3)
    write_arpa(model, path)
    content = path.read_bytes()

    def read(changed_content: bytes) -> None:
        path.write_bytes(changed_content)
        found = read_arpa(path)
        ids = found.text.encode_text("the cat and the dog sat\n", found.vocabulary)
        assert len(found.losses_of_text(ids)) == len(ids)
        found.log_probabilities(np.zeros((1, found.window), np.int32))

    fuzz(content, read, 600, ARPA)


# Corpora.


def _use_corpus(path: Path) -> None:
    opened = Corpus.open(path)
    for part in opened.parts.values():
        ids = part.ids[:]
        assert len(ids) == part.tokens
        assert ids.max() < len(opened.vocabulary)
        windows = Windows.of(part.ids, opened.vocabulary, opened.settings, 3)
        assert windows.counts(len(opened.vocabulary)).sum() == part.tokens
        windows.batch(np.arange(min(5, part.tokens)))
        opened.vocabulary.decode(ids)


@pytest.mark.parametrize("right_checksums", [False, True], ids=["", "with right checksums"])
@pytest.mark.parametrize("name", ["corpus.json", "vocabulary.tsv", "train.npy"])
def test_fuzzed_corpora_are_opened_or_refused(corpus, tmp_path, name, right_checksums):
    before = {file: (corpus.path / file).read_bytes() for file in ("corpus.json", "vocabulary.tsv", "train.npy", "valid.npy")}

    def read(content: bytes) -> None:
        files = {**before, name: content}
        if right_checksums:
            files["corpus.json"] = _with_right_checksums(files)
        for file, own in files.items():
            (tmp_path / file).write_bytes(own)
        _use_corpus(tmp_path)

    fuzz(before[name], read, 500)


def _with_right_checksums(files: dict[str, bytes]) -> bytes:
    """Return corpus.json with the right checksums of the other files and of itself, as far as its fields exist."""
    about = json.loads(before) if _is_json(before := files["corpus.json"]) else None
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        about["vocabulary"] |= {
            "sha256": hashlib.sha256(files["vocabulary.tsv"]).hexdigest(),
            "size": files["vocabulary.tsv"].count(b"\n"),
        }
        length = 10 + int.from_bytes(files["train.npy"][8:10], "little")
        ids = files["train.npy"][length:]
        about["parts"]["train"] |= {"sha256": hashlib.sha256(ids).hexdigest()}
        about["sha256"] = checksum(about)
    return before if about is None else json.dumps(about).encode()


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def test_fuzzed_vocabularies_are_loaded_or_refused(corpus, tmp_path):
    path = tmp_path / "vocabulary.tsv"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        about = {**corpus.vocabulary.to_dict(), "sha256": hashlib.sha256(content).hexdigest()}
        about["size"] = content.removesuffix(b"\n").count(b"\n") + 1
        found = Vocabulary.load(path, about)
        assert found.decode(found.encode(found.words[2:])) == found.words[2:]
        found.save(path)
        assert Vocabulary.load(path, found.to_dict()).words == found.words

    fuzz((corpus.path / "vocabulary.tsv").read_bytes(), read, 500)


# Models, searches, and their resumption.


@pytest.fixture(scope="module")
def models(corpus, tmp_path_factory):
    """Return a folder with a model of each kind and a search."""
    pytest.importorskip("optuna")
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.tsv").write_text("".join(f"{'ab'[row % 2]}\t{line}\n" for row, line in enumerate(LINES)), encoding="utf-8")
    tiny = {"embedding": 4, "hidden": (4,), "epochs": 1, "batch_size": 64, "threads": 1}
    for _ in train.start_session([corpus.path], folder / "net.model", window=2, **tiny).events():
        pass
    train_ngram_model([corpus.path], folder / "gram.ngram", 3)
    for name in ("net.model", "gram.ngram"):
        fflm.quantize(folder / name, (folder / "small").with_suffix(Path(name).suffix))
    mix([folder / "net.model", folder / "gram.ngram"], cache=5).save(folder / "mix.mix")
    for _ in classify.start_session([folder / "text.tsv"], folder / "text.classifier", **tiny).events():
        pass
    search = search_module.start_search(
        [corpus.path], folder / "search.tune", {"rate": space.Range(1e-4, 1e-2)}, trials=1, window=2, **tiny
    )
    for _ in search.events():
        pass
    classifier_search = search_module.start_classifier_search(
        [folder / "text.tsv"], folder / "classifier.tune", {"rate": space.Range(1e-2, 1e-1)}, trials=1, **tiny
    )
    for _ in classifier_search.events():
        pass
    return folder


LINES = [line for line in STORIES.split("\n")[:60] if line]


def _predict(path: Path) -> None:
    found = load(path)
    repr(found)
    found.next_words("the cat", 3)
    found.score("the cat")


def _classify(path: Path) -> None:
    found = classify_model.TextClassifier.load(path)
    repr(found)
    found.predict(["the cat"])


FOLDERS: dict[str, tuple[list[str], Callable[[Path], Any]]] = {
    "net.model": ([CONFIG, WEIGHTS, "vocabulary.tsv", "vocabulary.safetensors"], _predict),
    "small.model": ([WEIGHTS], _predict),
    "small.ngram": ([WEIGHTS], _predict),
    "gram.ngram": ([CONFIG, WEIGHTS, INDEX], _predict),
    "mix.mix": ([CONFIG, WEIGHTS], _predict),
    "text.classifier": ([CONFIG, WEIGHTS], _classify),
    "net.model to resume": ([CONFIG, CHECKPOINT, LOG], lambda path: train.TrainingSession.resume(path, epochs=2)),
    "text.classifier to resume": (
        [CONFIG, CHECKPOINT, "examples.safetensors"],
        lambda path: classify.ClassifierSession.resume(path, epochs=2),
    ),
    "classifier.tune": (
        ["search.json", "examples.safetensors"],
        lambda path: repr(search_module.Search.open(path).trials),
    ),
    "search.tune": (["search.json"], lambda path: repr(search_module.Search.open(path).trials)),
}
FILES = [(name, file) for name, (files, _) in FOLDERS.items() for file in files]


@pytest.mark.parametrize(("name", "file"), FILES)
def test_fuzzed_model_folders_are_used_or_refused(models, tmp_path, name, file):
    before = models / name.split()[0]
    use, copy = FOLDERS[name][1], models / f"copy.{before.name}"

    def read(content: bytes) -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(before, copy)
        (copy / file).write_bytes(content)
        use(copy)

    fuzz((before / file).read_bytes(), read, 100)
    if file.endswith(".safetensors"):
        fuzz_arrays(before / file, read, 100)


def fuzz_arrays(path: Path, use: Callable[[bytes], Any], cases: int) -> None:
    """Try files of arrays with changed values, dtypes, shapes and metadata, and with right checksums."""
    with safetensors.safe_open(path, framework="numpy") as file:
        about, arrays = file.metadata()["fflm"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    @settings(max_examples=round(cases * TIMES), derandomize=TIMES <= 1, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: Any) -> None:
        changed_arrays, text = dict(arrays), about
        name = data.draw(st.sampled_from(sorted(arrays)))
        array = arrays[name].copy()
        how = data.draw(st.sampled_from(["number", "all", "type", "shape", "drop", "more", "about"]))
        kind = array.dtype.kind
        largest = 0 if kind == "f" else int(np.iinfo(array.dtype).max)
        odd = [np.nan, np.inf, -np.inf, 1e38, -1.0] if kind == "f" else [0, 1, min(10**9, largest), largest]
        if how == "number" and array.size:
            array.reshape(-1)[data.draw(st.integers(0, array.size - 1))] = data.draw(st.sampled_from(odd))
        elif how == "all":
            array[...] = data.draw(st.sampled_from(odd))
        elif how == "type":
            wanted = data.draw(st.sampled_from(["f2", "f4", "f8", "i4", "i8", "u4", "u1", "?"]))
            with np.errstate(invalid="ignore", over="ignore"):
                array = array.astype(wanted, casting="unsafe")
        elif how == "shape":
            array = data.draw(st.sampled_from([array[:0], array[:-1], array[..., None], array.reshape(-1), array.T, array[None]]))
        changed_arrays[name] = np.ascontiguousarray(array)
        if how == "drop":
            del changed_arrays[name]
        elif how == "more":
            changed_arrays["unheard-of"] = array
        elif how == "about":
            text = data.draw(changed_json(about.encode())).decode()
        target = path.with_name("changed.safetensors")
        metadata = {"fflm": text, "crc32": str(_crc32(changed_arrays, text))}
        safetensors.numpy.save_file(changed_arrays, target, metadata=metadata)
        content = target.read_bytes()
        target.unlink()
        succeeds_or_is_refused(lambda: use(content))

    run()


# Collections, and the jobs that filter them.


RECORDS = [
    {"id": number, "text": text} for number, text in enumerate(["The cat sat.", "", "Der Kater sa\u00df.", "the dog ran off"] * 5)
]
JSON_LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def _parquet() -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), sink)
    return sink.getvalue()


COLLECTIONS = {
    "docs.jsonl": JSON_LINES,
    "docs.jsonl.gz": gzip.compress(JSON_LINES),
    "docs.txt": "".join(f"{record['text']}\n" for record in RECORDS).encode(),
    "docs.txt.xz": lzma.compress("".join(f"{record['text']}\n" for record in RECORDS).encode()),
    "docs.parquet": _parquet(),
}


@pytest.fixture(scope="module")
def small_model(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filters") / "small.ngram"
    train_ngram_model(corpus.path, path, order=2)
    return path


@pytest.mark.parametrize("name", COLLECTIONS)
def test_fuzzed_collections_are_filtered_or_refused(small_model, tmp_path, name):
    """Every document that is counted as kept is written, and broken records never reach the output."""
    path, out = tmp_path / name, tmp_path / "out"

    def use(content: bytes) -> None:
        path.write_bytes(content)
        shutil.rmtree(out, ignore_errors=True)
        report = filter_collection(path, out, small_model, processes=1)
        if name == "docs.parquet":
            assert pyarrow.parquet.read_metadata(out / name).num_rows == report.kept
        else:
            kept = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix, bytes)((out / name).read_bytes())
            lines = kept.removesuffix(b"\n").split(b"\n") if kept else []
            assert len(lines) == report.kept
            assert ".txt" in name or all(isinstance(json.loads(line, parse_int=float)["text"], str) for line in lines)

    fuzz(COLLECTIONS[name], use, 200)


@pytest.mark.parametrize("name", ["job.json", "journal.jsonl", "report.json"])
def test_fuzzed_jobs_are_resumed_or_refused(small_model, tmp_path, monkeypatch, name):
    monkeypatch.setattr("fflm.filtering.job.SAVE_SECONDS", 0)
    monkeypatch.setattr("fflm.filtering.lines.BLOCK", 100)
    (tmp_path / "docs.jsonl").write_bytes(JSON_LINES)
    interrupted, out = tmp_path / "interrupted", tmp_path / "out"

    def stop(progress: Progress) -> None:
        if progress.writes and progress.fraction > 0.5 and name != "report.json":
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        filter_collection(tmp_path / "docs.jsonl", interrupted, small_model, keep=0.5, processes=1, progress=stop)

    def use(content: bytes) -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(interrupted, out)
        (out / ".filter" / name).write_bytes(content)
        resume_filter(out, processes=1)

    content = (interrupted / ".filter" / name).read_bytes()
    fuzz(content, use, 200, known=(content.replace(b"{", b'{"unheard-of": 1, ', 1),))
