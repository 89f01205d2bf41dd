import functools
import math

import diffusers_vae
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from repae_jax.interop import tables
from repae_jax.interop.autoencoder_kl import ldm_rules, load_vae
from repae_jax.models.tokenizers.autoencoder_kl import VAE_CONFIGS, AutoencoderKL
from repae_jax.models.tokenizers.distributions import Gaussian

# One block a level instead of two halves the time that compilation takes.
CASES = {
    "f8d4, quant convs": (
        dict(multipliers=(1, 2, 2, 2), latent_channels=4),
        (2, 16, 32),
    ),
    # larger than the 256 pixels for which the original decides where attention goes
    "f16d32, no quant convs": (
        dict(
            multipliers=(1, 1, 2, 2, 3),
            latent_channels=6,
            attention_levels=(4,),
            quant_conv=False,
        ),
        (1, 272, 32),
    ),
}


def reference_and_model(config):
    """diffusers' module with every weight random, and our model with its weights."""
    model = AutoencoderKL(channels=16, groups=8, num_res_blocks=1, **config)
    reference = parity.randomise(diffusers_vae.make_vae(model))
    parity.shrink(reference.encoder.conv_in, 1e-3)
    parity.shrink(reference.decoder.conv_in, 1e-3)
    tensors = diffusers_vae.ldm_names(parity.state_of(reference))
    return reference, model, {"params": load_vae(tensors, model)}


def zero_but_for_rounding(name):
    """A key's bias moves all logits of a row alike; the query's tells the scale."""
    return name[: -len("k.bias")] + "q.bias" if name.endswith(".k.bias") else None


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_diffusers(case):
    config, size = CASES[case]
    reference, model, variables = reference_and_model(config)
    images = parity.normal(*size, 3, seed=1)
    latents = (size[0], size[1] // model.factor, size[2] // model.factor, model.latent_channels)
    noise = parity.normal(*latents, seed=2)

    images_torch = parity.to_nchw(images).requires_grad_()
    posterior = reference.encode(images_torch).latent_dist
    z = posterior.mean + posterior.std * parity.to_nchw(noise)
    values = [reference.decode(z).sample, posterior.mean, posterior.logvar]
    expected = [*(v.permute(0, 2, 3, 1) for v in values), posterior.kl()]
    weights = [parity.normal(*e.shape, seed=3 + i) for i, e in enumerate(expected)]
    sum((e * torch.tensor(w)).sum() for e, w in zip(expected, weights, strict=True)).backward()

    def weighted(variables, images):
        posterior, reconstruction = model.apply(variables, images, noise)
        outputs = [reconstruction, posterior.mean, posterior.logvar, posterior.kl()]
        return sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)), outputs

    gradient = parity.quick_jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))
    (by_weights, by_images), outputs = gradient(variables, images)
    names = ["reconstruction", "mean", "log-variance", "KL"]
    for name, actual, value in zip(names, outputs, expected, strict=True):
        parity.assert_close(actual, value, name)
    parity.assert_close(by_images, parity.to_nhwc(images_torch.grad), "gradient by the images")
    parity.assert_tensors_close(
        tables.to_theirs(ldm_rules(), tables.flatten(by_weights["params"])),
        diffusers_vae.ldm_names(parity.gradients_of(reference)),
        vanishing=zero_but_for_rounding,
    )


def test_posterior_equals_diffusers_beyond_the_clamp():
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    moments = parity.normal(2, 3, 5, 8, seed=0)
    moments[..., 4:] *= 15
    moments[0, 0, 0, 4:] = [-31, 21, -200, 90]
    weights = [parity.normal(2, 3, 5, 4, seed=1), parity.normal(2, seed=2)]
    noise = parity.normal(2, 3, 5, 4, seed=3)

    leaf = parity.to_nchw(moments).requires_grad_()
    expected = DiagonalGaussianDistribution(leaf)
    sample = (expected.mean + expected.std * parity.to_nchw(noise)).permute(0, 2, 3, 1)
    outputs = [sample, expected.kl()]
    sum((o * torch.tensor(w)).sum() for o, w in zip(outputs, weights, strict=True)).backward()

    def weighted(moments):
        posterior = Gaussian.from_moments(moments)
        outputs = posterior.sample(noise), posterior.kl()
        return sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)), posterior

    gradient, posterior = parity.quick_jit(jax.grad(weighted, has_aux=True))(moments)
    parity.assert_close(posterior.mean, parity.to_nhwc(expected.mean), "mean")
    parity.assert_close(posterior.logvar, parity.to_nhwc(expected.logvar), "log-variance")
    assert (posterior.logvar.min(), posterior.logvar.max()) == (-30, 20)
    parity.assert_close(posterior.std, parity.to_nhwc(expected.std), "standard deviation")
    parity.assert_close(posterior.kl(), expected.kl(), "KL")
    parity.assert_close(gradient, parity.to_nhwc(leaf.grad), "gradient")
    assert not gradient[0, 0, 0, 4:].any()


def test_kl_equals_torch_distributions():
    mean, logvar = parity.normal(2, 3, 5, 4, seed=0), parity.normal(2, 3, 5, 4, seed=1)
    q = torch.distributions.Normal(torch.tensor(mean), torch.tensor(np.exp(0.5 * logvar)))
    p = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(q, p).sum(dim=(1, 2, 3))
    parity.assert_close(Gaussian(jnp.asarray(mean), jnp.asarray(logvar)).kl(), expected, "KL")


@functools.cache
def our_shapes(model):
    """LDM names -> shapes of the parameters, without allocating any."""
    images = jnp.zeros((1, model.factor, model.factor, 3))
    noise = jnp.zeros((1, 1, 1, model.latent_channels))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, noise)["params"]
    return tables.exported_shapes(
        lambda params: tables.to_theirs(ldm_rules(), tables.flatten(params)), shapes
    )


@pytest.mark.parametrize("quant_conv", [True, False])
@pytest.mark.parametrize("name", VAE_CONFIGS)
def test_published_families_have_the_tensors_of_diffusers(name, quant_conv):
    model = AutoencoderKL(**{**VAE_CONFIGS[name], "quant_conv": quant_conv})
    with torch.device("meta"):
        reference = diffusers_vae.ldm_names(diffusers_vae.make_vae(model).state_dict())
    assert our_shapes(model) == {name: tuple(t.shape) for name, t in reference.items()}


@pytest.mark.parametrize(("name", "millions"), [("f8d4", 83.7), ("f16d32", 69.8)])
def test_published_sizes(name, millions):
    shapes = our_shapes(AutoencoderKL(**VAE_CONFIGS[name]))
    assert round(sum(math.prod(shape) for shape in shapes.values()) / 1e6, 1) == millions
