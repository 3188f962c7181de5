"""The examples that classify texts and words: what their reviews and sentences are, and the figures that they print."""

import itertools
import math
import random
import string
from collections import defaultdict

import makemore
import pytest
import sentiment
import tagging


@pytest.mark.parametrize("language", [sentiment.ENGLISH, sentiment.CHINESE], ids=["English", "Chinese"])
def test_reviews_have_opinion_of_their_label(language):
    """A word of opinion decides, and a phrase with "no" turns it around."""
    phrases = [phrase.partition("{}")[0].strip() for phrase in language.turned]
    for label, text in sentiment.write_reviews(language, 200, 1):
        words = text.split(" ")
        counts = {name: sum(map(words.count, getattr(language, name))) for name in ("positive", "negative")}
        turned = any(f"{phrase} {word}" in text for phrase in phrases for word in language.positive + language.negative)
        expected = "neutral"
        if counts["positive"] or counts["negative"]:
            expected = "positive" if bool(counts["positive"]) != turned else "negative"
        assert label == expected, text
        assert min(counts.values()) == 0
        assert not turned or language.no in words


@pytest.mark.slow
def test_hidden_layer_uses_interaction_of_features(capsys):
    sentiment.main([])
    out = capsys.readouterr().out
    assert "always the most frequent        34.4%     0.656" in out  # as the lectures' table says
    figures = dict(line.rsplit(None, 2)[:2] for line in out.split("0-1 loss\n")[1].splitlines())
    figures = {name.strip(): float(value.rstrip("%")) for name, value in figures.items()}
    assert 30 < figures["always the most frequent"] < 40
    assert 85 < figures["features, no hidden layer"] < 94
    assert 96 < figures["features, 8 hidden units"] <= 100
    assert figures["mean of the embeddings"] + 5 < figures["mean, with bigrams"]


@pytest.mark.slow
def test_words_of_chinese_reviews_are_features():
    accuracies = sentiment.measure(sentiment.CHINESE)
    assert accuracies["features, no hidden layer"] + 0.05 < accuracies["features, 8 hidden units"]
    assert accuracies["features, 8 hidden units"] > 0.96


def test_grammar_has_all_universal_classes_and_ambiguous_words():
    assert len(tagging.WORDS) == 17
    seen = defaultdict(set)
    for words, tags in tagging.write_sentences(2500):
        assert len(words) == len(tags)
        for word, tag in zip(words, tags, strict=True):
            assert word in tagging.WORDS[tag].split()
            seen[word].add(tag)
    assert set().union(*seen.values()) == set(tagging.WORDS)
    assert seen["can"] == {"AUX", "NOUN"}
    assert seen["light"] == {"ADJ", "NOUN", "VERB"}
    assert seen["that"] == {"DET", "PRON", "SCONJ"}


def test_tagging_baseline_takes_most_frequent_tag():
    train = [(["a", "b"], ["X", "Y"]), (["a", "b"], ["X", "X"]), (["b"], ["X"])]
    assert tagging.most_frequent(train, [(["a", "b", "c", "a"], ["X", "Y", "X", "Y"])]) == 0.5


@pytest.mark.slow
def test_window_tells_classes_of_ambiguous_words(tmp_path, capsys):
    sentences = tagging.write_sentences(800)
    tagging.save(sentences, tmp_path / "tags.tsv")
    shuffled = sentences.copy()
    random.Random(1).shuffle(shuffled)
    assert tagging.read_sentences(tmp_path / "tags.tsv") == shuffled
    tagging.main([str(tmp_path / "tags.tsv")])
    out = capsys.readouterr().out
    assert "640 sentences for training, 160 with" in out
    figures = [float(line.split()[-2].rstrip("%")) for line in out.split("0-1 loss\n")[1].splitlines()[:4]]
    baseline, alone, three, five = figures
    assert baseline == pytest.approx(alone, abs=1.5)
    assert alone + 10 < three < five + 1
    assert five > 95


@pytest.mark.slow
def test_tagging_prints_figures_of_lectures_page(capsys):
    tagging.main([])
    out = capsys.readouterr().out
    assert "we/PRON can/AUX open/VERB the/DET can/NOUN ./PUNCT" in out
    assert "Will/PROPN will/AUX light/VERB the/DET light/NOUN ./PUNCT" in out
    five = next(line for line in out.splitlines() if line.startswith("a window of 5"))
    assert float(five.split()[-2].rstrip("%")) > 98


def some_names(count):
    """Return different names of three to five syllables, such as "kalimona"."""
    syllables = [consonant + vowel for consonant in "klmnrst" for vowel in "aeio"]
    generator = random.Random(1)
    return sorted({"".join(generator.choices(syllables, k=generator.randint(3, 5))) for _ in range(count)})


def test_names_are_split_as_in_course():
    names = some_names(100)
    random.seed(42)
    shuffled = names.copy()
    random.shuffle(shuffled)
    assert makemore.split(names) == (shuffled[: int(0.8 * len(names))], shuffled[int(0.8 * len(names)) : int(0.9 * len(names))])


def test_networks_for_names_are_not_larger_than_those_of_course(tmp_path):
    names = [*string.ascii_lowercase, *some_names(50)] * 2  # so that the training part has all letters
    for window, most, _, settings in makemore.SIZES:
        model, score = makemore.train(names, tmp_path, window, **settings, epochs=1)
        assert 0.9 * most < model.parameters.count <= most
        assert model.config.context == window
        assert len(model.vocabulary) == 28  # the letters, <unk> and the end of a name
        assert score.tokens == sum(len(name) + 1 for name in makemore.split(names)[1])


@pytest.mark.slow
def test_names_example_prints_losses_and_new_names(tmp_path, capsys):
    names = some_names(300)
    (tmp_path / "names.txt").write_text("\n".join([*names, "", " "]), encoding="utf-8")
    makemore.main([str(tmp_path / "names.txt")])
    first, *rows, made_up = filter(None, capsys.readouterr().out.splitlines())
    assert first == f"{len(names)} names"
    losses = [float(row.split()[-1]) for row in rows[1:]]
    assert len(losses) == len(makemore.SIZES)
    entropy = (4 * math.log(28) + math.log(3)) / 9  # of four syllables and an end, which are nine characters, on the average
    assert all(0.95 * entropy < loss < 1.25 * entropy for loss in losses)
    assert len(made_up.split()) == 10
    assert set(itertools.chain(*made_up.split())) <= set("aeioklmnrst")
