"""What a run that has diverged makes: never pictures or figures of NaN without a word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from repae_jax.data.sources import open_source
from repae_jax.evaluation.autoencoder import measure_autoencoder
from repae_jax.evaluation.image_sets import from_source
from repae_jax.models.tokenizers.base import parameter_shapes
from repae_jax.parallel.mesh import make_mesh
from repae_jax.runs.build import build_models
from repae_jax.runs.pretrained import PretrainedVAE
from repae_jax.runs.statistics import latent_moments
from repae_jax.training import encode
from repae_jax.utils.finite import NotFinite


def broken_vae(value=np.nan):
    module = build_models(tiny.get_config()).tokenizer
    params = jax.tree.map(lambda s: jnp.full(s.shape, value), parameter_shapes(module))
    return PretrainedVAE(module, params)


def test_a_vae_of_nan_has_no_figures():
    source = open_source(tiny.get_config().data, "heldout")
    images = from_source(source, "digits", 32).first(4)
    with pytest.raises(NotFinite, match="digits: the VAE's latents of image 0 is NaN or infinite"):
        measure_autoencoder(broken_vae(), images, make_mesh(), batch_size=4)
    vae = broken_vae()
    with pytest.raises(NotFinite, match="the tokenizer makes latents that are NaN or infinite"):
        latent_moments(vae.module, vae.variables, source, 8, 8, progress=False)


def test_only_the_reconstruction_may_break():
    vae = broken_vae(0.01)
    params = {**vae.params, "decoder": jax.tree.map(jnp.zeros_like, vae.params["decoder"])}
    params["decoder"]["conv_out"]["bias"] = jnp.full(3, np.inf)
    images = from_source(open_source(tiny.get_config().data, "heldout"), "digits", 32).first(4)
    with pytest.raises(NotFinite, match="digits: the VAE's reconstruction of image 0 is NaN"):
        measure_autoencoder(PretrainedVAE(vae.module, params), images, make_mesh(), batch_size=4)


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (7e4, "float16")])
def test_a_cache_of_latents_holds_numbers(value, dtype):
    """NaN, and what float32 holds but the type in which latents are stored does not."""

    def encoder(images):
        mean = np.zeros((len(images), 8, 8, 2), np.float32)
        mean[1, 3] = value
        return mean, np.ones_like(mean), ()

    made = {"dtype": dtype, "images": False}
    images, names = np.zeros((2, 32, 32, 3), np.uint8), ["a.png", "b.png"]
    with pytest.raises(NotFinite, match=f"b.png: its mean is NaN or infinite as {dtype}"):
        list(encode._parts(images, names, encoder, made, encode.Sums((2,))))
