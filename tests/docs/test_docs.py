"""Every page of the documentation: links lead to files, named files exist, commands parse, Python compiles."""

import re
import shlex
from pathlib import Path

import click
import pytest
import report
from command import parse

from fflm.cli import main

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in (".", "benchmarks", "corpora", "docs", "examples")
    for path in sorted((ROOT / folder).glob("*.md"))
}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(page, language, code) for page, text in PAGES.items() for language, code in FENCE.findall(text)]
COMMANDS = sorted(
    {
        (page, command.strip())
        for page, language, code in BLOCKS
        if language in ("sh", "console", "")
        for line in re.sub(r"\\\n", " ", code).splitlines()
        if language != "console" or line.startswith("$ ")
        for command in re.findall(r"(?:^(?:\$ )?|(?:&&|\|) )(fflm .*?)(?= &&| \||  #|$)", line)
    }
)
MENTIONED = sorted(
    {
        (page, span.split(" | ")[-1])
        for page, text in PAGES.items()
        for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))
        if span.split(" | ")[-1].startswith("fflm ")
    }
)
INTERNALS = ("CONTRIBUTING.md", "docs/architecture.md", "docs/reading.md")
"""The pages that describe the source."""
OTHERS = {"os.process_cpu_count"}
"""Names of other libraries that these pages mention."""
CODE = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("benchmarks", "fflm", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__)
)


def test_pages_and_commands_are_found():
    assert len(PAGES) > 20
    assert len(COMMANDS) > 50
    assert len(MENTIONED) > 20


@pytest.mark.parametrize("page", PAGES)
def test_links_of_pages_lead_to_files(page):
    targets = re.findall(r"\]\(([^)\s#]+)", FENCE.sub("", PAGES[page]))
    assert [t for t in targets if "://" not in t and not (ROOT / page).parent.joinpath(t).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_pages_exist(page):
    paths = re.findall(r"(?<![\w/.])(?:benchmarks|corpora|docs|examples|fflm|tests)/[\w/.-]*\.\w+", PAGES[page])
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", INTERNALS)
def test_names_in_internal_pages_exist_in_source(page):
    """Names are spans of code that look like `check_ids`, `CpuBackend` or `Trainer.run`."""
    spans = set(re.findall(r"`([A-Za-z_]\w*(?:\.\w+)*)`", FENCE.sub("", PAGES[page]))) - OTHERS
    names = {name for span in spans if re.search(r"_|[a-z][A-Z]|^[A-Z]\w*\.", span) for name in span.split(".")}
    assert names
    assert names - set(re.findall(r"\w+", CODE)) == set()


@pytest.mark.parametrize("page", INTERNALS)
def test_modules_in_internal_pages_exist(page):
    modules = set(re.findall(r"`([\w/]+\.py)`", FENCE.sub("", PAGES[page]))) - {"model.py", "train.py"}  # of every kind of model
    assert [name for name in sorted(modules) if not any((ROOT / part / name).is_file() for part in ("", "fflm"))] == []


def test_layout_in_contributing_lists_every_module():
    """The layout in CONTRIBUTING.md is an indented block, with a line for each module and package directly below fflm/."""
    listed = re.findall(r"^      ([a-z]+(?:\.py|/)) ", PAGES["CONTRIBUTING.md"], re.MULTILINE)
    packages = {path.parent.name + "/" for path in (ROOT / "fflm").glob("*/__init__.py")}
    modules = {path.name for path in (ROOT / "fflm").glob("[!_]*.py")}
    assert {name for name in listed if name not in ("support/", "docs/")} == packages | modules


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_in_code_blocks_parse(page, line, tmp_path, monkeypatch):
    """Commands are parsed in a folder with the files that they name."""
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"[\w/.-]+\.(?:arpa|gz|tsv|txt)\b", line):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    parse(re.split(r" > | < ", line)[0].replace(" ...", ""))


@pytest.mark.parametrize(("page", "line"), MENTIONED)
def test_options_named_in_sentences_exist(page, line):
    command, names = main, shlex.split(line)[1:]
    while isinstance(command, click.Group) and names and re.fullmatch("[a-z]+", names[0]):
        command, names = command.get_command(click.Context(command), names[0]), names[1:]
        assert command is not None
    known = {option for each in command.get_params(click.Context(command)) for option in (*each.opts, *each.secondary_opts)}
    assert {name for name in names if re.fullmatch("--?[a-z].*", name)} <= known


@pytest.mark.parametrize(("page", "code"), [(page, code) for page, language, code in BLOCKS if language == "python"])
def test_python_code_of_pages_compiles(page, code):
    compile(code, page, "exec")


def test_benchmarks_page_equals_recorded_results():
    assert PAGES["docs/benchmarks.md"] == report.page(), "run `python benchmarks/report.py`"


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_each_readme_shows_the_recorded_results(readme):
    assert report.TABLE.search(PAGES[readme])[0] == report.readme_table(readme), "run `python benchmarks/report.py`"


@pytest.mark.parametrize(
    ("page", "results"), [("docs/distributed.md", report.distributed_results), ("docs/filter.md", report.filter_table)]
)
def test_page_shows_the_recorded_results(page, results):
    assert report.TABLE.search(PAGES[page])[0] == results(), "run `python benchmarks/report.py`"
