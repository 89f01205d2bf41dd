"""Qwen-Image's VAE against diffusers' module on videos of one frame."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from repae_jax.errors import UserError
from repae_jax.interop.qwen_image import export_qwen, load_qwen, qwen_config
from repae_jax.models.tokenizers.qwen_image_vae import (
    AutoencoderKLQwenImage,
    CausalConv,
    RMSNorm,
    TimeConv,
)

CASES = {
    "both temporal flags": (
        dict(multipliers=(1, 2, 2), temporal_downsample=(False, True), num_res_blocks=1),
        (2, 8, 12),
    ),
    "attention in the levels": (
        dict(
            multipliers=(2, 1),
            temporal_downsample=(True,),
            num_res_blocks=2,
            attn_scales=(0.5,),
            image_channels=4,
        ),
        (1, 6, 4),
    ),
}


def make_reference(model):
    """diffusers' module with the dimensions of ours and every weight random."""
    import diffusers

    reference = parity.randomise(diffusers.AutoencoderKLQwenImage(**qwen_config(model)))
    for name, parameter in reference.named_parameters():
        if name.endswith("gamma"):
            parameter.data = 1.0 + 0.2 * parameter.data  # as `randomise` has other norms' scales
        if name.startswith("decoder.conv_out"):
            parameter.data *= 3  # so that some pixels reach the clamp
    return reference


def frame(images):
    """(B, H, W, C) array -> (B, C, 1, H, W) tensor."""
    return parity.to_nchw(images)[:, :, None]


def images_of(video):
    """(B, C, 1, H, W) tensor -> (B, H, W, C) tensor."""
    return video[:, :, 0].permute(0, 2, 3, 1)


def encoded(reference, video):
    """The posterior, where diffusers' own `encode` fails too.

    It hands every block of the encoder a cache of frames, which its attention does not take. One
    frame needs no cache.
    """
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    if reference.config.attn_scales:
        return DiagonalGaussianDistribution(reference.quant_conv(reference.encoder(video)))
    return reference.encode(video).latent_dist


def acts_on_no_image(name):
    return ".time_conv." in name


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_diffusers(case):
    config, size = CASES[case]
    model = AutoencoderKLQwenImage(base_dim=4, latent_channels=3, **config)
    reference = make_reference(model)
    params = load_qwen(parity.state_of(reference), model)
    images = parity.normal(*size, model.image_channels, seed=1)
    latents = (size[0], size[1] // model.factor, size[2] // model.factor, model.latent_channels)
    noise = parity.normal(*latents, seed=2)

    video = frame(images).requires_grad_()
    posterior = encoded(reference, video)
    z = posterior.mean + posterior.std * frame(noise)
    reconstruction = reference.decode(z).sample
    expected = [images_of(v) for v in (reconstruction, posterior.mean, posterior.logvar)]
    clamped = expected[0].abs() == 1
    assert clamped.any(), "the clamp of the reconstruction is not reached"
    assert not clamped.all(), "the clamp hides the reconstruction"
    weights = [parity.normal(*e.shape, seed=3 + i) for i, e in enumerate(expected)]
    sum((e * torch.tensor(w)).sum() for e, w in zip(expected, weights, strict=True)).backward()

    def weighted(params, images):
        posterior, reconstruction = model.apply({"params": params}, images, noise)
        outputs = [reconstruction, posterior.mean, posterior.logvar]
        return sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)), outputs

    gradient = parity.quick_jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))
    (by_params, by_images), outputs = gradient(params, images)
    names = ["reconstruction", "mean", "log-variance"]
    for name, actual, value in zip(names, outputs, expected, strict=True):
        parity.assert_close(actual, value, name)
    parity.assert_close(by_images, images_of(video.grad), "gradient by the images")

    actual = export_qwen(by_params, model)
    reached = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    idle = {name: array for name, array in actual.items() if name not in reached}
    assert idle
    assert all(acts_on_no_image(name) and not array.any() for name, array in idle.items())
    parity.assert_tensors_close({n: a for n, a in actual.items() if n not in idle}, reached)
    assert set(actual) == set(dict(reference.named_parameters()))


def test_rms_norm_equals_diffusers_also_at_zero_and_below_the_bound():
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageRMS_norm

    x = parity.normal(1, 2, 3, 5, seed=0)
    x[0, 0] *= np.array([[0.0], [1e-14], [1e-11]], np.float32)  # a norm of 0, below, above 1e-12
    weights = parity.normal(*x.shape, seed=1)
    reference = parity.randomise(QwenImageRMS_norm(5))
    leaf = parity.to_nchw(x).requires_grad_()
    expected = reference(leaf)
    (expected * parity.to_nchw(weights)).sum().backward()

    norm = RMSNorm(jnp.float32, activate=False)
    params = {"scale": reference.gamma.detach().numpy()[:, 0, 0]}

    def weighted(params, x):
        y = norm.apply({"params": params}, x)
        return (y * weights).sum(), y

    gradient = parity.quick_jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))
    (by_params, by_x), y = gradient(params, x)
    parity.assert_close(by_params["scale"], reference.gamma.grad[:, 0, 0], "gradient by scale")
    assert not y[0, 0, 0].any()
    expected, by_leaf = parity.to_nhwc(expected), parity.to_nhwc(leaf.grad)
    for place in np.ndindex(x.shape[:3]):  # each by itself: their scales are 1e12 apart
        parity.assert_close(by_x[place], by_leaf[place], f"gradient by x at {place}")
        if expected[place].any():
            parity.assert_close(y[place], expected[place], f"value at {place}")


def test_products_are_in_dtype_and_images_in_float32():
    model = AutoencoderKLQwenImage(
        base_dim=4, latent_channels=3, multipliers=(1,), temporal_downsample=(), dtype=jnp.bfloat16
    )
    images, noise = jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), images, noise)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    jaxpr = jax.make_jaxpr(model.apply)(params, images, noise)
    assert {a.dtype for a in jaxpr.out_avals} == {jnp.dtype(jnp.float32)}
    products = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    assert products
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 1, 1), (3, 1, 1)])
def test_convolutions_are_initialised_as_torch_does(kernel):
    key, x = jax.random.key(0), jnp.zeros((1, 2, 2, 48))
    if kernel == (3, 1, 1):
        params = TimeConv(48, 64).init(key)["params"]
    else:
        params = CausalConv(64, kernel[0], jnp.float32).init(key, x)["params"]
    torch.manual_seed(0)
    reference = torch.nn.Conv3d(48, 64, kernel)
    pairs = (
        (params["kernel"].transpose(4, 3, 0, 1, 2), reference.weight),
        (
            params["bias"],
            reference.bias,
        ),
    )
    for ours, theirs in pairs:
        theirs = parity.as_numpy(theirs)
        assert ours.shape == theirs.shape
        # uniform: its bound shows in the largest and in the spread
        np.testing.assert_allclose(np.abs(ours).max(), np.abs(theirs).max(), rtol=0.1)
        np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.2)


def test_a_wrong_number_of_temporal_flags_is_named():
    model = AutoencoderKLQwenImage(multipliers=(1, 2), temporal_downsample=(True, False))
    images, noise = jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 1, 1, 16))
    with pytest.raises(UserError, match=r"temporal_downsample \(True, False\) has 2 entries"):
        jax.eval_shape(model.init, jax.random.key(0), images, noise)
