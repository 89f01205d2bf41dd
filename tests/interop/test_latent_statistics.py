"""The latents' mean and variance: diffusers' defaults, its pipelines' arithmetic, and damage."""

import functools
import inspect as introspection
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
from pipelines import decoded_latents

from repae_jax.errors import UserError
from repae_jax.interop import latent_statistics
from repae_jax.interop.vae_families import FAMILIES
from repae_jax.interop.vae_files import read_vae, write_diffusers
from repae_jax.models.batch_norm import denormalize_samples
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.base import parameter_shapes
from repae_jax.models.tokenizers.dc_ae import AutoencoderDC
from repae_jax.models.tokenizers.qwen_image_vae import AutoencoderKLQwenImage
from repae_jax.runs.pretrained import PretrainedVAE

XL, SD, FLUX, SD3 = (
    "stable_diffusion_xl/pipeline_stable_diffusion_xl",
    "stable_diffusion/pipeline_stable_diffusion",
    "flux/pipeline_flux",
    "stable_diffusion_3/pipeline_stable_diffusion_3",
)
GLM, QWEN = "glm_image/pipeline_glm_image", "qwenimage/pipeline_qwenimage"
WAN, SANA = "wan/pipeline_wan", "sana/pipeline_sana"
OF_DC_AE = [SANA, "sana/pipeline_sana_sprint", "pag/pipeline_pag_sana"]
FAMILY = {QWEN: "qwen", WAN: "wan", SANA: "dc"}  # of a pipeline's VAE; else "kl"
MANY_XL = [
    XL,
    f"{XL}_img2img",
    f"{XL}_inpaint",
    f"{XL}_instruct_pix2pix",
    "controlnet/pipeline_controlnet_sd_xl",
    "pag/pipeline_pag_sd_xl",
]
ONE_FACTOR = [SD, "dit/pipeline_dit", "pixart_alpha/pipeline_pixart_alpha"]
WITH_SHIFT = [FLUX, SD3, "lumina2/pipeline_lumina2", "z_image/pipeline_z_image"]


@functools.cache
def vae_of(channels, family="kl"):
    """A VAE of ones with so many latent channels."""
    config = {}
    if family == "dc":
        module = AutoencoderDC(
            widths=(8, 8), encoder_layers=(1, 1), decoder_layers=(1, 1), attention_levels=(),
            latent_channels=channels,
        )  # fmt: skip
    elif family in ("qwen", "wan"):
        config = {"_class_name": "AutoencoderKLWan"} if family == "wan" else {}
        module = AutoencoderKLQwenImage(
            base_dim=4, latent_channels=channels, multipliers=(1, 1), num_res_blocks=1,
            temporal_downsample=(False,),
        )  # fmt: skip
    else:
        module = AutoencoderKL(
            channels=4, multipliers=(1,), latent_channels=channels, num_res_blocks=1, groups=2
        )
    blank = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), parameter_shapes(module))
    return PretrainedVAE(module, blank, config)


def exported(vae, statistics, folder) -> dict:
    """diffusers' config of a VAE with these statistics, as our folder gives it."""
    import diffusers

    write_diffusers(folder, PretrainedVAE(vae.module, vae.params, vae.config, statistics))
    config = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        return dict(getattr(diffusers, config["_class_name"]).from_config(config).config)


def per_channel(channels):
    rng = np.random.default_rng(channels)
    mean = rng.normal(size=channels).astype(np.float32)
    return {"mean": mean, "var": rng.uniform(0.1, 20, channels).astype(np.float32)}


def alike(channels, mean, std):
    values = {"mean": mean, "var": std**2}
    return {name: np.full(channels, value, np.float32) for name, value in values.items()}


def through(pipeline, config, z):
    """Our latents (B, h, w, c) through a pipeline's de-normalisation."""
    frames = pipeline in (QWEN, WAN)
    theirs = parity.to_nchw(z)
    theirs = decoded_latents(pipeline, config, theirs[:, :, None] if frames else theirs)
    return parity.to_nhwc(theirs[:, :, 0] if frames else theirs)


@pytest.mark.parametrize(
    ("pipelines", "channels", "statistics"),
    [
        (MANY_XL, 4, per_channel(4)),
        ([GLM], 16, per_channel(16)),
        ([QWEN], 16, per_channel(16)),
        ([WAN], 16, per_channel(16)),
        (OF_DC_AE, 8, alike(8, 0.0, 2.4)),
        (OF_DC_AE, 4, alike(4, 0.0, 2.4)),
        ([*ONE_FACTOR, XL], 4, alike(4, 0.0, 5.5)),
        ([*WITH_SHIFT, GLM], 16, alike(16, 0.3, 2.5)),
    ],
)
def test_what_is_exported_is_normalised_once(pipelines, channels, statistics, tmp_path):
    vae = vae_of(channels, FAMILY.get(pipelines[0], "kl"))
    config = exported(vae, statistics, tmp_path / "vae")
    z = parity.normal(2, 3, 3, channels, seed=1)
    expected = denormalize_samples(jnp.asarray(z), statistics["mean"], statistics["var"])
    for pipeline in pipelines:
        parity.assert_close(through(pipeline, config, z), expected, pipeline, 1e-6)
    # and it comes back to the bit
    read = read_vae(tmp_path / "vae").statistics
    for name, array in statistics.items():
        np.testing.assert_array_equal(read[name], array)


def test_one_factor_and_shift_are_those_of_all_channels(tmp_path):
    statistics = per_channel(16)
    config = exported(vae_of(16), statistics, tmp_path / "vae")
    for pipeline in WITH_SHIFT:
        zero, one = (
            through(pipeline, config, np.full((1, 1, 1, 16), n, np.float32)) for n in (0, 1)
        )
        np.testing.assert_allclose(zero, statistics["mean"].mean(), rtol=1e-5)
        np.testing.assert_allclose((one - zero) ** 2, statistics["var"].mean(), rtol=1e-5)


@pytest.mark.parametrize("channels", [4, 8])
def test_dc_aes_factor_is_that_of_all_channels(channels, tmp_path):
    """Its pipelines know no shift: the mean stays in the latents."""
    statistics = per_channel(channels)
    config = exported(vae_of(channels, "dc"), statistics, tmp_path / "vae")
    for pipeline in OF_DC_AE:
        one = through(pipeline, config, np.ones((1, 1, 1, channels), np.float32))
        np.testing.assert_allclose(one**2, statistics["var"].mean(), rtol=1e-5)
    read = read_vae(tmp_path / "vae").statistics
    for name, array in statistics.items():
        np.testing.assert_array_equal(read[name], array)


def test_with_four_channels_one_factor_leaves_the_latents_as_they_are(tmp_path):
    config = exported(vae_of(4), per_channel(4), tmp_path / "vae")
    z = parity.normal(1, 2, 2, 4, seed=1)
    for pipeline in ONE_FACTOR:
        np.testing.assert_array_equal(through(pipeline, config, z), z)


LISTS = {"latents_mean": [0.5, -1.0, 0.25, 2.0], "latents_std": [4.0, 0.5, 1.0, 2.0]}


@pytest.mark.parametrize(
    ("pipeline", "entries"),
    [
        (SD, {}),  # sd-vae-ft-mse's config.json says nothing of it
        (SD, {"scaling_factor": 0.13025}),
        (XL, {"scaling_factor": 0.13025, "shift_factor": None}),
        (XL, {"scaling_factor": 1.0} | LISTS),
        (XL, {"latents_mean": LISTS["latents_mean"]}),
        (FLUX, {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
        (SD3, {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
        (GLM, LISTS),  # beside the class's scaling_factor
        (GLM, {"scaling_factor": 0.5, "shift_factor": 3.0} | LISTS),
        (QWEN, LISTS),
    ],
)
def test_what_is_read_is_what_the_pipeline_does(pipeline, entries, tmp_path):
    import diffusers

    vae = vae_of(4, "qwen" if pipeline == QWEN else "kl")
    write_diffusers(tmp_path / "vae", vae)
    path = tmp_path / "vae" / "config.json"
    keys = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    config = json.loads(path.read_text())
    config = {name: value for name, value in config.items() if name not in keys} | entries
    path.write_text(json.dumps(config))
    statistics = read_vae(tmp_path / "vae").statistics
    with torch.device("meta"):
        theirs = getattr(diffusers, config["_class_name"]).from_config(config).config
    z = parity.normal(2, 3, 3, 4, seed=1)
    expected = through(pipeline, dict(theirs), z)
    parity.assert_close(
        denormalize_samples(jnp.asarray(z), **statistics), expected, "latents", 1e-6
    )


def test_a_factor_beside_lists_is_the_deviation_of_sdxls_own_latents():
    """Playground v2.5's network expects latents of deviation 0.5: its factor comes after."""
    config = FAMILIES["AutoencoderKL"].defaults | LISTS | {"scaling_factor": 0.5}
    statistics = latent_statistics.from_config(config, 4, source="X")
    z = parity.normal(2, 3, 3, 4, seed=1)
    expected = through(XL, config, 0.5 * z)
    parity.assert_close(
        denormalize_samples(jnp.asarray(z), **statistics), expected, "latents", 1e-6
    )


# EQ-SDXL-VAE's config.json: its factor is about 1 / the root mean square of its deviations.
EQ_SDXL = {"latents_mean": [-2.7, 1.4, 4.3, 1.3], "latents_std": [10.0, 6.8, 7.2, 5.6]}
EQ_SDXL |= {"scaling_factor": 0.127, "shift_factor": 0.8}


def test_eq_sdxl_vae_is_normalized_per_channel_and_once(tmp_path):
    plain = vae_of(4)
    write_diffusers(tmp_path / "vae", plain)
    path = tmp_path / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | EQ_SDXL))
    vae = read_vae(tmp_path / "vae")
    z = parity.normal(2, 3, 3, 4, seed=1)
    mean, std = (np.float32(EQ_SDXL[key]) for key in ("latents_mean", "latents_std"))
    normalized = denormalize_samples(jnp.asarray(z), **vae.statistics)
    parity.assert_close(normalized, z * std + mean, "latents", 1e-6)
    # tuned, its statistics are others, and the factor that would divide again is gone
    tuned = PretrainedVAE(vae.module, vae.params, vae.config)
    config = exported(tuned, per_channel(4), tmp_path / "tuned")
    assert (config["scaling_factor"], config["shift_factor"]) == (1.0, 0.0)
    expected = denormalize_samples(jnp.asarray(z), **per_channel(4))
    for pipeline in MANY_XL:
        parity.assert_close(through(pipeline, config, z), expected, pipeline, 1e-6)


def test_a_vae_without_statistics_stays_one(tmp_path):
    for family, count in (("kl", 4), ("qwen", 16)):
        vae = vae_of(count, family)
        config = exported(vae, None, tmp_path / family)
        assert all(config[key] is None for key in ("latents_mean", "latents_std"))
        assert read_vae(tmp_path / family).statistics is None
        # and what its publisher says is not touched
        again = read_vae(tmp_path / family)
        write_diffusers(tmp_path / f"{family}2", again)
        texts = [(tmp_path / name / "config.json").read_text() for name in (family, f"{family}2")]
        assert texts[0] == texts[1]


def parameters_of(name):
    import diffusers

    parameters = introspection.signature(getattr(diffusers, name).__init__).parameters
    return {key: p.default for key, p in parameters.items() if key != "self"}


DIFFUSERS = [name for name, family in FAMILIES.items() if not family.code]


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name in DIFFUSERS for key in parameters_of(name)]
)
def test_an_absent_key_has_diffusers_default(name, key):
    """For every parameter of its constructor; a key that has to be there is named."""
    import diffusers

    family, cls = FAMILIES[name], getattr(diffusers, name)
    whole = {"_class_name": name} | parameters_of(name)
    without = {other: value for other, value in whole.items() if other != key}
    if key not in family.defaults:
        with pytest.raises(UserError, match=f"X: {key} is missing"):
            family.dimensions_from_config(family.defaults | without, source="X")
        return
    with torch.device("meta"):
        theirs = dict(cls.from_config(dict(without)).config)
    assert json.loads(json.dumps(family.defaults[key])) == json.loads(json.dumps(theirs[key]))
    for config in (without, theirs):
        config = json.loads(
            json.dumps({k: v for k, v in config.items() if k != "_diffusers_version"})
        )
        full = family.defaults | config
        module = family.module(**family.dimensions_from_config(full, source="X"))
        assert module == family.module(**family.dimensions_from_config(whole, source="X"))
        if family.statistics_in_tensors:
            continue
        channels = full[family.channels]
        told = latent_statistics.from_config(full, channels, source="X")
        expected = latent_statistics.from_config(theirs, theirs[family.channels], source="X")
        for part in ("mean", "var"):
            np.testing.assert_array_equal(told[part], expected[part])


@pytest.mark.parametrize("count", [16, 3])
def test_default_statistics_are_of_so_many_channels(count, tmp_path):
    """Qwen-Image's defaults are those of its own 16 channels."""
    import diffusers

    write_diffusers(tmp_path / "vae", vae_of(count, "qwen"))
    path = tmp_path / "vae" / "config.json"
    config = json.loads(path.read_text())
    for key in ("latents_mean", "latents_std", *(["z_dim"] if count == 16 else [])):
        del config[key]
    path.write_text(json.dumps(config))
    statistics = read_vae(tmp_path / "vae").statistics
    if count != 16:
        assert statistics is None
        return
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLQwenImage.from_config(config).config
    np.testing.assert_allclose(statistics["mean"], theirs.latents_mean, rtol=1e-6)
    np.testing.assert_allclose(statistics["var"] ** 0.5, theirs.latents_std, rtol=1e-6)


def test_an_sd_vae_as_published_has_its_factor(tmp_path):
    """sd-vae-ft-mse's config.json has neither factor nor latent channels."""
    write_diffusers(tmp_path / "vae", vae_of(4))
    path = tmp_path / "vae" / "config.json"
    config = json.loads(path.read_text())
    for key in ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "latent_channels"):
        del config[key]
    path.write_text(json.dumps(config))
    statistics = PretrainedVAE.from_pretrained(tmp_path / "vae").statistics
    np.testing.assert_array_equal(statistics["mean"], np.zeros(4, np.float32))
    np.testing.assert_allclose(statistics["var"], 0.18215**-2, rtol=1e-6)
