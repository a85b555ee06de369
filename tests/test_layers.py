import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "deeplab_lightning"
LEVELS = (  # imports only point down; the first match counts
    (0, ("resizing", "batch", "console", "data.classes", "data.problems", "data.cache", "image_matrices")),
    (2, ("data.datamodule", "models.deeplab", "optimizers")),
    (1, ("data", "models", "losses", "metrics")),
    (3, ("module", "callbacks")),
    (4, ("experiments", "cli")),
    (5, ("__main__",)),
)


def test_imports_only_point_down() -> None:
    for file in PACKAGE.rglob("*.py"):
        own = _name(file)
        for imported in _imports(file):
            if imported.startswith("deeplab_lightning."):
                target = imported.removeprefix("deeplab_lightning.")
                assert _level(target) <= _level(own), f"{own} imports {target}"
                assert {own.split(".")[0], target.split(".")[0]} != {"data", "models"}, f"{own} imports {target}"
            if imported.split(".")[0] == "lightning" and own.split(".")[0] in {"data", "models"}:
                assert own == "data.datamodule", f"{own} knows Lightning"
            if imported.split(".")[0] == "wandb":
                assert own.split(".")[0] in {"callbacks", "experiments"}, f"{own} knows W&B"


def _name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def _level(name: str) -> int:
    return next(
        (level for level, names in LEVELS for n in names if f"{name}.".startswith(f"{n}.")),
        6 if name == "__init__" else 0,
    )


def _imports(file: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    found = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return found + [f"{node.module}.{a.name}" for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names]
