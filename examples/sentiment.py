"""Sentiment classification with hand-designed features, a hidden layer, and three classes.

The input of a textbook's network (Jurafsky & Martin, "Speech and Language Processing", figure 7.10) are features of a review that
were chosen by hand:

    x1    the number of words
    x2    the number of words that are in a lexicon of positive words; here also x3, of negative words
    x4    1 if "no" occurs, else 0

It computes h = sigmoid(W x + b), z = U h, and y = softmax(z), the probabilities of positive, negative and neutral. Without the
hidden layer, it is a logistic regression. The hidden layer makes a difference if features interact. In these reviews, which a
small grammar generates, "no" reverses the opinion: "no good story" is negative, and "no bad story" is positive. A weighted sum of
the features cannot express this. Negative reviews are longer, and in some reviews "no" belongs to something else ("it was no
rainy day"), so that no classifier with these features is always right.

With --chinese, the reviews are Chinese. Chinese text has no spaces between words, which may have several characters. Therefore
the reviews are already segmented, with spaces between the words, and the tokenizer is "space".

    python examples/sentiment.py [--chinese]
"""

import argparse
import random
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fflm

Reviews = list[tuple[str, str]]


@dataclass(frozen=True)
class Language:
    """The words of the reviews.

    Attributes
    ----------
    no
        The word that reverses an opinion.
    positive, negative
        The lexicons of positive and negative words.
    opinions, turned
        Phrases that express an opinion, and phrases that reverse it; {} stands for a word of a lexicon.
    elsewhere
        Phrases with the word ``no`` that express no opinion.
    facts
        Phrases that express no opinion.
    """

    no: str
    positive: list[str]
    negative: list[str]
    opinions: list[str]
    turned: list[str]
    elsewhere: list[str]
    facts: list[str]


ENGLISH = Language(
    no="no",
    positive=["good", "great", "lovely", "clever", "funny"],
    negative=["bad", "dull", "awful", "weak", "silly"],
    opinions=["a {} film", "the story is {}", "we saw {} actors", "the music is {} and {}"],
    turned=["no {} film", "there is no {} story", "we saw no {} actors"],
    elsewhere=["it was no rainy day", "there were no free seats"],
    facts=["it is about a dog", "the film is new", "we sat in the third row", "it ends at ten", "my brother came along"],
)
CHINESE = Language(
    no="不",
    positive=["喜欢", "精彩", "好看", "感人", "有趣"],
    negative=["讨厌", "无聊", "难看", "失败", "糟糕"],
    opinions=["电影 真 {}", "故事 很 {}", "演员 让 人 觉得 {}", "音乐 {} 而且 {}"],
    turned=["电影 不 {}", "故事 一点 也 不 {}", "演员 不 让 人 觉得 {}"],
    elsewhere=["那 天 不 下雨", "我们 不 坐 前面"],
    facts=["讲 的 是 一 只 狗", "电影 是 新 的", "我们 坐 在 第三 排", "十点 结束", "我 弟弟 也 来 了"],
)
CLASSES = ("negative", "neutral", "positive")


def write_review(language: Language, generator: random.Random) -> tuple[str, str]:
    """Return the label and the text of a random review."""
    label = generator.choice(CLASSES)
    phrases = generator.sample(language.facts, generator.randint(1, 3) + 2 * (label == "negative"))
    if label != "neutral":
        turned = generator.random() < 0.4
        words = language.positive if (label == "positive") != turned else language.negative
        phrase = generator.choice(language.turned if turned else language.opinions)
        phrases.append(phrase.format(*generator.choices(words, k=phrase.count("{}"))))
    if generator.random() < 0.1:
        phrases.append(generator.choice(language.elsewhere))
    generator.shuffle(phrases)
    return label, " ".join(phrases)


def write_reviews(language: Language, count: int, seed: int) -> Reviews:
    """Return labels and texts of random reviews."""
    generator = random.Random(seed)
    return [write_review(language, generator) for _ in range(count)]


def inputs(language: Language, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the lexicon to a folder; return the options of `fflm.train_classifier` for each network."""
    lexicon = folder / "lexicon.tsv"
    words = {"positive": language.positive, "negative": language.negative}
    lexicon.write_text("".join(f"{word}\t{name}\n" for name, group in words.items() for word in group), encoding="utf-8")
    features = {"input": "features", "word_count": True, "lexicons": lexicon, "present": (language.no,)}
    features |= {"optimizer": "adamw", "rate": 0.03, "embedding_dropout": 0.0}
    return {
        "features, no hidden layer": features,
        "features, 8 hidden units": features | {"hidden": (8,), "activation": "sigmoid"},
        "mean of the embeddings": {},
        "mean, with bigrams": {"bigrams": True},
    }


def measure(language: Language) -> dict[str, float]:
    """Return the test accuracy of each network."""
    train, test = write_reviews(language, 2000, 1), write_reviews(language, 1000, 2)
    labels, texts = zip(*test, strict=True)
    accuracies = {"always the most frequent": max(Counter(labels).values()) / len(labels)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "reviews.tsv"
        path.write_text("".join(f"{label}\t{text}\n" for label, text in train), encoding="utf-8")
        for title, options in inputs(language, folder).items():
            model = fflm.train_classifier(path, folder / "model", overwrite=True, tokenizer="space", epochs=20, **options)
            accuracies[title] = model.evaluate(texts, labels)[0].accuracy
    return accuracies


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Sentiment from features that are chosen by hand.")
    parser.add_argument("--chinese", action="store_true", help="classify Chinese reviews, with spaces between the words")
    language = CHINESE if parser.parse_args(arguments).chinese else ENGLISH

    print("reviews")
    for label, text in write_reviews(language, 5, 7):
        words = text.split()
        features = len(words), *(sum(word in group for word in words) for group in (language.positive, language.negative))
        print(f"  x = {(*features, int(language.no in words))!s:14s} {label:9s} {text}")
    print(f"\n{'1,000 test reviews':28s} accuracy  0-1 loss")
    for title, accuracy in measure(language).items():
        print(f"{title:28s} {accuracy:8.1%} {1 - accuracy:9.3f}")


if __name__ == "__main__":
    main()
