import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
PUBLIC_PACKAGES = {"deeplab_lightning", "deeplab_lightning.data", "deeplab_lightning.models"}
EXPECTED = {  # printed after all computations
    "01_look_at_the_folds": "balanced",
    "02_train_deeplab": "mIoU",
    "03_compare_backbones": "difference over images",
    "04_from_folds_to_submission": "is to be expected",
}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    cells = read(path).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), "commit without outputs"


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_public_names_only(path: Path) -> None:
    code = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    nodes = list(ast.walk(ast.parse(code)))
    imported = {(node.module or "", a.name) for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names}
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    own = {(module, name) for module, name in imported if module.partition(".")[0] == "deeplab_lightning"}
    assert own
    assert {module for module, _ in own} <= PUBLIC_PACKAGES
    assert not any(module.partition(".")[0] == "deeplab_lightning" for module in modules)
    assert [(module, name) for module, name in own if name not in import_module(module).__all__] == []


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_draw(path: Path) -> None:
    notebook = read(path)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert EXPECTED[path.stem] in "".join(output.get("text", "") for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
