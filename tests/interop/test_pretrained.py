"""VAEs from and to diffusers' folders and LDM's files, by `AutoencoderKL.from_pretrained`."""

import json

import diffusers_vae
import jax
import ml_dtypes
import numpy as np
import parity
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

import repae_jax
from repae_jax.errors import UserError
from repae_jax.interop import autoencoder_kl, files, latent_statistics
from repae_jax.interop.vae_files import read_vae, write_diffusers, write_ldm
from repae_jax.models.tokenizers.autoencoder_kl import VAE_CONFIGS, AutoencoderKL
from repae_jax.models.tokenizers.base import parameter_shapes
from repae_jax.models.tokenizers.qwen_image_vae import AutoencoderKLQwenImage
from repae_jax.runs.pretrained import PretrainedVAE

SMALL = dict(channels=8, multipliers=(1, 2), latent_channels=3, num_res_blocks=1, groups=4)
# The structures that are published, with small widths.
KINDS = {
    "sd": AutoencoderKL(**SMALL),
    "sd35-flux": AutoencoderKL(**SMALL, quant_conv=False),
    "f16d32": AutoencoderKL(**SMALL, attention_levels=(1,)),
    "no-middle-attention": AutoencoderKL(**SMALL, middle_attention=False),
}
SCALES = {
    "sd": {"scaling_factor": 0.18215},
    "sd35-flux": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    "f16d32": {"latents_mean": [0.1, -0.2, 0.3], "latents_std": [0.5, 1.0, 2.0]},
    "no-middle-attention": {"scaling_factor": 0.5},
}


def make(kind):
    peer = parity.randomise(diffusers_vae.make_vae(KINDS[kind]), seed=1).eval()
    peer.register_to_config(**SCALES[kind])
    return peer


def qwen():
    import diffusers

    peer = diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=3, dim_mult=[1, 2, 2], num_res_blocks=1,
        temperal_downsample=[False, True], latents_mean=[0.1, -0.2, 0.3],
        latents_std=[0.5, 1.0, 2.0],
    )  # fmt: skip
    return parity.randomise(peer, seed=1).eval()


def stored_tensors(folder):
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def assert_same_bits(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        array, other = np.asarray(array), np.asarray(actual[name])
        assert (other.dtype, other.shape) == (array.dtype, array.shape), name
        assert other.tobytes() == array.tobytes(), name


def compare(peer, ours, images):
    """Encode, sample, decode: ours against diffusers'."""
    x = parity.to_nchw(images)
    with torch.no_grad():
        if hasattr(peer.config, "z_dim"):  # Qwen's takes videos
            posterior = peer.encode(x[:, :, None]).latent_dist
            decoded = peer.decode(posterior.mean).sample[:, :, 0]
            mean, std = posterior.mean[:, :, 0], posterior.std[:, :, 0]
        else:
            posterior = peer.encode(x).latent_dist
            decoded = peer.decode(posterior.mean).sample
            mean, std = posterior.mean, posterior.std
    actual = ours.encode(images)
    parity.assert_close(actual.mean, parity.to_nhwc(mean), "mean")
    parity.assert_close(actual.std, parity.to_nhwc(std), "std")
    parity.assert_close(ours.decode(actual.mean), parity.to_nhwc(decoded), "decoded")


@pytest.mark.parametrize("kind", [*KINDS, "qwen"])
def test_diffusers_in_and_out(kind, tmp_path):
    import diffusers

    peer = qwen() if kind == "qwen" else make(kind)
    peer.save_pretrained(tmp_path / "theirs")
    ours = repae_jax.AutoencoderKL.from_pretrained(tmp_path / "theirs")
    images = parity.normal(2, 16, 16, 3, seed=2).clip(-1, 1)
    compare(peer, ours, images)

    ours.save_pretrained(tmp_path / "ours")
    assert_same_bits(stored_tensors(tmp_path / "ours"), stored_tensors(tmp_path / "theirs"))
    back, info = type(peer).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    compare(back.eval(), ours, images)
    ignored = {"_diffusers_version", "_name_or_path", "_use_default_values"}
    assert {k: v for k, v in back.config.items() if k not in ignored} == {
        k: v for k, v in peer.config.items() if k not in ignored
    }
    assert isinstance(peer, getattr(diffusers, json_of(tmp_path / "ours")["_class_name"]))


def json_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["f8d4", "f16d32"])
def test_true_dimensions(name, tmp_path):
    model = AutoencoderKL(**VAE_CONFIGS[name])
    peer = parity.randomise(diffusers_vae.make_vae(model), seed=1).eval()
    peer.save_pretrained(tmp_path / "theirs")
    ours = PretrainedVAE.from_pretrained(tmp_path / "theirs")
    assert ours.module == model
    images = parity.normal(1, 32, 32, 3, seed=2).clip(-1, 1)
    compare(peer, ours, images)
    ours.save_pretrained(tmp_path / "ours")
    assert_same_bits(stored_tensors(tmp_path / "ours"), stored_tensors(tmp_path / "theirs"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_are_kept_between_files(dtype, tmp_path):
    make("sd").to(dtype).save_pretrained(tmp_path / "theirs")
    vae = read_vae(tmp_path / "theirs")
    write_diffusers(tmp_path / "ours", vae)
    write_ldm(tmp_path / "ldm.safetensors", vae)
    through = read_vae(tmp_path / "ldm.safetensors")
    write_diffusers(tmp_path / "again", through)
    for folder in ("ours", "again"):
        expected = stored_tensors(tmp_path / "theirs")
        half = {np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)}
        assert {array.dtype for array in expected.values()} <= half
        assert_same_bits(stored_tensors(tmp_path / folder), expected)
    # what computes is float32
    leaves = jax.tree.leaves(PretrainedVAE.from_pretrained(tmp_path / "theirs").params)
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}


def test_the_old_names_of_the_attention_load(tmp_path):
    peer = make("sd")
    peer.save_pretrained(tmp_path / "theirs")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in peer.state_dict().items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        tensors[name] = tensor
    save_file(tensors, tmp_path / "theirs" / "diffusion_pytorch_model.safetensors")
    images = parity.normal(2, 16, 16, 3, seed=2).clip(-1, 1)
    compare(peer, PretrainedVAE.from_pretrained(tmp_path / "theirs"), images)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", ["sd", "sd35-flux", "f16d32"])
def test_ldm_files_in_and_out(kind, suffix, tmp_path):
    module = AutoencoderKL(**{**SMALL, "channels": 32, "groups": 32}, **{
        "sd": {}, "sd35-flux": {"quant_conv": False}, "f16d32": {"attention_levels": (1,)}
    }[kind])  # fmt: skip
    peer = parity.randomise(diffusers_vae.make_vae(module), seed=1).eval()
    tensors = diffusers_vae.ldm_names(parity.state_of(peer))
    rng = np.random.default_rng(0)
    shape = (1, 3, 1, 1)
    statistics = {
        "latents_scale": rng.uniform(0.1, 9, shape).astype(np.float32),
        "latents_bias": rng.normal(size=shape).astype(np.float32),
    }
    path = tmp_path / f"vae.{suffix}"
    files.write_flat(path, tensors)
    torch.save({n: torch.tensor(a) for n, a in statistics.items()}, latent_statistics.beside(path))

    ours = PretrainedVAE.from_pretrained(path)
    assert ours.module == module
    images = parity.normal(2, 8, 8, 3, seed=2).clip(-1, 1)
    compare(peer, ours, images)
    latents = parity.normal(2, 4, 4, 3, seed=3)
    scale, bias = (statistics[f"latents_{kind}"].reshape(3) for kind in ("scale", "bias"))
    expected = (latents - bias) / np.sqrt(scale**-2 + 1e-4)  # LatentNorm's, with its epsilon
    parity.assert_close(ours.normalize(latents), expected, "normalised", 1e-6)
    parity.assert_close(ours.denormalize(ours.normalize(latents)), latents, "and back", 1e-5)

    write_ldm(tmp_path / f"again.{suffix}", ours)
    assert_same_bits(files.read_stored(tmp_path / f"again.{suffix}"), tensors)
    again = torch.load(tmp_path / "again-latents-stats.pt")
    assert_same_bits({n: t.numpy() for n, t in again.items()}, statistics)


def test_statistics_survive_every_value(tmp_path):
    scale = np.random.default_rng(0).uniform(1e-3, 1e3, 100_000).astype(np.float32)
    path = tmp_path / "x-latents-stats.pt"
    files.write_torch(path, {"latents_scale": scale, "latents_bias": scale})
    latent_statistics.write(path, latent_statistics.read(path))
    np.testing.assert_array_equal(files.read_stored(path)["latents_scale"].reshape(-1), scale)


def test_sampling_takes_a_key_or_the_noise(tmp_path):
    make("sd").save_pretrained(tmp_path)
    vae = PretrainedVAE.from_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    posterior = vae.encode(pixels)
    parity.assert_close(posterior.mean, vae.encode(pixels / 127.5 - 1.0).mean, "pixels", 1e-5)
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        noise = jax.random.normal(key, posterior.mean.shape)
        expected = posterior.mean + posterior.std * noise
        np.testing.assert_array_equal(posterior.sample(key), expected)
        np.testing.assert_array_equal(posterior.sample(noise), expected)


def damage(name, tensors):
    """A VAE's tensors with one thing wrong, and what the message must say."""
    victim = "decoder.conv_in.weight"
    tensors = {n: np.array(a) for n, a in tensors.items()}
    if name == "missing":
        del tensors[victim]
    elif name == "extra":
        tensors["decoder.more"] = np.ones(2, np.float32)
        return tensors, "unexpected tensor 'decoder.more'"
    elif name == "shape":
        tensors[victim] = tensors[victim][:, :1]
        return tensors, f"tensor '{victim}' has shape"
    elif name == "nan":
        tensors[victim][0, 0, 0, 0] = np.nan
        return tensors, f"tensor '{victim}' holds values that are not finite"
    elif name == "infinite":
        tensors[victim][0, 0, 0, 0] = np.inf
        return tensors, f"tensor '{victim}' holds values that are not finite"
    return tensors, f"tensor '{victim}' is missing"


@pytest.mark.parametrize("kind", ["missing", "extra", "shape", "nan", "infinite"])
def test_damage_names_file_and_tensor(kind, tmp_path):
    make("sd").save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "diffusion_pytorch_model.safetensors"
    tensors, message = damage(kind, load_file(file))
    files.write_safetensors(file, tensors)
    with pytest.raises(UserError) as caught:
        PretrainedVAE.from_pretrained(tmp_path / "theirs")
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_classes_and_variants_are_refused(tmp_path):
    make("sd").save_pretrained(tmp_path)
    config = json_of(tmp_path)

    def expect(message, **changes):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=message):
            PretrainedVAE.from_pretrained(tmp_path)

    expect("_class_name is 'UNet2DModel'", _class_name="UNet2DModel")
    expect("act_fn is 'relu'", act_fn="relu")
    expect("use_post_quant_conv is False", use_post_quant_conv=False)
    expect("down_block_types", down_block_types=["DownEncoderBlock2D", "Strange"])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        PretrainedVAE.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json is missing"):
        PretrainedVAE.from_pretrained(tmp_path)


def test_an_existing_folder_stays(tmp_path):
    make("sd").save_pretrained(tmp_path / "a")
    vae = PretrainedVAE.from_pretrained(tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    with pytest.raises(UserError, match="exists already"):
        vae.save_pretrained(tmp_path / "a")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before


def test_without_a_network_the_hub_is_one_clear_line(tmp_path, monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        repae_jax.AutoencoderKL.from_pretrained("REPA-E/e2e-sdvae-hf")
    message = str(caught.value)
    for part in ("REPA-E/e2e-sdvae-hf", "config.json", "diffusion_pytorch_model.safetensors",
                 "pretrained/REPA-E/e2e-sdvae-hf/"):  # fmt: skip
        assert part in message
    assert "\n" not in message
    # and put there, it is found
    make("sd").save_pretrained(tmp_path / "pretrained" / "REPA-E" / "e2e-sdvae-hf")
    # (a configuration's paths and the commands' need hf:// in front, or a typing error would go
    # to the hub)
    for name in ("REPA-E/e2e-sdvae-hf", "hf://REPA-E/e2e-sdvae-hf"):
        assert repae_jax.AutoencoderKL.from_pretrained(name).module == KINDS["sd"]


def test_the_hub_gives_a_folder_in_its_cache(tmp_path, monkeypatch):
    import huggingface_hub

    make("sd").save_pretrained(tmp_path / "cache" / "vae")
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(tmp_path / "cache" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    vae = PretrainedVAE.from_pretrained("owner/name/vae")
    assert vae.module == KINDS["sd"]
    assert asked == [
        ("owner/name", "vae/config.json"),
        ("owner/name", "vae/diffusion_pytorch_model.safetensors"),
    ]


@pytest.mark.parametrize("name", ["f8d4", "f8d16", "f16d32"])
def test_published_dimensions_are_inferred(name):
    model = AutoencoderKL(**VAE_CONFIGS[name])
    shapes = parameter_shapes(model)
    blank = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    for naming in ("ldm", "diffusers"):
        tensors = autoencoder_kl.export_vae(blank, model, naming)
        assert AutoencoderKL(**autoencoder_kl.infer_dimensions(tensors, source="X")) == model


def test_a_qwen_vae_has_no_ldm_names(tmp_path):
    qwen().save_pretrained(tmp_path)
    vae = PretrainedVAE.from_pretrained(tmp_path)
    assert isinstance(vae.module, AutoencoderKLQwenImage)
    with pytest.raises(UserError, match="no names of LDM's"):
        write_ldm(tmp_path / "x.pt", vae)
