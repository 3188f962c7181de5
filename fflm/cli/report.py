"""What several commands show: figures with their evaluation conditions, tables of evaluations, words, progress."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fflm.cli.tables import Column, printable

if TYPE_CHECKING:
    from rich.console import Console


def echo_json(value: Any, indent: int | None = None) -> None:
    """Print a value as JSON on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=indent))


def message_console(quiet: bool) -> "Console":
    """Return the console for messages on standard error; it spells control characters out, and knows no markup."""
    from rich.console import Console

    class Messages(Console):
        def print(self, *objects: Any, **style: Any) -> None:
            lines = ("\n".join(map(printable, each.split("\n"))) if isinstance(each, str) else each for each in objects)
            super().print(*lines, **style)

    return Messages(stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)


@contextmanager
def tokenizing(console: "Console") -> Iterator[Callable[[int], None]]:
    """Show how much text was read; yield the function that counts it."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn("line"), TextColumn("reading text: {task.completed:,.0f} characters"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=None)
        yield lambda characters: progress.advance(task, characters)


def show_word(word: str) -> str:
    """Return a word so that it can be seen in a column: quoted and escaped if it is or has white space or control characters."""
    return word if word.isprintable() and not word.isspace() else repr(word)


def show_nearest(found: Iterable[tuple[str, float]]) -> None:
    """Print words and their cosines."""
    for word, cosine in found:
        click.echo(f"{cosine:8.4f}  {show_word(word)}")


def describe_perplexity(figures: Mapping[str, Any]) -> str:
    """Return a perplexity in a line, with its evaluation conditions, from `fflm.models.scoring.Score.to_dict`'s result."""
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
"""First columns of tables of evaluations; bits per character are those of the validation text, the unnamed one marks the best."""


def show_training(loss: float | None) -> str:
    """Return a training loss, nats per word, as a perplexity for a table of `EVALUATIONS`; None stands for a sampled loss."""
    return "-" if loss is None else f"{math.exp(loss):,.2f}"


def show_valid(valid: dict[str, Any] | None) -> tuple[str, str]:
    """Return the cells of `EVALUATIONS` that are of validation text."""
    return (_number(valid["perplexity"], ",.2f"), _number(valid["bits_per_character"], ".3f")) if valid else ("-", "-")


def _number(value: float | None, form: str) -> str:
    """Return a figure in a format; None stands for what is no finite number."""
    return "-" if value is None else format(value, form)


def describe_text(vocabulary: int, rule: str, policy: str, parts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the evaluation conditions of perplexities on the parts of a corpus as lines, to print once beside many of them.

    Parameters
    ----------
    vocabulary, rule, policy
        As `fflm.models.scoring.Score` has them.
    parts
        `fflm.text.corpus.Part.counts` of each.
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
    """Return a heading and a value for `fflm.text.settings.TextSettings.policy`, whose phrases files hold."""
    return _POLICIES.get(policy, ("ends", printable(policy)))
