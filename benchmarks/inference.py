"""Claim: a text is scored at least 1.5 times as fast as by PyTorch, and 64 continuations are sampled at least as fast.

The default network with random weights, and with word frequencies as in text, is compared with PyTorch in eager inference
mode, at two vocabularies and with one and two threads. Scoring goes from ids to -log p, 1024 at a time, and is compared with
log_softmax and gather; sampling is compared with a loop around torch.multinomial. These are measured without a claim: one
continuation at a time, beam search of width 5 compared with a loop around topk, and n-best lists of 100 variants of a
sentence, with the share of contexts that repeat.

The script first verifies that both programs compute equal losses of a text, equal most likely continuations, equal
log-probabilities of the samples, and equal hypotheses of the beam search. It needs PyTorch.
"""

import argparse
import functools
import itertools
import statistics
import sys
from collections.abc import Callable
from typing import Any

try:  # before fflm, which sets OpenMP's waiting threads to sleep: PyTorch keeps its default
    import torch
except ImportError:
    sys.exit("PyTorch is needed for the comparison: pip install torch")

import numpy as np
from common import in_turns, machine, parse, quartiles, record, show_verdict
from torch.nn import functional
from torch_network import TorchNetwork

from fflm.backend.cpu.backend import CpuBackend
from fflm.models.generation import beam_search, read_prefix, sample
from fflm.models.neural.model import NeuralModel
from fflm.models.neural.train import default_averages
from fflm.models.scoring import score_hypotheses
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters
from fflm.text.prefixes import Prefix
from fflm.text.settings import TextSettings
from fflm.text.tokenizer import Tokenizer
from fflm.text.vocabulary import Vocabulary

VOCABULARIES = 18_000, 33_000
ROWS, BATCHES = 1024, 8
LENGTH, SAMPLES, BEAMS = 10, (1, 64), 5
HYPOTHESES, WORDS, EDITS = 100, 25, 3
CLAIMED = {"score": 1.5, "sample 64": 1.0}  # the smallest ratio of PyTorch's time to fflm's
TOLERANCE = 1e-4  # the largest difference of losses in nats per word; both programs use single precision


def build(vocabulary: int, averages: tuple[int, ...] = default_averages(10**6)) -> NeuralModel:
    """Return a model with random weights. Its word frequencies follow Zipf's law."""
    config = NetworkConfig(vocabulary, averages=averages)
    parameters = Parameters.random(config, seed=1)
    parameters.output_bias[:] = -np.log(np.arange(1, vocabulary + 1))
    words = [f"word{id_}" for id_ in range(2, vocabulary)]
    return NeuralModel(config, parameters, Vocabulary.from_words(words, {}, ends=True), TextSettings(Tokenizer("space")))


def text(model: NeuralModel, words: int, seed: int) -> np.ndarray:
    """Return ids (words,) of random words of the model's vocabulary, without special words."""
    shares = 1 / np.arange(3, model.config.vocabulary + 1)
    ids = np.random.default_rng(seed).choice(len(shares), words, p=shares / shares.sum()) + 2
    return ids.astype(np.int32)


class Fflm:
    """Scoring and generation with fflm."""

    def __init__(self, model: NeuralModel, ids: np.ndarray, prefix: Prefix) -> None:
        self.model, self.prefix = model, prefix
        self.windows = model.windows(ids)

    def losses(self, low: int) -> np.ndarray:
        """Return -log p of `ROWS` words of the text from number ``low`` of those with a whole context."""
        return self.model.losses(*self.windows.batch(np.arange(low, low + ROWS) + self.model.window))

    def sample(self, count: int, *, greedy: bool = False) -> list[list[int]]:
        """Return the ids of continuations of the prefix."""
        found = sample(self.model, self.prefix, samples=count, length=LENGTH, temperature=0.0 if greedy else 1.0)
        return [each.ids for each in found]

    def beam_search(self) -> list[list[int]]:
        """Return the ids of the likeliest continuations, the likeliest first."""
        return [each.ids for each in beam_search(self.model, self.prefix, beams=BEAMS, length=LENGTH)]


class Torch:
    """Scoring and generation with PyTorch."""

    def __init__(self, model: NeuralModel, ids: np.ndarray, prefix: Prefix) -> None:
        self.network = TorchNetwork(model.config, model.parameters)
        self.windows = torch.from_numpy(ids).unfold(0, model.window + 1, 1)
        context = model.windows(prefix.ids).contexts(np.array([len(prefix.ids)]))
        self.context = torch.from_numpy(context)

    def log_probabilities(self, contexts: torch.Tensor) -> torch.Tensor:
        """Return log p of every word (B, V)."""
        return functional.log_softmax(self.network.logits(contexts), 1)

    @torch.inference_mode()
    def losses(self, low: int) -> np.ndarray:
        """Return -log p of `ROWS` words of the text from number ``low`` of those with a whole context."""
        windows = self.windows[low : low + ROWS]
        scores = self.log_probabilities(windows[:, :-1])
        return -scores.gather(1, windows[:, -1:].long())[:, 0].numpy()

    @torch.inference_mode()
    def sample(self, count: int, *, greedy: bool = False) -> list[list[int]]:
        """Return the ids of continuations of the prefix."""
        contexts, words = self.context.repeat(count, 1), []
        for _ in range(LENGTH):
            logits = self.network.logits(contexts)
            logits[:, 0] = -torch.inf
            drawn = logits.argmax(1, keepdim=True) if greedy else torch.multinomial(functional.softmax(logits, 1), 1)
            words.append(drawn)
            contexts = torch.cat([contexts[:, 1:], drawn.int()], 1)
        return torch.cat(words, 1).tolist()

    @torch.inference_mode()
    def beam_search(self) -> list[list[int]]:
        """Return the ids of the likeliest continuations, the likeliest first."""
        contexts, totals, ids = self.context, torch.zeros(1), torch.empty(1, 0, dtype=torch.int64)
        for _ in range(LENGTH):
            scores = self.log_probabilities(contexts)
            scores[:, 0] = -torch.inf
            totals, best = (totals[:, None] + scores).flatten().topk(BEAMS)
            rows, words = best // scores.shape[1], best % scores.shape[1]
            ids = torch.cat([ids[rows], words[:, None]], 1)
            contexts = torch.cat([contexts[rows, 1:], words[:, None].int()], 1)
        return ids.tolist()

    @torch.inference_mode()
    def log_probability(self, ids: list[int]) -> float:
        """Return log p of a continuation of the prefix, nats."""
        whole = torch.cat([self.context[0], torch.tensor(ids, dtype=torch.int32)])
        scores = self.log_probabilities(whole.unfold(0, self.context.shape[1], 1)[:-1])
        return float(scores.gather(1, torch.tensor(ids)[:, None]).sum())


def verify(model: NeuralModel, ours: Fflm, theirs: Torch) -> None:
    """Exit unless both programs compute the same."""
    for low in range(0, BATCHES * ROWS, ROWS):
        off = np.abs(ours.losses(low) - theirs.losses(low)).max()
        _demand(off <= TOLERANCE, f"the losses differ by {off:.2g}")
    _demand(ours.sample(1, greedy=True) == theirs.sample(1, greedy=True), "the likeliest continuations differ")
    _demand(ours.beam_search() == theirs.beam_search(), "the hypotheses of the beams differ")
    for each in sample(model, ours.prefix, samples=3, length=LENGTH, seed=1):
        off = abs(each.log_probability - theirs.log_probability(each.ids))
        _demand(off <= TOLERANCE * LENGTH, f"the log-probabilities of a sample differ by {off:.2g}")


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"{otherwise}: nothing was timed")


def tasks(contender: Fflm | Torch) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return the tasks by name: a function, and the number of words that it predicts or generates."""
    lows = itertools.cycle(range(0, BATCHES * ROWS, ROWS))
    samplings = {f"sample {count}": (functools.partial(contender.sample, count), count * LENGTH) for count in SAMPLES}
    return {
        "score": (lambda: contender.losses(next(lows)), ROWS),
        **samplings,
        f"beam search {BEAMS}": (contender.beam_search, LENGTH),
    }


def measure(model: NeuralModel, threads: list[int], rounds: int) -> list[dict[str, Any]]:
    """Verify both programs, then time all tasks with both in turns."""
    ids = text(model, model.window + BATCHES * ROWS, seed=1)
    prefix = read_prefix(model, " ".join(model.vocabulary.decode(text(model, 20, seed=2))))
    contenders = {"fflm": Fflm(model, ids, prefix), "torch": Torch(model, ids, prefix)}
    verify(model, *contenders.values())
    print(f"\nV={model.config.vocabulary:,}: verified")
    rows = []
    for count in threads:
        vars(model)["network"] = Network(model.config, CpuBackend(count))
        torch.set_num_threads(count)
        timed = {name: tasks(contender) for name, contender in contenders.items()}
        for task, (_, words) in timed["fflm"].items():
            times = in_turns({name: each[task][0] for name, each in timed.items()}, rounds)
            ratio = quartiles([theirs / ours for theirs, ours in zip(times["torch"], times["fflm"], strict=True)])
            figures = {name: quartiles([words / each for each in seconds]) for name, seconds in times.items()}
            rows.append(
                {
                    "vocabulary": model.config.vocabulary,
                    "threads": count,
                    "task": task,
                    "words": words,
                    "words_per_second": figures,
                    "torch_time_relative_to_fflm": ratio,
                }
            )
            shown = ", ".join(f"{name} {each['median']:,.0f}" for name, each in figures.items())
            print(
                f"  {count} thread{'s' * (count > 1)}  {task:13}  words per second: {shown}; PyTorch's time is "
                f"{ratio['median']:.2f} times fflm's ({ratio['low']:.2f} to {ratio['high']:.2f})"
            )
    return rows


def variants(model: NeuralModel) -> list[list[int]]:
    """Return `HYPOTHESES` variants of a sentence, with up to `EDITS` words replaced, deleted or inserted."""
    generator = np.random.default_rng(3)
    sentence = text(model, WORDS, seed=4).tolist()
    result = [sentence]
    for number in range(1, HYPOTHESES):
        changed = list(sentence)
        for word in text(model, generator.integers(1, EDITS + 1), seed=4 + number).tolist():
            place, kind = generator.integers(len(changed)), generator.integers(3)
            changed[place : place + (kind != 0)] = [word] if kind != 1 else []
        result.append(changed)
    return result


def measure_lists(model: NeuralModel) -> dict[str, Any]:
    """Time the scoring of an n-best list, and count how many of its contexts repeat."""
    hypotheses = variants(model)
    lines = "".join(f"{' '.join(model.vocabulary.decode(each))}\n" for each in hypotheses)
    whole = [np.array([*each, model.vocabulary.end_id], np.int32) for each in hypotheses]
    contexts = np.concatenate([model.windows(ids).contexts(np.arange(len(ids))) for ids in whole])
    targets = np.concatenate(whole)

    def each_context() -> np.ndarray:
        """Return the losses (N,), computing repeated contexts again."""
        losses = np.empty(len(targets), np.float32)
        for low in range(0, len(targets), ROWS):
            piece = slice(low, low + ROWS)
            model.network.losses(model.parameters, contexts[piece], targets[piece], losses[piece])
        return losses

    found = list(score_hypotheses(model, [lines]))
    _demand(sum(each.score.tokens for each in found) == len(contexts), "the hypotheses have other words")
    off = abs(sum(each.score.loss_sum for each in found) / each_context().sum(dtype=float) - 1)
    _demand(off < 1e-5, f"the hypotheses' scores are off by {off:.1e}")
    times = in_turns({"list": lambda: list(score_hypotheses(model, [lines])), "each": each_context}, 5)
    repeated = 1 - len(np.unique(contexts, axis=0)) / len(contexts)
    rate = HYPOTHESES / statistics.median(times["list"])
    ratio = statistics.median(each / own for each, own in zip(times["each"], times["list"], strict=True))
    print(
        f"  n-best list, {model.window} words of context: {rate:,.0f} hypotheses per second, "
        f"{repeated:.1%} of {len(contexts):,} contexts repeat: {ratio:.2f} times as fast as computing all of them"
    )
    return {
        "vocabulary": model.config.vocabulary,
        "context": model.window,
        "hypotheses": HYPOTHESES,
        "predictions": len(contexts),
        "repeated_share": repeated,
        "hypotheses_per_second": rate,
        "faster_than_each_context": ratio,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="number of turns of each program")
    options = parse(parser)
    about = machine()
    threads = [count for count in (1, 2) if count <= about["cores"]]
    steps, lists = [], []
    for vocabulary in VOCABULARIES[: 1 if options.quick else None]:
        model = build(vocabulary)
        steps += measure(model, threads, 3 if options.quick else options.rounds)
        lists += [measure_lists(each) for each in (model, build(vocabulary, averages=()))]
    missed = [
        f"{row['task']}, V={row['vocabulary']:,}, threads {row['threads']}: {ratio:.2f} instead of {CLAIMED[row['task']]:g}"
        for row in steps
        if row["task"] in CLAIMED and not (ratio := row["torch_time_relative_to_fflm"]["median"]) >= CLAIMED[row["task"]]
    ]
    show_verdict(missed)
    record(
        "inference",
        options.quick,
        about,
        steps=steps,
        lists=lists,
        claimed=CLAIMED,
        missed=missed,
        passed=not missed,
    )
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
