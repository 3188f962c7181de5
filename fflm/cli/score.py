"""`fflm score`: perplexity, and scores of words, sentences and n-best lists."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from fflm.cli.options import json_option, load_model, model_option, show_word

if TYPE_CHECKING:
    from fflm.lm.model import Model
    from fflm.lm.scoring import Score, ScoredLine


@click.command()
@model_option
@click.argument("inputs", nargs=-1, type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--by",
    type=click.Choice(["summary", "sentence", "word"]),
    default="summary",
    show_default=True,
    help="Score every line or every word, too.",
)
@click.option(
    "--nbest",
    type=click.Choice(["moses", "plain"]),
    help="Rescore hypotheses: lines `id ||| hypothesis ||| features ||| score`, to which a feature is added, or one a line.",
)
@click.option("--log-base", type=click.Choice(["e", "10"]), default="e", show_default=True, help="Of log-probabilities.")
@click.option("--encoding", default="utf-8", show_default=True, help="Of the text.")
@click.option(
    "--errors",
    type=click.Choice(["strict", "replace"]),
    default="strict",
    show_default=True,
    help="Refuse bytes that cannot be decoded, or replace them.",
)
@json_option
def command(
    model_path: Path | None,
    inputs: tuple[Path, ...],
    by: str,
    nbest: str | None,
    log_base: str,
    encoding: str,
    errors: Literal["strict", "replace"],
    as_json: bool,
) -> None:
    """Measure how well a model predicts INPUTS: files, folders, .gz files, or standard input.

    All of them are one text, read as the model's training text was. Averages are over tokens. JSON has both natural and base-10
    logarithms; by sentence and word it is an object a line, the summary's last.

    \b
    Example:
      fflm score novel.txt
      echo "The cat sat on the wall." | fflm score --by word
      fflm score --nbest moses --log-base 10 < hypotheses.txt > rescored.txt
    """
    from fflm.lm import scoring
    from fflm.text.reading import read_chunks

    if nbest and by != "summary":
        raise click.UsageError("--nbest scores hypotheses: leave out --by")
    model = load_model(model_path)
    chunks = read_chunks(inputs or ("-",), encoding, errors)
    unit = 1.0 if log_base == "e" else math.log(10)
    if nbest:
        _rescore(model, chunks, nbest == "moses", unit, as_json)
        return
    totals: list[Score] = []
    lines = _adding(scoring.scored_lines(model, chunks), totals)
    if by == "sentence":
        _show_sentences(scoring.sentences(lines), unit, as_json)
    else:
        for line in lines:
            if by == "word":
                _show_words(model, line, unit, as_json)
    together = totals[0]
    if as_json:
        _echo_json(together.to_dict())
    else:
        if by != "summary":
            click.echo()
        _show_summary(together, unit, log_base)


def _adding(lines: "Iterator[ScoredLine]", totals: "list[Score]") -> "Iterator[ScoredLine]":
    """Pass lines on, keeping the score of all of them in ``totals[0]``."""
    for line in lines:
        totals[:] = [totals[0] + line.score if totals else line.score]
        yield line


def _show_sentences(sentences: "Iterator[tuple[str, Score]]", unit: float, as_json: bool) -> None:
    if not as_json:
        click.echo(f"{'log p':>12} {'tokens':>7} {'unknown':>7} {'perplexity':>12}  text")
    for text, score in sentences:
        if as_json:
            _echo_json({"text": text, **score.to_dict()})
        else:
            figures = f"{score.log_probability / unit:12.4f} {score.tokens:7} {score.unknown:7} {score.perplexity:12.2f}"
            click.echo(f"{figures}  {text}")


def _show_words(model: "Model", line: "ScoredLine", unit: float, as_json: bool) -> None:
    end = model.vocabulary.end_id
    for token, id_, loss in zip(line.tokens, line.ids.tolist(), line.losses.tolist(), strict=True):
        word = model.vocabulary.words[end] if id_ == end and end is not None else token
        unknown = id_ == model.vocabulary.unknown_id
        if as_json:
            _echo_json({"word": word, "unknown": unknown, "log_probability": -loss, "log10_probability": -loss / math.log(10)})
        else:
            click.echo(f"{-loss / unit:12.4f}  {show_word(word)}{' (unknown)' if unknown else ''}")


def _show_summary(score: "Score", unit: float, log_base: str) -> None:
    rows = {
        "perplexity": f"{score.perplexity:,.4f}",
        "  of known words": f"{score.perplexity_known:,.4f}",
        "log-probability": f"{score.log_probability / unit:,.4f} (base {log_base}; {-score.loss / unit:.4f} a token)",
        "bits per character": f"{score.bits_per_character:.4f}",
        "tokens": f"{score.tokens:,} (ends: {score.ends:,})",
        "unknown": f"{score.unknown:,} ({score.unknown_share:.2%})",
        "characters": f"{score.characters:,}",
        "vocabulary": f"{score.vocabulary:,} ({score.rule})",
        "ends": score.policy,
    }
    for name, value in rows.items():
        click.echo(f"{name:20}{value}")


def _rescore(model: "Model", chunks: Iterator[str], moses: bool, unit: float, as_json: bool) -> None:
    from fflm.lm import scoring

    for each in scoring.score_hypotheses(model, chunks, moses=moses):
        value = each.score.log_probability / unit
        if as_json:
            about = {"id": each.fields[0].strip()} if moses and each.fields else {}
            _echo_json({**about, "text": each.text, **each.score.to_dict()})
        elif moses:
            click.echo(scoring.with_feature(each.fields, "fflm", value))
        else:
            click.echo(f"{value:.6f}\t{each.fields[0]}")


def _echo_json(value: dict[str, object]) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))
