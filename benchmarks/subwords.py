"""Claim: subwords need at most 2% more bits per byte than words that are spelled where they are rare, with n-grams and networks.

On Brown, of which the last tenth of the lines is the test text and the tenth before it the validation text: 5-gram models of
words, of subwords and of characters, and default networks of words and of subwords, all scored on the same text. A model of words
does not spell those that are `<unk>` for it. What that would cost is measured by an n-gram model of characters, which is trained
on the training text's words outside of the vocabulary, and scores those of the test text, a word a line. It is added to the bits.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import machine, parse, record, show_verdict

import fflm

WITHIN = 1.02
"""The most bits per byte that subwords may need, relative to words that are spelled."""

TOKENS: dict[str, dict[str, Any]] = {
    "words": {"tokenizer": "word", "max_size": 20_000},
    "subwords, 2,000": {"tokenizer": "subword", "max_size": 2_000},
    "subwords, 8,000": {"tokenizer": "subword", "max_size": 8_000},
    "characters": {"tokenizer": "char"},
}


def cut(text: Path, folder: Path) -> dict[str, Path]:
    """Write the parts of a text to files, and return their paths."""
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    borders = [0, len(lines) * 8 // 10, len(lines) * 9 // 10, len(lines)]
    parts = {name: folder / f"{name}.txt" for name in ("train", "valid", "test")}
    for path, low, high in zip(parts.values(), borders[:-1], borders[1:], strict=True):
        path.write_text("".join(lines[low:high]), encoding="utf-8")
    return parts


def spelling(model: Any, parts: dict[str, Path], folder: Path) -> float:
    """Return -log p, nats, of the letters of the test text's words that a model does not know, a word a line."""
    train, test = (
        [word for word in model.text.tokenizer.tokens(parts[name].read_text(encoding="utf-8")) if word not in model.vocabulary]
        for name in ("train", "test")
    )
    (folder / "rare.txt").write_text("\n".join(train) + "\n", encoding="utf-8")
    options = {"tokenizer": "char", "mode": "sentence", "min_count": 1, "valid": 0}
    letters = fflm.train_ngram(folder / "rare.txt", folder / "letters.ngram", **options)
    return -float(letters.scores(test).sum())


def measure(name: str, train: Callable[..., Any], parts: dict[str, Path], folder: Path, **options: Any) -> dict[str, Any]:
    """Train a model, and return its figures on the test text."""
    model = train(parts["train"], folder / "model", valid=[parts["valid"]], **options)
    figures = model.perplexity(parts["test"]).to_dict()
    total = -figures["log_probability"] + (spelling(model, parts, folder) if figures["unknown"] else 0.0)
    return {
        "name": name,
        **figures,
        "bits_per_byte_spelled": total / figures["bytes"] / math.log(2),
        "word_perplexity_spelled": math.exp(total / figures["words"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, metavar="brown.txt")
    parser.add_argument("--ngrams", action="store_true", help="n-gram models only, in two minutes")
    arguments = parse(parser)
    about = machine()
    kinds: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {"5-grams": (fflm.train_ngram, {})}
    if not arguments.ngrams:
        kinds["network"] = fflm.train, {"preset": "quick", "epochs": 1} if arguments.quick else {}
    rows = []
    print(f"{'':28} {'OOV':>6} {'bits/byte':>10} {'spelled':>8} {'per word':>9}")
    for kind, (train, settings) in kinds.items():
        for tokens, options in TOKENS.items():
            if (kind, tokens) == ("network", "characters"):
                continue
            with tempfile.TemporaryDirectory() as folder:
                parts = cut(arguments.text, Path(folder))
                row = measure(f"{kind}, {tokens}", train, parts, Path(folder), **options, **settings)
            rows.append(row)
            figures = f"{row['bits_per_byte']:10.4f} {row['bits_per_byte_spelled']:8.4f} {row['word_perplexity_spelled']:9.1f}"
            print(f"{row['name']:28} {row['unknown_share']:6.2%} {figures}", flush=True)
    bits = {row["name"]: row["bits_per_byte_spelled"] for row in rows}
    missed = [
        f"{kind}: {bits[f'{kind}, words']:.4f} bits per byte with words, {bits[f'{kind}, subwords, 8,000']:.4f} with subwords"
        for kind in kinds
        if bits[f"{kind}, subwords, 8,000"] > WITHIN * bits[f"{kind}, words"]
    ]
    record("subwords", arguments.quick or arguments.ngrams, about, models=rows)
    show_verdict(missed)


if __name__ == "__main__":
    main()
