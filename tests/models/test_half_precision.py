"""float16 and bfloat16 on this device: every network near its float32, and whole VAEs."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny
from sits import sit_of

from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.interop.vae_files import write_diffusers
from repae_jax.models.encoders.vit import create_vit
from repae_jax.models.layers import attend
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.qwen_image_vae import AutoencoderKLQwenImage
from repae_jax.runs.pretrained import PretrainedVAE

IMAGES = parity.normal(2, 16, 16, 3, seed=0).clip(-1, 1)
LATENTS = parity.normal(2, 8, 8, 4, seed=1)
TIMES, LABELS = np.array([0.3, 0.6], np.float32), np.array([0, 1])
KL = AutoencoderKL(channels=8, multipliers=(1, 2), latent_channels=4, num_res_blocks=1, groups=4)
NETWORKS = {
    "kl": (KL, (IMAGES, LATENTS)),
    "qwen": (
        AutoencoderKLQwenImage(
            base_dim=8, latent_channels=4, multipliers=(1, 2), num_res_blocks=1,
            temporal_downsample=(True,),
        ),
        (IMAGES, LATENTS),
    ),
    "sit": (
        sit_of(
            latent_size=8, latent_channels=4, patch_size=2, hidden_size=32, depth=1, num_heads=2,
            num_classes=3, encoder_depth=1, teacher_dims=(8,), projector_dim=8, qk_norm=True,
        ),
        (LATENTS, TIMES, {"label": LABELS}),
    ),
    "vit": (
        create_vit("dinov2-s", dim=32, depth=1, num_heads=2, patch_size=8, native_grid=2),
        (IMAGES,),
    ),
}  # fmt: skip
# digits: 11 and 8 bits; sums in float32 keep the error to a few of the last one
LIMITS = {"float16": 4e-3, "bfloat16": 3e-2}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_near_their_float32(name):
    model, inputs = NETWORKS[name]
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda s: (rng.normal(size=s.shape) / np.sqrt(np.prod(s.shape[:-1]) or 1)).astype("f4"),
        variables,
    )
    exact = jax.tree.leaves(parity.quick_jit(model.apply)(variables, *inputs))
    for dtype, limit in LIMITS.items():
        half = model.clone(dtype=jnp.dtype(dtype))
        near = jax.tree.leaves(parity.quick_jit(half.apply)(variables, *inputs))
        for one, other in zip(near, exact, strict=True):
            parity.assert_close(one.astype(jnp.float32), other, f"{name} {dtype}", limit)


@pytest.mark.parametrize("dtype", LIMITS)
def test_attention_sums_in_float32(dtype):
    """2,000 equal terms: float16 would end at 65,504, bfloat16 at 256."""
    q = jnp.ones((1, 3, 1, 2_000), dtype)
    v = jnp.arange(3, dtype=dtype)[None, :, None, None] * q
    np.testing.assert_allclose(attend(q, q, v).astype(jnp.float32), 1.0, rtol=1e-2)
    gradient = jax.grad(lambda q: attend(q, q, v).astype(jnp.float32).sum())(q)
    assert (gradient.dtype, bool(jnp.isfinite(gradient).all())) == (q.dtype, True)


@pytest.mark.slow
def test_a_vae_in_float16_encodes_and_decodes(tmp_path):
    params = KL.init(jax.random.key(0), IMAGES, LATENTS)["params"]
    write_diffusers(tmp_path / "vae", PretrainedVAE(KL, params))
    half = PretrainedVAE.from_pretrained(tmp_path / "vae", dtype=jnp.float16)
    posterior, _ = parity.quick_jit(KL.apply)({"params": params}, IMAGES, LATENTS)
    decode = parity.quick_jit(lambda z: KL.apply({"params": params}, z, method="decode"))
    parity.assert_close(half.encode(IMAGES).mean, posterior.mean, "mean", LIMITS["float16"])
    parity.assert_close(half.decode(LATENTS), decode(LATENTS), "images", LIMITS["float16"])


def test_a_run_is_told_which_types_it_takes(tmp_path):
    config = tiny.get_config()
    config.dtype = "float16"
    with pytest.raises(UserError, match=r"config.dtype is 'float16': use 'float32' or 'bfloat16'"):
        validate(config)


@pytest.mark.parametrize(
    "dtype", [np.int32, bool, np.complex64, np.float64, jnp.float8_e4m3fn, "no", None, 3]
)
def test_other_types_are_refused_before_anything_is_read(dtype, tmp_path):
    with pytest.raises(UserError, match=r"dtype is .*: give one of float32, bfloat16, float16"):
        PretrainedVAE.from_pretrained(tmp_path / "nothing", dtype=dtype)
