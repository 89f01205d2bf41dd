"""The statistics of all latents of a cache, exact whatever the order of its shards."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


class Sums:
    """Running sums of the latents z = mean + std * noise, per channel, in float64.

    With the shape (h, w, c) they are those of each position of a channel.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.count, self.first, self.second = 0, np.zeros(shape), np.zeros(shape)
        self._axes = tuple(range(3 - len(shape)))

    def add(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Add an image's moments (h, w, c), the noise integrated out: E z^2 = mean^2 + std^2."""
        mean, std = mean.astype(np.float64), std.astype(np.float64)
        self.count += mean.size // self.first.size
        self.first += mean.sum(self._axes)
        self.second += (mean**2 + std**2).sum(self._axes)

    def as_json(self) -> dict[str, Any]:
        """The sums as JSON for a shard's sidecar; JSON represents float64 exactly."""
        first, second = (sums.reshape(-1).tolist() for sums in (self.first, self.second))
        return {"count": self.count, "first": first, "second": second}


def summarize(sums: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Compute the entry of the manifest with the statistics from all shards' sums.

    Statistics by position are in the order of (h, w, c).
    """
    count = sum(shard["count"] for shard in sums)
    channels = len(sums[0]["first"])
    mean = [math.fsum(s["first"][c] for s in sums) / count for c in range(channels)]
    second = [math.fsum(s["second"][c] for s in sums) / count for c in range(channels)]
    var = [q - m**2 for q, m in zip(second, mean, strict=True)]
    return {"statistics": {"mean": mean, "var": var}}
