"""KenLM's interface, against a reference in pure Python, against KenLM where it is installed, and in programs that use it."""

import copy
import itertools
import math
import multiprocessing
import os
import pickle
import random
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from tiny import MODES, tiny_model

import fflm.kenlm as ours
from fflm.errors import FflmError
from fflm.models import scoring
from fflm.models.neural.fast import FastScorer
from fflm.models.neural.model import save_config
from fflm.models.ngram.arpa import import_arpa
from fflm.training.checkpoints import save_weights

WORDS = [f"w{number}" for number in range(12)] + ["é", "中文", "a\u00a0b"]
OTHERS = ["zebra", "<unk>", "<UNK>", "<s>", "</s>", "W1", "w"]
BLANKS = [" ", "  ", "\t", "\n", "\r", "\v ", " \f"]
ROUNDED = 2e-5
"""Log10 of probabilities around 1e-100, in single precision."""


def write_random_arpa(path, *, order=4, unknown=True, seed=1):
    """Write a model of random n-grams, with all their parts, as in every model that is estimated; return it as a dict."""
    rng = random.Random(seed)
    grams = [{(word,) for word in [*WORDS, "</s>", "<s>"] + ["<unk>"] * unknown}]
    for _ in range(order - 1):
        below = grams[-1]
        longer = {
            (*gram, word) for gram in sorted(below) for word in [*WORDS, "</s>"] if "</s>" not in gram and rng.random() < 0.3
        }
        grams.append({gram for gram in longer if gram[1:] in below})
    model = {gram: (rng.uniform(-4, -0.1), rng.uniform(-1, 0.2)) for level in grams for gram in sorted(level)}
    if ("<s>",) in model:
        model["<s>",] = (-99.0, model["<s>",][1])
    with path.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n" + "".join(f"ngram {k}={len(level)}\n" for k, level in enumerate(grams, 1)))
        for k, level in enumerate(grams, 1):
            file.write(f"\n\\{k}-grams:\n")
            for gram in sorted(level):
                value, weight = model[gram]
                last = k == order or gram[-1] == "</s>"
                model[gram] = (value, 0.0 if last else weight)
                file.write(f"{value:.7f}\t{' '.join(gram)}" + ("\n" if last else f"\t{weight:.7f}\n"))
        file.write("\n\\end\\\n")
    return model


def expected_scores(model, order, sentence, bos, eos):
    """Return log10 p, the length of the n-gram and whether it is unknown, of each word, by the definition of back-off."""
    known = {gram[0] for gram in model if len(gram) == 1} - {"<unk>"}
    words = [word.decode() for word in sentence.encode().split()] + ["</s>"] * eos
    history, results = ["<s>"] if bos else [], []
    for word in words:
        word = word if word in known else "<unk>"
        context, total = tuple(history[-(order - 1) :]), 0.0
        while (*context, word) not in model and context:
            total += model.get(context, (0, 0))[1]
            context = context[1:]
        value = model.get((*context, word), (-100.0,))[0]
        results.append((total + value, len(context) + 1, word == "<unk>"))
        history.append(word)
    return results


def random_sentences(count, seed=2):
    rng = random.Random(seed)
    vocabulary = WORDS * 4 + OTHERS
    return ["", " ", "\n"] + [
        rng.choice(BLANKS).join(rng.choices(vocabulary if rng.random() < 0.5 else WORDS, k=rng.randint(0, 9)))
        + rng.choice(["", *BLANKS])
        for _ in range(count)
    ]


@pytest.fixture(scope="module", params=[True, False], ids=["with <unk>", "without <unk>"])
def arpa(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("arpa") / "random.arpa"
    return path, write_random_arpa(path, unknown=request.param), ours.Model(path)


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("bos", [True, False])
def test_arpa_scores_equal_definition_of_back_off(arpa, bos, eos):
    _, grams, model = arpa
    for sentence in random_sentences(500):
        expected = expected_scores(grams, 4, sentence, bos, eos)
        found = list(model.full_scores(sentence, bos=bos, eos=eos))
        np.testing.assert_allclose([each[0] for each in found], [each[0] for each in expected], rtol=1e-5, atol=ROUNDED)
        assert [each[1:] for each in found] == [each[1:] for each in expected]
        total = math.fsum(each[0] for each in expected)
        assert model.score(sentence, bos=bos, eos=eos) == pytest.approx(total, rel=1e-5, abs=ROUNDED)
        assert model.score(sentence.encode(), bos, eos) == pytest.approx(total, rel=1e-5, abs=ROUNDED)


def test_all_numbers_equal_those_of_kenlm(arpa):
    kenlm = pytest.importorskip("kenlm")
    path, _, model = arpa
    peer = kenlm.Model(str(path), kenlm.Config())
    assert (model.path, model.order) == (peer.path, peer.order)
    for sentence in random_sentences(2000, seed=3):
        for bos, eos in ((True, True), (True, False), (False, True), (False, False)):
            expected = peer.score(sentence, bos=bos, eos=eos)
            assert model.score(sentence, bos=bos, eos=eos) == pytest.approx(expected, rel=1e-5, abs=ROUNDED)
            scores, found = (
                list(peer.full_scores(sentence, bos=bos, eos=eos)),
                list(model.full_scores(sentence, bos=bos, eos=eos)),
            )
            np.testing.assert_allclose([each[0] for each in found], [each[0] for each in scores], rtol=1e-5, atol=ROUNDED)
            assert [each[1:] for each in found] == [each[1:] for each in scores]
        assert model.perplexity(sentence) == pytest.approx(peer.perplexity(sentence), rel=1e-3)
    for word in [*WORDS, *OTHERS, ""]:
        assert (word in model) == (word in peer)


def test_states_are_equal_where_states_of_kenlm_are_equal(arpa):
    kenlm = pytest.importorskip("kenlm")
    path, grams, model = arpa
    words = WORDS[:5] + (OTHERS if ("<unk>",) in grams else ["<s>", "</s>"])  # an <unk> that KenLM adds is context, ours is not
    peer, rng, walks = kenlm.Model(str(path)), random.Random(4), []
    for number in range(300):
        states = kenlm.State(), ours.State()
        for each, state in zip((peer, model), states, strict=True):
            (each.BeginSentenceWrite if number % 2 else each.NullContextWrite)(state)
        for word in rng.choices(words, k=rng.randint(0, 5)):
            after = kenlm.State(), ours.State()
            expected, found = peer.BaseFullScore(states[0], word, after[0]), model.BaseFullScore(states[1], word, after[1])
            assert found.log_prob == pytest.approx(expected.log_prob, rel=1e-5, abs=ROUNDED)
            assert (found.ngram_length, found.oov) == (expected.ngram_length, expected.oov)
            assert model.BaseScore(states[1], word, ours.State()) == pytest.approx(found.log_prob)
            states = after
        walks.append(states)
    for peers, own in walks:
        assert [peers == other for other, _ in walks] == [own == other for _, other in walks]
        assert {hash(other) for _, other in walks if other == own} == {hash(own)}


def test_word_that_is_none_or_several_is_unknown(arpa):
    model, state, out = ours.Model(str(arpa[0])), ours.State(), ours.State()
    model.BeginSentenceWrite(state)
    unknown = model.BaseFullScore(state, "<unk>", out)
    for word in ("", " ", b"", "w1 w2", "w1\n", "\u3000", "\u200b"):
        assert word not in model
        assert model.BaseFullScore(state, word, out) == unknown
    with pytest.raises(TypeError, match="Cannot convert <class 'int'> to string"):
        model.BaseScore(state, 3, out)
    with pytest.raises(TypeError, match="sentences must be a list of strings"):
        model.scores("w1 w2")


def test_state_can_be_copied_and_compared(arpa):
    model = arpa[2]
    state, after = ours.State(), ours.State()
    model.BeginSentenceWrite(state)
    begun = copy.copy(state)
    first = model.BaseScore(state, "w1", after)
    assert state == begun == copy.deepcopy(state)
    assert after != state
    assert model.BaseScore(state, "w1", state) == first  # in place
    assert state == after
    assert len({state, after, begun}) == 2
    assert (state < begun) != (begun < state)
    assert state != "w1"


def test_state_of_another_model_is_refused(tmp_path, folders):
    write_random_arpa(tmp_path / "four.arpa")
    write_random_arpa(tmp_path / "two.arpa", order=2)
    models = [ours.Model(path) for path in (tmp_path / "four.arpa", tmp_path / "two.arpa", *folders.values())]
    for one, other in itertools.permutations(models, 2):
        state, out = ours.State(), ours.State()
        one.BeginSentenceWrite(state)
        one.BaseScore(state, "w1", state)
        if one._kind == other._kind:  # two networks with the same words
            assert {one, other} == set(models[2:])
            continue
        before = copy.deepcopy(state)
        with pytest.raises(FflmError, match=r"^the state was written by another model: give one"):
            other.BaseScore(pickle.loads(pickle.dumps(state)), "w1", out)
        with pytest.raises(FflmError, match="another model"):
            other.BaseFullScore(copy.copy(state), "w1", state)
        assert state == before
        assert other.BaseScore(out, "w1", state) == other.BaseScore(ours.State(), "w1", state)  # a state may be written again


def saved(folder, model, about=None):
    folder.mkdir()
    save_config(folder, model.config, model.text, model.vocabulary, about or {})
    save_weights(folder, model.parameters, {})
    return folder


SENTENCES = ["", "the cat sat on the dog .", "The cat, sat.on the zebra", "cat\tcat dog  ", "the 中文 cat.", "a\u00a0b cat"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    training = {"training": {"self_normalise": 0.1}}
    return {"exact": saved(root / "exact", tiny_model()), "fast": saved(root / "fast", tiny_model(), training)}


@pytest.mark.parametrize("kind", ["exact", "fast"])
def test_network_scores_equal_those_of_its_own_methods(folders, kind):
    model, own = ours.Model(folders[kind]), tiny_model()
    scorer = FastScorer(own) if kind == "fast" else own
    assert model.order == own.window + 1
    assert repr(model) == f"<Model from {kind}>"
    for sentence in SENTENCES:
        found = model.score(sentence)
        if sentence:
            assert found == pytest.approx(scoring.score(scorer, sentence).log10_probability, rel=1e-5)
        parts = list(model.full_scores(sentence))
        assert found == pytest.approx(math.fsum(each[0] for each in parts), rel=1e-5)
        state, total = ours.State(), 0.0
        model.BeginSentenceWrite(state)
        for word, (score, length, unknown) in zip(
            [*sentence.split(), "</s>"] if "\u00a0" not in sentence else [], parts, strict=False
        ):
            total += model.BaseScore(state, word, state)
            assert (length, unknown) == (model.order, word not in model)
            assert total == pytest.approx(
                math.fsum(each[0] for each in parts[: parts.index((score, length, unknown)) + 1]), rel=1e-5
            )
        assert model.score(sentence, eos=False) == pytest.approx(found - parts[-1][0], rel=1e-5, abs=1e-6)
    assert model.scores(SENTENCES).tolist() == [model.score(sentence) for sentence in SENTENCES]
    assert "cat" in model
    assert "cat." in model
    assert "zebra" not in model


@pytest.mark.parametrize("kind", ["exact", "fast"])
def test_symbols_and_words_without_tokens_are_unknown_words(folders, kind):
    model, state, out = ours.Model(folders[kind]), ours.State(), ours.State()
    for sentence in ("the <unk> sat", "the \u3000 sat"):
        parts = list(model.full_scores(sentence))
        assert [unknown for *_, unknown in parts] == [False, True, False, False]
        assert model.score(sentence) == pytest.approx(math.fsum(each[0] for each in parts), rel=1e-6)
    assert parts == list(model.full_scores("the <unk> sat"))
    model.BeginSentenceWrite(state)
    model.BaseScore(state, "\u3000", out)
    assert model.BaseScore(out, "sat", ours.State()) == model.BaseScore(_after(model, state, "<unk>"), "sat", ours.State())


def _after(model, state, word):
    """Return the state after a word."""
    out = ours.State()
    model.BaseScore(state, word, out)
    return out


def test_config_exact_computes_softmax(folders):
    exact = ours.Model(folders["fast"], ours.Config(exact=True))
    assert exact.score("the cat") == pytest.approx(tiny_model().score("the cat").log10_probability, rel=1e-5)
    assert ours.Model(folders["fast"]).score("the cat") != pytest.approx(exact.score("the cat"), rel=1e-3)


def test_model_folder_gives_same_scores_as_arpa_file(arpa, tmp_path):
    path, _, model = arpa
    import_arpa(path, tmp_path / "model")
    folder = ours.LanguageModel(str(tmp_path / "model"))
    assert folder.scores(random_sentences(50)).tolist() == pytest.approx(model.scores(random_sentences(50)).tolist(), rel=1e-5)


@pytest.mark.slow
def test_threads_and_processes_can_share_model(arpa, folders):
    lines = random_sentences(300)
    for path in (arpa[0], folders["fast"], folders["exact"]):
        model = ours.Model(path)
        expected = [model.score(line) for line in lines]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(model.score, lines)) == expected
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            assert list(pool.map(model.score, lines[:9])) == expected[:9]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_process_can_use_model(folders):
    model = ours.Model(folders["fast"])
    expected = [model.score(line) for line in SENTENCES]
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        assert pool.submit(model.scores, SENTENCES).result(timeout=60).tolist() == expected


@pytest.mark.parametrize("kind", ["arpa", "exact", "fast"])
def test_scores_of_many_sentences_equal_scores_of_each(arpa, folders, kind):
    model = arpa[2] if kind == "arpa" else ours.Model(folders[kind])
    plain = [sentence for sentence in random_sentences(60) if sentence.isprintable() and "s>" not in sentence]
    for sentences in ([], plain, [*plain, "w1\tw2", "w1 </s> w2"], [sentence.encode() for sentence in plain]):
        expected = [model.score(sentence) for sentence in sentences]
        np.testing.assert_allclose(model.scores(sentences), expected, rtol=1e-5)


def test_language_models_can_be_pickled_after_they_scored_lines(arpa, folders):
    for scorer in (arpa[2]._states.model, ours.Model(folders["fast"])._states.model):
        expected = scorer.scores(["w1 w2", "the cat"])
        assert pickle.loads(pickle.dumps(scorer)).scores(["w1 w2", "the cat"]).tolist() == expected.tolist()


def test_pickled_model_whose_folder_changed_is_refused(tmp_path):
    path = tmp_path / "random.arpa"
    write_random_arpa(path)
    content = pickle.dumps(ours.Model(path))
    assert len(content) < 1000
    assert pickle.loads(content).score("w1") == ours.Model(path).score("w1")
    write_random_arpa(path, seed=2)
    with pytest.raises(FflmError, match="has changed since the model was loaded: load it again"):
        pickle.loads(content)


def test_unusable_models_are_refused_with_one_line(tmp_path, folders):
    def refused(path):
        with pytest.raises(FflmError) as error:
            ours.Model(str(path))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "there is no model" in refused(tmp_path / "nothing.arpa")
    (tmp_path / "text.txt").write_text("the cat\n")
    assert "is not an ARPA file" in refused(tmp_path / "text.txt")
    (tmp_path / "model.binary").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0\0")
    assert "give the ARPA file that it was made from" in refused(tmp_path / "model.binary")
    (tmp_path / "empty").mkdir()
    assert "is not a model" in refused(tmp_path / "empty")
    assert "train it with `mode='sentence'`" in refused(saved(tmp_path / "stream", tiny_model(MODES["line ends"])))
    with pytest.raises(TypeError, match="Cannot convert"):
        ours.Model(folders["fast"]).score(3)


def test_formula_of_cc_net_gives_perplexity_of_document(arpa):
    model = arpa[2]
    document = ["w1 w2 w3", "w4 zebra", "w5"]
    log_score, length = 0.0, 0
    for line in document:  # cc_net/perplexity.py, DocLM
        log_score += model.score(line)
        length += len(line.split()) + 1
    losses = [each for line in document for each in expected_scores(arpa[1], 4, line, True, True)]
    assert 10.0 ** (-log_score / length) == pytest.approx(10.0 ** (-sum(each[0] for each in losses) / len(losses)), rel=1e-5)


def test_beam_search_of_pyctcdecode_gives_same_beams_as_with_kenlm(arpa, monkeypatch):
    kenlm, pyctcdecode = pytest.importorskip("kenlm"), pytest.importorskip("pyctcdecode")
    host = pytest.importorskip("pyctcdecode.language_model")

    labels, beams = ["", *"w0123456789 "], []
    for module in (kenlm, ours):
        monkeypatch.setattr(host, "kenlm", module)
        model = host.LanguageModel(module.Model(str(arpa[0])), unigrams=WORDS[:10], alpha=0.7, beta=1.0)
        decoder = pyctcdecode.BeamSearchDecoderCTC(pyctcdecode.Alphabet.build_alphabet(labels), model)
        rng = np.random.default_rng(1)
        beams.append([decoder.decode_beams(rng.normal(0, 2, (30, len(labels))), beam_width=20) for _ in range(10)])
    for expected, found in zip(*beams, strict=True):
        assert [each[0] for each in found] == [each[0] for each in expected]
        np.testing.assert_allclose([each[-1] for each in found], [each[-1] for each in expected], rtol=1e-5)
