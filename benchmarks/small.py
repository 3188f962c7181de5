"""Claim: quantized copies of models are smaller, load in less than 50 ms, and have perplexities within 0.5% of the originals'.

The quantized model of all n-grams is also no larger than KenLM's trie, quantized and with compressed pointers, and scores no
slower than KenLM's trie. Of pruned models, of which the vocabulary is a larger part, the sizes are only stated.

On WikiText-2, a sentence a line, split at spaces: 5-gram models, one with all n-grams and two that are pruned, and a small
network that normalizes itself. All are quantized by `fflm quantize`, the network with and without its tables of fast scoring.
KenLM gets the same n-grams in ARPA files and has them in binary files: ``trie -q 8 -b 8 -a 22`` of each model, and of all n-grams
also ``trie -q 8 -b 8`` and ``probing``. Measured are the size on disk, vocabularies included; the CPU time of loading, and that
until the first score of a line, for which tables may have to be made, in processes that have imported everything; words a second
on one core in one call (`scores`; KenLM: a call per line), in turns; the perplexity of the validation text; and the resident
memory that is private to a process, and that which others can share, after these scores. Of Brown, as one text, only the
perplexity and the size of a 5-gram model are measured.

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
from common import brown, joined, machine, parse, quartiles, ratios, record, run_json, shortfalls, show_verdict

import fflm
from fflm.models.language_model import LanguageModel
from fflm.models.neural.fast import FastScorer, is_self_normalized
from fflm.models.neural.model import NeuralModel
from fflm.models.quantize import model_size

LOADING = 0.05
"""The most that loading may take, seconds."""

COST = 0.005
"""The most by which quantizing may change the perplexity, as a share of it."""

NGRAMS = {"n-grams": (), "by count": ("--prune", "0,0,1"), "by entropy": ("--prune-entropy", "1e-7")}
"""The options by which n-gram models are pruned."""

SMALL, TABLES, COMPRESSED = ", quantized", ", quantized, tables", "KenLM, trie -q 8 -b 8 -a 22"
"""What the names of copies add to those of models, and what those of KenLM's smallest files begin with."""


def prepare(work: Path, source: Path, build_binary: Path, *, quick: bool) -> dict[str, Path]:
    """Make all models, unless that was done; return their paths by their names."""
    work.mkdir(parents=True, exist_ok=True)
    for part in ("train", "valid"):
        lines = (line.strip() for line in (source / f"{part}.txt").read_text(encoding="utf-8").splitlines())
        kept = [line for line in lines if line and not line.startswith("=")]
        (work / f"{part}.txt").write_text("\n".join(kept[: 1000 if quick else None]) + "\n", encoding="utf-8")
    text = ["--tokenizer", "space", "--mode", "sentence", "--valid", work / "valid.txt", "--min-count", 1, "--max-size", 100_000]
    paths: dict[str, Path] = {}
    for name, options in NGRAMS.items():
        paths[name], arpa = (work / f"{name.replace(' ', '-')}.{kind}" for kind in ("ngram", "arpa"))
        if not arpa.is_file():
            run_json("ngram", "train", work / "train.txt", "-o", paths[name], "--overwrite", "--arpa", arpa, *options, *text)
        paths[name + SMALL] = quantized(paths[name])
        kinds = {COMPRESSED: ["-q", "8", "-b", "8", "-a", "22", "trie"]}
        if not options:
            kinds |= {"KenLM, trie -q 8 -b 8": ["-q", "8", "-b", "8", "trie"], "KenLM, probing": ["probing"]}
        for kind, given in kinds.items():
            own = kind if not options else f"{kind}, {name}"
            paths[own] = work / f"{name.replace(' ', '-')}.{len(given)}.binary"
            if not paths[own].is_file():
                subprocess.run([build_binary, *given, arpa, paths[own]], check=True, stdout=subprocess.DEVNULL)
    paths["network"] = work / "network.model"
    if not paths["network"].is_dir():
        settings = ["--self-normalise", 0.1, "--preset", "quick", *(["--epochs", 1] if quick else [])]
        run_json("train", work / "train.txt", "-o", paths["network"], *settings, *text)
    paths["network" + SMALL], paths["network" + TABLES] = quantized(paths["network"]), quantized(paths["network"], "--tables")
    return paths


def quantized(path: Path, *options: str) -> Path:
    """Return the path of a quantized copy of a model, which is made unless that was done."""
    copy = path.with_name(f"small{''.join(options)}.{path.name}")
    if not copy.is_dir():
        run_json("quantize", path, "-o", copy, *options)
    return copy


def prepare_brown(text: Path, work: Path) -> dict[str, Path]:
    """Make a 5-gram model of Brown, and its quantized copy, unless that was done; return their paths by their names."""
    brown(text, work / "brown.corpus")
    path = work / "brown.ngram"
    if not path.is_dir():
        run_json("ngram", "train", work / "brown.corpus", "-o", path)
    return {"Brown": path, "Brown" + SMALL: quantized(path)}


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
    return model_size(path) if path.is_dir() else path.stat().st_size


def perplexity(path: Path) -> float:
    """Return the exact perplexity of the validation text, which a model or its copy has in its folder."""
    return float(fflm.load(path).about["figures"]["valid"]["perplexity"])


def measure(paths: dict[str, Path], lines: list[str], *, quick: bool) -> dict[str, dict[str, Any]]:
    """Return the figures of each model."""
    words = sum(len(line.split()) + 1 for line in lines)
    rows: dict[str, dict[str, Any]] = {name: {"bytes": size(path)} for name, path in paths.items()}
    scorers = {name: bulk_scorer(load(name, path)) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(3 if quick else 50):
        for name, scores in scorers.items():
            started = time.process_time()
            scores(lines)
            times[name].append(time.process_time() - started)
    for name, scores in scorers.items():
        loads = []
        for _ in range(2 if quick else 11):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                loads.append(pool.submit(load_once, name, paths[name], paths[name], lines).result())
        rows[name] |= {
            "words_per_second": words / min(times[name]),
            "perplexity_of_scores": math.exp(-sum(scores(lines)) / words),
        }
        rows[name] |= {key: quartiles([each[key] for each in loads]) for key in loads[0]}
        if not name.startswith("KenLM"):
            rows[name]["perplexity"] = perplexity(paths[name])
    rows["n-grams" + SMALL]["faster_than_kenlm"] = ratios(times["n-grams" + SMALL], times["KenLM, trie -q 8 -b 8"])
    return rows


def show(name: str, row: dict[str, Any]) -> None:
    """Print the figures of a model."""
    exact = f", perplexity {row['perplexity']:.2f}" if "perplexity" in row else ""
    print(f"{name:39} {row['bytes'] / 1e6:7.2f} MB{exact}")
    if "load" in row:
        load, first = (1000 * row[key]["median"] for key in ("load", "first_score"))
        own, shared = (row[key]["median"] / 1e6 for key in ("private_memory", "shared_memory"))
        print(
            f"    loaded in {load:.1f} ms, first line after {first:.1f} ms, {row['words_per_second'] / 1e6:.2f} million words/s, "
            f"memory {own:.1f} MB + {shared:.1f} MB shared, perplexity of scores {row['perplexity_of_scores']:.2f}"
        )


def missed_claims(rows: dict[str, dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the parts of the claim that do not hold, and those that noise leaves open; print how copies differ from models."""
    loads = {
        f"{name}: milliseconds to load": {key: 1000 * value for key, value in row["load"].items()}
        for name, row in rows.items()
        if "load" in row and not name.startswith("KenLM")
    }
    missed, undecided = shortfalls(loads, most=1000 * LOADING)
    for name, small in rows.items():
        original, _, copied = name.partition(",")
        if copied and not name.startswith("KenLM"):
            missed += [f"{name} is no smaller"] if name.endswith(SMALL) and small["bytes"] >= rows[original]["bytes"] else []
            for kind in ("perplexity", "perplexity_of_scores")[: 2 if "load" in small else 1]:
                change = small[kind] / rows[original][kind] - 1
                print(f"{name}: {kind.replace('_', ' ')} {change:+.3%}")
                missed += [f"{name}: {kind} changes by {change:+.2%}"] if abs(change) > COST else []
    for name in NGRAMS:
        compressed, small = rows[COMPRESSED if name == "n-grams" else f"{COMPRESSED}, {name}"], rows[name + SMALL]
        print(f"{name}: {small['bytes'] / compressed['bytes']:.3f} times the size of KenLM's trie")
        missed += ["n-grams are larger than KenLM's trie"] * (name == "n-grams" and small["bytes"] > compressed["bytes"])
    rate = rows["n-grams" + SMALL]["faster_than_kenlm"]
    print(f"n-grams: {rate['median']:.2f} times the rate of KenLM's trie")
    return joined([(missed, undecided), shortfalls({"rate of n-grams, relative to KenLM's trie": rate}, 1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brown", type=Path, help="brown.txt in the folder that `fflm corpus get brown` makes")
    parser.add_argument("wikitext", type=Path, help="the folder that `fflm corpus get wikitext-2` makes")
    parser.add_argument("build_binary", type=Path, help="KenLM's program of this name")
    parser.add_argument("--work", type=Path, default=Path("small.work"), help="keeps the models [default: %(default)s]")
    options = parse(parser)
    about = machine()
    work = options.work / ("quick" if options.quick else "full")
    paths = prepare(work, options.wikitext, options.build_binary.resolve(), quick=options.quick)
    lines = (work / "valid.txt").read_text(encoding="utf-8").splitlines()
    rows = measure(paths, lines, quick=options.quick)
    for name, path in ({} if options.quick else prepare_brown(options.brown, work)).items():
        rows[name] = {"bytes": size(path), "perplexity": perplexity(path)}
    for name, row in rows.items():
        show(name, row)
    passed = show_verdict(*missed_claims(rows))
    record("small", options.quick, about, passed=passed, rows=rows, lines=len(lines))
    sys.exit(not passed and not options.quick)


if __name__ == "__main__":
    main()
