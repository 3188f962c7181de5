"""`fflm generate`: text generation from a prefix."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fflm.cli.loading import load_model, read_prefix
from fflm.cli.options import check_number, device_option, json_option, model_option, prefix_options, quiet_option
from fflm.cli.report import echo_json

if TYPE_CHECKING:
    from fflm.models.generation import Continuation
    from fflm.models.language_model import LanguageModel

_SAMPLING = ("temperature", "top_k", "top_p", "seed")  # options that only sampling uses
_BEAMS = ("normalize",)  # options that only beam search uses


@click.command()
@model_option
@prefix_options
@click.option("-n", "--samples", type=click.IntRange(1), default=1, show_default=True, help="Number of continuations.")
@click.option(
    "--length", type=click.IntRange(1), default=100, show_default=True, help="Maximum number of tokens of a continuation."
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    callback=check_number,
    help="Below 1 favors probable words, above 1 improbable ones; 0 is the same as --greedy.",
)
@click.option("--top-k", type=click.IntRange(1), metavar="K", help="Draw from the K most probable words only.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="P",
    callback=check_number,
    help="Draw from the fewest words whose probabilities sum to at least P (nucleus sampling).",
)
@click.option("--seed", type=click.IntRange(0), help="Random seed. [default: a new one each time]")
@click.option("--greedy", is_flag=True, help="Always take the most probable word.")
@click.option("--beams", type=click.IntRange(1), metavar="N", help="Beam search with N beams, for the most probable text.")
@click.option("--normalize", is_flag=True, help="Rank the beams by log-probability per token.")
@click.option("--unknown", is_flag=True, help="Allow <unk>, the unknown word, in the text.")
@click.option(
    "--stop-at-end/--no-stop-at-end",
    default=None,
    help="Stop at the end of a sentence. [default: as the model reads text]",
)
@device_option
@quiet_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    /,
    model_path: Path | None,
    prefix: str | None,
    prefix_file: Path | None,
    samples: int,
    greedy: bool,
    beams: int | None,
    device: str,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Continue a prefix, and print it with its continuation.

    The text is sampled from the model's distribution; --greedy and --beams search for the most probable text instead. A model
    in sentence mode stops at the end of a sentence, others continue. Several texts are separated by an empty line if one of them
    has more than one line.

    \b
    Example:
      fflm generate --prefix "The cat" --temperature 0.7 --samples 3
      fflm generate --prefix "The cat" --beams 10 --stop-at-end
    """
    from fflm.models import generation

    _check_combination(context, greedy, beams, samples)
    path, model = load_model(model_path, quiet, device)
    start = read_prefix(model, prefix, prefix_file, quiet)
    if greedy:
        options["temperature"] = 0.0
    elif options["seed"] is None:
        options["seed"] = secrets.randbits(32)
    unused = _SAMPLING if beams else _BEAMS
    options = {name: value for name, value in options.items() if name not in unused}
    if beams:
        found = generation.beam_search(model, start, beams=beams, **options)[:samples]
    else:
        found = generation.sample(model, start, samples=samples, **options)
    texts = [generation.render(model, start, each) for each in found]
    if as_json:
        about = {"model": str(path), "prefix": start.text, "unknown": start.unknown, "seed": options.get("seed")}
        continuations = [_continuation(model, each, text) for each, text in zip(found, texts, strict=True)]
        echo_json({**about, "continuations": continuations})
    else:
        click.echo(("\n\n" if any("\n" in text for text in texts) else "\n").join(texts))


def _continuation(model: "LanguageModel", continuation: "Continuation", text: str) -> dict[str, Any]:
    """Return a continuation and its text as JSON."""
    return {
        "text": text,
        "tokens": [model.vocabulary.words[id_] for id_ in continuation.ids],
        "log_probability": continuation.log_probability,
        "ended": continuation.ended,
    }


def _check_combination(context: click.Context, greedy: bool, beams: int | None, samples: int) -> None:
    """Raise a UsageError about options that would have no effect."""
    given = [name for name in context.params if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    unused = [f"--{name.replace('_', '-')}" for name in given if name in (_SAMPLING if beams or greedy else ())]
    if beams and greedy:
        raise click.UsageError("give --greedy or --beams, not both")
    if unused:
        raise click.UsageError(f"{'--beams' if beams else '--greedy'} does not sample: leave out {', '.join(unused)}")
    if beams and samples > beams:
        raise click.UsageError(f"{beams} beams cannot give {samples} texts: raise --beams")
    if greedy and samples > 1:
        raise click.UsageError("--greedy always gives the same text: leave out --samples, or give --beams")
    if not beams and "normalize" in given:
        raise click.UsageError("--normalize ranks beams: give --beams, or leave it out")
