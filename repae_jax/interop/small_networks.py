"""Files of the small networks that are trained here: parameters under our names, and notes."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repae_jax.interop.files import read_metadata, read_tensors, write_safetensors
from repae_jax.interop.tables import flatten, load_flat
from repae_jax.utils.schema import parse_json, real


def save_network(path: str | pathlib.Path, params: Mapping, notes: Mapping[str, object]) -> None:
    """Write parameters as .safetensors under our own paths; `notes` become metadata, as JSON.

    Raises:
      UserError: the file cannot be written.
    """
    metadata = {name: json.dumps(value) for name, value in notes.items()}
    write_safetensors(path, flatten(params), metadata)


def load_network(path: pathlib.Path, network: nn.Module, side: int) -> dict:
    """Load the parameters of a network of images with `side` pixels along a side.

    Raises:
      UserError: the file is missing or damaged, or holds another network.
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    return load_flat(read_tensors(path), shapes["params"], source=str(path))


def read_note(path: pathlib.Path, name: str, schema: Any) -> Any:
    """Read a note of a network's file, checked against a schema (`utils.schema.check_schema`).

    Raises:
      UserError: the file is missing or damaged, or lacks the note.
    """
    notes = read_metadata(path)
    return parse_json(notes.get(name, ""), schema, source=f"{path}: its {name}")


def read_accuracy(path: pathlib.Path) -> float:
    """Read the held-out accuracy, in [0, 1], from the notes of a network's file.

    Raises:
      UserError: the file is missing or damaged, or lacks the accuracy.
    """
    return read_note(path, "accuracy", real(0, 1))
