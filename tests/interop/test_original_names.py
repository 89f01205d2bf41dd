"""The SiT's and the VAE's tensors under the names that the original's checkpoints have."""

import re
import sys
import types

import jax
import numpy as np
import parity
import pytest
import torch
import torch_sit
from exported import load_sit
from sits import sit_of

from repae_jax.errors import UserError
from repae_jax.interop.autoencoder_kl import ldm_rules, load_vae
from repae_jax.interop.sit import sit_rules
from repae_jax.interop.tables import flatten, to_theirs
from repae_jax.models.backbones.sit import SIT_CONFIGS
from repae_jax.models.tokenizers.autoencoder_kl import VAE_CONFIGS, AutoencoderKL

# From ten blocks on a number has two digits.
SIT = dict(
    latent_size=4,
    latent_channels=3,
    patch_size=2,
    hidden_size=8,
    depth=11,
    num_heads=2,
    num_classes=5,
    encoder_depth=2,
    teacher_dims=(6, 7),
    projector_dim=9,
)
LATENT = 3


def random(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def conv(name, n_in, n_out, kernel=3):
    return {f"{name}.weight": (n_out, n_in, kernel, kernel), f"{name}.bias": (n_out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def block(name, n_in, n_out):
    shapes = norm(f"{name}.norm1", n_in) | conv(f"{name}.conv1", n_in, n_out)
    shapes |= norm(f"{name}.norm2", n_out) | conv(f"{name}.conv2", n_out, n_out)
    return shapes | (conv(f"{name}.nin_shortcut", n_in, n_out, 1) if n_in != n_out else {})


def attention(name, width):
    shapes = norm(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= conv(f"{name}.{part}", width, width, 1)
    return shapes


def middle(side, width):
    shapes = block(f"{side}.mid.block_1", width, width) | attention(f"{side}.mid.attn_1", width)
    return shapes | block(f"{side}.mid.block_2", width, width)


def vae_shapes(quant_conv):
    """LDM's names, written down for two levels of widths 4 and 8 with attention in the second."""
    shapes = conv("encoder.conv_in", 3, 4)
    shapes |= block("encoder.down.0.block.0", 4, 4) | block("encoder.down.0.block.1", 4, 4)
    shapes |= conv("encoder.down.0.downsample.conv", 4, 4)
    shapes |= block("encoder.down.1.block.0", 4, 8) | block("encoder.down.1.block.1", 8, 8)
    shapes |= attention("encoder.down.1.attn.0", 8) | attention("encoder.down.1.attn.1", 8)
    shapes |= middle("encoder", 8) | norm("encoder.norm_out", 8)
    shapes |= conv("encoder.conv_out", 8, 2 * LATENT)
    shapes |= conv("decoder.conv_in", LATENT, 8) | middle("decoder", 8)
    for j in range(3):
        shapes |= block(f"decoder.up.1.block.{j}", 8, 8) | attention(f"decoder.up.1.attn.{j}", 8)
        shapes |= block(f"decoder.up.0.block.{j}", 4 if j else 8, 4)
    shapes |= conv("decoder.up.1.upsample.conv", 8, 8)
    shapes |= norm("decoder.norm_out", 4) | conv("decoder.conv_out", 4, 3)
    if quant_conv:
        shapes |= conv("quant_conv", 2 * LATENT, 2 * LATENT, 1)
        shapes |= conv("post_quant_conv", LATENT, LATENT, 1)
    return shapes


def sit_family(**changes):
    config = SIT | changes
    model = sit_of(**config)
    shapes = {n: t.shape for n, t in torch_sit.SiT(**config).state_dict().items()}
    del shapes["bn.num_batches_tracked"]
    return (
        random(shapes),
        lambda tensors: load_sit(tensors, model, source="FILE"),
        sit_rules(model.patch_size),
    )


def vae_family(quant_conv):
    model = AutoencoderKL(4, (1, 2), LATENT, attention_levels=(1,), groups=2, quant_conv=quant_conv)
    tensors = random(vae_shapes(quant_conv))
    return tensors, lambda tensors: load_vae(tensors, model, source="FILE"), ldm_rules()


FAMILIES = {
    "sit": sit_family(),
    "sit-two-blocks": sit_family(qk_norm=True, patch_size=1, depth=2),
    "vae": vae_family(True),
    "vae-no-quant": vae_family(False),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_import_then_export_is_the_identity(family):
    tensors, load, rules = FAMILIES[family]
    exported = to_theirs(rules, flatten(load(tensors)))
    assert set(exported) == set(tensors)
    for name, array in tensors.items():
        assert exported[name].dtype == np.float32
        assert exported[name].shape == array.shape
        assert exported[name].tobytes() == array.tobytes(), name


def test_sit_values():
    tensors, load, _ = FAMILIES["sit"]
    loaded = load(tensors | {"bn.num_batches_tracked": np.array(7)})
    assert set(loaded) == {"params", "constants", "batch_stats"}
    np.testing.assert_array_equal(loaded["batch_stats"]["mean"], tensors["bn.running_mean"])
    np.testing.assert_array_equal(loaded["batch_stats"]["var"], tensors["bn.running_var"])
    np.testing.assert_array_equal(loaded["constants"]["position_table"], tensors["pos_embed"])
    params, patch = loaded["params"], parity.normal(3, 2, 2, seed=1)  # a patch, channels first
    weight = tensors["x_embedder.proj.weight"]
    expected = torch.nn.functional.conv2d(torch.tensor(patch)[None], torch.tensor(weight), stride=2)
    actual = patch.transpose(1, 2, 0).reshape(-1) @ params["patch_embed"]["kernel"]
    parity.assert_close(actual, expected.flatten(), "patch embedding")
    for theirs, ours in {
        "blocks.10.attn.qkv": params["blocks_10"]["attn"]["qkv"],
        "blocks.1.adaLN_modulation.1": params["blocks_1"]["modulation"],
        "t_embedder.mlp.2": params["time_embed"]["fc2"],
        "projectors.1.4": params["projectors_1"]["fc3"],
        "final_layer.adaLN_modulation.1": params["final_layer"]["modulation"],
    }.items():
        np.testing.assert_array_equal(ours["kernel"], tensors[f"{theirs}.weight"].T)
        np.testing.assert_array_equal(ours["bias"], tensors[f"{theirs}.bias"])


def test_vae_values():
    tensors, load, _ = FAMILIES["vae"]
    params = load(tensors)
    image = parity.normal(1, 5, 5, 3, seed=0)
    theirs, ours = "encoder.conv_in", params["encoder"]["conv_in"]
    expected = torch.nn.functional.conv2d(
        parity.to_nchw(image), torch.tensor(tensors[f"{theirs}.weight"])
    )
    actual = jax.lax.conv_general_dilated(
        image, ours["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    parity.assert_close(actual, parity.to_nhwc(expected), "convolution")
    for theirs, ours in {
        "decoder.up.0.block.2.norm1": params["decoder"]["up_0"]["block_2"]["norm1"],
        "encoder.down.1.attn.1.norm": params["encoder"]["down_1"]["attn_1"]["norm"],
    }.items():
        np.testing.assert_array_equal(ours["scale"], tensors[f"{theirs}.weight"])
        np.testing.assert_array_equal(ours["bias"], tensors[f"{theirs}.bias"])


# few and small: each load costs a trace of the model
BAD = {
    "sit-two-blocks": ["pos_embed", "bn.running_var", "blocks.1.attn.qkv.weight"],
    "vae": ["quant_conv.weight", "decoder.up.1.attn.2.k.bias"],
}


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, names in BAD.items() for name in names]
)
def test_a_missing_or_misshapen_tensor_is_named_as_the_file_names_it(family, name):
    tensors, load, _ = FAMILIES[family]
    with pytest.raises(UserError, match=rf"FILE: tensor '{name}' is missing$"):
        load({n: a for n, a in tensors.items() if n != name})
    shape = (*tensors[name].shape[:-1], 2)
    with pytest.raises(
        UserError, match=rf"FILE: tensor '{name}' has shape {re.escape(str(shape))}"
    ):
        load(tensors | {name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize("family", BAD)
def test_an_extra_tensor_is_named(family):
    tensors, load, _ = FAMILIES[family]
    for name in ("loss.logvar", "blocks.2.attn.qkv.weight"):
        with pytest.raises(UserError, match=rf"FILE: unexpected tensor '{name}'"):
            load(tensors | {name: np.zeros((24, 8), np.float32)})


def test_a_tensor_of_another_rank_is_named():
    tensors, load, _ = FAMILIES["vae"]
    name = "encoder.conv_in.weight"
    with pytest.raises(UserError, match=rf"FILE: tensor '{name}' has shape \(4,\)"):
        load(tensors | {name: np.zeros(4, np.float32)})


@pytest.mark.skipif(not parity.ORIGINAL, reason=parity.SKIP_REASON)
def test_names_and_shapes_are_the_original_models():
    name = "SiT-B/2"
    with torch.device("meta"):
        make = parity.original_module("models/sit.py").SiT_models[name]
        reference = make(input_size=16, in_channels=4, z_dims=[768], qk_norm=False)
    tensors = {n: np.zeros(t.shape, np.float32) for n, t in reference.state_dict().items()}
    model = sit_of(
        latent_size=16,
        latent_channels=4,
        num_classes=1000,
        teacher_dims=(768,),
        **SIT_CONFIGS[name],
    )
    load_sit(tensors, model)


@pytest.mark.skipif(not parity.ORIGINAL, reason=parity.SKIP_REASON)
@pytest.mark.parametrize("name", ["f8d4", "f16d32"])
def test_names_and_shapes_are_the_original_vaes(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "dictdot", types.SimpleNamespace(dictdot=dict))
    with torch.device("meta"):
        reference = parity.original_module("models/autoencoder.py").vae_models[name]()
    tensors = {n: np.zeros(t.shape, np.float32) for n, t in reference.state_dict().items()}
    load_vae(tensors, AutoencoderKL(**VAE_CONFIGS[name]))
