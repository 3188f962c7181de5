"""Plots: nothing is cut off or covered, axes are labeled, and any names and values can be drawn."""

import math
import random
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from fflm import drawing, plots
from fflm.drawing import draw_network
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.plots import COLORS, draw_classifiers, draw_curves, draw_speeds, draw_trials

CAPTION = "train: 74,235 tokens, 0.65% unknown; vocabulary: 1,501 (words seen at least 2 times in train); ends: predicted; " * 2


@pytest.fixture
def saved_figures(monkeypatch):
    """Return a list to which every figure is added that is saved."""
    figures = []
    save = plots.save_figure

    def keep(figure, *arguments):
        figures.append(figure)
        return save(figure, *arguments)

    for module in (plots, drawing):
        monkeypatch.setattr(module, "save_figure", keep)
    return figures


def events(losses, perplexities):
    """Return the log of a training session with an evaluation for each pair of loss and perplexity."""
    evaluations = [
        {
            "event": "evaluation",
            "words": 1000 * number,
            "train_loss": loss,
            "rate": 0.1 / number,
            "valid": perplexity and {"perplexity": perplexity, "bits_per_character": 1.2},
        }
        for number, (loss, perplexity) in enumerate(zip(losses, perplexities, strict=True), 1)
    ]
    return [{"event": "started", "text": {"parts": {"train": {"tokens": 1000}}}}, *evaluations]


def random_trials(count):
    """Return trials of a search with random values."""
    generator = random.Random(1)
    return [
        {
            "number": number,
            "state": generator.choice(["complete", "complete", "pruned", "running"]) if number > 1 else "complete",
            "perplexity": generator.choice([math.exp(generator.uniform(3, 6)), None, math.inf]) if number > 1 else 99.0,
            "values": {"rate": 10 ** generator.uniform(-4, -2), "hidden": generator.choice(HIDDEN), "window": number % 7},
        }
        for number in range(1, count + 1)
    ]


HIDDEN = ("64", "128", "256,256", "512,256,128")
SCALES = {"rate": "log", "hidden": HIDDEN, "window": "linear"}
SPEEDS = [
    {"vocabulary": words, "hidden": hidden, "batch": 64, "device": "cpu", "tokens_per_second": 1e8 / words / hidden}
    for words in (1000, 10_000, 50_000)
    for hidden in (64, 128)
]
CLASSIFIER = [
    {"event": "started", "texts": {"train": {"texts": 100}}},
    *(
        {
            "event": "evaluation",
            "words": 100 * epoch,
            "train_loss": 1 / epoch,
            "valid": {"loss": 0.5 + 0.1 / epoch, "accuracy": 0.9, "macro_f1": 0.8},
        }
        for epoch in (1, 2, 3)
    ),
]

NETWORKS = {
    "iris": NetworkConfig.feedforward(4, (6,), 3, activation="sigmoid"),
    "no hidden layer": NetworkConfig.feedforward(2, (), 1, output="sigmoid"),
    "direct": NetworkConfig(1501, window=3, averages=(10,), embedding=16, hidden=(32,), direct=True, tied=False),
    "tied": NetworkConfig(1501, window=12, embedding=16, hidden=(32,)),
    "adaptive": NetworkConfig(1501, window=2, embedding=16, hidden=(32, 16), tied=False, bands=(100, 1000)),
    "pooled": NetworkConfig(50, embedding=8, hidden=(4,), input="mean", outputs=2, tied=False),
    "activations": NetworkConfig.feedforward(3, (2, 3), 1, activation=("relu", "tanh"), output="poisson"),
    "deep": NetworkConfig.feedforward(64, (64,) * 40, 10, residual=True),
}


PICTURES = {
    **{
        f"network, {name}": lambda path, config=config: draw_network(config, path, Parameters.random(config, 1))
        for name, config in NETWORKS.items()
    },
    "a run": lambda path: draw_curves({"stories.model": events([5, 4, 3.5], [90.0, 45.0, 40.0])}, [CAPTION], path),
    "runs": lambda path: draw_curves(
        {f"{'long_' * number}name.model": events([6, 4, 3 + number / 9], [200.0, 45.0, 30.0 + number]) for number in range(20)},
        [CAPTION] * 19 + ["other text"],
        path,
    ),
    "an evaluation": lambda path: draw_curves({"a.model": events([4], [60.0])}, [CAPTION], path),
    "no validation": lambda path: draw_curves({"a.model": events([5, 4], [None, None])}, [CAPTION], path),
    "divergence": lambda path: draw_curves(
        {"a.model": events([9, 800, math.nan, 4], [1e4, math.inf, math.nan, 80.0])}, [CAPTION], path
    ),
    "odd names": lambda path: draw_curves(
        {name: events([5, 4], [90.0, 80.0]) for name in ("$x^_{", "_hidden", "a\nb", "\udce9")}, [CAPTION] * 4, path
    ),
    "classifiers": lambda path: draw_classifiers({"a.classifier": CLASSIFIER, "b.classifier": CLASSIFIER}, path),
    "a classifier": lambda path: draw_classifiers({"a.classifier": CLASSIFIER}, path),
    "a search": lambda path: draw_trials(f"{'deep/' * 30}stories.tune", random_trials(200), SCALES, CAPTION, path),
    "a trial": lambda path: draw_trials("stories.tune", random_trials(1), {"rate": "log"}, CAPTION, path),
    "speeds": lambda path: draw_speeds(SPEEDS, {"cpu": "cpu (2 threads)"}, path),
}


@pytest.mark.slow
@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_legend_and_axes_do_not_overlap_and_are_labeled(tmp_path, saved_figures, draw):
    assert draw(tmp_path / "picture.png") == ""
    [figure] = saved_figures
    width, height = figure.get_size_inches()
    everything = figure.get_tightbbox()
    assert min(everything.min) > -0.01
    assert (everything.max < (width + 0.01, height + 0.01)).all()
    [legend] = figure.legends
    box = legend.get_window_extent()
    assert box.height < 0.3 * figure.bbox.height
    for axes in figure.axes:
        assert not box.overlaps(axes.bbox)
        if axes.get_yscale() == "log" and axes.lines:
            low, high = axes.get_ylim()
            labels = [
                text.get_text()
                for value, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
                if low <= value <= high
            ]
            assert 3 <= len(set(labels)) == len(labels) <= 10
            for value, label in zip((value for value in axes.get_yticks() if low <= value <= high), labels, strict=True):
                assert float(label.replace(",", "")) == pytest.approx(value)


def test_values_that_are_not_finite_are_left_out(tmp_path, saved_figures):
    PICTURES["divergence"](tmp_path / "picture.png")
    upper = saved_figures[0].axes[0]
    curves = [line.get_xydata().tolist() for line in upper.lines]
    assert curves[0] == [[1000, math.exp(9)], [4000, math.exp(4)]]
    assert curves[1] == [[1000, 1e4], [4000, 80]]
    assert "best: 80.0" in saved_figures[0].legends[0].get_texts()[-1].get_text()


def test_several_models_have_own_colors_and_one_name(tmp_path, saved_figures):
    names = [f"{number}.model" for number in range(9)]
    draw_curves({name: events([5, 4], [90.0, 80.0]) for name in names}, ["the text"] * 9, tmp_path / "picture.png")
    texts = [text.get_text() for text in saved_figures[0].legends[0].get_texts()]
    assert texts == ["validation", "training", *(f"{name}, best: 80.0" for name in names)]
    colors = {str(line.get_color()) for line in saved_figures[0].axes[0].lines}
    assert len(colors) == 9
    assert saved_figures[0].get_supxlabel() == f"{', '.join(names)}: the text"


@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
def test_every_layer_of_a_network_has_its_column(tmp_path, saved_figures, config):
    draw_network(config, tmp_path / "picture.svg")
    titles = [text.get_text() for text in saved_figures[0].axes[0].texts if "\n" in text.get_text()]
    expected = [f"hidden layer {number + 1}" for number in range(len(config.hidden))]
    if len(config.hidden) == 1:
        expected = ["hidden layer"]
    if len(expected) > 6:
        expected = [*expected[:3], "35 more", *expected[-2:]]
    expected += ["projection"] * config.projected
    assert [title.split("\n")[0] for title in titles[1:-1]] == expected
    assert all(activation in title for title, activation in zip(titles[1:], config.activations[:3], strict=False))
    assert titles[-1].startswith("output layer\n")
    assert "1 unit, " in titles[-1] or f"{config.classes:,} units, " in titles[-1]
    assert {line.get_color() for line in saved_figures[0].axes[0].lines} <= {"silver", "black"}


def test_weights_are_drawn_by_sign_and_size_and_written(tmp_path, saved_figures):
    config = NetworkConfig.feedforward(2, (2,), 1, output="squared")
    arrays = {
        "hidden.0.weight": np.array([[1.0, -4.0], [2.0, 0.0]]),
        "hidden.0.bias": np.array([0.0, -1.5]),
        "output.weight": np.array([[1.0, -2.0]]),
        "output.bias": np.array([0.25]),
    }
    draw_network(
        config, tmp_path / "picture.png", Parameters.from_arrays(config, arrays), inputs=("age", "size"), outputs=("price",)
    )
    axes = saved_figures[0].axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert sorted(text for text in texts if text.replace(".", "").lstrip("-").isdigit()) == sorted(
        ["1", "-4", "2", "0", "0", "-1.5", "1", "-2", "0.25"]
    )
    assert {"age", "size", "price", "x₁", "x₂", "h₁", "h₂", "y₁", "+1"} <= {*texts}
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2]
    places = {(*line.get_xdata(), *line.get_ydata()): (line.get_color(), line.get_linewidth()) for line in lines}
    assert len(places) == 9
    assert places[0, 4, 0.5, 0.5][0] == places[0, 4, 0.5, -0.5][0] == COLORS[0]
    assert places[0, 4, -0.5, 0.5] == (COLORS[1], pytest.approx(3.0))
    assert places[0, 4, -0.5, -0.5][0] == "silver"
    assert places[0, 4, 0.5, 0.5][1] < places[0, 4, 0.5, -0.5][1] < 3


def test_of_large_layers_the_first_units_and_the_last_one_are_drawn(tmp_path, saved_figures):
    draw_network(NetworkConfig.feedforward(64, (), 9), tmp_path / "picture.png")
    texts = [text.get_text() for text in saved_figures[0].axes[0].texts]
    assert [text for text in texts if text[0] == "x"] == ["x₁", "x₂", "x₃", "x₄", "x₅", "x₆₄"]
    assert [text for text in texts if text[0] == "y"] == ["y₁", "y₂", "y₃", "y₄", "y₅", "y₉"]
    assert texts.count("⋮") == 2


# Fonts


def has_glyph(path, character):
    return FT2Font(path).get_char_index(ord(character)) > 0


DEFAULT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
OTHER = Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf")


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_font_is_found_for_characters_missing_in_default_font(tmp_path, monkeypatch, saved_figures, ending):
    lacking = next(
        character
        for character in map(chr, range(0x2000, 0xE000))
        if has_glyph(OTHER, character) and not has_glyph(DEFAULT, character)
    )
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "no font"), str(DEFAULT), str(OTHER)])
    (tmp_path / "no font").write_bytes(b"nothing")
    run = {f"{lacking}.model": events([5, 4], [90.0, 80.0])}
    assert draw_curves(run, ["x"], tmp_path / f"picture.{ending}") == ""
    assert str(OTHER) in saved_figures[0].legends[0].get_title().get_fontfamily()


def test_characters_missing_in_all_fonts_are_returned(tmp_path, monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(DEFAULT)])
    run = {"故事.model": events([5, 4], [90.0, 80.0])}
    assert draw_curves(run, ["x"], tmp_path / "picture.svg") == "事故"
    assert (tmp_path / "picture.svg").stat().st_size > 1000
