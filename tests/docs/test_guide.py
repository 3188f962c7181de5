"""The guide and the table of examples agree with the scripts and their output."""

import importlib
import re
from pathlib import Path

import pytest
from command import parse

ROOT = Path(__file__).parents[2]
GUIDE, TABLE = ((ROOT / page).read_text(encoding="utf-8") for page in ("docs/guide.md", "examples/README.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCE.findall(GUIDE)
PROSE = FENCE.sub("", GUIDE)
CONSOLE = "".join(code for language, code in BLOCKS if language == "console")
PYTHON = [code for language, code in BLOCKS if language == "python"]
RUN = re.compile(r"^\$ python examples/(\w+)\.py$", re.MULTILINE)


def test_table_has_every_example_and_guide_keeps_its_order():
    scripts = re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\) \|.*`python examples/\1\.py\b", TABLE, re.MULTILINE)
    assert sorted(scripts) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
    in_the_guide = RUN.findall(CONSOLE)
    assert len(in_the_guide) >= 9
    assert in_the_guide == [script for script in scripts if script in in_the_guide]


def test_figures_of_guide_have_their_command():
    figures = re.findall(r"^!\[.+\]\((figures/\S+)\)\n\n`.* (docs/\S+)`$", GUIDE, re.MULTILINE)
    assert [f"docs/{shown}" for shown, _ in figures] == [made for _, made in figures]
    assert {made for _, made in figures} == {f"docs/figures/{path.name}" for path in (ROOT / "docs" / "figures").iterdir()}


@pytest.mark.parametrize("script", sorted(set(re.findall(r"examples/(\w+)\.py --plot", GUIDE + TABLE))))
def test_scripts_with_plot_command_have_plot_option(script):
    assert '"--plot"' in (ROOT / "examples" / f"{script}.py").read_text(encoding="utf-8")


def test_options_in_table_of_inputs_parse():
    rows = re.findall(r"^\|[^|]*\| `(--[^`]*)` \|", GUIDE, re.MULTILINE)
    assert rows
    for options in rows:
        parse(f"fflm classify train texts.tsv {options.replace('pronouns.txt', 'docs/guide.md')}")


@pytest.mark.parametrize("script", ["unit", "activations", "network_drawing", "computation_graph"])
def test_excerpts_equal_output_of_scripts(script, capsys):
    (excerpt,) = re.findall(rf"```console\n\$ python examples/{script}\.py\n(.*?)```", GUIDE, re.DOTALL)
    module = importlib.import_module(script)
    module.main() if script == "unit" else module.main([])
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in excerpt.splitlines() if line not in {"...", *printed}] == []


def test_classification_texts_of_guide(tmp_path, monkeypatch):
    """Both versions of a sentence are in the same part, with the same words; nothing but the order distinguishes them."""
    (code,) = (code for code in PYTHON if "corpora/stories.txt" in code)
    (tmp_path / "corpora").symlink_to(ROOT / "corpora", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "guide.md", "exec"), {})
    seen = []
    for part in ("train", "valid", "test"):
        rows = [line.split("\t") for line in Path(f"order-{part}.tsv").read_text(encoding="utf-8").splitlines()]
        assert [label for label, _ in rows] == ["written", "shuffled"] * (len(rows) // 2)
        for (_, written), (_, shuffled) in zip(rows[::2], rows[1::2], strict=True):
            assert sorted(written.split()) == sorted(shuffled.split())
            assert re.fullmatch(r"[a-z' ]+", written)
        labels = [line.split("\t")[0] for line in Path(f"speech-{part}.tsv").read_text(encoding="utf-8").splitlines()]
        assert 2 * len(labels) == len(rows)
        assert set(labels) == {"speech", "telling"}
        seen.append(len(rows))
    train, _, test = (f"{rows:,} texts" for rows in seen)
    assert f"train: {train}" in GUIDE
    assert f"over {test}" in GUIDE


def test_formulas_of_guide_render():
    """Markdown drops a backslash before punctuation, and an underscore after punctuation may start italics."""
    text = re.sub(r"`[^`]*`", "", PROSE)
    formulas = [display or inline for display, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", text)]
    assert formulas
    assert text.count("$") == 2 * len(formulas) + 2 * len(re.findall(r"\$\$.+?\$\$", text))
    assert [formula for formula in formulas if re.search(r"\\[^A-Za-z]|[^\w\s]_\w|[*<>|]", formula)] == []
