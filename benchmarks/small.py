"""Claim: models load in less than 50 ms beyond the imports, and quantized ones cost less than 0.5% of perplexity.

On WikiText-2, a sentence a line, split at spaces: a 5-gram model, and a network that normalizes itself; both are quantized by
`fflm quantize`. KenLM has the same n-grams, from an ARPA file, in two binary files: ``probing``, and ``trie -q 8 -b 8``. Measured
are the size on disk; the CPU time of loading, and that until the first score of a line, for which tables may have to be made, in
processes that have imported everything; words a second on one core in one call (`scores`; KenLM: a call per line), in turns; the
perplexity of the validation text; and the resident memory that is private to a process, and that which others can share, after
these scores.

Needs `pip install kenlm`, and KenLM's program ``build_binary``, which the wheel lacks. Its sources are in the package's source
distribution (``pip download kenlm --no-deps --no-binary kenlm``): compile lm/build_binary_main.cc with the other sources in lm/,
util/ and util/double-conversion/ that are neither programs nor tests. WORK keeps the models. Linux only.
"""

import argparse
import importlib
import math
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import kenlm
from common import machine, parse, quartiles, record, run_json, show_verdict

import fflm
from fflm.models.language_model import LanguageModel
from fflm.models.neural.fast import FastScorer, is_self_normalized
from fflm.models.neural.model import NeuralModel

LOADING = 0.05
"""The most that loading may take, seconds."""

COST = 0.005
"""The most that quantizing may cost, as a share of the perplexity."""

KEPT = "config.json", "vocabulary.tsv", "vocabulary.safetensors", "model.safetensors", "index.safetensors"
"""The files of a model that predicts."""


def prepare(work: Path, source: Path, build_binary: Path, *, quick: bool) -> dict[str, Path]:
    """Make all models, unless that was done; return their paths by their names."""
    work.mkdir(parents=True, exist_ok=True)
    for part in ("train", "valid"):
        lines = (line.strip() for line in (source / f"{part}.txt").read_text(encoding="utf-8").splitlines())
        kept = [line for line in lines if line and not line.startswith("=")]
        (work / f"{part}.txt").write_text("\n".join(kept[: 1000 if quick else None]) + "\n", encoding="utf-8")
    ngram, arpa, network = work / "w.ngram", work / "w.arpa", work / "w.model"
    paths = {"n-grams": ngram, "n-grams, quantized": work / "small.ngram"}
    paths |= {"network": network, "network, quantized": work / "small.model"}
    text = ["--tokenizer", "space", "--mode", "sentence", "--valid", work / "valid.txt", "--min-count", 1, "--max-size", 100_000]
    if not arpa.is_file():
        run_json("ngram", "train", work / "train.txt", "-o", ngram, "--overwrite", "--arpa", arpa, *text)
    if not network.is_dir():
        settings = ["--epochs", 1, "--preset", "quick"] if quick else ["--tied"]
        run_json("train", work / "train.txt", "-o", network, "--self-normalise", 0.1, *settings, *text)
    for name in ("n-grams", "network"):
        if not (small := paths[f"{name}, quantized"]).is_dir():
            run_json("quantize", paths[name], "-o", small)
    for name, options in (("KenLM, probing", ["probing"]), ("KenLM, trie -q 8 -b 8", ["-q", "8", "-b", "8", "trie"])):
        paths[name] = work / f"{options[-1]}.binary"
        if not paths[name].is_file():
            subprocess.run([build_binary, *options, arpa, paths[name]], check=True, stdout=subprocess.DEVNULL)
    return paths


def load(name: str, path: Path) -> Any:
    """Load a model of fflm or KenLM."""
    return kenlm.Model(str(path)) if name.startswith("KenLM") else fflm.load(path)


def bulk_scorer(model: Any) -> Callable[[list[str]], Any]:
    """Return what scores lines by a model: a function that returns log p of each, nats."""
    if isinstance(model, NeuralModel) and is_self_normalized(model):
        return FastScorer(model).scores
    if isinstance(model, LanguageModel):
        return model.scores
    return lambda lines: [model.score(line) * math.log(10) for line in lines]


def load_once(name: str, path: Path, warm: Path, lines: list[str]) -> dict[str, float]:
    """Load a model in this process, and score lines; ``warm`` is a model by which everything is imported before."""
    for module in ("fflm.models.neural.quantized", "fflm.models.ngram.model"):
        importlib.import_module(module)
    bulk_scorer(load(name, warm))(lines[:1])
    before = memory()
    started = time.process_time()
    model = load(name, path)
    loaded = time.process_time() - started
    scores = bulk_scorer(model)
    scores(lines[:1])
    first = time.process_time() - started
    scores(lines)
    return {"load": loaded, "first_score": first, **{kind: memory()[kind] - before[kind] for kind in before}}


def memory() -> dict[str, int]:
    """Return the resident memory of this process, bytes: what is its own, and what is mapped from files, unchanged."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    resident, own = (sum(int(fields[name].split()[0]) for name in names) for names in (("Rss",), ("Anonymous",)))
    return {"private_memory": own * 1024, "shared_memory": (resident - own) * 1024}


def size(path: Path) -> int:
    """Return the size of a model on disk, bytes."""
    files = [path / name for name in KEPT] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def perplexities(path: Path) -> float:
    """Return the exact perplexity of the validation text of a model."""
    return float(run_json("score", "-m", path, "--part", "valid")["perplexity"])


def measure(paths: dict[str, Path], lines: list[str], *, quick: bool) -> dict[str, dict[str, Any]]:
    """Return the figures of each model."""
    words = sum(len(line.split()) + 1 for line in lines)
    rows: dict[str, dict[str, Any]] = {name: {"bytes": size(path)} for name, path in paths.items()}
    scorers = {name: bulk_scorer(load(name, path)) for name, path in paths.items()}
    fastest = dict.fromkeys(scorers, math.inf)
    for _ in range(3 if quick else 50):
        for name, scores in scorers.items():
            started = time.process_time()
            scores(lines)
            fastest[name] = min(fastest[name], time.process_time() - started)
    for name, scores in scorers.items():
        loads = []
        for _ in range(2 if quick else 15):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                loads.append(pool.submit(load_once, name, paths[name], paths[name], lines).result())
        rows[name] |= {"words_per_second": words / fastest[name], "perplexity_of_scores": math.exp(-sum(scores(lines)) / words)}
        rows[name] |= {key: quartiles([each[key] for each in loads]) for key in loads[0]}
        if not name.startswith("KenLM"):
            rows[name]["perplexity"] = perplexities(paths[name])
    return rows


def show(name: str, row: dict[str, Any]) -> None:
    """Print the figures of a model."""
    load, first = (1000 * row[key]["median"] for key in ("load", "first_score"))
    own, shared = (row[key]["median"] / 1e6 for key in ("private_memory", "shared_memory"))
    exact = f", exact {row['perplexity']:.2f}" if "perplexity" in row else ""
    print(
        f"{name:22} {row['bytes'] / 1e6:7.1f} MB, loaded in {load:6.1f} ms, first line after {first:6.1f} ms, "
        f"{row['words_per_second'] / 1e6:5.2f} million words/s, memory {own:6.1f} MB + {shared:6.1f} MB shared, "
        f"perplexity of scores {row['perplexity_of_scores']:.2f}{exact}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wikitext", type=Path, help="the folder that `fflm corpus get wikitext-2` makes")
    parser.add_argument("build_binary", type=Path, help="KenLM's program of this name")
    parser.add_argument("--work", type=Path, default=Path("small.work"), help="keeps the models [default: %(default)s]")
    options = parse(parser)
    about = machine()
    work = options.work / ("quick" if options.quick else "full")
    paths = prepare(work, options.wikitext, options.build_binary.resolve(), quick=options.quick)
    lines = (work / "valid.txt").read_text(encoding="utf-8").splitlines()
    rows = measure(paths, lines, quick=options.quick)
    for name, row in rows.items():
        show(name, row)
    missed = []
    for name in ("n-grams", "network"):
        small, original = rows[f"{name}, quantized"], rows[name]
        missed += [
            f"{each} takes longer to load" for each in (name, f"{name}, quantized") if rows[each]["load"]["median"] > LOADING
        ]
        for kind in ("perplexity", "perplexity_of_scores"):
            change = small[kind] / original[kind] - 1
            print(f"{name}, quantized: {kind.replace('_', ' ')} {change:+.3%}")
            missed += [f"{name}: {kind} rises by {change:.2%}"] if change > COST else []
    show_verdict(missed)
    record("small", options.quick, about, passed=not missed, rows=rows, lines=len(lines))
    sys.exit(bool(missed) and not options.quick)


if __name__ == "__main__":
    main()
