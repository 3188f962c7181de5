"""The settings of training, which are stored with a model."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from fflm.arguments import Fraction, Many, Natural, PathLike, Seed, Settings, Size
from fflm.errors import SettingsError
from fflm.network.config import NetworkConfig

OptimizerName = Literal["sgd", "adagrad", "rmsprop", "adam", "adamw"]
LossName = Literal["exact", "sampled", "nce"]
ScheduleName = Literal["constant", "inverse", "plateau", "cosine"]
Scheme = Literal["data", "vocabulary"]

_SIZE = "the size of the text"
_SIZE_AND_NOISE = f"{_SIZE}, and whether there is adversarial noise"
AUTOMATIC = dict.fromkeys(("window", "averages", "batch_size", "epochs", "loss", "weight_decay"), _SIZE) | {
    "dropout": _SIZE_AND_NOISE,
    "embedding_dropout": _SIZE_AND_NOISE,
    "word_weights": "whether there are averages",
    "direct": f"{_SIZE}, and only with tied output weights",
    "adversarial": "the loss: 0.01, but 0 for nce",
    "affixes": "the size of the vocabulary, and only with embeddings that are trained and tied",
}
"""What determines settings of a language model that are None, or not given."""

Vectors: TypeAlias = Annotated[
    PathLike | None,
    Meta(description="Initial embeddings: a text file of word2vec, GloVe or fastText vectors (may be compressed)."),
]
Initial: TypeAlias = Annotated[
    PathLike | None,
    Meta(description="Start from the weights of this trained model, with its network, vocabulary and text settings."),
]
Extend: TypeAlias = Annotated[
    bool, Meta(description="Add new words of the text to the vocabulary of the model that training starts from.")
]
TeacherPath: TypeAlias = Annotated[
    PathLike | None,
    Meta(
        description="Learn also from the predictions of this model: a network or a mixture of networks, with the same vocabulary."
    ),
]
TeacherWeight: TypeAlias = Annotated[
    float, Meta(gt=0, le=1, description="Share of the target's probability that the teacher's distribution replaces.")
]
TEACHER_WEIGHT = 0.8
"""Default of the weight of a teacher."""

Members: TypeAlias = Annotated[
    int,
    Meta(
        ge=1,
        le=50,
        description="Networks to train, with the seeds seed, seed + 1, ...; if there are several, the model is their mixture.",
    ),
]
Parallel: TypeAlias = Annotated[
    Literal["auto", "data", "vocabulary"],
    Meta(description="What several processes divide: data (the rows of a batch), vocabulary, or auto for what sends less."),
]
_PRESETS = (
    "Defaults of the settings; quick is a small network that trains in seconds: window 5, averages 20, no word weights, "
    "embedding 64, hidden 128, no direct connections, dropout 0.1, embedding dropout 0.1, no adversarial noise, epochs 3, "
    "rate 0.004. bengio2003 is the network of Bengio et al. 2003 with its training, word by word: window 4, embedding 60, "
    "50 units of tanh, direct connections, sgd."
)
NetworkPreset: TypeAlias = Annotated[Literal["default", "quick", "bengio2003"], Meta(description=_PRESETS)]
Preset: TypeAlias = Annotated[
    Literal["default", "quick", "best", "bengio2003"],
    Meta(description=f"{_PRESETS} best is the mixture of five default networks (5 members)."),
]


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """The settings of a training run.

    Raises
    ------
    FflmError
        If a value is out of range.

    Notes
    -----
    ``batch_size``: 1 is stochastic gradient descent, and the number of examples is batch gradient descent.

    ``epsilon``: the gradient of a rare word through the softmax is tiny and nearly the same in every batch. If epsilon is far
    smaller, Adam makes steps for such a word that are as large as those for a frequent word.

    ``weight_decay``: with ``adamw``, decay is decoupled from the gradient. With other optimizers, it is added to the gradient
    (L2, as in Bengio 2003, equation 4), only for the rows that a step uses.

    ``l1``, ``l2``: the objective is the loss plus l1 |w| + l2 w^2 / 2, summed over the weights that a step uses. Up to a
    constant, this is the negative logarithm of the posterior probability of the weights, with a Laplace or a normal prior
    (maximum a posteriori estimation). For all optimizers except ``adamw``, ``l2`` has the same effect
    as ``weight_decay``, but ``clip`` applies to the gradient with the penalty. Reported losses do not include penalties.

    ``schedule``: ``inverse`` is rate / (1 + decay t) after t examples (Bengio 2003, section 3.1); ``plateau`` halves the rate
    after each evaluation in which the validation loss has not improved; ``cosine`` falls to zero over all epochs, after a linear
    warm-up.

    ``loss``: ``exact`` is the cross-entropy over the whole vocabulary. ``sampled`` is the cross-entropy over the targets of the
    batch and a sample of words; from each score, the logarithm of the probability that the word is among them is subtracted
    (Bengio & Senécal 2008; Jean et al. 2015, section 3.2). ``nce`` is noise-contrastive estimation (Mnih & Teh 2012). The cost of
    the latter two does not grow with the vocabulary.

    ``adversarial``: the noise lowers the score of the target in training by ``adversarial`` times the norms of its output weights
    and of the hidden outputs, so that the target must win by a margin (Wang et al. 2019). Reported losses are without noise.

    ``affixes``: words with the same prefix or suffix, of 2 to 4 characters, with the same shape, such as ``Aa`` and ``0,0``, or
    that differ only in case, learn from each other (Botha & Blunsom 2014; Bojanowski et al. 2017). The trained network has the
    sums of vectors as its embeddings.

    ``self_normalise``: see Devlin et al. 2014. It is not for ``nce``, which makes scores approximately normalized anyway.
    """

    epochs: Annotated[Size, Meta(description="Maximum number of passes over the training data.")] = 6
    batch_size: Annotated[int, Meta(ge=1, le=2**31 - 1, description="Predicted words (or other examples) per update.")] = 256
    optimizer: Annotated[OptimizerName, Meta(description="Optimizer.")] = "adamw"
    rate: Annotated[float, Meta(gt=0, description="Peak learning rate.")] = 3e-3
    momentum: Annotated[Fraction, Meta(description="Momentum for sgd.")] = 0.0
    nesterov: Annotated[bool, Meta(description="Use Nesterov momentum.")] = False
    epsilon: Annotated[
        float, Meta(gt=0, description="Constant added to the denominator by adam, adamw, rmsprop and adagrad.")
    ] = 1e-5
    weight_decay: Annotated[float, Meta(ge=0, description="Weight decay; biases are not decayed.")] = 0.2
    l1: Annotated[float, Meta(ge=0, description="Strength of the L1 penalty on weights: l1 |w| is added to the loss.")] = 0.0
    l2: Annotated[float, Meta(ge=0, description="Strength of the L2 penalty on weights: l2 w^2 / 2 is added to the loss.")] = 0.0
    schedule: Annotated[
        ScheduleName,
        Meta(
            description="Learning rate schedule; inverse is Bengio's rate / (1 + decay t), plateau halves if validation stalls."
        ),
    ] = "cosine"
    decay: Annotated[float, Meta(ge=0, description="Decay per example for the inverse schedule.")] = 1e-8
    warmup: Annotated[Fraction, Meta(description="Share of all steps used for the warm-up of the cosine schedule.")] = 0.05
    clip: Annotated[float, Meta(ge=0, description="Maximum norm of the gradient; 0 for no clipping.")] = 1.0
    smoothing: Annotated[
        Fraction, Meta(description="Label smoothing: share of the target's probability that is spread over all words.")
    ] = 0.0
    adversarial: Annotated[
        float,
        Meta(
            ge=0,
            description="Adversarial noise on the output weights of the target, relative to their norm, for exact and sampled.",
        ),
    ] = 0.0
    loss: Annotated[
        LossName,
        Meta(description="Training loss: exact or sampled softmax, or noise-contrastive estimation; evaluation is always exact."),
    ] = "exact"
    samples: Annotated[Many, Meta(description="Words sampled per batch by sampled and nce.")] = 512
    exact_end: Annotated[Fraction, Meta(description="Share of the steps at the end that use the exact loss.")] = 0.0
    self_normalise: Annotated[
        float, Meta(ge=0, description="Strength of the penalty on (log Z)^2, for fast scoring without the normalizer Z.")
    ] = 0.0
    patience: Annotated[
        Natural, Meta(description="Evaluations without improvement before training stops; 0 to never stop early.")
    ] = 3
    evaluate_every: Annotated[Natural, Meta(description="Steps between evaluations; 0 for once per epoch.")] = 0
    affixes: Annotated[
        bool,
        Meta(description="In training, add to the embedding of a word the mean of vectors of its prefixes, suffixes and shape."),
    ] = False
    frozen: Annotated[bool, Meta(description="Do not train the given embeddings.")] = False
    seed: Annotated[Seed, Meta(description="Random seed for initial weights, order of examples, dropout and samples.")] = 1

    @property
    def decoupled(self) -> bool:
        """Whether weight decay is decoupled from the gradient, as in AdamW."""
        return self.optimizer == "adamw" and self.weight_decay > 0


def refuse_idle(config: NetworkConfig, settings: TrainingSettings, automatic: Collection[str] = ()) -> None:
    """Raise a SettingsError if a setting was changed from its default that has no effect with the others.

    ``automatic`` are the names of settings that the text will decide on; if the loss is among them, it may be a sampled one.
    """
    sampled = settings.loss != "exact" or "loss" in automatic
    exact = settings.loss != "nce" or settings.exact_end > 0
    needs = {
        "momentum": (settings.optimizer == "sgd", "`optimizer='sgd'`"),
        "nesterov": (settings.optimizer == "sgd" and settings.momentum > 0, "`momentum`"),
        "decay": (settings.schedule == "inverse", "`schedule='inverse'`"),
        "warmup": (settings.schedule == "cosine", "`schedule='cosine'`"),
        "samples": (sampled, "the loss sampled or nce"),
        "exact_end": (sampled, "the loss sampled or nce"),
        "smoothing": (exact, "a loss other than nce, or `exact_end`"),
        "self_normalise": (exact, "a loss other than nce, or `exact_end`"),
        "adversarial": (exact, "a loss other than nce, or `exact_end`"),
    }
    for field in dataclasses.fields(settings):
        effective, need = needs.get(field.name, (True, ""))
        if not effective and getattr(settings, field.name) != field.default:
            raise SettingsError(f"`{field.name}` has no effect without {need}: leave it out")
    if config.negative_slope is not None and not {"leaky_relu", "elu"}.intersection(config.activations):
        raise SettingsError("`negative_slope` has no effect without the activation leaky_relu or elu: leave it out")
