"""The environment of README, which requirements.txt alone makes, out of the tests' larger one."""

import importlib.metadata
import json
import pathlib
import re
from collections.abc import Sequence

from packaging.requirements import Requirement

REQUIREMENTS = pathlib.Path(__file__).parents[2] / "requirements.txt"
# Python runs a module of this name when it starts, in every process.
HIDE = """\
import importlib.machinery, json, pathlib, sys

class Hiding(importlib.machinery.PathFinder):
    hidden = set(json.loads(pathlib.Path(__file__).with_name("hidden.json").read_text()))

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in cls.hidden:
            return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Hiding
"""


def make_bare(folder: pathlib.Path) -> pathlib.Path:
    """A folder for PYTHONPATH under which nothing but requirements.txt can be imported."""
    (folder / "sitecustomize.py").write_text(HIDE)
    (folder / "hidden.json").write_text(json.dumps(_hidden()))
    return folder


def link_packages(folder: pathlib.Path, packages: Sequence[str]) -> pathlib.Path:
    """A folder for PYTHONPATH with packages and what they need; `python -S` finds nothing else."""
    brought = _brought(packages)
    for distribution in importlib.metadata.distributions():
        if _normal(distribution.metadata["Name"]) not in brought:
            continue
        root = pathlib.Path(distribution.locate_file(""))
        for name in {file.parts[0] for file in distribution.files or ()}:
            there = root / name
            if name != ".." and there.exists() and not (folder / name).exists():
                (folder / name).symlink_to(there)
    return folder


def _hidden():
    """The modules of all distributions that requirements.txt does not bring, but for our own."""
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines())
    brought = _brought([line for line in lines if line])
    return sorted(
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if not brought & {_normal(name) for name in distributions}
        and module not in ("repae_jax", "tests")
    )


def _brought(packages):
    """The names of the distributions that packages bring, their own among them."""
    waiting, seen = [Requirement(line) for line in packages], set()
    while waiting:
        requirement = waiting.pop()
        wanted = _normal(requirement.name), frozenset(requirement.extras)
        if wanted in seen:
            continue
        seen.add(wanted)
        try:
            needs = importlib.metadata.requires(requirement.name) or ()
        except importlib.metadata.PackageNotFoundError:  # of another platform
            continue
        for need in map(Requirement, needs):
            extras = ("", *requirement.extras)
            if not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(need)
    return {name for name, _ in seen}


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()
