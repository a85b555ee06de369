"""Three packages export the public names, and import the modules behind them on first use."""

import ast
import inspect
import subprocess
import sys
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("deeplab_lightning", "deeplab_lightning.data", "deeplab_lightning.models")
VERBS = {  # that a description may start with; add the verb of a new name
    *(
        "Apply",
        "Assign",
        "Augment",
        "Average",
        "Blend",
        "Build",
        "Change",
        "Collect",
        "Colour",
        "Combine",
        "Compare",
        "Compute",
    ),
    *("Concatenate", "Count", "Describe", "Draw", "Evaluate", "Extract", "Find", "Group", "Hold", "Load", "Measure"),
    *(
        "Paste",
        "Provide",
        "Read",
        "Refine",
        "Remove",
        "Replace",
        "Resize",
        "Run",
        "Scan",
        "Segment",
        "Sum",
        "Train",
        "Transform",
        "Write",
    ),
}


def declared(package: str) -> dict[str, str]:
    """Return the names that a package declares for type checkers, with the module of each."""
    tree = ast.parse(Path(str(import_module(package).__file__)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def public_objects() -> list[Any]:
    """Return the public classes and functions, each once."""
    exported = [getattr(import_module(package), name) for package in PACKAGES for name in declared(package)]
    return list({id(o): o for o in exported if inspect.isclass(o) or inspect.isfunction(o)}.values())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_that_of_its_module(package: str) -> None:
    module = import_module(package)
    for name, home in declared(package).items():
        assert getattr(module, name) is getattr(import_module(home), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_and_the_interpreter_see_the_same_names(package: str) -> None:
    module = import_module(package)
    assert sorted(module.__all__) == sorted(declared(package))
    assert dir(module) == sorted(declared(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_star_import_brings_exactly_the_public_names(package: str) -> None:
    names: dict[str, Any] = {}
    exec(f"from {package} import *", names)
    assert names.keys() - {"__builtins__"} == set(declared(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'DeepLabV4'"):
        import_module(package).DeepLabV4  # noqa: B018


def test_help_of_classes_and_functions_starts_with_a_verb() -> None:
    first_words = {o.__name__: (inspect.getdoc(o) or "no docstring").split()[0] for o in public_objects()}
    assert {name: word for name, word in first_words.items() if word not in VERBS} == {}


def test_every_public_method_has_a_docstring() -> None:
    methods = [
        (kind.__name__, name, getattr(kind, name))
        for kind in filter(inspect.isclass, public_objects())
        for name in vars(kind)
        if not name.startswith("_")
    ]
    described = [m for m in methods if inspect.isroutine(m[2]) or isinstance(m[2], property | cached_property)]
    assert [(kind, name) for kind, name, method in described if not inspect.getdoc(method)] == []


def test_importing_the_public_packages_loads_neither_torch_nor_lightning() -> None:
    code = f"import sys, {', '.join(PACKAGES)}; print(sorted({{'torch', 'lightning'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
