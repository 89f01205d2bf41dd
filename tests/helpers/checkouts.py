"""Code of a checkout: a file as a module, and parts of scripts that cannot be imported."""

import ast
import functools
import importlib.util
import pathlib
from collections.abc import Iterable


def module_of(file: pathlib.Path, name: str):
    """The file as a module of that name."""
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def parsed(file: pathlib.Path) -> ast.Module:
    """The syntax tree of a script."""
    return ast.parse(file.read_text())


def code_of(nodes: Iterable[ast.stmt], file: pathlib.Path):
    """Statements of a script as code to execute."""
    return compile(ast.Module(list(nodes), []), str(file), "exec")


def function_of(file: pathlib.Path, name: str) -> ast.FunctionDef:
    """The script's top-level function of that name."""
    (found,) = (node for node in parsed(file).body if getattr(node, "name", None) == name)
    return found


def define(file: pathlib.Path, names: Iterable[str], scope: dict) -> dict:
    """Define the script's top-level functions of these names in `scope`; returns those it has."""
    found = [node for node in parsed(file).body if getattr(node, "name", None) in names]
    exec(code_of(found, file), scope)
    return {node.name: scope[node.name] for node in found}
