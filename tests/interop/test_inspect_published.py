"""`inspect` on files with the tensors of published sizes."""

import jax
import numpy as np
import pytest
from exported import export_discriminator, export_sit, export_vit
from sits import sit_of
from weight_files import blank, inspect

from repae_jax.interop import autoencoder_kl, discriminator, files, sit
from repae_jax.models.backbones.sit import SIT_CONFIGS
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.encoders.vit import create_vit
from repae_jax.models.tokenizers.autoencoder_kl import VAE_CONFIGS, AutoencoderKL


def f8d4_tensors():
    vae = AutoencoderKL(**VAE_CONFIGS["f8d4"])
    return autoencoder_kl.export_vae(blank(autoencoder_kl.parameter_shapes(vae)), vae, "ldm")


def sit_tensors():
    model = sit_of(
        latent_size=32, latent_channels=4, num_classes=1000, encoder_depth=8, teacher_dims=(768,),
        **SIT_CONFIGS["SiT-XL/2"],
    )  # fmt: skip
    return export_sit(blank(sit.sit_shapes(model)), model)


def gan_tensors():
    model = PatchDiscriminator()
    shapes = discriminator.discriminator_shapes(model)
    return export_discriminator(blank(shapes), model)


def vit_tensors(name):
    vit = create_vit(name)
    images = jax.ShapeDtypeStruct((1, vit.patch_size, vit.patch_size, 3), np.float32)
    shapes = jax.eval_shape(vit.init, jax.random.key(0), images)
    return export_vit(blank(shapes), vit, marked=not name.startswith(("pe-spatial", "pe-lang")))


# how the tensors of a published size are made, and what `inspect` calls it
PUBLISHED = {
    "VAE": (f8d4_tensors, "f8d4, 8 x 8 pixels -> 4 channels, widths 128-256-512-512, 32 groups"),
    "SiT": (
        sit_tensors,
        "SiT-XL/2: width 1152, depth 28, 16 heads, patch 2, latents 32 x 32 x 4, "
        "1001 rows of labels, teachers' widths 768",
    ),
    "PatchGAN": (gan_tensors, "3 layers, 64 filters"),
}


def stands_for(tensors, folder, monkeypatch):
    """A file that reads as these tensors without holding them."""
    (folder / "x.pth").touch()
    monkeypatch.setattr(files, "read_stored", lambda path: tensors)
    return folder / "x.pth"


@pytest.mark.parametrize("label", PUBLISHED)
def test_published_sizes_have_their_names(label, tmp_path, monkeypatch, capsys):
    make, text = PUBLISHED[label]
    tensors = make()
    found = inspect(stands_for(tensors, tmp_path, monkeypatch), capsys)
    assert text in found[label]
    values = sum(array.size for array in tensors.values())
    assert f"{values / 1e6:.2f} M float32" in found["weights"]


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("dinov2-b", "dinov2-b"),
        ("dinov2-g", "dinov2-g"),
        ("dinov2-l-reg", "dinov2-l-reg"),
        ("dinov3-b", "dinov3-b"),
        ("webssl-1b", "webssl-1b"),
        ("siglip2-so400m", "siglip2-so400m"),
        ("dino-b", "dino-b or mocov3-b"),
        ("mocov3-b", "mocov3-b"),  # by its prefix
        ("mae-l", "mocov3-l or mae-l"),
        ("ijepa-h", "ijepa-h"),
        ("clip-l", "clip-l"),
        ("pe-core-b", "pe-core-b"),
        ("pe-core-l", "pe-core-l"),
        ("pe-core-g", "pe-core-g"),
        ("pe-spatial-l", "pe-spatial-l"),
        ("pe-spatial-g", "pe-spatial-g"),
        ("pe-lang-l", "pe-lang-l"),
    ],
)
def test_published_teachers_have_their_names(name, alike, tmp_path, monkeypatch, capsys):
    found = inspect(stands_for(vit_tensors(name), tmp_path, monkeypatch), capsys)
    assert found["teacher"].endswith(f"; arch {alike}")
