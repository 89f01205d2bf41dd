"""The layers of the package: each imports only those above it, and no modules form a cycle."""

import ast
import graphlib
import pathlib
from collections.abc import Iterator, Mapping

import pytest

import repae_jax

PACKAGE = pathlib.Path(repae_jax.__file__).parent
# From the top down; docs/architecture.md draws them.
LAYERS = (
    "errors", "utils", "models", "objectives", "parallel", "interop", "data", "sampling", "config",
    "runs", "evaluation", "training", "study", "aot", "demo", "__init__", "commands", "cli",
    "__main__",
)  # fmt: skip

Graph = dict[str, set[str]]


def imports(path: pathlib.Path, modules: set[str]) -> Iterator[str]:
    """The package's modules that a file imports, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules | {"repae_jax"}:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module


def read_graph(package: pathlib.Path) -> Graph:
    """Every module of a package, and what it imports of it."""
    files = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: set(imports(path, set(files))) for name, path in files.items()}


def check(graph: Mapping[str, set[str]]) -> None:
    """Raise AssertionError for a cycle of modules, or an import of a lower layer."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")
    wrong = [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if LAYERS.index(layer(other)) > LAYERS.index(layer(module))
    ]
    assert not wrong, f"{wrong}: a layer imports only those above it, {', '.join(LAYERS)}"


def layer(module: str) -> str:
    """The layer of a module: the first part of its name within the package."""
    return module.split(".")[1] if "." in module else "__init__"


def test_layers_import_only_those_above_them():
    check(read_graph(PACKAGE))


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("models/added.py", "def f():\n    from repae_jax.training import step", "training.step"),
        ("models/added.py", "import repae_jax.commands", "imports repae_jax.commands"),
        ("data/batches.py", "from repae_jax.data import pipeline", "import each other"),
    ],
)
def test_an_arrow_that_runs_back_up_is_found(tmp_path, file, line, found):
    package = tmp_path / PACKAGE.name
    for path in PACKAGE.rglob("*.py"):
        copy = package / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    with (package / file).open("a") as added:
        added.write(f"\n{line}\n")
    with pytest.raises((AssertionError, pytest.fail.Exception), match=found):
        check(read_graph(package))
