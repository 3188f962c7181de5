"""Training that starts from a trained model: its weights, and the words that are added to its vocabulary."""

import numpy as np
import pytest
from command import SMALL, STORIES, fflm

from fflm.errors import FflmError
from fflm.models.neural.model import NeuralModel
from fflm.models.neural.train import start_session
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.text.corpus import Corpus
from fflm.text.tokenizer import LINE_END
from fflm.text.vocabulary import Vocabulary, VocabularyRule

OTHER = "the robot saw the moon . \n the robot saw the robot and the old man .\n" * 20
"""A text with words that the stories do not have."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the model ``first.model`` of stories in lower case, and another text."""
    folder = tmp_path_factory.mktemp("initial")
    (folder / "first.txt").write_text(STORIES)
    (folder / "other.txt").write_text(OTHER)
    line = ("train", "first.txt", *SMALL, "--lowercase", "--averages", "4", "--dropout", "0.3", "--epochs", "1", "-q")
    assert fflm(*line, folder=folder).returncode == 0
    return folder


def test_words_of_base_keep_their_ids_and_frequent_other_words_follow():
    base = Vocabulary.from_counts({"cat": 5, "dog": 3, LINE_END: 2, "rare": 1}, ends=True, min_count=2)
    counts = {"dog": 4, "moon": 3, "robot": 6, "once": 1, "</s>": 7, LINE_END: 9}
    kept, extended = base.recounted(counts), base.extended(counts, VocabularyRule(min_count=2))
    assert kept.words == base.words
    assert kept.counts == [3 + 6 + 1 + 7, 9, 0, 4]
    assert extended.words == [*base.words, "robot", "moon"]
    assert extended.counts == [1 + 7, 9, 0, 4, 6, 3]
    assert extended.id("moon") == 5
    assert base.extended(counts, VocabularyRule(max_size=5)).words == [*base.words, "robot"]
    assert base.extended(counts, VocabularyRule(max_size=3)).words == base.words  # nothing is removed
    assert extended.rule == "4 words of another model, and 2 words seen at least 2 times in train"


@pytest.mark.parametrize(
    "shape", [{"tied": True, "embedding": 5}, {"tied": False, "direct": True}, {"tied": True, "embedding": 3}]
)
def test_added_words_share_probability_of_unknown_word(shape):
    config = NetworkConfig(vocabulary=7, window=2, hidden=(5,), **{"embedding": 4} | shape)
    parameters = Parameters.random(config, 1, np.float64)
    for array in parameters:
        array += np.random.default_rng(2).normal(0, 1, array.shape)
    shares = np.array([0.2, 0.5, 0.3])
    extended = parameters.extended(np.log(shares))
    larger = NetworkConfig(**{**config.to_dict(), "vocabulary": 9, "hidden": (5,), "averages": ()})

    def probabilities(config, parameters, context):
        inputs = np.concatenate([parameters.embeddings[id_] for id_ in context])
        hidden = np.maximum(parameters.hidden_weights[0] @ inputs + parameters.hidden_biases[0], 0)
        outputs = np.concatenate([hidden, inputs]) if config.direct else hidden
        if config.projected:
            outputs = parameters.projection @ outputs
        scores = np.exp(parameters.softmax_weight @ outputs + parameters.output_bias)
        return scores / scores.sum()

    for before, after in (((3, 0), (3, 8)), ((7, 2), (9, 2))):  # the last id is that of the padding
        expected = probabilities(config, parameters, before)
        found = probabilities(larger, extended, after)
        np.testing.assert_allclose(found[1:7], expected[1:], rtol=1e-12)
        np.testing.assert_allclose(found[[0, 7, 8]], expected[0] * shares, rtol=1e-12)
    extended.hidden_weights[0][...] = 0  # a copy
    assert parameters.hidden_weights[0].any()


def test_training_starts_from_weights_network_and_text_of_model(folder):
    first = NeuralModel.load(folder / "first.model")
    run = start_session(folder / "other.txt", folder / "kept.model", initial=folder / "first.model", embedding_dropout=0.1)
    assert run.corpus.vocabulary.words == first.vocabulary.words
    assert run.corpus.settings == first.text
    config = run.trainer.network.config
    assert (config.averages, config.hidden, config.dropout, config.embedding_dropout) == ((4,), (8,), 0.3, 0.1)
    for (name, found), expected in zip(run.trainer.parameters.items(), first.parameters, strict=True):
        np.testing.assert_array_equal(found, expected, name)
    # The text of a model can be used again, with the same vocabulary.
    again = start_session(folder / "kept.model", folder / "again.model", initial=folder / "first.model")
    assert again.corpus.path == run.corpus.path


def test_added_words_start_with_their_frequencies(folder):
    first = NeuralModel.load(folder / "first.model")
    run = start_session(folder / "other.txt", folder / "more.model", initial=folder / "first.model", extend_vocabulary=True)
    before, after = first.vocabulary, run.corpus.vocabulary
    added = after.words[len(before) :]
    assert {"robot", "moon"} & set(added)
    parameters = run.trainer.parameters
    unknown = (before.counts[0] + 1) / (sum(before.counts) + 1)
    for word in (0, *range(len(before), len(after))):
        frequency = (after.counts[word] + 1) / (sum(after.counts) + 1 + len(added))
        expected = first.parameters.output_bias[0] + np.log(frequency / unknown)
        assert parameters.output_bias[word] == pytest.approx(expected, rel=1e-5)
        np.testing.assert_array_equal(parameters.embeddings[word], first.parameters.embeddings[0])
    np.testing.assert_array_equal(parameters.embeddings[len(after)], first.parameters.embeddings[len(before)])


def test_command_continues_with_new_text_and_resumes(folder):
    line = ("train", "other.txt", "--from", "first.model", "--extend-vocabulary", "--min-count", "20", "-o", "new.model", "-q")
    assert fflm(*line, "--epochs", "1", folder=folder).returncode == 0
    assert fflm("train", "--resume", "new.model", "--epochs", "2", "-q", folder=folder).returncode == 0
    model = NeuralModel.load(folder / "new.model")
    assert model.config.dropout == 0.3
    assert "robot" in model.vocabulary
    score = fflm("score", "other.txt", "-m", "new.model", folder=folder)
    assert "words of another model, and 1 word seen at least 20 times in train)" in score.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--from", "first.model", "--hidden", "9", "--min-count", "3", "--no-lowercase"),
            "training that starts from first.model keeps its network and its way to read text: "
            "leave out --hidden, --lowercase, --min-count",
        ),
        (("--extend-vocabulary",), "there is no vocabulary to extend: give the model to start from (--from)"),
        (("--from", "first.model", "--vectors", "x"), "a model to start from has embeddings: leave out --vectors, or --from"),
        (("--from", "other.txt"), "other.txt is not a model: train one with `fflm train`, or name another folder"),
    ],
)
def test_options_that_contradict_initial_model_are_refused(folder, options, message):
    result = fflm("train", "other.txt", *options, "-o", "refused.model", folder=folder)
    status = 1 if "is not a model" in message else 2
    assert (result.returncode, result.stderr.strip()) == (status, f"error: {message}")
    assert not (folder / "refused.model").exists()


def test_corpus_with_another_vocabulary_is_refused(folder):
    assert fflm("tokenize", "other.txt", "-o", "other.corpus", "-q", folder=folder).returncode == 0
    with pytest.raises(FflmError, match=r"other\.corpus was not tokenized with the vocabulary of .*: give the text instead"):
        start_session(folder / "other.corpus", folder / "refused.model", initial=folder / "first.model")
    assert Corpus.open(folder / "other.corpus")


def test_words_cannot_be_added_to_adaptive_softmax(folder):
    line = ("train", "first.txt", *SMALL, "--no-tied", "--bands", "50", "--epochs", "1", "-q", "-o", "bands.model")
    assert fflm(*line, folder=folder).returncode == 0
    start_session(folder / "other.txt", folder / "more-bands.model", initial=folder / "bands.model")
    with pytest.raises(FflmError, match="has an adaptive softmax, to which no words can be added"):
        start_session(folder / "other.txt", folder / "x.model", initial=folder / "bands.model", extend_vocabulary=True)
