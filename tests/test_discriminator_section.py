"""`config.discriminator` has the keys of one family; its values and those of the objective fit."""

import json

import jax.numpy as jnp
import pytest
import tiny

from repae_jax.config import base, discriminator
from repae_jax.config.modules import build_discriminator
from repae_jax.config.overrides import apply_overrides
from repae_jax.config.storage import from_stored, to_json
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.models.dino_discriminator import DINO_CONFIGS, DinoDiscriminator
from repae_jax.models.discriminator import PatchDiscriminator

DINO = dict(patch_size=4, hidden_size=8, depth=2, num_heads=2, blocks=(1, 2), side=16)


def test_the_default_is_the_published_patchgan():
    config = base()
    assert config.discriminator.family == "patchgan"
    assert build_discriminator(config) == PatchDiscriminator()
    config.discriminator.update(filters=16, layers=2)
    half = build_discriminator(config, jnp.bfloat16)
    assert half == PatchDiscriminator(num_layers=2, filters=16, dtype=jnp.bfloat16)


@pytest.mark.parametrize("arch", DINO_CONFIGS)
def test_presets(arch):
    config = base()
    config.discriminator = discriminator(arch)
    assert config.discriminator.family == "dino"
    assert build_discriminator(config) == DinoDiscriminator(**DINO_CONFIGS[arch])
    config = apply_overrides(base(), [f"--config.discriminator.arch={arch}"])
    assert build_discriminator(config) == DinoDiscriminator(**DINO_CONFIGS[arch])


def test_a_stored_configuration_comes_back():
    config = tiny.get_config("vae")
    config.discriminator = discriminator(family="dino", **DINO, encoder_weights="x.pth")
    back = from_stored(json.loads(to_json(config)), source="it")
    assert back == config


def test_a_configuration_of_before_has_a_patchgan():
    config = tiny.get_config("vae")
    stored = json.loads(to_json(config))
    for key in ("family", "arch", "encoder_weights"):
        del stored["discriminator"][key]
    assert from_stored(stored, source="it") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (1, 3)}, r"discriminator.blocks has 3, but the ViT has 2 blocks: use 1 to 2"),
        ({"num_heads": 3}, r"discriminator.hidden_size is 8, not divisible by .*num_heads 3"),
        ({"side": 18}, r"discriminator.side is 18, not divisible by the patch size 4: use 16"),
        ({"kernel": 4}, r"discriminator.kernel is 4: use an odd number"),
        ({"kernel": 35}, r"discriminator.kernel is 35, but the ViT has 16 tokens: use at most 33"),
        ({"depth": 0}, r"discriminator.depth is 0: give at least 1"),
        ({"depth": None}, r"discriminator.depth is not set"),
    ],
)
def test_values_that_do_not_fit(changes, message):
    config = tiny.get_config("vae")
    config.discriminator = discriminator(family="dino", **DINO | changes)
    with pytest.raises(UserError, match=message):
        validate(config)


def test_a_patchgan_has_no_encoder():
    config = tiny.get_config("vae")
    config.discriminator.encoder_weights = "x.pth"
    with pytest.raises(UserError, match=r"encoder_weights is 'x.pth', but a PatchGAN has no"):
        validate(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("augmentation", "cutout", r"objective.augmentation is 'cutout': use 'none' or 'diffaug'"),
        ("fake_latents", "x", r"objective.fake_latents is 'x': use 'same' or 'mean'"),
        ("generator_start", -1, r"objective.generator_start is -1: give at least 0"),
        ("adaptive_limit", float("inf"), r"objective.adaptive_limit is inf"),
    ],
)
def test_values_of_the_objective(key, value, message):
    config = tiny.get_config("vae")
    config.objective[key] = value
    with pytest.raises(UserError, match=message):
        validate(config)


def test_an_adaptive_weight_needs_a_last_layer(monkeypatch):
    from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL

    config = tiny.get_config("vae")
    config.objective.adaptive_weight = True
    validate(config)
    monkeypatch.delattr(AutoencoderKL, "last_layer")
    with pytest.raises(UserError, match="adaptive_weight is True, but a tokenizer of the family"):
        validate(config)
