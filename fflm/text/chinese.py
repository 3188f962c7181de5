"""Words of Chinese text, which has no spaces between them, with the library jieba."""

import functools
import warnings
from collections.abc import Callable
from typing import cast

from fflm.errors import FflmError, install


def cut_words(text: str) -> list[str]:
    """Cut a text of Han characters, without white space, into words; joined, they are the text.

    Words are found by jieba's dictionary, and words that are not in it by its hidden Markov model.

    Raises
    ------
    FflmError
        If the library is not installed.
    """
    return _cutter()(text)


@functools.cache
def _cutter() -> Callable[[str], list[str]]:
    """Return the library's function.

    Its dictionary is read here, in a second, because the library itself would keep a copy in the system's temporary folder, and
    load what it finds there under that name, whoever wrote it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has invalid escape sequences, and may import the deprecated pkg_resources
            import jieba
    except ImportError as error:
        raise FflmError(f"words of Chinese text need the library jieba: install it with {install('chinese')}") from error
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return cast(Callable[[str], list[str]], tokenizer.lcut)
