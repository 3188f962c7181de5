"""Claim: fast scoring is as fast as that of an n-gram model and has a lower perplexity.

The text is Brown, one sentence per line, split at spaces. A network of the preset quick is trained with the penalty on log
Z. On one core, it scores at least 2 million tokens per second from ids, and from text at least as many as KenLM (its probing
model of order 5, called line by line from Python, as its users do). Its perplexity is lower than that of the 5-gram model.
The script also measures what the penalty and the missing normalizers cost in perplexity, compared with the same network
trained without the penalty, and |log Z|.

The script first verifies that KenLM and fflm's n-gram model, from which the ARPA file was made, give lines the same
probability, and that every fast score is the exact one plus the context's log Z, to within rounding. The comparison needs
`pip install kenlm`. The folder WORK keeps the models.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import kenlm
except ImportError:
    kenlm = None

import numba
import numpy as np
from common import in_turns, machine, parse, quartiles, record, run_json

from fflm.models.load import load_language_model as load
from fflm.models.neural.fast import FastScorer
from fflm.models.neural.model import NeuralModel
from fflm.models.scoring import score_files, score_part
from fflm.text.corpus import Corpus

RATE = 2e6  # tokens a second, from ids
PENALTY = 0.1
TOKENS = 10_000_000  # of the text that is timed, about
ROUNDED = 5e-3  # nats


def models(text: Path, work: Path, *, quick: bool) -> dict[str, Path]:
    """Train the models, unless that was done; return their folders."""
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
    return folders


def normalizers(model: NeuralModel, scorer: FastScorer, ids: np.ndarray) -> dict[str, float]:
    """Return what is known of log Z in all contexts of a text, after checking that it explains the fast scores."""
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
    off = np.abs(exact - logs[:: max(1, len(ids) // 500)]).max()
    if not off < ROUNDED:
        sys.exit(f"fast scores are off by {off:.2g} nats: nothing was timed")
    return {
        "contexts": len(logs),
        "mean": float(logs.mean()),
        "mean_absolute": float(np.abs(logs).mean()),
        "worst": float(np.abs(logs).max()),
        "deviation": float(logs.std()),
    }


def check_kenlm(other: Any, ngram: Path, lines: list[str]) -> None:
    """Exit unless KenLM gives lines the probability that our n-gram model gives them."""
    own = load(ngram)
    for line in lines:
        expected = own.score(line).log10_probability
        found = other.score(line, bos=True, eos=True)
        if not math.isclose(found, expected, rel_tol=1e-4, abs_tol=1e-3):
            sys.exit(f"KenLM gives {found:.4f} where our n-gram model gives {expected:.4f}: {line!r}; nothing was timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brown", type=Path, help="brown.txt, as `fflm corpus get brown` makes it")
    parser.add_argument("--work", type=Path, default=Path("scoring.work"), help="keeps the models [default: %(default)s]")
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
    scorer = FastScorer(normalized)
    logs = normalizers(normalized, scorer, test.ids.astype(np.int32))
    perplexities = {
        "Kneser-Ney, order 5": score_part(ngram, test).to_dict(),
        "network without penalty": score_part(plain, test).to_dict(),
        "network with penalty, exact": score_part(normalized, test).to_dict(),
        "network with penalty, fast": score_part(scorer, test).to_dict(),
    }
    for name, figures in perplexities.items():
        print(f"{name:30} test perplexity {figures['perplexity']:.2f}, {figures['bits_per_character']:.3f} bits per character")
    print(
        f"log Z in {logs['contexts']:,} contexts: mean {logs['mean']:+.4f}, mean |log Z| {logs['mean_absolute']:.4f}, "
        f"worst {logs['worst']:.3f}; tables of {scorer.memory / 1e6:.0f} MB"
    )

    lines = [line for line in options.brown.read_text(encoding="utf-8").splitlines() if line]
    copies = max(1, round((200_000 if options.quick else TOKENS) / (test.tokens + sum(p.tokens for p in corpus.parts.values()))))
    text = work / "timed.txt"
    text.write_text("\n".join(lines * copies) + "\n", encoding="utf-8")
    ids = np.concatenate([part.ids for part in corpus.parts.values()] * copies).astype(np.int32)
    steps: dict[str, Callable[[], Any]] = {
        "fflm, from ids": lambda: scorer.losses_of_text(ids),
        "fflm, from text": lambda: score_files(scorer, [text]),
    }
    if kenlm:
        other = kenlm.Model(str(work / "ngram.arpa"))
        check_kenlm(other, folders["ngram"], lines[-200:])

        def ask_kenlm() -> float:
            with text.open(encoding="utf-8") as file:
                return sum(other.score(line, bos=True, eos=True) for line in file)

        steps["KenLM, from text"] = ask_kenlm
    else:
        print("kenlm is not installed: no comparison")
    times = in_turns(steps, 3 if options.quick else 11)
    rows = {}
    for name, seconds in times.items():
        rates = quartiles([len(ids) / each for each in seconds])
        rows[name] = {"tokens_per_second": rates}
        low, median, high = (rates[name] / 1e6 for name in ("low", "median", "high"))
        print(f"{name:18} {median:.2f} million tokens a second ({low:.2f} to {high:.2f})")
    missed = []
    if rows["fflm, from ids"]["tokens_per_second"]["median"] < RATE:
        missed.append("from ids")
    if kenlm:
        ratio = quartiles([k / f for k, f in zip(times["KenLM, from text"], times["fflm, from text"], strict=True)])
        rows["fflm, from text"]["faster_than_kenlm"] = ratio
        print(f"from text {ratio['median']:.2f} times KenLM's rate ({ratio['low']:.2f} to {ratio['high']:.2f})")
        if ratio["median"] < 1:
            missed.append("from text")
    if perplexities["network with penalty, exact"]["perplexity"] >= perplexities["Kneser-Ney, order 5"]["perplexity"]:
        missed.append("perplexity")
    print(f"NOT as claimed: {', '.join(missed)}" if missed else "all as claimed")
    record(
        "scoring",
        options.quick or not kenlm,
        about,
        passed=not missed,
        penalty=PENALTY,
        perplexities=perplexities,
        normalizers=logs,
        table_bytes=scorer.memory,
        rates=rows,
        tokens=len(ids),
    )
    sys.exit(bool(missed) and not options.quick)


if __name__ == "__main__":
    main()
