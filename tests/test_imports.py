"""The scripts of benchmarks/, examples/ and tests/ have no circular imports; `lint-imports` checks the package itself."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "examples", "tests")


def imports_between(folders: list[Path]) -> dict[str, set[str]]:
    """Return for each module of the folders the other modules that it imports, also within functions."""
    paths = {path.stem: path for folder in folders for path in folder.rglob("*.py")}
    found = {}
    for name, path in paths.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        found[name] = {module.split(".")[-1] for module in modules if not module.startswith("fflm")} & paths.keys()
    return found


def test_scripts_and_tests_have_no_circular_imports():
    TopologicalSorter(imports_between([ROOT / folder for folder in FOLDERS])).prepare()


def test_circular_import_is_detected(tmp_path):
    (tmp_path / "one.py").write_text("import two\n")
    (tmp_path / "two.py").write_text("def later():\n    from one import name\n")
    with pytest.raises(CycleError):
        TopologicalSorter(imports_between([tmp_path])).prepare()
