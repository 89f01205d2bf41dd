"""One checksum of a network's weights."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.interop.tables import flatten


def weights_sha256(params: Mapping[str, Any]) -> str:
    """SHA-256 of a network's parameters as float32, by path: whatever file they came from."""
    digest = hashlib.sha256()
    for path, array in sorted(flatten(params).items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()
