"""Subwords: every text is made of them, and corpora and models of subwords hold what they need."""

import json
import math
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from command import fflm
from hypothesis import given
from hypothesis import strategies as st

import fflm as library
from fflm.errors import FflmError
from fflm.models.generation import read_prefix, render
from fflm.text import subwords
from fflm.text.corpus import Corpus
from fflm.text.holdout import Count
from fflm.text.settings import TextSettings
from fflm.text.subwords import Subwords
from fflm.text.tokenize import TextSource, _find_token, tokenize
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import VocabularyRule

LINES = ["the cat sat on the mat", "", "  the dog's mat, the cat's mat", "猫坐在垫子上，猫 🐈"] * 5
TRAINED = Subwords.train([LINES], 300, 2)
SUBWORDS = TextSettings(Tokenizer("subword"))
RULE = VocabularyRule(max_size=300)


@given(st.text(alphabet=st.one_of(st.characters(codec="utf-8", exclude_characters="\n"), st.sampled_from(" \tcat猫🐈\0\r"))))
def test_subwords_of_a_line_joined_are_the_line(line):
    tokens = TRAINED.split(line)
    assert TRAINED.join(tokens) == line
    assert set(tokens) <= set(TRAINED.words)
    assert TRAINED.split("the") == TRAINED.split("on the")[-1:] == ["Ġthe"]


def test_subwords_contain_all_bytes_and_at_most_as_many_as_asked_for():
    assert len(Subwords.train([LINES], 270, 2).words) == 270
    assert (
        len(Subwords.train([LINES], None, 2).words) == len(Subwords.train([LINES], 2**40, 2).words) == len(TRAINED.words) <= 300
    )
    assert len(Subwords.train([LINES], None, 99).words) == 256
    assert set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) <= set(TRAINED.words)


def test_unpaired_surrogates_are_split_like_replacement_characters():
    assert TRAINED.split("a\ud800") == TRAINED.split("a\ufffd")


def test_text_of_subwords_crosses_characters_and_lines():
    tokenizer = Tokenizer("subword", subwords=TRAINED.sha256)
    text = "the 犬\n\n  cat"
    assert tokenizer.detokenize(tokenizer.split(text)) == text
    assert [tokenizer.readable(token) for token in ["Ġthe", "s", "ç"]] == [" the", "s", "ç"]


def test_training_gives_same_file_in_each_process_and_a_fork_after_it_is_silent():
    program = (
        "import os; from fflm.text.subwords import Subwords\n"
        f"one = Subwords.train([{LINES}], 300, 2)\n"
        "print(one.sha256, one.split('the cat'), flush=True)\n"
        "child = os.fork()\n"
        "if child: os.waitpid(child, 0)\n"
        "else: print(one.split('the cat'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""
    assert done.stdout == f"{TRAINED.sha256} ['Ġthe', 'Ġcat']\n['Ġthe', 'Ġcat']\n"


def test_settings_bring_their_subwords_to_another_process(monkeypatch):
    content = pickle.dumps(TextSettings(Tokenizer("subword", subwords=TRAINED.sha256)))
    monkeypatch.setattr(subwords, "_known", {})
    settings = pickle.loads(content)
    assert settings.tokens("the cat\n") == ["Ġthe", "Ġcat", "\n"]
    monkeypatch.setattr(subwords, "_known", {})
    with pytest.raises(FflmError, match="must be trained first"):
        Tokenizer("subword", subwords=TRAINED.sha256).split("a")


def test_missing_library_is_named_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(FflmError, match=r"^subwords need the library tokenizers: install it with `pip install .*subwords"):
        Subwords(TRAINED.content).split("a")


NO_MODEL = b'{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}'


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"the\ncat\n", b"[1]", NO_MODEL])
def test_file_that_is_no_tokenizer_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(FflmError, match=r"^.*tokenizer.json is not a tokenizer.json of [^\n]*: give another file$"):
        Subwords.read(path)


def test_tokenizer_of_another_model_reads_special_tokens_as_text_and_always_splits_the_same(tmp_path):
    other = tokenizers.Tokenizer.from_buffer(TRAINED.content)
    other.add_special_tokens(["<|end|>"])
    other.enable_truncation(2)
    other.enable_padding(length=9)
    other.model.dropout = 0.9
    other.save(str(path := tmp_path / "tokenizer.json"))
    given = Subwords.read(path)
    assert given.words == TRAINED.words
    for line in ("the cat's mat", "the<|end|>"):
        assert given.split(line) == TRAINED.split(line)


def test_unknown_text_of_another_models_words_is_unknown(tmp_path):
    words = {"[UNK]": 0, "cat": 1, "##s": 2, "the": 3}
    other = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    other.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    other.decoder = tokenizers.decoders.WordPiece()
    other.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text").write_text("the cats\nthe dog\n", encoding="utf-8")
    rule = VocabularyRule(words=tmp_path / "tokenizer.json")
    corpus = tokenize(TextSource([tmp_path / "text"], SUBWORDS, rule, valid=None), tmp_path / "ids")
    assert corpus.vocabulary.decode(corpus.parts["train"].ids[:]) == ["the", "cat", "##s", "\n", "the", "<unk>", "\n"]
    assert corpus.vocabulary.words == ["<unk>", "</s>", "the", "##s", "cat"]
    assert corpus.settings.tokenizer.detokenize(["the", "cat", "##s", "\n", "the"]) == "the cats\nthe"


UNKNOWN = "[UNK]"


def made_elsewhere(path, model, pre_tokenizer=None):
    """Write the tokenizer.json of a model; return its path."""
    other = tokenizers.Tokenizer(model)
    other.pre_tokenizer = pre_tokenizer or tokenizers.pre_tokenizers.Whitespace()
    other.save(str(path / "tokenizer.json"))
    return path / "tokenizer.json"


BYTES = {letter: number for number, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
SPELLED = {f"<0x{byte:02X}>": byte for byte in range(256)}
BYTE_LEVEL = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
KEEPING = [
    (tokenizers.models.BPE(BYTES, []), BYTE_LEVEL),
    (tokenizers.models.BPE(SPELLED, [], byte_fallback=True), None),
    (tokenizers.models.BPE({UNKNOWN: 0, "t": 1}, [], unk_token=UNKNOWN), None),
    (tokenizers.models.Unigram([(UNKNOWN, 0.0), ("t", -1.0)], 0), None),
]
LOSING = [
    (tokenizers.models.BPE({"t": 0, "h": 1, "e": 2}, []), None),
    (tokenizers.models.BPE(BYTES, []), None),
    (tokenizers.models.BPE(BYTES, [], continuing_subword_prefix="#"), BYTE_LEVEL),
    (tokenizers.models.BPE({name: id_ for name, id_ in SPELLED.items() if id_ < 255}, [], byte_fallback=True), None),
    (tokenizers.models.BPE({"t": 0}, [], unk_token=UNKNOWN), None),
    (tokenizers.models.WordPiece({"the": 0}, unk_token=UNKNOWN), None),
    (tokenizers.models.Unigram([("t", -1.0)], None), None),
]


@pytest.mark.parametrize(("model", "pre_tokenizer"), KEEPING)
def test_tokenizer_of_another_model_that_keeps_all_text_is_read(model, pre_tokenizer, tmp_path):
    given = Subwords.read(made_elsewhere(tmp_path, model, pre_tokenizer))
    assert given.split("猫t")
    assert UNKNOWN not in given.words


@pytest.mark.parametrize(("model", "pre_tokenizer"), LOSING)
def test_tokenizer_of_another_model_that_would_lose_text_is_refused(model, pre_tokenizer, tmp_path):
    with pytest.raises(FflmError, match=r"tokenizer.json has neither a token for unknown text nor all bytes"):
        Subwords.read(made_elsewhere(tmp_path, model, pre_tokenizer))


def test_failures_of_the_library_are_one_line(tmp_path):
    content = made_elsewhere(tmp_path, tokenizers.models.WordPiece({"the": 0}, unk_token=UNKNOWN)).read_bytes()
    with pytest.raises(FflmError, match=r"^tokenizer.json cannot split this text \(WordPiece [^\n]*\): give another file$"):
        Subwords(content).split("the cat")


def part_text(corpus, name):
    return corpus.settings.tokenizer.detokenize(corpus.vocabulary.decode(corpus.parts[name].ids[:]))


@pytest.mark.parametrize("mode", ["stream", "sentence"])
def test_parts_of_subwords_are_the_texts_of_the_parts_of_words(mode, tmp_path):
    lines = [f"{'the cat sat  on' if number % 3 else ''} {number}" for number in range(40)]
    (tmp_path / "text").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = {"inputs": [tmp_path / "text"], "rule": VocabularyRule(1, source="all"), "valid": "10%", "test": Count(7)}
    words = tokenize(TextSource(settings=TextSettings(mode=mode), **source), tmp_path / "words")
    made = tokenize(TextSource(settings=TextSettings(Tokenizer("subword"), mode), **source), tmp_path / "subwords")
    for name in words.parts:
        expected = words.vocabulary.decode(words.parts[name].ids[:])
        assert Tokenizer().split(part_text(made, name)) in (expected, [*expected, "\n"]), name
    assert sum(part.words for part in made.parts.values()) == sum(len(line.split()) for line in lines)


@pytest.mark.parametrize("settings", [TextSettings(), TextSettings(line_ends=False), TextSettings(mode="sentence")])
def test_text_is_cut_at_the_beginning_of_a_line_or_between_words(settings):
    text, words = "a b\n\n  c d\n e", ["a", "b", "c", "d", "e"]
    cuts = {word: _find_token(text, settings.tokens(text).index(word), settings) for word in words}
    assert [text[:stop] for stop, _ in cuts.values()] == ["", "a", "a b\n\n", "a b\n\n  c", "a b\n\n  c d\n"]
    assert [text[start:] for _, start in cuts.values()] == [text, "b\n\n  c d\n e", "  c d\n e", "d\n e", " e"]


def test_subwords_are_not_trained_on_held_out_text(tmp_path):
    (tmp_path / "text").write_text("the cat sat on the mat\n" * 30 + "xylophone\n" * 20, encoding="utf-8")
    source = TextSource([tmp_path / "text"], SUBWORDS, valid=Count(40))
    corpus = tokenize(source, tmp_path / "ids")
    assert part_text(corpus, "valid") == "xylophone\n" * 20
    assert not any("yl" in word for word in corpus.vocabulary.words)
    counted = tokenize(TextSource([tmp_path / "text"], SUBWORDS, VocabularyRule(source="all"), Count(40)), tmp_path / "all")
    assert "Ġxylophone" in counted.vocabulary


def test_one_line_is_cut_between_words_and_encodings_and_files_give_the_same(tmp_path, monkeypatch):
    text = "die Größe der Straße " * 30
    (tmp_path / "latin").write_text(text, encoding="latin-1")
    (tmp_path / "valid").write_text("Straße\n", encoding="latin-1")
    latin = TextSource([tmp_path / "latin"], SUBWORDS, RULE, [tmp_path / "valid"], "10%", "latin-1")
    corpus = tokenize(latin, tmp_path / "ids")
    assert part_text(corpus, "valid") == "Straße\n"
    assert part_text(corpus, "train").rstrip() + " " + part_text(corpus, "test") == f"{text}\n"
    assert len(corpus.vocabulary) <= 300
    with (tmp_path / "latin").open(encoding="latin-1") as file:
        monkeypatch.setattr(sys, "stdin", file)
        piped = tokenize(TextSource(["-"], SUBWORDS, RULE, [tmp_path / "valid"], "10%", "latin-1"), tmp_path / "piped")
    assert piped.fingerprint == corpus.fingerprint


def test_corpus_holds_its_subwords_and_refuses_damaged_ones(tmp_path, monkeypatch):
    (tmp_path / "text").write_text("\n".join(LINES), encoding="utf-8")
    tokenize(TextSource([tmp_path / "text"], SUBWORDS, RULE, None), tmp_path / "ids", processes=1)
    monkeypatch.setattr(subwords, "_known", {})
    again = Corpus.open(tmp_path / "ids")
    assert part_text(again, "train") == "\n".join(LINES) + "\n"
    file = tmp_path / "ids" / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b'"the"', b'"eht"') + b" ")
    with pytest.raises(FflmError, match=r"tokenizer.json is damaged \(wrong sha256"):
        Corpus.open(tmp_path / "ids")
    file.unlink()
    with pytest.raises(FflmError, match=r"cannot read .*tokenizer.json"):
        Corpus.open(tmp_path / "ids")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_size": 257}, r"give a `max_size` of at least 258"),
        ({"max_size": 256, "line_ends": False}, r"at least 257"),
        ({"words": "text"}, r"is not a tokenizer.json"),
    ],
)
def test_impossible_subwords_are_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("the cat\n" * 30, encoding="utf-8")
    with pytest.raises(FflmError, match=message):
        library.train_ngram("text", "a.ngram", tokenizer="subword", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_classifier_refuses_subwords(tmp_path):
    (tmp_path / "texts.tsv").write_text("good\tthe cat\nbad\tthe dog\n", encoding="utf-8")
    with pytest.raises(FflmError, match=r"give another `tokenizer`"):
        library.train_classifier(tmp_path / "texts.tsv", tmp_path / "model", tokenizer="subword")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return an n-gram model of sentences of subwords, loaded from its folder."""
    folder = tmp_path_factory.mktemp("subwords")
    (folder / "text").write_text("\n".join(LINES), encoding="utf-8")
    options = {"tokenizer": "subword", "max_size": 300, "mode": "sentence", "order": 3, "valid": 0}
    library.train_ngram(folder / "text", folder / "sub.ngram", **options)
    return library.load(folder / "sub.ngram"), folder


def test_every_text_has_a_probability_by_which_models_compare(model):
    model, _ = model
    text = "the xylophone\u3000<unk> 𐍈 <s>\tcat"
    score = model.score(text)
    assert score.unknown == 0
    assert (score.bytes, score.words) == (len(text.encode()) + 1, len(re.split(r"\s+", text)))
    assert score.word_perplexity == pytest.approx(math.exp(-score.log_probability / 6))
    assert score.byte_perplexity == pytest.approx(2**score.bits_per_byte)
    assert model.scores([text, ""])[0] == pytest.approx(score.log_probability)
    assert np.exp(model.log_probabilities(np.zeros((1, 2), np.int32))).sum() == pytest.approx(1, abs=1e-6)


def test_generated_text_continues_the_prefix_as_it_is(model):
    model, _ = model
    for prefix in ("the ca", "the", "猫", "the cat  ", ""):
        for text in model.generate(prefix, samples=3, seed=1, length=6):
            assert text.startswith(prefix.rstrip(" "))
            assert "\ufffd" not in text
    start = read_prefix(model, "the ")
    cat = library.models.generation.Continuation([model.vocabulary.id("Ġcat")], 0.0, ended=False)
    assert render(model, start, cat) == "the cat"
    half = library.models.generation.Continuation([model.vocabulary.id(token) for token in ("Ġcat", "ç")], 0.0, ended=False)
    assert render(model, start, half) == "the cat"
    assert model.generate("the", beams=2, length=5)[0].startswith("the")


def test_kenlm_reads_words_of_subwords(model):
    from fflm import kenlm

    model, folder = model
    reader, text = kenlm.Model(str(folder / "sub.ngram")), "the cat sat"
    assert reader.score(text) == pytest.approx(model.scores([text])[0] / math.log(10))
    assert reader.score(text) == pytest.approx(sum(each[0] for each in reader.full_scores(text)))
    assert reader.score("the  cat sat ") == pytest.approx(reader.score(text))


def test_commands_show_text_and_write_subwords(model):
    _, folder = model
    shown = fflm("next", "-m", "sub.ngram", "--prefix", "the", "--top", 3, folder=folder)
    assert "  ' cat'" in shown.stdout
    found = json.loads(fflm("next", "-m", "sub.ngram", "--prefix", "the", "--json", folder=folder).stdout)
    assert "Ġcat" in [each["word"] for each in found["words"]]
    words = fflm("score", "-m", "sub.ngram", "--by", "word", folder=folder, input="the cats\n").stdout
    assert re.search(r"\n +-[\d.]+  ' cat'\n +-[\d.]+  s\n +-[\d.]+  </s>\n", words)
    assert re.search(r"\nbits per byte +[\d.]+ \(perplexity [\d.]+\)\nword perplexity +[\d.,]+ \(per word", words)
    lines = fflm("score", "-m", "sub.ngram", "--follow", folder=folder, input="the cat\n猫\n").stdout
    assert len(lines.split()) == 2
    exported = fflm("ngram", "export", "-m", "sub.ngram", "-o", "sub.arpa", folder=folder)
    assert exported.returncode == 0, exported.stderr
    assert "\tĠthe Ġcat" in (folder / "sub.arpa").read_text(encoding="utf-8")
    refused = fflm("neighbours", "-m", "sub.ngram", "the", folder=folder)
    assert refused.returncode == 1


def test_network_of_subwords_trains_on_other_text_and_has_vectors(tmp_path):
    (tmp_path / "text").write_text("\n".join(LINES * 4), encoding="utf-8")
    (tmp_path / "other").write_text("a xylophone\n" * 20, encoding="utf-8")
    shape = {"hidden": (8,), "embedding": 6, "window": 3, "averages": ()}
    options = {"tokenizer": "subword", "max_size": 300, "epochs": 1}
    first = library.train(tmp_path / "text", tmp_path / "first.model", **shape, **options)
    again = library.train(tmp_path / "other", tmp_path / "again.model", initial=tmp_path / "first.model", epochs=1)
    assert again.text == first.text
    assert again.vocabulary.words == first.vocabulary.words
    assert (tmp_path / "again.model" / "tokenizer.json").read_bytes() == (
        tmp_path / "first.model" / "tokenizer.json"
    ).read_bytes()
    with pytest.raises(FflmError, match="leave out `extend_vocabulary`"):
        library.train(tmp_path / "other", tmp_path / "x", initial=tmp_path / "first.model", extend_vocabulary=True)
    assert first.neighbours("cat", 3) == first.neighbours("Ġcat", 3)
    assert "cat" in first.vectors
    with pytest.raises(FflmError, match=r"^'zz' is 3 subwords, Ġ z z: give one of them$"):
        first.neighbours("zz")


def test_setting_that_models_have_themselves_is_unknown(tmp_path):
    with pytest.raises(FflmError, match="unknown setting"):
        library.train_ngram(tmp_path, subwords="0")
