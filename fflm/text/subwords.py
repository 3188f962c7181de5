"""Subwords: the pieces of words into which a tokenizer.json splits text, with the library `tokenizers` of Hugging Face.

The library is imported when text is first split.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import regex

from fflm.errors import FflmError, install
from fflm.stored import REMEDY, read_whole

FILE = "tokenizer.json"
"""The name of the file in the folder of a model or corpus."""

BYTES = 256
"""The number of subwords that are single bytes, of which every text can be made."""

_MOST = 1_000_000  # number of subwords; the library reserves memory for as many as are asked for, and aborts if there is none
_ANOTHER = "give another file"
_RARE = "\U00010348"  # a letter that few alphabets have
_SURROGATE = regex.compile(r"[\ud800-\udfff]")


class Subwords:
    """The content of a tokenizer.json. One that was trained or read stays in memory, and is found by its checksum: see `find`.

    Parameters
    ----------
    content
        The content of the file.
    name
        The file, for messages.
    """

    def __init__(self, content: bytes, name: str = FILE) -> None:
        self.content = content
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self.content, self._name)

    @classmethod
    def read(cls, path: Path) -> "Subwords":
        """Read a tokenizer.json that someone else made.

        Raises
        ------
        FflmError
            If the file cannot be read, is not a tokenizer.json, or would drop unknown text; or if the library is missing.
        """
        subwords = cls(read_whole(path, _ANOTHER), str(path))
        if not subwords._keeps_all_text:
            raise FflmError(f"{path} has neither a token for unknown text nor all bytes, so that text would be lost: {_ANOTHER}")
        return subwords._kept()

    @classmethod
    def train(cls, lines: Iterable[list[str]], size: int | None, min_count: int) -> "Subwords":
        """Train a byte-level byte-pair encoding (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909).

        Text is split into words as by GPT-2. A space is put before each line, and removed when text is made of subwords, so that
        a word is the same subword at the beginning of a line and within it. The same lines give the same file.

        Parameters
        ----------
        lines
            The lines of the text, in lists.
        size
            The largest number of subwords, at least `BYTES`, or None. It is never more than a million.
        min_count
            Pairs that occur less often are not merged.

        Raises
        ------
        FflmError
            If the library is missing.
        """
        library = import_library()
        bytes_ = library.pre_tokenizers.ByteLevel
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.normalizer = library.normalizers.Prepend(" ")
        tokenizer.pre_tokenizer = bytes_(add_prefix_space=False)
        tokenizer.decoder = library.decoders.Sequence([library.decoders.ByteLevel(), library.decoders.Strip(" ", 1, 0)])
        trainer = library.trainers.BpeTrainer(
            vocab_size=min(size or _MOST, _MOST),
            min_frequency=min_count,
            initial_alphabet=sorted(bytes_.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(lines, trainer)
        return cls(f"{tokenizer.to_str(pretty=True)}\n".encode())._kept()

    def _kept(self) -> "Subwords":
        """Return the subwords of this content that are found by `find` from now on: these, if there were none before."""
        return _known.setdefault(self.sha256, self)

    @cached_property
    def words(self) -> list[str]:
        """All subwords, as tokenizer.json spells them, in the order of their ids there.

        Special tokens such as ``<s>`` are not among them, nor is the token for unknown text, which thus is ``<unk>``.
        """
        special = {each.content for each in self._library.get_added_tokens_decoder().values() if each.special}
        special.add(self._model.get("unk_token"))
        ids = self._library.get_vocab()
        # Text is split line by line, so that a subword with a newline never occurs.
        return sorted((word for word in ids if word and word not in special and "\n" not in word), key=ids.__getitem__)

    def split(self, line: str) -> list[str]:
        """Return the subwords of a line, spelled as in tokenizer.json; special tokens are split like any other text."""
        if not line:
            return []
        if not line.isascii():
            line = _SURROGATE.sub("\ufffd", line)
        library = self._library
        try:
            tokens: list[str] = library.encode(line, add_special_tokens=False).tokens
        except BaseException as error:
            _refuse(error, f"{self._name} cannot split this text")
        return tokens

    def join(self, tokens: Sequence[str]) -> str:
        """Return the text of the subwords of a line; bytes that are not UTF-8, such as half a character, give U+FFFD."""
        decoder = self._library.decoder
        try:
            text: str = decoder.decode(list(tokens)) if decoder else " ".join(tokens)
        except BaseException as error:
            _refuse(error, f"{self._name} cannot join these subwords")
        return text

    def readable(self, token: str) -> str:
        """Return the text of a subword within a line, or its spelling in tokenizer.json if it is not whole characters."""
        text = self.join([token, token]).removeprefix(self.join([token]))  # a space at the beginning of a line would be lost
        return token if "\ufffd" in text else text

    @cached_property
    def _library(self) -> Any:
        """The library's tokenizer."""
        library = import_library()
        try:
            json.loads(self.content)
            tokenizer = library.Tokenizer.from_buffer(self.content)
        except BaseException as error:
            _refuse(error, f"{self._name} is not a tokenizer.json of Hugging Face's tokenizers")
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None):  # would split the same text in different ways
            tokenizer.model.dropout = None
        return tokenizer

    @cached_property
    def _model(self) -> dict[str, Any]:
        """What the file says of the model that splits words, without its subwords; ``unk_token`` is that for unknown text."""
        model = json.loads(self._library.to_str())["model"]
        if model.get("unk_id") is not None:
            model["unk_token"] = model["vocab"][model["unk_id"]][0]
        return {name: value for name, value in model.items() if name not in ("vocab", "merges")}

    @property
    def _keeps_all_text(self) -> bool:
        """Whether all text has subwords, or else the token for unknown text."""
        ids = self._library.get_vocab(with_added_tokens=False)
        if self._model.get("unk_token") in ids:
            return True
        if self._model.get("continuing_subword_prefix") or self._model.get("end_of_word_suffix"):
            return False
        if self._model.get("byte_fallback"):
            return all(f"<0x{byte:02X}>" in ids for byte in range(BYTES))
        alphabet = import_library().pre_tokenizers.ByteLevel.alphabet()
        return ids.keys() >= set(alphabet) and bool(self.split(_RARE))  # which has no tokens unless text is read as bytes


def _refuse(error: BaseException, problem: str) -> NoReturn:
    """Raise an FflmError in place of an error of the library, which raises Exception itself, and what Rust calls a panic."""
    failed = isinstance(error, Exception) or type(error).__name__ == "PanicException"
    if isinstance(error, FflmError | MemoryError) or not failed:
        raise error
    raise FflmError(f"{problem} ({str(error).partition(chr(10))[0]}): {_ANOTHER}") from error


_known: dict[str, Subwords] = {}


def find(sha256: str) -> Subwords | None:
    """Return the subwords whose tokenizer.json has a checksum, if they were trained or read in this process."""
    return _known.get(sha256)


def _unpickle(content: bytes, name: str) -> Subwords:
    return Subwords(content, name)._kept()


def load(path: Path, sha256: str) -> Subwords:
    """Read the tokenizer.json in the folder of a model or corpus.

    Raises
    ------
    FflmError
        If it cannot be read, or does not have the checksum.
    """
    content = read_whole(path / FILE)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise FflmError(f"{path / FILE} is damaged (wrong sha256, its content has changed): {REMEDY}")
    return Subwords(content, str(path / FILE))._kept()


def import_library() -> Any:
    """Import the library, and return it.

    Raises
    ------
    FflmError
        If it is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise FflmError(f"subwords need the library tokenizers: install it with {install('subwords')}") from error
    return tokenizers
