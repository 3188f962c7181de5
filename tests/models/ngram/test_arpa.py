"""ARPA files: written and read without loss, variants of other programs, and damaged files."""

import gzip
import itertools

import numpy as np
import pytest
from test_ngram import FLOAT32_ERROR, all_contexts, model_of, write
from tiny import MODES

from fflm.errors import FflmError
from fflm.models.load import load_language_model as load
from fflm.models.ngram.arpa import import_arpa, read_arpa, write_arpa
from fflm.models.scoring import score


def test_arpa_round_trip(tmp_path):
    for (mode, text), order in itertools.product(MODES.items(), (1, 2, 4)):
        ids = np.random.default_rng(order).integers(0, 6 if text.ends else 5, 300)
        if text.mode == "sentence":
            ids = ids[~((ids == 1) & (np.roll(ids, 1) == 1))]
        model = model_of(ids, text, order)
        write_arpa(model, tmp_path / "model.arpa")
        back = read_arpa(tmp_path / "model.arpa", mode=text.mode, tokenizer=text.tokenizer)
        assert (back.text, back.vocabulary.words, back.order) == (text, model.vocabulary.words, order), mode
        contexts = all_contexts(model)
        np.testing.assert_allclose(
            back.log_probabilities(contexts), model.log_probabilities(contexts), rtol=0, atol=FLOAT32_ERROR
        )
        assert back.notes == []


def test_arpa_round_trip_of_words_with_white_space(tmp_path):
    model = model_of([0, 1, 2, 3, 1, 2], MODES["no ends"], 2, ["\u3000", " ", "\\", "ß"])
    write_arpa(model, tmp_path / "model.arpa.gz")
    (tmp_path / "model.arpa").write_bytes(gzip.decompress((tmp_path / "model.arpa.gz").read_bytes()))
    assert set(read_arpa(tmp_path / "model.arpa").vocabulary.words) == set(model.vocabulary.words)


HAND = """\\data\\
ngram 1=5
ngram 2=4
ngram 3=1

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.5
-0.8\t</s>
-0.4\tcat\t-0.25
-0.6\tsat\t-0.1

\\2-grams:
-0.3\t<s> cat\t-0.2
-0.2\tcat sat\t0.05
-0.7\tcat </s>
-0.1\tsat </s>

\\3-grams:
-0.05\t<s> cat sat

\\end\\
"""


def test_arpa_file_written_by_hand(tmp_path):
    model = read_arpa(write(tmp_path / "hand.arpa", HAND))
    assert model.vocabulary.words == ["<unk>", "</s>", "cat", "sat"]
    assert (model.order, model.text.mode, model.text.tokenizer.mode) == (3, "sentence", "space")
    for sentence, expected in {
        "cat sat": -0.3 - 0.05 + (0.05 - 0.1),  # cat sat </s> backs off to sat </s>
        "sat cat": (-0.5 - 0.6) + (-0.1 - 0.4) - 0.7,
        "cat dog": -0.3 + (-0.2 - 0.25 - 1.0) - 0.8,
        "cat cat sat": -0.3 + (-0.2 - 0.25 - 0.4) - 0.2 + (0.05 - 0.1),
    }.items():
        assert score(model, sentence).log10_probability == pytest.approx(expected, abs=1e-5), sentence


def same_scores(model, other):
    return [score(model, text).log_probability for text in HAND_TEXTS] == [
        score(other, text).log_probability for text in HAND_TEXTS
    ]


HAND_TEXTS = ("cat sat", "sat cat", "cat dog", "cat cat sat")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("<s> cat sat", "<s> cat sat\t0"),
        lambda text: text.replace("<s> cat sat", "<s> cat sat -0.0000"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\t", " "),
        lambda text: text.replace("<s> cat", "<s>\tcat").replace("cat sat", "cat   sat"),
        lambda text: text.replace("\n-", "\n\n -").replace("\n\\", "\n \\"),
        lambda text: "\ufeff" + text,
        lambda text: "=====\n## CMU-Cambridge\nThis is a 3-gram language model:\n<unk>\n\n\n" + text,
        lambda text: text.replace("<unk>", "<UNK>"),
        lambda text: text + "\nanything\n",
    ],
)
def test_arpa_variants_of_other_programs_give_same_model(change, tmp_path):
    changed = change(HAND)
    assert changed != HAND
    model = read_arpa(write(tmp_path / "hand.arpa", HAND))
    other = read_arpa(write(tmp_path / "variant.arpa", changed))
    assert other.vocabulary.words == model.vocabulary.words
    assert same_scores(model, other)


def test_arpa_unigrams_may_have_zero_back_off_weights(tmp_path):
    """The CMU toolkit writes such back-off weights."""
    content = "\\data\\\nngram 1=3\n\n\\1-grams:\n-0.6 <UNK>\t0.0000\n-0.3 a\t0.0000\n-0.6 </s>\t0.0000\n\n\\end\\\n"
    model = read_arpa(write(tmp_path / "cmu.arpa", content))
    assert score(model, "a b").log10_probability == pytest.approx(-1.5, abs=1e-5)


LITERAL = [
    "10\u00a0000",
    "\u3000",
    "a\u2028b",
    "ca\x0bt",
    "\x0c",
    "a\x1cb",
    "a\x85b",
    "\\",
    "\\u0020",
    "a\\u0020b",
    "\\data\\",
    "\\end\\",
    "\\2-grams:",
    "#",
    "ngram",
    "-0.5",
    "<UNK>",
    "<Unk>",
    "<S>",
    "\ufeff",
    "e\u0301",
]


@pytest.mark.parametrize("blank", [[], ["new york", " ", "\t", "\r"]], ids=["", "blanks"])
def test_arpa_words_are_literal_or_escaped(blank, tmp_path):
    """Words that the format can hold are literal; the others are escaped, and a comment says so."""
    words = LITERAL + blank
    ids = np.random.default_rng(0).integers(0, len(words) + 2, 500)
    model = model_of(ids, MODES["line ends"], 2, words)
    write_arpa(model, tmp_path / "a.arpa")
    lines = (tmp_path / "a.arpa").read_bytes().decode().split("\n")
    assert (lines[0] == "\\data\\") is not bool(blank)
    assert lines[0][0] == ("#" if blank else "\\")
    unigrams = lines[lines.index("\\1-grams:") + 1 : lines.index("\\2-grams:") - 1]
    if not blank:
        assert [line.split("\t")[1] for line in unigrams] == [*model.vocabulary.words, "<s>"]
    again = read_arpa(tmp_path / "a.arpa", mode="stream")
    assert again.vocabulary.words == model.vocabulary.words
    for name, array in model.tables.arrays().items():
        first = 1 if name == "back_offs" else 0  # the weight of the empty context is not used, and so not written
        np.testing.assert_array_equal(again.tables.arrays()[name][first:], array[first:], err_msg=name)


def test_compressed_arpa_without_suffixes_and_unknown(tmp_path):
    content = HAND.replace("1=5", "1=4").replace("-1.0\t<unk>\n", "").replace("2=4", "2=3").replace("-0.2\tcat sat\t0.05\n", "")
    with gzip.open(tmp_path / "hand.arpa.gz", "wt") as file:
        file.write(content)
    model = import_arpa(tmp_path / "hand.arpa.gz", tmp_path / "model")
    assert "no <unk>" in model.notes[0]
    assert score(model, "cat sat").log10_probability == pytest.approx(-0.3 - 0.05 - 0.1, abs=1e-5)
    assert score(model, "dog").log10_probability < -100
    assert load(tmp_path / "model").notes == model.notes


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("ngram 2=4", "ngram 3=4", 3, "is not `ngram 2=NUMBER`"),
        ("ngram 1=5", "ngram 1=6", 13, "follows 5 1-grams, but the header announces 6"),
        ("\\2-grams:", "\\4-grams:", 13, "is not \\\\2-grams:"),
        ("cat sat\t0.05", "cat dog\t0.05", 15, "has the word 'dog', which is not among the 1-grams"),
        ("-0.7\tcat </s>", "-0.7\tcat", 16, "is not a log-probability and 2 words"),
        ("-0.7\tcat </s>", "-0_7\tcat </s>", 16, "has a log-probability or back-off weight that is not a number"),
        ("-0.7\tcat </s>", "x\tcat </s>", 16, "has a log-probability or back-off weight that is not a number"),
        ("-0.7\tcat </s>", "0.7\tcat </s>", 16, "has a log-probability above 0"),
        ("-0.7\tcat </s>", "nan\tcat </s>", 16, "has a log-probability above 0, or a number that is not finite"),
        ("-99\t<s>\t-0.5", "-99\t<s>\t1e300", 8, "has a log-probability above 0, or a number that is not finite or too large"),
        ("\tsat\t-0.1", "\tcat\t-0.1", 11, "repeats a word"),
        ("<s> cat sat", "<s> cat sat -0.1", 20, "has a back-off weight, but n-grams of the highest order have none"),
        ("<s> cat sat", "<s> cat sat x", 20, "has a log-probability or back-off weight that is not a number"),
    ],
)
def test_damaged_arpa_line_is_refused(old, new, line, reason, tmp_path):
    path = write(tmp_path / "bad.arpa", HAND.replace(old, new, 1))
    with pytest.raises(FflmError, match=f"bad.arpa, line {line} {reason}"):
        read_arpa(path)


def test_long_word_of_damaged_arpa_line_is_abbreviated(tmp_path):
    path = write(tmp_path / "bad.arpa", HAND.replace("cat sat\t0.05", f"cat {'x' * 100_000}\t0.05", 1))
    with pytest.raises(FflmError, match=r"line 15 has the word 'x+[.]+x+', which is not among the 1-grams") as refused:
        read_arpa(path)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", r"bad\.arpa has no line \\data\\, so it is not an ARPA file"),
        (HAND.replace("\\data\\", "hello"), r"has no line \\data\\, so it is not an ARPA file"),
        (HAND[:100], "incomplete|follows|ends before"),
        (HAND.replace("\\end\\\n", ""), "ends before"),
        (HAND.replace("cat </s>", "cat sat"), "twice"),
    ],
)
def test_incomplete_arpa_file_is_refused(content, reason, tmp_path):
    with pytest.raises(FflmError, match=reason):
        import_arpa(write(tmp_path / "bad.arpa", content), tmp_path / "model")
    assert not (tmp_path / "model").exists()
