"""RAE's discriminator from its description: timm's ViT, torch's spectral and instance norms."""

import functools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from parity import randomise, state_of
from torch import nn
from torch.nn.utils import spectral_norm

from repae_jax.interop.dino_discriminator import load_discriminator
from repae_jax.interop.vit import load_vit
from repae_jax.models.dino_discriminator import ENCODER, DinoDiscriminator

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Residual(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return (self.fn(x) + x) / 2**0.5


def _conv(width, features, kernel):
    return spectral_norm(
        nn.Conv1d(width, features, kernel, padding=kernel // 2, padding_mode="circular")
    )


def _block(width, kernel):
    norm = nn.InstanceNorm1d(width, eps=1e-6, affine=True)
    return nn.Sequential(_conv(width, width, kernel), norm, nn.LeakyReLU(0.2))


def make_head(width: int, kernel: int) -> nn.Module:
    """(B, D, N) -> (B, 1, N); its names are those of RAE's file."""
    return nn.Sequential(_block(width, 1), Residual(_block(width, kernel)), _conv(width, 1, 1))


class TorchDinoDiscriminator(nn.Module):
    """Images (B, 3, H, W) -> logits (B, heads * N), with the sizes of ours."""

    def __init__(self, model: DinoDiscriminator):
        super().__init__()
        timm = pytest.importorskip("timm")
        self.blocks, self.side = model.blocks, model.side
        dino = timm.models.vision_transformer.VisionTransformer(
            img_size=model.side, patch_size=model.patch_size, embed_dim=model.dim,
            depth=model.depth, num_heads=model.num_heads, num_classes=0,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
            act_layer=functools.partial(nn.GELU, approximate="tanh"),
        )  # fmt: skip
        randomise(dino).requires_grad_(False)
        # Values of a nonlinearity at which both approximations of GELU differ.
        dino.patch_embed.proj.weight.data *= 2
        dino.cls_token.data.normal_(generator=torch.Generator().manual_seed(1))
        dino.pos_embed.data.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(2))
        self.dino = [dino.eval()]  # no part of the state dict
        self.heads = nn.ModuleList(
            [make_head(model.dim, model.kernel) for _ in range(len(model.blocks) + 1)]
        )
        randomise_heads(self)

    def to(self, *args, **kwargs):
        self.dino[0].to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def features(self, x):
        """(B, D, N) of the last block, and of those of `blocks`."""
        shape = (1, 3, 1, 1)
        mean, std = (torch.tensor(v, dtype=x.dtype).view(shape) for v in (MEAN, STD))
        if x.shape[-1] != self.side or x.shape[-2] != self.side:
            size = (self.side, self.side)
            x = nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        dino = self.dino[0]
        x = dino.patch_embed(((x + 1) / 2 - mean) / std)
        x = torch.cat([dino.cls_token.expand(len(x), -1, -1), x], 1) + dino.pos_embed
        outputs = []
        for block in dino.blocks:
            x = block(x)
            outputs.append(x[:, 1:].transpose(1, 2))
        return [outputs[-1], *(outputs[i - 1] for i in self.blocks)]

    def forward(self, x):
        found = zip(self.heads, self.features(x), strict=True)
        return torch.cat([head(f).flatten(1) for head, f in found], 1)


def randomise_heads(module: nn.Module, seed: int = 3) -> nn.Module:
    """Random weights, norms and biases; u and v are unit vectors that no iteration has moved."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.heads.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith(("weight_u", "weight_v")):
            noise = noise / noise.norm()
        elif tensor.ndim == 3:
            noise = noise / tensor[0].numel() ** 0.5
        else:
            noise = 0.2 * noise + (1.0 if name.endswith("weight") else 0.0)
        tensor.copy_(noise)
    return module


def variables_of(heads: Mapping[str, np.ndarray], dino: nn.Module, model) -> dict:
    """All collections of ours, from a state dict of the heads and the ViT's module."""
    loaded = load_discriminator(heads, model)
    vit = load_vit(state_of(dino), model.encoder(), "the ViT")
    return {**loaded, "constants": {ENCODER: vit["params"]}}
