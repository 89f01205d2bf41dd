"""The names of the classes that a pipeline's folder lists."""

import pathlib
from typing import Any

from repae_jax.errors import UserError
from repae_jax.interop.hub import PIPELINE
from repae_jax.utils.schema import Text, check_schema, read_json


def class_names(folder: pathlib.Path) -> tuple[str, ...] | None:
    """The names in the entry "id2label" of a folder's model_index.json, as DiTPipeline reads it.

    None for a folder without the file or the entry.

    Raises:
      UserError: the file is damaged, or does not number the classes from 0.
    """
    file = folder / PIPELINE
    labels = read_json(file, dict[str, Any]).get("id2label") if file.is_file() else None
    if not labels:
        return None
    names = check_schema(labels, dict[Text, Text], source=f"{file}: id2label: ")
    if names.keys() != {str(number) for number in range(len(names))}:
        raise UserError(f"{file}: id2label does not number its classes from 0: correct it")
    return tuple(names[str(number)] for number in range(len(names)))
