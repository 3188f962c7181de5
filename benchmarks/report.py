"""Writes docs/benchmarks.md and the results in README.md, README.zh.md, docs/distributed.md and docs/filter.md from results/.

Nothing is measured here. Run `python benchmarks/report.py` after a benchmark has recorded new results; a test checks that the
pages are up to date.
"""

import json
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
TABLE = re.compile(r"(?<=<!-- results -->\n).*?(?=\n<!-- /results -->)", re.DOTALL)
"""The table in a page, which has comments before and after it."""
WIDTH = 120
"""The longest line of prose in characters."""
README_WORDS = {
    "README.md": {
        "perplexity": "test perplexity",
        "minutes": "minutes",
        "Kneser-Ney": "interpolated modified Kneser-Ney, order 5",
        "quick": "`fflm train --preset quick`",
        "default": "`fflm train`",
        "best": "`fflm train --preset best`, five networks",
        "default + Kneser-Ney + both caches": "`fflm train`, mixed with Kneser-Ney and caches",
    },
    "README.zh.md": {
        "perplexity": "测试集困惑度",
        "minutes": "训练时间（分钟）",
        "Kneser-Ney": "插值修正 Kneser-Ney，5 阶",
        "quick": "`fflm train --preset quick`",
        "default": "`fflm train`",
        "best": "`fflm train --preset best`，五个网络",
        "default + Kneser-Ney + both caches": "`fflm train`，与 Kneser-Ney 和两种缓存模型混合",
    },
}
"""What the table in each README says: the heads of its columns, and the names of its rows by their names in the results."""

Result = dict[str, Any]


def read(name: str) -> Result:
    """Return the results that a benchmark has recorded."""
    result: Result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


def recorded(name: str) -> bool:
    """Return whether a benchmark has recorded results."""
    return (RESULTS / f"{name}.json").is_file()


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    head = list(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def source(name: str, script: str = "") -> str:
    """Say which script has measured something, when, and whether the machine was busy."""
    result = read(name)
    load, cores = result["machine"]["load_before"], result["machine"]["cores"]
    script = script or f"benchmarks/{name}.py"
    busy = f" The load average before the run was {load:.1f} on {cores} cores: other programs may have run." if load > 0.5 else ""
    passed = result.get("passed", not result.get("different"))
    missed = f": {'; '.join(result['missed'])}." if result.get("missed") else ", see above."
    verdict = " **There is no verdict**, because of noise." if passed is None else f" **A target was missed**{missed}"
    return (
        f"Measured by [{script}](../{script}) on {result['date']}; all numbers are in "
        f"[results/{name}.json](../benchmarks/results/{name}.json).{busy}" + ("" if passed else verdict)
    )


def count(number: float) -> str:
    """Return a number of things."""
    return f"{number:,.0f}"


def milliseconds(seconds: float) -> str:
    """Return a time, given in seconds."""
    return f"{seconds * 1e3:,.0f} ms"


def megabytes(size: float) -> str:
    """Return a size, in units of a million bytes."""
    return f"{size / 1e6:,.0f}"


def conditions(name: str, score: Result) -> list[str]:
    """Return a row that says what a perplexity depends on."""
    return [
        name,
        count(score["tokens"]),
        f"{count(score['vocabulary'])}, {score['rule']}",
        f"{score['unknown_share']:.2%}",
        score["policy"],
    ]


MACHINE_NOTES = """\
Speed depends on the machine, and comparisons of speed do, too. On the machine above, SciPy's OpenBLAS does {ours} billion
floating-point operations per second in matrix products on one and two threads, and PyTorch's MKL does {theirs} billion. A part
of the advantage over PyTorch comes from this difference. With AVX-512, fflm's kernels multiply most matrices without OpenBLAS,
whose rate is the unit of the shares below. On an AMD EPYC machine with AVX2 only, where both libraries are
equally fast, an earlier version was measured: PyTorch's eager step (with the faster of its two Adam implementations) took 1.3
to 1.9 times as long as fflm's, its compiled step took 1.3 to 1.4 times as long, and fast scoring from text reached 0.83 times
the rate of KenLM; here it reaches {kenlm:.2f} times. The runs on that second machine are not among the recorded results."""


def introduction() -> str:
    """Write the introduction: the machine, and what was not measured."""
    machine, rates = read("training_step")["machine"], read("training_step")["product_rates"]
    kenlm = read("scoring")["rates"]["fflm, from text"]["faster_than_kenlm"]["median"]
    ours, theirs = (" and ".join(count(rates[threads][name] / 1e9) for threads in "12") for name in ("fflm", "torch"))
    notes = MACHINE_NOTES.format(ours=ours, theirs=theirs, kenlm=kenlm)
    return f"""\
# Benchmarks

<!-- This page is generated: edit benchmarks/report.py instead, and run it. -->

Every number on this page was measured by a script in [benchmarks/](../benchmarks/README.md). Each script first verifies that
what it times computes the right result. The programs that are compared take turns, and times are medians over the rounds.

**Machine.** {machine["processor"]} (a virtual machine), {machine["cores"]} cores, {machine["memory_gb"]:.0f} GB of memory,
{machine["system"]}, Python {machine["python"]}, Numba {machine["numba"]}, NumPy {machine["numpy"]}, {machine["blas"]},
PyTorch {machine["torch"]}. Most runs were made while other programs used the machine; each section says so.

{notes}

**What was not measured.**

- Nothing was measured on a GPU. The CUDA kernels have never run on one ([GPU](gpu.md)).
- Other processors and more than two cores were not measured, except as said above.
- `benchmarks/sampled.py` was run with the preset `quick` only, not with the default network.
- The networks of the paper were measured before a correction of Adam for the rows that a sampled step leaves out.
- The default network in the sections on speed has neither direct connections nor vectors of affixes.
- Not all machines were equally fast, although their processors have the same name. Compare times within a section only."""


def glance() -> str:
    """Write the table of one figure per comparison: the other program's, fflm's, and what the machine allows."""
    steps = {(each["size"], each["threads"], each["contender"]): each for each in read("training_step")["steps"]}
    default = next(size for size in reversed(read("training_step")["sizes"]) if size.endswith("default"))
    inference = {(each["task"], each["threads"]): each for each in read("inference")["steps"] if each["vocabulary"] == 18_000}
    perplexities = {name: row["test"]["perplexity"] for name, row in read("recipe")["results"]["Brown"]["rows"].items()}
    rates = {name: each["tokens_per_second"]["median"] / 1e6 for name, each in read("scoring")["rates"].items()}
    lines, small, call = read("lines")["rows"], read("small")["rows"], next(iter(read("calls")["rows"].values()))
    start = {name: each["median"] for name, each in read("start_up")["seconds"].items()}
    tokens = next(each for each in read("tokenizing")["results"] if each["name"].startswith("word, in memory"))
    texts = {each["contender"]: each for each in read("classify")["results"][0]["results"] if not each["bigrams"]}
    rows = [
        [
            "test perplexity on Brown",
            f"{perplexities['Kneser-Ney']:.1f}, Kneser-Ney",
            f"{perplexities['default']:.1f}; {perplexities['default + Kneser-Ney + both caches']:.1f} mixed with it and caches",
            "",
        ]
    ]
    for threads, name in ((1, "one thread"), (2, "two threads")):
        ours, theirs = (steps[default, threads, contender] for contender in ("fflm", "torch, compiled"))
        seconds = ours["seconds"]["median"]
        rows.append(
            [
                f"exact training step, default network of 33,000 words, {name}",
                f"{milliseconds(seconds * theirs['time_relative_to_fflm']['median'])}, PyTorch, compiled",
                milliseconds(seconds),
                f"{milliseconds(seconds * ours['share_of_product_rate'])}, the matrix products alone",
            ]
        )
    for task, name in (
        ("score", "exact scoring of a text"),
        ("sample 64", "64 samples"),
        ("beam search 5", "beam search, 5 beams"),
    ):
        found = inference[task, 2]["words_per_second"]
        theirs, ours = (f"{count(found[program]['median'])} words/s" for program in ("torch", "fflm"))
        rows.append([f"{name}, two threads", f"{theirs}, PyTorch", ours, ""])
    rows += [
        [
            "exact scoring of a line by a small network",
            f"{call['products in NumPy']['fastest']:.0f} \u00b5s, its matrix products in NumPy",
            f"{call['scores of one line']['fastest']:.0f} \u00b5s",
            "",
        ],
        [
            "fast scoring of a file, one core",
            f"{rates['KenLM, from text']:.1f} million tokens/s, KenLM",
            f"{rates['fflm, from text']:.1f} million tokens/s",
            f"{rates['fflm, from ids']:.1f} million tokens/s, from ids",
        ],
        [
            "fast scoring of a line, one call",
            f"{lines['KenLM']['line_microseconds']:.1f} \u00b5s, KenLM",
            f"{lines['fflm, network']['line_microseconds']:.1f} \u00b5s",
            f"{lines['fflm, network']['bulk_microseconds']:.1f} \u00b5s, in one call with others",
        ],
        [
            "quantized 5-gram model of WikiText-2",
            f"{small['KenLM, trie -q 8 -b 8 -a 22']['bytes'] / 1e6:.1f} MB, KenLM",
            f"{small['n-grams, quantized']['bytes'] / 1e6:.1f} MB",
            "",
        ],
        [
            "text to ids, words",
            f"{tokens['nanoseconds']['fflm']['median'] * tokens['ratios']['tokenizers']['median']:.0f} ns per token, tokenizers",
            f"{tokens['nanoseconds']['fflm']['median']:.0f} ns per token",
            "",
        ],
        [
            "training of a text classifier",
            f"{texts['fastText']['train_seconds']['median']:.1f} s, accuracy {texts['fastText']['accuracy']['median']:.1%}, fastText",
            f"{texts['fflm']['train_seconds']['median']:.1f} s, accuracy {texts['fflm']['accuracy']['median']:.1%}",
            "",
        ],
        ["`fflm generate`", "", f"{start['fflm generate']:.2f} s", f"{start['import numba']:.2f} s, `import numba`"],
    ]
    return f"""\
## At a glance

One row for each comparison; the sections below have the conditions. Where a limit of this machine was measured, the last column
has it.

{table(["task", "other programs", "fflm", "limit"], rows)}"""


def quality() -> str:
    """Write the section on the perplexities of the default network."""
    result = read("recipe")["results"]
    names = list(result)
    tests = {row: [result[name]["rows"].get(row, {}).get("test") for name in names] for row in result[names[0]]["rows"]}
    rows = [
        [
            row,
            *(
                each
                for test in scores
                for each in ((f"{test['perplexity']:.1f}", f"{test['bits_per_character']:.3f}") if test else ("", ""))
            ),
        ]
        for row, scores in sorted(tests.items(), key=lambda item: -item[1][0]["perplexity"])
    ]
    best = {
        f"{name} {preset}": min(points, key=lambda each: each["perplexity"])
        for name in names
        for preset, points in result[name]["courses"].items()
    }
    courses = "; ".join(f"{name}: {each['perplexity']:.0f} after {each['minutes']:.1f} minutes" for name, each in best.items())
    return f"""\
## Perplexity

The table compares the test perplexities of the presets `quick`, `default` and `best`, which is a mixture of five default
networks, of a default network that learned from `best` (the student), and of mixtures, with that of interpolated modified
Kneser-Ney of order 5. The caches hold the last 2,000 words of the text that is being scored. Mixture weights, the best epoch
and the form of the caches were chosen on validation text. The network's settings were chosen on the validation text of
Brown, except dropout and weight decay for texts of more than a million words, which were chosen on that of WikiText-2.
Nothing was chosen on a test text. Brown is split as Bengio et al. (2003) did, as one stream; WikiText-2 is as published.

{source("recipe")}

{table(["model", *(each for name in names for each in (name, "bits per character"))], rows)}

A perplexity can only be compared with another one that was measured under the same conditions:

{
        table(
            ["test text", "tokens", "vocabulary", "out of vocabulary", "ends"],
            [conditions(name, result[name]["rows"]["default"]["test"]) for name in names],
        )
    }

The plot shows the validation perplexity of single networks over the time of training on two cores. The lowest were: {courses}.

![validation perplexity over minutes of training](../benchmarks/results/recipe.png)"""


def bengio() -> str:
    """Write the section on table 1 of the paper."""
    rows = read("bengio_table1")["rows"]
    body = []
    for name, row in rows.items():
        published, figures = row["published"], row["figures"]
        pairs = [(str(published[part] or ""), f"{figures[part]['perplexity']:.1f}") for part in ("train", "valid", "test")]
        body.append([name, *sum(pairs, ()), f"{row['test_ratio_published']:.3f}", f"{row['test_ratio']:.3f}"])
    minutes = sum(row.get("minutes", 0) for row in rows.values())
    test, train = rows["MLP9"]["figures"]["test"], rows["MLP9"]["figures"]["train"]
    best, ngram = test["bits_per_character"], rows["KN5"]["figures"]["test"]["bits_per_character"]
    head = ["model", "train 2003", "train", "valid 2003", "valid", "test 2003", "test", "test / KN5 2003", "test / KN5"]
    return f"""\
## Table 1 of Bengio et al. (2003)

The table has the published and the measured perplexities on Brown: those of the paper's five networks (MLP with an odd
number), of each network averaged half and half with the paper's trigram model (deleted interpolation; MLP with an even number),
and of Kneser-Ney.

{source("bengio_table1")}

The paper's edition of Brown has 181,041 tokens in its test part and a vocabulary of 16,383 words; here they are
{count(test["tokens"])} and {count(test["vocabulary"])} ({test["rule"]}). Therefore compare the ratios to Kneser-Ney of order 5, not the
perplexities. The OOV rate is {train["unknown_share"]:.2%} in the training part and {test["unknown_share"]:.2%} in the test
part; ends: {test["policy"]}. The paper trained with stochastic gradient descent on the full softmax; these
networks were trained with AdamW on a sampled softmax, which took {minutes:.0f} minutes on one core for all five. MLP9 has {best:.3f} bits per
character on the test text, Kneser-Ney of order 5 has {ngram:.3f}.

{table(head, body)}"""


def ngrams() -> str:
    """Write the section on n-gram models."""
    body = []
    for each, expected in zip(read("ngram")["results"], read("ngram")["expected"], strict=True):
        test = each["figures"]["test"]["perplexity"]
        body.append([each["corpus"], str(each["order"]), f"{test:.1f}", f"{expected['test']:.1f}", f"{each['seconds']:.1f} s"])
    first = f"""\
## N-gram models

The table has the test perplexities of interpolated modified Kneser-Ney under the conditions of the first table, the values
that were expected, and the time that the estimation took.

{source("ngram")}

{table(["corpus", "order", "perplexity", "expected", "time"], body)}"""
    return "\n\n".join([first, *ngrams_beside()])


def ngrams_beside() -> Iterator[str]:
    """Write what is known of n-grams beside other programs, and in bounded memory."""
    if recorded("ngram_nltk"):
        result, rows = read("ngram_nltk"), []
        for name, program in (("nltk", "nltk.lm"), ("fflm", "fflm")):
            rows.append([program, *(f"{count(result[name][each])}" for each in ("train_rate", "score_rate"))])
        yield f"""\
nltk.lm, with the interpolated Kneser-Ney of order {result["order"]} that is used in teaching, is trained on {result["train_tokens"]:,} tokens
of WikiText-2, as fflm is, and scores {result["scored_tokens"]}, of which {result["nltk"]["infinite"]} have the probability 0; fflm scores the whole test text.

{source("ngram_nltk", "benchmarks/ngram.py")}

{table(["tokens per second of processor time", "training", "scoring"], rows)}"""
    if recorded("ngram_lmplz"):
        rows = []
        for each in read("ngram_lmplz")["results"]:
            ratio = each["processor_seconds_relative_to_lmplz"]
            for program in ("lmplz", "fflm"):
                own = each[program]
                cells = [f"{own['processor_seconds']:.1f} s", f"{own['seconds']:.1f} s", f"{own['memory'] / 1e9:.2f} GB"]
                beside = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if program == "fflm" else "1"
                rows.append([each["corpus"], f"{each['tokens']:,}", program, *cells, beside])
        yield f"""\
KenLM's lmplz estimates the same models of order {each["order"]}, with a bound of {each["bound"]} for memory: their log10 p and back-off weights differ
by at most {max(each["largest_difference"] for each in read("ngram_lmplz")["results"]):.0e} in a sample. lmplz writes an ARPA file, fflm also the index with which it scores.

{source("ngram_lmplz", "benchmarks/ngram.py")}

{table(["text", "tokens", "program", "processor time", "time", "peak memory", "processor time, relative"], rows)}"""
    if recorded("ngram_large"):
        result, rows = read("ngram_large"), []
        for each in result["results"]:
            cells = f"{each['processor_seconds']:.0f} s", f"{each['seconds']:.0f} s", f"{each['memory'] / 1e9:.2f} GB"
            rows.append([each["bound"], *cells])
        lmplz = result["lmplz"]
        yield f"""\
A model of order {each["order"]} with {sum(each["counts"]):,} n-grams is estimated on {each["tokens"]:,} words in bounded memory, the same bit for
bit whatever the bound. The authors of lmplz published {lmplz["tokens"] / lmplz["seconds"]:,.0f} tokens a second, on another machine
([Heafield et al. 2013]({lmplz["source"]})).

{source("ngram_large", "benchmarks/ngram.py")}

{table(["bound", "processor time", "time", "peak memory"], rows)}"""


def training_step() -> str:
    """Write the section on time and memory of a step with the exact loss."""
    result = read("training_step")
    cells = {(each["size"], each["threads"], each["contender"]): each for each in result["steps"]}
    memory = {(each["size"], each["contender"]): each["bytes"] for each in result["memory"]}

    others = {"torch": "PyTorch, Adam", "torch, fused Adam": "PyTorch, fused Adam", "torch, compiled": "PyTorch, compiled"}
    others |= {"jax": "JAX"} if any(each["contender"] == "jax" for each in result["steps"]) else {}
    serial = ""
    if shares := result.get("serial_shares"):
        serial = f"""

Of the processor time of a step, {min(shares.values()):.1%} to {max(shares.values()):.1%} is not divided among threads
({"; ".join(f"{share:.1%} at {size.replace('=', ' ')}" for size, share in shares.items())}). With a serial share s, n threads
are at most 1 / (s + (1 - s) / n) times as fast as one (Amdahl 1967); waking threads and shared caches come on top of it."""

    def both(size: str, contender: str, show: Callable[[Result], str]) -> str:
        return ", ".join(show(cells[size, threads, contender]) for threads in (1, 2))

    def limit(*contenders: str) -> float:
        """Return how many times as fast as the fastest of the contenders a step of matrix products alone is, the median."""
        places = [(size, threads) for size in result["sizes"] for threads in (1, 2)]
        return statistics.median(min(1 / cells[*place, each]["share_of_product_rate"] for each in contenders) for place in places)

    body = [
        [
            size.replace("=", " ").replace(" default", ", default network"),
            both(size, "fflm", lambda each: milliseconds(each["seconds"]["median"])),
            both(size, "fflm", lambda each: f"{each['share_of_product_rate']:.0%}"),
            *(both(size, contender, lambda each: f"{each['time_relative_to_fflm']['median']:.1f}") for contender in others),
            ", ".join(megabytes(memory[size, contender]) for contender in ("fflm", "torch, compiled", "torch")),
        ]
        for size in result["sizes"]
    ]
    head = ["size", "fflm", "share of the matrix-product rate", *others.values(), "memory in MB: fflm, compiled, eager"]
    return f"""\
## Training step

One step with the exact loss (forward, backward, dropout and Adam) is compared with PyTorch {result["machine"]["torch"]} on
the same batches, with 1 and 2 threads. V is the vocabulary, m the embedding size, h the number of hidden units and B the
batch size. The columns of other programs say how many times as long their step takes as fflm's. The third column is the share of the machine's
matrix-product rate that fflm's step reaches.

{source("training_step")}

{table(head, body)}

Over all sizes and thread counts, PyTorch's eager step with the faster of its two Adam implementations takes
{min(result["time_ratios"].values()):.1f} to {max(result["time_ratios"].values()):.1f} times as long, {result["median_time_ratio"]:.1f} times in the median. All programs compute the
same matrix products. A step that took no longer than these alone would be {limit("torch", "torch, fused Adam"):.1f} times as fast as PyTorch's
eager step in the median, and {limit("torch, compiled"):.1f} times as fast as its compiled step.{serial}"""


def sampled() -> str:
    """Write the section on sampled losses."""
    texts, steps = read("sampled_quick")["texts"], read("sampled_step")["steps"]
    losses = list(texts["Brown"]["losses"])
    relative = {name: text["losses"]["sampled"]["time_relative_to_exact"] for name, text in texts.items()}
    results = {loss: [text["losses"][loss] for text in texts.values()] for loss in losses}
    training = [
        [loss, *(each for text in results[loss] for each in (f"{text['perplexity']:.1f}", f"{text['minutes']:.2f}"))]
        for loss in losses
    ]
    step = [
        [
            loss,
            ", ".join(milliseconds(steps[f"{loss}, {threads} threads"]["seconds"]["median"]) for threads in (1, 2)),
            ", ".join(f"{steps[f'{loss}, {threads} threads']['faster_than_exact']['median']:.1f}" for threads in (1, 2)),
        ]
        for loss in ("exact", "sampled", "nce", "adaptive")
    ]
    words = sampled_words(read("sampled_step")["default_steps"])
    return f"""\
## Sampled losses

The table has the validation perplexity with the preset `quick` and the minutes of training, evaluations included. "nce, then exact" uses the exact
loss for the last tenth of the steps. The sampled softmax takes {relative["Brown"]:.2f} of the time of the exact loss on Brown and
{relative["WikiText-2"]:.2f} on WikiText-2, and reaches a lower perplexity on both.

{source("sampled_quick", "benchmarks/sampled.py")}

{table(["loss", *(each for name in texts for each in (name, "minutes"))], training)}

The next table is about one training step with 100,000 words in the vocabulary (window 4, m 128, h 256, batch 512, Adam), with
1 and 2 threads.

{source("sampled_step")}

{table(["loss", "step", "times faster than exact"], step)}

Words per second of the default network without direct connections, and the share of the machine's matrix-product rate that its
step reaches, with 1 and 2 threads:

{table(["vocabulary", "exact", "share", "sampled", "share"], words)}"""


def sampled_words(steps: Result) -> list[list[str]]:
    """Return how many words per second the default network trains on, and the shares of the product rate, for each vocabulary."""
    rows = []
    for vocabulary in (33_000, 100_000):
        row = [count(vocabulary)]
        for loss in ("exact", "sampled"):
            found = [steps[f"{loss}, V = {vocabulary}, {threads} threads"] for threads in (1, 2)]
            row.append(", ".join(count(each["words_per_second"]["median"]) for each in found))
            row.append(", ".join(f"{each['share_of_product_rate']['median']:.0%}" for each in found))
        rows.append(row)
    return rows


def scoring() -> str:
    """Write the section on fast and exact scoring, and on generation."""
    result, inference = read("scoring"), read("inference")
    rates, normalizers = result["rates"], result["normalizers"]
    score = result["perplexities"]["Kneser-Ney, order 5"]
    factors = {name: f"{each['faster_than_kenlm']['median']:.2f}" for name, each in rates.items() if "faster_than_kenlm" in each}
    speed = [[name, f"{each['tokens_per_second']['median'] / 1e6:.1f}", factors.get(name, "")] for name, each in rates.items()]
    scores = result["perplexities"].items()
    quality = [[name, f"{each['perplexity']:.1f}", f"{each['bits_per_character']:.3f}"] for name, each in scores]
    cells = {(each["task"], each["threads"]): each for each in inference["steps"] if each["vocabulary"] == 18_000}
    names = {"score": "score", "sample 1": "1 sample", "sample 64": "64 samples", "beam search 5": "beam search, 5 beams"}
    exact = [
        [
            names.get(task, task),
            ", ".join(count(cells[task, threads]["words_per_second"]["fflm"]["median"]) for threads in (1, 2)),
            ", ".join(f"{cells[task, threads]['torch_time_relative_to_fflm']['median']:.1f}" for threads in (1, 2)),
        ]
        for task in dict.fromkeys(task for task, _ in cells)
    ]
    long, short = inference["lists"][:2]
    return f"""\
## Scoring and generation

**Fast scoring** (`fflm score --fast`) on one core is compared with KenLM's probing model of order 5, which is called line by
line from Python.

{source("scoring")}

{table(["", "million tokens per second", "relative to KenLM"], speed)}

How fflm compares with KenLM depends on the machine; see the note at the top of this page.

The next table has the test perplexities of the same models on Brown, one sentence per line ({count(score["tokens"])} tokens, OOV
rate {score["unknown_share"]:.2%}, vocabulary {count(score["vocabulary"])}, {score["rule"]}; {score["policy"]}). Fast scores are not
normalized: log Z is not exactly zero (the mean of |log Z| is {normalizers["mean_absolute"]:.2f}, the largest
{normalizers["worst"]:.1f}), so their rows are not perplexities.

{table(["model", "perplexity", "bits per character"], quality)}

**Exact scoring and generation** with the default network (V 18,000) were measured in words per second, with 1 and 2 threads.
The last column says how many times as long the same network takes in PyTorch.

{source("inference")}

{table(["task", "fflm", "PyTorch's time"], exact)}

Contexts that repeat within an n-best list are computed once. For {long["hypotheses"]} variants of a sentence this makes scoring
{long["faster_than_each_context"]:.1f} times as fast with {long["context"]} words of context, where {long["repeated_share"]:.0%} of
the contexts repeat, and {short["faster_than_each_context"]:.1f} times as fast with {short["context"]} words
({short["repeated_share"]:.0%})."""


def small() -> str:
    """Write the section on quantized models."""
    body = [
        [
            name,
            f"{row['bytes'] / 1e6:.1f}",
            *(f"{row[part]['median'] * 1e3:.1f}" for part in ("load", "first_score")),
            f"{row['words_per_second'] / 1e6:.1f}",
            f"{row['perplexity_of_scores']:.2f}",
        ]
        for name, row in read("small")["rows"].items()
        if "load" in row
    ]
    head = ["model", "MB", "loaded after, ms", "first line after, ms", "million words per second", "perplexity of scores"]
    return f"""\
## Quantized models

5-gram models of WikiText-2 with all n-grams, without those of three and more words that occur once ("by count") and pruned by
entropy, a network of the preset `quick` that normalizes itself, and their copies with 8 bits a number (`fflm quantize`), beside
KenLM's files of the same n-grams. Times of loading are those of the processor, without imports; lines are scored in lists by
fflm and one by one by KenLM, which has no such call. The perplexities are those of the validation text, a sentence a line;
scores of the network are fast scores.

{source("small")}

{table(head, body)}"""


def tokenizing() -> str:
    """Write the section on tokenizing."""
    body = [
        [each["name"], f"{each['nanoseconds']['fflm']['median']:.0f}", f"{each['ratios']['tokenizers']['median']:.1f}"]
        for each in read("tokenizing")["results"]
    ]
    return f"""\
## Tokenizing

The table has fflm's nanoseconds per token, and how many times as long the word-level pipeline of Hugging Face tokenizers takes
with the same splitting rule and equal ids. The text is Brown, repeated with new words. "End to end" is from a text file to ids on
disk; fflm's time includes building the vocabulary, the other one does not.

{source("tokenizing")}

{table(["task", "fflm", "time of tokenizers relative to fflm"], body)}"""


def classification() -> str:
    """Write the section on text classifiers and fastText."""
    result = read("classify")

    def pair(rows: dict[str, Result], name: str, show: Callable[[float], str]) -> str:
        return ", ".join(show(rows[contender][name]["median"]) for contender in ("fflm", "fastText"))

    body = []
    for data in result["results"]:
        for bigrams in (False, True):
            rows = {each["contender"]: each for each in data["results"] if each["bigrams"] == bigrams}
            body.append(
                [
                    f"{data['data']}, {'bigrams' if bigrams else 'words'}",
                    pair(rows, "accuracy", lambda value: f"{value:.1%}"),
                    pair(rows, "macro_f1", lambda value: f"{value:.3f}"),
                    pair(rows, "train_seconds", lambda value: f"{value:.1f} s"),
                    pair(rows, "texts_per_second", count),
                ]
            )
    docstrings, sentences = result["results"]
    medians = [
        {each["contender"]: {name: each[name]["median"] for name in ("train_seconds", "texts_per_second")} for each in rows}
        for data in result["results"]
        for rows in ([each for each in data["results"] if each["bigrams"] == bigrams] for bigrams in (False, True))
    ]
    times, rates = (
        sorted(each["fflm"][name] / each["fastText"][name] for each in medians) for name in ("train_seconds", "texts_per_second")
    )
    return f"""\
## Text classification

The classifiers are compared with fastText on the same words, with {result["epochs"]} epochs and {result["threads"]} threads. Each
cell has first fflm's value, then fastText's. One task is to find which of {len(docstrings["classes"])} packages a docstring's
paragraph is from ({count(docstrings["texts"]["train"])} training texts, from other files than the test texts); the other is to
find whether a sentence is from Brown or WikiText-2 ({count(sentences["texts"]["train"])} training texts). fflm trains in
{times[0]:.1f} to {times[-1]:.1f} times fastText's time, and predicts {rates[0]:.1f} to {rates[-1]:.1f} times as many texts per
second.

{source("classify")}

{table(["task", "accuracy", "macro F1", "training time, from text to model", "texts predicted per second"], body)}"""


def resources() -> str:
    """Write the sections on start-up, large text and scaling."""
    start, large, scaling = read("start_up"), read("large_corpus"), read("scaling")
    children = large["tokenize"]["children"]
    processes = f"{1 + children} processes" if children else "one process"
    seconds = {name: each["median"] for name, each in start["seconds"].items()}
    helps = max(value for name, value in seconds.items() if name.endswith("--help"))
    names = {"hidden": "hidden units", "corpus": "tokens of the corpus"}
    body = [
        [
            names.get(name, name),
            f"{count(each['values'][0])} to {count(each['values'][-1])}",
            f"{milliseconds(each['seconds'][0]['median'])} to {milliseconds(each['seconds'][-1]['median'])}",
            f"{each['exponents']['time']:.2f}",
            f"{megabytes(each['bytes'][0])} to {megabytes(each['bytes'][-1])}",
            f"{each['exponents']['memory']:.2f}",
        ]
        for name, each in scaling["results"].items()
    ]
    one, two = (each["median"] for each in scaling["results"]["threads"]["seconds"])
    uses = {name: each["median"] for name, each in start.get("first_use", {}).items()}
    first_uses = ""
    if uses:
        least, most = min(uses, key=uses.__getitem__), max(uses, key=uses.__getitem__)
        first_uses = f"""
The first use of a model takes between {uses[least]:.1f} s (`{least}`) and {uses[most]:.1f} s (`{most}`) of processor time in all."""
    return f"""\
## Start-up

`fflm --help` takes {seconds["fflm --help"]:.2f} s, and the help of every command takes at most {helps:.2f} s. `fflm generate`
takes {seconds["fflm generate"]:.2f} s once its kernels are cached, of which `import numba` and reading the model take
{seconds["import numba, read the model"]:.2f} s. The first training on a machine compiles its kernels, which takes
{start["first_step"]["compiling"]["median"]:.1f} s.{first_uses}

{source("start_up")}

## Large text

{count(large["tokens"] / 1e6)} million tokens are tokenized in {large["tokenize"]["seconds"]:.1f} s, with
{megabytes(large["tokenize"]["together"])} MB in {processes} together. The default network trains
on them with {megabytes(large["train_beyond_them"])} MB of memory in addition to parameters, gradients and optimizer state.

{source("large_corpus")}

## Scaling

The table says how the time and the memory (in MB) of a training step of the default network change when one size changes (exact
loss, V {count(scaling["middle"]["vocabulary"])}, batch {scaling["middle"]["batch"]}). The exponent is the power of the size with
which they grow. Two threads make a step {one / two:.2f} times as fast as one.

{source("scaling")}

{table(["", "size", "time", "exponent", "memory", "exponent"], body)}

![time and memory of a training step](../benchmarks/results/scaling.png)"""


def robustness() -> str:
    """Write the sections on interruption, mixed precision and the GPU."""
    kills, mixed, launching = read("kill_and_resume"), read("mixed_precision"), read("launching")
    last = {name: each[-1] for name, each in mixed["perplexities"].items()}
    steps = {name: each["seconds"] * 1e3 for name, each in launching["steps"].items()}
    return f"""\
## Interruption

A training run was killed (SIGKILL) {len(kills["kills"])} times at random moments and resumed each time. Its weights, optimizer
state and figures are bit for bit equal to those of an uninterrupted run.

{source("kill_and_resume")}

## Mixed precision

Mixed precision was emulated on the CPU, with the same rounding as in the CUDA kernels. After {mixed["training"]["epochs"]} epochs on Brown the validation perplexity is
{last["mixed"]:.1f} in mixed precision and {last["float32"]:.1f} in float32; with another random seed it is {last["float32, other weights"]:.1f} in float32.

{source("mixed_precision")}

## GPU

**Nothing has run on a GPU.** What could be measured without one is the time that the host needs before the driver launches
kernels: {steps["exact loss, float32"]:.1f} ms for a step with the exact loss, {steps["exact loss, mixed"]:.1f} ms in mixed
precision, and {steps["sampled loss, float32"]:.1f} ms with a sampled loss. The time of the driver itself is not included.

{source("launching")}"""


def wrap(paragraph: str) -> str:
    """Return a paragraph in lines of at most `WIDTH` characters; headings, tables, lists and comments stay as they are."""
    if paragraph.startswith(("#", "|", "- ", "!", "<!--")):
        return paragraph
    return textwrap.fill(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)


def page() -> str:
    """Return docs/benchmarks.md."""
    sections = (
        introduction,
        glance,
        quality,
        bengio,
        ngrams,
        training_step,
        sampled,
        scoring,
        small,
        tokenizing,
        classification,
        resources,
        robustness,
    )
    return "\n\n".join(wrap(paragraph) for section in sections for paragraph in section().split("\n\n")) + "\n"


def readme_table(readme: str) -> str:
    """Return the table of one README, in its language."""
    words, results = README_WORDS[readme], read("recipe")["results"]
    body = []
    for row in list(words)[2:]:
        cells = [words[row]]
        for result in results.values():
            course = result["courses"].get(row)
            cells += [f"{result['rows'][row]['test']['perplexity']:.1f}", f"{course[-1]['minutes']:.1f}" if course else ""]
        body.append(cells)
    return table([words["perplexity"], *(each for name in results for each in (name, words["minutes"]))], body)


def filter_table() -> str:
    """Return the table of docs/filter.md: how well scores tell degraded documents from clean ones, and how fast."""
    result = read("filter_quality")
    kinds = [name for name in next(iter(result["rows"].values())) if name != "median_perplexity"]
    body = [[kind, *(f"{row[kind]:.3f}" for row in result["rows"].values())] for kind in kinds]
    body.append(["mean", *(f"{value:.3f}" for value in result["mean_area"].values())])
    body.append(["documents per second", *(count(each["median"]) for each in result["documents_per_second"].values())])
    return table(["", *result["rows"]], body)


def distributed_results() -> str:
    """Return the results in docs/distributed.md: measured steps of two processes, and in how many a step is fastest."""
    result = read("distributed")
    checks, predicted, overlap = result["checks"], result["predicted"], read("overlap")["results"]
    links = ["this machine", *(link for link in checks if link != "this machine")]
    measured = []
    for case, ways in result["cases"].items():
        alone = (ways[way]["seconds"]["median"] * 1e3 for way in ("one process, one thread", "one process, two threads"))
        steps = (checks[link][case] for link in links)
        times = (f"{seconds * 1e3:,.0f} ({modeled * 1e3:,.0f})" for seconds, modeled in steps)
        measured.append([case, *map("{:,.0f}".format, alone), *times])
    bandwidths = list(next(iter(predicted.values())))
    best = [[case, *(fastest(times) for times in by_link.values())] for case, by_link in predicted.items()]
    saved = [[case, *(savings(cases[case]) for cases in overlap.values())] for case in overlap["this machine"]]
    paragraphs = [
        "Milliseconds per step of one process with one and with two threads, and of two processes with one thread each; in "
        "parentheses those of the model:",
        table(["", "one thread", "two threads", *links], measured),
        "In how many processes a step is fastest by the model, and how many times as fast as in one process; more do not pay:",
        table(["", *bandwidths], best),
        source("distributed"),
        "The share of a step's time that is saved if gradients are summed during the backward pass, in a second thread or by "
        "non-blocking operations, with the margins of noise; then what can be saved at most if nothing else uses the processors:",
        table(["", *overlap], saved),
        source("overlap"),
    ]
    return "\n" + "\n\n".join(map(wrap, paragraphs)) + "\n"


def savings(result: Result) -> str:
    """Return the shares of a step's time that two ways to sum gradients early save, and what could be saved at most."""
    shares = (f"{each['median']:.0%} ({each['low']:.0%} to {each['high']:.0%})" for each in result["saved"].values())
    return f"{', '.join(shares)}; {result['most']:.0%}"


def fastest(times: list[float]) -> str:
    """Return in which of 1, 2, 4, ... processes a step is fastest, and how many times as fast as in one, given its times."""
    best = min(range(len(times)), key=times.__getitem__)
    return f"{2**best}: {times[0] / times[best]:.1f} times" if best else "one"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    tables = {readme: readme_table(readme) for readme in README_WORDS} | {
        "docs/distributed.md": distributed_results(),
        "docs/filter.md": filter_table(),
    }
    for page_, table_ in tables.items():
        text = (ROOT / page_).read_text(encoding="utf-8")
        (ROOT / page_).write_text(TABLE.sub(lambda _, table_=table_: table_, text), encoding="utf-8")


if __name__ == "__main__":
    main()
