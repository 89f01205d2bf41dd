"""Encoding of a source by the VAE, to a cache of latents for training."""

import concurrent.futures
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from repae_jax.config.modules import build_tokenizer
from repae_jax.config.needs import check_files
from repae_jax.config.validate import validate
from repae_jax.data import latents
from repae_jax.data.caption_states import STATES, states_entries
from repae_jax.data.caption_texts import KEPT, caption_entries
from repae_jax.data.images import encode_pixels
from repae_jax.data.prepare import identity_of, relative_name, skipped_names
from repae_jax.data.shard_writer import ShardWriter, write_shards
from repae_jax.data.source import check_captions
from repae_jax.data.sources import Source, open_source
from repae_jax.errors import BadImage, UserError
from repae_jax.models.backbones.base import class_token_dim
from repae_jax.models.networks import Models, teacher_tokens
from repae_jax.models.text_encoders.families import NONE as NO_TEXT
from repae_jax.models.tokenizers import base
from repae_jax.parallel.mesh import batch_sharding, make_mesh, place_batch, replicated
from repae_jax.parallel.multihost import processes
from repae_jax.runs.build import build_models
from repae_jax.runs.fingerprint import tokenizer_sha256, weights_sha256
from repae_jax.runs.initial_state import load_teachers
from repae_jax.runs.weights import read_vae
from repae_jax.training.encode_text import CaptionEncoder
from repae_jax.training.latent_sums import Sums, summarize
from repae_jax.utils.finite import NotFinite
from repae_jax.utils.images import to_float
from repae_jax.utils.schema import Batch, check_schema

_THREADS = 8  # threads that read and decode images
DTYPES = ("float32", "float16", "bfloat16")


def encode(
    config: ConfigDict,
    output: pathlib.Path,
    *,
    split: str = "train",
    batch_size: int = 64,
    per_shard: int = 4096,
    mirrored: bool = False,
    images: bool = False,
    teachers: bool = False,
    text: bool = False,
    dtype: str = "float32",
    progress: bool = True,
) -> None:
    """Write the posterior (mean, std) of every image of the source as packed records.

    In a run with captions, the records hold the captions as well.

    The latent statistics are summed in float64 in the same pass, shard by shard. A killed run
    resumes with the missing shards and ends with the same bytes. Several processes share the
    shards, and each uses its own devices.

    Args:
      config: the configuration, with data, VAE and teachers.
      output: a new folder, or one that a run with the same arguments has begun.
      split: the source's split.
      batch_size: images per batch over a process's devices.
      per_shard: images per shard.
      mirrored: also encode the mirrored images.
      images: also store the images (PNG), for the teachers.
      teachers: store the teachers' tokens.
      text: store the states of the text encoder for every caption.
      dtype: the stored type of latents, tokens and states, one of `DTYPES`.
      progress: show a bar.

    Raises:
      UserError: the configuration, files, data or output folder are wrong.
    """
    _check(config, dtype, batch_size, text=text, mirrored=mirrored)
    # `_records` leaves bad images out
    source = open_source(config.data, split, replace_bad_images=False)
    skip = config.data.on_bad_image == "skip"
    models = build_models(config)
    variables, _ = read_vae(config, models.tokenizer)
    if models.text_encoder is not None:
        check_captions(source)
    encoder = _Encoder(config, models, variables, batch_size, teachers=teachers, text=text)
    made = {
        "source": {"source": config.data.source, "name": config.data.name, "split": split},
        **identity_of(source),
        "vae": tokenizer_sha256(variables),
        "latent_shape": list(encoder.latent_shape),
        "resolution": config.data.resolution,
        "mirrored": mirrored,
        "images": images,
        "teachers": encoder.teachers,
        "dtype": dtype,
        "compute_dtype": config.dtype,
        "batch_size": batch_size,
    }
    if encoder.teachers and class_token_dim(models.backbone):
        made["class_tokens"] = True
    if models.text_encoder is not None:
        made[KEPT] = True
    if encoder.text is not None:
        made[STATES] = encoder.text.made

    def write(indexes: range, writer: ShardWriter) -> dict[str, Any]:
        sums, skipped = Sums(base.statistics_shape(models.tokenizer, encoder.latent_shape)), []
        for record in _records(source, indexes, encoder, made, sums, skipped if skip else None):
            writer.write(record)
        return {**sums.as_json(), "skipped": skipped}

    write_shards(
        output,
        len(source),
        per_shard,
        write,
        made,
        manifest={"kind": latents.KIND, "num_classes": source.num_classes},
        summarize=lambda sums: {**summarize(sums), "skipped": skipped_names(source, sums)},
        processes=processes(),
        progress=progress,
    )


class _Encoder:
    """Computes the VAE's posterior, and with `teachers` their tokens, on all devices.

    Attributes:
      text: computes the states of captions; None without `text`.
    """

    def __init__(
        self,
        config: ConfigDict,
        models: Models,
        variables: Mapping[str, Any],
        batch_size: int,
        *,
        teachers: bool,
        text: bool,
    ):
        self.batch_size = batch_size
        self._mesh = make_mesh(devices=jax.local_devices())
        if batch_size % self._mesh.size:
            raise UserError(
                f"--batch-size {batch_size} does not divide over the {self._mesh.size} devices"
            )
        self.text = CaptionEncoder(config, models, self._mesh, batch_size) if text else None
        loaded = load_teachers(config, models) if teachers else {}
        self.teachers = {name: weights_sha256(loaded[name]["params"]) for name in loaded}
        weights = {"tokenizer": variables, "teachers": loaded}
        self._weights = jax.device_put(weights, replicated(self._mesh))
        side = config.data.resolution // models.tokenizer.factor
        self.latent_shape = (side, side, models.tokenizer.latent_channels)

        def run(weights, images):
            posterior = base.encode(models.tokenizer, weights["tokenizer"], to_float(images))
            tokens = teacher_tokens(models, weights["teachers"], images) if teachers else {}
            return posterior.mean, posterior.std, tuple(tokens.values())

        self._run = jax.jit(run, out_shardings=batch_sharding(self._mesh))

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple]:
        """uint8 (n, H, W, 3), n at most `batch_size` -> mean, std (n, h, w, c) and tokens."""
        count = len(images)
        padding = [(0, self.batch_size - count), *[(0, 0)] * 3]
        batch = place_batch(self._mesh, {"image": np.pad(images, padding)})["image"]
        return jax.tree.map(lambda a: a[:count], jax.device_get(self._run(self._weights, batch)))


def _records(source: Source, indexes, encoder, made, sums, skipped) -> Iterator[dict[str, Any]]:
    """Yield the records of the images `indexes` in order, reading ahead during encoding.

    The names of bad images go to the list `skipped`; if it is None, a bad image is an error.
    """
    starts = range(indexes.start, indexes.stop, encoder.batch_size)
    chunks = [range(s, min(s + encoder.batch_size, indexes.stop)) for s in starts]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        reading = [pool.submit(source.__getitem__, i) for i in chunks[0]]
        for number in range(len(chunks)):
            read = dict(_readable(source, chunks[number], reading, skipped))
            if number + 1 < len(chunks):
                reading = [pool.submit(source.__getitem__, i) for i in chunks[number + 1]]
            if not read:
                continue
            images = np.stack([element["image"] for element in read.values()])
            names = [relative_name(source, index) for index in read]
            parts = list(_parts(images, names, encoder, made, sums))
            if made["mirrored"]:
                mirrored = _parts(images[:, :, ::-1], names, encoder, made, sums)
                parts = [
                    part | {f"{latents.MIRRORED}{key}": value for key, value in other.items()}
                    for part, other in zip(parts, mirrored, strict=True)
                ]
            texts = _texts(
                [element.get("caption") for element in read.values()], names, encoder, made
            )
            for part, text, element in zip(parts, texts, read.values(), strict=True):
                yield {**part, "label": int(element["label"]), **text}


def _texts(captions, names, encoder, made):
    """Each image's part of a record for its captions; {} in a run without captions."""
    if not made.get(KEPT):
        return [{}] * len(captions)
    texts = [caption_entries(own) for own in captions]
    if encoder.text is None:
        return texts
    states = encoder.text(captions, names, jnp.dtype(made["dtype"]))
    return [text | states_entries(own) for text, own in zip(texts, states, strict=True)]


def _readable(source, indexes, reading, skipped):
    """Yield (index, element) of the readable images; `skipped` takes the names of bad ones."""
    for index, future in zip(indexes, reading, strict=True):
        try:
            yield index, future.result()
        except BadImage:
            if skipped is None:
                raise
            skipped.append(relative_name(source, index))


def _parts(images, names, encoder, made, sums):
    """Yield each image's part of a record."""
    mean, std, tokens = encoder(np.ascontiguousarray(images))
    dtype = jnp.dtype(made["dtype"])
    for index, (image, name) in enumerate(zip(images, names, strict=True)):
        sums.add(mean[index], std[index])
        part = {"mean": mean[index].astype(dtype), "std": std[index].astype(dtype)}
        part |= {f"tokens/{k}": array[index].astype(dtype) for k, array in enumerate(tokens)}
        _check_finite(part, name, made["dtype"])
        if made["images"]:
            part["image"] = encode_pixels(image)
        yield part


def _check_finite(part, name, dtype):
    for key, array in part.items():
        if not np.isfinite(array.astype(np.float32)).all():
            raise NotFinite(
                f"{name}: its {key} is NaN or infinite as {dtype}: the weights of the VAE or the "
                "teacher are damaged, or that type is too narrow (--dtype)"
            )


def _check(config, dtype, batch_size, *, text, mirrored):
    if dtype not in DTYPES:
        raise UserError(f"--dtype is {dtype!r}: use one of {', '.join(DTYPES)}")
    check_schema(batch_size, Batch, source="--batch-size")
    if config.data.source == latents.KIND:
        raise UserError(
            "config.data.source is 'latents' already: name the images to encode, as the argument "
            ":images of the second stage's configurations does"
        )
    if base.is_identity(build_tokenizer(config)):
        raise UserError(
            f"config.tokenizer.family is {config.tokenizer.family!r}, whose latents are the "
            "images: pack these with `prepare`, and train on them"
        )
    if not config.tokenizer.weights:
        raise UserError(
            "config.tokenizer.weights is empty: name the VAE that encodes "
            "(--config.tokenizer.weights=PATH)"
        )
    validate(config)
    captioned = config.text_encoder.family != NO_TEXT
    if text and not captioned:
        raise UserError(
            "--text keeps the states of a text encoder, but config.text_encoder names none: leave "
            "--text out, or name one (--config.text_encoder.arch)"
        )
    if mirrored and captioned:
        raise UserError(
            "--mirrored encodes mirrored images, which no longer fit captions that say left or "
            "right: leave it out, as config.data.flip is False in a run with captions"
        )
    check_files(config)
