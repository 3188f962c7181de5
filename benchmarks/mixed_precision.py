"""Claim: training in mixed precision reaches the perplexity of float32, within 0.5%.

On Brown, split as in Bengio et al. (2003), the same network is trained with the same batches in float32, in mixed precision,
and in float32 from other random weights, which shows how much perplexities differ by chance. Mixed precision only exists on
GPUs; here the CPU computes its products, with operands rounded where the GPU kernels round them
(`tests/support/rounding.py`; `tests/backend/cuda/test_mixed.py` compares it with the compiled kernels). Therefore nothing is
timed. The perplexities are those of the validation text.

The script verifies that the text has as many tokens and words as published.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from common import ROOT, brown, check_sizes, machine, parse, record

from fflm.backend.cpu.backend import CpuBackend
from fflm.models.neural.train import network_settings, resolve_settings
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.text.windows import Windows
from fflm.training.events import Evaluation, Step
from fflm.training.trainer import Trainer

DEMANDED = 1.005
"""The largest ratio of perplexities, mixed to float32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brown", type=Path, help="brown.txt")
    parser.add_argument("--work", type=Path, default=Path("mixed.work"), help="folder for the text [default: %(default)s]")
    options = parse(parser)
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from rounding import RoundingBackend

    about = machine()
    options.work.mkdir(parents=True, exist_ok=True)
    corpus = brown(options.brown, options.work / "Brown")
    check_sizes("Brown", corpus)
    shape, chosen, automatic = network_settings({"batch_size": 1024, "epochs": 3, "loss": "exact"})
    config, settings = resolve_settings(shape, chosen, automatic, corpus)
    windows = {
        name: Windows.of(part.ids, corpus.vocabulary, corpus.settings, config.context) for name, part in corpus.parts.items()
    }
    perplexities: dict[str, list[float]] = {}
    runs = {"float32": (CpuBackend(), 0), "mixed": (RoundingBackend(), 0), "float32, other weights": (CpuBackend(), 1)}
    for name, (backend, more) in runs.items():
        parameters = Parameters.random(config, settings.seed + more)
        parameters.start_from(windows["train"].counts(config.vocabulary))
        trainer = Trainer(Network(config, backend), parameters, windows["train"], windows["valid"], settings)
        perplexities[name] = []
        for event in trainer.run():
            if isinstance(event, Evaluation) and event.valid:
                perplexities[name].append(math.exp(event.valid.mean))
                print(f"{name:24} epoch {event.epoch}: {perplexities[name][-1]:.2f}", flush=True)
            if isinstance(event, Step) and event.step % 100 == 0:
                print(f"{name:24} step {event.step:,} of {trainer.steps:,}, {event.loss:.3f} nats per word", flush=True)
            if options.quick and event.step == 10:
                break
    if options.quick:
        record("mixed_precision", options.quick, about)
        return
    best: dict[str, Any] = {name: min(each) for name, each in perplexities.items()}
    ratio = best["mixed"] / best["float32"]
    record(
        "mixed_precision",
        options.quick,
        about,
        network=config.to_dict(),
        training=settings.to_dict(),
        perplexities=perplexities,
        ratio=ratio,
    )
    print(", ".join(f"{name} {value:.2f}" for name, value in best.items()) + f": mixed is {ratio:.4f} times float32")
    sys.exit(0 if ratio <= DEMANDED else f"The claim does NOT hold: the ratio is more than {DEMANDED}")


if __name__ == "__main__":
    main()
