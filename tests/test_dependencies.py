"""Imported packages are declared in pyproject.toml, so that none is installed only because another package needs it."""

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
    "fflm/backend/cuda/communication.py": ("nccl12", "nccl13"),
    "fflm/backend/cuda/*.py": ("cuda12", "cuda13"),
    "fflm/estimators.py": ("learn",),
    "fflm/search/study.py": ("tune",),
    "fflm/drawing.py": ("plot",),
    "fflm/parallel/mpi.py": ("mpi",),
    "fflm/plots.py": ("plot",),
    "fflm/filtering/parquet.py": ("filter",),
    "fflm/filtering/sources.py": ("filter",),
    "fflm/text/chinese.py": ("chinese",),
    "fflm/text/subwords.py": ("subwords",),
}
"""The only files that import packages of extras. The first pattern that a file matches holds."""
ENGINES = {"data_juicer", "dask", "datasets", "datatrove", "nemo_curator", "pandas", "pyspark", "ray"}
"""Packages of the engines for which `fflm.integrations` has filters, whose users have installed them."""
COMPARED = {"fasttext", "kenlm", "jax", "torch"}
"""Packages that benchmarks compare with fflm, and that have to be installed by hand."""
NOT_INSTALLED = {"nccl": ["nccl4py"]}
"""Distributions with other names than their modules, which need not be installed."""
DISTRIBUTIONS = packages_distributions()
STANDARD = sys.stdlib_module_names | {"compression"}  # this module is new in Python 3.14


def declared_names(requirements: Iterable[str]) -> set[str]:
    """Return the normalized names of required distributions; ``fflm[...]`` stands for those of its extras."""
    found = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()
        found |= (
            declared_names(each for extra in extras.split(",") for each in EXTRAS[extra]) if name == "fflm" else {normalize(name)}
        )
    return found


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_modules(path: Path) -> set[str]:
    """Return the first two parts of the names of modules that a file imports, without those of the standard library."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module)
    return {".".join(name.split(".")[:2]) for name in modules if name.split(".")[0] not in STANDARD}


def undeclared(path: Path, declared: set[str]) -> set[str]:
    """Return the modules imported by a file that are in none of the declared distributions."""

    def distributions(module: str) -> set[str]:  # a distribution that is not installed is assumed to have the module's name
        top = module.split(".")[0]
        return {normalize(name) for name in DISTRIBUTIONS.get(top, NOT_INSTALLED.get(top, [top, module]))}

    return {module for module in imported_modules(path) if distributions(module).isdisjoint(declared)}


def test_imports_of_package_are_declared() -> None:
    core = declared_names(PROJECT["dependencies"])
    wrong = {}
    for path in sorted((ROOT / "fflm").rglob("*.py")):
        extras = next((extras for pattern, extras in FEATURES.items() if path.match(pattern)), ())
        engines = ENGINES if path.parent.name == "integrations" else set()
        for declared in [core | declared_names(EXTRAS[extra]) for extra in extras] or [core]:
            if modules := {each for each in undeclared(path, declared | {"fflm"}) if each.split(".")[0] not in engines}:
                wrong[str(path.relative_to(ROOT))] = modules
    assert wrong == {}


def test_declared_dependencies_are_imported() -> None:
    modules = {module.split(".")[0] for path in (ROOT / "fflm").rglob("*.py") for module in imported_modules(path)}
    used = {normalize(name) for module in modules for name in DISTRIBUTIONS.get(module, [module])}
    assert declared_names(PROJECT["dependencies"]) - used <= {"backports-zstd"}  # its module is imported by a name in a table


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples"])
def test_imports_of_tests_benchmarks_and_examples_are_declared(folder: str) -> None:
    declared = declared_names(PROJECT["dependencies"]) | declared_names(EXTRAS["dev-cuda"])
    own = {"fflm"} | {path.stem for each in ("tests", "benchmarks", "examples") for path in (ROOT / each).rglob("*.py")}
    wrong = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        modules = {module for module in undeclared(path, declared) if module.split(".")[0] not in own}
        compared = COMPARED | ENGINES if folder == "benchmarks" else ENGINES if path.parent.name == "integrations" else set()
        modules -= {module for module in modules if module.split(".")[0] in compared}
        if modules:
            wrong[path.name] = modules
    assert wrong == {}
