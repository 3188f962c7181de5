"""The README is short, its commands and Python code run, and CI runs the command that it gives for the tests."""

import re
import shlex
from pathlib import Path

from click.testing import CliRunner
from command import STORIES

from fflm.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [(language, code.replace("\\\n", "")) for language, code in re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)]
INSTALL, TEST = (code.strip() for language, code in BLOCKS if language == "sh")


def test_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


def test_ci_runs_test_command_of_readme():
    """The functions ``prepare`` and ``tests`` run it, with uv in the place of pip, which installs the same in less time."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    bodies = dict(re.findall(r"^(\w+)\(\) \{\n(.*?)\n\}$", script, re.MULTILINE | re.DOTALL))
    command = " && ".join(bodies[name].strip() for name in ("prepare", "tests"))
    assert re.sub(r"pip install -q --no-compile uv==[\d.]+ && uv (?=pip install )", "", command) == TEST


def test_commands_and_python_of_readme_run(tmp_path, monkeypatch):
    """The demonstration at the top runs by itself, then the rest in the order of the page, on the beginning of the stories."""
    done: list[str] = []
    for name, blocks in (("demonstration", BLOCKS[:1]), ("rest", BLOCKS[1:])):
        (tmp_path / name / "corpora").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        Path("corpora/stories.txt").write_text(STORIES, encoding="utf-8")
        run_blocks(blocks, done)
    assert len(done) > 5


def run_blocks(blocks: list[tuple[str, str]], done: list[str]) -> None:
    """Run the commands and Python code of blocks in the current folder, in order, and add the commands to ``done``."""
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "README.md", "exec"), {})
            continue
        lines = [line[2:] for line in code.splitlines() if line.startswith("$ ")] if language == "console" else code.split(" && ")
        for line in lines:
            *echo, command = line.strip().split(" | ")
            if not command.startswith("fflm "):
                continue
            text = shlex.split(echo[0])[1] + "\n" if echo else None
            result = CliRunner().invoke(main, shlex.split(command)[1:], input=text)
            assert result.exit_code == 0, (command, result.output)
            done.append(command)
