"""The PyTorch code of a pipeline's folder, from the sources in torch_pipeline.

A folder's files stand alone: the file of a transformer holds the layers that it imports here.
"""

import ast
import importlib.resources
import pathlib

PREFIX = "repae_"  # of the files of code, so that no module of diffusers has their name
_SOURCES = "repae_jax.interop.torch_pipeline"
_LAYERS = f"{_SOURCES}.layers"


def code_of(name: str) -> str:
    """The text of a file of the folder.

    Args:
      name: the file in torch_pipeline, without ".py".
    """
    text = _source(name)
    tree = ast.parse(text)
    own = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == _LAYERS]
    if not own:
        return text
    wanted = {alias.name for node in own for alias in node.names}
    docstring, imports, definitions = _parts(text, without=own)
    layers_imports, layers = _layers(wanted)
    head = _sorted_imports([*imports, *layers_imports])
    return "\n".join([docstring, "", *head, "", "", *layers, definitions, ""])


def write_code(folder: pathlib.Path, name: str) -> None:
    """Write a file of code; see `code_of`."""
    (folder / f"{PREFIX}{name}.py").write_text(code_of(name))


def _source(name):
    return importlib.resources.files(_SOURCES).joinpath(f"{name}.py").read_text()


def _parts(text, without):
    """The docstring, the imports, and the rest of a source."""
    tree, lines = ast.parse(text), text.splitlines()
    imports, last = [], tree.body[0].end_lineno
    for node in tree.body[1:]:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            break
        last = node.end_lineno
        if not any(node.lineno == other.lineno for other in without):
            imports.append(ast.unparse(node))
    docstring = "\n".join(lines[: tree.body[0].end_lineno])
    return docstring, imports, "\n".join(lines[last:]).strip("\n")


def _layers(wanted):
    """The imports, and the definitions that `wanted` need, of the layers' source."""
    text = _source("layers")
    tree, lines = ast.parse(text), text.splitlines()
    defined = {
        node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    needed, new = set(), set(wanted)
    while new:
        needed |= new
        names = {n.id for name in new for n in ast.walk(defined[name]) if isinstance(n, ast.Name)}
        new = (names & defined.keys()) - needed
    _, imports, _ = _parts(text, without=())
    taken = []
    for name, node in defined.items():
        if name in needed:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            taken += [*lines[first - 1 : node.end_lineno], "", ""]
    used = {n.id for name in needed for n in ast.walk(defined[name]) if isinstance(n, ast.Name)}
    return [line for line in imports if _binds(line) & used], taken


def _binds(line):
    """The names that an import binds."""
    return {alias.asname or alias.name for alias in ast.parse(line).body[0].names}


def _sorted_imports(lines):
    """Imports without repetition: those of the standard library, then the others."""
    merged = {}
    for line in lines:
        node = ast.parse(line).body[0]
        if isinstance(node, ast.Import):
            merged.setdefault(line, set())
        else:
            merged.setdefault(node.module, set()).update(alias.name for alias in node.names)
    texts = [
        f"from {key} import {', '.join(sorted(names))}" if names else key
        for key, names in merged.items()
    ]
    own = [text for text in texts if text.split()[1].split(".")[0] not in ("torch", "diffusers")]
    others = [text for text in texts if text not in own]

    def order(text):
        return text.startswith("from"), text.split()[1]

    return [*sorted(own, key=order), *([""] if own else []), *sorted(others, key=order)]
