"""A second, slow and simple implementation of the network in NumPy, with which the kernels are compared.

It follows the definitions (in the papers, and in the docstrings of `fflm.backend.protocol`) in float64, without regard to memory.
It imports only NumPy and nothing of fflm, so that no mistake is shared. `test_reference` compares its gradients with finite
differences.

Letters: B rows, n context words, m embedding size, V vocabulary, I and O inputs and outputs of a layer, H hidden outputs.
"""

import numpy as np

ROWS = 13
"""Number of rows of a batch made by `batch`."""

PLAIN = {
    "vocabulary": 11,
    "window": 2,
    "averages": (),
    "embedding": 3,
    "hidden": (5,),
    "activation": "tanh",
    "negative_slope": None,
    "residual": False,
    "direct": False,
    "word_weights": False,
    "tied": False,
    "bands": (),
    "dropout": 0.0,
    "embedding_dropout": 0.0,
    "smoothing": 0.0,
    "penalty": 0.0,
    "noise": False,
    "teacher": 0.0,
    "adversarial": 0.0,
    "input": "window",
    "numbers": 0,
    "outputs": None,
    "output": "softmax",
}

OBJECTIVE = {"smoothing", "penalty", "noise", "teacher", "adversarial"}
"""The entries of a case that are not fields of `NetworkConfig`."""

CASES = {
    **{name: {"activation": name} for name in ("tanh", "sigmoid", "relu", "leaky_relu", "elu", "softplus", "identity")},
    "no hidden layer": {"hidden": ()},
    "two square layers": {"hidden": (6, 6)},
    "two relu layers": {"hidden": (4, 6), "activation": "relu"},
    "an activation for each layer": {"hidden": (5, 4, 6), "activation": ("relu", "tanh", "elu"), "negative_slope": 0.3},
    "a slope of leaky ReLU": {"activation": "leaky_relu", "negative_slope": 0.2},
    "direct": {"direct": True},
    "direct without hidden": {"direct": True, "hidden": ()},
    "direct, two layers": {"direct": True, "hidden": (5, 4)},
    "tied as it is": {"tied": True, "hidden": (3,)},
    "tied without hidden": {"tied": True, "hidden": (), "window": 1},
    "tied, projected": {"tied": True},
    "tied, projected inputs": {"tied": True, "hidden": ()},
    "tied, direct": {"tied": True, "direct": True, "hidden": (5, 4)},
    "dropout": {"dropout": 0.5},
    "embedding dropout": {"embedding_dropout": 0.25},
    "dropout without hidden": {"hidden": (), "dropout": 0.5, "embedding_dropout": 0.5},
    "smoothing": {"smoothing": 0.1},
    "smoothing, tied": {"smoothing": 0.3, "tied": True},
    "penalty": {"penalty": 0.3},
    "penalty, smoothing": {"penalty": 0.1, "smoothing": 0.2, "tied": True},
    "noise": {"noise": True},
    "noise, tied": {"noise": True, "tied": True, "direct": True},
    "teacher": {"teacher": 0.4, "penalty": 0.1, "tied": True, "dropout": 0.3},
    "adversarial": {"adversarial": 0.1, "smoothing": 0.1, "penalty": 0.2, "dropout": 0.3},
    "adversarial, tied": {"adversarial": 0.1, "tied": True},
    "averages": {"averages": (1, 4)},
    "weighted averages": {"averages": (3, 1, 2), "word_weights": True, "tied": True, "direct": True},
    "averages, tied": {"averages": (3,), "tied": True, "window": 1, "embedding_dropout": 0.2},
    "bands": {"bands": (4, 7), "hidden": (20,)},
    "one band, direct, penalty": {"bands": (6,), "direct": True, "penalty": 0.2},
    "bands without hidden, smoothing": {"bands": (1, 2, 5), "hidden": (), "smoothing": 0.1, "embedding_dropout": 0.2},
    "a band beyond the vocabulary": {"bands": (3, 5000)},
    "residual": {"residual": True, "hidden": (5, 5)},
    "residual without hidden": {"residual": True, "hidden": ()},
    "one residual layer": {"residual": True, "direct": True},
    "three residual layers": {"residual": True, "hidden": (6, 6, 6)},
    "a window's class": {"outputs": 4, "embedding_dropout": 0.2},
    "mean": {"input": "mean", "outputs": 4},
    "mean without hidden": {"input": "mean", "outputs": 1, "output": "sigmoid", "hidden": (), "embedding_dropout": 0.2},
    "max": {"input": "max", "outputs": 3, "direct": True},
    "max without hidden": {"input": "max", "outputs": 2, "hidden": (), "embedding_dropout": 0.2},
    "numbers": {"input": "numbers", "numbers": 6, "outputs": 3, "smoothing": 0.1},
    "numbers without hidden": {"input": "numbers", "numbers": 6, "outputs": 3, "hidden": (), "embedding_dropout": 0.2},
    "one number": {"input": "numbers", "numbers": 1, "outputs": 1, "output": "sigmoid", "hidden": ()},
    "sigmoid": {"input": "numbers", "numbers": 6, "outputs": 2, "output": "sigmoid", "dropout": 0.2},
    "squared": {"input": "numbers", "numbers": 6, "outputs": 2, "output": "squared", "residual": True, "hidden": (5, 5)},
    "absolute": {"input": "numbers", "numbers": 6, "outputs": 2, "output": "absolute"},
    "hinge": {"input": "numbers", "numbers": 6, "outputs": 2, "output": "hinge", "direct": True},
    **{
        name: {"input": "numbers", "numbers": 6, "outputs": 2, "output": name}
        for name in ("exponential", "poisson", "sigmoid_squared", "sigmoid_absolute")
    },
    "everything": {
        "averages": (2, 3),
        "word_weights": True,
        "hidden": (6, 6),
        "activation": "softplus",
        "residual": True,
        "direct": True,
        "tied": True,
        "dropout": 0.3,
        "embedding_dropout": 0.2,
        "smoothing": 0.1,
        "penalty": 0.1,
    },
}
"""The networks with which the reference is compared with finite differences, and the kernels with the reference."""

CASES = {name: {**PLAIN, **changes} for name, changes in CASES.items()}


# The operations.


def place_weights(contexts, blocks, weights):
    """Return the weight of each word of contexts (B, n): 1 in blocks of one word, elsewhere that of the word, given (V + 1,)."""
    return np.where(np.repeat(blocks, blocks) > 1, weights[contexts], 1)


def gather(embeddings, contexts, blocks, weights=None):
    """Return the sums of the embeddings of each of K blocks of contexts (B, n), over the root of the block's size: (B, K m).

    The embedding of -1, which is no word, is 0. Weights (V + 1,) are those of words in blocks of several words.
    """
    found = np.where(contexts[:, :, None] >= 0, embeddings[contexts], 0)
    if weights is not None:
        found = found * place_weights(contexts, blocks, weights)[:, :, None]
    parts = np.split(found, np.cumsum(blocks)[:-1], axis=1)
    return np.hstack([part.sum(1) / np.sqrt(part.shape[1]) for part in parts])


def scatter_add(contexts, blocks, d_inputs, d_embeddings, weights=None):
    """Return d_embeddings (V + 1, m) plus the gradient of every context word from d_inputs (B, K m), with weights (V + 1,)."""
    result = d_embeddings.copy()
    for row, words in enumerate(contexts):
        shares = np.repeat(d_inputs[row].reshape(len(blocks), -1), blocks, axis=0)
        if weights is not None:
            shares = shares * place_weights(contexts[row : row + 1], blocks, weights)[0][:, None]
        for word, share, size in zip(words, shares, np.repeat(blocks, blocks), strict=True):
            if word >= 0:
                result[word] += share / np.sqrt(size)
    return result


def add_weight_gradients(contexts, blocks, d_inputs, embeddings, d_weights):
    """Return d_weights (V + 1,) plus the gradients of the weights of `gather` from d_inputs (B, K m)."""
    result = d_weights.copy()
    for row, words in enumerate(contexts):
        shares = np.repeat(d_inputs[row].reshape(len(blocks), -1), blocks, axis=0)
        for word, share, size in zip(words, shares, np.repeat(blocks, blocks), strict=True):
            if word >= 0 and size > 1:
                result[word] += share @ embeddings[word] / np.sqrt(size)
    return result


def mean_pool(embeddings, words):
    """Return the mean of the embeddings of each text (B, m), 0 without words; words (B, L) are padded with -1."""
    return np.stack([embeddings[row[row >= 0]].mean(0) if row[0] >= 0 else 0 * embeddings[0] for row in words])


def mean_pool_backward(words, d_pooled, d_embeddings):
    """Return d_embeddings (V + 1, m) plus the gradient of every word from d_pooled (B, m)."""
    result = d_embeddings.copy()
    for row, d_row in zip(words, d_pooled, strict=True):
        for word in row[row >= 0]:
            result[word] += d_row / (row >= 0).sum()
    return result


def max_pool(embeddings, words):
    """Return the maximum of each text's embeddings in each dimension, and the words that have them, both (B, m)."""
    texts = [row[row >= 0] for row in words]
    sources = np.stack(
        [row[embeddings[row].argmax(0)] if len(row) else np.full(embeddings.shape[1], -1, words.dtype) for row in texts]
    )
    return np.where(sources >= 0, np.take_along_axis(embeddings, sources, 0), 0), sources


def max_pool_backward(sources, d_pooled, d_embeddings):
    """Return d_embeddings (V + 1, m) plus d_pooled (B, m) at the words ``sources`` (B, m)."""
    result = d_embeddings.copy()
    for (row, column), word in np.ndenumerate(sources):
        if word >= 0:
            result[word, column] += d_pooled[row, column]
    return result


def put_rows(values, rows, array):
    """Return the array (N, m) with the rows numbered ``rows`` replaced by values."""
    result = array.copy()
    for row, value in zip(rows, values, strict=True):
        result[row] = value
    return result


def normalize(values):
    """Return values (B, I) minus the means of their rows, over the standard deviations of the rows (Ba et al. 2016)."""
    return (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-5)


def normalize_backward(values, d_normalized):
    """Return d_values (B, I): the gradient of each row times the Jacobian matrix of its normalization."""
    d_values = np.empty_like(values)
    for row, (x, d) in enumerate(zip(values, d_normalized, strict=True)):
        size, deviation = len(x), np.sqrt(x.var() + 1e-5)
        centred = np.eye(size) - 1 / size
        jacobian = centred / deviation - np.outer(x - x.mean(), x - x.mean()) @ centred / (size * deviation**3)
        d_values[row] = d @ jacobian
    return d_values


def philox(counter, key):
    """Return four arrays of random 32-bit words by Philox4x32-10 (Salmon et al. 2011), from words below 2^32."""
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = (np.asarray(word, np.uint64) for word in key)
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b % 2**32, (a >> 32) ^ c3 ^ k1, a % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def dropout(values, rate, seed, step, layer, row=0):
    """Return values (B, I), whose first row has the number ``row``, with the share ``rate`` set to 0 and the others scaled."""
    rows, width = values.shape
    place = np.arange(row * width, (row + rows) * width).reshape(rows, width)
    words = philox((place // 4, layer, step % 2**32, step // 2**32), (seed % 2**32, seed // 2**32))
    dropped = np.choose(place % 4, words) < rate * 2**32
    return np.where(dropped, 0, values / (1 - rate))


SLOPES = {"leaky_relu": 0.01, "elu": 1.0}
"""The default gamma of the activations that have one."""


def named(activation):
    """Return the name of an activation, which may be given with its gamma, and gamma."""
    name, gamma = (activation, None) if isinstance(activation, str) else activation
    return name, SLOPES.get(name, np.nan) if gamma is None else gamma


def activate(activation, z):
    """Return the activation of z."""
    name, gamma = named(activation)
    return {
        "tanh": np.tanh(z),
        "sigmoid": np.exp(-np.logaddexp(0, -z)),
        "relu": np.maximum(z, 0),
        "leaky_relu": np.where(z > 0, z, gamma * z),
        "elu": np.where(z > 0, z, gamma * np.expm1(np.minimum(z, 0))),
        "softplus": np.logaddexp(0, z),
        "identity": z,
    }[name]


def slope(activation, z):
    """Return the activation's derivative at z, not from its output as in the kernels."""
    name, gamma = named(activation)
    sigmoid = activate("sigmoid", z)
    return {
        "tanh": 1 - np.tanh(z) ** 2,
        "sigmoid": sigmoid * activate("sigmoid", -z),
        "relu": np.where(z > 0, 1.0, 0.0),
        "leaky_relu": np.where(z > 0, 1.0, gamma),
        "elu": np.where(z > 0, 1.0, gamma * np.exp(np.minimum(z, 0))),
        "softplus": sigmoid,
        "identity": np.ones_like(z),
    }[name]


def affine(inputs, weight, bias, activation):
    """Return activation(inputs weight^T + bias) (B, O)."""
    return activate(activation, inputs @ weight.T + bias)


def affine_backward(inputs, weight, bias, activation, d_outputs):
    """Return d_weight (O, I), d_bias (O,), d_inputs (B, I)."""
    dz = d_outputs * slope(activation, inputs @ weight.T + bias)
    return dz.T @ inputs, dz.sum(0), dz @ weight


def log_probabilities(hidden, weight, bias):
    """Return log softmax(hidden weight^T + bias) (B, V)."""
    scores = hidden @ weight.T + bias
    scores = scores - scores.max(1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def output_losses(hidden, weight, bias, targets):
    """Return -log p(target) (B,)."""
    return -log_probabilities(hidden, weight, bias)[np.arange(len(targets)), targets]


def smoothed_targets(targets, words, smoothing):
    """Return the target distributions (B, V) with label smoothing (Szegedy et al. 2016, section 7)."""
    return (1 - smoothing) * np.eye(words)[targets] + smoothing / words


def taught_targets(targets, words, smoothing, teacher):
    """Return `smoothed_targets` (B, V), of which a share is replaced by the mean of `teachers` (Hinton et al. 2015)."""
    taught = np.exp(teachers(len(targets), words)).mean(0)
    return (1 - teacher) * smoothed_targets(targets, words, smoothing) + teacher * taught


def teachers(rows, words):
    """Return the log-probabilities (2, B, V) of the two networks of a teacher in the tests of the network."""
    scores = np.random.default_rng(rows).normal(0, 2, (2, rows, words))
    return scores - np.logaddexp.reduce(scores, axis=2, keepdims=True)


def log_normalizers(hidden, weight, bias):
    """Return the logarithms (B,) of the sums of the exponentials of the scores."""
    return np.logaddexp.reduce(hidden @ weight.T + bias, axis=1)


def radii(weight, targets, adversarial):
    """Return the norms (B,) of adversarial noise on the weights of the targets."""
    return adversarial * np.linalg.norm(weight[targets], axis=1)


def noisy_bias(hidden, bias, targets, norms):
    """Return the bias of each row (B, V) with the effect of the noise of these norms (B,) that lowers the target's score most."""
    return bias - np.eye(len(bias))[targets] * (norms * np.linalg.norm(hidden, axis=1))[:, None]


def output_gradients(hidden, weight, bias, targets, smoothing, penalty, scale, teacher=0.0, adversarial=0.0):
    """Return d_hidden (B, H), d_weight (V, H), d_bias (V,) of ``scale`` times the sum of cross-entropy and penalty."""
    norms = radii(weight, targets, adversarial)
    noisy = noisy_bias(hidden, bias, targets, norms)
    probabilities = np.exp(log_probabilities(hidden, weight, noisy))
    d_scores = probabilities - taught_targets(targets, len(weight), smoothing, teacher)
    d_scores += 2 * penalty * log_normalizers(hidden, weight, noisy)[:, None] * probabilities
    d_scores *= scale
    directions = hidden / np.maximum(np.linalg.norm(hidden, axis=1, keepdims=True), 1e-300)
    pulls = d_scores[np.arange(len(targets)), targets] * norms
    return d_scores @ weight - pulls[:, None] * directions, d_scores.T @ hidden, d_scores.sum(0)


def nce_losses(hidden, weight, bias, targets, noise):
    """Return the negative log-probability of distinguishing the target from the noise (B,): Mnih & Teh 2012."""
    scores = hidden @ weight.T + bias
    true = np.logaddexp(0, -scores[np.arange(len(targets)), targets])
    return true + (noise * np.logaddexp(0, scores)).sum(1)


def nce_gradients(hidden, weight, bias, targets, noise, scale):
    """Return d_hidden (B, H), d_weight (V, H), d_bias (V,) of ``scale`` times the sum of `nce_losses`."""
    scores = hidden @ weight.T + bias
    chance = activate("sigmoid", scores)  # the probability that a word is not noise
    d_scores = scale * (noise * chance - np.eye(len(weight))[targets] * (1 - chance))
    return d_scores @ weight, d_scores.T @ hidden, d_scores.sum(0)


@np.errstate(over="ignore")
def unit_losses(name, scores, targets):
    """Return the loss of each unit (B, O) by its definition; the Poisson loss is without the term log y!."""
    probabilities = activate("sigmoid", scores)
    exponential, mean = np.exp(-targets * scores), np.exp(scores)  # infinite for very large scores
    return {
        "sigmoid": targets * np.logaddexp(0, -scores) + (1 - targets) * np.logaddexp(0, scores),
        "squared": (scores - targets) ** 2,
        "absolute": np.abs(scores - targets),
        "hinge": np.maximum(0, 1 - targets * scores),
        "exponential": exponential,
        "poisson": mean - targets * scores,
        "sigmoid_squared": (probabilities - targets) ** 2,
        "sigmoid_absolute": np.abs(probabilities - targets),
    }[name]


@np.errstate(over="ignore")
def unit_slopes(name, scores, targets):
    """Return the derivatives of `unit_losses` by the scores (B, O)."""
    probabilities = activate("sigmoid", scores)
    exponential, mean = np.exp(-targets * scores), np.exp(scores)  # infinite for very large scores
    return {
        "sigmoid": probabilities - targets,
        "squared": 2 * (scores - targets),
        "absolute": np.sign(scores - targets),
        "hinge": np.where(targets * scores < 1, -targets, 0.0),
        "exponential": -targets * exponential,
        "poisson": mean - targets,
        "sigmoid_squared": 2 * (probabilities - targets) * slope("sigmoid", scores),
        "sigmoid_absolute": np.sign(probabilities - targets) * slope("sigmoid", scores),
    }[name]


# The network.


def shapes(case):
    """Return the shape of every parameter of a case."""
    vocabulary, embedding = case["vocabulary"], case["embedding"]
    inputs = {"window": len(blocks(case)) * embedding, "mean": embedding, "max": embedding, "numbers": case["numbers"]}
    widths = [inputs[case["input"]], *case["hidden"]]
    result = {"embeddings": (vocabulary + 1, embedding)} if case["input"] != "numbers" else {}
    if case["word_weights"]:
        result["word_weights"] = (vocabulary + 1,)
    for layer, size in enumerate(case["hidden"]):
        result[f"hidden.{layer}.weight"] = (size, widths[layer])
        result[f"hidden.{layer}.bias"] = (size,)
    hidden = widths[-1] + (widths[0] if case["direct"] and case["hidden"] else 0)
    words, *bands = softmaxes(case)
    if not case["tied"]:
        result["output.weight"] = (words, hidden)
    elif hidden != embedding:
        result["projection"] = (embedding, hidden)
    result["output.bias"] = (words,)
    for band, size in enumerate(bands):
        width = max(1, hidden // 4 ** (band + 1))
        result[f"band.{band}.projection"] = (width, hidden)
        result[f"band.{band}.weight"], result[f"band.{band}.bias"] = (size, width), (size,)
    return result


def softmaxes(case):
    """Return the sizes of the softmaxes: one, or with an adaptive softmax the first one (with a class per band) and the bands."""
    classes = case["outputs"] or case["vocabulary"]
    borders = [*(first for first in case["bands"] if first < classes), classes]
    return [borders[0] + len(borders) - 1, *np.diff(borders)]


def activation_of(case, layer):
    """Return the activation of a hidden layer, counted from 0, with the gamma of the case if it has one."""
    name = case["activation"] if isinstance(case["activation"], str) else case["activation"][layer]
    return name if case["negative_slope"] is None else (name, case["negative_slope"])


def blocks(case):
    """Return the sizes of the blocks of a case's contexts, starting with the most distant words."""
    return [*case["averages"][::-1], *[1] * case["window"]]


def batch(case, seed=0):
    """Return random parameters, contexts (B, n) and targets (B,); words include the padding, the first word, and repeated ones.

    Texts have 0 to 5 words, padded with -1; numbers are (B, I). The targets of single units are (B, O).
    """
    generator = np.random.default_rng(seed)
    parameters = {name: generator.normal(0, 0.7, shape) for name, shape in shapes(case).items()}
    texts = case["input"] in ("mean", "max")
    classes = case["outputs"] or case["vocabulary"]
    contexts = generator.integers(0, case["vocabulary"] + 1, (ROWS, 5 if texts else sum(blocks(case))), np.int32)
    targets = generator.integers(0, classes, ROWS, np.int32)
    contexts[0] = case["vocabulary"]
    contexts[1] = 0
    targets[:3] = 0, classes - 1, 0
    if texts:
        contexts[np.arange(5) >= generator.integers(1, 6, (ROWS, 1))] = -1
        contexts[2] = -1
    if case["input"] == "numbers":
        contexts = generator.normal(size=(ROWS, case["numbers"]))
    if case["output"] in ("hinge", "exponential"):
        targets = generator.choice([-1.0, 1.0], (ROWS, classes))
    elif case["output"].startswith("sigmoid"):
        targets = generator.choice([0.0, 1.0], (ROWS, classes))
    elif case["output"] == "poisson":
        targets = generator.poisson(2, (ROWS, classes)).astype(np.float64)
    elif case["output"] != "softmax":
        targets = generator.normal(size=(ROWS, classes))
    return parameters, contexts, targets


def read_inputs(parameters, contexts, case):
    """Return the inputs of the first layer (B, I)."""
    if case["input"] == "numbers":
        return contexts
    if case["input"] == "window":
        return gather(parameters["embeddings"], contexts, blocks(case), parameters.get("word_weights"))
    return (
        mean_pool(parameters["embeddings"], contexts)
        if case["input"] == "mean"
        else max_pool(parameters["embeddings"], contexts)[0]
    )


def read_inputs_backward(parameters, contexts, case, d_inputs, d_embeddings):
    """Return d_embeddings (V + 1, m) plus the gradient from d_inputs (B, I)."""
    if case["input"] == "window":
        return scatter_add(contexts, blocks(case), d_inputs, d_embeddings, parameters.get("word_weights"))
    if case["input"] == "mean":
        return mean_pool_backward(contexts, d_inputs, d_embeddings)
    return max_pool_backward(max_pool(parameters["embeddings"], contexts)[1], d_inputs, d_embeddings)


def forward(parameters, contexts, case, seed, step, *, training):
    """Return a list of the inputs and the outputs of each hidden layer, the hidden outputs, and the inputs of the softmax."""
    rates = (case["embedding_dropout"], case["dropout"]) if training else (0, 0)
    inputs = dropout(read_inputs(parameters, contexts, case), rates[0], seed, step, 0)
    values = [inputs]
    for layer in range(len(case["hidden"])):
        residual = case["residual"] and layer > 0
        read = normalize(values[-1]) if residual else values[-1]
        layer_parameters = [parameters[f"hidden.{layer}.{name}"] for name in ("weight", "bias")]
        output = affine(read, *layer_parameters, activation_of(case, layer))
        output = dropout(output, rates[1], seed, step, layer + 1)
        values.append(values[-1] + output if residual else output)
    top = normalize(values[-1]) if case["residual"] and case["hidden"] else values[-1]
    hidden = np.hstack([top, inputs]) if case["direct"] and case["hidden"] else top
    projected = hidden @ parameters["projection"].T if "projection" in parameters else hidden
    return values, hidden, projected


def softmax_weight(parameters):
    """Return the weights of the output layer (V, H), which are the embeddings of its words if they are tied."""
    if "output.weight" in parameters:
        return parameters["output.weight"]
    return parameters["embeddings"][: len(parameters["output.bias"])]


def layers(parameters, projected, targets, case):
    """Yield for each softmax its inputs, weight, bias and targets, the rows whose targets it predicts, and its band or None."""
    first = softmax_weight(parameters), parameters["output.bias"]
    sizes = softmaxes(case)
    borders = np.cumsum([sizes[0] - len(sizes) + 1, *sizes[1:]])
    band = np.searchsorted(borders, targets, side="right")  # 0 stands for the first words
    yield projected, *first, np.where(band == 0, targets, borders[0] + band - 1), np.arange(len(targets)), None
    for number in range(len(sizes) - 1):
        rows = np.flatnonzero(band == number + 1)
        projection, weight, bias = (parameters[f"band.{number}.{part}"] for part in ("projection", "weight", "bias"))
        yield projected[rows] @ projection.T, weight, bias, targets[rows] - borders[number], rows, number


def unit_scores(parameters, hidden):
    """Return the scores of single units (B, O)."""
    return affine(hidden, parameters["output.weight"], parameters["output.bias"], "identity")


def network_outputs(parameters, contexts, case):
    """Return the predictions of a network with single output units (B, O)."""
    hidden = forward(parameters, contexts, case, 0, 0, training=False)[2]
    if case["output"] == "poisson":
        return np.exp(unit_scores(parameters, hidden))
    return activate("sigmoid" if case["output"].startswith("sigmoid") else "identity", unit_scores(parameters, hidden))


def network_log_probabilities(parameters, contexts, case):
    """Return log p(word | context), or of classes, (B, V), without dropout."""
    if len(softmaxes(case)) == 1:
        projected = forward(parameters, contexts, case, 0, 0, training=False)[2]
        return log_probabilities(projected, softmax_weight(parameters), parameters["output.bias"])
    words = np.arange(case["outputs"] or case["vocabulary"], dtype=np.int32)
    return -np.stack([network_losses(parameters, np.repeat(row[None], len(words), 0), words, case) for row in contexts])


def network_losses(parameters, contexts, targets, case, seed=0, step=0, *, training=False):
    """Return -log p(target | context) (B,), or in training with noise-contrastive estimation its loss."""
    projected = forward(parameters, contexts, case, seed, step, training=training)[2]
    if case["output"] != "softmax":
        return unit_losses(case["output"], unit_scores(parameters, projected), targets).sum(1)
    losses = np.zeros(len(targets))
    for *layer, rows, _ in layers(parameters, projected, targets, case):
        losses[rows] += nce_losses(*layer, noise(case)) if training and case["noise"] else output_losses(*layer)
    return losses


def objective(parameters, contexts, targets, case, seed=0, step=0, norms=None):
    """Return the objective that training minimizes, with dropout; ``norms`` (B,) are those of adversarial noise, if there is any.

    It is the mean over the batch of the cross-entropy with smoothed targets, or those of a teacher, and the penalty on
    normalizers, or of the loss of noise-contrastive estimation. An adaptive softmax consists of several softmaxes, each with
    targets.
    """
    projected = forward(parameters, contexts, case, seed, step, training=True)[2]
    if case["output"] != "softmax":
        return unit_losses(case["output"], unit_scores(parameters, projected), targets).sum() / len(targets)
    total = 0
    for hidden, weight, bias, places, _, _ in layers(parameters, projected, targets, case):
        if case["noise"]:
            total += nce_losses(hidden, weight, bias, places, noise(case)).sum()
            continue
        bias = bias if norms is None else noisy_bias(hidden, bias, places, norms)
        logs = log_probabilities(hidden, weight, bias)
        total -= (taught_targets(places, len(weight), case["smoothing"], case["teacher"]) * logs).sum()
        total += (case["penalty"] * log_normalizers(hidden, weight, bias) ** 2).sum()
    return total / len(targets)


def noise(case):
    """Return how often each word was drawn as noise in the tests of the network (V,): 0, 1 or 2 times."""
    return np.arange(case["vocabulary"]) % 3.0


def network_gradients(parameters, contexts, targets, case, seed=0, step=0):
    """Return the gradients of `objective` by the names of parameters."""
    values, hidden, projected = forward(parameters, contexts, case, seed, step, training=True)
    gradients = {name: np.zeros_like(array) for name, array in parameters.items()}
    d_projected = np.zeros_like(projected)
    if case["output"] != "softmax":
        d_scores = unit_slopes(case["output"], unit_scores(parameters, projected), targets) / len(targets)
        gradients["output.weight"], gradients["output.bias"] = d_scores.T @ projected, d_scores.sum(0)
        d_projected = d_scores @ parameters["output.weight"]
    softmaxes = layers(parameters, projected, targets, case) if case["output"] == "softmax" else ()
    for read, weight, bias, places, rows, band in softmaxes:
        if case["noise"]:
            d_read, d_weight, d_bias = nce_gradients(read, weight, bias, places, noise(case), 1 / len(targets))
        else:
            d_read, d_weight, d_bias = output_gradients(
                read,
                weight,
                bias,
                places,
                case["smoothing"],
                case["penalty"],
                1 / len(targets),
                case["teacher"],
                case["adversarial"],
            )
        if band is not None:
            gradients[f"band.{band}.weight"], gradients[f"band.{band}.bias"] = d_weight, d_bias
            gradients[f"band.{band}.projection"] = d_read.T @ projected[rows]
            d_projected[rows] += d_read @ parameters[f"band.{band}.projection"]
            continue
        d_projected += d_read
        gradients["output.bias"] = d_bias
        if "output.weight" in parameters:
            gradients["output.weight"] = d_weight
        else:
            gradients["embeddings"][: len(d_weight)] = d_weight
    d_hidden = d_projected
    if "projection" in parameters:
        gradients["projection"] = d_projected.T @ hidden
        d_hidden = d_projected @ parameters["projection"]
    width = values[-1].shape[1]
    d_values, d_inputs = d_hidden[:, :width], d_hidden[:, width:]
    if case["residual"] and case["hidden"]:
        d_values = normalize_backward(values[-1], d_values)
    for layer in reversed(range(len(case["hidden"]))):
        residual = case["residual"] and layer > 0
        layer_parameters = [parameters[f"hidden.{layer}.{name}"] for name in ("weight", "bias")]
        read = normalize(values[layer]) if residual else values[layer]
        d_output = dropout(d_values, case["dropout"], seed, step, layer + 1)
        d_weight, d_bias, d_read = affine_backward(read, *layer_parameters, activation_of(case, layer), d_output)
        gradients[f"hidden.{layer}.weight"], gradients[f"hidden.{layer}.bias"] = d_weight, d_bias
        d_values = d_values + normalize_backward(values[layer], d_read) if residual else d_read
    if d_inputs.size:
        d_values = d_values + d_inputs
    d_values = dropout(d_values, case["embedding_dropout"], seed, step, 0)
    if "word_weights" in gradients:
        arrays = parameters["embeddings"], gradients["word_weights"]
        gradients["word_weights"] = add_weight_gradients(contexts, blocks(case), d_values, *arrays)
    if "embeddings" in gradients:
        gradients["embeddings"] = read_inputs_backward(parameters, contexts, case, d_values, gradients["embeddings"])
    return gradients


def add_penalty(weight, gradient, l1, l2):
    """Return a gradient plus the gradient of the penalty l1 |w| + l2 w^2 / 2."""
    return gradient + l1 * np.sign(weight) + l2 * weight


# The optimizer steps: each returns the new weight and the new state; g is the scaled gradient plus that of the l2 penalty.


def momentum_step(weight, gradient, velocity, *, scale, l2, rate, momentum, nesterov):
    """Make a step with Polyak's momentum, or Nesterov's (Sutskever et al. 2013; the weights are the look-ahead point)."""
    g = scale * gradient + l2 * weight
    velocity = momentum * velocity + g
    if nesterov:
        return weight - rate * g - rate * momentum * velocity, velocity
    return weight - rate * velocity, velocity


def adagrad_step(weight, gradient, total, *, scale, l2, rate, epsilon):
    """Make a step of AdaGrad (Duchi et al. 2011)."""
    g = scale * gradient + l2 * weight
    total = total + g**2
    return weight - rate * g / (np.sqrt(total) + epsilon), total


def rmsprop_step(weight, gradient, mean, *, scale, l2, rate, decay, epsilon):
    """Make a step of RMSprop (Tieleman & Hinton 2012, lecture 6.5)."""
    g = scale * gradient + l2 * weight
    mean = decay * mean + (1 - decay) * g**2
    return weight - rate * g / (np.sqrt(mean) + epsilon), mean


def adam_step(weight, gradient, first, second, *, scale, l2, shrink, rate, beta1, beta2, epsilon, step):
    """Make a step of Adam (Kingma & Ba 2015, algorithm 1), with the decoupled decay ``shrink`` (Loshchilov & Hutter 2019)."""
    g = scale * gradient + l2 * weight
    first = beta1 * first + (1 - beta1) * g
    second = beta2 * second + (1 - beta2) * g**2
    unbiased_first, unbiased_second = first / (1 - beta1**step), second / (1 - beta2**step)
    return weight - shrink * weight - rate * unbiased_first / (np.sqrt(unbiased_second) + epsilon), first, second


def adam_catch_up(weight, first, second, idle, keeps, *, rate, beta1, beta2, epsilon, step):
    """Make the idle steps of each row: Adam without gradients, where the step size uses the second moment at the start."""
    weight, first, second = weight * keeps[:, None], first.copy(), second.copy()
    for row, steps in enumerate(idle):
        root = np.sqrt(second[row] / (1 - beta2**step)) + epsilon
        for _ in range(int(steps)):
            first[row] *= beta1
            weight[row] -= rate * first[row] / (1 - beta1**step) / root
            second[row] *= beta2
    return weight, first, second
