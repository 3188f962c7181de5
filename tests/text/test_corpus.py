"""Tokenized corpora are checked when they are opened and verified."""

import json

import numpy as np
import pytest

from fflm.errors import FflmError
from fflm.text.corpus import Corpus
from fflm.text.holdout import Count
from fflm.text.settings import TextSettings
from fflm.text.tokenize import TextSource, tokenize
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import VocabularyRule

ALL_WORDS, STREAM = VocabularyRule(min_count=1), TextSettings()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat\n\nthe dog <s> </s> ran\na cat and the dog\n", encoding="utf-8")
    return path


def edit_corpus_json(change):
    def damage(folder):
        about = json.loads((folder / "corpus.json").read_text("utf-8"))
        change(about)
        (folder / "corpus.json").write_text(json.dumps(about), encoding="utf-8")

    return damage


def truncate_file(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


@pytest.mark.parametrize(
    "damage",
    [
        truncate_file("train.npy", -1),
        truncate_file("train.npy", 60),
        truncate_file("train.npy", 0),
        truncate_file("vocabulary.tsv", -3),
        truncate_file("corpus.json", 30),
        lambda folder: (folder / "train.npy").unlink(),
        lambda folder: (folder / "vocabulary.tsv").unlink(),
        lambda folder: (folder / "corpus.json").unlink(),
        lambda folder: (folder / "corpus.json").write_text("[]"),
        lambda folder: (folder / "train.npy").write_bytes((folder / "train.npy").read_bytes() + b"\0\0"),
        lambda folder: np.save(folder / "train.npy", np.zeros(17, np.int64)),
        lambda folder: np.save(folder / "train.npy", np.zeros((17, 1), np.uint16)),
        lambda folder: np.save(folder / "train.npy", np.array([{}] * 17), allow_pickle=True),
        edit_corpus_json(lambda about: about.update(format="something else")),
        edit_corpus_json(lambda about: about.update(version=2)),
        edit_corpus_json(lambda about: about.update(parts={})),
        edit_corpus_json(lambda about: about["parts"]["train"].update(tokens=16)),
        edit_corpus_json(lambda about: about["parts"]["train"].pop("sha256")),
        edit_corpus_json(lambda about: about["parts"]["train"].update(characters=99)),
        edit_corpus_json(lambda about: about["parts"]["train"].update(characters=-1)),
        edit_corpus_json(lambda about: about["parts"]["train"].update(tokens=10**18)),
        edit_corpus_json(lambda about: about["vocabulary"].update(rule="others")),
        edit_corpus_json(lambda about: about.update(sha256="")),
        edit_corpus_json(lambda about: about["vocabulary"].update(size=3)),
        edit_corpus_json(lambda about: about["vocabulary"].update(ends=False)),
        edit_corpus_json(lambda about: about["settings"].update(line_ends=False)),
        edit_corpus_json(lambda about: about.pop("settings")),
    ],
)
def test_open_refuses_damaged_corpus(text, tmp_path, damage):
    tokenize(TextSource([text], TextSettings(Tokenizer("space")), ALL_WORDS, None), tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(FflmError, match=r"damaged|not a tokenized corpus|cannot read|version"):
        Corpus.open(tmp_path / "out")


def test_corpus_without_checksum_of_corpus_json_opens(text, tmp_path):
    before = tokenize(TextSource([text], STREAM, ALL_WORDS, None), tmp_path / "out")
    edit_corpus_json(lambda about: about.pop("sha256"))(tmp_path / "out")
    after = Corpus.open(tmp_path / "out")
    assert after.fingerprint == before.fingerprint
    assert after.conditions == before.conditions


def test_verify_detects_changed_ids(text, tmp_path):
    tokenize(TextSource([text], STREAM, ALL_WORDS, Count(3)), tmp_path / "out")
    ids = np.load(tmp_path / "out" / "valid.npy")
    ids[1] += 1
    np.save(tmp_path / "out" / "valid.npy", ids)
    corpus = Corpus.open(tmp_path / "out")
    with pytest.raises(FflmError, match=r"valid\.npy is damaged"):
        corpus.verify()
