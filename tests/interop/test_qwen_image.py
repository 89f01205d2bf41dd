"""Qwen-Image's VAE under diffusers' names, and its dimensions in diffusers' config."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.qwen_image import export_qwen, load_qwen, qwen_config, qwen_dimensions
from repae_jax.models.tokenizers.qwen_image_vae import QWEN_VAE_CONFIGS, AutoencoderKLQwenImage

TINY = AutoencoderKLQwenImage(
    base_dim=2,
    latent_channels=3,
    multipliers=(1, 2, 2),
    num_res_blocks=1,
    attn_scales=(1.0, 0.25),
    temporal_downsample=(True, False),
    image_channels=4,
)


def make_reference(model):
    """diffusers' module with the dimensions of ours."""
    import diffusers

    return diffusers.AutoencoderKLQwenImage(**qwen_config(model))


@functools.cache
def tiny_tensors():
    return parity.state_of(parity.randomise(make_reference(TINY)))


def test_import_then_export_is_the_identity_and_loads_in_diffusers():
    tensors = tiny_tensors()
    exported = export_qwen(load_qwen(tensors, TINY), TINY)
    assert list(exported) == list(tensors)  # the names, in the order of diffusers' modules
    for name, array in tensors.items():
        assert exported[name].dtype == np.float32
        assert exported[name].shape == array.shape
        assert exported[name].tobytes() == array.tobytes(), name
    state = {n: torch.tensor(np.ascontiguousarray(a)) for n, a in exported.items()}
    make_reference(TINY).load_state_dict(state, strict=True)


def test_a_missing_or_misshapen_or_extra_tensor_is_named_as_the_file_names_it():
    def load(tensors):
        return load_qwen(tensors, TINY, source="FILE")

    tensors = tiny_tensors()
    for name in (
        "encoder.down_blocks.2.time_conv.weight",
        "decoder.up_blocks.1.upsamplers.0.time_conv.bias",
        "encoder.mid_block.attentions.0.norm.gamma",
    ):
        with pytest.raises(UserError, match=rf"FILE: tensor '{name}' is missing$"):
            load({n: a for n, a in tensors.items() if n != name})
    # squeezed, as a careless conversion gives them
    for name in ("encoder.conv_in.weight", "decoder.norm_out.gamma"):
        wrong = tensors[name][..., 0]
        shape = re.escape(str(wrong.shape))
        with pytest.raises(UserError, match=rf"FILE: tensor '{name}' has shape {shape}"):
            load(tensors | {name: wrong})
    for name in ("decoder.up_blocks.0.upsamplers.0.time_conv.weight", "loss.logvar"):
        with pytest.raises(UserError, match=rf"FILE: unexpected tensor '{name}'"):
            load(tensors | {name: np.zeros((2, 2), np.float32)})


@pytest.mark.parametrize("name", QWEN_VAE_CONFIGS)
def test_published_dimensions_have_the_tensors_of_diffusers(name):
    import diffusers

    model = AutoencoderKLQwenImage(**QWEN_VAE_CONFIGS[name])
    images, noise = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 1, 1, 16))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, noise)["params"]
    with torch.device("meta"):
        reference = diffusers.AutoencoderKLQwenImage()  # its defaults are the published ones
    expected = {name: tuple(t.shape) for name, t in reference.state_dict().items()}
    assert tables.exported_shapes(lambda params: export_qwen(params, model), shapes) == expected


def test_dimensions_absent_from_a_config_are_diffusers_defaults():
    import diffusers

    with torch.device("meta"):
        defaults = dict(diffusers.AutoencoderKLQwenImage().config)
    assert {"latents_mean", "latents_std"} < set(defaults)  # which are left aside
    model = AutoencoderKLQwenImage(**qwen_dimensions(defaults))
    assert model == AutoencoderKLQwenImage(**qwen_dimensions({}))
    assert model == AutoencoderKLQwenImage(**QWEN_VAE_CONFIGS["qwenimage"])


def test_dimensions_survive_the_way_through_diffusers_config_file(tmp_path):
    with torch.device("meta"):
        make_reference(TINY).save_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert AutoencoderKLQwenImage(**qwen_dimensions(config)) == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 0.1}, r"FILE: dropout is 0.1; .* Set it to 0.0"),
        ({"is_residual": True}, r"FILE: 'is_residual' is True, which this model does not know"),
        ({"_class_name": "AutoencoderKLWan"}, r"FILE: _class_name is 'AutoencoderKLWan'"),
    ],
)
def test_a_config_of_another_network_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        qwen_dimensions(qwen_config(TINY) | change, source="FILE")
