"""The output of `prepare` and `encode` on the packed data set that they wrote."""

from collections.abc import Mapping
from typing import Any


def megabytes(manifest: Mapping[str, Any]) -> str:
    """The size of all shards, such as "12.3 MB"."""
    return f"{sum(shard['bytes'] for shard in manifest['shards']) / 1e6:.1f} MB"


def print_skipped(manifest: Mapping[str, Any]) -> None:
    """Print the names of images that were left out, if there are any."""
    if skipped := manifest["skipped"]:
        names = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        # a file name that is invalid Unicode cannot be printed as it is
        names = names.encode("utf-8", "backslashreplace").decode()
        print(f"skipped {len(skipped)} unreadable images (see the manifest): {names}")
