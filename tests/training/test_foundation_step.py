"""VA-VAE's step against torch: VF loss and the adversarial term, with their adaptive weights."""

import copy
import functools
import os
import pathlib
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import kinks
import numpy as np
import parity
import pytest
import tiny
import torch
from checkouts import module_of
from diffusers_vae import ldm_names, make_vae
from exported import export_discriminator
from torch.nn import functional
from torch_patchgan import TorchDiscriminator

from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.interop.autoencoder_kl import export_vae, load_vae
from repae_jax.interop.discriminator import load_discriminator
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.encoders.base import ViTTokens
from repae_jax.models.foundation import FoundationProjection
from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.objectives.objective import Objective
from repae_jax.runs.build import (
    build_models,
    build_objective,
    build_optimizers,
    fresh_state,
    latent_shape,
)
from repae_jax.runs.state import create_state
from repae_jax.training.noise import Draws, sample_draws
from repae_jax.training.step import make_loss, make_train_step

BATCH, SIDE, DIM, CHANNELS = 2, 16, 6, 2
PIXELS = 3 * SIDE * SIDE
# VA-VAE sums the distances of pixels, and adds LPIPS to each of them. Its discriminator starts at
# the optimizers' step 5001, of which a batch has two: the generator's first.
START = 5001
OBJECTIVE = Objective(
    reconstruction_weight=PIXELS, perceptual_weight=PIXELS, kl_weight=1e-2,
    adversarial_weight=0.5, adaptive_weight=True, adaptive_epsilon=1e-4,
    discriminator_start=2500, generator_start=2501, vf_weight=0.1,
)  # fmt: skip
NETWORKS = ("tokenizer", "foundation", "discriminator")
KERNEL = parity.normal(3, 5, seed=9)


class Perceptual(nn.Module):
    """In place of LPIPS: the squared differences of a linear map of the pixels, one per image."""

    @nn.compact
    def __call__(self, images, reconstructions):
        kernel = self.param("kernel", nn.initializers.ones, (3, 5))
        return jnp.square((images - reconstructions) @ kernel).mean((1, 2, 3))


class Encoder(nn.Module):
    """A vision encoder of one linear map of patches."""

    dim = DIM
    class_token = False

    @nn.nowrap
    def prepare(self, images):
        return images.astype(jnp.float32) / 255

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(DIM, (4, 4), 4, use_bias=False)(x)
        return ViTTokens(x.reshape(len(x), -1, DIM), None)


MODELS = Models(
    tokenizer=AutoencoderKL(
        channels=4, multipliers=(1, 1, 1), latent_channels=CHANNELS, num_res_blocks=1,
        middle_attention=False, groups=2,
    ),
    discriminator=PatchDiscriminator(filters=4, num_layers=2),
    foundation=FoundationProjection(DIM),
    lpips=Perceptual(),
    teachers={"encoder": Encoder()},
)  # fmt: skip


@functools.cache
def torch_networks():
    torch.manual_seed(0)
    vae = parity.randomise(make_vae(MODELS.tokenizer))
    projection = parity.randomise(torch.nn.Conv2d(CHANNELS, DIM, 1, bias=False), seed=1)
    return vae, projection, TorchDiscriminator(2, 4).train()


@functools.cache
def encoder_variables():
    return MODELS.teachers["encoder"].init(jax.random.key(3), jnp.zeros((1, SIDE, SIDE, 3)))


def make_inputs(seed):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(BATCH, SIDE // 4, SIDE // 4, CHANNELS)).astype(np.float32)
    return rng.integers(0, 256, (BATCH, SIDE, SIDE, 3)).astype(np.uint8), noise


def features_of(images):
    """The encoder's tokens (B, D, h, w)."""
    encoder = MODELS.teachers["encoder"]
    tokens = encoder.apply(encoder_variables(), encoder.prepare(images)).patch_tokens
    return torch.tensor(np.array(tokens)).transpose(1, 2).reshape(BATCH, DIM, 4, 4)


def perceptual(images, fake, kernel):
    difference = (images - fake).permute(0, 2, 3, 1) @ kernel
    return (difference**2).mean((1, 2, 3))


def generator_loss(images, fake, posterior, step, *, vae, judge, z, feature, kernel, found):
    """The loss of VAE and projection with its metrics, as the paper and its configurations say."""
    difference = (images - fake).abs()
    found.append(difference.detach())
    reconstruction = (difference + perceptual(images, fake, kernel)[:, None, None, None]).sum()
    reconstruction = reconstruction / BATCH
    gan = -judge(fake.permute(0, 2, 3, 1)).mean()

    def adaptive(loss, layer, limit):
        norms = [
            torch.autograd.grad(term, layer.weight, retain_graph=True)[0].norm()
            for term in (reconstruction, loss)
        ]
        return (norms[0] / (norms[1] + 1e-4)).clamp(0, limit).detach()

    directions = [functional.normalize(x.flatten(2), dim=1) for x in (z, feature)]
    difference = directions[0].transpose(1, 2) @ directions[0]
    difference = (difference - directions[1].transpose(1, 2) @ directions[1]).abs()
    off = ~torch.eye(16, dtype=bool).expand(BATCH, -1, -1)
    cosine = functional.cosine_similarity(feature, z)
    found += [difference[off].detach(), (difference - 0.25).detach(), (0.5 - cosine).detach()]
    distance = functional.relu(difference - 0.25).mean()
    cosine = functional.relu(1 - 0.5 - cosine).mean()
    vf_weight = adaptive(distance + cosine, vae.encoder.conv_out, 1e8)
    total = reconstruction + 1e-2 * posterior.kl().mean()
    total = total + 0.1 * vf_weight * (distance + cosine)
    metrics = {
        "vf_distance_loss": distance, "vf_cosine_loss": cosine, "vf_adaptive_weight": vf_weight,
    }  # fmt: skip
    if 2 * step >= START:
        weight = adaptive(gan, vae.decoder.conv_out, 1e4)
        total, metrics["adaptive_weight"] = total + 0.5 * weight * gan, weight
    return total, metrics


def original_loss(monkeypatch, kernel, judge):
    """VA-VAE's own class of losses, with this file's LPIPS and discriminator."""

    class LPIPS(torch.nn.Module):
        def forward(self, images, fake):
            return perceptual(images, fake, kernel)[:, None, None, None]

    class Judge(torch.nn.Module):
        def __init__(self, **kwargs):
            super().__init__()
            self.inner = judge

        def forward(self, x):
            return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    module = types.ModuleType("taming.modules.losses.vqperceptual")
    module.LPIPS, module.NLayerDiscriminator = LPIPS, Judge
    module.weights_init = lambda layer: None
    module.hinge_d_loss = lambda real, fake: (
        0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())
    )
    module.adopt_weight = lambda weight, step, threshold: weight if step >= threshold else 0.0
    module.torch, module.nn = torch, torch.nn
    for name in ("taming", "taming.modules", "taming.modules.losses"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    folder = pathlib.Path(os.environ["LIGHTNINGDIT_ORIGINAL"]) / "vavae/ldm/modules/losses"
    return module_of(folder / "contperceptual.py", "vavae_loss").LPIPSWithDiscriminator(
        START, kl_weight=1e-2, disc_weight=0.5, vf_weight=0.1, adaptive_vf=True,
        distmat_margin=0.25, cos_margin=0.5,
    )  # fmt: skip


def run_torch(networks, inputs, step, dtype=torch.float32, loss=None):
    """Gradients in the modules, the generator's total, its metrics, d_loss, and the distances."""
    vae, projection, judge = (module.to(dtype) for module in networks)
    kernel = torch.tensor(KERNEL, dtype=dtype)
    images = parity.to_nchw(inputs[0].astype(np.float32) / 127.5 - 1).to(dtype)
    feature = features_of(inputs[0]).to(dtype)
    with kinks.recorded(judge) as found:
        posterior = vae.encode(images).latent_dist
        sample = posterior.mean + posterior.std * parity.to_nchw(inputs[1]).to(dtype)
        fake, z = vae.decode(sample).sample, projection(sample)
        if loss is None:
            total, metrics = generator_loss(
                images, fake, posterior, step, vae=vae, judge=judge, z=z, feature=feature,
                kernel=kernel, found=found,
            )  # fmt: skip
        else:
            total, log = loss(
                images, fake, posterior, 0, 2 * step, last_layer=vae.decoder.conv_out.weight,
                enc_last_layer=vae.encoder.conv_out.weight, z=z, aux_feature=feature,
            )  # fmt: skip
            metrics = {"vf_adaptive_weight": log["train/vf_weight"] / 0.1}
        total.backward()
        judge.zero_grad()
        if loss is None:
            logits = [judge(x.detach().permute(0, 2, 3, 1)) for x in (images, fake)]
            found += [(1 - logits[0]).detach(), (1 + logits[1]).detach()]
            hinge = torch.relu(1 - logits[0]).mean() + torch.relu(1 + logits[1]).mean()
            d_loss = 0.5 * hinge * (2 * step + 1 >= START)
        else:
            d_loss, _ = loss(images, fake, posterior, 1, 2 * step + 1)
        d_loss.backward()
    return total, metrics, d_loss, list(found)


@functools.cache
def safe_inputs():
    def distances_of(inputs):
        def distances(dtype):
            with torch.enable_grad():
                return run_torch(copy.deepcopy(torch_networks()), inputs, 2501, dtype)[-1]

        return distances

    return kinks.first_safe(map(make_inputs, range(100)), distances_of)


@functools.cache
def our_gradients():
    loss = make_loss(MODELS, OBJECTIVE, NETWORKS)
    return parity.quick_jit(jax.grad(loss, has_aux=True))


def our_state(networks, step):
    vae, projection, judge = (parity.state_of(module) for module in networks)
    judge = load_discriminator(judge, MODELS.discriminator)
    params = {
        "tokenizer": load_vae(ldm_names(vae), MODELS.tokenizer),
        "foundation": {"projection": {"kernel": projection["weight"][:, :, 0, 0].T}},
        "discriminator": judge["params"],
    }
    frozen = {
        "lpips": {"params": {"kernel": KERNEL}},
        "teachers": {"encoder": encoder_variables()},
    }
    state = create_state(params, {"discriminator": judge["batch_stats"]}, frozen, {})
    return state.replace(step=jnp.asarray(step, jnp.int32))


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 2500, 2501])
@pytest.mark.parametrize("code", ["torch", "original"])
def test_losses_and_gradients_equal_torch(step, code, monkeypatch):
    """Before the discriminator's start, at its first step, and at the generator's."""
    inputs, networks = safe_inputs(), copy.deepcopy(torch_networks())
    loss = None
    if code == "original":
        if "LIGHTNINGDIT_ORIGINAL" not in os.environ:
            pytest.skip("set LIGHTNINGDIT_ORIGINAL to a checkout of hustvl/LightningDiT")
        loss = original_loss(monkeypatch, torch.tensor(KERNEL), networks[2])
    state = our_state(networks, step)
    nothing = jnp.zeros(BATCH)
    draws = Draws(inputs[1], nothing, jnp.zeros_like(inputs[1]), nothing > 0)
    grads, (metrics, _) = our_gradients()(state.params, state, {"image": inputs[0]}, draws)

    total, theirs, d_loss, _ = run_torch(networks, inputs, step, loss=loss)
    np.testing.assert_allclose(metrics["vae_loss"], float(total.detach()), rtol=1e-4)
    np.testing.assert_allclose(metrics["d_loss"], float(d_loss.detach()), rtol=1e-4)
    for name, value in theirs.items():
        np.testing.assert_allclose(metrics[name], float(value.detach()), rtol=1e-4, err_msg=name)
    expected = [parity.gradients_of(module) for module in networks]
    actual = export_vae(grads["tokenizer"], MODELS.tokenizer, "ldm")
    parity.assert_tensors_close(actual, ldm_names(expected[0]))
    kernel = grads["foundation"]["projection"]["kernel"]
    parity.assert_close(kernel, expected[1]["weight"][:, :, 0, 0].T, "projection")
    judge = {"batch_stats": state.batch_stats["discriminator"], "params": grads["discriminator"]}
    judge = export_discriminator(judge, MODELS.discriminator)
    judge = {name: judge[name] for name in expected[2]}
    if step < 2500:
        assert not any(np.any(array) for array in judge.values())
    else:
        parity.assert_tensors_close(judge, expected[2])


def vavae(**objective):
    config = tiny.get_config("vavae")
    config.objective.update(objective)
    config.teachers.small.patch_size = 4
    return config


@pytest.mark.slow
def test_the_recipe_trains_vae_projection_and_discriminator():
    config = vavae()
    validate(config)
    models = build_models(config)
    state = jax.jit(lambda key: fresh_state(config, models, key))(jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)}
    draws = sample_draws(jax.random.key(1), 8, latent_shape(config, models))
    step = jax.jit(make_train_step(models, build_objective(config), build_optimizers(config)))
    after, metrics = step(state, batch, draws)
    assert set(after.params) == {"tokenizer", "foundation", "discriminator"}
    for name, before in state.params.items():
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after.params[name]), strict=True)
        assert any(not np.array_equal(a, b) for a, b in pairs), name
    assert metrics["grad_norm_vf"] > 0
    assert metrics["vf_adaptive_weight"] > 0
    expected = (
        0.1
        * metrics["vf_adaptive_weight"]
        * (metrics["vf_distance_loss"] + metrics["vf_cosine_loss"])
    )
    np.testing.assert_allclose(metrics["weighted_vf_loss"], expected, rtol=1e-5)


def test_what_the_loss_needs_is_named():
    config = vavae()
    config.teachers.small.patch_size = 8
    with pytest.raises(UserError, match=r"'small' gives 4 x 4 tokens and the tokenizer 8 x 8"):
        validate(config)
    with pytest.raises(UserError, match=r"vf_weight is 0\.1.*spatial_norm is 0\.6"):
        validate(vavae(spatial_norm=0.6))
    config = vavae()
    del config.teachers.small
    with pytest.raises(UserError, match=r"vf_weight is 0\.1, but config\.teachers.*is empty"):
        validate(config)
