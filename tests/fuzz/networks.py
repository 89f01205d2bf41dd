"""Targets: teachers, SiTs, discriminators, latent statistics."""

import json

import numpy as np
import tiny
from exported import export_discriminator, export_sit, export_vit, load_sit

from fuzz.original_checkpoints import sit_model, small_config
from fuzz.saving import inspect, safetensors_save, torch_save
from fuzz.target import Target, eighths
from repae_jax.interop import dino_discriminator, discriminator, files, latent_statistics, sit
from repae_jax.interop.detect_format import detect
from repae_jax.models.dino_discriminator import DinoDiscriminator


def _statistics(folder):
    shaped = {"latents_scale": [2.0, 1.0, 0.5], "latents_bias": [0.125, -0.25, 0.5]}
    torch_save(
        folder / "x-latents-stats.pt",
        {name: np.float32(v).reshape(1, 3, 1, 1) for name, v in shaped.items()},
    )


def _read_statistics(folder):
    return latent_statistics.read(folder / "x-latents-stats.pt")


def _own_vit():
    from repae_jax.config.modules import build_encoder

    return build_encoder(tiny.get_config().teachers.small, 32)


def _vit_params(model):
    import jax

    image = np.zeros((1, 32, 32, 3), np.float32)
    return eighths(jax.eval_shape(model.init, jax.random.key(0), image))


def _own_teacher(folder):
    from repae_jax.runs.weights import save_teacher

    params = _vit_params(_own_vit())["params"]
    save_teacher(str(folder / "teacher.safetensors"), params, {"accuracy": 0.5, "data": "digits"})


def _small_vit(arch):
    from repae_jax.models.encoders.vit import create_vit

    return create_vit(arch, patch_size=4, dim=16, depth=2, num_heads=2, native_grid=8)


def _authors_teacher(arch, name, inside=""):
    def write(folder):
        model = _small_vit(arch)
        tensors = export_vit(_vit_params(model), model)
        torch_save(folder / name, {inside: tensors, "epoch": 3} if inside else tensors)

    return write


def _transformers_teacher(folder):
    model = _small_vit("dinov2-b")
    tensors = export_vit(_vit_params(model), model, "transformers")
    safetensors_save(folder / "model.safetensors", tensors)
    config = {
        "architectures": ["Dinov2Model"], "hidden_size": 16, "image_size": 32, "patch_size": 4,
        "model_type": "dinov2", "num_hidden_layers": 2, "num_attention_heads": 2,
        "transformers_version": "4.40.0",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def _read_teacher(model, name):
    def read(folder):
        from repae_jax.config import teacher
        from repae_jax.runs.weights import load_teacher

        path = folder / name
        found = detect(path)
        loaded = load_teacher(teacher(weights=str(path)), model(), 32)
        return {"params": loaded, "format": found.format}

    return read


def _sit_file(folder):
    model = sit_model()
    tensors = export_sit(eighths(sit.sit_shapes(model)), model)
    torch_save(folder / "sit.pt", tensors)


def _read_sit(folder):
    from repae_jax.runs.inspection import describe

    found = detect(folder / "sit.pt")
    describe(folder / "sit.pt")
    return {
        "variables": load_sit(found.content, sit_model()),
        "format": found.format,
    }


def _discriminator_model():
    from repae_jax.runs.build import build_models

    return build_models(small_config()).discriminator


def _discriminator_file(folder):
    model = _discriminator_model()
    variables = eighths(discriminator.discriminator_shapes(model))
    tensors = export_discriminator(variables, model)
    torch_save(folder / "disc.pt", tensors)


def _read_discriminator(folder):
    tensors = files.read_tensors(folder / "disc.pt")
    return discriminator.load_discriminator(tensors, _discriminator_model())


def _heads():
    return DinoDiscriminator(patch_size=4, dim=8, depth=2, num_heads=2, blocks=(1, 2), side=12)


def _heads_file(folder):
    variables = eighths(dino_discriminator.discriminator_shapes(_heads()))
    tensors = dino_discriminator.export_discriminator(variables, _heads())
    torch_save(folder / "heads.pt", {"disc": tensors, "step": 3})


def _read_heads(folder):
    tensors = files.read_tensors(folder / "heads.pt")
    return dino_discriminator.load_discriminator(tensors, _heads())


TARGETS = (
    Target("latent statistics, .pt", _statistics, _read_statistics,
           words=inspect("x-latents-stats.pt")),
    Target("own teacher", _own_teacher, _read_teacher(_own_vit, "teacher.safetensors"),
           sealed=r".*\.safetensors", words=inspect("teacher.safetensors")),
    Target("DINOv2, .pth", _authors_teacher("dinov2-b", "dinov2.pth"),
           _read_teacher(lambda: _small_vit("dinov2-b"), "dinov2.pth"),
           words=inspect("dinov2.pth")),
    Target("MAE, .pth", _authors_teacher("mae-l", "mae.pth", "model"),
           _read_teacher(lambda: _small_vit("mae-l"), "mae.pth"), words=inspect("mae.pth")),
    Target("DINOv2, transformers' folder", _transformers_teacher,
           _read_teacher(lambda: _small_vit("dinov2-b"), ""), words=inspect("")),
    Target("SiT, .pt", _sit_file, _read_sit, words=inspect("sit.pt")),
    Target("heads of a DINO discriminator, .pt", _heads_file, _read_heads,
           words=inspect("heads.pt")),
    Target("discriminator, .pt", _discriminator_file, _read_discriminator,
           words=inspect("disc.pt")),
)  # fmt: skip
