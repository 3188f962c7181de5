"""The settings that say how a text becomes a sequence of ids."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from fflm.arguments import Settings
from fflm.text.tokenizer import LINE_END, Tokenizer
from fflm.text.vocabulary import Vocabulary

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

    def encode_text(self, text: str, vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
        """Return the ids of a text, (N,), as a corpus holds them.

        Only a newline in the text gives an end: a prefix to be continued does not end with a newline, a text to be scored
        does.
        """
        return vocabulary.encode(self.tokens(self.tokenizer.normalize(text)))
