"""The parts of an imported checkpoint that a run's state lacks, kept for the export."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.errors import UserError
from repae_jax.interop import files
from repae_jax.interop.original import Kind
from repae_jax.utils.regular_files import is_file_there
from repae_jax.utils.schema import check_schema, each, parse_json, real, short_repr, whole

FILE = "origin.safetensors"
_COUNTER = re.compile(r"counters/(.+)")
_SLOT = re.compile(r"slots/(\w+)/(\d{1,7})/(\w+)")


class _Group(TypedDict):
    params: list[int]
    betas: each(real(), 2, 2)


class _Plain(TypedDict):
    kind: Kind
    steps: whole(0, 2**31 - 1)
    args: dict[str, Any]
    groups: dict[str, each(_Group)]


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The imported checkpoint that a run continues.

    Attributes:
      kind: the kind of the checkpoint.
      steps: the checkpoint's step.
      args: the original's command-line arguments.
      groups: "param_groups" of each optimizer.
      counters: "part/name" -> PyTorch's counter of BatchNorm updates.
      slots: optimizer -> slot -> the state of a parameter that is frozen here.
    """

    kind: Kind
    steps: int
    args: Mapping[str, Any]
    groups: Mapping[str, list]
    counters: Mapping[str, np.ndarray]
    slots: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]]


def blank_provenance(kind: Kind) -> Provenance:
    """The provenance of a run that was not imported."""
    return Provenance(kind, steps=0, args={}, groups={}, counters={}, slots={})


def write_provenance(workdir: pathlib.Path, origin: Provenance) -> None:
    """Write the provenance to a work directory."""
    tensors = {f"counters/{name}": np.asarray(array) for name, array in origin.counters.items()}
    for key, slots in origin.slots.items():
        for number, entry in slots.items():
            tensors |= {f"slots/{key}/{number}/{kind}": np.asarray(a) for kind, a in entry.items()}
    plain = {"kind": origin.kind, "steps": origin.steps, "args": origin.args}
    metadata = {k: json.dumps(v) for k, v in {**plain, "groups": origin.groups}.items()}
    files.write_safetensors(workdir / FILE, tensors, metadata)


def read_provenance(workdir: pathlib.Path) -> Provenance | None:
    """Read the provenance of a run; None if the run was not imported.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / FILE
    if not is_file_there(path, "restore it, or remove it to do without"):
        return None
    notes = files.read_metadata(path)
    plain = {name: parse_json(text, source=f"{path}: {name}") for name, text in notes.items()}
    check_schema(plain, _Plain, source=f"{path}: ")
    for groups in plain["groups"].values():
        for group in groups:  # JSON has lists where torch has a tuple
            group["betas"] = tuple(group["betas"])
    counters, slots = {}, {}
    tensors = files.read_stored(path)  # sorted by name, while torch puts the step first
    for name in sorted(tensors, key=lambda name: not name.endswith("/step")):
        if found := _COUNTER.fullmatch(name):
            counters[found[1]] = tensors[name]
        elif found := _SLOT.fullmatch(name):
            key, number, moment = found.groups()
            slots.setdefault(key, {}).setdefault(int(number), {})[moment] = tensors[name]
        else:
            raise UserError(
                f"{path}: damaged, it holds {short_repr(name)}; remove it to do without"
            )
    return Provenance(
        **{key: plain[key] for key in _Plain.__annotations__}, counters=counters, slots=slots
    )
