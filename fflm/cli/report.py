"""Output of several commands: JSON, figures with their evaluation conditions, words, and the progress of reading text."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fflm.cli.tables import Column, printable

if TYPE_CHECKING:
    from rich.console import Console

    from fflm.text.tokenizer import Tokenizer


def echo_json(value: Any, indent: int | None = None) -> None:
    """Print a value as JSON on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=indent))


def message_console(quiet: bool) -> "Console":
    """Return a console for messages on standard error, which escapes control characters and does not interpret markup."""
    from rich.console import Console

    class Messages(Console):
        def print(self, *objects: Any, **style: Any) -> None:
            lines = ("\n".join(map(printable, each.split("\n"))) if isinstance(each, str) else each for each in objects)
            super().print(*lines, **style)

    return Messages(stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)


@contextmanager
def tokenizing(console: "Console") -> Iterator[Callable[[int], None]]:
    """Display how much text has been read; yield a function that is called with the number of characters of each piece."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn("line"), TextColumn("reading text: {task.completed:,.0f} characters"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=None)
        yield lambda characters: progress.advance(task, characters)


def show_word(word: str) -> str:
    """Return a word as shown in a column: quoted and escaped if white space is at its ends, or control characters are in it."""
    return word if word.isprintable() and word == word.strip() else repr(word)


def show_nearest(found: Iterable[tuple[str, float]], tokenizer: "Tokenizer") -> None:
    """Print words, the tokens of a tokenizer, with their cosine similarities."""
    for word, cosine in found:
        click.echo(f"{cosine:8.4f}  {show_word(tokenizer.readable(word))}")


def describe_perplexity(figures: Mapping[str, Any]) -> str:
    """Return a line with a perplexity and its evaluation conditions, given `fflm.models.scoring.Score.to_dict`."""
    return (
        f"perplexity {_number(figures['perplexity'], ',.2f')} over {figures['tokens']:,} tokens, "
        f"OOV rate {_number(figures['unknown_share'], '.2%')}, "
        f"{_number(figures['bits_per_character'], '.3f')} bits per character; "
        f"vocabulary {figures['vocabulary']:,} ({printable(figures['rule'])}); {' '.join(describe_policy(figures['policy']))}"
    )


EVALUATIONS = (
    Column("epoch"),
    Column("step", 9),
    Column("train perplexity"),
    Column("valid perplexity"),
    Column("bits/char", optional=True),
    Column("", 1),
    Column("rate", 7, optional=True),
)
"""The first columns of a table of evaluations; bits/char are of the validation text, and the unnamed column marks the best."""


def show_training(loss: float | None) -> str:
    """Return a training loss, nats per word, as a perplexity for a table of `EVALUATIONS`, or a dash for a sampled loss, None."""
    return "-" if loss is None else f"{math.exp(loss):,.2f}"


def show_valid(valid: dict[str, Any] | None) -> tuple[str, str]:
    """Return the cells for the validation text in a table of `EVALUATIONS`."""
    return (_number(valid["perplexity"], ",.2f"), _number(valid["bits_per_character"], ".3f")) if valid else ("-", "-")


def _number(value: float | None, form: str) -> str:
    """Return a formatted number, or a dash for None, which stands for a number that is not finite."""
    return "-" if value is None else format(value, form)


def describe_text(vocabulary: int, rule: str, policy: str, parts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the evaluation conditions of perplexities on the parts of a corpus as lines, to print once for many perplexities.

    Parameters
    ----------
    vocabulary, rule, policy
        As for `fflm.models.scoring.Score`.
    parts
        The `fflm.text.corpus.Part.counts` of each part.
    """
    lines = []
    for name, part in parts.items():
        unknown = part["unknown"] / part["tokens"]
        lines.append(f"{name}: {part['tokens']:,} tokens, OOV rate {unknown:.2%}, {part['characters']:,} characters")
    return [*lines, f"vocabulary: {vocabulary:,} ({printable(rule)})", ": ".join(describe_policy(policy))]


_POLICIES = {
    "line ends predicted, contexts cross them": ("line ends", "predicted as </s>, contexts may cross lines"),
    "line ends not predicted": ("line ends", "not predicted"),
    "sentence ends predicted, no context crosses them": ("sentence ends", "predicted as </s>, contexts stay in a sentence"),
}


def describe_policy(policy: str) -> tuple[str, str]:
    """Return a heading and a phrase for a `fflm.text.settings.TextSettings.policy`, which is spelled as in files."""
    return _POLICIES.get(policy, ("ends", printable(policy)))


def describe_classification(figures: dict[str, Any], unit: str) -> str:
    """Return a line with figures, given `fflm.models.classifier.metrics.Report.to_dict` and what an example is called."""
    return (
        f"accuracy {figures['accuracy']:.2%}, macro F1 {figures['macro_f1']:.4f}, "
        f"loss {figures['loss']:.4f} nats per {unit}, over {figures['examples']:,} {unit}s"
    )
