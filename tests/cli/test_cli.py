"""The command line: help, imports, errors, output, tables and completion, and the commands that only report."""

import contextlib
import html
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from click.testing import CliRunner
from command import FFLM, PERPLEXITY, SMALL, STORIES, fflm, installed_fflm, parse
from rich.cells import cell_len

from fflm.cli import COMMANDS, main
from fflm.cli.report import message_console
from fflm.cli.tables import Column, LiveTable, table
from fflm.errors import install
from fflm.text import catalogue

try:
    import pty
except ImportError:  # this system is not Unix
    pty = None

CONDITIONS = (
    r"train: [\d,]+ tokens, OOV rate \d+\.\d\d%, [\d,]+ characters",
    r"valid: [\d,]+ tokens, OOV rate \d+\.\d\d%, [\d,]+ characters",
    r"vocabulary: [\d,]+ \(words seen at least 2 times in train\)",
    r"line ends: predicted as </s>, contexts may cross lines",
)
"""The evaluation conditions that are printed once beside a table of perplexities."""


def commands(path=(), command=main):
    """Yield every command and group with the words by which it is called."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands((*path, name), command.get_command(context, name))


def invoke(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), prog_name="fflm")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Make a folder with a finished model and an unfinished one without weights."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    options = ("text.txt", *SMALL, "--epochs", 3, "--test", "10%")
    done = fflm("train", *options, folder=folder)
    assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "text.model", folder / "part.model")
    (folder / "part.model" / "model.safetensors").unlink()
    log = (folder / "part.model" / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "part.model" / "log.jsonl").write_text(log[0])
    return folder


# Help and imports.


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=lambda path: " ".join(("fflm", *path)))
def test_every_command_has_help_with_example(path):
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Example:\n(.*\n)*? .*{' '.join(('fflm', *path))}", result.stdout)
    assert result.stderr == ""


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=lambda path: " ".join(("fflm", *path)))
def test_every_option_has_help(path):
    command = dict(commands())[path]
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert [param.name for param in options if not param.help] == []


def test_help_lists_every_command_module():
    listed = re.findall(r"^  (\w+) +(\S.*)$", invoke("--help").stdout.split("Commands:\n")[1], re.MULTILINE)
    assert dict(listed) == COMMANDS
    folder = Path(importlib.import_module("fflm.cli").__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {
        "__init__",
        "options",
        "loading",
        "report",
        "signals",
        "tables",
        "progress",
    } == set(COMMANDS)


def examples():
    """Yield every command line in the help texts."""
    for _, command in commands():
        for line in re.findall(r"(?<![`\w])fflm (?!-)[^|)>\n]+", command.help.split("Example:")[1]):
            yield line.strip().strip("`")


@pytest.mark.parametrize("line", sorted(set(examples())))
def test_every_example_in_help_parses(line):
    parse(line)


@pytest.mark.parametrize("entry", catalogue.entries().values(), ids=lambda entry: entry.name)
def test_train_commands_of_catalogue_parse(entry):
    context = parse(entry.train.format(folder="data"))
    assert context.command is main.get_command(context, "train")
    assert context.params["inputs"]


def imported_modules(*lines, folder="."):
    """Run the command lines in one new process; return the modules that it has imported."""
    program = f"""
import shlex, sys
from fflm.cli import main
for line in {lines!r}:
    try:
        main(shlex.split(line))
    except SystemExit as error:
        assert not error.code, line
print(*sys.modules, file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert result.stdout
    return set(result.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_no_large_packages(option):
    loaded = imported_modules(option)
    assert "click" in loaded
    assert loaded.isdisjoint({"numba", "numpy", "scipy", "rich", "regex", "safetensors", "matplotlib", "requests"})


def test_help_of_commands_does_not_import_numpy_or_numba():
    loaded = imported_modules(*(shlex.join((*path, "--help")) for path, _ in commands()))
    assert "fflm.network.config" in loaded
    assert loaded.isdisjoint({"numpy", "numba", "scipy", "rich", "safetensors", "matplotlib", "requests", "optuna"})


def test_inspecting_a_model_does_not_import_numba(models):
    lines = (
        "info text.model",
        "info part.model",
        "neighbours -m text.model the",
        "vectors -m text.model",
        "analogy -m text.model the the the",
        "tokenize text.txt -o ids --overwrite --json",
    )
    loaded = imported_modules(*lines, folder=models)
    assert "safetensors" in loaded
    assert loaded.isdisjoint({"numba", "scipy"})


def test_next_imports_only_what_it_needs(models):
    loaded = imported_modules("next -m text.model", folder=models)
    assert "numba" in loaded
    assert loaded.isdisjoint(
        {"scipy.linalg", "numpy.f2py", "rich", "matplotlib", "fflm.models.ngram.model", "fflm.models.mixture.model"}
    )


def test_ctrl_c_during_imports_ends_with_message():
    program = """
import signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "click":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
from fflm.cli import main
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize("launcher", [(str(Path(__file__).parents[2] / "cli.py"),), ("-m", "fflm")])
def test_launchers_equal_installed_command(launcher):
    result = subprocess.run([sys.executable, *launcher, "train", "--help"], capture_output=True, text=True, check=True)
    assert result.stdout == installed_fflm("train", "--help", folder=".").stdout
    assert result.stdout.startswith("Usage: fflm train ")


# Errors.


@pytest.mark.parametrize(
    "line",
    [
        "trian x",
        "--verbose",
        "train --epoch 3 --nonsense",
        "train --rate fast x",
        "train --epochs 1.5 x",
        "train",
        "train --resume x.model y.txt",
        "train --resume x.model --vocabulary words.txt",
        "corpus fetch",
        "corpus get",
        "completion tcsh",
        "tokenize x.txt",
    ],
)
def test_usage_error_is_one_line(line):
    result = fflm(*line.split(), folder=".")
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(r"error: .* \(`fflm( \w+)* --help` shows the usage\)\n", result.stderr)
    assert " range" not in result.stderr


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("tran x", "Did you mean 'train'?"),
        ("neighbors cat", "Did you mean 'neighbours'?"),
        ("clasify train x", "Did you mean 'classify'?"),
        ("corpus gte brown", "Did you mean 'get'?"),
        ("classify predcit", "Did you mean 'predict'?"),
        ("ngram exprot", "Did you mean 'export'?"),
        ("train x --epoch 3", "'--epochs'"),
        ("train x --activation rleu", "did you mean 'relu'?"),
        ("train x --hidden 4,4 --activation relu,tnah", "did you mean 'tanh'?"),
        ("train x --optimizer adm", "did you mean 'adam'?"),
        ("classify train x --schedule cosin", "did you mean 'cosine'?"),
        ("train x --device gpu", "did you mean 'cuda'?"),
        ("train x --device cuda:one", "did you mean 'cuda:1'?"),
        ("score --by words", "did you mean 'word'?"),
        ("completion bsh", "did you mean 'bash'?"),
        ("tune x --search activation=tahn|relu", "did you mean 'tanh'?"),
        ("tune x --search drop_out=0..1", "did you mean 'dropout'?"),
        ("corpus get wikitext2", "did you mean 'wikitext-2'?"),
    ],
)
def test_misspelled_name_gets_suggestion(line, meant):
    result = invoke(*line.split())
    assert (result.exit_code in (1, 2), result.stdout, result.stderr.count("\n")) == (True, "", 1)
    assert meant in result.stderr


def test_unrelated_name_gets_no_suggestion():
    for line in ("xyzzy", "train x --loss hinge", "corpus get novels"):
        assert "id you mean" not in invoke(*line.split()).stderr


def test_install_command_names_extras_of_pyproject():
    """The command installs from a checkout, because fflm is on no package index; its extras are in pyproject.toml."""
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = set()
    for source in [*(root / "fflm").rglob("*.py"), *root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("examples/*.md")]:
        text = source.read_text(encoding="utf-8")
        assert "fflm[" not in text, source
        named |= set(re.findall(r"install\(['\"](\w+)['\"]\)", text)) | set(re.findall(r"'\.\[(\w+)\]'", text))
    assert {"cuda13", "learn", "plot", "tune"} <= named <= set(extras)
    assert install("plot") == "`pip install '.[plot]'` in a checkout of fflm"


def test_error_names_option_as_typed():
    assert "--vocabulary " in invoke("train", "--resume", "x.model", "--vocabulary", "words.txt").stderr


def test_command_without_arguments_prints_help():
    for arguments in ((), ("corpus",)):
        result = fflm(*arguments, folder=".")
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("Usage: fflm")


def test_closed_pipe_is_not_an_error():
    result = subprocess.run(f"{FFLM} corpus list --json | head -c 1", shell=True, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_output_device_is_one_line_error():
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        result = subprocess.run([FFLM, "corpus", "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "error: standard output: No space left on device\n")


# Output.


def test_train_help_groups_every_option():
    text = invoke("train", "--help").stdout
    assert re.findall(r"^(\w+):$", text, re.MULTILINE) == ["Options", "Network", "Training", "Text", "Messages"]
    options = [param for param in dict(commands())["train",].params if isinstance(param, click.Option)]
    assert [param.opts[-1] for param in options if param.opts[-1] not in text] == []


def test_train_prints_results_to_stdout_and_progress_to_stderr(models):
    result = fflm("train", "text.txt", *SMALL, "--epochs", 1, "-o", "own.model", folder=models)
    assert re.fullmatch(rf"model own.model, from epoch 1\nvalid {PERPLEXITY}\n", result.stdout)
    assert re.search(r"^epoch +step +train perplexity .*\n    1 +\d+ .* \*", result.stderr, re.MULTILINE)
    for line in CONDITIONS:
        assert re.search(f"^{line}$", result.stderr, re.MULTILINE)
    assert max(map(len, result.stderr.splitlines())) < 80
    assert "\n\n" not in result.stderr
    result = fflm("train", "text.txt", *SMALL, "--epochs", 1, "-o", "own.model", "--overwrite", "-q", "--json", folder=models)
    assert result.stderr == ""
    figures = json.loads(result.stdout)
    assert figures["model"] == "own.model"
    resumed = fflm("train", "--resume", "own.model", "--epochs", 2, folder=models)
    for line in CONDITIONS:
        assert re.search(f"^{line}$", resumed.stderr, re.MULTILINE)
    shutil.rmtree(models / "own.model")


def test_rows_between_evaluations_have_steps_of_their_own(models, monkeypatch):
    """An evaluation is followed by the next step, although rows for steps are due all the time."""
    monkeypatch.setattr("fflm.cli.progress.LOG_SECONDS", -1.0)
    result = fflm("train", "text.txt", *SMALL, "--epochs", 2, "-o", "rows.model", folder=models)
    rows = re.findall(r"^ +[\d.]+ +(\d+) +[\d.]+ +([\d.]+|-) .*$", result.stderr, re.MULTILINE)
    steps = [int(step) for step, _ in rows]
    assert steps == sorted(steps)
    assert [perplexity != "-" for _, perplexity in rows].count(True) == 2
    after = [
        following for (step, perplexity), (following, _) in itertools.pairwise(rows) if perplexity != "-" and step == following
    ]
    assert after == []
    assert result.stderr.splitlines()[-1].startswith("done: ")
    shutil.rmtree(models / "rows.model")


@pytest.mark.slow
def test_score_fields_have_same_names_in_all_commands(models):
    scored = json.loads(fflm("score", "-m", "text.model", "--json", "text.txt", folder=models).stdout)
    trained = json.loads(fflm("train", "--resume", "text.model", "-q", "--json", folder=models).stdout)
    about = json.loads(fflm("info", "text.model", "--json", folder=models).stdout)
    *lines, last = fflm(
        "score", "-m", "text.model", "--by", "sentence", "--json", folder=models, input="the\n"
    ).stdout.splitlines()
    hypothesis = json.loads(fflm("score", "-m", "text.model", "--nbest", "plain", "--json", folder=models, input="the\n").stdout)
    assert trained["test"] == about["figures"]["test"]
    assert trained["valid"] == about["figures"]["valid"] == about["history"][-1]["valid"]
    assert scored.pop("model") == "text.model"
    names = list(scored)
    assert {"perplexity", "vocabulary", "rule", "unknown_share", "policy", "tokens", "bits_per_character"} < set(names)
    assert list(trained["valid"]) == list(trained["test"]) == list(json.loads(last))[1:] == names
    assert [list(json.loads(line)) for line in lines] == [["line", "text", *names]]
    assert list(hypothesis) == ["text", *names]


def test_tokenize_json_output(models):
    result = fflm("tokenize", "text.txt", "-o", "text.ids", "--json", "--overwrite", folder=models)
    about = json.loads(result.stdout)
    assert about["parts"].keys() == {"train", "valid"}
    assert about["vocabulary"]["size"] > 50


def test_info_output(models):
    result = fflm("info", "text.model", folder=models)
    assert (result.returncode, result.stderr) == (0, "")
    for line in (
        r"finished: all 3 epochs done",
        r"  embedding +6",
        r"parameters: [\d,]+",
        r"  hidden\.0\.weight +8 x 18 +144",
        r"  tokenizer +word",
        *CONDITIONS,
        r"  optimizer +adamw",
        r"      3 .*\d",
        rf"  valid {PERPLEXITY}$",
        rf"  test  {PERPLEXITY}$",
        r"  numba +\d.*",
    ):
        assert re.search(f"^{line}", result.stdout, re.MULTILINE), line
    assert fflm("info", folder=models).stdout == result.stdout  # without a name it is the latest model with weights


def test_info_json_output(models):
    about = json.loads(fflm("info", "text.model", "--json", folder=models).stdout)
    assert [event["epoch"] for event in about["history"]] == [1, 2, 3]
    arrays = about["parameters"]["arrays"].values()
    assert about["parameters"]["count"] == sum(rows * (columns[0] if columns else 1) for rows, *columns in arrays)
    assert about["parameters"]["bytes"]["model.safetensors"] == (models / "text.model" / "model.safetensors").stat().st_size
    assert about["figures"]["test"]["perplexity"] > 1
    assert about["training"]["epochs"] == 3


def test_info_of_model_without_weights(models):
    result = fflm("info", "part.model", folder=models)
    assert result.returncode == 0
    assert "unfinished: resume with `fflm train --resume part.model`" in result.stdout
    assert "no weights to use" in result.stdout
    assert json.loads(fflm("info", "part.model", "--json", folder=models).stdout)["figures"] is None


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_plot_writes_each_format(models, ending):
    pytest.importorskip("matplotlib")
    result = fflm("plot", "text.model", "-o", f"curves.{ending}", folder=models)
    assert (result.returncode, result.stdout) == (0, f"curves.{ending}\n"), result.stderr
    content = (models / f"curves.{ending}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])


def test_plot_of_several_models_labels_everything(models):
    pytest.importorskip("matplotlib")
    shutil.copytree(models / "text.model", models / "copy.model", dirs_exist_ok=True)
    result = fflm("plot", "text.model", "copy.model", "-o", "both.svg", "--json", folder=models)
    assert json.loads(result.stdout) == {"plot": "both.svg", "models": ["text.model", "copy.model"]}
    ElementTree.parse(models / "both.svg")
    svg = (models / "both.svg").read_text()
    words = re.findall(r"<!-- (.*?) -->", html.unescape(svg))  # matplotlib draws texts as shapes, and writes them in comments
    for text in (
        "perplexity (log scale)",
        "learning rate",
        "tokens trained on",
        "training",
        "validation",
    ):
        assert text in words
    assert any(re.match(r"copy.model, best: [\d.]+, [\d.]+ bits per character, after ", word) for word in words)
    for line in CONDITIONS:  # both models have the same conditions, which are written once
        assert len(re.findall(line, " ".join(words))) == 1
    shutil.rmtree(models / "copy.model")


def test_plot_refuses_invalid_arguments(models):
    pytest.importorskip("matplotlib")
    for arguments, reason in (
        (["part.model", "-o", "part.png"], "has not been evaluated yet"),
        (["text.model", "-o", "curves.gif"], "ends in .png, .svg or .pdf"),
        (["text.model", "-o", "nowhere/curves.png"], "No such file or directory"),
        (["nothing.model", "-o", "nothing.png"], "is not a model"),
    ):
        result = fflm("plot", *arguments, folder=models)
        assert result.returncode == 1
        assert re.fullmatch(r"error: .*\n", result.stderr)
        assert reason in result.stderr


def test_plot_replaces_existing_file_only_with_overwrite(models):
    pytest.importorskip("matplotlib")
    (models / "old.svg").write_text("old")
    result = fflm("plot", "text.model", "-o", "old.svg", folder=models)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: old.svg exists: choose another file, or replace it with --overwrite\n"
    assert (models / "old.svg").read_text() == "old"
    assert fflm("plot", "text.model", "-o", "old.svg", "--overwrite", folder=models).returncode == 0
    assert (models / "old.svg").read_text().startswith("<?xml")


def test_plot_without_matplotlib_names_install_command(models):
    program = (
        "import sys; sys.modules['matplotlib'] = None; from fflm.cli import main; main(['plot', 'text.model', '-o', 'none.png'])"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=models, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "error: plots need matplotlib: run `pip install '.[plot]'` in a checkout of fflm\n"


# Tables.


def test_table_written_to_pipe_ignores_terminal_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    narrow = invoke("corpus", "list").stdout
    monkeypatch.delenv("COLUMNS")
    assert invoke("corpus", "list").stdout == narrow
    assert len(narrow.splitlines()) == 1 + len(catalogue.entries())


@pytest.mark.skipif(pty is None, reason="needs a terminal")
def test_table_fits_terminal():
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": "60"}
    with subprocess.Popen([FFLM, "corpus", "list"], stdout=child, env=environment) as process:
        os.close(child)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal's output is an OSError
            while piece := os.read(parent, 65536):
                shown += piece
    os.close(parent)
    assert process.returncode == 0
    lines = shown.decode().splitlines()
    assert len(lines) > 1 + len(catalogue.entries())
    assert max(map(len, lines)) <= 60


ROWS = [["1", "12,345", "1,029.53", "*", "0.003", "a name"], ["10", "123,450", "9.5", "", "1e-05", "动物与植物"]]
HEADINGS = ["epoch", "step", "valid perplexity", "", "rate", "name or text"]


def test_table_columns_fit_cells():
    lines = table("rrrrrl", HEADINGS, ROWS, None)
    assert lines == table("rrrrrl", HEADINGS, ROWS, 200)
    assert lines == [
        "epoch     step  valid perplexity      rate  name or text",
        "    1   12,345          1,029.53  *  0.003  a name",
        "   10  123,450               9.5     1e-05  动物与植物",
    ]


def test_narrow_table_wraps_headings_and_texts_but_not_numbers():
    assert table("rrrrrl", HEADINGS, ROWS, 46) == [
        "                                 name",
        "                   valid         or",
        "epoch    step perplexity    rate text",
        "    1  12,345   1,029.53 * 0.003 a name",
        "   10 123,450        9.5   1e-05 动物与植物",
    ]
    for width in range(1, 60):
        lines = table("rrrrrl", HEADINGS, ROWS, width)
        assert all(number in "\n".join(lines) for number in ("1,029.53", "123,450", "1e-05"))
    long = [["a long name that has many words", "1"], ["另一个很长很长很长的名字", "2"]]
    lines = table("lr", ["", "n"], long, 20, indent="  ")
    assert max(map(cell_len, lines)) <= 20
    assert "".join(lines).count("字") == 1


def test_markup_in_names_is_printed_literally():
    assert table("lr", ["[b]", ""], [["[red]x[/red] :cat:", "1"]], None)[1] == "[red]x[/red] :cat:  1"
    console = message_console(quiet=False)
    with console.capture() as capture:
        console.print("classes: [spam], :cat:")
    assert capture.get() == "classes: [spam], :cat:\n"


def test_live_table_omits_optional_columns_that_do_not_fit():
    columns = [
        Column("step", 6),
        Column("perplexity"),
        Column("bits", 5, optional=True),
        Column("", 1),
        Column("rate", 7, optional=True),
    ]
    cells = ["10", "59.19", "1.299", "*", "0.003"]
    assert LiveTable(columns, None).head == "  step perplexity  bits      rate"
    assert LiveTable(columns, 33).row(cells) == "    10      59.19 1.299 *   0.003"
    assert LiveTable(columns, 32).row(cells) == "    10      59.19 1.299 *"
    assert LiveTable(columns, 20).row(cells) == "    10      59.19 *"
    assert LiveTable(columns, 5).row(cells) == "    10      59.19 *"


# Completion.


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_command_prints_script(shell):
    result = fflm("completion", shell, folder=".")
    assert result.returncode == 0
    assert f"_FFLM_COMPLETE={shell}_complete" in result.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [("tr", ["train"]), ("train --opti", ["--optimizer"]), ("train --optimizer ada", ["adagrad", "adam", "adamw"])],
)
def test_bash_completion(typed, offered):
    words = ["fflm", *typed.split()]
    script = f"""
source <("{FFLM}" completion bash)
COMP_WORDS=({" ".join(words)})
COMP_CWORD={len(words) - 1}
_fflm_completion "{FFLM}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=dict(os.environ), check=True)
    assert result.stdout.split() == offered
    assert result.stderr == ""
