"""RAE's files: diffusers' folder, the authors' decoder with its statistics, an encoder alone."""

import json
import shutil

import diffusers
import diffusers_rae
import jax
import numpy as np
import original_rae
import parity
import pytest
import torch

from repae_jax.errors import UserError
from repae_jax.interop import files, latent_statistics, rae, rae_config, rae_files
from repae_jax.interop.vae_files import StoredVAE, read_vae, read_weights, write_diffusers
from repae_jax.interop.vit import export_vit
from repae_jax.models.tokenizers.base import decode, encode
from repae_jax.models.tokenizers.rae import RAE, RAE_CONFIGS
from repae_jax.runs.conversion import convert
from repae_jax.runs.inspection import describe

GRID, WIDTH = 4, diffusers_rae.WIDTH
SHAPE = (WIDTH, GRID, GRID)
LISTS = {
    "latents_mean": parity.normal(*SHAPE, seed=8).tolist(),
    "latents_std": (0.5 + np.abs(parity.normal(*SHAPE, seed=9))).tolist(),
}
IMAGES = np.tanh(parity.normal(1, 16, 16, 3, seed=0))


@pytest.fixture(scope="module")
def nets():
    """One network a kind of encoder, with statistics in both of diffusers' places."""
    return {kind: diffusers_rae.make_rae(kind, depth=1, **LISTS) for kind in ("dinov2", "mae")}


@pytest.fixture(scope="module")
def folder(nets, tmp_path_factory):
    path = tmp_path_factory.mktemp("rae") / "folder"
    nets["dinov2"].save_pretrained(path)
    return path


def edited(folder, target, tensors=lambda found: found, **config):
    """A copy of a folder with other tensors or entries of config.json."""
    shutil.copytree(folder, target)
    weights = target / "diffusion_pytorch_model.safetensors"
    files.write_safetensors(weights, tensors(files.read_stored(weights)), {"format": "pt"})
    text = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(text))
    return target


def same(one, two):
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree_util.tree_leaves_with_path(two),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def assert_equals_diffusers(vae, net):
    with torch.no_grad():
        z = net.encode((parity.to_nchw(IMAGES) + 1) / 2).latent
        decoded = 2 * net.decode(z).sample - 1
    latents = encode(vae.module, vae.variables, IMAGES).mean
    parity.assert_close(vae.normalize(latents), parity.to_nhwc(z), "normalized latents")
    back = vae.denormalize(parity.to_nhwc(z))
    parity.assert_close(back, latents, "latents")
    parity.assert_close(decode(vae.module, vae.variables, back), parity.to_nhwc(decoded), "images")


def test_a_folder_of_diffusers_is_read(nets, folder):
    """Its latents are divided by the file's deviation + 1e-5."""
    vae = read_vae(folder)
    assert vae.module == diffusers_rae.module_of(nets["dinov2"])
    assert vae.statistics["mean"].shape == (GRID, GRID, WIDTH)
    assert_equals_diffusers(vae, nets["dinov2"])
    with pytest.raises(UserError, match="of 4 x 4 positions, but 2 x 2 are needed"):
        vae.normalize(np.zeros((1, 2, 2, WIDTH), np.float32))


@pytest.mark.parametrize("kind", ["dinov2", "mae"])
def test_a_folder_goes_to_diffusers_and_back(kind, nets, tmp_path):
    net = nets[kind]
    model = diffusers_rae.module_of(net)
    variables = rae.load_rae(parity.state_of(net), model)
    constants = {"constants": variables["constants"]}
    std = np.asarray(LISTS["latents_std"]).transpose(1, 2, 0)
    statistics = {
        "mean": np.asarray(LISTS["latents_mean"], np.float32).transpose(1, 2, 0),
        "var": ((std + 1e-5) ** 2 - 1e-4).astype(np.float32),
    }
    vae = StoredVAE(model, variables["params"], {}, statistics, constants=constants)
    write_diffusers(tmp_path / "rae", vae)
    peer = diffusers.AutoencoderRAE.from_pretrained(tmp_path / "rae").eval()
    assert peer.config.encoder_input_size == GRID * diffusers_rae.PATCHES[kind]
    theirs, state = parity.state_of(peer), parity.state_of(net)
    assert set(theirs) == set(state)
    for name, array in state.items():
        tolerance = 1e-6 if name.startswith("_latents") else 0
        if "mask_token" not in name:  # which no token depends on
            np.testing.assert_allclose(theirs[name], array, rtol=tolerance, err_msg=name)
    back = read_vae(tmp_path / "rae")
    assert back.module == model
    same(back.variables, variables)
    for name, array in statistics.items():
        np.testing.assert_allclose(back.statistics[name], array, rtol=1e-6)
    # A folder that was read is written as it was.
    write_diffusers(tmp_path / "again", back)
    texts = [(tmp_path / name / "config.json").read_text() for name in ("rae", "again")]
    assert texts[0] == texts[1]


def test_siglip_comes_back(tmp_path):
    """diffusers 0.42 cannot open it under transformers 5: its names are compared alone."""
    net = diffusers_rae.make_rae("siglip2", depth=1)
    model = diffusers_rae.module_of(net)
    state = parity.state_of(net)
    variables = rae.load_rae(state, model)
    back = rae.export_rae(variables, model)
    statistics = ("_latents_mean", "_latents_std")
    assert set(back) == state.keys() - {*statistics}
    for name, array in back.items():
        if ".head." not in name:
            np.testing.assert_array_equal(array, state[name], err_msg=name)
    older = {n.replace("encoder.", "encoder.vision_model.", 1): a for n, a in state.items()
             if n.startswith("encoder.")}  # fmt: skip
    others = {n: a for n, a in state.items() if not n.startswith("encoder.")}
    same(rae.load_rae({**older, **others}, model), variables)
    fields = rae_config.rae_dimensions(dict(net.config))
    assert RAE(**fields) == model
    # the file's mean and deviation of pixels count, whatever config.json says
    fields = rae_config.rae_dimensions({**net.config, "encoder_norm_mean": None})
    assert fields["pixel_mean"] == (0.485, 0.456, 0.406)
    assert RAE(**rae_config.refined(fields, state, "it")) == model


def test_the_scaling_factor_is_a_part_of_the_statistics(nets, folder, tmp_path):
    vae = read_vae(edited(folder, tmp_path / "scaled", scaling_factor=0.5))
    net = nets["dinov2"]
    latents = encode(vae.module, vae.variables, IMAGES).mean
    with torch.no_grad():
        z = net.encode((parity.to_nchw(IMAGES) + 1) / 2).latent * 0.5
    parity.assert_close(vae.normalize(latents), parity.to_nhwc(z), "normalized latents")
    changed = {name: array + 1 for name, array in vae.statistics.items()}
    write_diffusers(
        tmp_path / "out",
        StoredVAE(vae.module, vae.params, vae.config, changed, constants=vae.constants),
    )
    for name, array in read_vae(tmp_path / "out").statistics.items():
        np.testing.assert_allclose(array, changed[name], rtol=1e-6)


def test_the_files_table_of_positions_counts(folder, tmp_path, capsys):
    """diffusers ignores it; published decoders have learned with the authors' positions."""
    from repae_jax.models.layers import sincos_position_table

    table = np.concatenate([np.zeros((1, 32), np.float32), sincos_position_table(32, GRID)])[None]

    def added(values):
        return lambda found: found | {"decoder.decoder_pos_embed": values}

    vae = read_vae(edited(folder, tmp_path / "own", added(table)))
    assert vae.module.position_step == 1.0
    write_diffusers(tmp_path / "out", vae)
    said = capsys.readouterr().err
    assert "4 x 4 positions with the step 4, but it was trained with 1" in said
    assert read_vae(tmp_path / "out").module == vae.module
    for step in (0.75, 2.5):  # neither the authors' nor diffusers'
        table_of_step = rae.table_of(vae.module.clone(position_step=step), GRID)
        assert rae.positions_of(table_of_step, "it") == (step, 0)
    moved = read_vae(edited(folder, tmp_path / "moved", added(table[:, ::-1].copy())))
    assert moved.module.table_grid == GRID
    write_diffusers(tmp_path / "out2", moved)
    assert "its training has moved them" in capsys.readouterr().err
    again = read_vae(tmp_path / "out2")
    assert again.module == moved.module
    same(again.variables, moved.variables)
    with pytest.raises(UserError, match="decoder_pos_embed' .* is not one of a square grid"):
        read_vae(edited(folder, tmp_path / "bad", added(table[:, 1:].copy())))
    with pytest.raises(UserError, match="has the step 1, but the tokenizer's is 4: set"):
        read_weights(tmp_path / "own", vae.module.clone(position_step=4.0))


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ({"encoder_type": "clip"}, {}, "encoder is 'clip': use 'dinov2' or"),
        ({"reshape_to_2d": False}, {}, "reshape_to_2d is False"),
        ({"encoder_input_size": 55}, {}, "encoder_input_size is 55, not a multiple"),
        ({"decoder_num_attention_heads": 5}, {}, "decoder_width is 32: give a multiple"),
        ({"scaling_factor": 0.0}, {}, "scaling_factor is 0.0"),
        ({"encoder_hidden_size": 10**9}, {}, "encoder_hidden_size is 1000000000"),
        ({"latents_mean": [[1.0, 2.0]]}, {}, "latents_mean"),
        ({}, {"encoder_mean": np.zeros(3, np.float32)}, "encoder_mean' of type float32"),
        ({}, {"_latents_std": np.zeros(SHAPE, np.float32)}, r"_latents_std\[0, 0, 0\] is 0"),
        ({}, {"_latents_mean": np.zeros((2, 4, 4), np.float32)}, "_latents_mean has 2 values"),
        ({}, {"_latents_mean": np.zeros((64, 2, 2), np.float32)}, "2 x 2 positions, _latents_std"),
        ({}, {"decoder.decoder_norm.bias": None}, "decoder: tensor 'decoder_norm.bias' is miss"),
        ({}, {"encoder.encoder.layer.1.norm1.bias": None}, "encoder: tensor 'encoder.layer.1.no"),
        ({}, {"further": np.zeros(2, np.float32)}, "unexpected tensor 'further'"),
    ],
)
def test_a_damaged_folder_is_named(config, change, message, folder, tmp_path):
    def tensors(found):
        found = {**found, **change}
        return {name: array for name, array in found.items() if array is not None}

    with pytest.raises(UserError, match=message) as error:
        read_vae(edited(folder, tmp_path / "bad", tensors, **config))
    assert "\n" not in str(error.value)


def test_what_shapes_do_not_show_is_compared(folder):
    model = read_vae(folder).module
    with pytest.raises(UserError, match="decoder_heads is 4, but config.tokenizer.decoder_heads"):
        read_weights(folder, model.clone(decoder_heads=8))
    with pytest.raises(UserError, match="its encoder is 'dinov2'"):
        read_weights(folder, model.clone(encoder="siglip2"))


@pytest.fixture
def parts(nets, tmp_path):
    """The authors' files of the same network: model.pt, stat.pt and the encoder's file."""
    net = nets["dinov2"]
    model = diffusers_rae.module_of(net)
    variables = rae.load_rae(parity.state_of(net), model)
    decoder = rae.export_decoder(variables, original=True)
    decoder["decoder_pos_embed"] = rae.table_of(model, GRID)
    files.write_torch(tmp_path / "model.pt", decoder)
    var = 0.5 + np.abs(parity.normal(*SHAPE, seed=5))
    torch.save({"mean": None, "var": torch.tensor(var)}, tmp_path / "stat.pt")
    encoder = export_vit(variables["constants"]["encoder"], model.vit, "transformers")
    encoder["layernorm.weight"] = encoder["layernorm.bias"] = np.ones(WIDTH, np.float32)
    files.write_safetensors(tmp_path / "encoder.safetensors", encoder)
    return tmp_path, model, variables, var


def test_the_authors_decoder_is_read_with_what_lies_beside_it(parts):
    path, model, variables, var = parts
    found, statistics = read_weights(path / "model.pt", model)
    same(found, variables)
    z = parity.normal(2, GRID, GRID, WIDTH, seed=3)
    theirs = parity.to_nchw(z) / torch.sqrt(torch.tensor(var) + 1e-5)
    vae = StoredVAE(model, found["params"], {}, statistics, constants={})
    parity.assert_close(vae.normalize(z), parity.to_nhwc(theirs), "normalized latents", 1e-6)
    names = {name.split(".", 2)[2] for name in files.read_stored(path / "model.pt")
             if name.startswith("decoder_layers.0.")}  # fmt: skip
    layers = ("attention.attention.query", "attention.attention.key", "attention.attention.value",
              "attention.output.dense", "intermediate.dense", "output.dense", "layernorm_before",
              "layernorm_after")  # fmt: skip
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    (path / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match="decoder without its encoder: put .* encoder.safetensors"):
        read_weights(path / "model.pt", model)


def test_the_authors_decoder_becomes_a_folder(parts, monkeypatch):
    path, model, variables, _ = parts
    small = dict(encoder="dinov2", latent_channels=WIDTH, encoder_depth=2, encoder_patch=14)
    monkeypatch.setitem(RAE_CONFIGS, "small", small)
    monkeypatch.setitem(rae_config._HEADS, 32, 4)
    convert(str(path / "model.pt"), path / "folder", None, None, progress=False)
    back = read_vae(path / "folder")
    assert back.module == model
    same(back.variables, variables)
    assert back.statistics["var"].shape == (GRID, GRID, WIDTH)


def test_a_folder_becomes_the_authors_decoder(folder, tmp_path, monkeypatch):
    """And back, with the encoder's file beside it."""
    with pytest.raises(UserError, match="4 heads, but its authors' of width 32 has 0"):
        convert(str(folder), tmp_path / "model.pt", "vae", None, progress=False)
    monkeypatch.setitem(rae_config._HEADS, 32, 4)
    for name in ("stat.pt", "encoder.pt"):
        with pytest.raises(UserError, match="needs a name of its own, such as model.pt"):
            convert(str(folder), tmp_path / name, "vae", None, progress=False)
    assert not any(tmp_path.iterdir())
    said = convert(str(folder), tmp_path / "model.pt", "vae", None, progress=False)
    assert "RAE's decoder under its authors' names, beside it stat.pt" in said
    expected = read_vae(folder)
    encoder = export_vit(
        expected.constants["constants"]["encoder"], expected.module.vit, "transformers"
    )
    files.write_safetensors(tmp_path / "encoder.safetensors", encoder)
    found, statistics = read_weights(tmp_path / "model.pt", expected.module)
    same(found, expected.variables)
    for name, array in expected.statistics.items():
        np.testing.assert_allclose(statistics[name], array, rtol=1e-6)
    with pytest.raises(UserError, match="stat.pt exists already"):
        convert(str(folder), tmp_path / "other.pt", "vae", None, progress=False)


def test_inspect_says_what_they_are(parts, folder, monkeypatch):
    path, *_ = parts
    monkeypatch.setitem(rae_config._HEADS, 32, 4)
    text = describe(path / "model.pt")
    assert "decoder of a RAE" in text
    assert "64 channels -> 4 x 4 pixels: ViT of width 32, depth 1" in text
    assert "64 channels at 4 x 4 positions, mean 0 to 0" in describe(path / "stat.pt")
    text = describe(folder)
    assert "RAE, 4 x 4 pixels -> 64 channels" in text
    assert "64 channels at 4 x 4 positions" in text


def test_damaged_parts_are_named(parts, monkeypatch):
    path, model, *_ = parts
    decoder = files.read_stored(path / "model.pt")
    monkeypatch.setitem(rae_config._HEADS, 32, 4)
    other = path / "other.pt"
    for name in ("decoder_embed.weight", "decoder_pred.weight"):
        files.write_torch(other, {n: a for n, a in decoder.items() if n != name})
        with pytest.raises(UserError, match=f"'{name}' is missing"):
            describe(other)
        with pytest.raises(UserError, match=f"tensor '{name}' is missing"):
            read_weights(other, model)
    for content, message in (
        ({"mean": None, "var": np.full(SHAPE, -1, np.float32)}, r"var\[0, 0, 0\] is -1.00009"),
        ({"mean": np.zeros(3, np.float32), "var": np.ones(SHAPE, np.float32)}, "has 64 values"),
        ({"var": np.ones((2, 3), np.float32)}, "one real number per channel"),
    ):
        (path / "stat.pt").unlink()
        files.write_torch(path / "stat.pt", content)
        with pytest.raises(UserError, match=message):
            latent_statistics.read(path / "stat.pt")


def test_statistics_by_position_come_back_bit_for_bit(tmp_path):
    var = 0.5 + np.abs(parity.normal(2, 3, 5, seed=0))
    statistics = {"mean": parity.normal(2, 3, 5, seed=1), "var": (var**-0.5) ** -2}
    latent_statistics.write(tmp_path / "x.pt", statistics)
    stored = files.read_stored(tmp_path / "x.pt")["latents_bias"]
    assert stored.shape == (1, 5, 2, 3)
    back = latent_statistics.read(tmp_path / "x.pt", 5)
    np.testing.assert_array_equal(back["mean"], statistics["mean"])
    np.testing.assert_allclose(back["var"], statistics["var"], rtol=1e-6)
    wide = latent_statistics.fitted({"mean": var[0, 0], "var": var[0, 0]}, (2, 3, 5), source="x")
    np.testing.assert_array_equal(wide["var"], np.broadcast_to(var[0, 0], (2, 3, 5)))
    for shape in ((5,), (3, 2, 5)):
        with pytest.raises(UserError, match="of 2 x 3 positions, but"):
            latent_statistics.fitted(back, shape, source="x")


def test_the_encoder_alone_is_recognized(parts, folder):
    path, model, variables, _ = parts
    found = rae_files.read_encoder(path / "encoder.safetensors", model)
    same(found, {"constants": variables["constants"]})
    assert rae_files.read_encoder(path / "model.pt", model) is None
    assert rae_files.read_encoder(folder, model) is None
    with pytest.raises(UserError, match="DINOv2, but the model is SigLIP's"):
        rae_files.read_encoder(path / "encoder.safetensors", model.clone(encoder="siglip2"))


@pytest.mark.skipif(original_rae.ROOT is None, reason=original_rae.SKIP_REASON)
def test_the_authors_code_takes_our_decoder(nets):
    net = nets["dinov2"]
    model = diffusers_rae.module_of(net, position_step=1.0)
    variables = rae.load_rae(parity.state_of(net), model)
    tensors = rae.export_decoder(variables, original=True)
    tensors["decoder_pos_embed"] = rae.table_of(model, GRID)
    peer = original_rae.make_decoder(model, GRID)
    np.testing.assert_allclose(peer.decoder_pos_embed, tensors["decoder_pos_embed"], atol=1e-6)
    peer.load_state_dict({n: torch.tensor(a) for n, a in tensors.items()}, strict=True)
    z = parity.normal(2, GRID, GRID, WIDTH, seed=0)
    with torch.no_grad():
        tokens = torch.tensor(z.reshape(2, GRID**2, WIDTH))
        pixels = peer.unpatchify(peer(tokens, drop_cls_token=False).logits)
        expected = 2 * (pixels * net.encoder_std + net.encoder_mean) - 1
    parity.assert_close(decode(model, variables, z), parity.to_nhwc(expected), "images")
