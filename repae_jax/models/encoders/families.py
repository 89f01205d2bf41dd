"""The families of encoders: a new one is a file with its module, and a row of `ENCODERS`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from repae_jax.errors import UserError
from repae_jax.models.encoders.base import Encoder
from repae_jax.models.encoders.preprocessing import RESIZING_KINDS, TEACHER_KINDS
from repae_jax.models.encoders.vit import VIT_CONFIGS, ViT

Entry = Mapping[str, Any]  # of config.teachers


class Family(NamedTuple):
    """A row of `ENCODERS`: what an entry of `config.teachers` may say of its encoder.

    Published weights are read by the loader of the family's name in runs/weights.py. Without one
    there, an encoder has the weights that `pretrain-teacher` makes.

    Attributes:
      module: the flax module, an `Encoder`. It takes dtype, scan, and the fields of its options.
      options: the keys of an entry with their defaults; a type in place of a default is for a key
        that a preset or the configuration sets.
      fields: key -> the module's field, where that has another name.
      presets: `arch` of an entry -> fields.
      unpublished: (fields, resolution) -> further fields of an encoder without a preset.
      check: (entry, "config.teachers.NAME") raises UserError for values that do not go together.
    """

    module: Callable[..., Encoder]
    options: Mapping[str, Any]
    fields: Mapping[str, str] = {}
    presets: Mapping[str, Mapping[str, Any]] = {}
    unpublished: Callable[[Mapping[str, Any], int], Mapping[str, Any]] = lambda fields, side: {}
    check: Callable[[Entry, str], None] = lambda entry, key: None

    def of_preset(self, arch: str) -> dict[str, Any]:
        """The options with defaults for which a preset has a value of its own."""
        preset = self.presets.get(arch, {})
        return {
            key: preset[self.fields.get(key, key)]
            for key, default in self.options.items()
            if self.fields.get(key, key) in preset and not isinstance(default, type)
        }

    def missing(self, entry: Entry) -> list[str]:
        """The options that neither an entry nor its preset sets."""
        fields = self._fields_of(entry)
        return [key for key in self.options if self.fields.get(key, key) not in fields]

    def build(
        self, entry: Entry, resolution: int, dtype: Any = jnp.float32, *, scan: bool = False
    ) -> Encoder:
        """The encoder of an entry, for images of `resolution` pixels."""
        fields = self._fields_of(entry)
        if not entry["arch"]:
            fields |= self.unpublished(fields, resolution)
        return self.module(**fields, dtype=dtype, scan=scan)

    def _fields_of(self, entry):
        """The fields that the preset or the entry sets, the entry's before the preset's."""
        given = {self.fields.get(key, key): entry[key] for key in self.options}
        explicit = {
            field: tuple(value) if isinstance(value, list) else value
            for field, value in given.items()
            if value is not None
        }
        return {**self.presets.get(entry["arch"], {}), **explicit}


def _unpublished_vit(fields, resolution):
    """A table of just its own grid, and no LayerScale."""
    return {"native_grid": resolution // fields["patch_size"], "layer_scale": None}


def _check_vit(entry, key):
    if entry["stem"]:
        _check_stem(entry, key)
    kind, arch = entry["preprocessing"], entry["arch"]
    if kind not in TEACHER_KINDS:
        raise UserError(f"{key}.preprocessing is {kind!r}: use one of {', '.join(TEACHER_KINDS)}")
    trained = VIT_CONFIGS[arch].get("preprocessing", ViT.preprocessing) if arch else kind
    if kind in RESIZING_KINDS and kind != trained:
        raise UserError(
            f"{key}.preprocessing is {kind!r}, but {arch} was trained with {trained!r}: "
            "set both keys"
        )


def _check_stem(entry, key):
    stem, patch = tuple(entry["stem"]), entry["patch_size"]
    if entry["arch"]:
        raise UserError(
            f"{key}.stem is {stem}, but {entry['arch']} has none: leave {key}.arch or the stem "
            "empty"
        )
    if patch % 2 ** len(stem):
        raise UserError(
            f"{key}.stem has {len(stem)} levels, each of which halves the image, but "
            f"{key}.patch_size is {patch}: use a multiple of {2 ** len(stem)}"
        )
    if any(width < 8 or width % 8 for width in stem):
        raise UserError(f"{key}.stem is {stem}: use widths that are multiples of 8")


ENCODERS: dict[str, Family] = {
    "vit": Family(
        ViT,
        options=dict(
            patch_size=int,
            hidden_size=int,
            depth=int,
            num_heads=int,
            stem=ViT.stem,  # widths of convolutional levels before the patches
            preprocessing=ViT.preprocessing,  # one of TEACHER_KINDS
        ),
        fields={"hidden_size": "dim"},
        presets=VIT_CONFIGS,
        unpublished=_unpublished_vit,
        check=_check_vit,
    )
}
