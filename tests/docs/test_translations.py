"""The Chinese README and guide have the same headings, paragraphs, code, formulas, figures and links as the English ones.

The pages are compared section by section. Only words may differ, so a test fails if a figure, a command or a link is changed in
one language only.
"""

import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("guide", "lectures", "lecture-index", "glossary", "notation", "answers")
PAIRS = {page: page.replace(".md", ".zh.md") for page in ("README.md", *(f"docs/{name}.md" for name in NAMES))}
HEADING = re.compile(r"^(#+) ", re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE_COMMENT = re.compile(r"(?:^|  )# .*", re.MULTILINE)
HTML_COMMENT = re.compile(r"<!--.*?-->\n?")
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$")
SPAN = re.compile(r"`[^`\n]+`")
TARGET = re.compile(r"(?<=\]\()[^)\s]+")
NUMBER = re.compile(r"(-?\d+(?:,\d{3})*(?:\.\d+)?)(%| million| 万| 亿)?")
UNITS = {"": 1, "%": Decimal("0.01"), " million": 10**6, " 万": 10**4, " 亿": 10**8}


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def sections(page: str, text: str) -> list[str]:
    """Return the text of each section of a page, without the line that links to the other language."""
    names = {Path(name).name for name in (page, PAIRS[page])}
    lines = [line for line in text.splitlines() if " | " not in line or not set(TARGET.findall(line)) & names]
    text = "\n".join(lines) + "\n"
    code = [match.span() for match in FENCE.finditer(text)]
    starts = [match.start() for match in HEADING.finditer(text) if not any(a < match.start() < b for a, b in code)]
    return [text[start:stop] for start, stop in zip(starts, [*starts[1:], len(text)], strict=True)]


def prose(section: str) -> str:
    return HTML_COMMENT.sub("", FENCE.sub("", section))


def level(section: str) -> str:
    return HEADING.match(section)[1]


def paragraphs(section: str) -> Counter[str]:
    """Count paragraphs, list items, rows of tables, and images."""
    lines = re.sub(r"\n(?![\n|!-])", " ", prose(section)).splitlines()
    return Counter(line[0] if line[0] in "|!-" else "" for line in lines if line)


def code(section: str) -> list[tuple[str, str]]:
    """Return the blocks of code without comments, because these are translated."""
    return [(language, CODE_COMMENT.sub("", block)) for language, block in FENCE.findall(section)]


def spans(section: str) -> Counter[str]:
    return Counter(SPAN.findall(FORMULA.sub("", prose(section))))


def formulas(section: str) -> Counter[str]:
    """Count the formulas, without the words in them."""
    return Counter(re.sub(r"\\text\{[^}]*\}|\s", "", formula) for formula in FORMULA.findall(SPAN.sub("", prose(section))))


def links(section: str) -> Counter[str]:
    """Count the targets of links and images; a target may be a page in the same language."""
    return Counter(target.replace(".zh.md", ".md") for target in TARGET.findall(prose(section)))


def figures(section: str) -> Counter[Decimal]:
    """Count the numbers in sentences and tables; 100 million is 1 亿."""
    text = TARGET.sub("", SPAN.sub("", FORMULA.sub("", prose(section))))
    return Counter(Decimal(number.replace(",", "")) * UNITS[unit] for number, unit in NUMBER.findall(text))


@pytest.mark.parametrize("page", PAIRS)
@pytest.mark.parametrize("part", [level, paragraphs, code, spans, formulas, links, figures])
def test_chinese_page_has_same_parts_as_english(part: Callable[[str], Any], page: str):
    english, chinese = ([part(section) for section in sections(page, read(name))] for name in (page, PAIRS[page]))
    assert len(english) > 5
    assert chinese == english


@pytest.mark.parametrize(
    ("part", "old", "new"),
    [
        (level, "\n## 安装", "\n### 安装"),
        (paragraphs, "\n- **规模**：", "\n"),
        (code, "$ fflm next", "$ fflm score"),
        (spans, "`kill -9`", "`kill`"),
        (links, "](docs/api.md)", "](docs/commands.md)"),
        (figures, "| 164.7 |", "| 99.9 |"),
        (figures, "低 50%", "低 24%"),
        (figures, "1 亿", "1 万"),
    ],
)
def test_difference_between_languages_is_detected(part: Callable[[str], Any], old: str, new: str):
    page, text = "README.md", read("README.zh.md")
    assert text.count(old) == 1
    same, changed = ([part(section) for section in sections(page, each)] for each in (text, text.replace(old, new)))
    assert changed != same


@pytest.mark.parametrize("page", PAIRS)
def test_pages_link_to_other_language(page: str):
    for own, other in (page, PAIRS[page]), (PAIRS[page], page):
        assert f"]({Path(other).name})" in read(own).splitlines()[2]


@pytest.mark.parametrize("page", PAIRS)
def test_chinese_pages_link_to_chinese_pages(page: str):
    folder = (ROOT / page).parent
    targets = TARGET.findall("".join(sections(page, read(PAIRS[page]))))
    assert [target for target in targets if (folder / target).with_suffix(".zh.md").exists()] == []


@pytest.mark.parametrize("page", PAIRS.values())
def test_markup_beside_chinese_characters_is_valid(page: str):
    """GitHub needs a space before a formula, and CommonMark does not close ``**...：**`` before a Han character."""
    text = SPAN.sub("x", FENCE.sub("", read(page)))
    around = [(text[found.start() - 1], text[found.end()]) for found in FORMULA.finditer(text)]
    assert [(before, after) for before, after in around if not before.isspace() or after.isalnum()] == []
    emphasized = [words for _, words in re.findall(r"(\*\*?)([^*\n]+)\1", FORMULA.sub("", text))]
    assert emphasized
    assert [words for words in emphasized if not re.fullmatch(r"\w(?:.*\w)?", words)] == []
