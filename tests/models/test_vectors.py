"""Word vectors: files are written and read without loss, and searches equal brute force."""

import contextlib
import gzip
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tiny import MODES, tiny_model

from fflm.cli import main
from fflm.errors import FflmError, FflmWarning
from fflm.files import writing_text
from fflm.models.neural.model import save_config
from fflm.models.vectors import read_vectors, vector_size
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import Tokenizer
from fflm.training.checkpoints import save_weights

WORDS = ("the", "cat", "dog", "sat", "on", "mat", ".")


@pytest.fixture(params=MODES)
def model(request):
    return tiny_model(MODES[request.param], WORDS)


def write(model, path):
    with path.open("w", encoding="utf-8") as file:
        return model.vectors.write(file)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_vectors_round_trip_is_exact(model, tmp_path):
    model.parameters.embeddings[2] = [np.float32(1) / 3, 1e-38, -3.4028235e38, 0]
    assert write(model, tmp_path / "v") == []
    first, *lines = (tmp_path / "v").read_text(encoding="utf-8").splitlines()
    assert first == f"{len(model.vocabulary) + 1} 4"
    assert [line.split(" ")[0] for line in lines] == [*model.vocabulary.words, "<s>"]
    assert all(re.fullmatch(r"\S+( \S+){4}", line) for line in lines)
    read = read_vectors(tmp_path / "v", model.vocabulary, 4)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, model.parameters.embeddings)


def test_vectors_file_omits_words_with_ascii_white_space(tmp_path):
    """ASCII white space separates fields of the format; a word may contain other white space."""
    model = tiny_model(TextSettings(Tokenizer("char")), ("a", " ", "é", "\u3000", "\t", "10\u00a0000", "\x0b", "\u2028"))
    assert set(write(model, tmp_path / "v")) == {" ", "\t", "\x0b"}
    read = read_vectors(tmp_path / "v", model.vocabulary, 4)
    missing = np.isnan(read).all(axis=1)
    assert {model.vocabulary.words[row] for row in np.flatnonzero(missing)} == {" ", "\t", "\x0b"}
    np.testing.assert_array_equal(read[~missing], model.parameters.embeddings[~missing])


def test_read_compressed_vectors(model, tmp_path):
    write(model, tmp_path / "v")
    packed = gzip.compress((tmp_path / "v").read_bytes(), mtime=0)
    (tmp_path / "v.gz").write_bytes(packed)
    np.testing.assert_array_equal(read_vectors(tmp_path / "v.gz", model.vocabulary, 4), model.parameters.embeddings)
    assert vector_size(tmp_path / "v.gz") == 4
    for ending in (".bz2", ".xz", ".zst"):
        with writing_text(tmp_path / f"v{ending}") as file:
            model.vectors.write(file)
        assert len((tmp_path / f"v{ending}").read_bytes()) < len((tmp_path / "v").read_bytes())
        (tmp_path / f"v{ending}").rename(tmp_path / "unnamed")
        np.testing.assert_array_equal(read_vectors(tmp_path / "unnamed", model.vocabulary, 4), model.parameters.embeddings)
    (tmp_path / "v.gz").write_bytes(packed[:-9])
    with pytest.raises(FflmError, match=r"v\.gz: damaged or truncated gzip file"):
        read_vectors(tmp_path / "v.gz", model.vocabulary, 4)


@pytest.mark.parametrize("header", ["3 4\n", ""], ids=["word2vec", "GloVe"])
@pytest.mark.parametrize("end", ["\n", " \n", "\r\n", " \r\n"], ids=repr)
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["", "BOM"])
@pytest.mark.parametrize("separator", [" ", "\t", "  "], ids=repr)
def test_read_vectors_of_other_programs(model, tmp_path, header, end, start, separator):
    lines = ["cat 1 2 3 4", "10\u00a0000\u2028 5 6 7 8", "dog -1e-3 .5 2. 1E2"]
    content = start + (header + "".join(line + end for line in lines)).replace(" ", separator)
    (tmp_path / "v").write_bytes(content.encode())
    assert vector_size(tmp_path / "v") == 4
    read = read_vectors(tmp_path / "v", model.vocabulary, 4)
    cat, dog = model.vocabulary.id("cat"), model.vocabulary.id("dog")
    np.testing.assert_array_equal(read[[cat, dog]], np.array([[1, 2, 3, 4], [-1e-3, 0.5, 2, 100]], np.float32))
    assert np.isnan(np.delete(read, [cat, dog], axis=0)).all()


GOOD = b"cat 1 2 3 4\ndog 5 6 7 8\n"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b". . . 1 2 3 4", "has 6 numbers, not 4"),
        (b"sat 1 2 3", "has 3 numbers, not 4"),
        (b"1 2 3 4", "has 3 numbers, not 4"),
        (b" 1 2 3 4", "has 3 numbers, not 4"),
        (b"sat 1 2 x 4", "has a field that is not a number"),
        (b"sat 1 2 nan 4", "has a number that is not finite"),
        (b"sat 1 2 -inf 4", "has a number that is not finite"),
        (b"sat 1 2 1e39 4", "has a number that is not finite"),
        (b"\xe7\xbe 1 2 3 4", "is not UTF-8"),
        (b"cat 9 9 9 9", "repeats a word"),
        (b"", "is blank"),
        (b" \t", "is blank"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("header", [True, False])
def test_invalid_line_of_vectors_is_skipped_with_warning(model, tmp_path, line, fault, place, header):
    lines = GOOD.splitlines()
    if fault == "repeats a word" and not place:
        lines[:1], line = [line], lines[0]
        place = 1
    expected = {each.split()[0].decode(): [float(number) for number in each.split()[1:]] for each in lines}
    lines.insert(place, line)
    count = sum(bool(each.split()) for each in lines)
    (tmp_path / "v").write_bytes(b"".join(each + b"\n" for each in [b"%d 4" % count] * header + lines))
    assert vector_size(tmp_path / "v") == 4
    with pytest.warns(FflmWarning) as warned:
        read = read_vectors(tmp_path / "v", model.vocabulary, 4)
    assert [str(each.message) for each in warned] == [f"{tmp_path / 'v'}: 1 line was skipped (line {1 + header + place} {fault})"]
    for row, word in enumerate(model.vocabulary.words):
        np.testing.assert_array_equal(read[row], expected.get(word, [np.nan] * 4))


@pytest.mark.parametrize("announced", ["1 vectors of size 4", "3 vectors of size 4", "2 vectors of size 5"])
def test_wrong_header_of_vectors_gives_warning(model, tmp_path, announced):
    (tmp_path / "v").write_bytes(announced.replace("vectors of size ", "").encode() + b"\n" + GOOD + b"\n")
    assert vector_size(tmp_path / "v") == 4
    message = f"1 line was skipped .*; the first line announces {announced}, but there are 2 of size 4"
    with pytest.warns(FflmWarning, match=message):
        assert np.isfinite(read_vectors(tmp_path / "v", model.vocabulary, 4)).all(axis=1).sum() == 2


def test_skipped_lines_of_vectors_are_counted(model, tmp_path):
    (tmp_path / "v").write_bytes(b"zebra 1 2 3 4\n" * 1300 + b"a b c d e 1\n" * 1200 + GOOD)
    with pytest.warns(FflmWarning, match=r"1,200 lines were skipped \(line 1,301 has 5 numbers, not 4\)"):
        read_vectors(tmp_path / "v", model.vocabulary, 4)


BINARY = b"2 4\n" + b"".join(word + b" " + np.arange(4, dtype="<f4").tobytes() + b"\n" for word in (b"cat", b"dog"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat 1 2 3\n", "has vectors of size 3, not 4: give `embedding=3`"),
        (b"2 3\ncat 1 2 3\ndog 1 2 3\n. . 1 2 3\n", "has vectors of size 3, not 4: give `embedding=3`"),
        (
            b"cat 1 2 3 x\ndog 1 2 3 x\nsat 1 2 3 4",
            r"2 of 3 lines of .* are not vectors \(line 1 has a field that is not a number\)",
        ),
        (b"1 4\nzebra 1 2 3 4\n", "none of the vocabulary's words"),
        (b"1 4\n<unk> 1 2 3 4\n", "none of the vocabulary's words"),
        (b"", "has no vectors: give a text file of vectors"),
        (b"\n\n", "has no vectors: give a text file of vectors"),
        (b"2 4\n", "has no vectors: give a text file of vectors"),
        (b"the cat sat on the mat .\n" * 2000, "has no vectors: give a text file of vectors"),
        (BINARY, r"has no vectors: .* \(not its binary format\)"),
        (b"9" * 5000 + b" 4\n", "has vectors of size 1, not 4"),
        ("1 4\ncat 1 2 3 4\n".encode("utf-16"), "has no vectors"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_invalid_vectors_file_is_refused(model, tmp_path, content, message):
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(FflmError, match=message):
        read_vectors(tmp_path / "v", model.vocabulary, 4)


def test_text_file_is_refused_without_reading_all_of_it(model, tmp_path):
    (tmp_path / "v.gz").write_bytes(gzip.compress(b"a line of text\n" * 200_000, mtime=0)[:-9])  # only its end is truncated
    with pytest.raises(FflmError, match="has no vectors"):
        read_vectors(tmp_path / "v.gz", model.vocabulary, 4)


def test_missing_vectors_file_is_refused(model, tmp_path):
    with pytest.raises(FflmError, match="No such file"):
        read_vectors(tmp_path / "v", model.vocabulary, 4)


@given(st.binary(max_size=60))
def test_read_vectors_accepts_or_refuses_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    vocabulary = tiny_model(MODES["no ends"], ("a", "1")).vocabulary
    with contextlib.suppress(FflmError), warnings.catch_warnings(action="ignore"):
        assert read_vectors(path, vocabulary, 1).shape == (len(vocabulary) + 1, 1)


def test_neighbours_equal_brute_force_search(model):
    vectors = {word: model.vectors[word].astype(np.float64) for word in WORDS}
    expected = sorted(((cosine(vectors["cat"], vectors[word]), word) for word in WORDS if word != "cat"), reverse=True)
    found = model.neighbours("cat", 100)
    assert [word for word, _ in found] == [word for _, word in expected]
    np.testing.assert_allclose([value for _, value in found], [value for value, _ in expected], rtol=1e-6)
    assert model.neighbours("cat", 2) == found[:2]


def test_analogies_equal_brute_force_search(model):
    unit = {word: model.vectors[word] / np.linalg.norm(model.vectors[word]) for word in WORDS}
    target = unit["dog"] - unit["cat"] + unit["sat"]
    rest = [word for word in WORDS if word not in ("cat", "dog", "sat")]
    expected = sorted(((cosine(target, unit[word]), word) for word in rest), reverse=True)
    found = model.vectors.analogy("cat", "dog", "sat", 10)
    assert [word for word, _ in found] == [word for _, word in expected]
    np.testing.assert_allclose([value for _, value in found], [value for value, _ in expected], rtol=1e-5)


def test_analogy_of_man_woman_king_is_queen():
    model = tiny_model(MODES["no ends"], ("man", "woman", "king", "queen", "cat"))
    points = {"man": (1, 0, 0, 0), "woman": (1, 1, 0, 0), "king": (1, 0, 1, 0), "queen": (1, 1, 1, 0), "cat": (0, 0, 0, 1)}
    for word, point in points.items():
        model.parameters.embeddings[model.vocabulary.id(word)] = point
    assert model.vectors.analogy("man", "woman", "king")[0][0] == "queen"


def test_vectors_look_up_words_as_tokenized(model):
    lower = tiny_model(TextSettings(Tokenizer(lowercase=True)), WORDS)
    assert lower.neighbours("CAT") == lower.neighbours("cat")
    assert "CAT" in lower.vectors
    assert "CAT" not in model.vectors
    for word in ("CAT", "</s>", "<unk>"):
        with pytest.raises(FflmError, match="not in the vocabulary"):
            model.neighbours(word)


def test_zero_vectors_have_cosine_zero():
    model = tiny_model(MODES["no ends"], ("a", "b", "c"))
    model.parameters.embeddings[...] = 0
    assert [value for _, value in model.neighbours("a")] == [0, 0]
    assert tiny_model(MODES["no ends"], ("a",)).neighbours("a") == []


# The command line.


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a command with a saved model."""
    model = tiny_model(TextSettings(Tokenizer("char")), ("a", "b", "c", "d", " "))
    path = tmp_path / "tiny.model"
    path.mkdir()
    save_config(path, model.config, model.text, model.vocabulary, {})
    save_weights(path, model.parameters, {})

    def run(*arguments):
        return CliRunner().invoke(main, [arguments[0], "-m", str(path), *arguments[1:]])

    run.model = model
    return run


def test_vectors_command_exports(run, tmp_path):
    result = run("vectors")
    assert result.exit_code == 0
    assert result.stderr == "left out 1 words with white space: ' '\n"
    assert result.stdout.startswith("7 4\n")
    assert run("vectors", "-q", "-o", str(tmp_path / "v")).output == ""
    assert (tmp_path / "v").read_text(encoding="utf-8") == result.stdout
    refused = run("vectors", "-o", str(tmp_path / "v"))
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert run("vectors", "-o", str(tmp_path / "v"), "--overwrite", "--json").exit_code == 0
    values = json.loads((tmp_path / "v").read_text(encoding="utf-8"))
    assert list(values) == [*run.model.vocabulary.words, "<s>"]
    np.testing.assert_array_equal(np.array(list(values.values()), np.float32), run.model.parameters.embeddings)


def test_neighbours_and_analogy_commands(run):
    neighbours = json.loads(run("neighbours", "a", "--top", "2", "--json").stdout)
    assert [(each["word"], each["cosine"]) for each in neighbours["neighbours"]] == run.model.neighbours("a", 2)
    answers = json.loads(run("analogy", "a", "b", "c", "--json").stdout)
    assert [(each["word"], each["cosine"]) for each in answers["answers"]] == run.model.vectors.analogy("a", "b", "c")
    for arguments in (["neighbours", "a"], ["analogy", "a", "b", "c"]):
        lines = run(*arguments).stdout.splitlines()
        assert all(re.fullmatch(r" +-?\d\.\d{4}  (\S|' ')", line) for line in lines)
    lost = run("neighbours", "x")
    assert (lost.exit_code, lost.stdout) == (1, "")
    assert lost.stderr.startswith("error: 'x' is not in the vocabulary")


def test_train_commands_warn_of_skipped_vectors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("the cat sat on the mat .\n" * 40)
    Path("texts.tsv").write_text("a\tthe cat sat\nb\ton the mat\n" * 20)
    Path("v").write_text(". . . 1 2\nthe 1 2\ncat 3 4\n")
    small = ["-q", "--epochs", "1", "--vectors", "v", "-o"]
    for line in (
        ["train", "text", "--embedding", "2", "--hidden", "2", *small, "lm"],
        ["classify", "train", "texts.tsv", *small, "c"],
    ):
        result = CliRunner().invoke(main, line)
        assert (result.exit_code, result.stderr) == (0, "warning: v: 1 line was skipped (line 1 has 4 numbers, not 2)\n")
