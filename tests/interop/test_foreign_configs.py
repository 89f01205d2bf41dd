"""One key of another's config.json changed: one line that names the key and its value."""

import json
import math
import shutil

import diffusers
import pytest
from weight_files import refused

from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.base import parameter_shapes
from repae_jax.runs.pretrained import PretrainedVAE


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each class, written by diffusers."""
    root = tmp_path_factory.mktemp("folders")
    diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    ).save_pretrained(root / "kl")  # fmt: skip
    diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).save_pretrained(root / "qwen")  # fmt: skip
    return root


CHANGES = [  # of each kind of value, those that ended in a traceback, a hang, or gigabytes
    ("kl", "_class_name", [[1]], "_class_name is [[1]]"),
    ("kl", "block_out_channels", None, "block_out_channels is None"),
    ("kl", "block_out_channels", "x", "block_out_channels is 'x'"),
    ("kl", "block_out_channels", -1, "block_out_channels is -1"),
    ("kl", "block_out_channels", [], "block_out_channels is []: list must have at least 1 item"),
    ("kl", "block_out_channels", [0, 16], "block_out_channels[0] is 0: give at least 1"),
    ("kl", "down_block_types", {}, "down_block_types is {}"),
    ("kl", "in_channels", [[[1]]], "in_channels is [[[1]]]"),
    ("kl", "latent_channels", 10**9, "latent_channels is 1000000000: give at most 4096"),
    ("kl", "layers_per_block", 10**9, "layers_per_block is 1000000000: give at most 16"),
    ("kl", "layers_per_block", True, "layers_per_block is True"),
    ("kl", "norm_num_groups", 0, "norm_num_groups is 0: give at least 1"),
    ("kl", "norm_num_groups", 32, "norm_num_groups is 32, which does not divide all of"),
    ("kl", "use_quant_conv", "yes", "use_quant_conv is 'yes'"),
    ("kl", "latents_mean", {}, "latents_mean is {}"),
    ("qwen", "attn_scales", None, "attn_scales is None"),
    ("qwen", "base_dim", 1.5, "base_dim is 1.5"),
    ("qwen", "dim_mult", [1, "x"], "dim_mult[1] is 'x'"),
    ("qwen", "num_res_blocks", 10**9, "num_res_blocks is 1000000000: give at most 16"),
    ("qwen", "temperal_downsample", [None], "temperal_downsample[0] is None"),
    ("qwen", "z_dim", -1, "z_dim is -1: give at least 1"),
    ("qwen", "dropout", math.nan, "dropout is nan: it must be a finite number"),
]


@pytest.mark.parametrize(("folder", "key", "value", "message"), CHANGES)
def test_one_changed_key_is_one_line(folder, key, value, message, folders, tmp_path, capsys):
    copy = tmp_path / "vae"
    shutil.copytree(folders / folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config[key] = value
    (copy / "config.json").write_text(json.dumps(config))
    line = refused(["inspect", copy], capsys)
    assert f"{copy / 'config.json'}: {message}" in line
    assert len(line) < 400


def test_what_is_published_fits(folders, tmp_path):
    """The configurations of the published VAEs, as far as keys that are read go."""
    from repae_jax.interop.foreign_configs import check_config

    published = [
        {"scaling_factor": 0.18215, "sample_size": 512, "force_upcast": True},
        {"scaling_factor": 0.3611, "shift_factor": 0.1159, "latents_mean": None,
         "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
        {"block_out_channels": [128, 128, 256, 256, 512], "latent_channels": 32,
         "latents_mean": [0.1] * 32, "latents_std": [1.0] * 32},
    ]  # fmt: skip
    for config in published:
        config["_class_name"] = "AutoencoderKL"
        assert check_config(config, "x: ") is config
    for folder in ("kl", "qwen"):
        PretrainedVAE.from_pretrained(folders / folder)


@pytest.mark.parametrize("groups", ["x", "0", "-2", "1.5", "9" * 5000, ""])
def test_a_file_that_tells_strange_groups_is_one_line(groups, tmp_path, capsys):
    from safetensors.numpy import save_file
    from weight_files import random

    from repae_jax.interop.autoencoder_kl import export_vae

    vae = AutoencoderKL(channels=8, multipliers=(1, 2), latent_channels=4, num_res_blocks=1)
    vae = vae.clone(groups=4)
    tensors = export_vae(random(parameter_shapes(vae)), vae, "ldm")
    save_file(tensors, tmp_path / "vae.safetensors", {"groups": groups})
    line = refused(["inspect", tmp_path / "vae.safetensors"], capsys)
    assert "its number of groups" in line
    assert len(line) < 400
