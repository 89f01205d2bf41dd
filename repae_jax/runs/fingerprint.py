"""Checksums of a network's weights."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.interop.tables import flatten


def tokenizer_sha256(variables: Mapping[str, Any]) -> str:
    """SHA-256 of a tokenizer's parameters, and of its other collections if it has any."""
    return weights_sha256(variables if len(variables) > 1 else variables["params"])


def weights_sha256(params: Mapping[str, Any]) -> str:
    """SHA-256 of a network's parameters as float32, in the order of their paths.

    It is independent of the file format that the parameters came from.
    """
    digest = hashlib.sha256()
    for path, array in sorted(flatten(params).items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()
