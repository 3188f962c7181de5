"""A feedforward language model slides a window of three words over a sentence, and predicts the next word each time.

    e = (E[w_(t-3)], E[w_(t-2)], E[w_(t-1)])     the embeddings of the three words before, concatenated
    h = tanh(W e + b)                            hidden layer
    z = U h + c                                  logits, one for each word of the vocabulary
    p = softmax(z) = e^z / sum e^z               p(w | w_(t-3), w_(t-2), w_(t-1)) of every word w

    perplexity of w_1 ... w_N = exp(-1/N sum_t log p(w_t | w_(t-3), w_(t-2), w_(t-1)))

The model is that of Bengio et al. 2003, "A neural probabilistic language model", without direct connections, and of Jurafsky
& Martin, Speech and Language Processing, 3rd ed., chapter "Neural Networks", section "Feedforward Neural Language Modeling".
It is trained here, in seconds, on the bundled stories. The words before the sentence are <s>, and </s> is predicted at its end.
Each stage is computed in NumPy from the arrays of the model, in float64, and the result is compared with that of the library.

    python examples/sliding_window.py
"""

import tempfile
from pathlib import Path

import numpy as np

import fflm
from fflm.backend.cpu.backend import CpuBackend
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

STORIES = Path(__file__).parents[1] / "corpora" / "stories.txt"
SENTENCE = "The dog stood still, and his ears went up."  # from the last 5% of the stories, which are not in the training data
WINDOW = 3
SHOWN = 3  # the position whose computation is printed stage by stage


def train() -> fflm.NeuralModel:
    """Return a small network, trained on the stories, with embeddings of 16 numbers and 32 hidden units."""
    with tempfile.TemporaryDirectory() as folder:
        return fflm.train(
            STORIES,
            Path(folder) / "model",
            mode="sentence",
            window=WINDOW,
            averages=(),
            embedding=16,
            hidden=(32,),
            activation="tanh",
            tied=False,
            dropout=0.0,
            embedding_dropout=0.0,
            adversarial=0.0,
            epochs=3,
            rate=0.01,
        )


def in_float64(model: fflm.NeuralModel) -> Parameters:
    """Return the parameters of a model as float64; they were trained in float32."""
    return model.parameters.mapped(lambda array: array.astype(np.float64))


def read(model: fflm.NeuralModel, sentence: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the contexts (N, 3) and the targets (N,) of all positions of a sentence, as word ids."""
    ids = model.text.encode_text(sentence + "\n", model.vocabulary)
    return model.windows(ids).batch(np.arange(len(ids)))


def stages(parameters: Parameters, context: np.ndarray) -> dict[str, np.ndarray]:
    """Compute all stages for a context (3,); return e (48,), h (32,), z (V,) and p (V,)."""
    E, U, c = parameters.embeddings, parameters.output_weight, parameters.output_bias
    W, b = parameters.hidden_weights[0], parameters.hidden_biases[0]
    e = np.concatenate([E[word] for word in context])  # look up and concatenate
    h = np.tanh(W @ e + b)
    z = U @ h + c
    p = np.exp(z) / np.exp(z).sum()  # softmax
    return {"e": e, "h": h, "z": z, "p": p}


def perplexity(p: np.ndarray) -> float:
    """Return the perplexity of N words that have the probabilities p (N,)."""
    return float(np.exp(-np.log(p).mean()))


def main() -> None:
    model = train()
    parameters, words = in_float64(model), [*model.vocabulary.words, "<s>"]
    shapes = ", ".join(f"{name} {array.shape}" for name, array in zip("EWbUc", parameters, strict=True))
    print(f"vocabulary: {len(model.vocabulary):,} ({model.vocabulary.rule}); {model.text.policy}")
    print(f"network: {shapes}; {parameters.count:,} parameters")

    contexts, targets = read(model, SENTENCE)
    print("\nThe sentence, as tokens and ids")
    widths = [max(len(words[word]), len(str(word))) + 2 for word in targets]
    print("".join(f"{words[word]:>{width}s}" for word, width in zip(targets, widths, strict=True)))
    print("".join(f"{word:{width}d}" for word, width in zip(targets, widths, strict=True)))

    context = contexts[SHOWN]
    e, h, z, p = stages(parameters, context).values()
    print(f"\nOne window: {' '.join(words[word] for word in context)} -> {words[targets[SHOWN]]}")
    rows = [(f"E[{words[word]}], row {word} of E", parameters.embeddings[word]) for word in context]
    rows += [("e = the three, concatenated", e), ("h = tanh(W e + b)", h), ("z = U h + c", z), ("p = softmax(z)", p)]
    for name, array in rows:
        print(f"  {name:28s}{array.shape!s:8s}" + "".join(f"{number:9.4f}" for number in array[:4]) + " ...")
    print(f"  the probabilities add up to {p.sum():.6f}; the likeliest next words are")
    for word in np.argsort(-p)[:5]:
        print(f"    {p[word]:.4f}  {words[word]}")

    by_hand = np.array([stages(parameters, context)["p"] for context in contexts])
    by_the_library = Network(model.config, CpuBackend()).log_probabilities(parameters, contexts)
    print("\nlog p of every word at every position, by hand and by the library:")
    print(f"  largest difference {np.abs(np.log(by_hand) - by_the_library).max():.0e}")

    print("\nSliding over the sentence")
    p = by_hand[np.arange(len(targets)), targets]
    for context, target, probability in zip(contexts, targets, p, strict=True):
        print(f"{' '.join(words[word] for word in context):>20s} -> {words[target]:6s} p = {probability:.4f}")

    score = model.score(SENTENCE)
    print(f"\nperplexity = exp(-1/{len(p)} sum log p) = exp({-np.log(p).mean():.4f}) = {perplexity(p):.4f}")
    print(f"by the library, in float32                 = {score.perplexity:.4f}")
    print(f"over {score.tokens} tokens, {score.unknown} unknown, {score.bits_per_character:.3f} bits per character")


if __name__ == "__main__":
    main()
