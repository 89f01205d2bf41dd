"""A run that was trained here: the original makes the same images of its export."""

import dataclasses
import pathlib
import types
from unittest import mock

import jax
import numpy as np
import original_exchange as exchange
import original_loop as loop
import pytest
import torch
from original_exchange import NEEDS_ORIGINAL
from parity import original_module, to_nchw, to_nhwc

from repae_jax.cli import main
from repae_jax.config.modules import build_encoder
from repae_jax.config.overrides import read_config
from repae_jax.runs.open_run import open_run, sampling_weights
from repae_jax.runs.weights import save_teacher
from repae_jax.sampling import generate
from repae_jax.sampling.noise import image_noise, step_noise
from repae_jax.sampling.sampler import Sampler
from repae_jax.utils.images import to_uint8

DIGITS = pathlib.Path(__file__).parents[2] / "configs" / "digits.py"
IMAGES = 8
SAMPLERS = [
    Sampler("euler", 8, "linear"),
    Sampler("heun", 6, "linear", 4.0, 0.1, 0.8),
    Sampler("euler-maruyama", 10, "linear", 4.0, 0.1, 0.8),
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of the digits recipe and its export; large rates, so that a few steps show."""
    folder = tmp_path_factory.mktemp("digits")
    teacher_file = str(folder / "teacher.safetensors")
    vit = build_encoder(read_config(str(DIGITS), []).teachers.digits, 32)
    save_teacher(teacher_file, vit.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"], {})
    words = {
        "teachers.digits.weights": teacher_file, "batch_size": 16, "ema_decay": 0.5,
        "run.steps": 10, "run.sample_steps": 2, "sampling.method": "euler",
    }  # fmt: skip
    for network in ("backbone", "tokenizer"):
        words |= {
            f"optimizer.{network}.warmup_steps": 0,
            f"optimizer.{network}.learning_rate": 3e-3,
        }
    overrides = [f"--config.{key}={value}" for key, value in words.items()]
    train = ["train", "--config", str(DIGITS), *overrides, "--workdir", str(folder / "run")]
    assert main([*train, "--quiet"]) == 0
    exported = folder / "exp" / "checkpoints" / "0000010.pt"
    assert main(["convert", str(folder / "run"), str(exported), "--quiet"]) == 0
    return open_run(folder / "run"), exported


@pytest.fixture(scope="module")
def resumed_digits(digits):
    """(averaged SiT, VAE): the original's, once it has resumed from the export."""
    run, exported = digits
    networks = exchange.networks_like(run.models)
    training = exchange.Training(loop.REPAE, networks).resume(exported)
    assert training.scope["global_step"] == 10
    return training.ema.eval(), networks["vae"].eval()


def their_images(ema, vae, sampler, noise, labels, step_noises):
    """(B, H, W, 3): the original's samples, as its generate.py decodes them, not yet bytes."""
    samplers = original_module("samplers.py")
    name = "euler_maruyama_sampler" if sampler.stochastic else "euler_sampler"
    draws = iter(step_noises)
    with mock.patch.object(torch, "randn_like", lambda x: to_nchw(next(draws)).to(x.dtype)):
        latents = getattr(samplers, name)(
            exchange.NullClass(ema), to_nchw(noise), torch.tensor(labels).long(),
            num_steps=sampler.steps, heun=sampler.method == "heun",
            cfg_scale=sampler.guidance_scale, guidance_low=sampler.guidance_low,
            guidance_high=sampler.guidance_high, path_type=sampler.interpolant,
        ).to(torch.float32)  # fmt: skip
    assert next(draws, None) is None
    with torch.no_grad():
        scale = ema.bn.running_var.rsqrt().view(1, -1, 1, 1)
        return vae.decode(latents / scale + ema.bn.running_mean.view(1, -1, 1, 1)).sample


def their_pixels(images):
    """Levels (B, H, W, 3), truncated as in its generate.py."""
    levels = torch.clamp(255.0 * ((images + 1) / 2.0), 0, 255).permute(0, 2, 3, 1)
    return levels.to(torch.uint8).numpy().astype(int)


@NEEDS_ORIGINAL
@pytest.mark.slow  # compiles the train step of the digits recipe, at its full dimensions
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.method)
def test_the_original_makes_the_same_images(digits, resumed_digits, sampler, monkeypatch):
    (run, _), (ema, vae) = digits, resumed_digits
    key, indices = jax.random.key(3), np.arange(IMAGES)
    labels = indices.astype(np.int32)
    monkeypatch.setattr(generate, "to_uint8", lambda images: images)
    make = generate.make_generate(run.models, sampler)
    images = make(sampling_weights(run.state), key, indices, {"label": labels}).images
    pixels = np.asarray(to_uint8(images)).astype(int)

    sit = run.models.backbone
    shape = (sit.latent_size, sit.latent_size, sit.latent_channels)
    noise, later = image_noise(key, indices, shape), step_noise(key, indices, shape)
    step_noises = [later(i) for i in range(sampler.steps - 1)] if sampler.stochastic else []
    expected = their_images(ema, vae, sampler, noise, labels, step_noises)
    theirs = their_pixels(expected)
    apart = 127.5 * np.abs(np.asarray(images) - to_nhwc(expected)).max()
    print(f"{sampler.method}: {apart:.1e} levels, {np.abs(pixels - theirs).max()} as bytes")
    assert apart <= 1
    assert np.abs(pixels - theirs).max() <= 1

    # the images have contrast, and would be others without the SiT or its guidance
    assert theirs.std() > 30
    still = types.SimpleNamespace(inference=lambda x, t, y: 0 * x, bn=ema.bn, num_classes=10)
    other = their_pixels(their_images(still, vae, sampler, noise, labels, step_noises))
    assert np.abs(other - theirs).mean() > 5
    if sampler.guided:
        plain = dataclasses.replace(sampler, guidance_scale=1.0)
        other = their_pixels(their_images(ema, vae, plain, noise, labels, step_noises))
        assert np.abs(other - theirs).max() > 2
