"""Everything that the code imports is a declared dependency."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN = {"deeplab_lightning", "tests"}


@pytest.mark.long
def test_the_package_imports_declared_dependencies_and_extras_only_on_use() -> None:
    at_import: set[str] = set()
    on_use: set[str] = set()
    for module, is_nested in _imports(ROOT / "deeplab_lightning"):
        (on_use if is_nested else at_import).add(module)
    extras = [requirement for name in EXTRAS if name != "dev" for requirement in EXTRAS[name]]
    assert _undeclared(at_import, PROJECT["dependencies"]) == []
    assert _undeclared(on_use, [*PROJECT["dependencies"], *extras]) == []


@pytest.mark.long
def test_the_tests_import_declared_dependencies() -> None:
    modules = {module for module, _ in _imports(ROOT / "tests")}
    assert _undeclared(modules, [*PROJECT["dependencies"], *EXTRAS["lite"], *EXTRAS["export"], *EXTRAS["dev"]]) == []


def _undeclared(modules: set[str], requirements: list[str]) -> list[str]:
    """Return the modules that belong to none of the distributions."""
    declared = {_normalized(requirement) for requirement in requirements}
    distributions = packages_distributions()
    return sorted(
        module for module in modules if declared.isdisjoint(_normalized(d) for d in distributions.get(module, [module]))
    )


def _normalized(requirement: str) -> str:
    """Return the name of a distribution in the form that package indexes compare."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found.group()).lower()


def _imports(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield the top-level name of each imported module of others, and whether a function imports it."""
    for file in folder.rglob("*.py"):
        tree = ast.parse(file.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        nested = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for top in {name.partition(".")[0] for name in names} - OWN - sys.stdlib_module_names:
                yield top, id(node) in nested
