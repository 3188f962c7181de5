"""The settings that say how a text becomes a sequence of ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from msgspec import UNSET, Meta

from fflm.arguments import Settings
from fflm.files import replacing
from fflm.text import subwords
from fflm.text.tokenizer import LINE_END, Tokenizer
from fflm.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TextMode = Literal["stream", "sentence"]


@dataclass(frozen=True)
class TextSettings(Settings):
    """How a text becomes a sequence of ids.

    Raises
    ------
    FflmError
        If the mode does not exist.

    Notes
    -----
    In mode ``"stream"`` the text is one long sequence, and contexts cross lines. In mode ``"sentence"`` each line that is not
    blank is a sentence; its end is predicted, and no context crosses it.
    """

    tokenizer: Annotated[Tokenizer, Meta(description="The rule that splits text into tokens.")] = field(default_factory=Tokenizer)
    mode: Annotated[TextMode, Meta(description="Read one long text, or one sentence per line, which no context crosses.")] = (
        "stream"
    )
    line_ends: Annotated[bool, Meta(description="In a stream, treat each line end as the word </s>, not as white space.")] = True

    @classmethod
    def load(cls, folder: Path, fields: Mapping[str, Any]) -> Self:
        """Return the settings of a model or corpus, whose `to_dict` is ``fields``, with the subwords in its folder.

        Raises
        ------
        FflmError
            If the fields are not valid, or the file of subwords cannot be read or is damaged.
        """
        if (sha256 := fields.get("tokenizer", {}).get("subwords")) is not None:
            subwords.load(folder, sha256)
        return cls.from_dict(fields)

    def save_subwords(self, folder: Path) -> None:
        """Write the file of subwords, if there are any, to the folder of a model or corpus."""
        if self.tokenizer.subwords is not UNSET:
            with replacing(folder / subwords.FILE, follow=False) as temporary:
                temporary.write_bytes(self.tokenizer.known_subwords().content)

    @property
    def ends(self) -> bool:
        """Whether ``</s>`` is predicted."""
        return self.mode == "sentence" or self.line_ends

    @property
    def policy(self) -> str:
        """A phrase that says which ends are predicted, and whether contexts cross them."""
        if self.mode == "sentence":
            return "sentence ends predicted, no context crosses them"
        return "line ends predicted, contexts cross them" if self.line_ends else "line ends not predicted"

    def tokens(self, text: str) -> list[str]:
        """Split normalized text into tokens, with `LINE_END` exactly where an end is predicted."""
        tokens = self.tokenizer.split(text)
        if not self.ends:
            return [token for token in tokens if token != LINE_END]
        if self.mode == "stream":
            return tokens
        pairs = zip([LINE_END, *tokens], tokens, strict=False)
        return [token for before, token in pairs if not before == token == LINE_END]

    def encode_text(self, text: str, vocabulary: Vocabulary) -> "npt.NDArray[np.int32]":
        """Return the ids of a text, (N,), as a corpus holds them.

        Only a newline in the text gives an end: a prefix to be continued does not end with a newline, a text to be scored
        does.
        """
        return vocabulary.encode(self.tokens(self.tokenizer.normalize(text)))
