"""The programs and commands of the answers print what the page says, and every exercise of the guide has an answer."""

import contextlib
import json
import math
import re
import shlex
from pathlib import Path

import pytest
from command import fflm

ROOT = Path(__file__).parents[2]
ANSWERS, GUIDE = ((ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("answers.md", "guide.md"))
PROGRAMS = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", ANSWERS, re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^## (\d+\. .*)$", re.MULTILINE)


def test_every_exercise_of_the_guide_has_an_answer():
    exercises = [
        section for section, text in zip(HEADING.findall(GUIDE), HEADING.split(GUIDE)[2::2], strict=True) if "*Try:*" in text
    ]
    assert len(exercises) == GUIDE.count("*Try:*") == 12
    assert HEADING.findall(ANSWERS) == exercises


def test_every_program_has_its_output():
    assert len(PROGRAMS) == ANSWERS.count("```python\n") > 10


CASES = [pytest.param(*pair, marks=pytest.mark.slow if ".fit(" in pair[0] else ()) for pair in PROGRAMS]


@pytest.mark.parametrize(("program", "output"), CASES)
def test_programs_print_what_the_page_says(program, output, capsys):
    exec(compile(program, "answers.md", "exec"), {})
    assert capsys.readouterr().out == output


def rows(section: int) -> list[list[str]]:
    """Return the cells of the tables in a section of the answers, without backquotes, headings and lines."""
    text = re.search(rf"^## {section}\. .*?(?=^## )", ANSWERS, re.MULTILINE | re.DOTALL)[0]
    lines = re.findall(r"(?<!\n\n)^\| (?!-)(.*) \|$", text, re.MULTILINE)
    return [[cell.strip("`") for cell in line.split(" | ")] for line in lines]


def evaluations(model: Path) -> list[dict]:
    events = map(json.loads, (model / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [event for event in events if event["event"] == "evaluation" and event["epoch"]]


def train(*arguments: str, folder: Path) -> None:
    (folder / "corpora").symlink_to(ROOT / "corpora", target_is_directory=True)
    done = fflm("train", "corpora/stories.txt", "--preset", "quick", "-o", "quick.model", *arguments, folder=folder)
    assert done.returncode == 0, done.stderr


FEW_PERCENT = 0.05
"""How much perplexities may differ on another processor, which rounds in another way."""


@pytest.mark.slow
@pytest.mark.parametrize("row", [0, -1], ids=["no restraint", "dropout and decay"])
def test_trainings_have_the_perplexities_of_the_page(row, tmp_path):
    """The first ends early with the ``--patience`` of the exercise. Those with one restraint are left out for their time."""
    options, best, epoch, last = rows(7)[row]
    patience = 3 if row == 0 else 0
    train("--epochs", "15", "--patience", str(patience), *shlex.split(options), folder=tmp_path)
    found = evaluations(tmp_path / "quick.model")
    perplexities = [event["valid"]["perplexity"] for event in found]
    assert min(perplexities) == pytest.approx(float(best), rel=FEW_PERCENT)
    assert perplexities.index(min(perplexities)) + 1 == pytest.approx(int(epoch), abs=2)  # epoch 3 is nearly as good as epoch 4
    if patience:
        assert len(found) == perplexities.index(min(perplexities)) + 1 + patience
    else:
        assert math.exp(found[-1]["train_loss"]) == pytest.approx(float(last), rel=FEW_PERCENT)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Return a folder with the texts of section 10 of the guide."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "corpora").symlink_to(ROOT / "corpora", target_is_directory=True)
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "corpora/stories.txt" in code)
    with contextlib.chdir(folder):
        exec(compile(code, "guide.md", "exec"), {})
    return folder


def accuracy(task: str, options: str, folder: Path, count: int | None = None) -> float:
    """Train a classifier as section 10 of the guide does, and return its accuracy on the test texts in percent."""
    lines = (folder / f"{task}-train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:count]
    arguments = ("--valid", f"{task}-valid.tsv", "-o", "a.classifier", "--overwrite", *shlex.split(options))
    done = fflm("classify", "train", "-", *arguments, folder=folder, input="".join(lines))
    assert done.returncode == 0, done.stderr
    done = fflm("classify", "eval", f"{task}-test.tsv", "-m", "a.classifier", folder=folder)
    return float(re.search(r"^accuracy ([\d.]+)%", done.stdout, re.MULTILINE)[1])


POINTS = 2.0
"""How many percentage points an accuracy may differ on another processor: 10 of the 494 texts for ``speech``."""


@pytest.mark.slow
@pytest.mark.parametrize(("length", "speech", "order"), rows(10)[:3])
def test_windows_of_texts_have_the_accuracies_of_the_page(length, speech, order, texts):
    options = f"--input window --hidden 128 {length}"
    assert accuracy("order", options, texts) == pytest.approx(float(order.rstrip("%")), abs=POINTS)
    if length == "--length 3":  # the others are as good as the mean of the embeddings
        assert accuracy("speech", options, texts) == pytest.approx(float(speech.rstrip("%")), abs=POINTS)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "mean", "words"), rows(10)[3:])
def test_few_texts_have_the_accuracies_of_the_page(number, mean, words, texts):
    count = None if number == "all" else int(number)
    assert accuracy("speech", "", texts, count) == pytest.approx(float(mean.rstrip("%")), abs=POINTS)
    options = "--input features --present i --present you --present said"
    assert accuracy("speech", options, texts, count) == pytest.approx(float(words.rstrip("%")), abs=POINTS)


WINDOWS = re.search(r"We measured ([\d.]+), ([\d.]+) and ([\d.]+) for windows of 1, 2 and 5 words, and ([\d.]+) for 10", ANSWERS)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "perplexity"), [(1, WINDOWS[1]), (10, WINDOWS[4])])
def test_windows_of_words_have_the_perplexities_of_the_page(window, perplexity, tmp_path):
    """Those in between are left out for their time."""
    train("--averages", "0", "--window", str(window), folder=tmp_path)
    assert evaluations(tmp_path / "quick.model")[-1]["valid"]["perplexity"] == pytest.approx(float(perplexity), rel=FEW_PERCENT)


@pytest.mark.slow
def test_shuffled_sentence_is_far_less_probable(tmp_path):
    train(folder=tmp_path)
    sentences = re.findall(r'^\$ echo "(.*)" \| fflm score -m quick.model\nperplexity +([\d,.]+)$', ANSWERS, re.MULTILINE)
    (written, shuffled) = (
        float(fflm("score", "--json", folder=tmp_path, input=f"{text}\n").stdout.split('"perplexity": ')[1].split(",")[0])
        for text, _ in sentences
    )
    assert shuffled > 20 * written
    assert written == pytest.approx(float(sentences[0][1]), rel=0.3)
