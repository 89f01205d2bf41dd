"""What a run generates images of: classes, or captions with the tokenizer of its text encoder."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from repae_jax.config.modules import build_text_encoder
from repae_jax.data import caption_states
from repae_jax.data.source import Source, check_captions
from repae_jax.data.tokens import FILE, Tokenize
from repae_jax.errors import BadImage, UserError, warn
from repae_jax.interop import hub
from repae_jax.models.networks import Models, condition_of
from repae_jax.models.text_encoders.base import TextEncoder
from repae_jax.runs.fingerprint import weights_sha256
from repae_jax.sampling.class_labels import balanced_labels
from repae_jax.sampling.prompts import spread
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.schema import short_repr

Inputs = dict[str, np.ndarray]


def make_tokenize(config: ConfigDict) -> Tokenize | None:
    """Make what turns the run's captions into token ids; None for a run without captions.

    Raises:
      UserError: there is no tokenizer.json, it is damaged, or it is not the text encoder's.
    """
    encoder = build_text_encoder(config)
    if encoder is None:
        return None
    tokenize = Tokenize(str(_tokenizer_file(config.text_encoder)), encoder.length, encoder.pad_id)
    tokenize.check(encoder.vocabulary, encoder.null_ids)
    return tokenize


def _tokenizer_file(section):
    """The tokenizer.json that a section names, or the one beside the weights."""
    if section.tokenizer:
        return hub.locate(section.tokenizer)
    weights = hub.locate(section.weights, (FILE,))
    file = (weights if weights.is_dir() else weights.parent) / FILE
    if not file.is_file():
        raise UserError(
            f"{file} is missing, the tokenizer of config.text_encoder.weights: put it there, or "
            "name it with --config.text_encoder.tokenizer=PATH"
        )
    return file


def tokenized(tokenize: Tokenize, prompts: Sequence[str]) -> Inputs:
    """{"caption_ids": (N, L) int32, "caption_length": (N,) int32} of prompts."""
    rows = [tokenize(prompt) for prompt in prompts]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def warn_of_cut_prompts(tokenize: Tokenize, prompts: Sequence[str]) -> None:
    """Warn of prompts whose ends the text encoder does not read."""
    cut = [prompt for prompt in prompts if tokenize.cuts(prompt)]
    if cut:
        warn(
            f"{len(cut)} of {len(prompts)} prompts are longer than the text encoder's "
            f"{tokenize.length} tokens, such as {short_repr(cut[0])}: their ends are not read"
        )


def check_tokenizer(workdir: pathlib.Path, tokenize: Tokenize) -> None:
    """Raise UserError if a run began with another tokenizer, of which its folder has a copy."""
    copy = workdir / FILE
    if (
        copy.is_file()
        and dataclasses.replace(tokenize, path=str(copy)).sha256() != tokenize.sha256()
    ):
        raise UserError(
            f"{tokenize.path} is another tokenizer than the run in {workdir} began with, a copy of "
            f"which is {copy}: put that one in its place, or begin another run"
        )


def keep_tokenizer(workdir: pathlib.Path, tokenize: Tokenize) -> None:
    """Write a copy of the tokenizer into a run's folder, unless it has one."""
    if not (workdir / FILE).is_file():
        write_atomically(workdir / FILE, pathlib.Path(tokenize.path).read_bytes())


def made_states(
    encoder: TextEncoder, variables: Mapping[str, Any], tokenize: Tokenize
) -> caption_states.Made:
    """What identifies the states of captions by a text encoder with its tokenizer.

    Args:
      encoder: the text encoder.
      variables: its variables.
      tokenize: its tokenizer.
    """
    return {
        "encoder": weights_sha256(variables["params"]),
        "tokenizer": tokenize.sha256(),
        "length": encoder.length,
        "width": encoder.dim,
    }


def with_negative_prompt(
    weights: Mapping[str, Any], models: Models, tokenize: Tokenize, prompt: str
) -> dict[str, Any]:
    """The weights of `make_generate` with a prompt as what guidance leads away from.

    Args:
      weights: from `sampling_weights`.
      models: the networks.
      tokenize: the run's tokenizer.
      prompt: the negative prompt; "" is the null condition that training used.
    """
    inputs = tokenized(tokenize, [prompt])
    states = jax.jit(lambda weights: condition_of(models, weights, inputs))(weights)
    return {**weights, "null_condition": jax.tree.map(lambda leaf: leaf[0], states)}


def captions_of(source: Source, count: int) -> list[str]:
    """The captions of a source's first `count` images, from the beginning if it has fewer.

    Captions that cannot be read are passed over.

    Raises:
      UserError: the source has no captions, or none can be read.
    """
    check_captions(source)
    captions = []
    for index in range(len(source)):
        if len(captions) == count:
            break
        with contextlib.suppress(BadImage):
            captions.append(source.caption(index))
    if not captions:
        raise UserError(f"{source.name}: none of its {len(source)} captions can be read")
    return [captions[number % len(captions)] for number in range(count)]


def inputs_in_turn(config: ConfigDict, source: Source, count: int) -> Inputs:
    """The inputs of `count` images: all classes in turn, or the captions of the data in turn.

    Args:
      config: the run's configuration.
      source: its data; read only for captions.
      count: N.

    Returns:
      {"label": (N,) int32}, or the arrays of `tokenized`.

    Raises:
      UserError: the run has captions, and the source or the tokenizer is not there.
    """
    tokenize = make_tokenize(config)
    if tokenize is None:
        return {"label": balanced_labels(count, config.data.num_classes)}
    return tokenized(tokenize, captions_of(source, count))


def grid_inputs(
    config: ConfigDict, source: Source, rows: int, columns: int
) -> tuple[Inputs, np.ndarray, list[str]]:
    """The inputs of a grid: `columns` images of each of the first classes or captions.

    Returns:
      The inputs, the row (N,) int32 of each image, and the names of at most `rows` rows.

    Raises:
      UserError: the run has captions, and the source or the tokenizer is not there.
    """
    tokenize = make_tokenize(config)
    if tokenize is None:
        count = min(rows, config.data.num_classes)
        numbers = np.repeat(np.arange(count, dtype=np.int32), columns)
        return {"label": numbers}, numbers, [str(number) for number in range(count)]
    captions = captions_of(source, min(rows, len(source)))
    numbers = np.repeat(np.arange(len(captions), dtype=np.int32), columns)
    return spread(tokenized(tokenize, captions), columns), numbers, captions
