"""Three steps of a VAE with RAE's adversarial training against torch, across its schedules."""

import copy
import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import kinks
import numpy as np
import optax
import parity
import pytest
import tiny
import torch
from diffusers_vae import ldm_names, make_vae
from torch_diffaug import diff_augment
from torch_dino_discriminator import TorchDinoDiscriminator, variables_of

from repae_jax.config import discriminator
from repae_jax.interop.autoencoder_kl import export_vae, load_vae
from repae_jax.interop.dino_discriminator import export_discriminator
from repae_jax.models.dino_discriminator import DinoDiscriminator
from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.objectives.metrics import METRICS
from repae_jax.objectives.objective import Objective
from repae_jax.runs.build import (
    build_models,
    build_objective,
    build_optimizers,
    fresh_state,
    latent_shape,
)
from repae_jax.runs.optimizers import adamw
from repae_jax.runs.state import create_state
from repae_jax.training.noise import Draws, sample_draws
from repae_jax.training.step import make_train_step

BATCH, SIDE, STEPS = 2, 8, 3
# LPIPS and the discriminator join at the second step, the adversarial term at the third.
OBJECTIVE = Objective(
    perceptual_weight=0.7, perceptual_start=1, kl_weight=1e-3, adversarial_weight=0.75,
    discriminator_start=1, generator_start=2, adaptive_weight=True, augmentation="diffaug",
    fake_latents="mean", fake_bytes=True,
)  # fmt: skip
# An epsilon that keeps the steps of parameters with tiny gradients small.
ADAM = dict(b1=0.5, b2=0.9, eps=1e-2)
RATES = {"tokenizer": 1e-2, "discriminator": 2e-2}


class Perceptual(nn.Module):
    """In place of LPIPS: the squared differences of a linear map of the pixels, one per image."""

    @nn.compact
    def __call__(self, images, reconstructions):
        kernel = self.param("kernel", nn.initializers.ones, (3, 5))
        return jnp.square((images - reconstructions) @ kernel).mean((1, 2, 3))


MODELS = Models(
    tokenizer=AutoencoderKL(
        channels=4, multipliers=(1, 1, 1), latent_channels=2, num_res_blocks=1,
        middle_attention=False, groups=2,
    ),
    discriminator=DinoDiscriminator(
        patch_size=4, dim=8, depth=2, num_heads=2, blocks=(1, 2), kernel=3, side=12
    ),
    lpips=Perceptual(),
)  # fmt: skip
KERNEL = parity.normal(3, 5, seed=9)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The batches and draws of all steps."""

    images: np.ndarray  # (steps, B, H, W, 3) uint8
    noise: np.ndarray  # (steps, B, h, w, c)
    numbers: np.ndarray  # (steps, B, 3, 5)


@dataclasses.dataclass
class Networks:
    """Torch's networks."""

    vae: torch.nn.Module
    judge: TorchDinoDiscriminator

    def arrays(self):
        vae = {f"vae/{k}": v for k, v in ldm_names(parity.state_of(self.vae)).items()}
        return vae | {f"judge/{k}": v for k, v in parity.state_of(self.judge).items()}

    def gradients(self, network):
        module = {"tokenizer": self.vae, "discriminator": self.judge}[network]
        found = {
            name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy().copy()
            for name, p in module.named_parameters()
        }
        return ldm_names(found) if network == "tokenizer" else found


@functools.cache
def _networks():
    vae = parity.randomise(make_vae(MODELS.tokenizer))
    vae.decoder.conv_out.weight.data *= 3  # so that some pixels lie beyond [-1, 1]
    return Networks(vae, TorchDinoDiscriminator(MODELS.discriminator))


def make_inputs(seed):
    rng = np.random.default_rng(seed)
    return Inputs(
        rng.integers(0, 256, (STEPS, BATCH, SIDE, SIDE, 3)).astype(np.uint8),
        rng.normal(size=(STEPS, BATCH, SIDE // 4, SIDE // 4, 2)).astype(np.float32),
        rng.uniform(size=(STEPS, BATCH, 3, 5)).astype(np.float32),
    )


def to_torch(x, dtype):
    return parity.to_nchw(x).to(dtype)


def train_torch(networks, inputs, dtype=torch.float32, objective=OBJECTIVE):
    """Yields after each step the metrics, and the distances from kinks of the step."""
    vae, judge, it = networks.vae.to(dtype), networks.judge.to(dtype), objective
    networks = {"tokenizer": vae, "discriminator": judge}
    optimizers = {
        name: torch.optim.AdamW(
            module.parameters(), RATES[name], (ADAM["b1"], ADAM["b2"]), ADAM["eps"], 0.0
        )
        for name, module in networks.items()
    }
    kernel = torch.tensor(KERNEL, dtype=dtype)
    for step in range(STEPS):
        images = to_torch(inputs.images[step].astype(np.float32) / 127.5 - 1.0, dtype)
        numbers = torch.tensor(inputs.numbers[step], dtype=dtype)
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        with kinks.recorded(judge.heads) as found:
            posterior = vae.encode(images).latent_dist
            sample = posterior.mean + posterior.std * to_torch(inputs.noise[step], dtype)
            fake = vae.decode(sample).sample
            difference = fake - images
            reconstruction = difference.abs().mean()
            found.append(difference.detach())
            if step >= it.perceptual_start:
                squares = (difference.permute(0, 2, 3, 1) @ kernel) ** 2
                reconstruction = reconstruction + it.perceptual_weight * squares.mean()
            total = reconstruction + it.kl_weight * posterior.kl().mean()
            metrics = {"gan_loss": 0.0, "adaptive_weight": 0.0, "d_loss": 0.0}
            if step >= max(it.generator_start, it.discriminator_start):
                judge.eval()
                gan = -judge(diff_augment(fake, numbers[:, 0])).mean()
                weight = vae.decoder.conv_out.weight
                norms = [
                    torch.autograd.grad(loss, weight, retain_graph=True)[0].norm()
                    for loss in (reconstruction, gan)
                ]
                scale = (norms[0] / (norms[1] + it.adaptive_epsilon)).clamp(0, it.adaptive_limit)
                total = total + it.adversarial_weight * scale.detach() * gan
                metrics |= {"gan_loss": gan, "adaptive_weight": scale}
            metrics["vae_loss"] = total
            total.backward()
            judge.zero_grad()  # the adversarial term trains the VAE alone
            if step >= it.discriminator_start:
                with torch.no_grad():
                    clean = vae.decode(posterior.mean).sample  # before the VAE's step
                    levels = (clean.clamp(-1, 1) + 1) * 127.5
                    found.append(0.5 - (levels - levels.round()).abs())
                judge.train()
                logits_fake = judge(diff_augment(levels.round() / 127.5 - 1, numbers[:, 1]))
                logits_real = judge(diff_augment(images, numbers[:, 2]))
                found += [(1 - logits_real).detach(), (1 + logits_fake).detach()]
                hinge = torch.relu(1 - logits_real).mean() + torch.relu(1 + logits_fake).mean()
                metrics["d_loss"] = 0.5 * hinge
                metrics["d_loss"].backward()
        if step >= it.discriminator_start:
            optimizers["discriminator"].step()
        optimizers["tokenizer"].step()
        values = {name: torch.as_tensor(value).item() for name, value in metrics.items()}
        yield values, list(found)


def distances_of(inputs):
    def distances(dtype):
        with torch.enable_grad():  # the steps need gradients, `margin` turns them off
            steps = list(train_torch(copy.deepcopy(_networks()), inputs, dtype))
        return [part for _, found in steps for part in found]

    return distances


@functools.cache
def safe_inputs():
    return kinks.first_safe(map(make_inputs, range(100)), distances_of)


def our_state(networks, models=MODELS):
    vae = load_vae(ldm_names(parity.state_of(networks.vae)), models.tokenizer)
    judge = variables_of(
        parity.state_of(networks.judge), networks.judge.dino[0], models.discriminator
    )
    return create_state(
        {"tokenizer": vae, "discriminator": judge["params"]},
        {"discriminator": judge["batch_stats"]},
        {
            "lpips": {"params": {"kernel": KERNEL}},
            "discriminator": {"constants": judge["constants"]},
        },
        optimizers(),
    )


def optimizers():
    rates = RATES.items()
    return {name: adamw(rate, **ADAM, max_grad_norm=np.inf) for name, rate in rates}


def arguments(inputs, step):
    """The batch and the draws of a step."""
    nothing = jnp.zeros(BATCH)
    draws = Draws(
        posterior_noise=inputs.noise[step],
        time=nothing,
        noise=jnp.zeros_like(inputs.noise[step]),
        condition_drop=nothing > 0,
        augmentation=inputs.numbers[step],
    )
    return {"image": inputs.images[step]}, draws


def gradients_of(before, after, network):
    """The gradients of a step, from Adam's first moments."""
    one, other = (
        optax.tree_utils.tree_get(state.opt_state[network], "mu") for state in (before, after)
    )
    b1 = ADAM["b1"]
    grads = jax.tree.map(lambda old, new: (new - b1 * old) / (1 - b1), one, other)
    if network == "tokenizer":
        return export_vae(grads, MODELS.tokenizer, "ldm")
    return export_discriminator({"params": grads, "batch_stats": {}}, MODELS.discriminator)


def export_state(state):
    judge = {
        "params": state.params["discriminator"],
        "batch_stats": state.batch_stats["discriminator"],
    }
    vae = export_vae(state.params["tokenizer"], MODELS.tokenizer, "ldm")
    exported = export_discriminator(judge, MODELS.discriminator)
    return {f"vae/{k}": v for k, v in vae.items()} | {f"judge/{k}": v for k, v in exported.items()}


@functools.cache
def our_step():
    return parity.quick_jit(make_train_step(MODELS, OBJECTIVE, optimizers()))


def compare_gradients(actual, expected, step):
    """Tensor by tensor, but for biases before a norm, which have no gradient but rounding."""
    for name, array in expected.items():
        if not np.any(array):
            assert not np.any(actual[name]), (step, name)
        elif name.endswith((".0.0.bias", ".fn.0.bias")) and "heads" in name:
            bound = 1e-4 * np.abs(expected[name.replace("bias", "weight_orig")]).max()
            assert np.abs(array).max() <= bound, (step, name)
            assert np.abs(actual[name]).max() <= bound, (step, name)
        else:
            parity.assert_close(actual[name], array, f"step {step}: {name}")


@functools.cache
def our_steps():
    """The states before and after each step, and the metrics."""
    states, logs = [our_state(copy.deepcopy(_networks()))], []
    for step in range(STEPS):
        state, metrics = our_step()(states[-1], *arguments(safe_inputs(), step))
        states.append(state)
        logs.append(metrics)
    return states, logs


@pytest.mark.slow
def test_steps_equal_torch():
    (states, logs), networks = our_steps(), copy.deepcopy(_networks())
    for step, (theirs, _) in enumerate(train_torch(networks, safe_inputs())):
        for name, value in theirs.items():
            ours = logs[step][name]
            np.testing.assert_allclose(ours, value, rtol=1e-4, atol=1e-6, err_msg=f"{step} {name}")
        for network in RATES:
            expected = networks.gradients(network)
            actual = gradients_of(*states[step : step + 2], network)
            assert set(actual) == set(expected)
            compare_gradients(actual, expected, step)
    parity.assert_tensors_close(export_state(states[-1]), networks.arrays())


def same(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_schedules():
    states, logs = our_steps()
    assert [bool(log["perceptual_loss"]) for log in logs] == [False, True, True]
    assert [bool(log["d_loss"]) for log in logs] == [False, True, True]
    assert [bool(log["logits_real"]) for log in logs] == [False, True, True]
    assert [bool(log["adaptive_weight"]) for log in logs] == [False, False, True]
    assert [bool(log["weighted_gan_loss"]) for log in logs] == [False, False, True]
    # The discriminator waits: its parameters, its power iterations, its optimizer and its count.
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        for part in ("params", "batch_stats", "opt_state"):
            one, other = (getattr(state, part)["discriminator"] for state in (before, after))
            assert same(one, other) == (step < OBJECTIVE.discriminator_start)
        assert not same(before.params["tokenizer"], after.params["tokenizer"])
    counts = [leaf for leaf in jax.tree.leaves(states[-1].opt_state) if leaf.dtype == jnp.int32]
    assert sorted(set(map(int, counts))) == [STEPS - 1, STEPS]
    assert same(states[0].frozen, states[-1].frozen)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["patchgan", "dino"])
def test_the_state_keeps_its_shape_with_every_option(family):
    config = tiny.get_config("vae")
    if family == "dino":
        config.discriminator = discriminator(
            family=family, patch_size=4, hidden_size=8, depth=2, num_heads=2, blocks=(1, 2), side=12
        )
    config.objective.update(
        discriminator_start=1, generator_start=2, adaptive_weight=True, augmentation="diffaug",
        fake_latents="mean", fake_bytes=True, perceptual_start=1, lecam_weight=0.1,
    )  # fmt: skip
    models = build_models(config)
    state = jax.eval_shape(lambda key: fresh_state(config, models, key), jax.random.key(0))
    batch = {"image": jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.uint8)}
    shape = latent_shape(config, models)
    draws = jax.eval_shape(lambda: sample_draws(jax.random.key(1), 8, shape, augment=True))
    for parts in (1, 2):
        step = make_train_step(
            models, build_objective(config), build_optimizers(config), micro_batches=parts
        )
        after, metrics = jax.eval_shape(step, state, batch, draws)
        assert shapes(after) == shapes(state)
        assert metrics.keys() <= METRICS.keys() | {"skipped"}
        assert "adaptive_weight" in metrics


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


def test_the_draws_of_others_stay_with_an_augmentation():
    plain, more = (
        sample_draws(jax.random.key(0), 4, (2, 2, 3), augment=it) for it in (False, True)
    )
    assert plain.augmentation is None
    assert more.augmentation.shape == (4, 3, 5)
    jax.tree.map(np.testing.assert_array_equal, plain, more.replace(augmentation=None))
