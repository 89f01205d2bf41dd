"""Files of weights to look at, and what `inspect` and refusals say."""

import argparse
import functools

import diffusers_vae
import jax
import numpy as np
import parity
import torch

from repae_jax.cli import main
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL

VAE = AutoencoderKL(channels=32, multipliers=(1, 2), latent_channels=3, num_res_blocks=1)


def blank(shapes):
    """Zeros of these shapes that take no memory, however large the model."""
    return jax.tree.map(lambda s: np.broadcast_to(np.zeros((), s.dtype), s.shape), shapes)


def random(shapes, seed=0):
    """Float32 numbers of these shapes, positive, so that they may be variances."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.uniform(0.1, 1, s.shape).astype(np.float32), shapes)


def inspect(path, capsys):
    """What the command prints, as {label: text}; it must succeed without a word on stderr."""
    capsys.readouterr()
    assert main(["inspect", str(path)]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return dict(line.split(maxsplit=1) for line in output.out.splitlines())


def refused(words, capsys):
    """The one line with which a command refuses, with status 2."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    return output.err


def tree(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def numbers(module):
    return sum(p.numel() for p in module.state_dict().values())


def parts_of(checkpoint, *keys):
    with torch.serialization.safe_globals([argparse.Namespace]):
        whole = torch.load(checkpoint, weights_only=True)
    return {key: whole[key] for key in keys}


def second_stage(checkpoint, kind):
    """A checkpoint without VAE; REPA's first ones call the blocks behind the encoder otherwise."""
    content = parts_of(checkpoint, "model", "ema", "opt", "steps")
    if kind != "ldm":
        for key in ("model", "ema"):
            kept = {n: t for n, t in content[key].items() if not n.startswith("bn.")}
            first = "blocks.1." if kind == "repa-first" else "-"
            content[key] = {n.replace(first, "decoder_blocks.0."): t for n, t in kept.items()}
    return content


@functools.cache
def _ldm_arrays():
    peer = parity.randomise(diffusers_vae.make_vae(VAE))
    return diffusers_vae.ldm_names(parity.state_of(peer))


def ldm_tensors(dtype=torch.float32):
    """The tensors of `VAE`, to keep."""
    return {name: torch.tensor(array).to(dtype) for name, array in _ldm_arrays().items()}


def write_statistics(path, scale=(2.0, 1.0, 0.5), bias=(0.1, -0.2, 0.3)):
    parts = {"latents_scale": scale, "latents_bias": bias}
    torch.save({n: torch.tensor(v).reshape(1, -1, 1, 1) for n, v in parts.items()}, path)


def wrapped(prefix, tensors):
    """The same under longer names."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def assert_same_trees(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)
