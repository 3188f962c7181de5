"""The README says what is: its commands exist, and continuous integration runs the very line that it gives for the tests."""

import re
from pathlib import Path

import pytest
from test_cli import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INSTALL, TEST = re.findall(r"```sh\n(.*)\n```", README)[:2]


def test_continuous_integration_runs_the_line_for_the_tests():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert TEST in [line.strip() for line in lines]


@pytest.mark.parametrize(
    "line", [*re.findall(r"^\$ (?:.*\| )?(fflm .*)$", README, re.MULTILINE), *re.findall(r"fflm .*?(?= &&|$)", INSTALL)]
)
def test_every_command_parses(line):
    parse(line)


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_python_examples_compile(code):
    compile(code, "README.md", "exec")
