"""Wan 2.1's VAE against diffusers' class, on single frames."""

import diffusers
import numpy as np
import parity
import pytest
import torch

from repae_jax.errors import UserError
from repae_jax.interop.qwen_image import export_qwen, load_qwen
from repae_jax.interop.vae_files import read_vae, write_diffusers
from repae_jax.interop.wan import wan_config, wan_dimensions
from repae_jax.models.tokenizers.qwen_image_vae import QWEN_VAE_CONFIGS, AutoencoderKLQwenImage

SMALL = AutoencoderKLQwenImage(
    base_dim=4, latent_channels=3, multipliers=(1, 2, 2), num_res_blocks=1,
    temporal_downsample=(False, True),
)  # fmt: skip


def make(**changes):
    config = {k: v for k, v in wan_config(SMALL).items() if not k.startswith("_")}
    statistics = dict(latents_mean=[0.1, -0.2, 0.3], latents_std=[0.5, 1.0, 2.0])
    peer = parity.randomise(diffusers.AutoencoderKLWan(**config | statistics | changes))
    for name, parameter in peer.named_parameters():
        if name.endswith("gamma"):
            parameter.data = 1.0 + 0.2 * parameter.data
    return peer.eval()


def test_values_and_gradients_equal_diffusers():
    peer = make()
    params = load_qwen(parity.state_of(peer), SMALL)
    images, noise = parity.normal(2, 8, 12, 3, seed=1), parity.normal(2, 2, 3, 3, seed=2)
    leaf, drawn = parity.to_nchw(images).requires_grad_(), torch.tensor(noise, requires_grad=True)
    posterior = peer.encode(leaf[:, :, None]).latent_dist
    z = posterior.mean + posterior.std * drawn.permute(0, 3, 1, 2)[:, :, None]
    outputs = (peer.decode(z).sample, posterior.mean, posterior.logvar)
    expected = [output[:, :, 0].permute(0, 2, 3, 1) for output in outputs]

    def ours(params, images, noise):
        posterior, reconstruction = SMALL.apply({"params": params}, images, noise)
        return [reconstruction, posterior.mean, posterior.logvar]

    by_params = parity.assert_outputs_equal(ours, params, (images, noise), expected, (leaf, drawn))
    reached = {n: p.grad for n, p in peer.named_parameters() if p.grad is not None}
    actual = export_qwen(by_params, SMALL)
    parity.assert_tensors_close({name: actual[name] for name in reached}, reached)


def test_a_folder_goes_out_as_it_came(tmp_path):
    peer = make()
    peer.save_pretrained(tmp_path / "theirs")
    vae = read_vae(tmp_path / "theirs")
    assert vae.module == SMALL
    np.testing.assert_allclose(vae.statistics["mean"], [0.1, -0.2, 0.3], rtol=1e-6)
    write_diffusers(tmp_path / "ours", vae)
    back = diffusers.AutoencoderKLWan.from_pretrained(tmp_path / "ours")
    assert (
        dict(back.config).items()
        >= {k: v for k, v in peer.config.items() if not k.startswith("_")}.items()
    )
    for name, array in peer.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[name], array, err_msg=name)


def test_absent_keys_are_diffusers_defaults():
    with torch.device("meta"):
        defaults = dict(diffusers.AutoencoderKLWan().config)
    published = AutoencoderKLQwenImage(**QWEN_VAE_CONFIGS["qwenimage"])
    for config in (defaults, {}):
        assert AutoencoderKLQwenImage(**wan_dimensions(config)) == published
    assert {k: v for k, v in defaults.items() if k in wan_config(published)} == {
        k: v for k, v in wan_config(published).items() if not k.startswith("_")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_residual": True}, "is_residual is True, but Wan 2.1"),
        ({"patch_size": 2}, "patch_size is 2"),
        ({"decoder_base_dim": 8}, "decoder_base_dim is 8"),
        ({"out_channels": 12}, "in_channels is 3 and out_channels 12"),
        ({"other": 1}, "'other' is 1, which this model does not know"),
    ],
)
def test_another_network_is_refused(change, message):
    with pytest.raises(UserError, match=f"FILE: {message}"):
        wan_dimensions(wan_config(SMALL) | change, source="FILE")
