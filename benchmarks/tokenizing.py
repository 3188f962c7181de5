"""Claim: tokenizing is at least as fast as the word-level pipeline of Hugging Face tokenizers with the same rule.

The text is Brown, repeated. In every repetition, the pieces between spaces that occur once in Brown are spelled with other
letters, so that new words keep appearing, as in a natural text. The text is split at spaces as it is, and into words after
its tokens were joined as in running text. Hugging Face tokenizers uses WhitespaceSplit, or Split with a pattern; it gets
lines in batches of 1,000 through encode_batch_fast, which gives no offsets, and a template adds the line ends.

There are two comparisons, in turns. Each is verified first: vocabularies and ids are equal.

- In memory, on one core, from a text and the vocabulary to an array of ids. Hugging Face tokenizers gets the lines already
  cut.
- End to end, on two cores, from a file of text to a file of ids. fflm runs `fflm.text.tokenize.tokenize`, which also makes
  the vocabulary; Hugging Face tokenizers has the vocabulary, and making it by WordLevelTrainer is timed separately.
"""

import argparse
import itertools
import math
import os
import string
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from common import in_turns, machine, parse, quartiles, ratios, record, shortfalls, show_verdict

from fflm.text.corpus import Corpus
from fflm.text.encoder import Encoder
from fflm.text.reading import CHUNK
from fflm.text.settings import TextSettings
from fflm.text.tokenize import TextSource, tokenize
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import END, UNKNOWN, Vocabulary, VocabularyRule

try:
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors, trainers
except ImportError:
    tokenizers = None

CORES = 2
MIN_COUNT = 2
BATCH = 1_000  # lines per batch
WORDS = (  # has the same effect as Tokenizer's pattern in this text
    r"[\p{L}\p{N}]+(?:['’‐‑-][\p{L}\p{N}]+|(?<=\p{Nd})[.,:](?=\p{Nd})[\p{L}\p{N}]+)*"
    r"|\.{2,}|-{2,}|…+|—+|``|''|\S"
)


def running_text(text: str) -> str:
    """Join the tokens of a text, which are separated by spaces, as in a printed text."""
    tokenizer = Tokenizer("space")
    return tokenizer.detokenize(tokenizer.split(text))


def repeated(text: str, times: int) -> Iterator[str]:
    """Yield a text repeatedly. In each repetition, the letters of its unique pieces are shifted by one in the alphabet."""
    lines = [line.split(" ") for line in text.splitlines()]
    counts = Counter(itertools.chain.from_iterable(lines))
    lower, upper = string.ascii_lowercase, string.ascii_uppercase
    for shift in range(times):
        shift %= 26
        moved = lower[shift:] + lower[:shift] + upper[shift:] + upper[:shift]
        letters = str.maketrans(lower + upper, moved)
        yield "".join(
            " ".join([piece.translate(letters) if counts[piece] == 1 else piece for piece in line]) + "\n" for line in lines
        )


def theirs(mode: str, vocabulary: Vocabulary | None = None) -> "tokenizers.Tokenizer":
    """Return the tokenizer of Hugging Face tokenizers for a mode, with or without a vocabulary."""
    ids = {} if vocabulary is None else {word: id_ for id_, word in enumerate(vocabulary.words)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    if mode == "space":
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(WORDS), "removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return tokenizer


def their_ids(tokenizer: "tokenizers.Tokenizer", lines: Iterable[str]) -> np.ndarray:
    """Return the ids of lines without newlines, (N,) int32."""
    lines, arrays = iter(lines), []
    while batch := list(itertools.islice(lines, BATCH)):
        encodings = tokenizer.encode_batch_fast(batch)
        arrays.append(np.fromiter(itertools.chain.from_iterable(each.ids for each in encodings), np.int32))
    return np.concatenate(arrays)


def their_file(tokenizer: "tokenizers.Tokenizer", file: Path, out: Path) -> None:
    """Write the ids of a file of text."""
    with file.open(encoding="utf-8") as lines:
        np.save(out, their_ids(tokenizer, (line.rstrip("\n") for line in lines)))


def their_vocabulary(mode: str, file: Path) -> set[str]:
    """Return the words that the trainer of Hugging Face tokenizers finds in a file."""
    tokenizer = theirs(mode)
    tokenizer.train([str(file)], trainers.WordLevelTrainer(vocab_size=10**9, min_frequency=MIN_COUNT, show_progress=False))
    return set(tokenizer.get_vocab())


def our_ids(settings: TextSettings, vocabulary: Vocabulary, text: str) -> np.ndarray:
    """Return the ids of a text, (N,) int32."""
    encoder = Encoder(settings, vocabulary)
    return np.concatenate([encoder.encode_chunk(chunk.encode())[0] for chunk in chunks(text)])


def chunks(text: str) -> Iterator[str]:
    """Cut a text at line ends, into pieces of the size that `read_chunks` yields."""
    start = 0
    while start < len(text):
        stop = text.rfind("\n", start, start + CHUNK) + 1
        yield text[start:stop]
        start = stop


def our_file(settings: TextSettings, file: Path, out: Path) -> Corpus:
    """Write the ids of a file of text, and the vocabulary."""
    return tokenize(TextSource([file], settings, VocabularyRule(MIN_COUNT, None), None), out, overwrite=True, processes=CORES)


def parallel(wanted: bool) -> None:
    """Set whether Hugging Face tokenizers may use threads."""
    os.environ["TOKENIZERS_PARALLELISM"] = str(wanted).lower()


def compare(name: str, steps: Mapping[str, Callable[[], Any]], tokens: int, rounds: int) -> dict[str, Any]:
    """Time several programs, of which fflm is the first, and print nanoseconds per token."""
    turns = in_turns(steps, rounds)
    ours, *others = steps
    result = {
        "name": name,
        "tokens": tokens,
        "nanoseconds": {each: quartiles([seconds / tokens * 1e9 for seconds in times]) for each, times in turns.items()},
        "ratios": {each: ratios(turns[ours], turns[each]) for each in others},
    }
    print(f"{name}, {tokens:,} tokens, nanoseconds per token (quartiles), time relative to fflm")
    for each, figures in result["nanoseconds"].items():
        ratio = f"{result['ratios'][each]['median']:6.2f}" if each in others else ""
        print(f"  {each:22} {figures['median']:6.0f} ({figures['low']:.0f} to {figures['high']:.0f}) {ratio}")
    return result


def measure(mode: str, brown: str, tokens: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Verify and compare the programs in one mode."""
    settings = TextSettings(Tokenizer(mode))
    once = len(settings.tokens(brown))
    times = math.ceil(tokens / once)
    file, ids, arrays = folder / "text", folder / "ids", folder / "ids.npy"
    with file.open("w", encoding="utf-8", newline="\n") as whole:
        whole.writelines(repeated(brown, times))
    text = "".join(repeated(brown, math.ceil(times / 5)))
    lines = text.splitlines()

    corpus = our_file(settings, file, ids)
    vocabulary, expected = corpus.vocabulary, corpus.parts["train"].ids[:]
    tokenizer = theirs(mode, vocabulary)
    parallel(True)
    their_file(tokenizer, file, arrays)
    encoded = our_ids(settings, vocabulary, text)
    same = {
        "ids of the file": np.array_equal(np.load(arrays), expected),
        "ids of the text": np.array_equal(their_ids(tokenizer, lines), encoded)
        and np.array_equal(encoded, expected[: len(encoded)]),
        "vocabulary": their_vocabulary(mode, file) == set(vocabulary.words[2:]),
    }
    if wrong := [name for name, equal in same.items() if not equal]:
        sys.exit(f"mode {mode}: not equal: {', '.join(wrong)}")
    unknown = corpus.parts["train"].unknown / len(expected)
    print(f"mode {mode}: vocabularies ({len(vocabulary):,} words, {unknown:.2%} of the text unknown) and ids are equal")

    parallel(False)
    steps = {"fflm": lambda: our_ids(settings, vocabulary, text), "tokenizers": lambda: their_ids(tokenizer, lines)}
    memory = compare(f"{mode}, in memory, one core", steps, len(encoded), rounds)
    parallel(True)
    steps = {
        "fflm": lambda: our_file(settings, file, ids),
        "tokenizers": lambda: their_file(tokenizer, file, arrays),
        "tokenizers, vocabulary": lambda: their_vocabulary(mode, file),
    }
    return [memory, compare(f"{mode}, end to end, {CORES} cores", steps, len(expected), rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brown", type=Path, help="brown.txt, as `fflm corpus get brown` makes it")
    parser.add_argument("--tokens", type=int, default=20_000_000, help="length of the text in tokens [default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=11)
    options = parse(parser)
    if tokenizers is None:
        sys.exit("Hugging Face tokenizers is needed for the comparison: pip install tokenizers")
    tokens, rounds = (1_000_000, 2) if options.quick else (options.tokens, options.rounds)
    os.environ["RAYON_NUM_THREADS"] = str(CORES)
    about = machine() | {"tokenizers": version("tokenizers")}
    brown = options.brown.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        results = [
            result
            for mode, text in (("space", brown), ("word", running_text(brown)))
            for result in measure(mode, text, tokens, rounds, Path(name))
        ]
    relative = {f"{result['name']}: time of tokenizers": result["ratios"]["tokenizers"] for result in results}
    passed = show_verdict(*shortfalls(relative, 1))
    record("tokenizing", options.quick, about, results=results, passed=passed)
    sys.exit(not passed and not options.quick)


if __name__ == "__main__":
    main()
