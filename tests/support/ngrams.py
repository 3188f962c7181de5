"""Random n-grams in ARPA files, and scores by the definition of back-off in double precision."""

import numpy as np

from fflm.models.ngram.arpa import read_arpa

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


def ngram_case(order, path):
    """Return a model, lines (some without words, one with more words than are looked up together), and their log10 p."""
    ngrams = make_ngrams(order)
    write_ngrams(path, ngrams, order)
    generator = np.random.default_rng(2)
    words = [*WORDS[2:], "unseen"]
    lines = [" ".join(generator.choice(words, length)) for length in (0, 1, 2, 7, 0, 2000, *generator.integers(0, 20, 300))]
    # Sentences of known n-grams, because random words are mostly not found in any.
    longest = [ngram for ngram in ngrams if len(ngram) == order and not {"</s>", "<s>"} & set(ngram)]
    lines += [" ".join(" ".join(longest[i]) for i in generator.integers(len(longest), size=5)) for _ in range(50)]
    return read_arpa(path), lines, np.array([reference_score(ngrams, order, line) for line in lines])
