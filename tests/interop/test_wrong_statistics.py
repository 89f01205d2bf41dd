"""Latent statistics that are none, from wherever statistics come."""

import json

import jax
import numpy as np
import pytest
import tiny
import torch
from test_latent_statistics import vae_of
from weight_files import parts_of

from repae_jax.data import latents
from repae_jax.errors import UserError
from repae_jax.interop import files, latent_statistics
from repae_jax.interop.vae_families import FAMILIES
from repae_jax.interop.vae_files import read_vae, write_diffusers
from repae_jax.models.tokenizers.base import parameter_shapes
from repae_jax.runs.build import build_tokenizer
from repae_jax.runs.original_import import config_of, import_run
from repae_jax.runs.pretrained import PretrainedVAE
from repae_jax.runs.weights import read_vae as read_configured
from repae_jax.runs.weights import statistics_of


def statistics_file(values, folder, suffix):
    """The original's file of 4 channels; `values` stand in the place of the scales."""
    path = folder / f"x.{suffix}"
    files.write_flat(path, {"latents_scale": values, "latents_bias": np.zeros(4, np.float32)})
    return path


def from_file(suffix):
    def read(values, folder, _):
        latent_statistics.read(statistics_file(values, folder, suffix), 4)

    return read, f"x.{suffix}: latents_scale"


def from_config(values, folder, _):
    write_diffusers(folder / "vae", vae_of(4))
    path = folder / "vae" / "config.json"
    lists = {"latents_mean": [0.0] * 4, "latents_std": np.asarray(values).tolist()}
    path.write_text(json.dumps(json.loads(path.read_text()) | lists))
    read_vae(folder / "vae")


def from_key(values, folder, _):
    config = tiny.get_config()
    config.tokenizer.update(latent_channels=4, weights=str(folder / "vae"))
    config.tokenizer.statistics = str(statistics_file(values, folder, "pt"))
    module = build_tokenizer(config)
    blank = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), parameter_shapes(module))
    write_diffusers(folder / "vae", PretrainedVAE(module, blank))
    read_configured(config, module)


def from_manifest(values, *_):
    manifest = {
        "statistics": {"mean": [0.0] * 4, "var": np.asarray(values).tolist()},
        "made": {"latent_shape": [2, 2, 4]},
    }
    latents.statistics_of(latents.LatentSource("cache", 10, None, manifest, False))


def from_checkpoint(values, folder, checkpoint):
    content = parts_of(checkpoint, "model", "ema", "vae", "discriminator", "args", "steps")
    values = np.asarray(values)
    content["ema"]["bn.running_var"] = torch.tensor(values[:2] if len(values) == 4 else values)
    content["ema"]["bn.running_mean"] = torch.zeros_like(content["ema"]["bn.running_var"])
    torch.save(content, folder / "x.pt")
    read_vae(folder / "x.pt")


def from_import(values, folder, checkpoint):
    content = files.read_stored(checkpoint)
    content["model"]["bn.running_var"] = np.asarray(values)[:2]
    config = config_of(content, source="x.pt")
    import_run(content, folder / "run", config, source="x.pt", progress=False)


def from_work_directory(values, folder, _):
    statistics_of({"latent_norm": {"mean": np.zeros(4), "var": values}}, 4, source="runs/x")


# where statistics come from -> (who reads them, what the error calls them)
ORIGINS = {
    "pt": from_file("pt"),
    "safetensors": from_file("safetensors"),
    "config.json": (from_config, "config.json: latents_std"),
    "config.tokenizer.statistics": (from_key, "x.pt: latents_scale"),
    "manifest": (from_manifest, "cache/manifest.json: var"),
    "checkpoint": (from_checkpoint, "x.pt: ema: bn.running_var"),
    "import": (from_import, "x.pt: model: bn.running_var"),
    "work directory": (from_work_directory, "runs/x: latent_norm/var"),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_wrong_statistics_are_named(origin, checkpoint, tmp_path):
    read, key = ORIGINS[origin]
    wrong = {
        0.0: "is 0, which has to be above 0",
        -2.0: "is -2, which has to be above 0",
        float("nan"): "is nan, which has to be above 0",
        float("inf"): "is inf, which is not finite",
    }
    for number, (value, message) in enumerate(wrong.items()):
        if origin == "import" and not np.isfinite(value):
            continue  # so it is for every tensor
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(UserError) as caught:
            read(np.array([1.0, value, 2.0, 3.0], np.float32), folder, checkpoint)
        assert f"{key}[1] {message}" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("origin", [name for name in ORIGINS if name != "import"])
@pytest.mark.parametrize("count", [1, 3])
def test_statistics_of_another_length_are_named(count, origin, checkpoint, tmp_path):
    read, _ = ORIGINS[origin]
    with pytest.raises(UserError, match=r"[_/ ]\w+ has \d values, the VAE has \d channels"):
        read(np.ones(count, np.float32), tmp_path, checkpoint)


@pytest.mark.parametrize("dtype", [np.int64, np.complex64, np.bool_, np.int8])
@pytest.mark.parametrize("origin", ["pt", "work directory"])
def test_statistics_of_another_type_are_named(origin, dtype, checkpoint, tmp_path):
    read, key = ORIGINS[origin]
    name = np.dtype(dtype).name
    with pytest.raises(UserError, match=rf"{key} is {name} of shape \(4,\)"):
        read(np.ones(4, dtype), tmp_path, checkpoint)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"scaling_factor": 0}, "scaling_factor[0] is 0, which has to be above 0"),
        ({"scaling_factor": -0.5}, "scaling_factor[0] is -0.5, which has to be above 0"),
        ({"scaling_factor": "0.5"}, "scaling_factor is <U3 of shape (1,)"),
        ({"scaling_factor": True}, "scaling_factor is bool of shape (1,)"),
        ({"shift_factor": float("nan")}, "shift_factor[0] is nan, which is not finite"),
        ({"latents_mean": [0.0, None, 0.0, 0.0], "latents_std": [1.0] * 4}, "latents_mean is obj"),
        ({"latents_mean": [[0.0, 1.0]] * 2, "latents_std": [1.0] * 4}, "of shape (2, 2)"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1e-30] * 4}, "latents_std[0] is 1e-30"),
    ],
)
def test_wrong_entries_of_a_config_are_named(entries, message, tmp_path):
    config = FAMILIES["AutoencoderKL"].defaults | entries
    with pytest.raises(UserError) as caught:
        latent_statistics.from_config(config, 4, source="config.json")
    assert f"config.json: {message}" in str(caught.value) or message in str(caught.value)
