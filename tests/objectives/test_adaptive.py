"""The adaptive weight against torch's gradients, at the last layer of a decoder or an encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
from diffusers_vae import ldm_names, make_vae

from repae_jax.interop.autoencoder_kl import load_vae
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.base import parameter_shapes
from repae_jax.models.tokenizers.dc_ae import AutoencoderDC
from repae_jax.models.tokenizers.qwen_image_vae import AutoencoderKLQwenImage
from repae_jax.objectives.adaptive import adaptive_weight, gradients_at

VAE = AutoencoderKL(
    channels=4, multipliers=(1, 1), latent_channels=2, num_res_blocks=1, middle_attention=False,
    groups=2,
)  # fmt: skip


def squares(x):
    return (x**2).mean()


def waves(x):
    return (x**3).sum()


@pytest.fixture(scope="module")
def pair():
    reference = parity.randomise(make_vae(VAE))
    return reference, load_vae(ldm_names(parity.state_of(reference)), VAE)


def test_gradients_at_the_decoders_last_layer_equal_torch(pair):
    reference, params = pair
    z = parity.normal(2, 4, 4, 2, seed=0)
    images = reference.decode(parity.to_nchw(z)).sample
    weight = reference.decoder.conv_out.weight

    def decode(params):
        return VAE.apply({"params": params}, z, method="decode")

    actual = gradients_at(VAE.last_layer, params, decode, squares, waves)
    for ours, term in zip(actual, (squares, waves), strict=True):
        theirs = torch.autograd.grad(term(images), weight, retain_graph=True)[0]
        parity.assert_close(ours, theirs.permute(2, 3, 1, 0), term.__name__)


def test_gradients_at_the_encoders_last_layer_equal_torch(pair):
    """The one that VA-VAE compares: of the decoded images, and of the latents."""
    reference, params = pair
    x = parity.normal(2, 8, 8, 3, seed=0)
    z = reference.encode(parity.to_nchw(x)).latent_dist.mean
    images = reference.decode(z).sample
    weight = reference.encoder.conv_out.weight

    def both(params):
        z = VAE.apply({"params": params}, x, method="encode").mean
        return z, VAE.apply({"params": params}, z, method="decode")

    terms = (lambda it: squares(it[1]), lambda it: waves(it[0]))
    actual = gradients_at(VAE.last_encoder_layer, params, both, *terms)
    for ours, value in zip(actual, (squares(images), waves(z)), strict=True):
        theirs = torch.autograd.grad(value, weight, retain_graph=True)[0]
        parity.assert_close(ours, theirs.permute(2, 3, 1, 0), "gradient")


def test_the_weight_is_the_ratio_of_norms_within_its_limit():
    reference, gradient = parity.normal(3, 4, seed=0), parity.normal(3, 4, seed=1)
    norms = np.linalg.norm(reference), np.linalg.norm(gradient)
    weight = adaptive_weight(reference, gradient, epsilon=0.5, limit=10.0)
    np.testing.assert_allclose(weight, norms[0] / (norms[1] + 0.5), rtol=1e-6)
    assert adaptive_weight(reference, 0 * gradient, epsilon=1e-6, limit=1e4) == 1e4
    assert adaptive_weight(0 * reference, gradient, epsilon=1e-6, limit=1e4) == 0
    slope = jax.grad(lambda g: adaptive_weight(g, gradient, epsilon=0.5, limit=10.0))(reference)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize(
    "tokenizer",
    [
        VAE,
        AutoencoderKL(
            channels=4, multipliers=(1, 1), latent_channels=8, groups=2, patchify=True,
            decoder_channels=8,
        ),
        AutoencoderKLQwenImage(
            base_dim=4, multipliers=(1, 1), latent_channels=2, num_res_blocks=1,
            temporal_downsample=(False,),
        ),
        AutoencoderDC(
            widths=(4, 8), encoder_layers=(1, 1), decoder_layers=(1, 1), latent_channels=4
        ),
        AutoencoderDC(
            widths=(4, 8), encoder_layers=(0, 1), decoder_layers=(0, 1), latent_channels=4
        ),
        AutoencoderDC(
            widths=(4, 8), encoder_layers=(0, 1), decoder_layers=(0, 1), latent_channels=4,
            shuffle=False,
        ),
    ],
    ids=["KL", "FLUX.2", "Qwen-Image", "DC-AE", "DC-AE without level 0", "SANA"],
)  # fmt: skip
def test_tokenizers_name_their_last_layers(tokenizer):
    """Images are linear in the one, and it alone makes them."""
    shapes = parameter_shapes(tokenizer)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    for path in (tokenizer.last_layer, tokenizer.last_encoder_layer):
        names, node = path.split("/"), shapes
        for name in names[:-1]:
            node = node[name]
        assert node["kernel"].ndim >= 4
        assert names[-1] == "kernel"
    head, *names = tokenizer.last_layer.split("/")
    layer = params[head]
    for name in names[:-1]:
        layer = layer[name]
    layer["kernel"] = jnp.zeros_like(layer["kernel"])
    z = jnp.ones((1, 2, 2, tokenizer.latent_channels))
    images = jax.eval_shape(lambda: tokenizer.apply({"params": params}, z, method="decode"))
    assert images.shape[-1] == 3
    constants = tokenizer.init(jax.random.key(0), jnp.zeros((1, *images.shape[1:])), z)
    made = tokenizer.apply({**constants, "params": params}, z, method="decode")
    np.testing.assert_array_equal(made, made[0, 0, 0, 0])  # the bias alone
