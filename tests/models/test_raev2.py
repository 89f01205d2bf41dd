"""RAEv2: DINOv3's averaged blocks against transformers', the decoder against diffusers', files."""

import diffusers_rae
import jax
import numpy as np
import original_raev2
import parity
import pytest
import torch
import transformers

from repae_jax.errors import UserError
from repae_jax.interop import files, latent_statistics, rae, rae_config, rae_files
from repae_jax.interop.vae_files import StoredVAE, read_vae, read_weights, write_diffusers
from repae_jax.interop.vit import load_vit
from repae_jax.models.encoders.vit import create_vit
from repae_jax.models.tokenizers.base import decode, encode, variable_shapes
from repae_jax.models.tokenizers.rae import FAMILY, RAE, RAE_CONFIGS
from repae_jax.runs.inspection import describe

GRID, WIDTH, DEPTH, LAYERS = 4, 64, 3, (0, 2)
SIZES = dict(
    encoder="dinov3", latent_channels=WIDTH, encoder_depth=DEPTH, encoder_patch=16,
    normalized_pixels=False, decoder_width=64, decoder_depth=1, decoder_heads=1, decoder_hidden=48,
    factor=16,
)  # fmt: skip
IMAGES = np.tanh(parity.normal(2, 16 * GRID, 16 * GRID, 3, seed=0))


def make_dino():
    config = transformers.DINOv3ViTConfig(
        patch_size=16, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=DEPTH,
        num_attention_heads=1, num_register_tokens=4,
    )  # fmt: skip
    return parity.randomise(transformers.DINOv3ViTModel(config)).eval().requires_grad_(False)


def latents_of(dino, images, layers):
    """RAEv2's latents (B, c, h, w) of images in [-1, 1], by the blocks of transformers' DINOv3."""
    mean, std = (torch.tensor(v)[:, None, None] for v in
                 ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip
    pixels, hidden = ((images + 1) / 2 - mean) / std, []
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: hidden.append(out))
        for block in (dino.layer if hasattr(dino, "layer") else dino.model.layer)
    ]
    dino(pixels)
    for hook in hooks:
        hook.remove()
    normed = [torch.nn.functional.layer_norm(h[:, 5:], (WIDTH,), eps=1e-5) for h in hidden]
    if layers:
        chosen = [normed[i] for i in layers]
        tokens = torch.stack(chosen).mean(0) + chosen[-1].mean(1, keepdim=True)
    else:
        tokens = normed[-1]
    return tokens.transpose(1, 2).unflatten(2, (GRID, GRID))


@pytest.mark.parametrize("layers", [LAYERS, ()])
def test_values_and_gradients_equal_torch(layers):
    """A single block is no average: nothing is added to it."""
    dino, net = make_dino(), diffusers_rae.make_rae(
        grid=GRID, depth=1, patch_size=16, decoder_hidden_size=64, decoder_num_attention_heads=1
    )  # fmt: skip
    model = RAE(**SIZES, encoder_layers=layers, position_step=16 / GRID)
    decoder = parity.state_of(net.decoder)
    variables = rae.load_decoder(decoder, model, original=False, source="it")
    variables["constants"] |= rae.load_encoder(parity.state_of(dino), model, source="it")
    leaf = parity.to_nchw(IMAGES).requires_grad_()
    z = latents_of(dino, leaf, layers)
    pixels = net.decoder(z.flatten(2).transpose(1, 2)).logits
    pixels = pixels.unflatten(1, (GRID, GRID)).unflatten(3, (16, 16, 3))
    pixels = pixels.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
    expected = [z.permute(0, 2, 3, 1), 2 * pixels - 1]

    def outputs(params, images):
        def apply(module, images):
            point = module.encode(images)
            return point.mean, module.decode(point.mean)

        return model.apply({**variables, "params": params}, images, method=apply)

    by_params = parity.assert_outputs_equal(
        outputs, variables["params"], [IMAGES], expected, [leaf]
    )
    actual = rae.export_decoder({"params": by_params}, original=False)
    gradients = parity.gradients_of(net.decoder)

    def vanishing(name):  # a softmax does not change with the bias of all keys
        return name.replace("to_k", "to_q") if name.endswith("to_k.bias") else None

    parity.assert_tensors_close(
        {name: actual[name] for name in gradients}, gradients, vanishing=vanishing
    )


def test_the_loop_over_blocks_averages_too():
    model = create_vit("dinov3-b", dim=WIDTH, depth=DEPTH, num_heads=1, averaged=LAYERS)
    params = load_vit({**parity.state_of(make_dino())}, model)
    plain = model.apply(params, IMAGES)
    looped = model.clone(scan=True).apply(params, IMAGES)
    np.testing.assert_array_equal(plain.patch_tokens, looped.patch_tokens)


@pytest.fixture
def parts(tmp_path):
    """RAEv2's files: decoder.pt, stats.pt and the encoder's; our module and its variables."""
    model = RAE(**SIZES, encoder_layers=LAYERS)
    shapes, rng = variable_shapes(model), np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(scale=0.2, size=s.shape).astype(np.float32), shapes["params"]
    )
    files.write_safetensors(tmp_path / "encoder.safetensors", parity.state_of(make_dino()))
    shape = (GRID, GRID, WIDTH)
    statistics = {"mean": parity.normal(*shape, seed=1)}
    statistics["var"] = 0.5 + np.abs(parity.normal(*shape, seed=2))
    rae_files.write_decoder(tmp_path / "decoder.pt", model, {"params": params}, statistics)
    return tmp_path, model, params, statistics


def test_the_authors_files_come_back(parts):
    path, model, params, statistics = parts
    found, found_statistics = read_weights(path / "decoder.pt", model)
    jax.tree.map(np.testing.assert_array_equal, found["params"], params)
    for name, array in statistics.items():
        np.testing.assert_allclose(found_statistics[name], array, rtol=1e-6)
    stored = files.read_stored(path / "stats.pt")
    assert {name: a.shape for name, a in stored.items()} == dict.fromkeys(
        ("mean", "var"), (WIDTH, GRID, GRID)
    )
    # theirs is sqrt(var + 1e-5), LatentNorm's sqrt(var + 1e-4)
    np.testing.assert_allclose(
        stored["var"] + 1e-5, statistics["var"].transpose(2, 0, 1) + 1e-4, rtol=1e-6
    )
    assert rae.TABLE in files.read_stored(path / "decoder.pt")
    assert "decoder of a RAE" in describe(path / "decoder.pt")
    alone = rae_files.read_encoder(path / "encoder.safetensors", model)
    assert set(alone["constants"]) == {"encoder", "periods"}
    mean = {name: array.mean((0, 1)) for name, array in statistics.items()}
    of_rae = model.clone(normalized_pixels=True)
    rae_files.write_decoder(path / "plain.pt", of_rae, {"params": params}, mean)
    assert rae.TABLE not in files.read_stored(path / "plain.pt")
    back = latent_statistics.read(path / "stat.pt", WIDTH)
    np.testing.assert_allclose(back["var"], mean["var"], rtol=1e-6)
    with pytest.raises(UserError, match=r"both stat.pt and stats.pt are beside it"):
        read_weights(path / "decoder.pt", model)
    # other positions than the authors' are in the file without statistics, too
    other = model.clone(position_step=4.0)
    rae_files.write_decoder(path / "other.pt", other, {"params": params}, None)
    with pytest.raises(UserError, match="the step 4, but the tokenizer's is 1"):
        read_weights(path / "other.pt", model)


def test_a_table_that_training_has_moved_is_the_files(parts):
    """The authors' training moves the decoder's table, its row of the class token too."""
    path, model, params, _ = parts
    tensors = files.read_stored(path / "decoder.pt")
    moved = tensors[rae.TABLE] + parity.normal(*tensors[rae.TABLE].shape, seed=6)
    files.write_torch(path / "moved.pt", {**tensors, rae.TABLE: moved})
    with pytest.raises(UserError, match=r"set --config.tokenizer.table_grid=4"):
        read_weights(path / "moved.pt", model)
    own = model.clone(table_grid=GRID)
    variables, _ = read_weights(path / "moved.pt", own)
    z = parity.normal(2, GRID, GRID, WIDTH, seed=7)
    # torch's fixed table of zeros beside the moved one added by hand
    bound, table = own.bind(variables).decoder, np.asarray(moved)
    token = params["decoder"]["class_token"] + table[:, :1]
    shifted = {**params["decoder"], "class_token": token}
    fixed = model.bind({**variables, "params": {"decoder": shifted}}).decoder
    difference = table[0, 1:].reshape(GRID, GRID, -1) - fixed._positions(GRID, GRID)
    embed = params["decoder"]["embed"]
    extra = np.linalg.lstsq(embed["kernel"].T, difference.reshape(-1, 64).T, rcond=None)[0]
    same_place = z + extra.T.reshape(GRID, GRID, WIDTH)
    parity.assert_close(bound(z), fixed(same_place.astype(np.float32)), "images", 1e-3)
    rae_files.write_decoder(path / "again.pt", own, variables, None)
    np.testing.assert_array_equal(files.read_stored(path / "again.pt")[rae.TABLE], moved)
    with pytest.raises(UserError, match="latents of 2 x 4, but the decoder's table"):
        decode(own, variables, z[:, :2])
    # such a folder of diffusers' is read alike
    fields = rae_config.infer_decoder(tensors | {rae.TABLE: moved}, source="it")
    assert (fields["table_grid"], fields["position_step"]) == (GRID, 1.0)


def test_the_decoder_does_not_tell_its_encoders_blocks(parts, monkeypatch):
    path, *_ = parts
    for k, layers in ((1, ()), (7, LAYERS), (23, (1, 2))):
        name = f"raev2-dinov3-large-k{k}"
        small = dict(latent_channels=WIDTH, encoder_depth=DEPTH, encoder_layers=layers)
        monkeypatch.setitem(RAE_CONFIGS, name, RAE_CONFIGS[name] | small)
    with pytest.raises(UserError, match="arch is one of raev2-dinov3-large-k1, .*-k7, .*-k23"):
        read_vae(path / "decoder.pt")


def test_a_folder_keeps_what_diffusers_class_has_not(parts):
    path, model, params, statistics = parts
    variables, _ = read_weights(path / "decoder.pt", model)
    del variables["params"]
    vae = StoredVAE(model, params, {}, statistics, constants=variables)
    write_diffusers(path / "folder", vae)
    found = read_vae(path / "folder")
    assert found.module == model
    jax.tree.map(np.testing.assert_array_equal, dict(found.variables), dict(vae.variables))
    for name, values in found.statistics.items():
        np.testing.assert_allclose(values, statistics[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layers", [(2, 0), (1, 1), (0, 3)])
def test_impossible_blocks_are_named(layers):
    with pytest.raises(UserError, match=r"x.encoder_layers is \(.*\): give increasing numbers"):
        FAMILY.check(RAE(**SIZES, encoder_layers=layers), {}, "x")


def test_published_blocks():
    k7, k23 = (RAE_CONFIGS[f"raev2-dinov3-large-k{k}"]["encoder_layers"] for k in (7, 23))
    assert (k7, k23) == ((11, 13, 15, 17, 19, 21, 23), tuple(range(1, 24)))


@pytest.mark.skipif(not original_raev2.FOUND, reason=original_raev2.SKIP_REASON)
@pytest.mark.parametrize("layers", [LAYERS, ()])
def test_the_authors_rae_has_our_latents_and_images(layers, tmp_path):
    model = RAE(**SIZES, encoder_layers=layers)
    shape = (WIDTH, GRID, GRID)
    stored = {"mean": torch.tensor(parity.normal(*shape, seed=1))}
    stored["var"] = torch.tensor(0.5 + np.abs(parity.normal(*shape, seed=2)))
    torch.save(stored, tmp_path / "stats.pt")
    net = original_raev2.make_rae(model, GRID, tmp_path, tmp_path / "stats.pt")
    with torch.no_grad():
        z = net.encode((parity.to_nchw(IMAGES) + 1) / 2)
        decoded = parity.to_nhwc(2 * net.decode(z) - 1)
    torch.save(net.decoder.state_dict(), tmp_path / "decoder.pt")
    torch.save(net.encoder.model.state_dict(), tmp_path / "encoder.pth")
    variables, statistics = read_weights(tmp_path / "decoder.pt", model)
    params = variables.pop("params")
    vae = StoredVAE(model, params, {}, statistics, constants=variables)
    latents = encode(model, vae.variables, IMAGES).mean
    parity.assert_close(vae.normalize(latents), parity.to_nhwc(z), "normalized latents")
    parity.assert_close(decode(model, vae.variables, latents), decoded, "images")
    # and back
    rae_files.write_decoder(tmp_path / "again.pt", model, vae.variables, statistics)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert set(again) == set(net.decoder.state_dict())
    net.decoder.load_state_dict(again, strict=True)
