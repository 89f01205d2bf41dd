"""Every family of VAEs trains in the REPA-E step, from the folder that diffusers wrote."""

import diffusers
import jax
import numpy as np
import parity
import pytest
import tiny
import torch
from random_steps import leaves, steps

from repae_jax.config import tokenizer
from repae_jax.config.modules import build_encoder
from repae_jax.config.storage import to_json
from repae_jax.config.validate import validate
from repae_jax.runs.build import (
    build_models,
)
from repae_jax.runs.pretrained import PretrainedVAE
from repae_jax.runs.weights import save_teacher

CHANNELS = 16


def flux():
    """FLUX's and SD3.5's structure: 16 channels, no quant convolutions, scale and shift."""
    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[4, 4, 8],
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )


def qwen():
    """Qwen-Image's structure: causal 3-D convolutions, statistics per channel."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=np.linspace(-1, 1, CHANNELS).tolist(),
        latents_std=np.linspace(0.5, 3, CHANNELS).tolist(),
    )


def dcae():
    """DC-AE's structure: no posterior, BatchNorm with running statistics, one scale."""
    peer = diffusers.AutoencoderDC(
        latent_channels=CHANNELS,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(4, 8, 16),
        decoder_block_out_channels=(4, 8, 16),
        encoder_layers_per_block=(0, 1, 1),
        decoder_layers_per_block=(0, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        decoder_norm_types=("batch_norm", "batch_norm", "rms_norm"),
        decoder_act_fns=("relu", "relu", "silu"),
        scaling_factor=0.3189,
    )
    for module in peer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean += 0.125
            module.running_var += 0.5
    return peer


def make_config(family, weights):
    """The tiny configuration on such a VAE, its discriminator from the third step."""
    config = tiny.get_config()
    config.teachers.small.weights = str(weights / "teacher.safetensors")
    shared = dict(arch="", latent_channels=CHANNELS, num_res_blocks=1, weights=str(weights / "vae"))
    if family == "flux":
        config.tokenizer.update(
            channels=4, multipliers=(1, 1, 2), groups=2, quant_conv=False, **shared
        )
        config.tokenizer.middle_attention = True
    elif family == "dcae":
        del shared["num_res_blocks"]
        config.tokenizer = tokenizer(
            family="dcae", widths=(4, 8, 16), encoder_layers=(0, 1, 1), decoder_layers=(0, 1, 1),
            attention_levels=(2,), batch_norm_levels=(0, 1), head_width=4, **shared,
        )  # fmt: skip
    else:
        config.tokenizer = tokenizer(
            family="qwenimage", channels=4, multipliers=(1, 1, 2),
            temporal_downsample=(False, True), **shared,
        )  # fmt: skip
    config.objective.discriminator_start = 2
    config.objective.kl_weight = 1e-6
    validate(config)
    return config


PEERS = {"flux": flux, "qwen": qwen, "dcae": dcae}


def write_teacher(config):
    """A teacher's file, random: what it teaches is no matter here."""
    entry = config.teachers.small
    model = build_encoder(entry, config.data.resolution)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    save_teacher(entry.weights, variables["params"], {})


@pytest.mark.slow  # compiles a whole step with attention in the VAE
@pytest.mark.parametrize("family", PEERS)
def test_the_family_trains(family, tmp_path):
    peer = parity.randomise(PEERS[family](), seed=0)
    peer.save_pretrained(tmp_path / "vae")
    config = make_config(family, tmp_path)
    write_teacher(config)
    states, metrics = steps(config, 3)

    # It begins where diffusers left it, with the statistics that config.json tells.
    stored = PretrainedVAE.from_pretrained(tmp_path / "vae")
    begin = leaves(states[0].params["tokenizer"])
    for name, array in leaves(stored.params).items():
        np.testing.assert_array_equal(begin[name], array)
    statistics = states[0].batch_stats["latent_norm"]
    if family == "flux":
        np.testing.assert_allclose(statistics["mean"], 0.1159, rtol=1e-6)
        np.testing.assert_allclose(statistics["var"], 0.3611**-2, rtol=1e-6)
    elif family == "dcae":
        np.testing.assert_array_equal(statistics["mean"], 0)
        np.testing.assert_allclose(statistics["var"], 0.3189**-2, rtol=1e-6)
    else:
        np.testing.assert_allclose(statistics["mean"], peer.config.latents_mean, rtol=1e-6)
        np.testing.assert_allclose(statistics["var"], np.square(peer.config.latents_std), rtol=1e-6)

    for values in metrics:
        for name, value in values.items():
            assert np.isfinite(value), name
    end = leaves(states[-1].params["tokenizer"])
    moved = {name for name in begin if not np.array_equal(begin[name], end[name])}
    # Convolutions over time never see a second frame; every other parameter learns.
    assert begin.keys() - moved == {name for name in begin if "time_conv" in name}
    assert any("time_conv" in name for name in begin) == (family == "qwen")
    if family == "qwen":
        kernel = "['encoder']['conv_in']['kernel']"
        np.testing.assert_array_equal(begin[kernel][:-1], end[kernel][:-1])

    # The running statistics of BatchNorm stay.
    kept = [leaves(state.frozen.get("tokenizer", {})) for state in (states[0], states[-1])]
    assert bool(kept[0]) == (family == "dcae")
    for name, array in kept[0].items():
        np.testing.assert_array_equal(array, 0.125 if "mean" in name else 1.5, err_msg=name)
        np.testing.assert_array_equal(kept[1][name], array)

    # The fresh discriminator joins at the third step.
    d_loss = [float(values["d_loss"]) for values in metrics]
    assert d_loss[:2] == [0, 0]
    assert d_loss[2] > 0
    before, after = (leaves(states[k].params["discriminator"]) for k in (2, 3))
    first = leaves(states[0].params["discriminator"])
    for name in first:
        np.testing.assert_array_equal(before[name], first[name])
        # (the hinge's two halves cancel in the last bias while no logit is beyond 1)
        if "kernel" in name:
            assert not np.array_equal(after[name], first[name]), name


@pytest.mark.parametrize("family", PEERS)
def test_the_configuration_survives_its_file(family, tmp_path):
    from repae_jax.config.storage import from_json

    config = make_config(family, tmp_path)
    assert to_json(from_json(to_json(config), source="X")) == to_json(config)
    assert (
        build_models(from_json(to_json(config), source="X")).tokenizer
        == build_models(config).tokenizer
    )
