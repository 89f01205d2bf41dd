"""What a VAE is given: the right type, range and shape, or an error that says which is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repae_jax.errors import UserError
from repae_jax.models.lpips import LPIPS
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.base import parameter_shapes
from repae_jax.models.tokenizers.dc_ae import AutoencoderDC
from repae_jax.models.tokenizers.qwen_image_vae import AutoencoderKLQwenImage
from repae_jax.runs.pretrained import PretrainedVAE
from repae_jax.utils.images import to_uint8

MODULES = {  # each with a factor of 4 and 2 latent channels
    "kl": AutoencoderKL(
        channels=4, multipliers=(1, 1, 1), latent_channels=2, num_res_blocks=1, groups=2,
        middle_attention=False,
    ),
    "qwenimage": AutoencoderKLQwenImage(
        base_dim=4, latent_channels=2, multipliers=(1, 2, 2), num_res_blocks=1,
        temporal_downsample=(False, True),
    ),
    "dcae": AutoencoderDC(
        widths=(4, 8, 8), encoder_layers=(1, 1, 1), decoder_layers=(1, 1, 1), latent_channels=2,
        attention_levels=(2,), head_width=4,
    ),
}  # fmt: skip
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), np.uint8)
FLOATS = (PIXELS / 127.5 - 1).astype(np.float32)


@pytest.fixture(scope="module", params=MODULES)
def vae(request):
    module, rng = MODULES[request.param], np.random.default_rng(1)
    return PretrainedVAE(
        module,
        jax.tree.map(
            lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32),
            parameter_shapes(module),
        ),
    )


def test_pixels_and_floats_of_any_width_are_the_same_images(vae):
    expected = vae.encode(FLOATS).mean
    assert expected.shape == (2, 2, 3, 2)
    for images in (PIXELS, jnp.asarray(PIXELS), FLOATS.astype(np.float64)):
        np.testing.assert_allclose(vae.encode(images).mean, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, np.int8, bool, np.complex64])
def test_other_types_are_refused(vae, dtype):
    for images in (PIXELS.astype(dtype), jnp.asarray(PIXELS.astype(dtype))):
        with pytest.raises(TypeError, match=r"images are \w+: give uint8 pixels from 0 to 255"):
            vae.encode(images)
    with pytest.raises(TypeError, match=str(np.dtype(dtype))):
        vae.encode(PIXELS.astype(dtype))
    with pytest.raises(TypeError, match="images are"):  # the module, where all is traced
        jax.eval_shape(
            lambda x: vae.module.apply({"params": vae.params}, x, method="encode"),
            np.zeros((1, 8, 8, 3), dtype),
        )


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (PIXELS.astype(np.float32), "from 0 to 255"),
        (FLOATS * 2.64, "from -2.64 to 2.64"),  # ImageNet's mean and standard deviation
        (np.where(FLOATS > 0.99, np.nan, FLOATS), "from nan to nan"),
        (np.where(FLOATS > 0.99, np.inf, FLOATS), "to inf"),
    ],
    ids=["0 to 255", "by another mean", "nan", "inf"],
)
def test_floats_beyond_the_range_are_refused(vae, images, found):
    for given in (images, jnp.asarray(images)):
        with pytest.raises(UserError, match=rf"images are .*{found}: give .*x / 127\.5 - 1"):
            vae.encode(given)


def test_what_a_decoder_overshoots_is_taken_and_so_is_what_is_traced(vae):
    vae.encode(FLOATS * 1.4)
    shapes = jax.eval_shape(lambda x: vae.encode(x).mean, jax.ShapeDtypeStruct(FLOATS.shape, "f4"))
    assert shapes.shape == (2, 2, 3, 2)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 3, 3), r"3 x 3 pixels, which the VAE's factor 4 does not divide: .*multiples of 4"),
        ((1, 8, 10, 3), "8 x 10 pixels, which"),
        ((1, 0, 8, 3), "0 x 8 pixels, which"),
        ((8, 8, 3), r"\(8, 8, 3\), not \(B, H, W, 3\): add the batch's dimension, images\[None\]"),
        ((1, 3, 8, 8), r"\(1, 3, 8, 8\), .*: channels come last, images.transpose\(0, 2, 3, 1\)"),
        ((1, 8, 8, 4), r"images are \(1, 8, 8, 4\), not \(B, H, W, 3\)"),
        ((1, 8, 8), r"images are \(1, 8, 8\), not"),
        ((), r"images are \(\), not"),
        ((0, 8, 8, 3), r"images are \(0, 8, 8, 3\), a batch of none: give at least one"),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_other_shapes_are_named(vae, shape, dtype, message):
    with pytest.raises(UserError, match=message):
        vae.encode(np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("latents", "error", "message"),
    [
        (np.zeros((2, 3, 2), "f4"), UserError, r"latents are \(2, 3, 2\), not \(B, h, w, 2\)"),
        (np.zeros((1, 2, 3, 4), "f4"), UserError, r"latents are \(1, 2, 3, 4\), not"),
        (np.zeros((1, 2, 3, 4), "f4"), UserError, "channels come last"),
        (np.zeros((1, 2, 3, 2), "i4"), TypeError, "latents are int32: give floating point"),
        (PIXELS, TypeError, "latents are uint8"),
        (np.zeros((2, 2, 3, 1), "f4"), UserError, r"latents are \(2, 2, 3, 1\), not"),
        (np.zeros((0, 2, 3, 2), "f4"), UserError, "a batch of none: give at least one"),
        (np.zeros((1, 2, 0, 2), "f4"), UserError, r"\(1, 2, 0, 2\): give at least one row and one"),
        (None, TypeError, "latents are a NoneType, no array: give floating point"),
        ([[1.0], [1.0, 2.0]], TypeError, "latents are a list, no array"),
    ],
)
@pytest.mark.parametrize("method", ["decode", "normalize", "denormalize"])
def test_other_latents_are_named(vae, method, latents, error, message):
    vae = dataclasses.replace(vae, statistics={"mean": np.zeros(2), "var": np.ones(2)})
    with pytest.raises(error, match=message):
        getattr(vae, method)(latents)


@pytest.mark.parametrize("images", [None, "a.png", [[1.0], [1.0, 2.0]], object()])
def test_what_is_no_array_is_no_image(vae, images):
    with pytest.raises(TypeError, match=r"images are a \w+, no array: give uint8 pixels from 0"):
        vae.encode(images)
    with pytest.raises(TypeError, match=r"images are a \w+, no array: give floats"):
        to_uint8(images)


def test_lpips_takes_no_pixels():
    model, images = LPIPS(rescale_inputs=False, widths=(4,) * 5), jnp.zeros((1, 16, 16, 3))
    with pytest.raises(TypeError, match=r"LPIPS takes float images in \[-1, 1\], got uint8"):
        jax.eval_shape(model.init, jax.random.key(0), images, images.astype(jnp.uint8))
