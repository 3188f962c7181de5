"""The table of the lectures has every topic, its commands show what the topic says, and what it names exists.

The index of the lectures' sections leads to every row of the table, every example and every section of the guide.
"""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from command import STORIES, fflm, parse

ROOT = Path(__file__).parents[2]
PAGES = ("docs/lectures.md", "docs/lectures.zh.md")
TOPICS = 146
"""Topics of the five lectures and of the description of the project."""
LECTURES = 134
"""Topics of the five lectures."""
SHOWN = {
    (1,): "256 of 256 with 3 inputs",
    (2, 6, 48, 103): "y by hand         0.704745697998091\ny by the library  0.704745697998091",
    (4,): "256          0.0128",
    (7, 24): "2. W x + b = W' x' with W' = [b W], x' = (1, x)",
    (8, 36, 93, 97, 100): "sigmoid    0.1050    0.1966    0.2500    0.1966    0.1050",
    (10, 12, 13): "AND: w = [1, 1], b = -1, y = 1 if w . x + b > 0",
    (11,): "as after epoch 2: it goes round for ever, all four never right",
    (15,): "9 parameters",
    (17, 23, 63, 65): "one layer        y of the first x [ 11.3232 -16.407 ]",
    (25, 83): "always the most frequent        34.4%     0.656",
    (84,): "we/PRON can/AUX open/VERB the/DET can/NOUN ./PUNCT",
    (29,): "1. sigmoid(z) = softmax([z, 0])_1",
    (19, 56, 57, 86): "dJ/dW1 = D W2^T (a2 - y) x^T",
    (20, 38, 39): "halfway between these two ends the loss is 0.4508",
    (21, 49, 51, 66, 120, 121, 123): "dC/dW^2 (1, 4): by the loop | by the library",
    (22, 78): "e = the three, concatenated (48,)",
    (30, 59, 108, 116, 132): "right  0.50   -1.0000    0.5000    1.2500    1.6250    1.9971    2.0000",
    (31, 52, 68, 81, 82, 113): "-log 0.4 = 0.9163",
    (32,): "1: dL/dw = -(y_k yhat_k) x_i                  0.0000    0.3639        0.3639",
    (33, 44, 55, 70, 88, 89, 90, 133): "L = c e             = -10.0000",
    (35, 94): "L         0.4740769842    0.4740769842",
    (37,): "gradient by the scores, p - y = [ 0.3  0.3 -0.6]",
    (47, 67, 118): "stochastic, 1    0.882",
    (50,): "hidden.0.weight  4 x 3",
    (53, 110): "squared, y =  1       4.0000  -4.0000   1.0000  -2.0000   0.2500  -1.0000",
    (54,): "poisson    0.03    0.10    0.28    0.82    2.39    6.98   20.41",
    (58, 71, 99): "leaky ReLU    0.0100    0.0100    0.0100    1.0000    1.0000",
    (61, 62, 64): "( 0.0, 0.0)  0.4634  0.5195  0.0171      0.4634  0.5195  0.0171",
    (69,): "3: dL/dw = 1{y = k} - p_k x_i                -0.3639    0.3639        0.3639",
    (74,): "word dropout",
    (79,): "embeddings  1,502 x 16",
    (87, 122): "x1 -> p21      1.0000    -0.2832 =   0.5663 x -0.5000",
    (95, 117): "batch, 150    1.109    1.080    1.054    0.910    0.749",
    (98,): "sigmoid                    0.503                                           100%",
    (101, 125): "ReLU   5.2e-02   5.7e-02   5.4e-02   4.9e-02   6.3e-02     0.991",
    (104,): "51 parameters",
    (105,): "-8           0.0003         -0.9997         -0.0007",
    (106, 109, 127, 129): "test accuracy = 30 / 30 = 1.000",
    (107,): "after  1000 steps  a =  0.5000, b = -1.0000",
    (111,): "absolute      2.0000,  1.0000      2.2000,  1.1000      2.0000,  1.0000",
    (112,): "sigmoid, y =  1       1.3133  -0.7311",
    (114,): "hinge, y =  1       2.0000  -1.0000   1.0000  -1.0000   0.5000  -1.0000   0.0000   0.0000",
    (115,): "exponential, y =  1       2.7183  -2.7183",
    (119,): "with patience 20, training ends after epoch",
    (128, 130, 131): "17 of 18 printed numbers agree to 1e-06",
    (136,): "largest difference of                 shape   to the library   to finite differences",
}
"""What the script of each row prints, by the numbers of rows. Figures that training makes are not the same on all processors."""
QUICK = {"train": ("--epochs", "1", "--overwrite"), "tune": ("--epochs", "1", "--trials", "1")}
"""Options that make the commands of the table short."""


def rows(page: str) -> list[list[str]]:
    """Return the cells of the tables' rows: number, section, topic, where, command or figure."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d+ \|", line)]


def commands(page: str) -> list[str]:
    return sorted({row[4][1:-1] for row in rows(page) if row[4].startswith("`")})


@pytest.mark.parametrize("page", PAGES)
def test_table_has_row_for_every_topic(page):
    assert [row[0] for row in rows(page)] == [str(number + 1) for number in range(TOPICS)]
    assert {len(row) for row in rows(page)} == {5}
    assert [row for row in rows(page) if not row[2] or not row[3]] == []


@pytest.mark.parametrize("page", PAGES)
def test_each_row_has_link_or_says_that_there_is_none(page):
    for row in rows(page):
        assert row[4] or "](" in row[3] or re.search("guide|指南|not (?:here|yet): |没有：|尚无：", row[3]), row


@pytest.mark.parametrize("command", [each for each in commands(PAGES[0]) if each.startswith("python ")])
def test_scripts_exist_with_their_options(command):
    _, script, *arguments = command.split()
    text = (ROOT / script).read_text(encoding="utf-8")
    assert [each for each in arguments if not re.search(r"\.\w+$", each) and f'"{each}"' not in text] == []


@pytest.mark.parametrize("command", [each for each in commands(PAGES[0]) if each.startswith("fflm ")])
def test_commands_of_table_parse(command, tmp_path, monkeypatch):
    """They are parsed in a folder that has the files that they name."""
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"[\w/.-]+\.(?:tsv|txt)\b", command):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    parse(command)


def test_table_has_no_other_commands():
    others = [each for each in commands(PAGES[0]) if not each.startswith(("python ", "fflm "))]
    assert others == ["pytest"]


@pytest.mark.parametrize(
    ("page", "guide", "word"), [(*PAGES[:1], "docs/guide.md", "guide"), (*PAGES[1:], "docs/guide.zh.md", "指南")]
)
def test_sections_of_guide_exist(page, guide, word):
    named = {
        int(number)
        for row in rows(page)
        for found in re.findall(rf"{word} (\d+(?:[,、] ?\d+)*)", row[3])
        for number in re.findall(r"\d+", found)
    }
    sections = re.findall(r"^## (\d+)\. ", (ROOT / guide).read_text(encoding="utf-8"), re.MULTILINE)
    assert named
    assert named <= {*map(int, sections)}


def test_every_example_is_in_table():
    named = set(re.findall(r"examples/(\w+)\.py", (ROOT / PAGES[0]).read_text(encoding="utf-8")))
    assert named == {path.stem for path in (ROOT / "examples").glob("*.py")}


def test_every_row_with_a_script_says_what_it_prints():
    numbers = [number for group in SHOWN for number in group]
    assert sorted(numbers) == [int(row[0]) for row in rows(PAGES[0]) if row[4].startswith("`python ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the files that the commands of the table name; they are small."""
    path = tmp_path_factory.mktemp("lectures")
    (path / "corpora").mkdir()
    (path / "corpora" / "stories.txt").write_text(STORIES, encoding="utf-8")
    lines = [line for line in STORIES.splitlines() if line]
    texts = "".join(f"{'speech' if chr(34) in line else 'telling'}\t{line} no\n" for line in lines)
    for name in "reviews.tsv", "speech-train.tsv", "tags.tsv":
        (path / name).write_text(texts, encoding="utf-8")
    (path / "vectors.txt").write_text("2 4\nthe 1 2 3 4\nand 4 3 2 1\n", encoding="utf-8")
    return path


def scripts() -> dict[str, list[str]]:
    """Return what each script, with its arguments but for the plot, is to print."""
    found: dict[str, list[str]] = {}
    for group, text in SHOWN.items():
        for number in group:
            found.setdefault(re.sub(" --plot .*", "", rows(PAGES[0])[number - 1][4][8:-1]), []).append(text)
    return found


OWN_TESTS = {f"examples/{name}.py" for name in ("augmentation", "iris", "perceptrons", "sentiment", "sliding_window", "tagging")}
"""Scripts that take long, and whose output the tests of the examples check."""
PLOTTED = ("approximation", "batches_and_rates", "cross_entropy", "early_stopping", "initial_weights", "zero_centered")
"""Scripts that train, and whose plot has no other test."""


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(set(scripts()) - OWN_TESTS))
def test_scripts_print_what_the_topics_say(script, capsys, monkeypatch, tmp_path):
    path, *arguments = script.split()
    if Path(path).stem in PLOTTED:
        arguments += ["--plot", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    runpy.run_path(str(ROOT / path), run_name="__main__")
    printed = capsys.readouterr().out
    assert [text for text in scripts()[script] if text not in printed] == []
    if Path(path).stem in PLOTTED:
        assert len(printed.splitlines()) > 5
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_plots_of_training_are_drawn_by_scripts_of_table():
    assert {f"examples/{name}.py" for name in PLOTTED} <= set(scripts()) - OWN_TESTS


@pytest.mark.slow
@pytest.mark.parametrize("command", dict.fromkeys(row[4][1:-1] for row in rows(PAGES[0]) if row[4].startswith("`fflm ")))
def test_command_of_row_runs(command, folder):
    """Commands for a GPU end with a message of one line where there is none."""
    _, *arguments = shlex.split(command)
    if arguments[0] in ("generate", "next"):
        fflm("train", "corpora/stories.txt", *QUICK["train"], folder=folder)
    if arguments[0] == "bench":
        arguments += ["--vocabulary", "100", "--seconds", "0"]
    for name, options in QUICK.items():
        arguments += options if name in arguments[:2] else ()
    done = fflm(*arguments, folder=folder)
    if "cuda" in arguments and done.returncode:
        assert "GPU" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert done.stdout


def cells(page: str) -> list[list[str]]:
    """Return the cells of the rows of an index that have five, without the headings."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in found if len(row) == 5 and not re.match("section|讲义|---", row[0])]


def test_index_leads_to_every_row_example_and_section():
    index = cells("docs/lecture-index.md")
    numbers = {
        number
        for row in index
        for first, last in re.findall(r"(\d+)(?:–(\d+))?", row[4])
        for number in range(int(first), int(last or first) + 1)
    }
    assert numbers == {*range(1, LECTURES + 1)}
    assert {name for row in index for name in re.findall(r"examples/(\w+)\.py", row[3])} == {
        path.stem for path in (ROOT / "examples").glob("*.py")
    }
    assert {number for row in index for number in re.findall(r"\d+", row[2])} == {str(number) for number in range(1, 13)}


def test_scripts_of_index_are_in_rows_of_their_section():
    table = rows(PAGES[0])
    for row in cells("docs/lecture-index.md"):
        text = "".join(
            "".join(table[number - 1][3:])
            for first, last in re.findall(r"(\d+)(?:–(\d+))?", row[4])
            for number in range(int(first), int(last or first) + 1)
        )
        assert [name for name in re.findall(r"examples/(\w+)\.py", row[3]) if f"{name}.py" not in text] == [], row


GLOSSARIES = [("docs/glossary.md", "docs/guide.md"), ("docs/glossary.zh.md", "docs/guide.zh.md")]


@pytest.mark.parametrize(("glossary", "guide"), GLOSSARIES)
def test_terms_of_glossary_are_in_their_section_of_the_guide(glossary, guide):
    text = (ROOT / guide).read_text(encoding="utf-8").replace("*", "").lower()
    parts = re.split(r"^## (\d+)\. ", re.sub(r"(?<=\w)\n(?=\w)", " ", text), flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    lines = (ROOT / glossary).read_text(encoding="utf-8").splitlines()
    terms = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if re.search(r"\| \d+ \|$", line)]
    assert len(terms) > 60
    missing = [
        row[0] for row in terms if not any(name in sections[row[-1]] for name in re.split("[,，（）] ?", row[0].lower()) if name)
    ]
    assert missing == []
