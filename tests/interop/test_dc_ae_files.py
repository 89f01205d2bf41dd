"""DC-AE's files: diffusers' folders, its authors' names, and configurations of both."""

import json

import jax
import numpy as np
import original_dc_ae
import parity
import pytest
import torch

from repae_jax.errors import UserError
from repae_jax.interop import files, tables
from repae_jax.interop.dc_ae import (
    dc_ae_config,
    dc_ae_dimensions,
    export_dc_ae,
    infer_dimensions,
    load_dc_ae,
)
from repae_jax.interop.vae_files import StoredVAE, read_vae, read_weights, write_diffusers
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.base import variable_shapes
from repae_jax.models.tokenizers.dc_ae import DC_AE_CONFIGS, AutoencoderDC
from repae_jax.runs.conversion import convert

SMALL = {
    "shuffle": AutoencoderDC(
        widths=(8, 16, 32), encoder_layers=(0, 1, 1), decoder_layers=(0, 2, 1),
        attention_levels=(2,), batch_norm_levels=(1,), latent_channels=8,
    ),
    "sana": AutoencoderDC(
        widths=(8, 8, 16), encoder_layers=(1, 1, 1), decoder_layers=(1, 2, 1),
        attention_levels=(1, 2), scales=(5,), head_width=4, shuffle=False, latent_channels=4,
    ),
}  # fmt: skip
# As the published folders have it: kinds in words of the authors' code, some keys missing.
PUBLISHED = {
    "_class_name": "AutoencoderDC",
    "_diffusers_version": "0.32.0.dev0",
    "attention_head_dim": 32,
    "decoder_act_fns": ["relu"] * 3 + ["silu"] * 3,
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_layers_per_block": [0, 5, 10, 2, 2, 2],
    "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * 3,
    "decoder_qkv_multiscales": [[], [], [], [], [], []],
    "downsample_block_type": "pixel_unshuffle",
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_layers_per_block": [0, 4, 8, 2, 2, 2],
    "encoder_qkv_multiscales": [[], [], [], [], [], []],
    "in_channels": 3,
    "latent_channels": 32,
    "scaling_factor": 0.3189,
    "upsample_block_type": "pixel_shuffle",
}


def random_variables(model, seed=0):
    """Variables without zeros; variances are positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        return np.abs(values) + 0.5 if path[-1].key in ("var", "scale") else 0.3 * values

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(model))


def assert_equal(one, other):
    one, other = tables.flatten(one), tables.flatten(other)
    assert set(one) == set(other)
    for name, array in one.items():
        np.testing.assert_array_equal(other[name], array, err_msg=name)


@pytest.mark.parametrize("name", DC_AE_CONFIGS)
def test_published_dimensions_have_the_tensors_of_diffusers(name):
    import diffusers

    model = AutoencoderDC(**DC_AE_CONFIGS[name])
    with torch.device("meta"):
        reference = diffusers.AutoencoderDC(**dc_ae_config(model))
    expected = {name: tuple(t.shape) for name, t in reference.state_dict().items()}
    shapes = variable_shapes(model)
    assert tables.exported_shapes(lambda v: export_dc_ae(v, model), shapes) == expected
    assert model.factor == reference.spatial_compression_ratio


def test_a_published_config_gives_the_preset():
    assert dc_ae_dimensions(PUBLISHED) == {
        **DC_AE_CONFIGS["f32c32"], "scales": (), "head_width": 32, "shuffle": True,
        "image_channels": 3,
    }  # fmt: skip
    sana = {
        "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu",
        "encoder_block_types": PUBLISHED["encoder_block_types"],
        "decoder_block_types": PUBLISHED["decoder_block_types"],
        "downsample_block_type": "Conv", "upsample_block_type": "interpolate",
        "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    }  # fmt: skip
    model = AutoencoderDC(**DC_AE_CONFIGS["f32c32-sana"])
    assert AutoencoderDC(**dc_ae_dimensions(sana)) == model


@pytest.mark.parametrize("kind", SMALL)
def test_dimensions_survive_diffusers_config_file(kind, tmp_path):
    import diffusers

    with torch.device("meta"):
        diffusers.AutoencoderDC(**dc_ae_config(SMALL[kind])).save_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert AutoencoderDC(**dc_ae_dimensions(config)) == SMALL[kind]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_act_fns": "silu"}, "decoder_act_fns is 'silu'"),
        ({"encoder_out_shortcut": False}, "encoder_out_shortcut is False"),
        ({"decoder_block_types": "ResBlock"}, "decoder_block_types is 'ResBlock'"),
        ({"upsample_block_type": "interpolate"}, "upsample_block_type is 'interpolate'"),
        ({"decoder_block_out_channels": [64] * 6}, "decoder_block_out_channels"),
        ({"encoder_qkv_multiscales": [[], [], [], [], [], [5]]}, "qkv_multiscales"),
        ({"latent_channels": 48}, "latent_channels is 48, which does not divide"),
        ({"attention_head_dim": 48}, "head_width is 48, which does not divide"),
    ],
)
def test_another_network_is_refused(change, message):
    with pytest.raises(UserError, match=f"FILE: .*{message}"):
        dc_ae_dimensions(PUBLISHED | change, source="FILE")


@pytest.mark.parametrize("kind", SMALL)
def test_a_folder_goes_to_diffusers_and_back(kind, tmp_path):
    import diffusers

    model, variables = SMALL[kind], random_variables(SMALL[kind])
    params, constants = variables.pop("params"), variables
    config = {"scaling_factor": 0.25}
    statistics = {"mean": np.zeros(model.latent_channels, np.float32),
                  "var": np.full(model.latent_channels, 16, np.float32)}  # fmt: skip
    vae = StoredVAE(model, params, config, statistics, constants=constants)
    write_diffusers(tmp_path / "dc", vae)
    peer = diffusers.AutoencoderDC.from_pretrained(tmp_path / "dc").eval()
    assert peer.config.scaling_factor == 0.25
    back = read_vae(tmp_path / "dc")
    assert back.module == model
    assert_equal(back.variables, vae.variables)
    np.testing.assert_allclose(back.statistics["var"], 16)
    images = parity.normal(1, 2 * model.factor, model.factor, 3, seed=0)
    with torch.no_grad():
        z = peer.encode(parity.to_nchw(images)).latent
        expected = peer.decode(z).sample
    latents = model.apply(back.variables, images, method="encode").mean
    parity.assert_close(latents, parity.to_nhwc(z), "latents")
    decoded = model.apply(back.variables, latents, method="decode")
    parity.assert_close(decoded, parity.to_nhwc(expected), "images")
    np.testing.assert_allclose(back.normalize(latents), 0.25 * np.asarray(latents), rtol=1e-4)


@pytest.mark.parametrize("kind", SMALL)
def test_the_authors_names_go_in_and_out(kind, tmp_path):
    model, variables = SMALL[kind], random_variables(SMALL[kind])
    theirs = export_dc_ae(variables, model, "original")
    assert not any(".qkv.conv.q." in name for name in theirs)
    assert_equal(load_dc_ae(theirs, model), variables)
    assert AutoencoderDC(**infer_dimensions(theirs, source="it")) == model
    path = tmp_path / "dc.pt"
    files.write_torch(path, {"state_dict": theirs})
    stored = read_vae(path)
    assert stored.module == model
    assert_equal(stored.variables, variables)
    assert stored.statistics is None
    convert(str(path), tmp_path / "folder", None, None, progress=False)
    assert_equal(read_vae(tmp_path / "folder").variables, variables)


def test_a_projection_that_is_not_three_parts_is_named():
    model = SMALL["sana"]
    theirs = export_dc_ae(random_variables(model), model, "original")
    name = next(name for name in theirs if name.endswith(".qkv.conv.weight"))
    with pytest.raises(UserError, match="not three parts"):
        load_dc_ae(theirs | {name: theirs[name][:-1]}, model)


def test_a_damaged_file_is_named(tmp_path):
    model = SMALL["shuffle"]
    theirs = export_dc_ae(random_variables(model), model)
    for name in ("decoder.up_blocks.1.1.norm.running_var", "encoder.conv_in.conv.weight"):
        with pytest.raises(UserError, match=f"tensor '{name}' is missing"):
            load_dc_ae({n: a for n, a in theirs.items() if n != name}, model)
    with pytest.raises(UserError, match="unexpected tensor 'encoder.extra'"):
        load_dc_ae(theirs | {"encoder.extra": np.zeros(2, np.float32)}, model)
    wrong = theirs | {"encoder.conv_out.bias": np.full(8, np.nan, np.float32)}
    with pytest.raises(UserError, match=r"encoder\.conv_out\.bias"):
        load_dc_ae(wrong, model)


def test_a_run_takes_its_constants_from_the_weights(tmp_path):
    """The running statistics reach `state.frozen`, which no step changes."""
    model, variables = SMALL["shuffle"], random_variables(SMALL["shuffle"])
    params = variables["params"]
    constants = {"constants": variables["constants"]}
    write_diffusers(tmp_path / "dc", StoredVAE(model, params, constants=constants))
    found, statistics = read_weights(tmp_path / "dc", model)
    assert_equal(found, variables)
    assert statistics is None


@pytest.mark.skipif(original_dc_ae.ROOT is None, reason=original_dc_ae.SKIP_REASON)
@pytest.mark.parametrize("kind", ["shuffle", "scales"])
def test_the_authors_code_takes_our_file(kind):
    model = SMALL["shuffle"]
    if kind == "scales":
        model = model.clone(
            widths=(8, 16, 64), encoder_layers=(1, 2, 1), decoder_layers=(1, 1, 2), scales=(5,),
            shuffle=False,
        )  # fmt: skip
    variables = random_variables(model)
    theirs = export_dc_ae(variables, model, "original")
    reference = original_dc_ae.make_dc_ae(model)
    assert list(theirs) == list(reference.state_dict())
    reference.load_state_dict({n: torch.tensor(a) for n, a in theirs.items()}, strict=True)
    images = parity.normal(1, 32, 24, 3, seed=0)
    with torch.no_grad():
        z = reference.encode(parity.to_nchw(images))
        expected = reference.decode(z)
    latents = model.apply(variables, images, method="encode").mean
    parity.assert_close(latents, parity.to_nhwc(z), "latents")
    decoded = model.apply(variables, latents, method="decode")
    parity.assert_close(decoded, parity.to_nhwc(expected), "images")


def test_a_folder_of_another_vae_is_described(tmp_path):
    """Of another class, and of another size."""
    model, variables = SMALL["shuffle"], random_variables(SMALL["shuffle"])
    params = variables.pop("params")
    write_diffusers(tmp_path / "dc", StoredVAE(model, params, constants=variables))
    kl = AutoencoderKL(channels=8, multipliers=(1, 1), latent_channels=8, groups=2)
    with pytest.raises(UserError, match=r"_class_name is 'AutoencoderDC', but .* AutoencoderKL: "):
        read_weights(tmp_path / "dc", kl)
    message = (
        r"config\.json describes a VAE whose encoder_layers is \(0, 1, 1\), where .* \(0, 2, 1\)"
    )
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "dc", model.clone(encoder_layers=(0, 2, 1)))
