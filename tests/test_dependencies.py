"""What is imported is declared in pyproject.toml, so that it does not depend on what other packages happen to bring."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FEATURES = {
    "fflm/backend/cuda/*.py": ("cuda12", "cuda13"),
    "fflm/estimators.py": ("learn",),
    "fflm/search/study.py": ("tune",),
    "fflm/plots.py": ("plot",),
}
"""The only files that import what the extras install."""
COMPARED = {"fasttext", "kenlm", "tokenizers", "torch"}
"""Other programs that benchmarks measure beside fflm; whoever runs these benchmarks installs them."""
DISTRIBUTIONS = packages_distributions()
STANDARD = sys.stdlib_module_names | {"compression"}  # which is new in Python 3.14


def names(requirements: Iterable[str]) -> set[str]:
    """Return the normalized names of distributions; those of fflm's extras in place of ``fflm[...]``."""
    found = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()
        found |= names(each for extra in extras.split(",") for each in EXTRAS[extra]) if name == "fflm" else {normalize(name)}
    return found


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(path: Path) -> set[str]:
    """Return the modules outside the standard library that a file imports anywhere, with their packages' first two names."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module)
    return {".".join(name.split(".")[:2]) for name in modules if name.split(".")[0] not in STANDARD}


def undeclared(path: Path, declared: set[str]) -> set[str]:
    """Return the imported modules that none of the declared distributions contains."""

    def distributions(module: str) -> set[str]:  # where none is installed, it is taken to be called like the module
        top = module.split(".")[0]
        return {normalize(name) for name in DISTRIBUTIONS.get(top, [top, module])}

    return {module for module in imported(path) if distributions(module).isdisjoint(declared)}


def test_what_the_package_imports_is_declared() -> None:
    core = names(PROJECT["dependencies"])
    wrong = {}
    for path in sorted((ROOT / "fflm").rglob("*.py")):
        extras = [each for pattern, extras in FEATURES.items() if path.match(pattern) for each in extras]
        for declared in [core | names(EXTRAS[extra]) for extra in extras] or [core]:
            if modules := undeclared(path, declared | {"fflm"}):
                wrong[str(path.relative_to(ROOT))] = modules
    assert wrong == {}


def test_no_dependency_is_declared_in_vain() -> None:
    modules = {module.split(".")[0] for path in (ROOT / "fflm").rglob("*.py") for module in imported(path)}
    used = {normalize(name) for module in modules for name in DISTRIBUTIONS.get(module, [module])}
    assert names(PROJECT["dependencies"]) - used <= {"backports-zstd"}  # which is imported by a name in a table


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples"])
def test_what_everything_else_imports_is_declared(folder: str) -> None:
    declared = names(PROJECT["dependencies"]) | names(EXTRAS["dev-cuda"])
    own = {"fflm"} | {path.stem for each in ("tests", "benchmarks", "examples") for path in (ROOT / each).rglob("*.py")}
    wrong = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        modules = {module for module in undeclared(path, declared) if module.split(".")[0] not in own}
        if folder == "benchmarks":
            modules -= {module for module in modules if module.split(".")[0] in COMPARED}
        if modules:
            wrong[path.name] = modules
    assert wrong == {}
