"""`fflm classify`: training, prediction and evaluation of text classifiers."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fflm.arguments import description, parameters
from fflm.cli import progress
from fflm.cli.loading import announce_stdin, find_model, use_device
from fflm.cli.options import (
    PATH,
    Command,
    HeadedCommand,
    add_options,
    annotated_option,
    device_option,
    encoding_option,
    errors_option,
    field_option,
    given_options,
    held_out_options,
    json_option,
    model_option,
    overwrite_option,
    precision_option,
    quiet_option,
    save_every_option,
    threads_option,
)
from fflm.cli.progress import View, describe_resumed, resume_run, row_end, row_start
from fflm.cli.report import describe_classification, echo_json, message_console, show_word
from fflm.cli.tables import Column, stdout_width, table
from fflm.cli.tune import read_space, resume_search, run_search, search_options

if TYPE_CHECKING:
    from rich.console import Console

    from fflm.models.classifier.data import ClassifierData
    from fflm.models.classifier.metrics import Report
    from fflm.models.classifier.model import Mistake, TextClassifier
    from fflm.models.classifier.train import ClassifierSession
    from fflm.search.search import Search
    from fflm.training.events import Step
    from fflm.training.session import Session

EVALUATIONS = (
    Column("epoch"),
    Column("step", 9),
    Column("train loss"),
    Column("valid loss"),
    Column("accuracy"),
    Column("macro F1", optional=True),
    Column("", 2),
    Column("rate", 7, optional=True),
)
"""The first columns of a table of evaluations; the column without heading marks the best."""

CLASSES = 12
"""Maximum number of classes of a confusion matrix that is printed; larger ones are only in the JSON."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Train text classifiers on labeled text, predict labels, and evaluate the predictions.

    \b
    Example:
      fflm classify train reviews.tsv
      echo "what a lovely film" | fflm classify predict
      fflm classify eval more-reviews.tsv
    """


def _reading_options(command: Command) -> Command:
    """Add the options for reading labeled text."""
    from fflm.models.classifier.reading import Format, LabelColumn, TextColumn

    options = [
        annotated_option("format", Format, "auto"),
        annotated_option("text_column", TextColumn, "text"),
        annotated_option("label_column", LabelColumn, "label"),
        encoding_option,
        errors_option,
    ]
    return add_options(options, command)


def _use_input(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Make the defaults of tagging those of all options that are processed after the input, which is returned."""
    if value == "tagging":
        from fflm.models.classifier.settings import TAGGING

        context.default_map = TAGGING
    return value


def _input_options(command: Command) -> Command:
    """Add the options for the input of the network."""
    from fflm.models.classifier.settings import DEFAULTS, Lexicons, TextInput, TokenizerMode
    from fflm.text.tokenizer import Tokenizer
    from fflm.text.vocabulary import VocabularyRule

    options = [
        field_option(TextInput, "input", is_eager=True, callback=_use_input),
        field_option(TextInput, "length"),
        field_option(TextInput, "padding"),
        field_option(TextInput, "bigrams"),
        field_option(TextInput, "counts"),
        click.option(
            "--lexicon",
            "lexicons",
            type=PATH,
            multiple=True,
            metavar="FILE",
            help=f"{description(Lexicons)} May be repeated.",
        ),
        click.option(
            "--present",
            multiple=True,
            metavar="WORD",
            help=f"{description(parameters(TextInput)['present'].annotation)} May be repeated.",
        ),
        field_option(TextInput, "word_count"),
        field_option(TextInput, "log_length"),
        annotated_option("tokenizer", TokenizerMode, Tokenizer.mode),
        field_option(Tokenizer, "lowercase"),
        *(field_option(VocabularyRule, name, default=DEFAULTS[name]) for name in ("min_count", "max_size")),
    ]
    return add_options(options, command)


def _vectors_options(command: Command) -> Command:
    """Add the options for initial embeddings."""
    from fflm.models.classifier.settings import Vectors
    from fflm.training.settings import TrainingSettings

    options = [
        click.option("--vectors", type=PATH, metavar="FOLDER|FILE", help=description(Vectors)),
        field_option(TrainingSettings, "frozen"),
    ]
    return add_options(options, command)


def _network_options(command: Command) -> Command:
    """Add the options for network and training."""
    from fflm.models.classifier.settings import DEFAULTS, Balanced, Test, Valid
    from fflm.network.config import NetworkConfig
    from fflm.training.settings import TrainingSettings

    def own(of: type, *names: str) -> list[Callable[[Command], Command]]:
        return [field_option(of, name, **({"default": DEFAULTS[name]} if name in DEFAULTS else {})) for name in names]

    by_number = {"default": None, "by": "the number of texts"}
    options: list[Callable[[Any], Any]] = [
        *own(NetworkConfig, "embedding", "hidden", "activation", "negative_slope", "residual", "dropout", "embedding_dropout"),
        click.option("--balanced", is_flag=True, help=description(Balanced)),
        field_option(TrainingSettings, "epochs", **by_number),
        field_option(TrainingSettings, "batch_size", **by_number),
        *own(
            TrainingSettings,
            *("optimizer", "rate", "momentum", "weight_decay", "l1", "l2"),
            *("schedule", "clip", "smoothing", "patience"),
        ),
        *held_out_options(Valid, "10%", Test),
        save_every_option,
        *own(TrainingSettings, "seed"),
        threads_option,
        device_option,
        precision_option,
    ]
    return add_options(options, command)


@command.command(cls=HeadedCommand)
@click.argument("inputs", nargs=-1, type=PATH)
@click.option("-o", "--output", type=PATH, metavar="FOLDER", help="[default: INPUT.classifier]")
@overwrite_option
@click.option("--resume", type=PATH, metavar="FOLDER", help="Resume training of this classifier.")
@_reading_options
@_input_options
@_vectors_options
@_network_options
@quiet_option
@json_option
@click.pass_context
def train(
    context: click.Context,
    /,
    inputs: tuple[Path, ...],
    output: Path | None,
    resume: Path | None,
    save_every: float,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a classifier on INPUTS, labeled text: files (also compressed), folders, or - for standard input.

    With --input tagging, each word has a label: a line of INPUTS is a word, a tab and its tag, or CoNLL-U, and a blank line ends
    a sentence.

    The classifier is a folder. Progress is printed on standard error. Ctrl-C saves, and --resume continues with the same result
    as without an interruption.

    \b
    Example:
      fflm classify train reviews.tsv --bigrams
      fflm classify train news.csv --text-column body --label-column topic --test 10%
      fflm classify train tags.tsv --input tagging
      fflm classify train --resume reviews.classifier
    """
    console = message_console(quiet)
    given = given_options(context)
    if resume:
        run = _resume(resume, given, options, console)
    elif inputs:
        run = _start(inputs, output, given, options, console)
    else:
        raise click.UsageError("give labeled text to train on, or --resume a classifier")
    progress.train(context, run, console, _view(run), save_every, as_json)


def _start(
    inputs: tuple[Path, ...], output: Path | None, given: dict[str, str], options: dict[str, Any], console: "Console"
) -> "ClassifierSession":
    """Start a training run, and print its texts and network."""
    from fflm.models.classifier.train import start_session

    if options["vectors"] and "embedding" in given:
        raise click.UsageError("--vectors sets the size of the embeddings: leave out --embedding")
    options["device"] = use_device(options["device"], console.quiet)
    run = start_session(inputs, output, **options)
    _show_data(run.data, console)
    settings, trainer = run.trainer.settings, run.trainer
    console.print(
        f"network: {trainer.parameters.count:,} parameters, batches of {settings.batch_size}, {trainer.batches:,} per epoch"
    )
    return run


def _resume(path: Path, given: dict[str, str], options: dict[str, Any], console: "Console") -> "ClassifierSession":
    """Resume a training run, and print its state."""
    from fflm.models.classifier.train import ClassifierSession

    run = resume_run(ClassifierSession.resume, path, given, options, console.quiet)
    console.print(describe_resumed(run))
    return run


def _row(run: "Session", train_loss: float | None, valid: dict[str, Any] | None, mark: str) -> tuple[str, ...]:
    """Return a row of the table of evaluations."""
    return (*row_start(run), f"{train_loss:.4f}", *show_valid(valid), mark, *row_end(run))


def show_valid(valid: dict[str, Any] | None) -> tuple[str, str, str]:
    """Return the cells for the validation texts in a table of `EVALUATIONS`."""
    return (f"{valid['loss']:.4f}", f"{valid['accuracy']:.2%}", f"{valid['macro_f1']:.4f}") if valid else ("-", "-", "-")


def _loss(run: "Session", event: "Step") -> str:
    """Return a phrase about the training loss for the progress bar."""
    return f"loss {run.trainer.state.loss_mean:.3f}"


@command.command(cls=HeadedCommand)
@search_options
@_reading_options
@_input_options
@_network_options
@quiet_option
@json_option
@click.pass_context
def tune(
    context: click.Context,
    /,
    inputs: tuple[Path, ...],
    output: Path | None,
    resume: Path | None,
    minutes: float | None,
    save_every: float,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Search for the settings with the lowest loss on the validation texts of INPUTS. The test texts are not used.

    A trial trains a classifier, as `fflm classify train` does with the same options. The rest is as in `fflm tune`: the search is
    a folder that contains a table of the trials and the best model. Ctrl-C saves, and --resume continues with the same result as
    without an interruption. Needs Optuna: `pip install '.[tune]'` in a checkout of fflm.

    \b
    Example:
      fflm classify tune reviews.tsv
      fflm classify tune reviews.tsv --search rate=0.01..0.2 --search dropout=0..0.5
      fflm classify tune --resume reviews.tune --trials 50
    """
    console = message_console(quiet)
    if not (resume or inputs):
        raise click.UsageError("give labeled text to train on, or --resume a search")

    def begin() -> "Search":
        if resume:
            return resume_search(context, resume, options["trials"], console)
        return _start_search(context, inputs, output, options, console)

    run_search(context, begin, minutes, save_every, console, as_json)


def _start_search(
    context: click.Context, inputs: tuple[Path, ...], output: Path | None, options: dict[str, Any], console: "Console"
) -> "Search":
    """Start a search, and print its texts."""
    from fflm.search.data import LabeledData
    from fflm.search.search import start_classifier_search
    from fflm.search.space import CLASSIFIER_SPACE

    space = read_space(context, options.pop("search"), CLASSIFIER_SPACE, "classifier")
    options["device"] = use_device(options["device"], console.quiet)
    prune = not options.pop("no_prune")
    search = start_classifier_search(inputs, output, space, prune=prune, **options)
    assert isinstance(search.data, LabeledData)
    _show_data(search.data.data, console)
    return search


def _show_data(data: "ClassifierData", console: "Console") -> None:
    """Print the sizes of the parts, the classes and the vocabulary."""
    for name, part in data.sizes.items():
        console.print(f"{name}: {describe_part(part)}")
    console.print(f"classes: {', '.join(data.labels[:20])}{' ...' if len(data.labels) > 20 else ''}")
    console.print(f"vocabulary: {len(data.reader.vocabulary):,} ({data.reader.vocabulary.rule})")


def describe_part(sizes: dict[str, int]) -> str:
    """Return a phrase for the size of a part of the labeled text, given `fflm.models.classifier.data.ClassifierData.sizes`."""
    kind = "sentences" if "sentences" in sizes else "texts"
    return f"{sizes[kind]:,} {kind}, {sizes['words']:,} words"


def _view(run: "ClassifierSession") -> View:
    """Return how the training of a classifier is displayed."""
    unit = run.data.reader.input.unit
    describe = functools.partial(describe_classification, unit=unit)
    return View("classifier", "fflm classify train", EVALUATIONS, f"{unit}s/s", _row, _loss, describe)


@command.command()
@click.argument("inputs", nargs=-1, type=PATH)
@model_option
@click.option(
    "--top",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of labels for each text, or for each word.",
)
@encoding_option
@errors_option
@device_option
@quiet_option
@json_option
def predict(
    inputs: tuple[Path, ...],
    model_path: Path | None,
    top: int,
    encoding: str,
    errors: Any,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Predict the label of each line of INPUTS: files (also compressed), folders, or standard input.

    Each output line contains a label, a tab and its probability, and with --top more pairs of these. A classifier that tags words
    prints a line for each word: the word, a tab and its tag, as in its training files; with --top, the tags have probabilities. A
    blank line ends each sentence. With --json, each line is an object, of a text or of a sentence.

    \b
    Example:
      fflm classify predict unlabeled.txt
      echo "what a lovely film" | fflm classify predict --top 3
    """
    from fflm.models.classifier.model import batches
    from fflm.models.classifier.reading import read_texts

    inputs = inputs or (Path("-"),)
    _, classifier = _load(model_path, device, quiet)
    announce_stdin(inputs, quiet)
    show = _show_tags if classifier.reader.input.tagging else _show_labels
    for texts in batches(read_texts(inputs, encoding, errors)):
        show(classifier, texts, top, as_json)


def _likeliest(classifier: "TextClassifier", row: Any, top: int) -> dict[str, float]:
    """Return the labels with the highest of the probabilities (C,), the highest first, and these."""
    return {classifier.labels[place]: float(row[place]) for place in (-row).argsort(kind="stable")[:top]}


def _pairs(best: dict[str, float]) -> str:
    """Return labels and their probabilities as columns."""
    return "\t".join(f"{label}\t{probability:.4f}" for label, probability in best.items())


def _show_labels(classifier: "TextClassifier", texts: list[str], top: int, as_json: bool) -> None:
    """Print a line for each text, with its likeliest labels."""
    for row in classifier.predict_proba(texts):
        best = _likeliest(classifier, row, top)
        if as_json:
            echo_json({"label": next(iter(best)), "probabilities": best})
        else:
            click.echo(_pairs(best))


def _show_tags(classifier: "TextClassifier", texts: list[str], top: int, as_json: bool) -> None:
    """Print a line for each word of each text, with its likeliest tags, and a blank line after each text."""
    rows = iter(classifier.predict_proba(texts))
    split = classifier.reader.input.tokenizer.tokens
    for text in texts:
        words = split(text)
        best = [_likeliest(classifier, next(rows), top) for _ in words]
        tags = [next(iter(each)) for each in best]
        if as_json:
            echo_json({"words": words, "tags": tags, "probabilities": best})
            continue
        columns = tags if top == 1 else map(_pairs, best)
        click.echo("".join(f"{word}\t{shown}\n" for word, shown in zip(words, columns, strict=True)))


@command.command("eval")
@click.argument("inputs", nargs=-1, required=True, type=PATH)
@model_option
@_reading_options
@click.option(
    "--mistakes",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Number of mistakes to show.",
)
@device_option
@quiet_option
@json_option
def evaluate(
    inputs: tuple[Path, ...], model_path: Path | None, mistakes: int, device: str, quiet: bool, as_json: bool, **reading: Any
) -> None:
    """Compare predictions with the labels of INPUTS: accuracy, 0-1 loss, F1, confusion, and the most confident mistakes.

    \b
    Example:
      fflm classify eval more-reviews.tsv
    """
    import dataclasses

    from fflm.models.classifier.data import LabeledSource

    path, classifier = _load(model_path, device, quiet)
    input = classifier.reader.input
    labeled = LabeledSource(inputs, valid=None, **reading).read(0, tagged=input.tagging)["train"]
    report, wrong = classifier.evaluate(labeled.texts, labeled.labels)
    if as_json:
        shown = [dataclasses.asdict(mistake) for mistake in wrong[:mistakes]]
        echo_json({"model": str(path), **report.to_dict(), "mistakes": shown})
        return
    click.echo(f"classifier {path}")
    click.echo("\n".join([*_report(report, input.unit), *_mistakes(wrong[:mistakes])]))


def _load(path: Path | None, device: str, quiet: bool) -> "tuple[Path, TextClassifier]":
    """Load the given classifier, or the latest one in the current folder; return its folder, too."""
    from fflm.models.classifier.model import TextClassifier

    chosen = use_device(device, quiet)
    return find_model(path, quiet, lambda path: TextClassifier.load(path, chosen), "classifier")


def _report(report: "Report", unit: str) -> list[str]:
    """Return the figures of an evaluation, of examples that are called ``unit``, as lines."""
    width, labels = stdout_width(), [show_word(label) for label in report.labels]
    columns = zip(labels, report.precision, report.recall, report.f1, report.support, strict=True)
    rows = [[label, *(f"{share:.4f}" for share in shares), f"{support:,}"] for label, *shares, support in columns]
    lines = [
        describe_classification(report.to_dict(), unit),
        f"0-1 loss {report.zero_one_loss:.4f}, the share of wrong predictions",
        "",
    ]
    lines += table("lrrrr", ["", "precision", "recall", "F1", f"{unit}s"], rows, width)
    if len(labels) > CLASSES:
        return [*lines, "", f"confusion matrix of {len(labels)} classes: see --json"]
    rows = [[label, *(f"{count:,}" for count in row)] for label, row in zip(labels, report.confusion.tolist(), strict=True)]
    lines += ["", "confusion matrix: rows are true classes, columns are predicted classes"]
    return lines + table("l" + "r" * len(labels), ["", *labels], rows, width)


def _mistakes(mistakes: "list[Mistake]") -> list[str]:
    """Return the mistakes of a classifier as lines."""
    from fflm.models.classifier.reading import single_spaced

    if not mistakes:
        return []
    lines = ["", "the most confident mistakes"]
    for mistake in mistakes:
        text = single_spaced(mistake.text)
        text = text if len(text) <= 200 else f"{text[:200]}..."
        lines.append(f"{mistake.probability:.4f} {mistake.predicted}, true class {mistake.truth}: {text}")
    return lines
