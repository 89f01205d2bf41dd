"""Networks under other names and back, for comparisons: the package itself exports whole runs."""

from collections.abc import Mapping

import numpy as np

from repae_jax.interop import discriminator, lpips, sit, tables, vit
from repae_jax.interop.original import import_part, sit_part
from repae_jax.interop.vit_names import FORMATS
from repae_jax.models.lpips import SCALE, SHIFT

MASK_TOKENS = {
    ("dinov2", "authors"): "mask_token",
    ("dinov2", "transformers"): "embeddings.mask_token",
    ("dinov2", "transformers5"): "embeddings.mask_token",
}  # which strict loaders ask for


def load_sit(tensors, model, *, statistics: bool = True, source: str = "checkpoint") -> dict:
    """A SiT state dict as a run imports it; REPA's have no BatchNorm, `statistics=False`."""
    return import_part(tensors, sit_part(model, statistics=statistics), source=source)


def export_sit(variables: Mapping, model) -> dict[str, np.ndarray]:
    """The inverse of `load_sit`, in the order of the original's modules."""
    return _in_order(sit.sit_rules(model.patch_size), variables)


def export_discriminator(variables: Mapping, model) -> dict[str, np.ndarray]:
    """The inverse of `load_discriminator`, in the order of the original's modules."""
    return _in_order(discriminator.discriminator_table(model.num_layers), variables)


def export_lpips(variables: Mapping, naming: str = "module") -> dict[str, np.ndarray]:
    """The inverse of `load_lpips`; "module" has the constants of the scaling layer too."""
    rules = lpips.lpips_table(naming)
    tensors = tables.to_theirs(rules, tables.flatten(variables["params"]))
    if naming == "module":
        tensors["scaling_layer.shift"] = SHIFT[None, :, None, None]
        tensors["scaling_layer.scale"] = SCALE[None, :, None, None]
    return tensors


def export_vit(
    variables: Mapping, model, naming: str = "", *, marked: bool = True
) -> dict[str, np.ndarray]:
    """The inverse of `load_vit`: the model's tensors, named as they are published.

    `naming` is by default "authors", or for a family without that the first that it has. With
    `marked` the tensor is added that tells the format from another, and a format that has one is
    taken before a format without.
    """
    own = [f for f in FORMATS if f.family == model.family and f.naming == (naming or f.naming)]
    format = min(own, key=lambda f: (f.naming != "authors", bool(f.holds) != marked))
    naming = format.naming
    tensors = vit._export(variables, model, format, format.prefixes[0])
    if format.holds and marked:
        tensors.setdefault(format.prefixes[0] + format.holds, np.zeros(model.dim, np.float32))
    if mask := MASK_TOKENS.get((model.family, naming)):
        tensors[mask] = np.zeros((1, model.dim), np.float32)
    return tensors


def _in_order(rules, variables):
    return tables.in_order(rules, tables.to_theirs(rules, tables.flatten(variables)))
