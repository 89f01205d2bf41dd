"""Where the files that recipes name are published: docs/weights.md and errors list these tables."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

HUB = "https://huggingface.co/"
_GATED = "accept its license there, then `hf auth login`"


class Download(NamedTuple):
    """A published file, repository or data set.

    Attributes:
      what: its name, such as "DINOv2-B".
      place: the address of the page or file.
      note: what else to do there, or "".
    """

    what: str
    place: str
    note: str = ""

    @property
    def published(self) -> str:
        """Where it is published and what else to do there, as a clause."""
        return f"published at {self.place}" + (f" ({self.note})" if self.note else "")


def _hub(repository: str, what: str, *, gated: bool = False) -> Download:
    return Download(what, HUB + repository, _GATED if gated else "")


def _beside(stem: str) -> str:
    return f"its latent statistics are {stem}-latents-stats.pt beside it"


_LPIPS = "https://heibox.uni-heidelberg.de/f/607503859c864bc1b30b/?dl=1"
_META = "https://dl.fbaipublicfiles.com"

# File in pretrained/, or folder, repository or file on the hub -> where it is.
WEIGHTS = {
    "sdvae/sdvae-f8d4.pt": Download("SD-VAE (f8d4)", f"{HUB}REPA-E/sdvae", _beside("sdvae-f8d4")),
    "sdvae/sdvae-f8d4-discriminator-ckpt.pt": _hub("REPA-E/sdvae", "SD-VAE's discriminator"),
    "invae/invae-f16d32.pt": Download(
        "IN-VAE (f16d32)", f"{HUB}REPA-E/invae", _beside("invae-f16d32")
    ),
    "invae/invae-f16d32-discriminator-ckpt.pt": _hub("REPA-E/invae", "IN-VAE's discriminator"),
    "vavae/vavae-f16d32.pt": Download(
        "VA-VAE (f16d32)", f"{HUB}REPA-E/vavae", _beside("vavae-f16d32")
    ),
    "vavae/vavae-f16d32-discriminator-ckpt.pt": _hub("REPA-E/vavae", "VA-VAE's discriminator"),
    "e2e-sdvae/e2e-sdvae-400k.pt": Download(
        "E2E-SDVAE (f8d4)", f"{HUB}REPA-E/e2e-sdvae", _beside("e2e-sdvae-400k")
    ),
    "e2e-invae/e2e-invae-400k.pt": Download(
        "E2E-INVAE (f16d32)", f"{HUB}REPA-E/e2e-invae", _beside("e2e-invae-400k")
    ),
    "e2e-vavae/e2e-vavae-400k.pt": Download(
        "E2E-VAVAE (f16d32)", f"{HUB}REPA-E/e2e-vavae", _beside("e2e-vavae-400k")
    ),
    "REPA-E/e2e-vavae-hf": _hub("REPA-E/e2e-vavae-hf", "E2E-VAVAE (f16d32)"),
    "REPA-E/e2e-flux-vae": _hub("REPA-E/e2e-flux-vae", "E2E-FLUX (f8d16)"),
    "REPA-E/e2e-sd3.5-vae": _hub("REPA-E/e2e-sd3.5-vae", "E2E-SD3.5 (f8d16)"),
    "REPA-E/e2e-qwenimage-vae": _hub("REPA-E/e2e-qwenimage-vae", "E2E-QwenImage"),
    "black-forest-labs/FLUX.1-dev/vae": _hub(
        "black-forest-labs/FLUX.1-dev", "FLUX.1's VAE (f8d16)", gated=True
    ),
    "black-forest-labs/FLUX.2-dev/vae": _hub(
        "black-forest-labs/FLUX.2-dev", "FLUX.2's VAE", gated=True
    ),
    "stabilityai/stable-diffusion-3.5-medium/vae": _hub(
        "stabilityai/stable-diffusion-3.5-medium", "SD3.5's VAE (f8d16)", gated=True
    ),
    "Qwen/Qwen-Image/vae": _hub("Qwen/Qwen-Image", "Qwen-Image's VAE"),
    "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers": _hub(
        "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers", "DC-AE (f32c32)"
    ),
    "nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08": _hub(
        "nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08", "RAE with DINOv2-B"
    ),
    "nyu-visionx/RAEv2-models/stage1/imagenet/dinov3l-k7/decoder.pt": Download(
        "RAEv2's decoder of DINOv3-L",
        f"{HUB}nyu-visionx/RAEv2-models",
        "its latent statistics are stats.pt beside it",
    ),
    "facebook/dinov2-with-registers-base": _hub(
        "facebook/dinov2-with-registers-base", "DINOv2-B with registers"
    ),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": _hub(
        "facebook/dinov3-vitl16-pretrain-lvd1689m", "DINOv3-L", gated=True
    ),
    "dinov2_vitb14_pretrain.pth": Download(
        "DINOv2-B", f"{_META}/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth"
    ),
    "dinov2_vitl14_pretrain.pth": Download(
        "DINOv2-L", f"{_META}/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
    ),
    "dino_deitsmall8_pretrain.pth": Download(
        "DINO-S/8", f"{_META}/dino/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth"
    ),
    "lpips/vgg.pth": Download("LPIPS's linear heads on VGG16", _LPIPS),
    "lpips/vgg16-397923af.pth": Download(
        "VGG16 under LPIPS", "https://download.pytorch.org/models/vgg16-397923af.pth"
    ),
    "inception/pt_inception-2015-12-05-6726825d.pth": Download(
        "FID's InceptionV3",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
    ),
    "google/gemma-2b": _hub("google/gemma-2b", "Gemma 2B", gated=True),
    "Qwen/Qwen3-0.6B": _hub("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
    "openai/clip-vit-large-patch14": _hub("openai/clip-vit-large-patch14", "CLIP ViT-L/14"),
}

# Name or folder of a data set -> where it is.
DATA = {
    "imagenet2012": Download(
        "ImageNet-1k (ILSVRC 2012)",
        "https://image-net.org/challenges/LSVRC/2012",
        "put its two tars into TFDS's folder downloads/manual",
    ),
    "data/coco": Download("MS-COCO 2014 with captions", "https://cocodataset.org/#download"),
    "data/blip3o": Download(
        "BLIP3o's pictures with captions",
        f"{HUB}datasets/BLIP3o/BLIP3o-Pretrain-Long-Caption",
        "fuse-dit adds BLIP3o-Pretrain-Short-Caption",
    ),
    "data/vavae": Download(
        "ImageNet's latents by VA-VAE",
        f"{HUB}datasets/hustvl/imagenet256-latents-vave-f16d32-dinov2",
        "`convert` makes a cache of them",
    ),
}

# Beginning of a preset of `config.teachers` -> where all its sizes are, or are linked.
TEACHERS = {
    "dinov2": Download("DINOv2", "https://github.com/facebookresearch/dinov2"),
    "dinov3": Download("DINOv3", "https://github.com/facebookresearch/dinov3"),
    "dino-": Download("DINO", "https://github.com/facebookresearch/dino"),
    "mocov3": Download("MoCo v3", "https://github.com/LTH14/rcg"),
    "mae": Download("MAE", "https://github.com/facebookresearch/mae"),
    "ijepa": Download("I-JEPA", "https://github.com/facebookresearch/ijepa"),
    "clip": Download("CLIP", "https://huggingface.co/openai/clip-vit-large-patch14"),
    "siglip": Download("SigLIP", f"{HUB}google", "such as siglip2-base-patch16-256"),
    "webssl": Download("Web-SSL", f"{HUB}facebook", "such as webssl-dino1b-full2b-224"),
    "pe-": Download("Perception Encoder", f"{HUB}facebook", "such as PE-Core-B16-224"),
}


def weights_named(name: str) -> Download | None:
    """Where the weights `name`, a path or hf://..., are published; None if the name is unknown.

    A file in another folder than pretrained/ is known by its own name, which is unique.
    """
    name = str(name).removeprefix("hf://").removeprefix("pretrained/")
    if name in WEIGHTS:
        return WEIGHTS[name]
    file = pathlib.PurePath(name).name
    named = (d for key, d in WEIGHTS.items() if pathlib.PurePath(key).name == file)
    return next(named, None) if file.endswith((".pt", ".pth")) else None


def teacher_of(arch: str) -> Download | None:
    """Where the encoder of a preset is published; None if it has no published weights."""
    return next((d for start, d in TEACHERS.items() if arch.startswith(start)), None)
