"""`fflm score`: perplexities, and log-probabilities of words, sentences and n-best lists."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from fflm.cli.loading import announce_stdin, find_model, use_device
from fflm.cli.mix import describe_components
from fflm.cli.options import PATH, device_option, encoding_option, errors_option, json_option, model_option, quiet_option
from fflm.cli.report import describe_policy, echo_json, show_word
from fflm.cli.tables import printable
from fflm.parallel.launch import refuse_several_processes

if TYPE_CHECKING:
    from fflm.models.base import LineScorer, TextScorer
    from fflm.models.neural.fast import Normalizers
    from fflm.models.scoring import Score, ScoredLine
    from fflm.text.corpus import Part


@dataclass(frozen=True)
class Request:
    """The options of the command: what to score, and how to show the scores.

    Raises
    ------
    click.UsageError
        If options cannot be combined.
    """

    inputs: tuple[Path, ...]
    part: str | None
    fast: bool
    by: str
    nbest: str | None
    follow: bool
    log_base: str
    encoding: str
    errors: Literal["strict", "replace"]
    device: str
    quiet: bool
    as_json: bool

    def __post_init__(self) -> None:
        if self.nbest and self.by != "summary":
            raise click.UsageError("--nbest scores each hypothesis: leave out --by")
        if self.part and (self.inputs or self.nbest or self.by != "summary"):
            raise click.UsageError("--part is scored as a whole: leave out INPUTS, --by and --nbest")
        if self.follow and (self.inputs or self.part or self.nbest or self.by != "summary"):
            raise click.UsageError("--follow scores the lines of standard input: leave out INPUTS, --part, --by and --nbest")
        if self.fast and self.device != "cpu":
            raise click.UsageError("--fast runs on the CPU only: leave out --device or --fast")
        if self.fast or self.follow or self.nbest or self.by != "summary":
            refuse_several_processes("`fflm score` with --fast, --follow, --nbest or --by")
        if Path("-") in self.texts and not self.part:
            refuse_several_processes("scoring standard input")

    @property
    def unit(self) -> float:
        """The number of nats in a unit of the log-probabilities to print."""
        return 1.0 if self.log_base == "e" else math.log(10)

    @property
    def texts(self) -> tuple[Path, ...]:
        """The inputs, or standard input if there are none."""
        return self.inputs or (Path("-"),)

    def chunks(self) -> Iterator[str]:
        """Return the text of the inputs in chunks."""
        from fflm.text.reading import read_chunks

        return read_chunks(self.texts, self.encoding, self.errors)


@click.command()
@model_option
@click.argument("inputs", nargs=-1, type=PATH)
@click.option(
    "--part",
    type=click.Choice(["train", "valid", "test"]),
    help="Score the training, validation or test text of the model instead of INPUTS.",
)
@click.option(
    "--fast",
    is_flag=True,
    help="Score without normalizing the softmax, at the speed of an n-gram model; for models trained with --self-normalise.",
)
@click.option(
    "--by",
    type=click.Choice(["summary", "sentence", "word"]),
    default="summary",
    show_default=True,
    help="Also score each line or each word.",
)
@click.option(
    "--nbest",
    type=click.Choice(["moses", "plain"]),
    help="Rescore hypotheses: moses reads `id ||| hypothesis ||| features ||| score` and appends a feature to each line; "
    "plain reads one hypothesis per line.",
)
@click.option(
    "--follow",
    is_flag=True,
    help="Answer each line of standard input at once with a line: its log-probability as a text of its own.",
)
@click.option("--log-base", type=click.Choice(["e", "10"]), default="e", show_default=True, help="Base of log-probabilities.")
@encoding_option
@errors_option
@device_option
@quiet_option
@json_option
def command(model_path: Path | None, **options: Any) -> None:
    """Measure how well a model predicts INPUTS: files (also compressed), folders, or standard input.

    All INPUTS together are one text, which is tokenized like the model's training text. Averages are over tokens. JSON contains
    both natural and base-10 logarithms.

    --by sentence prints a row for each line of INPUTS, also for lines without words. With --json, it prints an object with
    "line" (from 1) for each, and the summary last. --by word likewise prints an object for each word, with its "line", its
    "position" in the line (from 1) and its "type": word, unknown or end.

    For a mixture (see `fflm mix`), the summary also shows each of its models alone.

    --follow is for programs that keep the command running: a line in, a line out, at once. An empty line is an empty sentence.

    \b
    Example:
      fflm score novel.txt
      echo "The cat sat on the wall." | fflm score --by word
      fflm score --nbest moses --log-base 10 < hypotheses.txt > rescored.txt
      fflm score -m stories.mix --part valid
    """
    request = Request(**options)
    path, scorer, part = _load(model_path, request)
    if not part:
        announce_stdin(request.texts, request.quiet)
    if request.nbest:
        _rescore(scorer, request)
        return
    if request.follow:
        _follow(scorer, request)
        return
    score = _score(scorer, part, request)
    if request.as_json:
        echo_json({"model": str(path), **_figures(scorer, score)})
        return
    if request.by != "summary":
        click.echo()
    click.echo("\n".join(_summary(scorer, score, request)))


def _load(path: Path | None, request: Request) -> "tuple[Path, LineScorer, Part | None]":
    """Return the folder of the model, its scorer, and the part of its corpus to score, or None for the inputs."""
    from fflm.models.corpora import trained_part
    from fflm.models.folder import LANGUAGE_MODELS
    from fflm.models.load import load_language_model
    from fflm.models.mixture.model import ComponentScorer, Mixture
    from fflm.models.neural.fast import FastScorer, make_fast_scorer

    device = use_device(request.device, request.quiet)

    def use(path: Path) -> "tuple[LineScorer, Part | None]":
        model = load_language_model(path, device)
        scorer: LineScorer = ComponentScorer(model) if isinstance(model, Mixture) and not request.follow else model
        part = trained_part(path, request.part, "give a text to score") if request.part else None
        return make_fast_scorer(model) if request.fast else scorer, part

    kinds = ("network",) if request.fast else LANGUAGE_MODELS
    path, (scorer, part) = find_model(path, request.quiet, use, *kinds)
    if isinstance(scorer, FastScorer) and not request.quiet:
        training = scorer.model.about.get("training", {})
        if not training.get("self_normalise") and training.get("loss") != "nce":
            click.echo("warning: the model was trained without --self-normalise: the scores are not log-probabilities", err=True)
    return path, scorer, part


def _score(scorer: "LineScorer", part: "Part | None", request: Request) -> "Score":
    """Return the score of a part or of the inputs, after printing the scores of their sentences or words if requested."""
    from fflm.models import scoring
    from fflm.models.mixture.model import ComponentScorer
    from fflm.parallel.world import world

    if part or request.by == "summary":
        if part:
            score = scoring.score_part(scorer, part, world())
        else:
            score = scoring.score_files(scorer, request.texts, request.encoding, request.errors, world())
        if isinstance(scorer, ComponentScorer):
            scorer.sum_over(world())
        return score
    totals: list[Score] = []
    lines = _adding(scoring.scored_lines(scorer, request.chunks()), totals)
    if request.by == "sentence":
        _show_sentences(scoring.sentences(lines), request)
    else:
        _show_words(scorer, lines, request)
    return totals[0]


def _adding(lines: "Iterator[ScoredLine]", totals: "list[Score]") -> "Iterator[ScoredLine]":
    """Yield the lines, and keep the total of their scores in ``totals[0]``."""
    for line in lines:
        totals[:] = [totals[0] + line.score if totals else line.score]
        yield line


def _show_sentences(sentences: "Iterator[tuple[str, Score]]", request: Request) -> None:
    """Print the score of each sentence."""
    if not request.as_json:
        click.echo(f"{'log p':>12} {'tokens':>7} {'OOV':>7} {'perplexity':>12}  text")
    for number, (text, score) in enumerate(sentences, 1):
        if request.as_json:
            echo_json({"line": number, "text": text, **score.to_dict()})
        else:
            perplexity = f"{score.perplexity:.2f}" if score.tokens else "-"
            figures = f"{score.log_probability / request.unit:12.4f} {score.tokens:7} {score.unknown:7} {perplexity:>12}"
            click.echo(f"{figures}  {text}")


def _show_words(scorer: "TextScorer", lines: "Iterator[ScoredLine]", request: Request) -> None:
    """Print the score of each word."""
    from fflm.text.vocabulary import END

    number = position = 0
    for line in lines:
        if line.number != number:
            number, position = line.number, 0
        for token, id_, loss in zip(line.tokens, line.ids.tolist(), line.losses.tolist(), strict=True):
            position += 1
            kind = {scorer.vocabulary.unknown_id: "unknown", scorer.vocabulary.end_id: "end"}.get(id_, "word")
            word = END if kind == "end" else token if request.as_json else scorer.text.tokenizer.readable(token)
            if request.as_json:
                logs = {"log_probability": -loss, "log10_probability": -loss / math.log(10)}
                place = {"line": number, "position": position}
                echo_json({**place, "word": word, "type": kind, "unknown": kind == "unknown", **logs})
            else:
                click.echo(f"{-loss / request.unit:12.4f}  {show_word(word)}{' (OOV)' if kind == 'unknown' else ''}")


def _figures(scorer: "TextScorer", score: "Score") -> dict[str, Any]:
    """Return the summary as JSON, for a mixture with each model alone, for fast scores with the statistics of normalizers."""
    from fflm.models.mixture.model import ComponentScorer
    from fflm.models.neural.fast import FastScorer

    figures: dict[str, Any] = score.to_dict()
    if isinstance(scorer, ComponentScorer):
        figures = scorer.mixture.compared(figures, [each.to_dict() for each in scorer.component_scores(score)])
        if "tuning" in scorer.mixture.figures:
            figures["tuning"] = scorer.mixture.tuning
    if isinstance(scorer, FastScorer):
        figures["normalizers"] = scorer.normalizers.to_dict()
        figures["perplexity_normalized"] = scorer.normalizers.perplexity(score.loss)
    return figures


def _summary(scorer: "TextScorer", score: "Score", request: Request) -> list[str]:
    """Return the summary as lines."""
    from fflm.models.mixture.model import ComponentScorer
    from fflm.models.neural.fast import FastScorer

    lines = []
    if isinstance(scorer, ComponentScorer):
        known = scorer.mixture.figures
        if "tuning" in known:
            origin = f"weights tuned on {known['tuning']['source']}"
        else:
            origin = "equal weights" if len(set(scorer.mixture.weights.tolist())) == 1 else "weights that were not tuned"
        lines += [*describe_components(_figures(scorer, score)), origin, ""]
    rows = {
        "perplexity": f"{score.perplexity:,.4f}",
        "  of known words": f"{score.perplexity_known:,.4f}",
        "log-probability": f"{score.log_probability / request.unit:,.4f} "
        f"(base {request.log_base}; {-score.loss / request.unit:.4f} per token)",
        "bits per character": f"{score.bits_per_character:.4f}",
    }
    extent = f"{score.characters:,}"
    if score.bytes:  # which are not known of a corpus that an early version tokenized
        rows["bits per byte"] = f"{score.bits_per_byte:.4f} (perplexity {score.byte_perplexity:.4f})"
        rows["word perplexity"] = f"{score.word_perplexity:,.4f} (per word between white space)"
        extent += f" ({score.bytes:,} bytes, {score.words:,} words)"
    rows |= {
        "tokens": f"{score.tokens:,} (ends: {score.ends:,})",
        "OOV rate": f"{score.oov_rate:.2%} ({score.unknown:,} tokens)",
        "characters": extent,
        "vocabulary": f"{score.vocabulary:,} ({printable(score.rule)})",
    }
    rows |= dict([describe_policy(score.policy)])
    if isinstance(scorer, FastScorer):
        rows |= describe_normalizers(scorer.normalizers, score.loss)
    return lines + [f"{name:20}{value}" for name, value in rows.items()]


def describe_normalizers(normalizers: "Normalizers", loss: float) -> dict[str, str]:
    """Return by names how far fast scores are from probabilities, whose ``loss``, nats per token, would be another with Z."""
    return {
        "normalizers": f"taken for 1 above; in {normalizers.contexts:,} contexts |log Z| is "
        f"{normalizers.mean_absolute:.4f} on average, {normalizers.worst:.4f} at worst, log Z {normalizers.mean:+.4f}",
        "  with them": f"perplexity about {normalizers.perplexity(loss):,.1f}",
    }


def _follow(scorer: "LineScorer", request: Request) -> None:
    """Answer each line of standard input with its log-probability."""
    from fflm.text.reading import arriving_lines

    for line in arriving_lines(request.encoding, request.errors):
        value = float(scorer.scores([line])[0])
        if request.as_json:
            echo_json({"log_probability": value, "log10_probability": value / math.log(10)})
        else:
            click.echo(f"{value / request.unit:.6f}")


def _rescore(scorer: "TextScorer", request: Request) -> None:
    """Print each hypothesis of an n-best list with its log-probability."""
    from fflm.models import scoring

    moses = request.nbest == "moses"
    for each in scoring.score_hypotheses(scorer, request.chunks(), moses=moses):
        value = each.score.log_probability / request.unit
        if request.as_json:
            about = {"id": each.fields[0].strip()} if moses and each.fields else {}
            echo_json({**about, "text": each.text, **each.score.to_dict()})
        elif moses:
            click.echo(scoring.with_feature(each.fields, "fflm", value))
        else:
            click.echo(f"{value:.6f}\t{each.fields[0]}")
