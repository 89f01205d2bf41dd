"""Cached latents: a cache that `encode` wrote, as a source of training batches.

Beside its label, an element has the posterior of a frozen VAE in place of the image:

    latent_mean, latent_std    float32 (h, w, c), unnormalized; of latents that another code has
                               sampled, the sample and 0
    image                      uint8 (H, W, 3), if the cache keeps images for the teachers
    teacher_tokens             a tuple of (N, D) arrays, if the cache keeps the teachers' tokens; of
                               N patches, and behind them the class token if the cache keeps it
    caption                    a str, or a tuple of several, if the images have captions
    caption_states             the states of each caption, `caption_states.CaptionStates`, if the
                               cache keeps them

If the cache has mirrored images, their values lie under "mirrored", and the pipeline chooses
between the two (`choose_mirrored`).
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.data import caption_states
from repae_jax.data.caption_states import STATES, states_in
from repae_jax.data.caption_texts import KEPT, as_tuple, captions_in
from repae_jax.data.decode import decode_pixels
from repae_jax.data.identity import Fingerprint
from repae_jax.data.manifest import MANIFEST, manifest_fingerprint, read_manifest
from repae_jax.data.shards import PackedRecords
from repae_jax.errors import UserError
from repae_jax.interop import latent_statistics
from repae_jax.utils.schema import Side, Text, check_schema, each, real, whole

KIND = "latents"
MIRRORED = "mirrored/"


class _Made(TypedDict):
    mirrored: bool
    images: bool
    teachers: dict[Text, Text]
    class_tokens: NotRequired[bool]
    captions: NotRequired[bool]
    text: NotRequired[caption_states.Made]
    vae: Text
    latent_shape: each(whole(1, 2**20), 3, 3)
    resolution: Side


_MOST = 2**24  # values of a latent


class _Statistics(TypedDict):
    """One number per channel, or per row, column and channel."""

    mean: each(real(), 1, _MOST)
    var: each(real(0), 1, _MOST)


class _Manifest(TypedDict):
    """The entries that `encode` adds to a manifest."""

    made: _Made
    statistics: _Statistics


@dataclasses.dataclass(frozen=True, eq=False)
class LatentSource:
    """Random access to cached latents.

    Attributes:
      name: the folder.
      num_classes: labels are 0..num_classes - 1.
      records: the packed records.
      manifest: the cache's manifest.
      mirrored: whether elements also have the latents of their mirror images.
    """

    name: str
    num_classes: int
    records: PackedRecords
    manifest: Mapping[str, Any]
    mirrored: bool

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record, name = self.records[index], self.image_name(index)
        side = self.manifest["made"]["resolution"]
        element = _element(record, side, name)
        if self.mirrored:
            element["mirrored"] = _element(record, side, name, MIRRORED)
        if self._keeps(KEPT):
            element["caption"] = captions_in(record, name)
            if made := self._keeps(STATES):
                count = len(as_tuple(element["caption"]))
                element["caption_states"] = states_in(record, count, made, name)
        return {**element, "label": np.int32(record["label"])}

    @property
    def caption(self) -> Callable[[int], str] | None:
        """index -> the image's first caption; None without captions."""
        return self._caption if self._keeps(KEPT) else None

    @property
    def keeps_states(self) -> bool:
        """Whether elements have the states of their captions."""
        return bool(self._keeps(STATES))

    def image_name(self, index: int) -> str:
        """The name of an element in messages."""
        return f"{self.name}, record {index}"

    def fingerprint(self) -> Fingerprint:
        """The fingerprint of these latents, see `data.identity`."""
        return manifest_fingerprint(self.manifest)

    def _keeps(self, entry):
        return self.manifest["made"].get(entry)

    def _caption(self, index):
        return as_tuple(captions_in(self.records[index], self.image_name(index)))[0]


def open_latents(folder: str | pathlib.Path, *, mirrored: bool = False) -> LatentSource:
    """Open a cache of latents.

    Args:
      folder: the folder that `encode` wrote.
      mirrored: elements also get the latents of their mirror images.

    Raises:
      UserError: the cache is missing or damaged, or lacks mirrored latents.
    """
    manifest = read_cache(folder)
    if mirrored and not manifest["made"]["mirrored"]:
        raise UserError(
            f"{folder} holds no mirrored latents: set --config.data.flip=False, or encode with "
            "--mirrored"
        )
    return LatentSource(
        name=str(folder),
        num_classes=manifest["num_classes"],
        records=PackedRecords(folder),
        manifest=manifest,
        mirrored=mirrored,
    )


def read_cache(folder: str | pathlib.Path) -> dict[str, Any]:
    """The manifest of a cache of latents.

    Raises:
      UserError: the cache is missing or damaged.
    """
    manifest = read_manifest(folder)
    check_kind(folder, manifest)
    check_schema(manifest, _Manifest, source=f"{folder}/{MANIFEST}: ")
    return manifest


def check_kind(folder: str | pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Raise UserError unless a packed data set holds latents."""
    if manifest["kind"] != KIND:
        raise UserError(
            f"{folder} holds packed {manifest['kind']}, not latents: set "
            "--config.data.source=packed, or make latents with `python -m repae_jax encode`"
        )


def statistics_of(source: LatentSource) -> dict[str, np.ndarray]:
    """The statistics {"mean": (c,), "var": (c,)} of all latents of the cache, float32.

    Where the cache has them by position, they are (h, w, c).

    Raises:
      UserError: the manifest's statistics are invalid.
    """
    statistics, shape = source.manifest["statistics"], source.manifest["made"]["latent_shape"]
    path = str(pathlib.Path(source.name) / MANIFEST)
    mean, var = statistics["mean"], statistics["var"]
    if len(mean) == len(var) == math.prod(shape):
        mean, var = (np.reshape(np.asarray(values, np.float64), shape) for values in (mean, var))
    return latent_statistics.as_statistics(mean, var, shape[-1], source=path, positions="hwc")


def choose_mirrored(element: Mapping[str, Any], mirrored: bool) -> dict[str, Any]:
    """The element's own values, or those of its mirror image, without the key "mirrored"."""
    chosen = {**element, **(element["mirrored"] if mirrored else {})}
    del chosen["mirrored"]
    return chosen


def check_for_training(
    source: LatentSource,
    fingerprint: str,
    teachers: Mapping[str, str],
    latent_shape: tuple[int, ...],
    *,
    class_token: bool = False,
) -> None:
    """Raise UserError unless a run of this configuration can train on the cache.

    Args:
      source: the cache.
      fingerprint: the fingerprint of the configuration's VAE.
      teachers: {name: fingerprint} of the configuration's teachers.
      latent_shape: (h, w, c) of the configuration's latents.
      class_token: whether the configuration's backbone denoises a class token.
    """
    made = source.manifest["made"]
    if made["vae"] != fingerprint:
        raise UserError(
            f"{source.name} was made by another VAE ({made['vae'][:12]}...) than "
            f"config.tokenizer.weights ({fingerprint[:12]}...): encode anew, or name the VAE that "
            "made it"
        )
    check_shape(source.name, made, latent_shape)
    for missing in missing_for_teachers(source.name, made, list(teachers), class_token=class_token):
        raise UserError(missing)
    for name in teachers if made["teachers"] else ():
        if made["teachers"][name] != teachers[name]:
            raise UserError(
                f"{source.name} keeps the tokens of another teacher {name!r} "
                f"({made['teachers'][name][:12]}...) than config.teachers.{name}.weights "
                f"({teachers[name][:12]}...): encode anew, or name the teacher that made it"
            )


def check_shape(
    folder: str | pathlib.Path, made: Mapping[str, Any], latent_shape: tuple[int, ...]
) -> None:
    """Raise UserError if the latents of the cache in `folder` are not (h, w, c).

    `made` is the entry of this name of its manifest.
    """
    if tuple(made["latent_shape"]) != tuple(latent_shape):
        raise UserError(
            f"{folder} holds latents of shape {tuple(made['latent_shape'])}, the configuration "
            f"needs {tuple(latent_shape)}"
        )


def missing_for_teachers(
    folder: str | pathlib.Path,
    made: Mapping[str, Any],
    teachers: Sequence[str],
    *,
    class_token: bool = False,
) -> list[str]:
    """[] if a cache has images, or tokens of all these teachers; else [the message that it lacks].

    Args:
      folder: the cache.
      made: the entry "made" of its manifest.
      teachers: the names of the configuration's teachers, in its order.
      class_token: whether the tokens have to include the class token.
    """
    if not teachers or (made["images"] and not made["teachers"]):
        return []
    if list(made["teachers"]) == list(teachers):
        if not class_token or made.get("class_tokens"):
            return []
        return [
            f"{folder} keeps the teachers' tokens without their class tokens, which a backbone "
            "with config.backbone.class_token_dim needs: encode anew with this configuration"
        ]
    kept = ", ".join(made["teachers"]) or "none"
    return [
        f"{folder} keeps neither images nor the tokens of the teachers {', '.join(teachers)} "
        f"(it keeps: {kept}): encode with --images or --teachers"
    ]


def _element(record, side, name, prefix=""):
    """The element of one image in a record; keys of the mirror image begin with MIRRORED."""
    mean = np.asarray(record[f"{prefix}mean"], np.float32)
    std = record.get(f"{prefix}std")
    element = {
        "latent_mean": mean,
        "latent_std": np.zeros_like(mean) if std is None else np.asarray(std, np.float32),
    }
    if f"{prefix}image" in record:
        element["image"] = decode_pixels(record[f"{prefix}image"], side, name)
    tokens = [key for key in record if key.startswith(f"{prefix}tokens/")]
    if tokens:
        arrays = (record[f"{prefix}tokens/{k}"] for k in range(len(tokens)))
        element["teacher_tokens"] = tuple(np.asarray(array, np.float32) for array in arrays)
    return element
