"""The table of the lectures has every topic, and every script, option, page, section and figure that it names exists."""

import re
from pathlib import Path

import pytest
from command import parse

ROOT = Path(__file__).parents[2]
PAGES = ("docs/lectures.md", "docs/lectures.zh.md")
TOPICS = 146
"""Topics of the five lectures and of the description of the project."""


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
        assert row[4] or "](" in row[3] or re.search("guide|指南|not here|没有", row[3]), row


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
