"""What an imported checkpoint holds that a run has no place for, kept for its export."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.interop import files
from repae_jax.interop.original import Kind

FILE = "origin.safetensors"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run comes from.

    Attributes:
      kind: of the checkpoint.
      steps: its step.
      args: its arguments.
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


def blank_origin(kind: Kind) -> Origin:
    """Of a run that began here."""
    return Origin(kind, steps=0, args={}, groups={}, counters={}, slots={})


def write_origin(workdir: pathlib.Path, origin: Origin) -> None:
    """Keep it in a work directory."""
    tensors = {f"counters/{name}": np.asarray(array) for name, array in origin.counters.items()}
    for key, slots in origin.slots.items():
        for number, entry in slots.items():
            tensors |= {f"slots/{key}/{number}/{kind}": np.asarray(a) for kind, a in entry.items()}
    plain = {"kind": origin.kind, "steps": origin.steps, "args": origin.args}
    metadata = {k: json.dumps(v) for k, v in {**plain, "groups": origin.groups}.items()}
    files.write_safetensors(workdir / FILE, tensors, metadata)


def read_origin(workdir: pathlib.Path) -> Origin | None:
    """The origin of a run; None if it began here.

    Raises:
      UserError: its file is damaged.
    """
    path = workdir / FILE
    if not path.is_file():
        return None
    plain = {name: json.loads(text) for name, text in files.read_metadata(path).items()}
    for groups in plain["groups"].values():
        for group in groups:  # JSON has lists where torch has a tuple
            group["betas"] = tuple(group["betas"])
    counters, slots = {}, {}
    tensors = files.read_stored(path)  # sorted by name, but torch has the step first
    for name in sorted(tensors, key=lambda name: not name.endswith("/step")):
        kind, _, rest = name.partition("/")
        if kind == "counters":
            counters[rest] = tensors[name]
        else:
            key, number, moment = rest.split("/")
            slots.setdefault(key, {}).setdefault(int(number), {})[moment] = tensors[name]
    return Origin(**plain, counters=counters, slots=slots)
