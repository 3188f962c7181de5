"""Claim: fast scoring of a file is faster than that of an n-gram model and has a lower perplexity.

The text is Brown, one sentence per line, split at spaces. A network of the preset quick is trained with the penalty on log
Z. On one core, it scores at least 2 million tokens per second from ids, and from a file at least 1.5 times as many as KenLM
(its probing model of order 5, called line by line from Python, as its users do). Its perplexity is lower than that of the
5-gram model. The script also measures a copy of the network with 8 bits a number (`fflm quantize --tables`) and fflm's
n-gram model, what the penalty and the missing normalizers cost in perplexity, compared with the same network trained
without the penalty, and |log Z|.

Rates are computed from processor time, in turns.

The script first verifies that KenLM and fflm's n-gram model, from which the ARPA file was made, give lines the same
probability, and that every fast score is the exact one plus the context's log Z, to within rounding. The comparison needs
`pip install kenlm`. The folder WORK keeps the models.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import kenlm
except ImportError:
    kenlm = None

import numba
import numpy as np
from common import in_turns, joined, machine, parse, quartiles, ratios, record, run_json, shortfalls, show_verdict

from fflm.models.load import load_language_model as load
from fflm.models.neural.fast import FastScorer
from fflm.models.neural.model import NeuralModel
from fflm.models.quantize import quantize
from fflm.models.scoring import score_files, score_part
from fflm.text.corpus import Corpus, Part

RATE = 2e6  # the lowest rate, in tokens per second, from ids
FACTOR = 1.5  # the lowest rate from a file, relative to that of KenLM
OURS, KENLM = "fflm, from text", "KenLM, from text"
PENALTY = 0.1
TOKENS = 10_000_000  # the approximate length of the text that is timed
ROUNDED, MEAN_ROUNDED = 5e-3, 1e-3  # the largest rounding error of the fast score of a word, and the largest mean, in nats


def models(text: Path, work: Path, *, quick: bool) -> dict[str, Path]:
    """Train the models that do not exist yet; return the folders of all."""
    corpus = work / "corpus"
    held_out = ["--valid", 20_000, "--test", 20_000] if quick else ["--valid", 200_000, "--test", 161_192]
    if not corpus.is_dir():
        run_json("tokenize", text, "-o", corpus, "--tokenizer", "space", "--mode", "sentence", *held_out)
    folders = {name: work / f"{name}.model" for name in ("ngram", "plain", "normalized")}
    if not folders["ngram"].is_dir():
        run_json("ngram", "train", corpus, "-o", folders["ngram"], "--arpa", work / "ngram.arpa")
    for name, penalty in (("plain", 0.0), ("normalized", PENALTY)):
        if not (folders[name] / "log.jsonl").is_file() or '"finished"' not in (folders[name] / "log.jsonl").read_text():
            epochs = ["--epochs", 1] if quick else []
            run_json(
                "train", corpus, "-o", folders[name], "--preset", "quick", "--self-normalise", penalty, "--overwrite", *epochs
            )
    folders["small"] = work / "small.model"
    quantize(folders["normalized"], folders["small"], tables=True, overwrite=folders["small"].is_dir())
    return folders


def normalizers(model: NeuralModel, scorer: FastScorer, ids: np.ndarray) -> dict[str, float]:
    """Return statistics of log Z over all contexts of a text, after checking that fast and exact scores differ by log Z."""
    logs = model.losses_of_text(ids) - scorer.losses_of_text(ids)
    contexts, _ = model.windows(ids).batch(np.arange(0, len(ids), max(1, len(ids) // 500)))
    hidden = np.empty((len(contexts), model.config.hidden[0]), np.float32)
    inputs = np.empty((len(contexts), model.config.inputs), np.float32)
    backend, parameters = model.network.backend, model.parameters
    backend.gather(parameters.embeddings, contexts, model.config.blocks, inputs)
    weight, bias = parameters.hidden_weights[0], parameters.hidden_biases[0]
    backend.affine(inputs, weight, bias, model.config.activation, hidden)
    features = hidden if parameters.projection is None else hidden @ parameters.projection.T
    scores = features.astype(np.float64) @ parameters.softmax_weight.T + parameters.output_bias
    exact = np.log(np.exp(scores).sum(axis=1))
    off = np.abs(exact - logs[:: max(1, len(ids) // 500)])
    if not (off.max() < ROUNDED and off.mean() < MEAN_ROUNDED):
        sys.exit(f"fast scores are off by up to {off.max():.2g} nats, {off.mean():.2g} in the mean: nothing was timed")
    return {
        "contexts": len(logs),
        "mean": float(logs.mean()),
        "mean_absolute": float(np.abs(logs).mean()),
        "worst": float(np.abs(logs).max()),
        "deviation": float(logs.std()),
    }


def check_kenlm(other: Any, ngram: Path, lines: list[str]) -> None:
    """Exit unless KenLM and fflm's n-gram model give lines the same probability."""
    own = load(ngram)
    for line in lines:
        expected = own.score(line).log10_probability
        found = other.score(line, bos=True, eos=True)
        if not math.isclose(found, expected, rel_tol=1e-4, abs_tol=1e-3):
            sys.exit(f"KenLM gives {found:.4f} where fflm's n-gram model gives {expected:.4f}: {line!r}; nothing was timed")


def perplexities(models: dict[str, Any], test: Part) -> dict[str, dict[str, Any]]:
    """Return the figures of each model on the test text, and print them."""
    found = {name: score_part(model, test).to_dict() for name, model in models.items()}
    for name, figures in found.items():
        print(f"{name:35} test perplexity {figures['perplexity']:.2f}, {figures['bits_per_character']:.3f} bits per character")
    return found


def kenlm_scorer(work: Path, ngram: Path, text: Path, lines: list[str]) -> Callable[[], float]:
    """Return a function that scores a text with KenLM, after checking KenLM on some lines."""
    model = kenlm.Model(str(work / "ngram.arpa"))
    check_kenlm(model, ngram, lines)

    def score() -> float:
        with text.open(encoding="utf-8") as file:
            return sum(model.score(line, bos=True, eos=True) for line in file)

    return score


def scorers(
    scorer: FastScorer, small: FastScorer, corpus: Corpus, brown: Path, work: Path, ngram: Path, *, quick: bool
) -> tuple[dict[str, Callable[[], Any]], int]:
    """Return what is timed, by name, and the number of tokens in the text that each of these functions scores.

    The text is the whole corpus, repeated; it is written to a file in ``work``.
    """
    parts = corpus.parts.values()
    copies = max(1, round((200_000 if quick else TOKENS) / (corpus.parts["test"].tokens + sum(part.tokens for part in parts))))
    lines = [line for line in brown.read_text(encoding="utf-8").splitlines() if line]
    text = work / "timed.txt"
    text.write_text("\n".join(lines * copies) + "\n", encoding="utf-8")
    ids = np.concatenate([part.ids[:] for part in parts] * copies).astype(np.int32)
    own = load(ngram)
    steps: dict[str, Callable[[], Any]] = {
        "fflm, from ids": lambda: scorer.losses_of_text(ids),
        "fflm with 8 bits, from ids": lambda: small.losses_of_text(ids),
        OURS: lambda: score_files(scorer, [text]),
        "fflm with 8 bits, from text": lambda: score_files(small, [text]),
        "fflm's n-gram model, from text": lambda: score_files(own, [text]),
    }
    if kenlm:
        steps[KENLM] = kenlm_scorer(work, ngram, text, lines[-200:])
    else:
        print("kenlm is not installed: no comparison")
    return steps, len(ids)


def rates(times: dict[str, list[float]], tokens: int) -> dict[str, dict[str, Any]]:
    """Return tokens per second of each contender and the ratio to KenLM, given its seconds in each turn, and print them."""
    rows: dict[str, dict[str, Any]] = {}
    for name, seconds in times.items():
        found = quartiles([tokens / each for each in seconds])
        rows[name] = {"tokens_per_second": found}
        low, median, high = (found[name] / 1e6 for name in ("low", "median", "high"))
        print(f"{name:31} {median:.2f} million tokens per second ({low:.2f} to {high:.2f})")
    for name in times if KENLM in times else ():
        if name.endswith("from text") and name != KENLM:
            rows[name]["faster_than_kenlm"] = ratios(times[name], times[KENLM])
            print(f"{name}: {rows[name]['faster_than_kenlm']['median']:.2f} times KenLM's rate")
    return rows


def missed_targets(rows: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return which parts of the claim do not hold, given the rates and the perplexities, and which the noise leaves open."""
    parts = [shortfalls({"tokens per second from ids": rows["fflm, from ids"]["tokens_per_second"]}, RATE)]
    if ratio := rows[OURS].get("faster_than_kenlm"):
        parts.append(shortfalls({"rate from text, relative to KenLM's": ratio}, FACTOR))
    if found["network with penalty, exact"]["perplexity"] >= found["Kneser-Ney, order 5"]["perplexity"]:
        parts.append((["perplexity"], []))
    return joined(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brown", type=Path, help="brown.txt, as `fflm corpus get brown` makes it")
    parser.add_argument("--work", type=Path, default=Path("scoring.work"), help="folder for the models [default: %(default)s]")
    options = parse(parser)
    about = machine()
    work = options.work / ("quick" if options.quick else "full")
    work.mkdir(parents=True, exist_ok=True)
    folders = models(options.brown, work, quick=options.quick)
    numba.set_num_threads(1)
    corpus = Corpus.open(work / "corpus")
    test = corpus.parts["test"]
    plain, normalized, ngram = (load(folders[name]) for name in ("plain", "normalized", "ngram"))
    assert isinstance(normalized, NeuralModel)
    scorer, small = FastScorer(normalized), FastScorer(load(folders["small"]))
    logs = normalizers(normalized, scorer, test.ids[:].astype(np.int32))
    found = perplexities(
        {
            "Kneser-Ney, order 5": ngram,
            "network without penalty": plain,
            "network with penalty, exact": normalized,
            "network with penalty, fast": scorer,
            "network with penalty, fast, 8 bits": small,
        },
        test,
    )
    print(
        f"log Z in {logs['contexts']:,} contexts: mean {logs['mean']:+.4f}, mean |log Z| {logs['mean_absolute']:.4f}, "
        f"worst {logs['worst']:.3f}; tables of {scorer.memory / 1e6:.0f} MB, with 8 bits {small.memory / 1e6:.0f} MB"
    )
    steps, tokens = scorers(scorer, small, corpus, options.brown, work, folders["ngram"], quick=options.quick)
    rows = rates(in_turns(steps, 3 if options.quick else 11, clock=time.process_time), tokens)
    passed = show_verdict(*missed_targets(rows, found))
    record(
        "scoring",
        options.quick or not kenlm,
        about,
        passed=passed,
        penalty=PENALTY,
        perplexities=found,
        normalizers=logs,
        table_bytes=scorer.memory,
        rates=rows,
        tokens=tokens,
    )
    sys.exit(not passed and not options.quick)


if __name__ == "__main__":
    main()
