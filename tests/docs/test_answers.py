"""The programs on the page of answers print what the page says, and every exercise of the guide has an answer."""

import re
from pathlib import Path

import pytest

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
