"""`fflm score`: perplexity, and scores of words, sentences and n-best lists."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from fflm.cli.loading import find_model, use_device
from fflm.cli.options import (
    device_option,
    encoding_option,
    errors_option,
    json_option,
    model_option,
    overwrite_option,
    quiet_option,
)
from fflm.cli.report import describe_perplexity, show_word
from fflm.cli.tables import printable, stdout_width, table
from fflm.errors import FflmError

if TYPE_CHECKING:
    from fflm.models.base import TextScorer
    from fflm.models.language_model import LanguageModel
    from fflm.models.mixture.model import Mixture
    from fflm.models.neural.fast import FastScorer, Normalisers
    from fflm.models.scoring import Score, ScoredLine
    from fflm.text.corpus import Part


@click.command()
@model_option
@click.argument("inputs", nargs=-1, type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--part",
    type=click.Choice(["train", "valid", "test"]),
    help="Instead of INPUTS, a part of the text that the model was trained on, or its validation or test text.",
)
@click.option(
    "--mix",
    "others",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Mix in another model, trained on the same tokenised text; may be repeated.",
)
@click.option(
    "--cache", type=click.IntRange(1), metavar="WORDS", help="Mix in a cache of the so many latest words: 2000 are a good choice."
)
@click.option(
    "--tune",
    multiple=True,
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="TEXT",
    help="Tune the weights of the mixture on TEXT; may be repeated. [default: the model's validation text]",
)
@click.option("--save", type=click.Path(path_type=Path), metavar="FOLDER", help="Keep the mixture as a model.")
@overwrite_option
@click.option(
    "--fast",
    is_flag=True,
    help="Score without the softmax's normaliser, at the speed of an n-gram model: for models trained with --self-normalise.",
)
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
@encoding_option
@errors_option
@device_option
@quiet_option
@json_option
def command(
    model_path: Path | None,
    inputs: tuple[Path, ...],
    part: str | None,
    others: tuple[Path, ...],
    cache: int | None,
    tune: tuple[Path, ...],
    save: Path | None,
    overwrite: bool,
    fast: bool,
    by: str,
    nbest: str | None,
    log_base: str,
    encoding: str,
    errors: Literal["strict", "replace"],
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure how well a model predicts INPUTS: files (also compressed), folders, or standard input.

    All of them are one text, read as the model's training text was. Averages are over tokens. JSON has both natural and base-10
    logarithms.

    --by sentence shows a row for every line of INPUTS, also for those that hold no words. With --json, it prints an object with
    the "line" (from 1) for each, and the summary last; --by word likewise prints an object for each word, with its "line", its
    "position" in the line (from 1) and its "type": word, unknown or end.

    With --mix or --cache it is a mixture that predicts: the sum of the models' probabilities, each times a weight. The weights
    are tuned on held-out text, and the summary shows each model alone, too. A mixture that is kept with --save can be named with
    --model everywhere; it refers to the folders of its models. With --save and without INPUTS, only the tuning is shown. A cache
    sees what contexts show it: of a model that reads sentences, the sentence alone.

    \b
    Example:
      fflm score novel.txt
      echo "The cat sat on the wall." | fflm score --by word
      fflm score --nbest moses --log-base 10 < hypotheses.txt > rescored.txt
      fflm score -m stories.model --mix stories.ngram --cache 2000 --save stories.mix
      fflm score -m stories.mix --part valid
    """
    from fflm.models import scoring
    from fflm.models.creation import check_free
    from fflm.models.folder import LANGUAGE_MODELS
    from fflm.models.load import load_language_model
    from fflm.models.mixture.model import Comparison, Mixture
    from fflm.models.mixture.train import combine, tune_weights, validation_part
    from fflm.text.reading import read_chunks

    if nbest and by != "summary":
        raise click.UsageError("--nbest scores hypotheses: leave out --by")
    if part and (inputs or nbest or by != "summary"):
        raise click.UsageError("--part is scored as a whole, without INPUTS: leave out INPUTS, --by and --nbest")
    mixing = bool(others) or cache is not None
    if fast and mixing:
        raise click.UsageError("only one network can be fast: leave out --fast, or --mix and --cache")
    if fast and device != "cpu":
        raise click.UsageError("--fast reads tables on the processor: leave out --device, or --fast")
    if (tune or save) and not mixing:
        raise click.UsageError("there is nothing to tune or to save: give --mix or --cache")
    if save:
        check_free(save, overwrite)
    chosen = use_device(device, quiet)

    def use(path: Path) -> "tuple[LanguageModel, FastScorer | None, Part | None]":
        """Return the model, its fast scorer and the part of its text, as far as the options ask for them."""
        if save and path.resolve() == save.resolve():
            raise FflmError(f"{path} is a part of the mixture: choose another folder")
        model = combine([path, *others], cache, chosen) if mixing else load_language_model(path, chosen)
        if mixing and not tune:
            validation_part(path)
        return model, _fast_scorer(model) if fast else None, _part(path, part) if part else None

    path, (model, quick, own_text) = find_model(model_path, quiet, use, *(("network",) if fast else LANGUAGE_MODELS))
    if isinstance(model, Mixture) and mixing:
        model = tune_weights(model, tune, encoding, errors)
    if save and isinstance(model, Mixture):
        model.save(save, overwrite=overwrite)
        if not (inputs or part):
            _show_tuning(model, save, as_json)
            return
    unit = 1.0 if log_base == "e" else math.log(10)
    scorer: TextScorer = quick or (Comparison(model) if isinstance(model, Mixture) else model)
    if quick and not quiet:
        training = model.about.get("training", {})
        if not training.get("self_normalise") and training.get("loss") != "nce":
            click.echo("warning: the model was trained without --self-normalise, so scores are no log-probabilities", err=True)
    if nbest:
        _rescore(scorer, read_chunks(inputs or ("-",), encoding, errors), nbest == "moses", unit, as_json)
        return
    if own_text:
        together = scoring.score_part(scorer, own_text)
    elif by == "summary":
        together = scoring.score_files(scorer, inputs or ("-",), encoding, errors)
    else:
        together = _score_lines(scorer, read_chunks(inputs or ("-",), encoding, errors), by, unit, as_json)
    summary = together.to_dict()
    if isinstance(model, Mixture) and isinstance(scorer, Comparison):
        summary = model.compared(summary, [each.to_dict() for each in scorer.alone(together)])
        summary["tuning"] = model.tuning
    if quick:
        summary["normalisers"] = quick.normalisers.to_dict()
        summary["perplexity_normalised"] = quick.normalisers.perplexity(together.loss)
    if as_json:
        _echo_json({"model": str(path), **summary})
        return
    if by != "summary":
        click.echo()
    if isinstance(model, Mixture):
        click.echo("\n".join([*describe_components(summary), f"weights tuned on {model.tuning['source']}", ""]))
    _show_summary(together, unit, log_base)
    if quick:
        for name, value in describe_normalisers(quick.normalisers, together.loss).items():
            click.echo(f"{name:20}{value}")


def describe_components(figures: dict[str, Any]) -> list[str]:
    """Return a table of what a mixture and each of its components alone make of one text, as lines."""
    rows = []
    for row in [*figures["components"], {"name": "mixture", **figures}]:
        weight = f"{row['weight']:.4f}" if "weight" in row else ""
        values = [row[name] for name in ("perplexity", "perplexity_known", "bits_per_character")]
        rows.append([row["name"], weight, *("-" if value is None else f"{value:,.4f}" for value in values)])
    return table("lrrrr", ["", "weight", "perplexity", "of known words", "bits per character"], rows, stdout_width())


def describe_normalisers(normalisers: "Normalisers", loss: float) -> dict[str, str]:
    """Return by names how far fast scores are from probabilities, whose ``loss``, nats a token, would be another with Z."""
    return {
        "normalisers": f"taken for 1 above; in {normalisers.contexts:,} contexts |log Z| is "
        f"{normalisers.mean_absolute:.4f} in the mean, {normalisers.worst:.4f} at worst, log Z {normalisers.mean:+.4f}",
        "  with them": f"perplexity about {normalisers.perplexity(loss):,.1f}",
    }


def describe_tuning(figures: dict[str, Any]) -> list[str]:
    """Return what is known from the tuning of a mixture's weights, as lines."""
    return [*describe_components(figures), f"tuned on {figures['source']}: {describe_perplexity(figures)}"]


def _show_tuning(mixture: "Mixture", path: Path, as_json: bool) -> None:
    if as_json:
        _echo_json({"model": str(path), **mixture.tuning})
    else:
        click.echo("\n".join([f"model {path}", *describe_tuning(mixture.tuning)]))


def _fast_scorer(model: "LanguageModel") -> "FastScorer":
    from fflm.models.neural.fast import fast_scorer

    return fast_scorer(model)


def _part(path: Path, name: str) -> "Part":
    """Return a part of the corpus that the model in a folder was trained on."""
    from fflm.models.corpora import trained_corpus

    parts = trained_corpus(path).parts
    if name not in parts:
        raise FflmError(f"{path} was trained without a {name} part: give a text to score")
    return parts[name]


def _score_lines(model: "TextScorer", chunks: Iterator[str], by: str, unit: float, as_json: bool) -> "Score":
    """Return the score of a text, after showing that of its sentences or words."""
    from fflm.models import scoring

    totals: list[Score] = []
    lines = _adding(scoring.scored_lines(model, chunks), totals)
    if by == "sentence":
        _show_sentences(scoring.sentences(lines), unit, as_json)
    else:
        _show_words(model, lines, unit, as_json)
    return totals[0]


def _adding(lines: "Iterator[ScoredLine]", totals: "list[Score]") -> "Iterator[ScoredLine]":
    """Pass lines on, keeping the score of all of them in ``totals[0]``."""
    for line in lines:
        totals[:] = [totals[0] + line.score if totals else line.score]
        yield line


def _show_sentences(sentences: "Iterator[tuple[str, Score]]", unit: float, as_json: bool) -> None:
    if not as_json:
        click.echo(f"{'log p':>12} {'tokens':>7} {'unknown':>7} {'perplexity':>12}  text")
    for number, (text, score) in enumerate(sentences, 1):
        if as_json:
            _echo_json({"line": number, "text": text, **score.to_dict()})
        else:
            perplexity = f"{score.perplexity:.2f}" if score.tokens else "-"
            figures = f"{score.log_probability / unit:12.4f} {score.tokens:7} {score.unknown:7} {perplexity:>12}"
            click.echo(f"{figures}  {text}")


def _show_words(model: "TextScorer", lines: "Iterator[ScoredLine]", unit: float, as_json: bool) -> None:
    from fflm.text.vocabulary import END

    number = position = 0
    for line in lines:
        if line.number != number:
            number, position = line.number, 0
        for token, id_, loss in zip(line.tokens, line.ids.tolist(), line.losses.tolist(), strict=True):
            position += 1
            kind = {model.vocabulary.unknown_id: "unknown", model.vocabulary.end_id: "end"}.get(id_, "word")
            word = END if kind == "end" else token
            if as_json:
                logs = {"log_probability": -loss, "log10_probability": -loss / math.log(10)}
                place = {"line": number, "position": position}
                _echo_json({**place, "word": word, "type": kind, "unknown": kind == "unknown", **logs})
            else:
                click.echo(f"{-loss / unit:12.4f}  {show_word(word)}{' (unknown)' if kind == 'unknown' else ''}")


def _show_summary(score: "Score", unit: float, log_base: str) -> None:
    rows = {
        "perplexity": f"{score.perplexity:,.4f}",
        "  of known words": f"{score.perplexity_known:,.4f}",
        "log-probability": f"{score.log_probability / unit:,.4f} (base {log_base}; {-score.loss / unit:.4f} a token)",
        "bits per character": f"{score.bits_per_character:.4f}",
        "tokens": f"{score.tokens:,} (ends: {score.ends:,})",
        "unknown": f"{score.unknown:,} ({score.unknown_share:.2%})",
        "characters": f"{score.characters:,}",
        "vocabulary": f"{score.vocabulary:,} ({printable(score.rule)})",
        "ends": score.policy,
    }
    for name, value in rows.items():
        click.echo(f"{name:20}{value}")


def _rescore(model: "TextScorer", chunks: Iterator[str], moses: bool, unit: float, as_json: bool) -> None:
    from fflm.models import scoring

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
