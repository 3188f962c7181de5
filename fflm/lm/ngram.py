"""The n-gram model: interpolated modified Kneser-Ney (Chen and Goodman 1999, https://doi.org/10.1006/csla.1999.0128)."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from fflm.arguments import (
    Encoding,
    Errors,
    Overwrite,
    PathLike,
    Paths,
    Processes,
    Progress,
    checked,
    parameters,
    refuse_unknown,
    to_path,
    to_paths,
)
from fflm.backend.cpu.launching import shares_of
from fflm.errors import FflmError
from fflm.lm import ngram_kernels as kernels
from fflm.lm.description import LARGEST_ORDER, NgramFigures
from fflm.lm.model import Model, read_config, read_text, save_description
from fflm.lm.scoring import score_part
from fflm.lm.setup import TEXT_OPTIONS, check_free, default_path, describe_corpus, new_model, text_settings
from fflm.network.parameters import is_finite
from fflm.stored import REMEDY
from fflm.text.corpus import Corpus, Test, TextSettings, Valid
from fflm.text.vocabulary import Vocabulary
from fflm.text.windows import Windows
from fflm.training.checkpoints import CONFIG, WEIGHTS, load_arrays, meaning, save_arrays

ORDER = 5
"""Of a model, by default."""

Order: TypeAlias = Annotated[int, Meta(ge=1, le=LARGEST_ORDER, description="Length of the longest n-grams.")]

ROUNDING = 1e-5
"""Logarithms of probabilities may be so much above 0."""

FIXED_DISCOUNTS = (0.5, 1.0, 1.5)
"""Of counts of 1, 2 and more, where none can be estimated; KenLM's."""

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Tables:
    """All n-grams of a model, as flat arrays.

    The contexts are the nodes of a tree: the root is the empty context, a child has one older word than its parent. They are
    numbered by depth, then by parent, then by word, so that the children of a node are a range of numbers. The n-grams of a
    context are a range, too, ordered by their last word; those of the root are the whole vocabulary.

    Attributes
    ----------
    children
        (M + 1,) uint32: the children of context i are ``children[i]`` to ``children[i + 1]``.
    words
        (M,) uint32, the oldest word of each context.
    back_offs
        (M,) float32, log of the weight of the parent's distribution for words that have no n-gram here; nats. The root's is
        never used.
    starts
        (M + 1,) uint32: the n-grams of context i are ``starts[i]`` to ``starts[i + 1]``.
    targets
        (G,) uint32, the last word of each n-gram.
    log_probabilities
        (G,) float32, of that word after its context; nats.
    """

    children: npt.NDArray[np.uint32]
    words: npt.NDArray[np.uint32]
    back_offs: npt.NDArray[np.float32]
    starts: npt.NDArray[np.uint32]
    targets: npt.NDArray[np.uint32]
    log_probabilities: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls, parents: Integers, words: Integers, back_offs: Floats, starts: Integers, targets: Integers, log_p: Floats
    ) -> Self:
        """Assemble tables.

        Parameters
        ----------
        parents, words
            (M - 1,) of each context but the root, in order.
        back_offs
            (M,), nats.
        starts
            (M + 1,) as in the tables.
        targets, log_p
            (G,) of each n-gram, ordered by context and target; nats.
        """
        if len(targets) >= 2**32:
            raise FflmError(f"{len(targets):,} n-grams are too many: choose a smaller `order`, or less text")
        return cls(
            borders(parents, len(back_offs)).astype(np.uint32) + np.uint32(1),
            np.concatenate([np.zeros(1, np.uint32), words.astype(np.uint32, copy=False)]),
            back_offs.astype(np.float32, copy=False),
            starts.astype(np.uint32, copy=False),
            targets.astype(np.uint32, copy=False),
            log_p.astype(np.float32, copy=False),
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays by their names."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def levels(self) -> list[tuple[int, int]]:
        """Return the ranges of contexts of 0, 1, 2, ... words."""
        levels = [(0, 1)]
        while (border := levels[-1][1]) < len(self.words):
            levels.append((border, int(self.children[border])))
        return levels


class NgramModel(Model):
    """An n-gram model: back-off tables with a vocabulary and a way of reading text.

    Attributes
    ----------
    tables
        The n-grams.
    vocabulary, text
        Words and ids; how text becomes words.
    about
        What else is known of it: under ``"ngram"`` the order, the number of n-grams and the discounts of each order, and notes on
        what could not be estimated; the corpus, figures, versions.
    """

    def __init__(self, tables: Tables, vocabulary: Vocabulary, text: TextSettings, about: Mapping[str, Any]) -> None:
        self.tables = tables
        self.vocabulary = vocabulary
        self.text = text
        self.about = dict(about)

    def _details(self) -> list[str]:
        return [f"order {self.order}", f"{len(self.tables.targets):,} n-grams"]

    @property
    def order(self) -> int:
        """The length of the longest n-grams."""
        order: int = self.about["ngram"]["order"]
        return order

    @property
    def window(self) -> int:
        """Context words [n]."""
        return self.order - 1

    @property
    def notes(self) -> list[str]:
        """What could not be estimated, or was missing, and what was done about it."""
        return list(self.about["ngram"]["notes"])

    def log_probabilities(self, contexts: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Return log p(word | context) of every word: contexts (B, n), oldest word first -> (B, V), nats."""
        contexts = self._check_contexts(contexts)
        results = np.empty((len(contexts), len(self.vocabulary)), np.float32)
        shares = shares_of(results.size)
        kernels.ngram_distributions(*self.tables.arrays().values(), contexts, results, shares)
        return results

    def losses(self, contexts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Return -log p(target | context): contexts (B, n), targets (B,) -> (B,), nats."""
        contexts, targets = self._check_examples(contexts, targets)
        losses = np.empty(len(targets), np.float32)
        shares = shares_of(contexts.size * kernels.LOOK_UP)
        kernels.ngram_losses(*self.tables.arrays().values(), contexts, targets, losses, shares)
        return losses

    @classmethod
    @checked
    def train(cls, corpus: Corpus, order: Order = ORDER) -> Self:
        """Count the n-grams of a corpus's training text and estimate a model.

        Raises
        ------
        FflmError
            If the order is out of range.
        """
        tables, details = estimate(corpus.parts["train"].ids[:], corpus.vocabulary, corpus.settings, order)
        return cls(tables, corpus.vocabulary, corpus.settings, {"ngram": {"order": order, **details}})

    def save(self, path: Path) -> None:
        """Write the model into a folder that exists; ``about["figures"]`` are stored with the tables."""
        about = {name: value for name, value in self.about.items() if name != "figures"}
        about.setdefault("created", time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        config = save_description(path, {"kind": "ngram"}, self.text, self.vocabulary, about)
        save_arrays(path / WEIGHTS, self.tables.arrays(), self.about.get("figures", {}), config)

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Read a model's folder.

        Raises
        ------
        FflmError
            If it is no n-gram model, of a later version, incomplete or damaged.
        """
        path = to_path("path", path)
        about = read_config(path, "ngram")
        text, vocabulary = read_text(path, about)
        arrays, figures = load_arrays(path / WEIGHTS, (np.uint32, np.float32), NgramFigures, meaning(about))
        if arrays.keys() != {field.name for field in dataclasses.fields(Tables)}:
            raise FflmError(f"{path / WEIGHTS} is damaged (it has no n-grams): {REMEDY}")
        tables, ngram = Tables(**arrays), about["ngram"]
        described = len(ngram["counts"]) <= ngram["order"] and len(ngram["discounts"] or ()) in (0, len(ngram["counts"]))
        if not described or not _fits(tables, len(vocabulary), ngram["order"]):
            raise FflmError(f"{path} is damaged ({CONFIG} and {WEIGHTS} do not fit together): {REMEDY}")
        return cls(tables, vocabulary, text, {**about, "figures": figures})


def borders(ascending: Integers, count: int) -> npt.NDArray[np.int64]:
    """Return where each of the numbers 0 to ``count`` begins, or would, among ascending ones: (count + 1,)."""
    return np.concatenate([[0], np.bincount(ascending, minlength=count).cumsum()])


@checked
def train(
    inputs: Paths,
    path: PathLike | None = None,
    order: Order = ORDER,
    *,
    overwrite: Overwrite = False,
    valid: Valid = "5%",
    test: Test = None,
    encoding: Encoding = "utf-8",
    errors: Errors = "strict",
    processes: Processes = None,
    progress: Progress = None,
    **fields: Any,
) -> NgramModel:
    """Train a model on text, in a folder, and evaluate it on what is held out.

    Parameters
    ----------
    inputs
        Files, folders or ``"-"``; or one folder made by `fflm.text.corpus.tokenize`; or that of another model, for the same text
        with the same vocabulary.
    path
        The model's folder; by default ``stories.ngram`` for ``corpora/stories.txt``.
    order, ..., fields
        As `fflm.train_ngram` takes them, which lists them all.

    Raises
    ------
    FflmError
        If anything is wrong with them, the text or the folder, which is then as it was before.
    """
    sources = to_paths("inputs", inputs)
    place = default_path(sources, "ngram") if path is None else to_path("path", path)
    text, rule = text_settings(fields)
    refuse_unknown(fields, OPTIONS)
    with new_model(
        sources, place, text, rule, check=lambda: check_free(place, overwrite), valid=valid, test=test,
        encoding=encoding, errors=errors, processes=processes, progress=progress,
    ) as (new, corpus):  # fmt: skip
        model = NgramModel.train(corpus, order)
        model.about["corpus"] = describe_corpus(corpus, place)
        model.about["figures"] = {
            name: score_part(model, corpus.parts[name]).to_dict() for name in ("valid", "test") if name in corpus.parts
        }
        model.save(new.folder)
        new.publish()
    return NgramModel.load(place)


OPTIONS = {**parameters(train, "path"), **TEXT_OPTIONS}
"""What `train` takes."""


def estimate(ids: Integers, vocabulary: Vocabulary, settings: TextSettings, order: int) -> tuple[Tables, dict[str, Any]]:
    """Estimate an interpolated modified Kneser-Ney model from a text.

    The places of the text are sorted once, by their contexts from the newest word to the oldest: the contexts of every length are
    then runs of neighbours. The n-grams of the highest order have their counts, the shorter ones the number of n-grams that have
    one word more in front; those that begin with ``<s>``, or with the beginning of the text, have nothing in front and
    count as often as they occur (so does KenLM). Single words are interpolated with the uniform distribution.

    Parameters
    ----------
    ids
        (N,)
    vocabulary, settings
        Of the text.
    order
        The length of the longest n-grams, at least 1.

    Returns
    -------
    tables : Tables
        The model.
    details : dict
        ``counts``, the number of n-grams of each order; ``discounts``, three of each order; ``notes``.
    """
    V, longest = len(vocabulary), order - 1
    windows = Windows.of(ids, vocabulary, settings, 1)
    text, places = _with_starts(ids, windows.padding, windows.sentence_end)
    lengths = kernels.context_lengths(text, vocabulary.start_id, longest)
    places = _sorted(text, lengths, places, longest, V + 1)
    shared = np.empty(len(places), np.uint8)
    kernels.shared_words(text, lengths, places, shared, shares_of(len(places) * kernels.LOOK_UP))
    lengths = lengths[places]

    # Of the contexts of k words, in the order of the sorted places: the index of each one's parent among those of k - 1 words,
    # and its oldest word. N-grams are numbers, context * V + word; at first those of the places whose context ends there.
    parents, context_words = [np.zeros(1, np.uint32)], [np.empty(0, np.uint32)]
    ending: list[npt.NDArray[np.int64]] = []
    nodes = np.zeros(len(places), np.uint32)
    for k in range(order):
        if k:
            new = (shared < k) & (lengths >= k)
            parents.append(nodes[new])
            context_words.append(text[places[new] - np.uint32(k)])
            np.cumsum(new, dtype=np.uint32, out=nodes)
            nodes -= 1
        here = lengths == k
        ending.append(_numbers(nodes[here], text[places[here]], V))
    del shared, lengths, nodes, text, places

    keys, counts = [np.empty(0, np.int64)] * order, [np.empty(0, np.uint32)] * order
    for k in range(longest, -1, -1):
        found = ending.pop()
        if k < longest:
            found = np.concatenate([found, _numbers(parents[k + 1][keys[k + 1] // V], keys[k + 1] % V, V)])
            found.sort()
        if k:
            keys[k], counts[k] = _distinct(found)
        else:
            keys[0], counts[0] = np.arange(V), np.bincount(found, minlength=V).astype(np.uint32)
        del found
    sizes = [int(np.count_nonzero(each)) for each in counts]

    discounts, notes = [], []
    starts: list[Integers] = []
    targets: list[npt.NDArray[np.uint32]] = []
    log_probabilities, back_offs, grams = [], [], 0
    lower = np.array([0, V]), np.arange(V, dtype=np.uint32), np.full(V, 1 / V)
    for k in range(order):
        found_discounts, note = estimate_discounts(np.bincount(np.minimum(counts[k], 5), minlength=6)[1:5].tolist(), k + 1)
        discounts.append(found_discounts)
        notes += [note] if note else []
        first = borders(keys[k] // V, len(parents[k]))
        words = (keys[k] % V).astype(np.uint32)
        keys[k] = keys[k][:0]
        probabilities, back_off = np.empty(len(words)), np.empty(len(parents[k]))
        kernels.interpolate(
            first, words, counts[k], parents[k], *lower, np.array([0.0, *found_discounts]), probabilities, back_off,
            shares_of(len(words) * kernels.LOOK_UP),
        )  # fmt: skip
        starts.append(first[:-1] + grams)
        grams += len(words)
        targets.append(words)
        log_probabilities.append(np.log(probabilities).astype(np.float32))
        back_offs.append(np.log(back_off).astype(np.float32))
        counts[k] = counts[k][:0]
        lower = first, words, probabilities

    depths = np.cumsum([0, *map(len, parents)])
    tables = Tables.of(
        np.concatenate([np.empty(0, np.int64), *(parents[k] + depths[k - 1] for k in range(1, order))]),
        np.concatenate(context_words),
        np.concatenate(back_offs),
        np.concatenate([*starts, [grams]]),
        np.concatenate(targets),
        np.concatenate(log_probabilities),
    )
    return tables, {"counts": sizes, "discounts": discounts, "notes": notes}


def estimate_discounts(seen: Sequence[int], order: int) -> tuple[list[float], str]:
    """Return what is taken off counts of 1, 2, and 3 or more, and a note if that could not be estimated as usual.

    D(k) = k - (k + 1) Y n(k + 1) / n(k) with Y = n(1) / (n(1) + 2 n(2)) (Chen and Goodman 1999, equation 26). Small or regular
    texts have no n-grams of some count; then Y is taken off all counts, the original Kneser and Ney's discount, and if
    nothing is known of that either, fixed numbers.

    Parameters
    ----------
    seen
        How many n-grams were seen exactly 1, 2, 3, 4 times.
    order
        Of the n-grams, for the note.
    """
    n1, n2, n3, _ = seen
    y = n1 / (n1 + 2 * n2) if n1 else 0.0
    if n1 and n2 and n3:
        discounts = [k - (k + 1) * y * seen[k] / seen[k - 1] for k in (1, 2, 3)]
        if all(0 < discount <= k for k, discount in enumerate(discounts, 1)):
            return discounts, ""
    cause = f"order {order}: {n1:,}, {n2:,}, {n3:,}, {seen[3]:,} n-grams with counts of 1, 2, 3, 4 give no discounts"
    if n1 and n2:
        return [y] * 3, f"{cause}; took the single discount {y:.3f}"
    return list(FIXED_DISCOUNTS), f"{cause}; took {', '.join(f'{discount:g}' for discount in FIXED_DISCOUNTS)}"


def _with_starts(ids: Integers, padding: int, sentence_end: int | None) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Return a text with a start before it, or before each of its sentences, and the places in it that are predicted."""
    if len(ids) >= 2**31:
        raise FflmError(f"a text of {len(ids):,} tokens is too long for an n-gram model: give less")
    if sentence_end is None:
        text = np.empty(len(ids) + 1, np.uint32)
        text[0], text[1:] = padding, ids
        return text, np.arange(1, len(text), dtype=np.uint32)
    starts = np.concatenate([[0], 1 + np.flatnonzero(ids[:-1] == sentence_end)])
    text = np.insert(ids.astype(np.uint32), starts, padding)
    return text, np.flatnonzero(text != padding).astype(np.uint32)


def _sorted(
    text: npt.NDArray[np.uint32], lengths: npt.NDArray[np.uint8], places: npt.NDArray[np.uint32], longest: int, absent: int
) -> npt.NDArray[np.uint32]:
    """Sort places by context, newest word first, then by word; missing words come last."""
    keys, other = np.empty_like(places), np.empty_like(places)
    for distance in (0, *range(longest, 0, -1)):
        kernels.sort_by_column(text, lengths, distance, absent, places, keys, other)
        places, other = other, places
    return places


def _numbers(contexts: Integers, words: Integers, V: int) -> npt.NDArray[np.int64]:
    """Return n-grams as numbers that sort by context, then by word."""
    numbers = contexts.astype(np.int64)
    numbers *= V
    numbers += words
    return numbers


def _distinct(numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """Return the distinct ones of sorted numbers, and how often each occurs."""
    new = np.ones(len(numbers), bool)
    np.not_equal(numbers[1:], numbers[:-1], out=new[1:])
    firsts = np.flatnonzero(new)
    return numbers[firsts], np.diff(firsts, append=len(numbers)).astype(np.uint32)


def _fits(tables: Tables, vocabulary: int, order: int) -> bool:
    """Whether tables can be looked up without leaving them, and hold probabilities."""
    contexts, grams = len(tables.words), len(tables.targets)
    return (
        all(array.ndim == 1 for array in tables.arrays().values())
        and all(
            (array.dtype == np.float32) == (name in ("back_offs", "log_probabilities")) for name, array in tables.arrays().items()
        )
        and 0 < contexts == len(tables.back_offs)
        and all(
            len(border) == contexts + 1 and bool(np.all(border[1:] >= border[:-1])) for border in (tables.children, tables.starts)
        )
        and (tables.children[0], tables.children[-1], tables.starts[0], tables.starts[-1]) == (1, contexts, 0, grams)
        and bool(np.all(tables.children[:-1] > np.arange(contexts)))
        and grams == len(tables.log_probabilities)
        and np.array_equal(tables.targets[: tables.starts[1]], np.arange(vocabulary))
        and int(tables.targets.max()) < vocabulary
        and len(tables.levels()) <= order
        and bool(tables.words.max() <= vocabulary)
        and is_finite(tables.back_offs)
        and is_finite(tables.log_probabilities)
        and bool(tables.log_probabilities.max() <= ROUNDING)
    )
